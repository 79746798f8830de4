"""What an engine gives a search: its graph, what plans of it cost, and what is its own in marking.

A search (:class:`memcli.search.base.Search`) and its strategies know no engine; they ask a
``SearchSpace``. Members with a body say what holds for an engine without the feature that they are
about: such an engine leaves them as they are, or says so by inheriting them.

A plan is an array of marks over the forward nodes of the graph (:mod:`memcli.marks`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memcli.graph.cost import DEFAULT_MATCH_RANGE, Cost, Found, LowerBound
from memcli.graph.training import Flags, Ints, Plan, TrainingGraph
from memcli.marks import AGAIN, KEPT

Floats = NDArray[np.float64]
# The match range, the blocks reserved by the current plan and by the best one, and the sizes that
# blocks may have: see ``Walk``.
Reserving = tuple[int, Ints, Ints, Ints]

# The reserved blocks of a plan that reserves none.
NO_BLOCKS: Ints = np.zeros(0, np.int64)


class Walk(Protocol):
    """A part of one annealing chain. Nothing in it depends on the time, but on ``rng`` alone."""

    def __call__(
        self,
        state: Flags,
        best: Flags,
        nodes: Ints,
        weights: Floats,
        third: Flags,
        group_ptr: Ints,
        group_of: Ints,
        group_node: Ints,
        costly_ptr: Ints,
        costly_node: Ints,
        costly_chance: float,
        copy_chance: float,
        others: NDArray[np.uint8],
        params: Floats,
        reserving: Reserving,
        rng: NDArray[np.uint64],
        steps: int,
        first_temperature: float,
        last_temperature: float,
        done: int,
        total_steps: int,
        lowest: float,
        /,
    ) -> float:
        """Go some steps of a chain.

        Args:
            state: over forward nodes, the current plan; changed.
            best: over forward nodes, the best plan seen; changed.
            nodes: the forward nodes to decide on, in their order.
            weights: over ``nodes``, running sums of how often each is chosen.
            third: over forward nodes, 1 where the mark ``THIRD`` may be set.
            group_ptr: alike nodes; those of group ``g`` are ``group_ptr[g]..group_ptr[g + 1] - 1``
                of ``group_node``.
            group_of: over forward nodes, the group of each.
            group_node: forward nodes by group.
            costly_ptr: what to keep so that node ``v`` is not recomputed is
                ``costly_ptr[v]..costly_ptr[v + 1] - 1`` of ``costly_node``; nothing for most.
            costly_node: forward nodes, see there.
            costly_chance: how often that is tried, 0 to 1.
            copy_chance: how often a part of the network takes the marks of one like it, 0 to 1.
            others: plans x forward nodes, good plans that stretches are taken from, as in genetic
                algorithms.
            params: weights of the energy, see :mod:`memcli.search.annealing`.
            reserving: the match range; places for elements of blocks that the current plan reserves
                (0: none), and those of the best plan, both changed; the sizes that such a block
                may have, elements, sorted.
            rng: one word, the state of the random numbers; changed.
            steps: to go now.
            first_temperature: of all steps' first, in the unit of the energy.
            last_temperature: of all steps' last.
            done: steps of the chain that were gone before.
            total_steps: of the whole chain.
            lowest: the energy of ``best``; infinite where it has none yet.

        Returns:
            The energy of the best plan now.
        """
        ...


class SearchSpace(Protocol):
    """One training step of one engine, as searches see it."""

    # Part of the usual number of plans that annealing tries; less where a plan takes longer.
    effort: float = 1.0
    # And the most of them.
    most_steps: int = 1 << 40
    # Values of the engine's own choice that a plan may name (MXNet's NNVM_EXEC_MATCH_RANGE), the
    # default first; that alone where there is no choice.
    match_ranges: tuple[int, ...] = (DEFAULT_MATCH_RANGE,)
    # Of these, four that good plans often end up best at, rising; none where there is no choice.
    usual_match_ranges: tuple[int, ...] = ()

    # --- the graph, and what its plans cost ---

    @property
    @abstractmethod
    def graph(self) -> TrainingGraph:
        """The training graph that is planned."""

    @property
    @abstractmethod
    def seconds(self) -> Floats:
        """Over forward nodes: what each costs to recompute, in any one unit."""

    @property
    @abstractmethod
    def forward_seconds(self) -> float:
        """What one forward pass costs, in the unit of ``seconds``."""

    @property
    @abstractmethod
    def forward_flops(self) -> float:
        """FLOPs of one forward pass."""

    @abstractmethod
    def evaluate(
        self,
        flags: Flags,
        match_ranges: Sequence[int] = (DEFAULT_MATCH_RANGE,),
        reserved: Ints = NO_BLOCKS,
    ) -> Cost:
        """What a plan costs.

        Args:
            flags: over forward nodes, the marks; as ``as_run`` leaves them.
            match_ranges: the cost is that of the best of these, the first of equals.
            reserved: elements of the blocks that the plan reserves.
        """

    def none(self) -> Flags:
        """The plan that recomputes nothing."""
        return np.full(self.graph.n_forward, KEPT, np.uint8)

    # --- marks ---

    @property
    def pinned(self) -> Ints:
        """Over forward nodes: bytes that keeping a node keeps besides its own outputs."""
        return np.zeros(self.graph.n_forward, np.int64)

    def as_run(self, flags: Flags, *, portable: bool = False) -> Flags:
        """The marks that the engine carries out where a plan asks for ``flags``.

        Args:
            flags: over forward nodes; left as they are.
            portable: as the engine's plainest kernels carry them out.
        """
        return flags

    def is_kept(self, flags: Flags) -> NDArray[np.bool_]:
        """Over forward nodes: whether a plan keeps what the node makes."""
        return np.asarray(flags != AGAIN)

    def kept_mark(self, node: int) -> int:
        """How to keep what ``node`` makes, where a save barrier may stand behind it."""
        return KEPT

    def third_mark(self, *, rewrite: bool) -> Flags:
        """Over forward nodes: 1 where the mark ``THIRD`` may be set.

        Args:
            rewrite: whether a plan may put nodes of its own into the graph.
        """
        return np.zeros(self.graph.n_forward, np.uint8)

    def is_portable(self, flags: Flags) -> bool:
        """Whether the engine's plainest kernels run the plan, and not only its fastest ones."""
        return True

    def is_exact(self, plan: Plan) -> bool:
        """Whether gradients keep every bit under the plan."""
        return True

    # --- annealing ---

    def annealing(self, *, portable: bool) -> Walk:
        """What anneals over plans of this step.

        Here by :meth:`evaluate`, which any space has; an engine that evaluates in compiled code is
        some hundred times as fast. Chains walk in several threads at once.

        Args:
            portable: over plans that the engine's plainest kernels run.
        """
        from memcli.search.anneal_any import anneal

        return partial(anneal, self, portable)

    # --- proofs ---

    @property
    def is_provable(self) -> bool:
        """Whether the graph is small enough for :meth:`best_of_all` and :meth:`prove`."""
        return False

    def best_of_all(self, key: Callable[[Cost], Any]) -> Flags | None:
        """The best of all plans there are, by trying each.

        Args:
            key: of a plan's cost; the least is best.

        Returns:
            Marks over forward nodes; None where there are too many plans.
        """
        return None

    def prove(self, seconds: float, ceiling: int) -> tuple[int, Flags | None]:
        """A lower bound of the memory of every plan, bytes, and the plan of its solver, if any.

        Args:
            seconds: that it may take, roughly.
            ceiling: memory of the best plan known, bytes.
        """
        return 0, None

    def lower_bound(self, ceiling: int, max_recompute: float | None = None) -> LowerBound:
        """What no plan's memory gets under, within some seconds.

        Args:
            ceiling: memory of the best plan known, bytes.
            max_recompute: part of a forward pass that plans may recompute, for the second bound;
                None: any.
        """
        return LowerBound(0, 0)

    # --- blocks of memory that a plan reserves ---

    @property
    def block_sizes(self) -> Ints:
        """Sizes that reserved blocks may have, elements, rising; none where there may be none."""
        return NO_BLOCKS

    def first_blocks(self, flags: Flags) -> Ints:
        """Blocks that annealing begins to reserve for a plan.

        Args:
            flags: over forward nodes, the marks.

        Returns:
            Elements of each block; 0 for a place where one more may be reserved.
        """
        return NO_BLOCKS

    def without_needless(
        self, found: Found, match_ranges: tuple[int, ...], budget: int | None
    ) -> Found:
        """The plan without reserved blocks that hardly save memory.

        Args:
            found: the plan.
            match_ranges: that it may name.
            budget: bytes that the plan is to stay within, if it does.
        """
        return found
