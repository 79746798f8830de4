"""A plan that was made, and everything that is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from memcli.graph.cost import Cost, gap
from memcli.graph.training import Plan, TrainingGraph
from memcli.results.stage import Stage
from memcli.results.step_total import StepTotal


class Source(Protocol):
    """The file of a model, without any plan."""

    @property
    def path(self) -> str:
        """As it was given."""

    @property
    def name(self) -> str:
        """Of the file, without its folder."""

    @property
    def format(self) -> str:
        """As JSON names it."""

    @property
    def sha256(self) -> str:
        """Of the file as stored."""

    @property
    def node_count(self) -> int:
        """Nodes of the graph, variables included."""


class Step(Protocol):
    """A training step of a model, as its engine recorded it. Sizes in bytes."""

    graph: TrainingGraph
    model: Any  # what plans of it cost
    inputs: dict[str, list[int]]  # shapes of all that is fed
    assumed: list[str]  # inputs whose shape was guessed
    dtype: str
    frozen: tuple[str, ...]  # globs of parameters that are not trained
    loss_heads: int  # losses that were put on, 0 where the model has its own
    parameter_bytes: int
    state_bytes: int

    @property
    def parameter_gradient_bytes(self) -> int:
        """Of the parameters that are trained."""


@dataclass(frozen=True)
class BatchSplit:
    """How many workers there are, and how many samples they have together and each."""

    workers: int
    batch: int
    each: int


@dataclass(frozen=True)
class Inference:
    """What the network takes where nothing is trained, bytes."""

    baseline_bytes: int
    planned_bytes: int

    @property
    def costs(self) -> bool:
        """Whether the plan's graph takes visibly more."""
        return self.planned_bytes > 1.01 * self.baseline_bytes

    def recorded(self) -> dict[str, int]:
        """For the record in the file."""
        return {
            "baseline_inference_bytes": self.baseline_bytes,
            "inference_bytes": self.planned_bytes,
        }


@dataclass(frozen=True)
class OnCard:
    """Bytes that a process holds of a card while it trains, by the emulated CUDA allocator.

    Of the baseline and under the plan: ``allocated`` at the peak and
    ``reserved``, parameters, states, inputs and their gradients included; ``workspaces``: what
    cuBLAS keeps of it. No optimizer, and not CUDA's own context.
    """

    baseline_allocated: int
    baseline_reserved: int
    allocated: int
    reserved: int
    workspaces: int

    @property
    def baseline_slack(self) -> int:
        """Gaps between tensors in what the allocator has reserved, without a plan."""
        return self.baseline_reserved - self.baseline_allocated

    @property
    def slack(self) -> int:
        """The same under the plan."""
        return self.reserved - self.allocated


@dataclass
class Planned:
    """A plan, what it is for, and what it comes to. Sizes in bytes, times in seconds.

    What only one engine knows of has a value that says nothing: '', 0, [], {} or None.
    """

    source: Source
    original: tuple[str, str]  # name and SHA-256 of the file without any plan
    engine: str  # that trains it
    analysis: Step  # of the baseline
    operator_count: int  # nodes that compute something
    strategy: str  # as asked for; the plan names the one that found it
    cost_of: str  # what stands for the cost of an operator: see Settings.cost
    plan: Plan
    baseline: Cost
    cost: Cost
    lower_bound: int  # of every plan's memory
    baseline_allocated: int  # that the engine really takes
    allocated: int
    stages: list[Stage]
    notes: list[str]
    evaluated: int  # plans
    seconds: float
    form: Any = None  # of the network, that the plan is for: the engine's own
    pooled: bool = False  # memory is a pool that only grows, beside the live bytes
    device: str = ""  # that figures are of, where they differ by device: cpu or cuda
    kernels: str = ""  # that run it: plain, or any where it needs oneDNN's or cuDNN's
    environment: dict[str, str] = field(default_factory=dict)  # to train with
    rewrites: list[str] = field(default_factory=list)  # save barriers apart
    barriers: int = 0
    recompute_bound: float = 0.0  # FLOPs that every plan within the budget recomputes
    # Of plans that recompute at most this part of a forward pass (None: of all) the least is
    bound_within: float | None = None
    lower_bound_within: int = 0  # at least this
    # of a written file whose plan has nodes of its own
    inference: Inference | None = None
    on_card: OnCard | None = None  # what CUDA's caching allocator makes of it
    marked: dict[str, int] | None = None  # steps kept, recomputed once, and at each need
    restored: list[str] = field(default_factory=list)  # what --as-training did
    step_total: StepTotal | None = None  # of the whole training step
    split: BatchSplit | None = None  # over several workers: figures are of each
    output: str | None = None

    @property
    def format(self) -> str:
        """What the model was written in."""
        return self.source.format

    @property
    def gap(self) -> float:
        """How far from the best possible the plan may be, 0 to 1."""
        return gap(max(self.lower_bound, self.lower_bound_within), self.cost.pool_bytes)

    def to_json(self) -> dict[str, Any]:
        """The object that ``plan --json`` prints."""
        from memcli.reports.plan_report import plan_json

        return plan_json(self)


def recorded_memory(baseline: Cost, cost: Cost, lower_bound: int) -> dict[str, int]:
    """What a written file says of its plan's memory, bytes."""
    return {
        "baseline_bytes": baseline.pool_bytes,
        "planned_bytes": cost.pool_bytes,
        "live_peak_bytes": cost.live_peak_bytes,
        "lower_bound_bytes": lower_bound,
    }


def recorded_recomputation(cost: Cost) -> dict[str, int | float]:
    """What a written file says of what its plan recomputes."""
    return {
        "flops": cost.recompute_flops,
        "forward_flops": cost.forward_flops,
        "fraction": cost.recompute_fraction,
    }


def assumed_notes(assumed: Iterable[str], inputs: Mapping[str, Sequence[int]]) -> list[str]:
    """Which shapes were assumed, in words."""
    return [
        f"shape of '{name}' is assumed: {','.join(map(str, inputs[name]))} "
        "(change it with --shape or --batch)"
        for name in assumed
    ]
