"""``optmemory-0`` to ``optmemory-4``: what LuaTorch's DenseNet keeps and what it recomputes.

Source: liuzhuang13/DenseNet, ``models/init.lua``, ``models/DenseConnectLayer.lua`` and
``models/README.md``; Pleiss et al., "Memory-Efficient Implementation of DenseNets", arXiv
1707.06990. Levels 0 to 2 keep every feature map and differ in which gradients share memory, which
is the engine's own business here; level 3 puts the Concats of a block together anew for the
backward pass, level 4 recomputes the BatchNorm and ReLU ahead of each first convolution as well.
What these levels take under Torch7's own buffers is :mod:`memcli.frameworks`.

``efficient-densenet`` is the same as level 4: gpleiss/efficient_densenet_pytorch wraps Concat,
BatchNorm, ReLU and the first convolution in a checkpoint and keeps the convolution's result. (The
checkpoint recomputes that convolution without need; a plan does not.)
"""

from __future__ import annotations

from memcli.search import none
from memcli.search.base import Search
from memcli.search.published.dense import consider_dropped, dense_blocks, normalised_heads

NAMES = tuple(f"optmemory-{level}" for level in range(5))
PYTORCH = "efficient-densenet"
_KEEPING = 2  # the last level that keeps every feature map


def run(search: Search, name: str, level: int) -> None:
    """Consider the plans of one level.

    Args:
        search: the search on a graph.
        name: the strategy's.
        level: 0 to 4, as in LuaTorch's ``-optMemory``.

    Raises:
        BadInput: the level drops feature maps, and the graph has no dense blocks.
    """
    if level <= _KEEPING:
        none.run(search)
        return
    blocks = dense_blocks(search, name)
    dropped: set[int] = set()
    if level > _KEEPING + 1:
        for layer in blocks.layers:
            dropped |= normalised_heads(search.graph, layer)
    consider_dropped(search, name, dropped, blocks.rebuilt)
