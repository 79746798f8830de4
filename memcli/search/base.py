"""What every planner gets and gives."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from memcli.errors import BadInput
from memcli.graph.cost import Cost, Found, LowerBound
from memcli.graph.training import Flags, Ints, Plan, TrainingGraph
from memcli.marks import AGAIN, KEPT, RESULTS, THIRD
from memcli.search.cutpoints import CutPoint, find_cuts
from memcli.search.roles import find_roles, kept_instead_of_recomputing
from memcli.search.space import NO_BLOCKS, SearchSpace, Walk
from memcli.time_limit import seconds_left

__all__ = ["Found", "Search", "Settings", "match_names"]

# Graphs on which evaluating takes long enough to look at fewer candidates twice.
_LARGE = 20_000
# A portable plan is preferred up to this much more memory (with a budget: recomputation).
_PORTABLE = 1.005
# And one at the default match range, which takes no environment variable, up to this much more.
_PLAIN = 1.001
# Plans that are looked at at every match range, at the end of a search.
_SHORTLIST = 8
# Kept for that at most, as a part of the time of a search; how much the latest evaluation counts in
# the mean of how long they take.
_ANSWER = 0.05
_LATEST = 0.1


@dataclass
class Settings:
    """What the user asks of a search. Sizes in bytes, thresholds in MB, times in seconds."""

    thresholds: list[int] = field(default_factory=list)
    trials: int = 6
    keep: list[str] = field(default_factory=list)  # globs of node names
    recompute: list[str] = field(default_factory=list)
    budget: int | None = None
    max_recompute: float | None = None  # part of one forward pass
    time_limit: float | None = None
    deadline: float | None = None  # by time.monotonic(); None: the time limit from a search's start
    environment: str = "best"
    # plain: MXNet's own kernels run every plan; any: a plan may need oneDNN's or cuDNN's
    kernels: str = "plain"
    cost: str = "roofline"  # what searches take as the cost of recomputing an operator
    rewrite: bool = True  # whether the plan may put save barriers into the graph
    seed: int = 0
    on_progress: Callable[[str, float | None], None] | None = None

    def met_by(self, baseline: Cost) -> bool:
        """Whether a model fits the budget as it is, so that there is nothing to search for.

        Not where the user asks for nodes to be recomputed in any case.

        Args:
            baseline: the cost of recomputing nothing.
        """
        budget = self.budget
        return budget is not None and baseline.pool_bytes <= budget and not self.recompute

    def ends(self) -> float | None:
        """When a search that starts now is to end, by ``time.monotonic()``; None: at no time."""
        if self.deadline is not None or self.time_limit is None:
            return self.deadline
        return time.monotonic() + self.time_limit


class Search:
    """Evaluates candidates, keeps the best, and stops at the time limit.

    Args:
        space: the step that is planned, and what of its engine a search has to know.
        settings: what the user asks for.

    Raises:
        BadInput: hints that name no node, one node twice, or one that cannot run twice.
    """

    def __init__(self, space: SearchSpace, settings: Settings) -> None:
        self.space = space
        self.graph: TrainingGraph = space.graph
        graph = self.graph
        self.settings = settings
        self.started = time.monotonic()
        # When to stop, by the monotonic clock; None: at no time. A search on one of several forms
        # of a network has a part of the time, which its caller sets.
        self.until = settings.ends()
        self._evaluation_seconds = 0.0
        self.hinted_keep = match_names(graph, settings.keep, "--keep")
        self.hinted_recompute = match_names(graph, settings.recompute, "--recompute")
        both = self.hinted_keep & self.hinted_recompute
        if both:
            name = graph.names[min(both)]
            raise BadInput(f"node '{name}' is named by --keep and by --recompute")
        for node in self.hinted_recompute:
            if not graph.can_recompute[node]:
                raise BadInput(
                    f"--recompute: node '{graph.names[node]}' ({graph.op(node)}) cannot be run "
                    "twice: it draws random numbers or keeps state"
                )
        # whether the same network is searched on a rewritten graph, too
        self.superseded = False
        self.tried: list[Found] = []
        self.evaluated = 0

    @cached_property
    def cuts(self) -> list[CutPoint]:
        """All places where the graph can be cut; found once for all strategies."""
        return find_cuts(self.graph)

    @cached_property
    def barriers(self) -> Flags:
        """Over forward nodes: 1 where the plan may put a save barrier."""
        allowed = self.graph.can_barrier
        return allowed if self.settings.rewrite else np.zeros_like(allowed)

    @cached_property
    def roles(self) -> tuple[Ints, Ints, Ints]:
        """Forward nodes that play the same part: group starts, each node's group, members.

        Alike are nodes of one operator that read from and are read by the same operators, at one
        resolution (the shape but for batch and channels; the whole shape of matrices).
        """
        return find_roles(self.graph)

    @cached_property
    def kept_instead(self) -> tuple[Ints, Ints]:
        """What to keep so that a costly operator is not recomputed, over forward nodes.

        Starts (nodes + 1) and forward nodes; see
        :func:`memcli.search.roles.kept_instead_of_recomputing`. Nodes that the user wants
        recomputed are not among them.
        """
        starts, nodes = kept_instead_of_recomputing(self.graph, self.space.seconds)
        if self.hinted_recompute:
            recomputed = np.isin(nodes, list(self.hinted_recompute))
            gone = np.concatenate([[0], np.cumsum(recomputed)])
            return starts - gone[starts], nodes[~recomputed]
        return starts, nodes

    @cached_property
    def block_sizes(self) -> Ints:
        """What reserved blocks may have for sizes, elements, sorted; none where none may be."""
        return self.space.block_sizes if self.settings.rewrite else NO_BLOCKS

    def without_recomputing(self, flags: Flags, nodes: Ints | Sequence[int]) -> Flags:
        """The marks of a plan under which some operators are not recomputed.

        Args:
            flags: over forward nodes, marks; left as they are.
            nodes: forward nodes that are not to be recomputed.

        Returns:
            Over forward nodes: ``flags`` with all of :attr:`kept_instead` kept.
        """
        starts, instead = self.kept_instead
        chosen = np.zeros(len(starts) - 1, bool)
        chosen[np.asarray(nodes, np.int64)] = True
        changed = flags.copy()
        changed[instead[np.repeat(chosen, np.diff(starts))]] = KEPT
        return changed

    @property
    def match_ranges(self) -> tuple[int, ...]:
        """The match ranges that a plan may name, the default first."""
        ranges = self.space.match_ranges
        return ranges if self.settings.environment == "best" else ranges[:1]

    @property
    def usual_match_ranges(self) -> tuple[int, ...]:
        """Those of them that good plans often end up best at, rising; maybe none."""
        return tuple(r for r in self.space.usual_match_ranges if r in self.match_ranges)

    def kept_mark(self, node: int) -> int:
        """How to keep a node's output: behind a save barrier where that is allowed and helps."""
        return self.space.kept_mark(node) if self.barriers[node] else KEPT

    def kept_cuts(self, flags: Flags) -> list[list[int]]:
        """The cuts of the graph all of whose nodes the plan keeps, for the table of stages."""
        starts, nodes = self._nodes_of_cuts
        if not len(nodes):
            return []
        whole = np.logical_and.reduceat(self.space.is_kept(flags)[nodes], starts)
        result: list[list[int]] = []
        for number in np.flatnonzero(whole).tolist():
            # neighbours that keep the same tensors are one cut
            if result[-1:] != [self.cuts[number].nodes]:
                result.append(self.cuts[number].nodes)
        return result

    @cached_property
    def _nodes_of_cuts(self) -> tuple[Ints, Ints]:
        """Where each cut's forward nodes begin, and the nodes of all cuts one after another."""
        counts = [len(cut.nodes) for cut in self.cuts]
        starts = np.concatenate([[0], np.cumsum(counts)])[:-1].astype(np.int64)
        return starts, np.array([v for cut in self.cuts for v in cut.nodes], np.int64)

    @property
    def third_mark(self) -> Flags:
        """Over forward nodes: 1 where the mark ``THIRD`` may be set."""
        return self.space.third_mark(rewrite=self.settings.rewrite)

    def annealing(self, *, portable: bool) -> Walk:
        """What anneals over plans of this step; see :meth:`SearchSpace.annealing`."""
        return self.space.annealing(portable=portable)

    def best_of_all(self) -> Flags | None:
        """The best of all plans there are at the default match range; None where too many."""
        return self.space.best_of_all(self.key)

    def prove(self, seconds: float) -> tuple[int, Flags | None]:
        """A lower bound of every plan's memory, by an exact solver.

        Args:
            seconds: that it may take, roughly.

        Returns:
            The bound in bytes, 0 where none is proven, and the marks of the solver's plan, if it
            has one.
        """
        return self.space.prove(seconds, min(found.cost.pool_bytes for found in self.tried))

    @property
    def bound_within(self) -> float | None:
        """Recomputation, as a part of a forward pass, up to which plans are compared with the best.

        The limit of the settings where the least memory is asked for.
        """
        return None if self.settings.budget is not None else self.settings.max_recompute

    def lower_bound(self, ceiling: int) -> LowerBound:
        """What no plan can get under, and none within :attr:`bound_within`.

        Args:
            ceiling: memory of the best plan known, bytes.
        """
        return self.space.lower_bound(ceiling, self.bound_within)

    @property
    def out_of_time(self) -> bool:
        """Whether the time limit has passed; at least one candidate is always tried."""
        return bool(self.tried) and self.seconds_left < self.answer_seconds

    @property
    def seconds_left(self) -> float:
        """Seconds until the search is to end; infinite without a time limit."""
        return seconds_left(self.until)

    @property
    def answer_seconds(self) -> float:
        """About how long :meth:`answer` takes, by how long candidates took; a part of the time."""
        if self.until is None:
            return 0.0
        plans = 2 if self.graph.n_nodes > _LARGE else 2 * _SHORTLIST
        needed = plans * len(self.match_ranges) * self._evaluation_seconds
        return min(needed, _ANSWER * max(0.0, self.until - self.started))

    def progress(self, text: str, fraction: float | None = None) -> None:
        """Say what is going on.

        Args:
            text: a few words.
            fraction: of the work that is done, 0 to 1; None where that is unknown.
        """
        if self.settings.on_progress:
            self.settings.on_progress(text, fraction)

    def admissible(self, flags: Flags, *, portable: bool = False) -> Flags:
        """The marks with the user's hints, as the engine carries them out.

        Args:
            flags: over forward nodes, any marks; left as they are.
            portable: as the engine's plainest kernels carry them out.

        Returns:
            Over forward nodes: a plan that the engine runs.
        """
        flags = np.where(self.graph.can_recompute, flags, KEPT).astype(np.uint8)
        flags[(flags == THIRD) & (self.third_mark == 0)] = KEPT
        flags[list(self.hinted_keep)] = KEPT
        flags[[v for v in self.hinted_recompute if flags[v] & RESULTS == KEPT]] = AGAIN
        return self.space.as_run(flags, portable=portable)

    def consider(
        self,
        strategy: str,
        flags: Flags,
        cuts: Sequence[list[int]],
        match_range: int | None = None,
        reserved: Ints = NO_BLOCKS,
    ) -> Found:
        """Evaluate a candidate, and remember it.

        Args:
            strategy: whose candidate it is.
            flags: over forward nodes, the marks.
            cuts: forward nodes that it keeps, a list for each cut of the graph.
            match_range: None: the default.
            reserved: elements of blocks that it reserves; 0 is none.
        """
        flags = self.admissible(flags)
        began = time.monotonic()
        ranges = self.match_ranges[:1] if match_range is None else (match_range,)
        cost = self.space.evaluate(flags, ranges, reserved)
        # of the first one the compiler may be a part
        if self.tried:
            took = time.monotonic() - began
            usual = self._evaluation_seconds or took
            self._evaluation_seconds = usual + _LATEST * (took - usual)
        stays = self.space.is_kept(flags)
        kept = [[v for v in cut if stays[v]] for cut in cuts]
        reserved = np.sort(reserved[reserved > 0])[::-1]
        plan = Plan(strategy, flags, [c for c in kept if c], cost.match_range, reserved)
        found = Found(plan, cost)
        self.tried.append(found)
        self.evaluated += 1
        return found

    def with_environment(self, found: Found) -> Found:
        """The same plan at its best match range, where that saves at least 1%."""
        if len(self.match_ranges) == 1 or len(found.plan.reserved):
            return found
        best = self.space.evaluate(found.plan.recompute, self.match_ranges)
        if best.total_bytes > 0.99 * found.cost.total_bytes:
            return found
        return Found(replace(found.plan, match_range=best.match_range), best)

    def key(self, cost: Cost) -> tuple[float, ...]:
        """What plans are compared by under the settings: the least tuple is the best plan.

        With a budget: what fits, then the least recomputation. With a limit on recomputation: what
        is within it. Then the least memory, and of equal memory the least recomputation.
        """
        over = wasted = recomputed = 0.0
        if self.settings.budget is not None:
            over = max(0.0, cost.pool_bytes - self.settings.budget)
            recomputed = cost.recompute_seconds if not over else 0.0
        if self.settings.max_recompute is not None:
            wasted = max(0.0, cost.recompute_fraction - self.settings.max_recompute - 1e-12)
        return (over, wasted, recomputed, cost.pool_bytes, cost.recompute_seconds)

    def better(self, new: Cost, old: Cost) -> bool:
        """Whether ``new`` is to be preferred, or at least no worse."""
        return self.key(new) <= self.key(old)

    def answer(self) -> Found:
        """The best candidate under the settings that keeps every bit, at its best match range.

        Without reserved blocks that hardly save memory.
        """
        while True:
            found = self._best()
            if self.is_exact(found):
                budget = self.settings.budget
                return self.space.without_needless(found, self.match_ranges, budget)
            marks = found.plan.recompute
            self.tried = [f for f in self.tried if not np.array_equal(f.plan.recompute, marks)]
            if not self.tried:  # recomputing nothing is exact
                self.consider("none", np.zeros_like(marks), [])

    def is_exact(self, found: Found) -> bool:
        """Whether gradients keep every bit under the plan."""
        return not found.plan.recompute.any() or self.space.is_exact(found.plan)

    def _best(self, shortlist: int = _SHORTLIST) -> Found:
        """The best candidate under the settings, at its best match range."""
        ranked = sorted(self.tried, key=lambda found: self.key(found.cost))
        if self.graph.n_nodes > _LARGE:
            shortlist = 2
        portable = [f for f in ranked if self.is_portable(f)]
        short = [*ranked[:shortlist], *portable[:shortlist]]
        wider = [*(self.with_environment(f) for f in short if self.seconds_left > 0), *ranked]
        best = min(wider, key=lambda found: self.key(found.cost))
        limit = _PORTABLE * best.cost.pool_bytes
        near = [f for f in wider if f.cost.pool_bytes <= limit and self.is_portable(f)]
        near = [f for f in near if self.key(f.cost)[:2] <= self.key(best.cost)[:2]]
        if self.settings.budget is not None:
            recomputed = _PORTABLE * best.cost.recompute_seconds
            near = [f for f in near if f.cost.recompute_seconds <= recomputed]
        chosen = min(near or [best], key=lambda found: self.key(found.cost))
        # a plan that takes no variable is preferred where it costs hardly anything
        plain = [f for f in near if f.plan.match_range == self.match_ranges[0]]
        plain = [f for f in plain if f.cost.pool_bytes <= _PLAIN * chosen.cost.pool_bytes]
        return min(plain or [chosen], key=lambda found: self.key(found.cost))

    def is_portable(self, found: Found) -> bool:
        """Whether the engine's plainest kernels run the plan."""
        return self.space.is_portable(found.plan.recompute)


def match_names(graph: TrainingGraph, globs: Sequence[str], option: str) -> set[int]:
    """Forward operators whose name fits any of the globs.

    Raises:
        BadInput: a glob that fits no operator.
    """
    found: set[int] = set()
    for glob in globs:
        fits = {
            v
            for v in range(graph.n_forward)
            if not graph.variable[v] and fnmatch.fnmatchcase(graph.names[v], glob)
        }
        if not fits:
            raise BadInput(
                f"{option} {glob}: no operator of that name", "memcli inspect lists the names"
            )
        found |= fits
    return found
