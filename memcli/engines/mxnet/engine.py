"""MXNet as commands know it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from memcli.choices import AS_PLANNED
from memcli.engine import Network, PlanRequest, SearchAnswer
from memcli.engines import symbol_in_torch
from memcli.engines.costs import set_costs
from memcli.engines.gpus import check_gpu, visible_gpus
from memcli.engines.mxnet import inspecting, planning, verifying
from memcli.engines.mxnet.fitting import MXNetFit, breakdown
from memcli.engines.mxnet.forms import Form, analyze_forms
from memcli.engines.mxnet.memory.bounds import reported_bound
from memcli.engines.mxnet.reserving import allow_reservation
from memcli.engines.mxnet.time_shares import TimeShares
from memcli.engines.verification import refuse_kernels
from memcli.errors import BadInput, EngineFailed
from memcli.formats.detect import Model, ModelSource
from memcli.formats.output import check_output
from memcli.frameworks.figures import ModelRequest
from memcli.graph.cost import Cost, Found
from memcli.quoting import shown_path
from memcli.request import Devices, Progress, ShapeRequest
from memcli.results.inspected import Inspected
from memcli.results.planned import Planned
from memcli.results.step_total import Breakdown
from memcli.results.verified import Verified
from memcli.search import none
from memcli.search.base import Settings
from memcli.search.over_forms import search_spaces
from memcli.time_limit import finished_by


class MXNetNetwork(Network):
    """A symbol in the forms that rewrites give it, each bound by MXNet."""

    def __init__(
        self,
        forms: list[Form],
        shares: TimeShares,
        original: tuple[str, str],
        timed_on: str,
        notes: list[str],
    ) -> None:
        self.forms = forms
        self.shares = shares
        self.original = original
        self.timed_on = timed_on
        self.notes = notes
        self.restored = []
        self.source: Any = forms[0].source
        self.analysis: Any = forms[0].analysis
        self.operator_count = forms[0].source.operator_count
        self._may_reserve = False

    def breakdown(self, pool_bytes: int, optimizer: str) -> Breakdown:
        """See :meth:`Network.breakdown`."""
        return breakdown(self.analysis, pool_bytes, optimizer)

    def set_costs(self, cost: str, on_progress: Progress | None = None) -> list[str]:
        """See :meth:`Network.set_costs`."""
        return set_costs(self.forms, cost, self.timed_on, on_progress)

    def search(self, strategy: str, settings: Settings) -> SearchAnswer:
        """See :meth:`Network.search`; on oneDNN's kernels bits are checked by training a step."""
        form, found, evaluated = planning.search_forms(self.forms, strategy, settings, self.shares)
        form, found, more = planning.exact_on_onednn(
            self.forms, form, found, strategy, settings, self.notes
        )
        return SearchAnswer(form, found, evaluated + more)

    def estimate(self, strategy: str, settings: Settings) -> tuple[Found, dict[str, str]]:
        """See :meth:`Network.estimate`."""
        if settings.rewrite and not self._may_reserve:
            self._may_reserve = True
            for form in self.forms:
                for each in filter(None, (form.analysis, form.without_variables)):
                    allow_reservation(each)
        # without a plan the network is as it came
        forms = self.forms[:1] if strategy == none.NAME else self.forms
        spaces = [v.analysis.search_space() for v in forms]
        found, chosen, _ = search_spaces(spaces, strategy, settings)
        form, found = planning.without_needless_variables(forms[chosen], found, settings.budget)
        kernels = planning.kernels_of(found.plan, form.analysis)
        return found, planning.environment_of(
            found.plan, form.analysis, settings.environment, kernels
        )

    def lower_bound(self, costs: Sequence[Cost]) -> int:
        """See :meth:`Network.lower_bound`."""
        pairs = [(v.analysis.graph, v.analysis.model) for v in self.forms]
        return reported_bound(pairs, costs[0].pool_bytes)

    def planned(self, answer: SearchAnswer, settings: Settings, **known: Any) -> Planned:
        """See :meth:`Network.planned`."""
        form, cost = answer.form, answer.found.cost
        bound = planning.proven_bound(self.forms, form, cost, settings.deadline)
        return planning.as_planned(form, bound, settings.environment, **known)

    def prove_recomputation(self, planned: Planned, settings: Settings) -> None:
        """See :meth:`Network.prove_recomputation`."""
        if settings.budget is None or not planned.cost.recompute_flops:
            return
        limit, ends = settings.budget, settings.deadline
        planned.recompute_bound = finished_by(
            ends, lambda: planning.proven_recomputation(self.forms, planned.form, limit, ends), 0.0
        )

    def write(self, planned: Planned, out: str, force: bool) -> None:
        """See :meth:`Network.write`."""
        planning.write_plan(planned, out, force)


class MXNetEngine:
    """The engine of MXNet's symbols."""

    name = "mxnet"
    title = "MXNet"
    plans_for_devices = False

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
        if training:
            raise BadInput(
                "--as-training is for ONNX files: an MXNet symbol is always in both modes"
            )
        if devices.count > 1:
            raise BadInput(
                f"{shown_path(source.path)}: is an MXNet symbol: several workers (--gpu 0,1 or "
                "--workers) are for ONNX files, which PyTorch trains",
                "plan for one device, with its part of the batch: MXNet runs the same graph on "
                "each",
            )
        if cpu:
            raise BadInput("--cpu is for ONNX files: MXNet plans the same memory on all devices")
        if devices.gpus and not timed:
            raise BadInput("--gpu is for ONNX files: MXNet plans the same memory on all devices")

    def check_output(self, source: ModelSource, out: str | None, force: bool) -> None:
        """See :meth:`memcli.engine.Engine.check_output`."""
        check_output(source, out, force)

    def check_devices(self, devices: Devices) -> None:
        """See :meth:`memcli.engine.Engine.check_devices`."""
        if devices.gpu is not None and engine_for(devices.gpu, "auto")[0] == self.name:
            check_gpu(devices.gpu)

    def network(
        self,
        source: ModelSource,
        request: ShapeRequest,
        settings: Settings,
        asked: PlanRequest,
        on_progress: Progress | None = None,
    ) -> MXNetNetwork:
        """See :meth:`memcli.engine.Engine.network`."""
        notes: list[str] = []
        given = planning.read_symbol(source)
        symbol = planning.without_earlier_plan(given, notes)
        original, shares = planning.analyze_first(
            symbol, request, asked.budget, settings, on_progress
        )
        if original is not None and planning.baseline_fits(original, asked.budget, settings):
            forms = [Form(symbol, original)]
        else:
            forms = analyze_forms(
                symbol,
                request,
                rewrite=settings.rewrite and not asked.as_published,
                environment=settings.environment,
                kernels=settings.kernels,
                original=original,
                shares=shares,
                on_progress=on_progress,
            )
        notes += planning.shape_notes(forms[0].analysis)
        return MXNetNetwork(forms, shares, planning.original_of(given), asked.devices.first, notes)

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
    ) -> MXNetFit:
        """See :meth:`memcli.engine.Engine.fit_search`."""
        return MXNetFit(
            planning.read_symbol(source),
            request,
            settings,
            available,
            strategy=strategy,
            optimizer=optimizer,
            device=asked.devices.first,
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
        if kernels not in (None, AS_PLANNED) and (devices.gpus or engine == "torch"):
            raise refuse_kernels()
        self.check_request(planned, request, devices)
        chosen, why = engine_for(devices.gpu, engine)
        if chosen == "torch":
            return symbol_in_torch.verify_symbol_in_torch(
                planned,
                original=original,
                gpu=devices.gpu,
                seed=seed,
                steps=steps,
                request=request,
                why=why,
                on_progress=on_progress,
            )
        return verifying.verify(
            planned,
            original=original,
            gpu=devices.gpu,
            seed=seed,
            steps=steps,
            kernels=kernels,
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
        return inspecting.inspect(
            source, request, dtype=dtype, top=top, models=models, on_progress=on_progress
        )


def engine_for(gpu: int | None, wanted: str) -> tuple[str, str]:
    """Which engine verifies an MXNet symbol, ``mxnet`` or ``torch``, and why where it is PyTorch.

    Args:
        gpu: number of the card, None for the CPU.
        wanted: ``auto``, or one of the two by hand. MXNet where its build has code for the card.
    """
    if wanted != "auto":
        return wanted, "--engine torch" if wanted == "torch" else ""
    if gpu is None:
        return "mxnet", ""
    try:
        check_gpu(gpu)
    except EngineFailed as error:
        if importlib.util.find_spec("torch") is None or gpu >= len(visible_gpus()):
            return "mxnet", ""  # which then says what is missing
        return "torch", error.message
    return "mxnet", ""


ENGINE = MXNetEngine()
