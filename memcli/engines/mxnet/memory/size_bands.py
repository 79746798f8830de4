"""A bound for the pool by sizes: a block holds one tensor at a time, of its own size or smaller.

Cut sizes into bands ``0 = b_0 < b_1 < ... < b_m``, the last one the largest size, and let a tensor
weigh in band ``k`` what of its size lies between ``b_(k-1)`` and ``b_k``. A block weighs in no
band less than any tensor that it ever holds, so that all blocks together weigh in band ``k`` at
least what is alive at any one moment does. The weights of a block over all bands add up to its
size: the pool takes at least the sum, over bands, of the most that is alive at once, each band at
a moment of its own. Under every plan each of these is at least what :mod:`memcli.graph.lifetimes`
and :mod:`memcli.engines.mxnet.memory.path_bound` prove for live peaks, with these weights for
sizes.

Which bands give the most is found by dynamic programming over the sizes of the graph. One band is
the bound for live peaks, so that this one is never under it. It holds for any allocator that gives
a tensor a block of its own for as long as it lives, of a size that does not change within a step.
"""

from __future__ import annotations

import numpy as np

from memcli.engines.mxnet.memory.path_bound import path_bound
from memcli.graph.lifetimes import Lifetimes, step_bound
from memcli.graph.training import Ints, TrainingGraph

_MOST_SIZES = 160  # ends of bands for which moments are looked at
_MOST_NODES = 250_000  # nodes of paths looked for in all, over pairs of ends of bands
_MOST_ENDS = 24  # of bands for which paths are looked for


def ends_of_bands(facts: Lifetimes, most: int) -> list[int]:
    """The ends of bands of sizes: those of the tensors that take the most bytes.

    More bands prove more, for a plan and for all.

    Args:
        facts: lifetimes of the graph's tensors.
        most: bands, at most.

    Returns:
        Bytes, rising: 0, and the upper end of each band, the last the largest size.
    """
    sizes, which = np.unique(facts.bytes[facts.bytes > 0], return_inverse=True)
    if len(sizes) > most:
        taken = np.bincount(which) * sizes
        chosen = np.argsort(-taken, kind="stable")[: most - 1]
        sizes = np.unique(np.append(sizes[chosen], sizes[-1]))
    return [0, *sizes.tolist()]


def weight_in_band(size: Ints, low: int, high: int) -> Ints:
    """What of each size lies between two ends of bands, all in bytes."""
    return np.clip(size, low, high) - low


def in_band(facts: Lifetimes, low: int, high: int) -> Lifetimes:
    """The facts with what of each tensor's size lies in a band for its size."""
    return facts.weighed(weight_in_band(facts.bytes, low, high))


def pool_bound(graph: TrainingGraph, facts: Lifetimes) -> int:
    """Bytes that the pool takes under every plan, at any match range.

    Some tenths of a second for hundreds of operators, two seconds at 50,000. 0 where the
    facts do not hold (``Lifetimes.sound``).
    """
    if not facts.sound or not facts.bytes.any():
        return 0
    fine = ends_of_bands(facts, _MOST_SIZES)
    pairs = max(1, _MOST_NODES // graph.n_nodes)
    ends = set(ends_of_bands(facts, min(_MOST_ENDS, int(np.sqrt(2 * pairs)))))
    most = [0] * len(fine)  # proven for all bands up to each end
    for j, high in enumerate(fine):
        if not j:
            continue
        for i, low in enumerate(fine[:j]):
            if i < j - 1 and not (low in ends and high in ends):
                continue
            band = in_band(facts, low, high)
            most[j] = max(most[j], most[i] + step_bound(band))
            if low in ends and high in ends:
                most[j] = most[i] + path_bound(graph, band, most[j] - most[i])
    return most[-1]
