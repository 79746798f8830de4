"""How operators say what they become: one function call with values and plain arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch

from memcli.engines.torch.convert.calls import Call, axis_from_front
from memcli.engines.torch.convert.default_roles import STATE
from memcli.engines.torch.convert.values import Unsupported, Value, stored_tensor

_MOST_INTS = 1 << 16
_LARGEST = float(np.finfo(np.float32).max)
NOT_KNOWN = "depends on data, not on shapes and constants alone"


@dataclass
class Host:
    """An output that is known at conversion whatever the inputs hold (shapes, constants).

    As ONNX's tensor where the file has no elements of it.
    """

    tensor: torch.Tensor | onnx.TensorProto


@dataclass
class Site:
    """A node where it stands: its inputs, attributes and the version of its operator set."""

    node: onnx.NodeProto
    opset: int
    inputs: Sequence[Value | None]
    used: Collection[str]
    notes: list[str]
    attributes: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.attributes = {a.name: _plain(a) for a in self.node.attribute}

    @property
    def name(self) -> str:
        return self.node.name or next((name for name in self.node.output if name), "")

    def has(self, i: int) -> bool:
        """Whether the optional input is there."""
        return i < len(self.inputs) and self.inputs[i] is not None

    def value(self, i: int) -> Value:
        """A required input."""
        value = self.inputs[i] if i < len(self.inputs) else None
        if value is None:
            raise Unsupported(f"its input {i} is missing")
        return value

    def optional(self, i: int) -> Value | None:
        return self.inputs[i] if self.has(i) else None

    def values(self) -> list[Value]:
        """All inputs of an operator that takes any number of them."""
        return [self.value(i) for i in range(len(self.inputs))]

    def shape(self, i: int = 0) -> tuple[int, ...]:
        return self.value(i).shape

    def rank(self, i: int = 0) -> int:
        return len(self.value(i).shape)

    def dtype(self, i: int = 0) -> torch.dtype:
        return self.value(i).dtype

    def is_float(self, i: int = 0) -> bool:
        return self.dtype(i).is_floating_point

    def axis(self, axis: int, rank: int | None = None) -> int:
        """``axis`` counted from the front.

        Raises:
            Unsupported: out of range.
        """
        return axis_from_front(axis, self.rank() if rank is None else rank)

    def array(self, i: int) -> torch.Tensor:
        """The value of an input that shapes and constants decide.

        Raises:
            Unsupported: it depends on data, or the file does not hold it.
        """
        value = self.value(i)
        known = value.known if value.known is not None else stored_tensor(value)
        if known is None:
            why = NOT_KNOWN if value.role is None else "has no elements in the file"
            raise Unsupported(f"its input {i} ({value.name!r}) {why}")
        return known

    def ints(self, i: int) -> tuple[int, ...]:
        """Input ``i`` as sizes, axes or places.

        Raises:
            Unsupported: as :meth:`array`, or more of them than any operator has use for.
        """
        array = self.array(i)
        if array.numel() > _MOST_INTS:
            raise Unsupported(f"its input {i} ({self.value(i).name!r}) has {array.numel()} numbers")
        return tuple(int(item) for item in array.reshape(-1).tolist())

    def number(self, i: int) -> Any:
        """A scalar input as a Python number."""
        array = self.array(i)
        if array.numel() != 1:
            raise Unsupported(f"its input {i} should be a scalar")
        return _number(array)

    def scalar(self, i: int, other: int) -> Any:
        """Input ``i`` as a Python number where that cannot change the result's shape or type.

        An operator with a number saves no tensor for it, as the layer that was exported.
        """
        value = self.value(i)
        if value.known is None or value.known.numel() != 1 or value.known.is_complex():
            return value
        if len(value.shape) > self.rank(other) or self.value(other).known is not None:
            return value
        return _number(value.known)

    def get(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)

    def ints_of(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...] | None:
        found = self.attributes.get(name, default)
        return None if found is None else tuple(int(item) for item in found)

    def is_used(self, output: int) -> bool:
        """Whether anything reads the output."""
        return len(self.node.output) > output and self.node.output[output] in self.used

    def is_state(self, i: int) -> bool:
        """Whether the input is a state of the module: what training updates by itself."""
        return self.has(i) and self.value(i).role == STATE

    def constant(self, tensor: torch.Tensor, what: str) -> Value:
        """A constant of the node's own, which the module holds where the call reads it."""
        return Value(f"{self.name}_{what}", known=tensor)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


Result = Call | Host | Value
Translation = Callable[[Site], Result]
OPERATORS: dict[str, Translation] = {}
# Operators that stand in many graphs, and why they are not here.
REASONS: dict[str, str] = {
    "Loop": "loops are not converted",
    "Scan": "loops are not converted",
    "If": "its condition " + NOT_KNOWN,
    "NonMaxSuppression": "its output's shape depends on data",
    **dict.fromkeys(
        (
            "QuantizeLinear",
            "DequantizeLinear",
            "DynamicQuantizeLinear",
            "QLinearConv",
            "QLinearMatMul",
            "ConvInteger",
            "MatMulInteger",
        ),
        "quantized to integers: no gradient passes",
    ),
}


def operator(*names: str) -> Callable[[Translation], Translation]:
    """Register a translation for operators of ONNX's own domain."""

    def register(translation: Translation) -> Translation:
        for name in names:
            OPERATORS[name] = translation
        return translation

    return register


def shortest(value: float) -> float:
    """The decimal number that a float32 stands for: 0.1 and not 0.10000000149011612.

    The layers that were exported took their constants in double precision.
    """
    number = float(str(np.float32(value)))
    # The shortest decimal of the largest float32 is larger than it, which PyTorch refuses.
    return number if abs(number) <= _LARGEST or np.isinf(number) else value


def _number(tensor: torch.Tensor) -> Any:
    number = tensor.reshape(()).item()
    return shortest(number) if tensor.dtype is torch.float32 else number


def _plain(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type == onnx.AttributeProto.FLOAT:
        return shortest(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in value]
    return value
