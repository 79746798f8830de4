"""One model at any batch: a step recorded by PyTorch at each."""

from __future__ import annotations

import dataclasses

import numpy as np

from memcli.engines.batch_series import BatchSeries
from memcli.engines.torch.planning import analyze_file
from memcli.engines.torch.record import TorchAnalysis
from memcli.errors import BadInput
from memcli.formats.input_shapes import batch_dims
from memcli.formats.trained_file import TrainedFile
from memcli.graph.training import Plan
from memcli.request import Progress, ShapeRequest

# PyTorch's sizes have 64 bits; files' dimensions that memcli takes have 31.
_LARGEST = (1 << 31) - 1


class TorchBatches(BatchSeries[TorchAnalysis]):
    """Recorded steps of a model by batch; each batch is recorded once.

    The batch is the file's symbolic dimension of that part, wherever the inputs have it, or the
    leading dimension where it is unnamed or may be changed; of labels also a multiple of it.
    """

    engine = "PyTorch"

    def __init__(
        self,
        file: TrainedFile,
        request: ShapeRequest,
        device: str,
        on_progress: Progress | None = None,
    ) -> None:
        """Record the model as it comes, and once at another batch. ``device``: cpu or cuda.

        Raises:
            BadInput: bad shapes, nothing that has a batch, or a batch that is built in.
            EngineFailed: PyTorch is missing or crashed.
        """
        self.file = file
        self.request = request
        self.device = device
        self.positions = batch_dims(file)
        if not self.positions:
            raise BadInput(
                f"{file.path}: no input has a batch to change",
                "its inputs are of fixed shapes; memcli plan plans it as it is",
            )
        first = analyze_file(file, request, device, on_progress)
        name, positions = next(iter(self.positions.items()))
        super().__init__(file.path, first.inputs[name][positions[0]], first, on_progress)
        self.check_first_change()

    def hint(self, problem: str) -> str:
        """What can still be done."""
        return (
            f"the file can only be planned at its own batch of {self.given} (memcli plan); "
            "export it with a dynamic batch to fit it"
        )

    def too_large(self, batch: int) -> str:
        """Batches that no dimension can be."""
        return f"a dimension has at most {_LARGEST:,}" if batch > _LARGEST else ""

    def is_limit(self, problem: str) -> bool:
        """Whether the batch was no dimension."""
        return problem.startswith("a dimension has at most")

    def shapes_at(self, batch: int) -> dict[str, list[int]]:
        """Shapes of all inputs at a batch."""
        shapes = {name: list(shape) for name, shape in self.first.inputs.items()}
        for name, positions in self.positions.items():
            for position in positions:
                size = shapes[name][position]
                if size % self.given == 0:
                    shapes[name][position] = size // self.given * batch
        return shapes

    def assumed(self) -> list[str]:
        """Inputs with a dimension besides the batch that was guessed."""
        return [
            value.name
            for value in self.file.inputs
            if value.name in self.file.assumed
            or (
                value.name in self.first.assumed
                and any(
                    not isinstance(dim, int) and position not in self.positions.get(value.name, [])
                    for position, dim in enumerate(value.dims or ())
                )
            )
        ]

    def analyzed(self, batch: int) -> TorchAnalysis:
        """A step, recorded at a batch."""
        request = dataclasses.replace(
            self.request, shapes=self.shapes_at(batch), unnamed=None, batch=None
        )
        return analyze_file(self.file, request, self.device, None)

    def problem(self, analysis: TorchAnalysis, batch: int) -> str:
        """Another batch must not change what the steps are."""
        here = {step["output"]: step["op"] for step in self.first.steps}
        there = {step["output"]: step["op"] for step in analysis.steps}
        differ = sorted(here.items() ^ there.items())
        if not differ:
            return ""
        output, operator = differ[0]
        return f"the node that makes '{output}' ({operator}) is run at one of the batches only"


def transferred(plan: Plan, one: TorchAnalysis, other: TorchAnalysis) -> Plan:
    """A plan of analysis ``one`` for ``other``, the same file at another batch: step by step."""
    to = {step["output"]: number for number, step in enumerate(other.steps)}
    place = [to[step["output"]] for step in one.steps]
    flags = np.zeros(len(other.steps), np.uint8)
    flags[place] = plan.recompute
    cuts = [[place[v] for v in cut] for cut in plan.cuts]
    return dataclasses.replace(plan, recompute=flags, cuts=cuts)
