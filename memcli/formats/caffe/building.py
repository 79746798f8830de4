"""An ONNX graph while it grows out of a Caffe net."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from memcli.formats.onnx.signature import KIND_KEY

Shape = tuple[int, ...]
OPSET = 18
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Tensor:
    """A value in the graph."""

    name: str
    shape: Shape
    integer: bool = False

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class Builder:
    """Nodes and the tensors that the file gives, all under names of their own.

    Parameters have no values: each is described as a part of a file of weights, as
    ``save_as_external_data`` does, which planning does not need.
    """

    def __init__(self, weights_file: str, reserved_tensors: set[str], names: set[str]) -> None:
        self.weights_file = weights_file
        self.nodes: list[NodeProto] = []
        self.owners: list[int] = []  # for each node, the position of its layer
        self.given: dict[str, TensorProto] = {}
        self.kinds: dict[str, ValueInfoProto] = {}
        self.tensors: set[str] = set()
        self.names: set[str] = set()
        # Blobs and layers keep their names; what is made up gives way.
        self._reserved_tensors = reserved_tensors
        self._reserved_names = names
        self._constants: dict[tuple[str, Shape, bytes], Tensor] = {}
        self._offset = 0

    def node(
        self,
        owner: int,
        op: str,
        inputs: Sequence[Tensor | None],
        name: str,
        outputs: Sequence[tuple[str, Shape, bool]],
        **attributes: Any,
    ) -> list[Tensor]:
        """A node.

        Args:
            owner: the layer block that it belongs to.
            op: the operator's name.
            inputs: what it reads; None for an optional input that is left out.
            name: that is wanted for it.
            outputs: (wanted name, shape, whether whole numbers) of each.
            **attributes: the operator's.
        """
        made = [Tensor(self._tensor(wanted), shape, i) for wanted, shape, i in outputs]
        self.nodes.append(
            helper.make_node(
                op,
                [t.name if t is not None else "" for t in inputs],
                [t.name for t in made],
                name=self._name(name),
                **attributes,
            )
        )
        self.owners.append(owner)
        return made

    def parameter(self, name: str, shape: Shape, *, trained: bool = True) -> Tensor:
        """A tensor of weights; one that is not trained is a constant."""
        tensor = TensorProto(
            name=self._tensor(name),
            data_type=TensorProto.FLOAT,
            dims=shape,
            data_location=TensorProto.EXTERNAL,
        )
        size = _FLOAT_BYTES * math.prod(shape)
        entries = {"location": self.weights_file, "offset": self._offset, "length": size}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self._offset += size
        return self._give(tensor, "PARAMETER" if trained else "CONSTANT_TENSOR")

    def state(self, name: str, values: np.ndarray) -> Tensor:
        """What training updates by itself, with the values that it starts from."""
        return self._give(numpy_helper.from_array(values, self._tensor(name)), "")

    def constant(self, values: object, dtype: type[np.generic] = np.float32) -> Tensor:
        """A tensor that stays as it is; equal ones are one."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._tensor(f"constant_{len(self._constants)}")
            kind = "CONSTANT_TENSOR" if array.dtype == np.float32 else ""
            self._constants[key] = self._give(numpy_helper.from_array(array, name), kind)
        return self._constants[key]

    def ints(self, *values: int) -> Tensor:
        """A vector of whole numbers."""
        return self.constant(values, np.int64)

    def source(self, name: str, shape: Shape, *, integer: bool) -> Tensor:
        """A free input, under its own name."""
        self.tensors.add(name)
        return Tensor(name, shape, integer)

    def _give(self, tensor: TensorProto, kind: str) -> Tensor:
        self.given[tensor.name] = tensor
        if kind:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            value.metadata_props.add(key=KIND_KEY, value=kind)
            self.kinds[tensor.name] = value
        integer = tensor.data_type == TensorProto.INT64
        return Tensor(tensor.name, tuple(tensor.dims), integer)

    def _name(self, wanted: str) -> str:
        own = wanted in self._reserved_names
        return _unique(wanted, self.names, set() if own else self._reserved_names)

    def _tensor(self, wanted: str) -> str:
        own = wanted in self._reserved_tensors
        return _unique(wanted, self.tensors, set() if own else self._reserved_tensors)


def _unique(wanted: str, used: set[str], reserved: set[str]) -> str:
    name, count = wanted, 1
    while name in used or name in reserved:
        name = f"{wanted}_{count}"
        count += 1
    used.add(name)
    return name
