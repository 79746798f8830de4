"""A planned ONNX file as those who train need it: the graph to run, and marks for its nodes."""

from __future__ import annotations

from dataclasses import dataclass

from memcli.errors import BadInput
from memcli.formats.detect import Model, read_source
from memcli.formats.model_file import read_model
from memcli.formats.onnx.file import OnnxFile
from memcli.formats.onnx.record import MARK_NUMBERS, OnnxPlan
from memcli.formats.onnx.training import as_training
from memcli.marks import KEPT
from memcli.quoting import shown_path
from memcli.request import ShapeRequest

# The executor's marks for those of the file.
MARKS = dict(MARK_NUMBERS)


@dataclass
class PlannedFile:
    """``file``: what is trained, with what the plan restored; ``plan``: None without one."""

    file: OnnxFile
    plan: OnnxPlan | None

    def mark(self, name: str, output: str) -> int:
        """The mark of a node by its name, else by its first output; kept where it has none.

        A normalization that was put in anew makes what its convolution made in the file, and
        has its mark.
        """
        if self.plan is None:
            return KEPT
        mark = self.plan.marks.get(name)
        return MARKS[mark] if mark is not None else self.by_output.get(output, KEPT)

    @property
    def by_output(self) -> dict[str, int]:
        """{first output of a node: its mark}."""
        return marks_by_output(self.plan) if self.plan is not None else {}


def marks_by_output(plan: OnnxPlan) -> dict[str, int]:
    """{first output of a node: the executor's mark}."""
    return {output: MARKS[plan.marks[name]] for name, output in plan.outputs.items()}


def read_planned(path: Model, *, required: bool = True) -> PlannedFile:
    """The graph of a planned file as the plan wants it trained, and the plan.

    A plan may have been made for the file's own graph or for the one in training form; both are
    taken.

    Raises:
        BadInput: the file cannot be read, its plan is for another graph, or (where ``required``)
            it carries none.
    """
    source = read_source(path)
    if source.format == "pt2":
        raise BadInput(
            f"{shown_path(source.path)}: is an exported program, whose plan is for its own graph",
            "memcli.torch.load trains it; memcli.torch.plan plans a module of yours",
        )
    file = read_model(source, ShapeRequest(), as_planned=True)
    plan = file.carried_plan()
    if plan is None:
        if required:
            raise BadInput(
                f"{shown_path(source.path)}: carries no plan of memcli",
                "make one: memcli plan MODEL.onnx -o planned.onnx",
            )
        return PlannedFile(file, None)
    trained = as_training(file)[0] if plan.as_training else file
    for graph in (trained, file):
        if plan.graph_sha256 == graph.graph_sha256():
            names = dict(zip(graph.first_outputs(), graph.node_names, strict=True))
            return PlannedFile(trained, plan.with_names(names))
    return PlannedFile(trained, file.plan())  # says what is wrong
