"""``none``: recompute nothing; the graph as it would train without a plan."""

from __future__ import annotations

import numpy as np

from memcli.search.base import Search

NAME = "none"


def run(search: Search) -> None:
    """Consider the one plan."""
    search.consider(NAME, np.zeros(search.graph.n_forward, np.uint8), [])
