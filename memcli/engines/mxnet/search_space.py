"""MXNet's plans for searches: save barriers, match ranges, reserved blocks, its pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.engines.mxnet import annealing as anneal_mxnet
from memcli.engines.mxnet.memory.bounds import (
    MEDIUM,
    best_lower_bound,
    program_bound,
    reported_bound,
)
from memcli.engines.mxnet.memory.exhaustive import all_plans
from memcli.engines.mxnet.memory.in_place_sums import plan_keeps_sums
from memcli.engines.mxnet.memory.model import MATCH_RANGES, MXNetModel
from memcli.engines.mxnet.memory.pool_layout import MOST_RESERVED, scratch
from memcli.graph.cost import DEFAULT_MATCH_RANGE, Cost, Found, LowerBound
from memcli.graph.training import Flags, Ints, Plan, TrainingGraph
from memcli.marks import AGAIN, BARRIER, KEPT
from memcli.search.cutpoints import pinned_bytes
from memcli.search.space import NO_BLOCKS, SearchSpace, Walk

# Blocks smaller than this part of the baseline's pool are not reserved.
_LEAST_BLOCK = 1e-4
_SPARE = 8  # places for more blocks than a plan needs at first
# So much more memory without blocks is better than with them, a part of it: of all of them, and of
# the needless ones together.
_ALL, _SOME = 1.005, 1.0002
_LARGE = 20_000  # nodes; blocks are not looked at one by one then


class MXNetSpace(SearchSpace):
    """Plans of one graph on MXNet's emulated pool.

    What blocks may be reserved (``model.reservable``) is read at its first use.

    What reserving is for: :mod:`memcli.engines.mxnet.rewrites.reserved_blocks`.
    """

    match_ranges = MATCH_RANGES
    usual_match_ranges = (2, 3, 4, 6)

    def __init__(self, graph: TrainingGraph, model: MXNetModel) -> None:
        self._graph = graph
        self.model = model

    @property
    def graph(self) -> TrainingGraph:
        """The joint graph of the symbol."""
        return self._graph

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Over forward nodes: FLOPs, or what the model was given as the cost."""
        return self.model.seconds

    @property
    def forward_seconds(self) -> float:
        """The sum of ``seconds``."""
        return self.model.forward_seconds

    @property
    def forward_flops(self) -> float:
        """FLOPs of one forward pass."""
        return self.model.forward_flops

    def evaluate(
        self,
        flags: Flags,
        match_ranges: Sequence[int] = (DEFAULT_MATCH_RANGE,),
        reserved: Ints = NO_BLOCKS,
    ) -> Cost:
        """On the emulated pool, to the byte."""
        return self.model.evaluate(flags, match_ranges, reserved)

    @cached_property
    def pinned(self) -> Ints:
        """Over forward nodes: bytes of inputs that a kept node's gradient reads."""
        return pinned_bytes(self._graph)

    def as_run(self, flags: Flags, *, portable: bool = False) -> Flags:
        """Without recomputations that MXNet fails to run since nobody reads them."""
        return self.model.without_unread(flags, portable=portable)

    def is_kept(self, flags: Flags) -> NDArray[np.bool_]:
        """Over forward nodes: behind a save barrier, too."""
        return np.asarray(flags != AGAIN)

    def kept_mark(self, node: int) -> int:
        """Behind a save barrier where keeping pins more than the node."""
        graph = self._graph
        reads = graph.in_node[graph.in_ptr[node] : graph.in_ptr[node + 1]]
        # an identity behind a convolution is there to read its copy
        is_reader = graph.op(node) == "_copy" and graph.op(int(reads[0])) == "Convolution"
        return BARRIER if self.pinned[node] or is_reader else KEPT

    def third_mark(self, *, rewrite: bool) -> Flags:
        """Where a save barrier may stand."""
        allowed = self._graph.can_barrier
        return allowed if rewrite else np.zeros_like(allowed)

    def is_portable(self, flags: Flags) -> bool:
        """Whether MXNet's plain kernels run the plan, oneDNN's and cuDNN's aside."""
        return self.model.on_plain_kernels(flags)

    def is_exact(self, plan: Plan) -> bool:
        """Whether gradients are added in the order in which they are without the plan."""
        return plan_keeps_sums(self._graph, self.model, plan)

    def annealing(self, *, portable: bool) -> Walk:
        """:func:`memcli.engines.mxnet.annealing.anneal` on this graph."""
        layout = self.model.layout
        rules = self.model.unread_rules(portable=portable)
        return partial(anneal_mxnet.anneal, layout, scratch(layout), rules)

    @property
    def is_provable(self) -> bool:
        """As far as the program is at least relaxed."""
        return int(self._graph.can_recompute.sum()) <= MEDIUM

    def best_of_all(self, key: Callable[[Cost], Any]) -> Flags | None:
        """The plan of the least pool at the default match range, whatever ``key`` prefers."""
        least = all_plans(self._graph, self.model)
        return None if least is None else least.pool_flags

    def prove(self, seconds: float, ceiling: int) -> tuple[int, Flags | None]:
        """By the mixed-integer program, see :mod:`memcli.engines.mxnet.memory.integer_bound`."""
        bound = program_bound(self._graph, self.model, seconds, ceiling)
        return max(bound.bytes, best_lower_bound(self._graph, self.model).bytes), bound.flags

    def lower_bound(self, ceiling: int, max_recompute: float | None = None) -> LowerBound:
        """See :func:`reported_bound`; a limit on recomputation makes it no higher."""
        bound = reported_bound([(self._graph, self.model)], ceiling)
        return LowerBound(bound, bound)

    @cached_property
    def block_sizes(self) -> Ints:
        """Sizes of tensors that are large enough to count."""
        reservable = self.model.reservable
        if reservable is None:
            return NO_BLOCKS
        layout = self.model.layout
        sizes = layout.size[layout.out_entry]
        least = _LEAST_BLOCK * self.model.evaluate(self.model.none()).pool_bytes
        large = np.unique(sizes[sizes >= least] // 4).astype(np.int64)
        return large[large >= reservable.least]

    def first_blocks(self, flags: Flags) -> Ints:
        """What any pool needs for a plan, and places for more (0)."""
        blocks = self.model.needed_blocks(flags)
        blocks = blocks[blocks >= self.block_sizes[0]][: MOST_RESERVED - _SPARE]
        return np.concatenate([blocks, np.zeros(_SPARE, np.int64)])

    def without_needless(
        self, found: Found, match_ranges: tuple[int, ...], budget: int | None
    ) -> Found:
        """The plan with none of its blocks, or fewer, where it hardly takes more memory."""
        plan, model = found.plan, self.model
        if not len(plan.reserved):
            return found
        pool = found.cost.pool_bytes
        most = {part: part * pool for part in (_ALL, _SOME)}
        if budget is not None and pool <= budget:
            most = dict.fromkeys(most, min(most[_ALL], float(budget)))
        bare = model.evaluate(plan.recompute, match_ranges)
        if bare.pool_bytes <= most[_ALL]:
            return Found(replace(plan, match_range=bare.match_range, reserved=NO_BLOCKS), bare)
        if self._graph.n_nodes > _LARGE:
            return found
        kept, cost = plan.reserved, found.cost
        for at in range(len(kept) - 1, -1, -1):
            fewer = np.delete(kept, at)
            tried = model.evaluate(plan.recompute, (plan.match_range,), fewer)
            if tried.pool_bytes <= most[_SOME]:
                kept, cost = fewer, tried
        return Found(replace(plan, reserved=kept), cost)
