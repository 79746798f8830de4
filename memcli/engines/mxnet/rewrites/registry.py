"""All rewrites, in the order in which they are made.

Taking a plan off finds this tuple by name (:func:`memcli.formats.symbol.edits.known_rewrites`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcli.engines.mxnet.rewrites.base import Rewrite
from memcli.engines.mxnet.rewrites.convolution_identities import ConvolutionIdentities
from memcli.engines.mxnet.rewrites.flattened_concats import FlattenedConcats
from memcli.engines.mxnet.rewrites.gradient_joins import GradientJoins
from memcli.engines.mxnet.rewrites.normalization_identities import NormalizationIdentities
from memcli.engines.mxnet.rewrites.reserved_blocks import ReservedBlocks
from memcli.engines.mxnet.rewrites.save_barriers import SaveBarriers
from memcli.engines.mxnet.rewrites.split_activation_functions import SplitActivationFunctions
from memcli.formats.symbol.check import attribute
from memcli.formats.symbol.edits import IDENTITY, REWIRED_KEY, inserted_positions

CONVOLUTION_IDENTITIES = ConvolutionIdentities()
RESERVED_BLOCKS = ReservedBlocks()
SAVE_BARRIERS = SaveBarriers()

# A new rewrite is one file and one entry here.
REWRITES: tuple[Rewrite[Any], ...] = (
    FlattenedConcats(),
    GradientJoins(),
    NormalizationIdentities(),
    CONVOLUTION_IDENTITIES,
    SplitActivationFunctions(),
    RESERVED_BLOCKS,
    SAVE_BARRIERS,
)


def changes_tensors(raw: Mapping[str, Any]) -> bool:
    """Whether a rewrite makes other tensors, or in another order, than the graph without it does.

    Identities share what they read, and a reserved block is no tensor of the network.
    """
    nodes = raw["nodes"]
    if any(attribute(node, REWIRED_KEY) is not None for node in nodes):
        return True
    for position in inserted_positions(raw):
        if nodes[position]["op"] == IDENTITY:
            continue
        made_by = next((r for r in REWRITES if r.recognizes(nodes, position)), None)
        if made_by is None or made_by.makes_tensors:
            return True
    return False
