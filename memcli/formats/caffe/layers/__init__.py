"""Translations of layers; importing this registers all of them."""

from memcli.formats.caffe.layers import (
    activations,
    arithmetic,
    convolution,
    dense_block,
    losses,
    normalization,
    pooling,
    shapes,
)

__all__ = [
    "activations",
    "arithmetic",
    "convolution",
    "dense_block",
    "losses",
    "normalization",
    "pooling",
    "shapes",
]
