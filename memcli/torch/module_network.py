"""A module's training step as searches for plans read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from memcli.engines.torch.engine import TorchNetwork
from memcli.engines.torch.memory.graph import training_graph
from memcli.engines.torch.memory.plan_model import TorchPlanModel
from memcli.engines.torch.record import TorchAnalysis
from memcli.engines.torch.trace import trace
from memcli.engines.torch.tracking import StepMemory
from memcli.errors import BadInput
from memcli.graph.cost import Cost
from memcli.request import Devices
from memcli.results.planned import Planned
from memcli.torch.proof import OperatorLog, log_of_graph, prove
from memcli.torch.recording import Recording, record
from memcli.torch.regimes import Span, autocast_now
from memcli.torch.steps import (
    Loss,
    check_trains,
    detached,
    eager_memory,
    flat_loss,
    leaf_names,
)

FORMAT = "torch-module"


@dataclass
class ModuleSource:
    """What stands for a file in reports: a live module."""

    path: str  # the name of its class
    sha256: str  # of its graph
    node_count: int
    format: str = FORMAT

    @property
    def name(self) -> str:
        """Of the class."""
        return self.path


@dataclass
class Step:
    """A recorded call, and what searches need of it."""

    recording: Recording
    analysis: TorchAnalysis
    eager: StepMemory


def record_step(
    model: nn.Module,
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    loss: Loss,
) -> Step:
    """Records a training step of a call.

    Raises:
        BadInput: the call cannot be recorded, or trains nothing.
    """
    name = type(model).__name__
    names = leaf_names(forward, args, kwargs)
    recording = record(model, forward, args, kwargs, names)
    check_trains(recording, name)
    leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
    on_card = any(t.is_cuda for t in [*recording.names.values(), *_tensors(leaves)])
    device = "cuda" if on_card else "cpu"
    try:
        span = Span(autocast_now(tuple({"cpu", device})))
        log = OperatorLog()
        eager = eager_memory(
            model, forward, args, kwargs, loss, span, recording.answers, device, log
        )
        plain = detached(recording, {}, span)
        prove(log, log_of_graph(plain, leaves, span, device), name)
        with span.off():
            recorded = trace(
                plain,
                leaves,
                flat_loss(recording, loss, span),
                device=device,
                closed_over=True,
            )
    except ValueError as error:
        raise BadInput(f"{name}: {error}", "give loss=, a function of the outputs") from error
    graph = training_graph(recorded)
    index = {step: number for number, step in enumerate(recorded.names)}
    graph.can_recompute[[index[step] for step in recording.never if step in index]] = 0
    plan_model = TorchPlanModel(recorded, graph)
    inputs = {
        name: [*leaf.shape]
        for name, leaf in zip(names, leaves, strict=True)
        if isinstance(leaf, Tensor)
    }
    floats = [t.dtype for t in recording.names.values() if t.is_floating_point()]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    trained = sum(p.requires_grad for p in model.parameters())
    analysis = TorchAnalysis(
        file=ModuleSource(name, recording.digest(), len(recording.graph.nodes)),  # type: ignore[arg-type]
        trace=recorded,
        graph=graph,
        model=plan_model,
        steps=[
            {"step": step, "name": step, "op": op, "output": step}
            for step, op in zip(recorded.names, recorded.operators, strict=True)
        ],
        inputs=inputs,
        assumed=[],
        dtype=str(floats[0]).removeprefix("torch.") if floats else "float32",
        roles={},
        notes=[],
        parameter_bytes=sum(_held(list(model.parameters()))),
        state_bytes=sum(_held(list(model.buffers()))),
        tensors=[[] for _ in recorded.names],
        outputs=[],
        input_types={},
        frozen=tuple(frozen) if trained else (),
        untrained=tuple(frozen),
    )
    return Step(recording, analysis, eager)


def _held(tensors: Sequence[Tensor]) -> list[int]:
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return list(sizes.values())


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


class ModuleNetwork(TorchNetwork):
    """The step of a live module; see :class:`TorchNetwork`. ``call``: the one recorded."""

    call: Any

    def __init__(self, step: Step, notes: list[str]) -> None:
        analysis = step.analysis
        devices = Devices() if analysis.trace.device == "cpu" else Devices((0,))
        source: Any = analysis.file
        super().__init__(source, (source.name, source.sha256), analysis, devices, None, [], notes)
        self.step = step

    def baseline(self) -> Cost:
        """What the module itself takes: Python's local variables hold tensors, too."""
        cost = super().baseline()
        peak = max(self.step.eager.peak, cost.pool_bytes)
        return dataclasses.replace(cost, pool_bytes=peak, live_peak_bytes=peak, total_bytes=peak)

    def write(self, planned: Planned, out: str, force: bool) -> None:
        """A module's plan is written by :meth:`memcli.torch.Plan.save`."""
        raise BadInput("a module's plan is saved by Plan.save(path)")


def marks_of(planned: Planned) -> dict[str, int]:
    """{step: mark} of the steps that a plan does not keep."""
    analysis: Any = planned.analysis
    flags = analysis.model.exact.as_run(np.ascontiguousarray(planned.plan.recompute, np.uint8))
    return {
        name: int(mark)
        for name, mark in zip(analysis.trace.names, flags.tolist(), strict=True)
        if mark
    }


def device_of_step(model: nn.Module, leaves: Sequence[Any]) -> torch.device:
    """Where a call runs: the device of the first parameter, buffer or input."""
    for tensor in (*model.parameters(), *model.buffers(), *_tensors(leaves)):
        return tensor.device
    return torch.device("cpu")
