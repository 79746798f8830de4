"""Environment variables of MXNet 1.9.1 that a plan may name."""

from __future__ import annotations

from collections.abc import Collection

# Operators that oneDNN runs on CPUs, with layouts and buffers of its own beside MXNet's pool
# (src/operator/nn/mkldnn at the 1.9.1 tag).
_ONEDNN_OPERATORS = frozenset(
    {
        "Activation",
        "BatchNorm",
        "Concat",
        "Convolution",
        "Deconvolution",
        "Flatten",
        "FullyConnected",
        "LRN",
        "LeakyReLU",
        "Pooling",
        "RNN",
        "Reshape",
        "SoftmaxOutput",
        "_contrib_batch_norm_relu",
        "add_n",
        "batch_dot",
        "elemwise_add",
        "log_softmax",
        "slice",
        "softmax",
        "transpose",
        "expand_dims",
        "_copy",
    }
)

# Whose outputs it lays out as it chooses, by what surrounds them; others hand a layout on, or keep
# to the plain one (mkldnn_convolution.cc and mkldnn_deconvolution.cc ask for memory of any format;
# mkldnn_fully_connected.cc for that of the arrays). RNN has weights and states of its own formats.
_CHOOSE_LAYOUTS = frozenset({"Convolution", "Deconvolution", "RNN"})


def onednn_chooses_layouts(operators: Collection[str]) -> bool:
    """Whether oneDNN, where it runs a graph, lays tensors out by what surrounds an operator.

    Args:
        operators: the graph's, by MXNet's canonical names.
    """
    return not _CHOOSE_LAYOUTS.isdisjoint(operators)


def onednn_off(operators: Collection[str]) -> dict[str, str]:
    """The variables that make MXNet run a graph on its own kernels; none where it does anyway.

    Args:
        operators: the graph's, by MXNet's canonical names.
    """
    if _ONEDNN_OPERATORS.isdisjoint(operators):
        return {}
    off = {"MXNET_MKLDNN_ENABLED": "0"}
    if "RNN" in operators:
        # read apart from the other one (src/operator/rnn.cc)
        off["MXNET_USE_MKLDNN_RNN"] = "0"
    return off
