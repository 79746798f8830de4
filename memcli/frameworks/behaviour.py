"""What the Torch7 module that stands for an operator does with its buffers.

Source: torch/nn and soumith/cudnn.torch. A module owns ``output`` and ``gradInput``, which stay
allocated once they are. Exceptions are named in :class:`Behaviour`; what Torch had no module for
is taken for a plain one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memcli.graph.dense_blocks import CONCATS


@dataclass(frozen=True)
class Behaviour:
    """A module's type, which sharing schemes go by, and how it differs from a plain one.

    ``in_place``: where it may it overwrites its input, and in the backward pass the gradient of
    its output (``cudnn.ReLU(true)``, ``nn.CAddTable(true)``). ``reads_output``: its gradient needs
    what it made, which nobody may overwrite then. ``view``: it makes and holds nothing
    (``nn.Reshape``). ``noise``: it holds a mask as large as its output (``nn.Dropout``).
    """

    module: str
    in_place: bool = False
    reads_output: bool = False
    view: bool = False
    noise: bool = False

    @property
    def normalises(self) -> bool:
        """Whether it is a BatchNorm, which can be recomputed before its backward."""
        return self.module == _BATCH_NORM

    @property
    def adds(self) -> bool:
        """Whether it adds its inputs up."""
        return self.module == _ADD

    @property
    def concatenates(self) -> bool:
        """Whether it copies its inputs one behind the other."""
        return self.module == _CONCAT


_BATCH_NORM, _ADD, _CONCAT = "cudnn.SpatialBatchNormalization", "nn.CAddTable", "nn.Concat"
_CONVOLUTION = "cudnn.SpatialConvolution"
_BACKWARDS, _LINEAR = "cudnn.SpatialFullConvolution", "nn.Linear"
_MAXIMUM = Behaviour("cudnn.SpatialMaxPooling", reads_output=True)
_AVERAGE = Behaviour("cudnn.SpatialAveragePooling")
_RELU = Behaviour("cudnn.ReLU", in_place=True, reads_output=True)
_SIGMOID = Behaviour("cudnn.Sigmoid", reads_output=True)
_TANH = Behaviour("cudnn.Tanh", reads_output=True)
_SOFTMAX = Behaviour("cudnn.SoftMax", reads_output=True)
_LOG_SOFTMAX = Behaviour("cudnn.LogSoftMax", reads_output=True)

# Operators of ONNX and of MXNet.
_BEHAVIOURS = {
    **dict.fromkeys(CONCATS, Behaviour(_CONCAT)),
    **dict.fromkeys(("Conv", "Convolution", "Convolution_v1"), Behaviour(_CONVOLUTION)),
    **dict.fromkeys(("ConvTranspose", "Deconvolution"), Behaviour(_BACKWARDS)),
    **dict.fromkeys(("Gemm", "MatMul", "FullyConnected"), Behaviour(_LINEAR)),
    **dict.fromkeys(
        ("BatchNormalization", "BatchNorm", "BatchNorm_v1", "CuDNNBatchNorm"),
        Behaviour(_BATCH_NORM),
    ),
    **dict.fromkeys(("Relu", "relu"), _RELU),
    **dict.fromkeys(("Sigmoid", "sigmoid"), _SIGMOID),
    **dict.fromkeys(("Tanh", "tanh"), _TANH),
    **dict.fromkeys(("Softmax", "softmax", "SoftmaxActivation"), _SOFTMAX),
    **dict.fromkeys(("LogSoftmax", "log_softmax"), _LOG_SOFTMAX),
    **dict.fromkeys(("Exp", "exp"), Behaviour("nn.Exp", reads_output=True)),
    **dict.fromkeys(("Sqrt", "sqrt"), Behaviour("nn.Sqrt", reads_output=True)),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), _MAXIMUM),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _AVERAGE),
    **dict.fromkeys(
        (
            "Add",
            "Sum",
            "elemwise_add",
            "_plus",
            "_Plus",
            "broadcast_add",
            "add_n",
            "ElementWiseSum",
        ),
        Behaviour(_ADD, in_place=True),
    ),
    **dict.fromkeys(("Dropout", "dropout"), Behaviour("nn.Dropout", noise=True)),
    **dict.fromkeys(
        (
            "Flatten",
            "flatten",
            "Reshape",
            "reshape",
            "Identity",
            "_copy",
            "identity",
            "Squeeze",
            "squeeze",
            "Unsqueeze",
            "expand_dims",
            "Transpose",
            "transpose",
            "BlockGrad",
        ),
        Behaviour("nn.Reshape", view=True),
    ),
}
_ACTIVATIONS = {"relu": _RELU, "sigmoid": _SIGMOID, "tanh": _TANH}


def behaviour_of(operator: str, attrs: Mapping[str, str]) -> Behaviour:
    """The module for an operator; ``attrs`` are MXNet's, where one operator has several forms."""
    if operator in ("Activation", "Activation_v1"):
        kind = attrs.get("act_type", "")
        return _ACTIVATIONS.get(kind, Behaviour(f"nn.{kind}"))
    if operator in ("Pooling", "Pooling_v1"):
        return _MAXIMUM if attrs.get("pool_type", "max") == "max" else _AVERAGE
    return _BEHAVIOURS.get(operator, Behaviour(operator))
