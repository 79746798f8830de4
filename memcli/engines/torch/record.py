"""From a file to the recorded step and its memory model, through one PyTorch job."""

from __future__ import annotations

import fnmatch
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memcli.engines.gpus import list_gpus
from memcli.engines.operator_times import OperatorTimes
from memcli.engines.processes.jobs import run_job
from memcli.engines.torch.memory.graph import training_graph
from memcli.engines.torch.memory.model import step_seconds
from memcli.engines.torch.memory.plan_model import TorchPlanModel
from memcli.engines.torch.memory.trace import PARAMETER_GRADIENT, Trace
from memcli.errors import BadInput, EngineFailed
from memcli.formats.trained_file import Leaf, TrainedFile
from memcli.graph.training import TrainingGraph
from memcli.quoting import first_of, shown
from memcli.request import Progress

if TYPE_CHECKING:
    from memcli.search.space import SearchSpace


@dataclass
class TorchAnalysis:
    """A model as PyTorch trains it: graph, exact memory model, and facts about its tensors."""

    file: TrainedFile  # what is run: the user's, or put back into training mode
    trace: Trace
    graph: TrainingGraph
    model: TorchPlanModel
    steps: list[dict[str, Any]]  # name in the file, operator and first output of each step
    inputs: dict[str, list[int]]
    assumed: list[str]
    dtype: str
    roles: dict[str, str]
    notes: list[str]
    parameter_bytes: int
    state_bytes: int
    # What each step gives, and the graph: rows of name, shape, dtype and itemsize
    tensors: list[list[dict[str, Any]]]
    outputs: list[dict[str, Any]]
    input_types: dict[str, str]
    loss_heads: int = 0
    frozen: tuple[str, ...] = ()  # globs of parameters that are not trained
    untrained: tuple[str, ...] = ()  # the parameters that they fit

    @property
    def parameter_gradient_bytes(self) -> int:
        """Bytes of the gradients of parameters: of those that are trained."""
        if not self.untrained:
            return self.parameter_bytes
        made = self.trace.event_bytes[self.trace.kinds == PARAMETER_GRADIENT]
        return int(made.sum())

    def expected_seconds(self, device: str) -> NDArray[np.float64]:
        """By the roofline, of every step; ``device``: ``cpu`` or ``gpu:N``."""
        return step_seconds(self.trace)

    def measured_seconds(self, device: str, on_progress: Progress | None = None) -> OperatorTimes:
        """Of every step, timed on a device: ``cpu`` or ``gpu:N``.

        Raises:
            EngineFailed: PyTorch or the device is missing.
        """
        from memcli.engines.torch.timing import measure_step_seconds

        return measure_step_seconds(self, device, on_progress=on_progress)

    def node_keys(self) -> list[tuple[str, int]]:
        """What tells a step at any batch."""
        return [(step["output"], 0) for step in self.steps]

    def search_space(self) -> SearchSpace:
        """What searches need of this step."""
        from memcli.engines.torch.search_space import TorchSpace

        return TorchSpace(self.model)

    def job(self, file: TrainedFile, path: Path) -> dict[str, Any]:
        """:func:`job_of` of a file at the shapes of this analysis."""
        return job_of(file, self.inputs, self.roles, path, self.untrained)


def check_torch() -> None:
    """Raises EngineFailed where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise EngineFailed(
            "this takes PyTorch, which is not installed",
            "pip install 'memcli[torch]'",
        )


def job_of(
    file: TrainedFile,
    shapes: dict[str, list[int]],
    roles: dict[str, str],
    path: Path,
    untrained: Sequence[str] = (),
    *,
    values: bool = True,
) -> dict[str, Any]:
    """The part of a job that says what to run; the graph is left at ``path``.

    ``untrained``: parameters without a gradient. ``values``: with the elements of weights.
    """
    return {
        **file.job(path, values=values),
        "name": file.name,
        "shapes": shapes,
        "roles": roles,
        "untrained": list(untrained),
    }


def untrained_parameters(leaves: Mapping[str, Leaf], frozen: Sequence[str]) -> tuple[str, ...]:
    """The parameters that globs fit, and those that are tied to them; and what the file says so.

    Raises:
        BadInput: a glob fits no parameter, or nothing is left to train.
    """
    names = [name for name, leaf in leaves.items() if leaf.role == "parameter"]
    first = {name: leaves[name].tied_to or name for name in names}
    fixed = {first[name] for name in names if not leaves[name].trained}
    for glob in frozen:
        found = {first[name] for name in names if fnmatch.fnmatchcase(name, glob)}
        if not found:
            raise BadInput(
                f"--frozen {glob}: no parameter is named so",
                f"there are: {first_of(map(shown, names), 6)}",
            )
        fixed |= found
    if fixed and fixed == set(first.values()):
        raise BadInput(
            "--frozen fits every parameter, so that nothing is trained"
            if frozen
            else "no parameter of the file requires a gradient, so that nothing is trained",
            "memcli plans what training takes; inference needs no plan",
        )
    return tuple(name for name in names if first[name] in fixed)


def record(
    job: dict[str, Any], workdir: Path, on_progress: Progress | None = None
) -> tuple[TorchPlanModel, list[dict[str, Any]], dict[str, Any]]:
    """Record one training step of what ``job`` describes (see ``memcli.engines.torch.build``).

    Returns the exact model, what is known of each step (name in the file, operator, ...), and the
    rest of the engine's answer.

    Raises:
        BadInput: operators that are not supported, nothing to train.
        EngineFailed: PyTorch is missing or crashed.
    """
    check_torch()
    if job.get("device") == "cuda":
        job = {**job, "card": next((gpu.name for gpu in list_gpus()), None)}
    result = run_job(
        "memcli.engines.torch.analyze",
        job,
        workdir=workdir,
        on_progress=on_progress,
        doing=f"recording a training step of {job['name']}",
        preloaded=True,
    )
    trace = Trace.from_bytes((workdir / "trace.npz").read_bytes())
    graph = training_graph(trace)
    steps = [
        step or {"step": name, "name": name, "op": operator, "output": name}
        for step, name, operator in zip(result["steps"], trace.names, trace.operators, strict=True)
    ]
    names = [step["name"] for step in steps]
    graph.names[: len(names)] = names
    graph.file_names = names
    return TorchPlanModel(trace, graph), steps, result


def record_file(
    file: TrainedFile,
    shapes: dict[str, list[int]],
    *,
    assumed: list[str] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    frozen: Sequence[str] = (),
    on_progress: Progress | None = None,
) -> TorchAnalysis:
    """Record one training step of a model, without data.

    ``device``: ``cpu`` or ``cuda``, whose operators save other things; no card is needed for it.
    ``frozen``: globs of parameters that are not trained.

    Raises:
        BadInput: operators that are not supported, nothing to train.
        EngineFailed: PyTorch is missing or crashed.
    """
    leaves = file.leaves()
    roles: dict[str, str] = {name: leaf.role for name, leaf in leaves.items()}
    untrained = untrained_parameters(leaves, frozen)
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        job = job_of(file, shapes, roles, Path(folder) / "model", untrained, values=False)
        model, steps, result = record({**job, "device": device}, Path(folder), on_progress)
    trace = model.trace
    return TorchAnalysis(
        file=file,
        trace=trace,
        graph=model.graph,
        model=model,
        steps=steps,
        inputs=result["inputs"],
        assumed=list(assumed or []),
        dtype=dtype,
        roles=roles,
        notes=list(result["notes"]),
        parameter_bytes=trace.parameter_bytes,
        state_bytes=trace.state_bytes,
        tensors=[result["tensors"].get(name, []) for name in trace.names],
        outputs=result["outputs"],
        input_types=result["input_types"],
        frozen=tuple(frozen),
        untrained=untrained,
    )
