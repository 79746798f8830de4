"""``milp``: small graphs to the end, with a proof.

All plans are tried where they are few (some ten operators). Up to some sixty operators the
mixed-integer program of :mod:`memcli.engines.mxnet.memory.integer_bound` is solved by HiGHS; its
plan is one candidate and its dual bound a proof for all plans. Larger graphs get the relaxed
program's bound, and its marks rounded as a candidate. The exact pool judges, and plans of ``dp``
and ``sqrt`` are candidates as well: the program minimizes what any pool needs, MXNet's can be
larger.

For PyTorch all plans of tiny graphs are tried as well; the proof of larger ones is the search of
:mod:`memcli.engines.torch.memory.backwards_bound`, which has no plan to give.
"""

from __future__ import annotations

from memcli.graph.training import Flags
from memcli.search import dp, sqrt
from memcli.search.base import Search
from memcli.time_limit import finished_by

NAME = "milp"
_SECONDS = 20.0  # where the user sets no limit


def run(search: Search) -> None:
    """Consider plans of the quick strategies, then the program's; the bound goes into the notes."""
    dp.run(search)
    sqrt.run(search)
    if search.out_of_time or not search.space.is_provable:
        return
    least = search.best_of_all()
    if least is not None:
        search.consider(NAME, least, [])
    search.progress("mixed-integer program")
    seconds = _SECONDS if search.until is None else search.seconds_left
    nothing: tuple[int, Flags | None] = (0, None)
    # the solver keeps its time only roughly
    proven, flags = finished_by(search.until, lambda: search.prove(max(0.0, seconds)), nothing)
    if flags is not None:
        search.consider(NAME, flags, [])
    for found in search.tried:
        found.plan.notes["lower_bound_bytes"] = proven
