"""What a plan costs under MXNet: the pool, the live peak, and what is recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from memcli.engines.mxnet.memory import pool, pool_kernel, pool_layout
from memcli.engines.mxnet.memory.engine_buffers import kept_by_operators
from memcli.graph.cost import DEFAULT_MATCH_RANGE, Cost
from memcli.graph.execution_order import execution_order
from memcli.graph.training import Flags, Ints, Plan, TrainingGraph

Seconds = NDArray[np.float64]

# What a plan may set NNVM_EXEC_MATCH_RANGE to, the default first. Every whole number works; above
# 16 the pool is the default's on all graphs tried.
MATCH_RANGES = (16, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1)
# Sizes of tensors that are told apart where it is said which blocks a plan needs.
_SIZES = 256


@dataclass
class Timeline:
    """A plan's run, step by step: nodes in execution order and what is allocated after each."""

    order: Ints  # node numbers; n + f is the recomputed copy of forward node f
    # bytes of pool blocks touched, and of what operators keep beside, up to and with each step
    touched_bytes: Ints
    storage: Ints
    block_bytes: Ints  # true bytes of each block after gradient sums were merged


class MXNetModel:
    """Evaluates plans of one training graph.

    A plan is a mark for each forward node: ``KEPT``, ``AGAIN`` or ``BARRIER`` (recomputed
    behind a save barrier). Marks on variables, on Dropout (which MXNet never mirrors) and on
    nothing else are without effect, as in MXNet.
    """

    def __init__(self, graph: TrainingGraph, seconds: Seconds | None = None) -> None:
        """``seconds``: over forward nodes, what each costs to run; FLOPs where not given."""
        self.graph = graph
        self.seconds = graph.flops[: graph.n_forward] if seconds is None else seconds
        self.forward_seconds = float(self.seconds.sum())
        forward = range(graph.n_forward)
        self.markable = np.array(
            [graph.kind[v] >= 0 and graph.op(v) != "Dropout" for v in forward], np.uint8
        )
        self.forward_flops = float(graph.flops[: graph.n_forward].sum())
        # whether only plans that MXNet's plain kernels run are made
        self.portable = True
        self._reservable: pool_layout.Reservable | None = None
        self._own_read = graph.own_read()
        self._leading = graph.leading()
        self._waited_for = graph.waited_for()
        convolution = [graph.op(v) == "Convolution" for v in forward]
        self._strict = graph.fails_unread | np.array(convolution, np.uint8)

    def set_seconds(self, seconds: Seconds) -> None:
        """Set another cost of operators, over forward nodes; what was evaluated before stays."""
        self.seconds = seconds
        self.forward_seconds = float(seconds.sum())
        self.__dict__.pop("layout", None)

    @property
    def reservable(self) -> pool_layout.Reservable | None:
        """Where plans may reserve blocks of the pool; None: nowhere."""
        return self._reservable

    @reservable.setter
    def reservable(self, where: pool_layout.Reservable | None) -> None:
        self._reservable = where
        self.__dict__.pop("layout", None)

    @cached_property
    def without_reserved_blocks(self) -> MXNetModel:
        """The model of the graph as if nothing of the pool were reserved; nodes are the same."""
        graph = self.graph.without_reserved_blocks()
        same = np.array_equal(graph.elements, self.graph.elements)
        return self if same else MXNetModel(graph, self.seconds)

    @cached_property
    def layout(self) -> pool_layout.Layout:
        """The graph arranged for many evaluations; worked out at the first."""
        return pool_layout.layout_of(self.graph, self.seconds, self._reservable)

    @cached_property
    def _scratch(self) -> pool_layout.Scratch:
        return pool_layout.scratch(self.layout)

    def unread_rules(self, *, portable: bool = False) -> pool.UnreadRules:
        """What :func:`memcli.engines.mxnet.memory.pool.drop_unread` needs after the flags.

        Args:
            portable: for MXNet's plain kernels, as in :meth:`without_unread`.
        """
        g = self.graph
        return pool.UnreadRules(
            g.in_ptr,
            g.in_node,
            g.in_entry,
            g.in_ignored,
            self._leading,
            self._own_read,
            self._waited_for,
            self._strict if portable or self.portable else g.fails_unread,
        )

    def none(self) -> Flags:
        """The plan that recomputes nothing."""
        return np.zeros(self.graph.n_forward, np.uint8)

    def without_unread(self, recompute: Flags, *, portable: bool = False) -> Flags:
        """The plan without recomputations that MXNet fails to run since nobody reads them.

        Args:
            recompute: over forward nodes, marks; left as they are.
            portable: without convolutions among them as well, which only oneDNN and cuDNN run for
                nothing: such a plan also runs on MXNet's plain kernels.
        """
        flags = recompute.copy()
        pool.drop_unread(flags, self.unread_rules(portable=portable))
        return flags

    def on_plain_kernels(self, recompute: Flags) -> bool:
        """Whether MXNet's plain kernels run the plan; where not, it needs oneDNN or cuDNN."""
        return bool((self.without_unread(recompute, portable=True) == recompute).all())

    def unread_copies(self, recompute: Flags) -> list[int]:
        """Forward nodes that are recomputed although nothing reads their first output."""
        g = self.graph
        mark = (recompute * self.markable).astype(np.uint8)
        order = self.execution_order(mark)
        counts = self.reference_counts(order, mark)
        return [
            int(v)
            for v in order[order >= g.n_nodes] - g.n_nodes
            if not counts[g.n_entries + g.first[v]]
        ]

    def execution_order(self, mark: Flags) -> Ints:
        """Nodes in the order in which the engine runs them; ``n + f`` recomputes forward node f."""
        g = self.graph
        return execution_order(
            g.n_nodes, g.in_ptr, g.in_node, g.dep_ptr, g.dep_node, g.owner, g.heads, mark
        )

    def reference_counts(self, order: Ints, mark: Flags) -> Ints:
        """How often each tensor is read.

        Args:
            order: of execution, as :meth:`execution_order` gives it.
            mark: over forward nodes, the plan.

        Returns:
            Over entries, and behind them their copies.
        """
        g = self.graph
        return pool.reference_counts(
            order,
            g.n_nodes,
            g.n_entries,
            g.in_ptr,
            g.in_node,
            g.in_entry,
            g.in_ignored,
            g.variable,
            g.outputs,
            mark,
            g.owner,
        )

    def allocate(
        self, order: Ints, counts: Ints, mark: Flags, match_range: int
    ) -> tuple[Ints, Ints, int, int]:
        """Fill the pool over an order of execution.

        Args:
            order: as :meth:`execution_order` gives it.
            counts: as :meth:`reference_counts` gives them.
            mark: over forward nodes, the plan.
            match_range: MXNet's ``NNVM_EXEC_MATCH_RANGE``.

        Returns:
            The block of each entry, bytes of each block, the live peak in bytes, and its place in
            the order.
        """
        g = self.graph
        return pool.allocate(
            order,
            g.n_nodes,
            g.n_entries,
            g.first,
            g.in_ptr,
            g.in_node,
            g.in_entry,
            g.in_ignored,
            g.pair_ptr,
            g.pair_in,
            g.pair_out,
            g.pair_identity,
            g.ignores_all,
            g.variable,
            g.elements,
            g.itemsize,
            g.outputs,
            g.n_forward_outputs,
            g.external,
            counts,
            mark,
            g.owner,
            match_range,
        )

    def evaluate(
        self,
        recompute: Flags,
        match_ranges: Sequence[int] = (DEFAULT_MATCH_RANGE,),
        reserved: Ints = pool_kernel.NOTHING,
    ) -> Cost:
        """What a plan costs at the best of several match ranges.

        Args:
            recompute: over forward nodes, the plan's marks.
            match_ranges: of MXNet's ``NNVM_EXEC_MATCH_RANGE``; of equals the first is taken.
            reserved: elements of blocks that the plan reserves (0: none).
        """
        mark = (recompute * self.markable).astype(np.uint8)
        layout, scratch = self.layout, self._scratch
        steps, flops, seconds = pool_kernel.trace(layout, scratch, mark)
        best: Cost | None = None
        for match_range in match_ranges:
            total, true, live, _ = pool_kernel.fill(
                layout, scratch, mark, steps, match_range, pool_kernel.ANY, False, reserved
            )
            if best is None or total < best.total_bytes:
                best = Cost(
                    total,
                    true,
                    live,
                    flops,
                    self.forward_flops,
                    match_range,
                    seconds,
                    self.forward_seconds,
                )
        assert best is not None
        if self.without_reserved_blocks is not self:
            # Reserved blocks hold nothing of the step: what is alive are the tensors within.
            tensors = self.without_reserved_blocks.evaluate(recompute, (best.match_range,))
            best.live_peak_bytes = tensors.live_peak_bytes
        return best

    def plan_cost(self, plan: Plan) -> Cost:
        """Cost of a plan with the match range that it names, and the blocks that it reserves."""
        return self.evaluate(plan.recompute, (plan.match_range,), plan.reserved)

    def needed_blocks(self, recompute: Flags) -> Ints:
        """The blocks that any pool needs for a plan, largest first, elements; small ones left out.

        As many of each size and more as tensors of that size and more are alive at once.
        """
        mark = (recompute * self.markable).astype(np.uint8)
        layout = pool_layout.with_levels(self.layout, _SIZES)
        scratch = pool_layout.scratch(layout)
        steps, _, _ = pool_kernel.trace(layout, scratch, mark)
        pool_kernel.fill(
            layout,
            scratch,
            mark,
            steps,
            DEFAULT_MATCH_RANGE,
            pool_kernel.ANY,
            True,
            pool_kernel.NOTHING,
        )
        sizes = np.cumsum(layout.level_step)[::-1]
        blocks = np.diff(scratch.level_most[::-1], prepend=0)
        return np.repeat(sizes // layout.reserve_item, np.maximum(blocks, 0)).astype(np.int64)

    def live_bytes(self, recompute: Flags, match_range: int = DEFAULT_MATCH_RANGE) -> Ints:
        """Bytes of tensors alive at each step of the execution order, reserved blocks left out.

        Args:
            recompute: over forward nodes, the plan's marks.
            match_range: MXNet's ``NNVM_EXEC_MATCH_RANGE``.
        """
        model = self.without_reserved_blocks
        g = model.graph
        mark = (recompute * model.markable).astype(np.uint8)
        order = model.execution_order(mark)
        counts = model.reference_counts(order, mark)
        storage, _, _, _ = model.allocate(order, counts, mark, match_range)
        return pool.live_bytes(
            order,
            g.n_nodes,
            g.n_entries,
            g.first,
            g.in_ptr,
            g.in_node,
            g.in_entry,
            g.in_ignored,
            g.variable,
            storage,
            counts,
            g.elements,
            g.itemsize,
            mark,
            g.owner,
        )

    def _merged(self, recompute: Flags, match_range: int) -> tuple[Ints, Ints, Ints, Flags]:
        """How a plan runs, and where it puts each tensor.

        Returns:
            The execution order, the block of each entry, bytes of each block, and over nodes 1 for
            additions that never run since an operator adds in place.
        """
        g = self.graph
        mark = (recompute * self.markable).astype(np.uint8)
        order = self.execution_order(mark)
        counts = self.reference_counts(order, mark)
        storage, blocks, _, _ = self.allocate(order, counts, mark, match_range)
        skipped = pool.merge_added(
            order,
            g.n_nodes,
            g.n_entries,
            g.first,
            g.in_ptr,
            g.in_node,
            g.in_entry,
            g.is_grad_add,
            g.variable,
            g.outputs,
            storage,
            mark,
            g.owner,
        )
        return order, storage, blocks, skipped

    def added_in_place(self, recompute: Flags, match_range: int = DEFAULT_MATCH_RANGE) -> Flags:
        """Which sums of gradients an operator adds in place under a plan.

        Args:
            recompute: over forward nodes, the plan's marks.
            match_range: MXNet's ``NNVM_EXEC_MATCH_RANGE``.

        Returns:
            Over nodes: 1 for each such ``_grad_add``.
        """
        skipped = self._merged(recompute, match_range)[-1]
        return np.asarray(skipped[: self.graph.n_nodes])

    def timeline(self, recompute: Flags, match_range: int = DEFAULT_MATCH_RANGE) -> Timeline:
        """How the pool fills while the plan runs; MXNet allocates a block at its first use.

        Args:
            recompute: over forward nodes, the plan's marks.
            match_range: MXNet's ``NNVM_EXEC_MATCH_RANGE``.
        """
        g = self.graph
        order, storage, blocks, skipped = self._merged(recompute, match_range)
        true = pool.true_block_bytes(storage, len(blocks), g.elements, g.itemsize, g.n_entries)
        touched = pool.touched_bytes(
            order, g.n_nodes, g.n_entries, g.first, g.in_ptr, g.variable, storage, true, skipped
        )
        for node, size in kept_by_operators(g).items():
            touched[np.flatnonzero(order == node)[0] :] += size
        return Timeline(order, touched, storage, true)
