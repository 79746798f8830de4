"""``none``: recompute nothing; the graph as it would train without a plan."""

from __future__ import annotations

import numpy as np

from memcli.search.base import Search
from memcli.search.strategy import Strategy

NAME = "none"


def run(search: Search) -> None:
    """Consider the one plan."""
    search.consider(NAME, np.zeros(search.graph.n_forward, np.uint8), [])


STRATEGY = Strategy(NAME, "recompute nothing", run)
