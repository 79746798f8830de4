"""``memonger``: the classic search, on the file's own stage marks or on cuts that are found."""

from __future__ import annotations

import numpy as np

from memcli.graph.training import Flags
from memcli.search.base import Search
from memcli.search.cutpoints import CutPoint, cut_pass, families, recompute_all_but
from memcli.search.thresholds import (
    ClassicPass,
    ClassicRow,
    classic_pass,
    classic_thresholds,
    is_parameter_name,
)

NAME = "memonger"


def classic_rows(search: Search) -> list[ClassicRow]:
    """The graph's internal outputs, in depth-first order, as the classic pass reads them."""
    graph = search.graph
    rows = []
    for position, _, elements in graph.internals.tolist():
        if 0 <= position < len(graph.file_names):
            name = graph.file_names[position]
            parameter = bool(graph.file_variable[position]) and is_parameter_name(name)
            stage = graph.stage_at.get(position)
            rows.append(ClassicRow(position, elements * 4, parameter, stage))
        elif position < 0:
            rows.append(ClassicRow(position, elements * 4, False, None))
    return rows


def search_marks(search: Search, strategy: str = NAME) -> None:
    """Try the classic thresholds on the marks that the file carries."""
    rows = classic_rows(search)
    passes: dict[int, ClassicPass] = {}

    def outcome(threshold: int) -> tuple[int, int]:
        if threshold not in passes:
            passes[threshold] = classic_pass(rows, threshold << 20)
        return passes[threshold].save_size, passes[threshold].max_size

    chosen = search.settings.thresholds
    for threshold in chosen or classic_thresholds(outcome, search.settings.trials):
        if search.out_of_time:
            return
        search.progress(f"threshold {threshold} MB")
        outcome(threshold)
        flags, cuts = _translate(search, passes[threshold])
        search.consider(strategy, flags, cuts).plan.notes["threshold_mb"] = threshold


def _translate(search: Search, found: ClassicPass) -> tuple[Flags, list[list[int]]]:
    """Positions in the file to forward nodes of the graph."""
    graph = search.graph
    node_of = graph.node_of_position()
    flags = np.zeros(graph.n_forward, np.uint8)
    for position, recomputed in found.mark.items():
        place = graph.alias.get(position, position)
        if recomputed and place in node_of:
            flags[node_of[place]] = 1
    cuts = []
    for kept in found.kept:
        # A later output of a node may have put it back among what is recomputed.
        places = [graph.alias.get(p, p) for p in kept if not found.mark[p]]
        cuts.append([node_of[p] for p in places if p in node_of])
        flags[cuts[-1]] = 0
    return flags, [c for c in cuts if c]


def search_cuts(search: Search, strategy: str = NAME) -> None:
    """Try thresholds on cuts that are found in the graph itself, for several sets of cuts."""
    graph = search.graph
    sizes = graph.operator_bytes()
    seen: set[tuple[int, ...]] = set()

    def consider(kept: list[CutPoint], threshold: int) -> None:
        key = tuple(c.after for c in kept)
        if key in seen or search.out_of_time:
            return
        seen.add(key)
        cuts = [c.nodes for c in kept]
        found = search.consider(strategy, recompute_all_but(graph, cuts), cuts)
        found.plan.notes["threshold_mb"] = threshold >> 20

    chosen = [t << 20 for t in search.settings.thresholds]
    sets = families(search.cuts)
    for number, family in enumerate(sets):
        search.progress("searching cuts", number / len(sets))

        def outcome(threshold: int, family: list[CutPoint] = family) -> tuple[int, int]:
            _, save, largest = cut_pass(graph, family, sizes, threshold << 20)
            return save, largest

        thresholds = chosen or [
            t << 20 for t in classic_thresholds(outcome, search.settings.trials)
        ]
        if not chosen:
            # The balance is best near the square root of the work; look around it finely.
            total = max(1, int(sizes.sum()))
            thresholds += [int(total / k) for k in (2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 90)]
        for threshold in thresholds:
            kept, _, _ = cut_pass(graph, family, sizes, threshold)
            consider(kept, threshold)
    if not search.tried:
        search.consider(strategy, np.zeros(graph.n_forward, np.uint8), [])


def run(search: Search) -> None:
    """The classic search: on marks where the file has them, else on cuts found."""
    if search.graph.stage_at:
        search_marks(search)
    else:
        search_cuts(search)
