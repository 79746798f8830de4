"""PyTorch as commands know it: it trains ONNX files, and Caffe nets as the graphs they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from memcli.choices import AS_PLANNED
from memcli.engine import Network, PlanRequest, SearchAnswer
from memcli.engines.costs import Costs
from memcli.engines.torch.fitting import TorchFit, torch_breakdown
from memcli.engines.torch.inspecting import inspect_file
from memcli.engines.torch.memory.bound import torch_bound
from memcli.engines.torch.memory.stages import torch_stages
from memcli.engines.torch.planning import (
    analyze_file,
    limited,
    marked,
    read_for_training,
    shape_notes,
    write_planned,
)
from memcli.engines.torch.record import TorchAnalysis
from memcli.engines.torch.split import split_request
from memcli.engines.torch.verifying import verify_file
from memcli.engines.verification import refuse_kernels
from memcli.errors import BadInput
from memcli.formats.detect import Model, ModelSource
from memcli.formats.output import check_output
from memcli.formats.trained_file import TrainedFile
from memcli.frameworks.figures import ModelRequest
from memcli.graph.cost import Cost, Found, LowerBound
from memcli.graph.training import Flags
from memcli.quoting import shown_path
from memcli.request import Devices, Progress, ShapeRequest
from memcli.results.inspected import Inspected
from memcli.results.planned import BatchSplit, OnCard, Planned
from memcli.results.step_total import Breakdown
from memcli.results.verified import Verified
from memcli.search.base import Search, Settings
from memcli.search.registry import STRATEGIES
from memcli.time_limit import finished_by, search_end

# Kept free of a time limit for what comes behind the search, at most a fifth of it.
_REST_SECONDS = 0.5


class TorchNetwork(Network):
    """A model's training step, recorded by PyTorch without data."""

    def __init__(
        self,
        file: TrainedFile,
        original: tuple[str, str],
        analysis: TorchAnalysis,
        devices: Devices,
        split: BatchSplit | None,
        restored: list[str],
        notes: list[str],
    ) -> None:
        self.source: Any = file
        self.original = original
        self.analysis: Any = analysis
        self.operator_count = len(analysis.steps)
        self.device = devices.kind
        self.timed_on = devices.first
        self.split = split
        self.restored = restored
        self.notes = notes

    def breakdown(self, pool_bytes: int, optimizer: str) -> Breakdown:
        """See :meth:`Network.breakdown`."""
        return torch_breakdown(self.analysis, pool_bytes, optimizer)

    def set_costs(self, cost: str, on_progress: Progress | None = None) -> list[str]:
        """See :meth:`Network.set_costs`."""
        costs = Costs(cost, self.timed_on, on_progress)
        costs.give(self.analysis)
        return costs.notes

    def search(self, strategy: str, settings: Settings) -> SearchAnswer:
        """See :meth:`Network.search`; every plan is exact, since nodes are run as they were."""
        ends = settings.deadline
        # for the table of stages, a bound, and writing the file
        rest = 0.0 if ends is None else min(_REST_SECONDS, 0.2 * (settings.time_limit or 0.0))
        timed = dataclasses.replace(settings, deadline=search_end(ends, rest))
        search = Search(self.analysis.search_space(), limited(timed))
        STRATEGIES[strategy].run(search)
        return SearchAnswer(search, search.answer(), search.evaluated)

    def estimate(self, strategy: str, settings: Settings) -> tuple[Found, dict[str, str]]:
        """See :meth:`Network.estimate`."""
        search = Search(self.analysis.search_space(), limited(settings))
        STRATEGIES[strategy].run(search)
        return search.answer(), {}

    def lower_bound(self, costs: Sequence[Cost]) -> int:
        """See :meth:`Network.lower_bound`."""
        least = min(cost.pool_bytes for cost in costs)
        return torch_bound(self.analysis.model.exact, least).bytes

    def planned(self, answer: SearchAnswer, settings: Settings, **known: Any) -> Planned:
        """See :meth:`Network.planned`."""
        search: Search = answer.form
        plan, cost = answer.found.plan, answer.found.cost
        bound = finished_by(
            settings.deadline, lambda: search.lower_bound(cost.live_peak_bytes), LowerBound(0, 0)
        )
        listed, _ = torch_stages(self.analysis.model, plan.recompute, plan.cuts)
        return Planned(
            stages=listed,
            lower_bound=bound.bytes,
            bound_within=search.bound_within,
            lower_bound_within=bound.within,
            baseline_allocated=known["baseline"].pool_bytes,
            allocated=cost.pool_bytes,
            marked=marked(plan, self.analysis),
            on_card=self._on_card(plan.recompute) if self.device == "cuda" else None,
            split=self.split,
            **known,
        )

    def _on_card(self, flags: Flags) -> OnCard | None:
        model = self.analysis.model.exact
        try:
            first, second = model.device_memory(model.none()), model.device_memory(flags)
        except ValueError:  # a plan that recomputes without end
            return None
        there = first.resident + first.workspaces
        return OnCard(
            baseline_allocated=there + first.allocated_peak,
            baseline_reserved=first.reserved_peak,
            allocated=there + second.allocated_peak,
            reserved=second.reserved_peak,
            workspaces=second.workspaces,
        )

    def write(self, planned: Planned, out: str, force: bool) -> None:
        """See :meth:`Network.write`."""
        write_planned(planned, out, force)


class TorchEngine:
    """The engine of ONNX files and Caffe nets."""

    name = "torch"
    title = "PyTorch"
    plans_for_devices = True

    def check_request(
        self,
        source: ModelSource,
        request: ShapeRequest | None,
        devices: Devices,
        *,
        training: bool = False,
        timed: bool = True,
        cpu: bool = False,
    ) -> None:
        """See :meth:`memcli.engine.Engine.check_request`."""
        if request is not None and request.imports:
            raise BadInput(
                f"{shown_path(source.path)}: is no MXNet symbol, and --import is for MXNet's user "
                "operators"
            )

    def check_output(self, source: ModelSource, out: str | None, force: bool) -> None:
        """See :meth:`memcli.engine.Engine.check_output`; the name says how a net is written."""
        check_output(source, out, force)
        if out is not None:
            source.kind.check_name(out)

    def check_devices(self, devices: Devices) -> None:
        """See :meth:`memcli.engine.Engine.check_devices`; PyTorch says so when it is asked."""

    def network(
        self,
        source: ModelSource,
        request: ShapeRequest,
        settings: Settings,
        asked: PlanRequest,
        on_progress: Progress | None = None,
    ) -> TorchNetwork:
        """See :meth:`memcli.engine.Engine.network`."""
        notes: list[str] = []
        devices = asked.devices
        file, original, restored = read_for_training(source, asked.training, request, notes)
        split = None
        assumed: list[str] = []
        if devices.count > 1:
            request, split, assumed = split_request(file, request, devices.count)
        analysis = analyze_file(file, request, devices.kind, on_progress)
        analysis.assumed = analysis.assumed or assumed
        notes += shape_notes(analysis)
        return TorchNetwork(file, original, analysis, devices, split, restored, notes)

    def fit_search(
        self,
        source: ModelSource,
        request: ShapeRequest,
        settings: Settings,
        asked: PlanRequest,
        available: int,
        strategy: str,
        optimizer: str,
        on_progress: Progress | None = None,
    ) -> TorchFit:
        """See :meth:`memcli.engine.Engine.fit_search`."""
        return TorchFit(
            source,
            request,
            settings,
            available,
            strategy=strategy,
            optimizer=optimizer,
            devices=asked.devices,
            training=asked.training,
            on_progress=on_progress,
        )

    def verify(
        self,
        planned: ModelSource,
        *,
        original: Model | None,
        devices: Devices,
        seed: int,
        steps: int | None,
        engine: str,
        kernels: str | None,
        request: ShapeRequest | None,
        on_progress: Progress | None = None,
    ) -> Verified:
        """See :meth:`memcli.engine.Engine.verify`."""
        if engine == "mxnet":
            raise BadInput(
                f"{shown_path(planned.path)}: is {planned.kind.noun}: PyTorch runs it, MXNet does "
                "not"
            )
        if kernels not in (None, AS_PLANNED):
            raise refuse_kernels()
        return verify_file(
            planned,
            original=original,
            where_trained=devices,
            seed=seed,
            steps=steps,
            request=request,
            on_progress=on_progress,
        )

    def inspect(
        self,
        source: ModelSource,
        request: ShapeRequest | None,
        *,
        dtype: str | None,
        top: int,
        models: ModelRequest,
        on_progress: Progress | None = None,
    ) -> Inspected:
        """See :meth:`memcli.engine.Engine.inspect`."""
        return inspect_file(
            source, request, dtype=dtype, top=top, models=models, on_progress=on_progress
        )


ENGINE = TorchEngine()
