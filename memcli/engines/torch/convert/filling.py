"""Weights for graphs whose file has none: the same for the same seed, and fit for training."""

from __future__ import annotations

import hashlib
import math

import onnx
import torch

from memcli.engines.torch.convert.default_roles import nodes_of

_NORMS = (
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
)
# What hands a weight on without changing what it is.
_THROUGH = ("Identity", "Cast", "CastLike", "Expand", "Reshape", "Unsqueeze", "Squeeze")
_EMBEDDING_DEVIATION = 0.02


class Filling:
    """Values for tensors without data, decided by the first operator that reads them.

    A normalization's scale and variance are ones, biases and means zeros. Weights are normal
    with mean 0 and the variance of He et al. (2015), 2 / fan-in, for convolutions, 1 / fan-in for
    matrix products and recurrent layers; embeddings have a deviation of 0.02. Convolutions that end
    a residual branch have half the deviation: where a file has lost its normalizations, the sums
    would else grow until a softmax saturates. Each tensor has its own generator, seeded by ``seed``
    and its name, so that other tensors do not change it.
    """

    def __init__(self, graph: onnx.GraphProto, seed: int) -> None:
        self._seed = seed
        self._readers: dict[str, tuple[onnx.NodeProto, int]] = {}
        for node in nodes_of(graph):
            if node.op_type in ("Shape", "Size"):
                continue
            # CastLike reads nothing but the type of its second input.
            inputs = node.input[:1] if node.op_type == "CastLike" else node.input
            for i, name in enumerate(inputs):
                self._readers.setdefault(name, (node, i))

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Values for the tensor called ``name``; zeros where the type is not floating point."""
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype)
        reader, slot, transposed = self._reader(name)
        kind = reader.op_type if reader is not None else ""
        if kind in _NORMS:
            return torch.full(shape, 1.0 if slot in (1, 4) else 0.0, dtype=dtype)
        if len(shape) < 2 or math.prod(shape) == max(shape):
            return torch.full(shape, 1.0 if kind in ("Mul", "Div", "Sqrt") else 0.0, dtype=dtype)
        deviation = self._deviation(reader, slot, shape, transposed)
        if reader is not None and reader.op_type == "Conv" and self._goes_into_sum(reader):
            deviation /= 2
        generator = torch.Generator().manual_seed(self._seed_of(name))
        return torch.empty(shape).normal_(0.0, deviation, generator=generator).to(dtype)

    def _seed_of(self, name: str) -> int:
        text = f"{self._seed}:{name}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:6], "little")

    def _reader(self, name: str) -> tuple[onnx.NodeProto | None, int, bool]:
        """What reads the tensor in the end, at which input, and whether it was transposed."""
        transposed = False
        seen: set[str] = set()
        while name in self._readers and name not in seen:
            seen.add(name)
            node, slot = self._readers[name]
            if slot == 0 and node.op_type in (*_THROUGH, "Transpose"):
                transposed ^= node.op_type == "Transpose"
                name = node.output[0]
                continue
            return node, slot, transposed
        return None, 0, transposed

    def _goes_into_sum(self, node: onnx.NodeProto) -> bool:
        """Whether the output is added to another, maybe after a normalization."""
        reader = self._readers.get(node.output[0])
        if reader is not None and reader[0].op_type == "BatchNormalization":
            reader = self._readers.get(reader[0].output[0])
        return reader is not None and reader[0].op_type in ("Add", "Sum")

    @staticmethod
    def _deviation(
        reader: onnx.NodeProto | None, slot: int, shape: tuple[int, ...], transposed: bool
    ) -> float:
        kind = reader.op_type if reader is not None else ""
        if kind == "Gather" or (kind == "Add" and len(shape) > 1):
            return _EMBEDDING_DEVIATION
        if kind == "Conv" or (kind == "" and len(shape) > 2):
            return math.sqrt(2.0 / math.prod(shape[1:]))
        if kind == "ConvTranspose":
            return math.sqrt(2.0 / (shape[0] * math.prod(shape[2:])))
        if kind in ("LSTM", "GRU", "RNN"):
            return 0.0 if slot == 3 else math.sqrt(1.0 / shape[-1])
        if kind == "Gemm" and reader is not None:
            flag = "transB" if slot == 1 else "transA"
            transposed ^= any(a.name == flag and a.i for a in reader.attribute)
        return math.sqrt(1.0 / (shape[-1] if transposed else shape[-2]))
