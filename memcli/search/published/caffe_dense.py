"""``caffe-dense`` and ``caffe-dense-ultra``: what Caffe's DenseBlock layer recomputes.

Source: Tongcheng/caffe, ``src/caffe/layers/DenseBlock_layer.cu``. A block owns one buffer of the
pieces, and for all of its layers together one each of what BatchNorm and ReLU make
(``postBN_data``, ``postBN_4G``, ...), so that those are recomputed, layer by layer, in the backward
pass. The first convolution of each layer keeps its result (``postConv_4GVec``) unless
``BC_ultra_space_efficient`` is set, which recomputes it as well: the pieces alone are kept then.
"""

from __future__ import annotations

from memcli.search.base import Search
from memcli.search.cheap import COSTLY
from memcli.search.published.dense import consider_dropped, dense_blocks

NAME = "caffe-dense"
ULTRA = "caffe-dense-ultra"


def run(search: Search, name: str, ultra: bool) -> None:
    """Consider the plans that keep the pieces of dense blocks.

    Args:
        search: the search on a graph with dense blocks.
        name: the strategy's.
        ultra: whether the first convolutions are recomputed as well.

    Raises:
        BadInput: the graph has no dense blocks.
    """
    graph = search.graph
    blocks = dense_blocks(search, name)
    dropped: set[int] = set()
    for layer in blocks.layers:
        recomputed = (v for v in layer.inside if ultra or graph.op(v) not in COSTLY)
        dropped.update(set(recomputed) - layer.last(graph))
    consider_dropped(search, name, dropped, blocks.rebuilt)
