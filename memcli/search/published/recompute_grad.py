"""``recompute-grad``: every dense layer is recomputed as a whole, as TensorFlow's DenseNet does.

Source: joeyearsley/efficient_densenet_tensorflow, ``models/densenet_creator.py``:
``tf.contrib.layers.recompute_grad`` around each layer, from its BatchNorm to its last convolution.
What goes in (the Concat, outside of it) and what comes out stays.
"""

from __future__ import annotations

from memcli.search.base import Search
from memcli.search.published.dense import consider_dropped, dense_blocks

NAME = "recompute-grad"


def run(search: Search) -> None:
    """Consider the plans that keep what enters and leaves each layer."""
    layers = dense_blocks(search, NAME).layers
    inside = {v for layer in layers for v in layer.inside}
    consider_dropped(search, NAME, inside.difference(*(x.last(search.graph) for x in layers)))
