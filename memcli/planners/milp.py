"""``milp``: small graphs to the end, with a proof.

All plans are tried where they are few (some ten operators). Up to some sixty operators the
mixed-integer program of :mod:`memcli.memory.program` is solved by HiGHS; its plan is one
candidate and its dual bound a proof for all plans. Larger graphs get the relaxed program's bound,
and its marks rounded as a candidate. The exact pool judges, and plans of ``dp`` and ``sqrt`` are
candidates as well: the program minimizes the live peak, the pool can be larger.
"""

from __future__ import annotations

import time

from memcli.memory.bounds import MEDIUM, best_lower_bound, program_bound
from memcli.memory.exhaustive import all_plans
from memcli.planners import dp, sqrt
from memcli.planners.base import Search

NAME = "milp"
_SECONDS = 20.0  # where the user sets no limit


def run(search: Search) -> None:
    """Candidates of the quick strategies, then the program; the bound goes into the notes."""
    graph, model = search.graph, search.model
    dp.run(search)
    sqrt.run(search)
    limit = search.settings.time_limit
    left = _SECONDS if limit is None else limit - (time.monotonic() - search.started)
    if search.out_of_time or graph.can_recompute.sum() > MEDIUM:
        return
    least = all_plans(graph, model)
    if least is not None:
        search.consider(NAME, least.pool_flags, [])
    search.progress("mixed-integer program")
    ceiling = min(found.cost.live_peak_bytes for found in search.tried)
    bound = program_bound(graph, model, left, ceiling)
    if bound.flags is not None:
        search.consider(NAME, bound.flags, [])
    proven = max(bound.bytes, best_lower_bound(graph, model).bytes)
    for found in search.tried:
        found.plan.notes["lower_bound_bytes"] = proven
