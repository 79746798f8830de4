"""A file that PyTorch trains: what the engine asks of it, in whatever format it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from memcli.errors import BadInput
from memcli.formats.node_plan import MARKS, NodePlan
from memcli.formats.scopes import Scopes
from memcli.quoting import shown_path

Role = Literal["parameter", "state", "constant"]


@dataclass(frozen=True)
class TensorValue:
    """A tensor that enters or leaves the graph."""

    name: str
    dtype: str  # numpy's name; bfloat16 and the like under the format's name in small letters
    dims: tuple[int | str | None, ...] | None  # symbolic names, None for unnamed; None: no rank


@dataclass(frozen=True)
class Leaf:
    """A tensor that the file gives and no input changes."""

    name: str
    role: Role
    dtype: str
    shape: tuple[int, ...] | None  # None: one that is computed
    node: int | None  # position of the node that gives it; None: the file itself
    tied_to: str | None  # the leaf that it is the same tensor as, where there are several
    trained: bool = True  # False: the file says that this parameter gets no gradient


@dataclass(frozen=True)
class Loss:
    """One thing of the network that is not in the file any more."""

    kind: str
    nodes: list[str]  # unique names of the nodes where it shows; may be empty
    text: str  # for the user, one line


class TrainedFile(Protocol):
    """A sound graph in a file, with a name for every node.

    Attributes:
        path: as it was given.
        sha256: of the file as stored.
        format: the name of one of ``FORMATS``.
        node_names: of all nodes, unique, in the order in which they run.
        batch: that it is for where its inputs leave it open; None where it does not say.
        assumed: inputs whose other dimensions were guessed.
        notes: told to the user where the model is read.
        fixed_mode: why it cannot be put into training mode; '' where it can.
        fixed_sizes: whether a size that the file gives holds for no other one.
        opsets: versions of the sets of operators.
    """

    path: str
    sha256: str
    batch: int | None
    assumed: tuple[str, ...]

    @property
    def node_names(self) -> list[str]:
        """Of all nodes, unique, in the order in which they run."""
        ...

    @property
    def format(self) -> str:
        """The name of one of ``FORMATS``."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Told to the user where the model is read."""
        ...

    @property
    def fixed_mode(self) -> str:
        """Why it cannot be put into training mode; '' where it can."""
        ...

    @property
    def fixed_sizes(self) -> bool:
        """Whether a size that the file gives holds for no other one."""
        ...

    @property
    def opsets(self) -> dict[str, int]:
        """Versions of the sets of operators."""
        ...

    @property
    def name(self) -> str:
        """The file's name without its folder."""

    @property
    def node_count(self) -> int:
        """Nodes of the graph, those within subgraphs not counted."""

    @property
    def producer(self) -> str:
        """What wrote the file, with its version; '' where it does not say."""

    @property
    def described(self) -> str:
        """What it is and holds, in words."""

    @property
    def inputs(self) -> list[TensorValue]:
        """The free inputs, in the file's order."""

    @property
    def outputs(self) -> list[TensorValue]:
        """The graph's outputs, in the file's order."""

    def operators(self) -> list[str]:
        """The operator of each node."""

    def node_outputs(self) -> list[list[str]]:
        """Names of what each node gives."""

    def first_outputs(self) -> list[str]:
        """The name of each node's first output; with the name of the node where it has none."""

    def leaves(self) -> dict[str, Leaf]:
        """Every tensor that the file gives, by name."""

    def losses(self) -> list[Loss]:
        """What the file has lost of the network that trains."""

    def scopes(self) -> Scopes:
        """Where in the model that it was exported from each node stands."""

    def as_training(self) -> tuple[Any, list[str]]:
        """The file in training mode, and what was done to it; itself where nothing was."""

    def check_operators(self) -> None:
        """Raises BadInput for operators that nothing here runs."""

    def check_trainable(self, training: bool) -> None:
        """Raises BadInput for a graph whose training step would not be the network's.

        ``training``: it was put into training mode.
        """

    def graph_sha256(self) -> str:
        """Hash of what a plan depends on: the graph, without weights and names of nodes."""

    def base_sha256(self) -> str:
        """Hash of the file's bytes without a plan."""

    def carried_plan(self) -> NodePlan | None:
        """The plan that the file carries, fitting or not."""

    def plan(self) -> NodePlan | None:
        """The plan that the file carries; BadInput where it was made for another graph."""

    def unplanned(self) -> Any:
        """The same without the plan that it carries."""

    def written_as(self, out: str) -> Any:
        """In the format that the name of the output asks for."""

    def write_planned(self, plan: NodePlan, out: str, *, overwrite: bool) -> list[str]:
        """Writes the file with its plan, whole or not at all; what the user should know."""

    def likely_size(self, dim: str, symbols: Mapping[str, int]) -> int | None:
        """What the file says of a symbolic dimension, where others have these sizes."""

    def check_sizes(self, symbols: Mapping[str, int]) -> None:
        """Raises BadInput for sizes of symbolic dimensions that the file does not allow."""

    def job(self, path: Path, *, values: bool) -> dict[str, Any]:
        """Leaves the graph for an engine's process at ``path``; what it is to be told.

        ``values``: with the elements of weights.
        """


def fitting_plan(file: TrainedFile) -> NodePlan | None:
    """The plan that a file carries, with marks by this file's node names; None without one.

    A tool that renamed nodes does no harm: they are found by their first outputs.

    Raises:
        BadInput: it carries one that cannot be understood, or that was made for another graph.
    """
    plan = file.carried_plan()
    if plan is None:
        return None
    if plan.graph_sha256 != file.graph_sha256():
        raise BadInput(
            f"{shown_path(file.path)}: the graph was changed after it was planned "
            f"({plan.n_nodes} nodes then, {file.node_count} now)",
            f"plan it again, or plan {shown_path(plan.original_name)} anew",
        )
    return plan.with_names(dict(zip(file.first_outputs(), file.node_names, strict=True)))


def new_plan(
    file: TrainedFile,
    marks: Mapping[str, str],
    *,
    strategy: str,
    shapes: Mapping[str, list[int]],
    dtype: str,
    environment: Mapping[str, str] | None = None,
    as_training: list[str] | None = None,
    memory: Mapping[str, int] | None = None,
    recompute: Mapping[str, int | float] | None = None,
    original_name: str | None = None,
    device: str = "cpu",
) -> NodePlan:
    """A plan for ``file``: a mark for each of its nodes, by unique name.

    Raises:
        ValueError: a name that the file has not, or one without a mark, or an unknown mark.
    """
    if set(marks) != set(file.node_names):
        odd = set(marks) ^ set(file.node_names)
        raise ValueError(f"marks do not fit the nodes: {sorted(odd)[:5]}")
    wrong = sorted(set(marks.values()) - set(MARKS))
    if wrong:
        raise ValueError(f"unknown marks: {wrong}")
    return NodePlan(
        strategy=strategy,
        shapes={name: list(shape) for name, shape in shapes.items()},
        dtype=dtype,
        environment=dict(environment or {}),
        original_name=original_name or file.name,
        original_sha256=file.sha256,
        base_sha256=file.base_sha256(),
        graph_sha256=file.graph_sha256(),
        n_nodes=file.node_count,
        marks={name: marks[name] for name in file.node_names},
        outputs=dict(zip(file.node_names, file.first_outputs(), strict=True)),
        as_training=list(as_training or []),
        memory=dict(memory or {}),
        recompute=dict(recompute or {}),
        device=device,
    )
