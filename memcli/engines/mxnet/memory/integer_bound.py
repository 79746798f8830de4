"""Recomputation as a mixed-integer program, for proofs: no plan gets under its bound.

The form follows Jain et al., "Checkmate: Breaking the Memory Wall with Optimal Tensor
Rematerialization", MLSys 2020, arXiv 1910.02653 (0/1 variables for what is computed and what is
alive at each step, the peak as an inequality for each step), but under MXNet's rules: a node is
recomputed at most once, and when is not free but follows from the marks.

Steps are backward nodes in their order, which no plan changes (:mod:`memcli.graph.lifetimes`).
Variables, of forward node ``f``, its output ``e`` and step ``s``:

- ``recomputed[f]``, ``barrier[f]``: the mark, 0 or 1, not both; ``marked = recomputed + barrier``
- ``run[f, s]``: the copy of ``f`` has been run when step ``s`` runs
- ``original[e, s]``, ``copy[e, s]``: is there while step ``s`` runs
- ``peak[b]`` of each band of sizes (:mod:`memcli.engines.mxnet.memory.size_bands`), the sum of
  which is minimized; with one band that is the live peak

Constraints, from ``mapped`` of :mod:`memcli.engines.mxnet.memory.pool`:

1. A gradient of ``h`` waits for the copy of ``f``: for its own if ``h`` is marked, for another's
   if ``h`` is marked and ``f`` is AGAIN. A copy waits for the copies of what it reads if these are
   AGAIN. ``run`` never falls; nothing unmarked is recomputed, nothing runs that nobody waits for.
2. A later gradient of ``h`` reads the copy if ``h`` is marked and ``f`` is AGAIN (or ``h = f``),
   else the original; a copy that has not run yet reads the copy of ``f`` if that is AGAIN, else
   the original. What is to be read is there.
3. At each step, and at each forward node, what is there weighs in band ``b`` at most ``peak[b]``.
4. What is read after a step, by a gradient or by a copy, is there as the original or as the copy,
   or its node's copy runs between the two. Whole marks obey this by rules 1 and 2, which relaxed
   ones can keep by halves: half of a tensor there, half of its node recomputed, nothing read of
   what both were made from.

Every plan gives a feasible point whose ``peak`` is at most the plan's own: tensors that may share
a block count once (as :mod:`memcli.graph.lifetimes` argues), and of the moments between
two steps, when copies run, only a part is counted, and only with all steps. So each lower bound of
the program, or of its relaxation to any real marks and to a part of the steps, bounds every plan.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd

import numpy as np
from numpy.typing import NDArray

from memcli.engines.mxnet.memory.size_bands import weight_in_band
from memcli.graph.lifetimes import Lifetimes
from memcli.graph.training import TrainingGraph

Floats = NDArray[np.float64]
Terms = dict[int, float]
_MOST_PATHS = 25_000  # pairs of nodes times steps
_ALL = 1 << 62  # no tensor is larger


@dataclass
class Rows:
    """A program under construction: columns with bounds, rows ``terms >= low``."""

    upper: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    start: list[int] = field(default_factory=lambda: [0])
    index: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)

    def column(self, upper: float = 1.0, *, whole: bool = False) -> int:
        """A new variable between 0 and ``upper``; its number.

        Args:
            upper: of its range.
            whole: integers alone.
        """
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.upper) - 1

    def at_least(self, terms: Terms, low: float) -> None:
        """A new row: the sum of ``terms`` (column to coefficient) is at least ``low``."""
        reach = sum(min(0.0, c * self.upper[k]) for k, c in terms.items())
        if reach >= low:
            return
        self.index.extend(terms)
        self.value.extend(terms.values())
        self.start.append(len(self.index))
        self.low.append(low)


@dataclass
class PoolProgram:
    """The program of a graph over some of its steps. Sizes are in units of ``unit`` bytes."""

    rows: Rows
    unit: float
    grain: int  # bytes of which every size is a multiple
    peaks: list[int]  # columns, one for each band of sizes; their sum is what a plan takes
    ceiling: float  # of that sum
    recomputed: dict[int, int]  # forward node -> column
    barrier: dict[int, int]
    ran: dict[int, int]  # forward node -> column: its copy has run by the last step


def _add(terms: Terms, column: int | None, factor: float) -> None:
    if column is not None:
        terms[column] = terms.get(column, 0.0) + factor


def _weighing(there: Mapping[int, int], weight: Floats) -> Terms:
    """Terms that take off what is there: columns with the tensors that they tell of."""
    return {column: -weight[e] for column, e in there.items() if weight[e]}


class Builder:
    """Makes the program's columns and rows. ``steps``: places of backward nodes, sorted."""

    def __init__(
        self,
        graph: TrainingGraph,
        facts: Lifetimes,
        steps: list[int],
        ceiling: int,
        exact: bool,
        ends: Sequence[int],
    ) -> None:
        self.graph = graph
        self.facts = facts
        self.exact = exact
        self.rows = Rows()
        self.unit = max(1.0, ceiling / 100.0)
        self.ceiling = ceiling / self.unit
        bands = list(itertools.pairwise(ends))
        self.weights = [weight_in_band(facts.bytes, *band) / self.unit for band in bands]
        self.peaks = [self.rows.column(self.ceiling) for _ in bands]
        self.rows.at_least(dict.fromkeys(self.peaks, -1.0), -self.ceiling)
        # step 0 is the end of the forward pass; the last place closes the list
        self.steps = [facts.n_first - 1, *steps]
        if self.steps[-1] != len(facts.order) - 1:
            self.steps.append(len(facts.order) - 1)
        self.nodes = np.flatnonzero(graph.can_recompute).tolist()
        self.recomputed = {v: self.rows.column(whole=True) for v in self.nodes}
        self.barrier = {v: self.rows.column(whole=True) for v in self.nodes if graph.can_barrier[v]}
        self.run: dict[tuple[int, int], int] = {}
        self._collect()

    def _collect(self) -> None:
        """Edges among forward nodes, and who reads each forward tensor."""
        g, facts = self.graph, self.facts
        self.waits: dict[int, set[int]] = defaultdict(set)  # forward node -> what its copy awaits
        self.trigger: dict[tuple[int, int], int] = {}  # (node, holder) -> first place
        self.reads: dict[int, dict[int, int]] = defaultdict(dict)  # entry -> holder -> last place
        self.readers: dict[int, set[int]] = defaultdict(set)  # entry -> forward nodes
        self.read_at: set[tuple[int, int]] = set()  # entry, place of a gradient that reads it
        for v in range(g.n_nodes):
            if g.variable[v] or facts.place[v] < 0:
                continue
            holder = int(g.owner[v])
            at = int(facts.place[v])
            waits = [int(u) for u in g.in_node[g.in_ptr[v] : g.in_ptr[v + 1]]]
            waits += [int(u) for u in g.dep_node[g.dep_ptr[v] : g.dep_ptr[v + 1]]]
            for u in waits:
                if u not in self.recomputed:
                    continue
                if v < g.n_forward:
                    self.waits[v].add(u)
                elif holder in self.recomputed:
                    key = (u, holder)
                    self.trigger[key] = min(at, self.trigger.get(key, at))
            for i in range(int(g.in_ptr[v]), int(g.in_ptr[v + 1])):
                e = int(g.in_entry[i])
                if g.in_ignored[i] or not facts.bytes[e] or g.in_node[i] >= g.n_forward:
                    continue
                if v < g.n_forward:
                    self.readers[e].add(v)
                else:
                    if not facts.paired[i]:
                        self.read_at.add((e, at))
                    held = self.reads[e]
                    held[holder] = max(held.get(holder, -1), at - int(facts.paired[i]))

    def marked(self, terms: Terms, node: int, factor: float) -> None:
        """Add ``factor * marked[node]``; nothing for a node that is always kept."""
        _add(terms, self.recomputed.get(node), factor)
        _add(terms, self.barrier.get(node), factor)

    def ran(self, terms: Terms, node: int, step: int, factor: float) -> None:
        """Add ``factor * run[node, step]``; nothing has run at step 0."""
        _add(terms, self.run.get((node, step)), factor)

    def add_marks(self) -> None:
        """Rule 1."""
        last = len(self.steps) - 1
        for v in self.nodes:
            self.rows.at_least(self._negated_marks(v), -1.0)
            for s in range(1, last + 1):
                self.run[v, s] = self.rows.column()
        consumers: dict[int, list[int]] = defaultdict(list)
        for v, sources in self.waits.items():
            for u in sources:
                if v in self.recomputed:
                    consumers[u].append(v)
        first: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for (u, holder), place in self.trigger.items():
            step = int(np.searchsorted(self.steps, place))
            first[u].append((max(1, step), holder))
        for v in self.nodes:
            own = next((s for s, h in first[v] if h == v), last + 1)
            for s in range(1, last + 1):
                terms: Terms = {}
                if s > 1:
                    self.ran(terms, v, s, 1.0)
                    self.ran(terms, v, s - 1, -1.0)
                    self.rows.at_least(terms, 0.0)
                terms = {}
                self.ran(terms, v, s, -1.0)
                _add(terms, self.recomputed[v], 1.0)
                if s >= own:
                    _add(terms, self.barrier.get(v), 1.0)
                self.rows.at_least(terms, 0.0)
                # nobody waits for it: not run
                terms = {}
                self.ran(terms, v, s, -1.0)
                for g in consumers[v]:
                    self.ran(terms, g, s, 1.0)
                for t, holder in first[v]:
                    if t <= s:
                        self.marked(terms, holder, 1.0)
                self.rows.at_least(terms, 0.0)
            for s, holder in first[v]:
                terms = {}
                self.ran(terms, v, s, 1.0)
                self.marked(terms, holder, -1.0)
                if holder == v:
                    self.rows.at_least(terms, 0.0)
                else:
                    _add(terms, self.recomputed[v], -1.0)
                    self.rows.at_least(terms, -1.0)
            for g in consumers[v]:
                for s in range(1, last + 1):
                    terms = {}
                    self.ran(terms, v, s, 1.0)
                    self.ran(terms, g, s, -1.0)
                    _add(terms, self.recomputed[v], -1.0)
                    self.rows.at_least(terms, -1.0)

    def _negated_marks(self, v: int) -> Terms:
        terms: Terms = {}
        self.marked(terms, v, -1.0)
        return terms

    def original(self, e: int, step: int) -> list[tuple[Terms, float]]:
        """Rule 2: rows ``original[e, step] + terms >= low``."""
        f = int(self.graph.entry_node[e])
        place = self.steps[step]
        last = len(self.steps) - 1
        rows: list[tuple[Terms, float]] = []
        plain = False
        for holder, until in self.reads.get(e, {}).items():
            if until < place:
                continue
            terms: Terms = {}
            if holder == f:
                self.marked(terms, f, 1.0)
                rows.append((terms, 1.0))
                continue
            if holder in self.recomputed:
                self.marked(terms, holder, 1.0)
            rows.append((terms, 1.0))
            plain = True
        if plain:
            terms = {}
            _add(terms, self.recomputed.get(f), 1.0)
            rows.append((terms, 1.0))
        for g in self.readers.get(e, ()):
            if g in self.recomputed:
                terms = {}
                self.ran(terms, g, last, -1.0)
                self.ran(terms, g, step, 1.0)
                _add(terms, self.recomputed.get(f), 1.0)
                rows.append((terms, 0.0))
        return rows

    def copied(self, e: int, step: int) -> list[tuple[Terms, float]]:
        """Rule 2: rows ``copy[e, step] + terms >= low``."""
        f = int(self.graph.entry_node[e])
        place = self.steps[step]
        last = len(self.steps) - 1
        rows: list[tuple[Terms, float]] = []
        if f not in self.recomputed or step == 0:
            return rows
        for holder, until in self.reads.get(e, {}).items():
            if until < place or (holder != f and holder not in self.recomputed):
                continue
            terms: Terms = {}
            self.ran(terms, f, step, -1.0)
            if holder == f:
                rows.append((terms, 0.0))
                continue
            self.marked(terms, holder, -1.0)
            _add(terms, self.barrier.get(f), 1.0)
            rows.append((terms, -1.0))
        for g in self.readers.get(e, ()):
            if g in self.recomputed:
                terms = {}
                self.ran(terms, f, step, -1.0)
                _add(terms, self.barrier.get(f), 1.0)
                self.ran(terms, g, last, -1.0)
                self.ran(terms, g, step, 1.0)
                rows.append((terms, -1.0))
        return rows

    def held(self, rows: list[tuple[Terms, float]], column: int | None = None) -> int | None:
        """A column that is at least what all rows ask for.

        Args:
            rows: terms and the least that the column has to be with them added.
            column: the column, where there is one already; None: a new one, if any row asks for
                one.

        Returns:
            Its number; None where there is no column.
        """
        for terms, low in rows:
            if column is None:
                column = self.rows.column()
            self.rows.at_least({**terms, column: 1.0}, low)
        return column

    def _at_most(self, tops: Sequence[int], there: Mapping[int, int], base: Iterable[int]) -> None:
        """Rows: in each band, what is there weighs at most the band's top.

        ``tops``: a column for each band; ``there``: columns, each with the tensor it tells of;
        ``base``: tensors that are there anyway.
        """
        sure = list(base)
        for top, weight in zip(tops, self.weights, strict=True):
            terms = {top: 1.0, **_weighing(there, weight)}
            self.rows.at_least(terms, float(weight[sure].sum()))

    def add_peaks(self) -> None:
        """Rules 2 and 3."""
        g, facts = self.graph, self.facts
        forward = [
            e
            for e in range(int(g.first[g.n_forward]))
            if facts.bytes[e] and (e in self.reads or e in self.readers)
        ]
        members: dict[int, list[int]] = defaultdict(list)
        for e in range(g.n_entries):
            if facts.bytes[e]:
                members[int(facts.block[e])].append(e)
        # for each step, of classes that are not there anyway: columns that say whether they are
        ends_at: list[dict[int, list[int]]] = []
        for step, place in enumerate(self.steps):
            sure = {
                int(facts.block[e])
                for e in np.flatnonzero((facts.made <= place) & (facts.until >= place)).tolist()
                if facts.bytes[e]
            }
            for e in forward:
                group = int(facts.block[e])
                if len(members[group]) > 1 and (e, place) in self.read_at:
                    sure.add(group)
            there: dict[int, int] = {}
            shared: dict[int, int | None] = {}
            columns: dict[int, tuple[int | None, int | None]] = {}
            ends: dict[int, list[int]] = defaultdict(list)
            for e in forward:
                group = int(facts.block[e])
                if group in sure:
                    continue
                if len(members[group]) > 1:
                    both = self.original(e, step) + self.copied(e, step)
                    shared[group] = self.held(both, shared.get(group))
                    continue
                columns[e] = self.held(self.original(e, step)), self.held(self.copied(e, step))
                either = [column for column in columns[e] if column is not None]
                there.update(dict.fromkeys(either, e))
                ends[group] += either
                if step and (e, place) in self.read_at:
                    # follows from whole marks, not from others
                    self.rows.at_least(dict.fromkeys(either, 1.0), 1.0)
            for group, held in shared.items():
                if held is not None:
                    there[held] = members[group][0]
                    ends[group].append(held)
            ends_at.append(ends)
            self._at_most(self.peaks, there, (members[c][0] for c in sure))
            if self.exact and step:
                self._add_copies(step, sure, members, columns)
        self._add_sources(forward, ends_at)
        self._add_forward(ends_at[0], members)

    def _add_sources(self, forward: list[int], ends_at: list[dict[int, list[int]]]) -> None:
        """Rule 4."""
        last = len(self.steps) - 1
        for step, ends in enumerate(ends_at):
            for e in forward:
                columns = ends.get(int(self.facts.block[e]))
                if columns is None:
                    continue
                f = int(self.graph.entry_node[e])
                source: Terms = dict.fromkeys(columns, 1.0)
                self.ran(source, f, step, -1.0)
                if any(until >= self.steps[step] for until in self.reads.get(e, {}).values()):
                    terms = dict(source)
                    self.ran(terms, f, last, 1.0)
                    self.rows.at_least(terms, 1.0)
                for g in self.readers.get(e, ()):
                    if g not in self.recomputed:
                        continue
                    for until in {min(step + 1, last), last} - {step}:
                        terms = dict(source)
                        self.ran(terms, f, until, 1.0)
                        self.ran(terms, g, until, -1.0)
                        self.ran(terms, g, step, 1.0)
                        self.rows.at_least(terms, 0.0)

    def _add_copies(
        self,
        step: int,
        sure: set[int],
        members: dict[int, list[int]],
        columns: dict[int, tuple[int | None, int | None]],
    ) -> None:
        """Add rule 3 while copies run before ``step``.

        What is there all the while, what the copy makes, and what it reads. Classes of several
        tensors count as what is there alone.
        """
        g, facts = self.graph, self.facts
        place = self.steps[step]
        passing = [
            members[c][0]
            for c in sure
            if any(facts.made[e] < place <= facts.until[e] for e in members[c])
        ]
        totals = [self.rows.column(self.ceiling) for _ in self.peaks]
        level: dict[int, int] = {}
        before: dict[int, int] = {}
        for e, (original, copy) in columns.items():
            if original is not None:
                level[original] = e
            if copy is not None:
                f = int(g.entry_node[e])
                old = self.rows.column()
                terms: Terms = {old: 1.0, copy: -1.0}
                self.ran(terms, f, step, 1.0)
                self.ran(terms, f, step - 1, -1.0)
                self.rows.at_least(terms, 0.0)
                level[old] = e
                before[e] = old
        self._at_most(totals, level, passing)
        for f in self.nodes:
            outputs = [e for e in g.entries(f) if len(members.get(int(facts.block[e]), ())) == 1]
            there: dict[int, int] = {}
            counted: set[int] = set()
            for i in range(int(g.in_ptr[f]), int(g.in_ptr[f + 1])):
                e = int(g.in_entry[i])
                group = int(facts.block[e])
                if g.in_ignored[i] or facts.paired[i] or not facts.bytes[e] or group in sure:
                    continue
                if e in counted:
                    continue
                counted.add(e)
                if len(members[group]) > 1 or e not in columns:
                    continue
                read = self.rows.column()
                asked: Terms = {read: 1.0}
                self.ran(asked, f, step, -1.0)
                self.ran(asked, f, step - 1, 1.0)
                _add(asked, columns[e][0], 1.0)
                _add(asked, before.get(e), 1.0)
                self.rows.at_least(asked, 0.0)
                there[read] = e
            for above, path in self.above.get(f, {}).items():
                # run before f, in this step or earlier; what ran earlier counts as passing
                for e in g.entries(above):
                    copy = columns.get(e, (None, None))[1]
                    if copy is None or e in counted:
                        continue
                    early = self.rows.column()
                    self.rows.at_least({early: 1.0, copy: -1.0, before[e]: 1.0, path: -1.0}, -1.0)
                    there[early] = e
            for top, total, weight in zip(self.peaks, totals, self.weights, strict=True):
                made = float(weight[outputs].sum())
                terms = {top: 1.0, total: -1.0, **_weighing(there, weight)}
                self.ran(terms, f, step, -made)
                self.ran(terms, f, step - 1, made)
                self.rows.at_least(terms, 0.0)

    def _add_paths(self) -> None:
        """Add columns that are 1 where AGAIN nodes alone lead from ``g`` to ``f``.

        The copy of ``g`` then runs before that of ``f``. Left out of larger programs.
        """
        self.above: dict[int, dict[int, int]] = {}
        sources: dict[int, set[int]] = {}
        for f in self.nodes:
            direct = {u for u in self.waits[f] if u in self.recomputed}
            sources[f] = direct.union(*(sources[u] for u in direct))
        if sum(map(len, sources.values())) * len(self.steps) > _MOST_PATHS:
            return
        for f in self.nodes:
            self.above[f] = {}
            for u in self.waits[f]:
                if u not in self.recomputed:
                    continue
                for above in (u, *sources[u]):
                    if above not in self.above[f]:
                        self.above[f][above] = self.rows.column()
                    path = self.above[f][above]
                    terms: Terms = {path: 1.0, self.recomputed[u]: -1.0}
                    if above == u:
                        self.rows.at_least(terms, 0.0)
                    else:
                        terms[self.above[u][above]] = -1.0
                        self.rows.at_least(terms, -1.0)

    def _add_forward(self, at_end: dict[int, list[int]], members: dict[int, list[int]]) -> None:
        """Rule 3 in the forward pass: ``at_end`` has what is there at its end, by class."""
        g, facts = self.graph, self.facts
        forward = np.flatnonzero((facts.bytes > 0) & (g.entry_node < g.n_forward))
        made, until = facts.made[forward], facts.until[forward]
        places = np.arange(facts.n_first)
        if not self.exact and len(places) > 40:
            places = places[np.argsort(-facts.least[: facts.n_first], kind="stable")[:40]]
        for place in places.tolist():
            sure = {int(facts.block[e]) for e in forward[(made <= place) & (until >= place)]}
            there: dict[int, int] = {}
            for e in forward[(made <= place) & (until < place)].tolist():
                group = int(facts.block[e])
                if group in sure or self.steps[0] < place:
                    continue
                there.update(dict.fromkeys(at_end.get(group, []), e))
            self._at_most(self.peaks, there, (members[c][0] for c in sure))

    def build(self) -> PoolProgram:
        """All rows."""
        self.add_marks()
        if self.exact:
            self._add_paths()
        self.add_peaks()
        grain = 0
        for size in np.unique(self.facts.bytes).tolist():
            grain = gcd(grain, int(size))
        last = len(self.steps) - 1
        ran = {v: self.run[v, last] for v in self.nodes}
        return PoolProgram(
            self.rows,
            self.unit,
            max(1, grain),
            self.peaks,
            self.ceiling,
            self.recomputed,
            self.barrier,
            ran,
        )


def build(
    graph: TrainingGraph,
    facts: Lifetimes,
    ceiling: int,
    *,
    most_steps: int | None = None,
    places: Sequence[int] | None = None,
    ends: Sequence[int] = (0, _ALL),
) -> PoolProgram:
    """The program of a graph.

    Args:
        graph: the joint graph.
        facts: its lifetimes.
        ceiling: bytes that what is minimized is at most, as some plan's is.
        most_steps: at most about so many steps, those at which most is alive whatever the plan and
            others between them; None: all.
        places: these steps alone, and the end of the forward pass.
        ends: of bands of sizes, bytes (:mod:`memcli.engines.mxnet.memory.size_bands`): with one
            band the live peak is minimized and bounded, with several the pool.
    """
    if places is not None:
        return Builder(graph, facts, sorted(places), ceiling, False, ends).build()
    every = list(range(facts.n_first, len(facts.order)))
    exact = most_steps is None or len(every) <= most_steps
    if most_steps is not None and not exact:
        parts = np.array_split(np.array(every), most_steps)
        every = sorted(int(p[np.argmax(facts.least[p])]) for p in parts)
    return Builder(graph, facts, every, ceiling, exact, ends).build()
