"""What ``memcli inspect`` tells of a graph, whichever engine trains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from memcli.errors import MemcliError
from memcli.formats.node_plan import NodePlan
from memcli.formats.symbol.record import PlanRecord
from memcli.formats.trained_file import Loss
from memcli.frameworks.figures import UnderModels
from memcli.results.live_peak import PeakParts
from memcli.results.stage import Stage


@dataclass
class NamedTensor:
    """An input or an output of the graph."""

    name: str
    # Where no figures are known: as the file has it, with names and None for what it leaves open
    shape: Sequence[int | str | None] | None
    dtype: str
    role: str  # 'input', 'label' or 'output'
    assumed: bool = False


@dataclass
class OperatorKind:
    """All operators of one kind. Sizes in bytes, ``flops`` of one forward pass."""

    op: str
    count: int
    flops: float
    output_bytes: int
    kept_bytes: int  # of the outputs, what the backward pass reads, with nothing recomputed
    planned_kept_bytes: int | None = None
    recomputed: int = 0  # how many are recomputed
    folded: int = 0  # more of them in the file that do not run: known before, or read by nobody


@dataclass
class LargeTensor:
    """One tensor of the pool. ``itemsize`` and ``size`` in bytes.

    Without shape: what a PyTorch operator saves inside itself, or takes in its backward.
    """

    name: str
    op: str
    shape: tuple[int, ...] | None
    itemsize: int | None
    size: int
    state: str  # 'kept', 'recomputed', 'both' of them, 'short-lived' or 'gradient'


@dataclass
class NodeRow:
    """An operator of the file. ``size``: bytes of all its outputs, None where not known."""

    index: int
    name: str
    op: str
    shape: tuple[int, ...] | None
    size: int | None
    # '', 'recomputed', 'no effect', 'merged' or 'unused'; of ONNX files also 'each need'
    # (recomputed at every need), 'view' (of what another makes) and 'folded'
    mark: str


@dataclass
class Figures:
    """A step of the graph under one plan. Sizes in bytes, ``recompute_flops`` in FLOPs."""

    pool_bytes: int
    live_peak_bytes: int
    kept_bytes: int
    recompute_flops: float
    peak_at: str  # the node that runs when most is alive
    peak_in: str  # 'forward', 'backward' or 'recomputation'
    split: PeakParts
    by_operator: dict[str, PeakParts] = field(default_factory=dict)
    by_stage: list[PeakParts] = field(default_factory=list)
    # PyTorch: the live peak with the gradients of parameters, which come up during the backward
    with_parameter_gradients: int | None = None


@dataclass
class PlanFacts:
    """The plan in the file: memcli's with its record, or marks that something else put there."""

    strategy: str
    environment: dict[str, str]
    marked: int  # nodes that the file marks
    recomputed: int  # operators that are recomputed
    record: PlanRecord | NodePlan | None
    reserved_blocks: int = 0  # of MXNet's pool, in front of everything else; empty of themselves
    reserved_bytes: int = 0


@dataclass
class TensorCount:
    """Tensors of one role that a file gives. ``size`` in bytes; ``tied`` ones counted once."""

    count: int
    elements: int
    size: int
    tied: int = 0  # more names for the same tensors


@dataclass
class OnnxFacts:
    """What an ONNX file says beside the graph."""

    opsets: dict[str, int]  # "" for ONNX's own operators
    producer: str
    described: str  # the file, in words
    device: str  # cpu or cuda, that the figures are of
    parameters: TensorCount
    states: TensorCount
    losses: list[Loss]
    # Why there are no figures: what cannot be planned, or PyTorch is missing
    problem: MemcliError | None = None


@dataclass
class Inspected:
    """Everything that ``memcli inspect`` tells. Sizes in bytes.

    ``baseline`` None: the file's facts alone are known, and ``onnx.problem`` says why.
    """

    path: str
    sha256: str
    nodes: int
    operators: int
    dtype: str
    inputs: list[NamedTensor]
    outputs: list[NamedTensor]
    loss_added: bool
    kinds: list[OperatorKind]
    forward_flops: float
    baseline: Figures | None
    planned: Figures | None
    plan: PlanFacts | None
    lower_bound: int
    parameter_bytes: int
    state_bytes: int
    stages: list[Stage]
    largest: list[LargeTensor]
    stage_marks: dict[str, int]  # value of mirror_stage: nodes that carry it
    listed: list[NodeRow]  # every operator of the file, in its order
    notes: list[str]
    format: str = "mxnet-symbol"
    engine: str = "mxnet"
    onnx: OnnxFacts | None = None
    under_models: UnderModels | None = None
    parameter_gradient_bytes: int | None = None  # of those that are trained; None: of all

    def __post_init__(self) -> None:
        if self.parameter_gradient_bytes is None:
            self.parameter_gradient_bytes = self.parameter_bytes

    @property
    def shown(self) -> Figures | None:
        """The planned figures, without a plan the baseline ones."""
        return self.planned or self.baseline

    def to_json(self) -> dict[str, Any]:
        """The object that ``inspect --json`` prints."""
        from memcli.reports.inspect_json import inspect_json

        return inspect_json(self)
