"""From a symbol's content to the training graph and its memory model, through one MXNet job."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memcli.engines.mxnet.memory.graph import build
from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.engines.operator_times import OperatorTimes
from memcli.engines.processes.jobs import run_job
from memcli.engines.processes.parent_side import WorkerFailed
from memcli.engines.user_code import refuse_unknown
from memcli.errors import BadInput
from memcli.formats.symbol.prepare import prepare
from memcli.graph.roofline import DEFAULT_MACHINE, PLAIN_CPU, roofline_seconds
from memcli.graph.training import TrainingGraph
from memcli.request import Progress, ShapeRequest

if TYPE_CHECKING:
    from memcli.search.space import SearchSpace


# From how many terms on MXNet adds gradients one by one, each as soon as it is there, rather than
# all at the end, when all are alive (src/executor/graph_executor.cc, AggregateGradient; 8 unless
# set). Sums of five terms and more are added in the same order both ways, to the bit.
SUM_CAP = "MXNET_EXEC_INPLACE_GRAD_SUM_CAP"


@dataclass
class Analysis:
    """A symbol as MXNet trains it: graph, memory model, and the facts about its inputs."""

    graph: TrainingGraph
    model: MXNetModel
    inputs: dict[str, list[int]]  # every fed input with its shape, labels included
    assumed: list[str]
    arguments: list[dict[str, Any]]
    auxiliary: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    parameter_bytes: int
    state_bytes: int
    loss_heads: int  # losses that were put on for planning, 0 where the graph has its own
    dtype: str
    bound_total_mb: int  # MXNet's own figure of this one bind
    bind_seconds: float  # what MXNet took for it
    # variables that the joint graph was made under
    environment: dict[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()  # as in the request
    imports: tuple[str, ...] = ()

    def request(self) -> ShapeRequest:
        """What analyzes another form of the network at the same shapes and type."""
        return ShapeRequest(
            shapes=dict(self.inputs), dtype=self.dtype, frozen=self.frozen, imports=self.imports
        )

    @property
    def parameter_gradient_bytes(self) -> int:
        """Bytes of the gradients of parameters: of those that are trained."""
        return sum(
            a["bytes"]
            for a in self.arguments
            if a["role"] == "parameter" and (not self.frozen or a["gradient"])
        )

    def expected_seconds(self, device: str) -> NDArray[np.float64]:
        """By the roofline, of every forward node; ``device``: ``cpu`` or ``gpu:N``.

        On the CPU by the speed of MXNet's plain kernels, which plans run on.
        """
        return roofline_seconds(self.graph, PLAIN_CPU if device == "cpu" else DEFAULT_MACHINE)

    def measured_seconds(self, device: str, on_progress: Progress | None = None) -> OperatorTimes:
        """Of every forward node, timed on a device: ``cpu`` or ``gpu:N``.

        Raises:
            EngineFailed: MXNet or the device is missing.
        """
        from memcli.engines.mxnet.timing import argument_dtypes, measure_operator_seconds

        return measure_operator_seconds(
            self.graph, device, dtypes=argument_dtypes(self), on_progress=on_progress
        )

    def node_keys(self) -> list[tuple[str, int]]:
        """What tells a forward node at any batch and in any form: its name, its inputs."""
        graph = self.graph
        return [
            (graph.names[v], int(graph.in_ptr[v + 1] - graph.in_ptr[v]))
            for v in range(graph.n_forward)
        ]

    def search_space(self) -> SearchSpace:
        """What searches need of this step; blocks may be reserved where the model allows it now."""
        from memcli.engines.mxnet.search_space import MXNetSpace

        return MXNetSpace(self.graph, self.model)

    def gradient_requests(self) -> dict[str, str]:
        """MXNet's ``grad_req`` of each argument, by name in the prepared copy."""
        return {a["prepared"]: "write" if a["gradient"] else "null" for a in self.arguments}

    def binding(self) -> dict[str, Any]:
        """What a job needs to bind the graph.

        Returns:
            Shapes, types and the file's names, by name in the prepared copy, and the user's files
            that the job runs first.
        """
        return {
            "shapes": {a["prepared"]: a["shape"] for a in self.arguments},
            "dtypes": {a["prepared"]: a["dtype"] for a in self.arguments},
            "names": {a["prepared"]: a["name"] for a in self.arguments + self.auxiliary},
            "imports": list(self.imports),
        }


def graph_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a plan that change the joint graph itself, not the pool alone."""
    text = environment.get(SUM_CAP)
    return {} if text is None else {SUM_CAP: text}


def ask_mxnet(
    raw: dict[str, Any],
    request: ShapeRequest,
    workdir: Path,
    *,
    marked: Collection[int] | None,
    bind: bool = True,
    losses: bool = True,
    no_gradient: Collection[int] = (),
    environment: dict[str, str] | None = None,
    here: bool = False,
    on_progress: Progress | None = None,
) -> tuple[dict[str, Any], int]:
    """The analysis job's result (arrays in ``workdir``) and the number of losses put on.

    Args:
        raw: the symbol file's content.
        request: shapes and types.
        workdir: folder for large files.
        marked: positions recomputed in the graph that is bound; None keeps the file's own marks.
        bind: whether to bind; else shapes alone are resolved.
        losses: put a loss on the outputs of a graph that has none; without, such a graph is bound
            as it is, with the outputs' gradients coming from outside.
        no_gradient: positions of variables to bind without a gradient; by default all have one, as
            the classic planner counts.
        environment: variables that shape the joint graph (:func:`graph_environment`).
        here: in a fork of this very process, which knows operators that others do not.
        on_progress: told what is going on.

    Raises:
        BadInput: MXNet refuses the graph or its shapes, it has no outputs, or it has user operators
            and no file that registers them is named.
        EngineFailed: MXNet is missing or crashed.
    """
    if not raw["heads"]:
        raise BadInput(
            "heads: the list is empty: a graph without outputs has nothing to train",
            "export the network with its outputs, or its loss",
        )
    if not here:
        refuse_unknown(raw, request.imports)
    text, heads = prepare(raw, marked=marked, losses=losses)
    (workdir / "prepared.json").write_text(text)
    job = {
        "symbol": str(workdir / "prepared.json"),
        "names": [node["name"] for node in raw["nodes"]],
        "shapes": request.shapes,
        "unnamed_shape": request.unnamed,
        "batch": request.batch,
        "dtype": request.dtype,
        "dtypes": request.dtypes,
        "bind": bind,
        "no_gradient": [f"n{position}" for position in sorted(no_gradient)],
        "frozen": list(request.frozen),
        "imports": list(request.imports),
        "here": here,
        "environment": environment or {},
    }
    try:
        result = run_job(
            "memcli.engines.mxnet.analyze",
            job,
            workdir=workdir,
            on_progress=on_progress,
            preloaded=not here,
            here=here,
        )
    except WorkerFailed as error:
        if error.signal != signal.SIGFPE:
            raise
        # nothing is computed here but shapes: it divided by a size that an attribute gives
        raise BadInput(
            "MXNet divides by zero where it infers the graph's shapes",
            "an attribute such as a stride, a number of groups or a scale is 0",
        ) from error
    return result, heads


def analyze(
    raw: dict[str, Any],
    request: ShapeRequest,
    *,
    marked: Collection[int] | None = (),
    losses: bool = True,
    no_gradient: Collection[int] = (),
    environment: dict[str, str] | None = None,
    here: bool = False,
    on_progress: Progress | None = None,
) -> Analysis:
    """Bind the graph once and read its joint training graph.

    Args:
        raw: the symbol file's content.
        request: shapes and types.
        marked: positions recomputed in the graph that is bound; none by default, so that any plan's
            graph can be derived from it. None keeps the file's own marks.
        losses: as for :func:`ask_mxnet`.
        no_gradient: as for :func:`ask_mxnet`.
        environment: as for :func:`ask_mxnet`.
        here: as for :func:`ask_mxnet`.
        on_progress: told what is going on.
    """
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        workdir = Path(folder)
        result, heads = ask_mxnet(
            raw,
            request,
            workdir,
            marked=marked,
            losses=losses,
            no_gradient=no_gradient,
            environment=environment,
            here=here,
            on_progress=on_progress,
        )
        graph = build(result, workdir / "joint.npz", raw)
    return Analysis(
        graph=graph,
        model=MXNetModel(graph),
        inputs=result["inputs"],
        assumed=result["assumed"],
        arguments=result["arguments"],
        auxiliary=result["auxiliary"],
        outputs=result["outputs"],
        parameter_bytes=result["parameter_bytes"],
        state_bytes=result["state_bytes"],
        loss_heads=heads,
        dtype=request.dtype or "float32",
        bound_total_mb=result["total_mb"],
        bind_seconds=result["bind_seconds"],
        environment=dict(environment or {}),
        frozen=tuple(request.frozen),
        imports=tuple(request.imports),
    )
