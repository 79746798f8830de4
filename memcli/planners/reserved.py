"""Blocks of the pool that a plan reserves: which at first, and which are needless.

What reserving is for: :mod:`memcli.rewrites.reserved_blocks`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from memcli.graph.training import Flags, Ints
from memcli.memory.fast_pool import NOTHING
from memcli.memory.pool_layout import MOST_RESERVED
from memcli.planners.base import Found, Search

_SPARE = 8  # places for more blocks than a plan needs at first
# So much more memory without blocks is better than with them, a part of it: of all of them, and of
# the needless ones together.
_ALL, _SOME = 1.005, 1.0002
_LARGE = 20_000  # nodes; one by one takes too long then


def first_blocks(search: Search, flags: Flags) -> Ints:
    """What any pool needs for a plan, and places for more (0)."""
    blocks = search.model.needed_blocks(flags)
    blocks = blocks[blocks >= search.block_sizes[0]][: MOST_RESERVED - _SPARE]
    return np.concatenate([blocks, np.zeros(_SPARE, np.int64)])


def without_needless(search: Search, found: Found) -> Found:
    """The plan with none of its reserved blocks, or fewer, where it hardly takes more memory."""
    plan, model = found.plan, search.model
    if not len(plan.reserved):
        return found
    pool, budget = found.cost.pool_bytes, search.settings.budget
    most = {part: part * pool for part in (_ALL, _SOME)}
    if budget is not None and pool <= budget:
        most = dict.fromkeys(most, min(most[_ALL], float(budget)))
    bare = model.evaluate(plan.recompute, search.match_ranges)
    if bare.pool_bytes <= most[_ALL]:
        return Found(replace(plan, match_range=bare.match_range, reserved=NOTHING), bare)
    if search.graph.n_nodes > _LARGE:
        return found
    kept, cost = plan.reserved, found.cost
    for at in range(len(kept) - 1, -1, -1):
        fewer = np.delete(kept, at)
        tried = model.evaluate(plan.recompute, (plan.match_range,), fewer)
        if tried.pool_bytes <= most[_SOME]:
            kept, cost = fewer, tried
    return Found(replace(plan, reserved=kept), cost)
