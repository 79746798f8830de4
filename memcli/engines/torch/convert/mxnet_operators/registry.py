"""How MXNet's operators say what they become: one function call with nodes and plain arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memcli.engines.torch.convert.calls import Call, axis_from_front
from memcli.engines.torch.convert.mxnet_operators.attributes import Attributes
from memcli.engines.torch.convert.values import Unsupported

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: the fx node that gives it, and a tensor without data."""

    node: torch.fx.Node
    fake: torch.Tensor


@dataclass
class Site:
    """A node where it stands: its inputs and attributes, and what MXNet says of its outputs."""

    op: str
    name: str
    inputs: Sequence[Value]
    attributes: Attributes
    known: Sequence[Shape] | None  # MXNet's shapes of its outputs
    # an empty constant of the module, which moves to another device with it
    anchor: Callable[[], Value]
    notes: list[str]  # of the whole conversion

    def value(self, i: int = 0) -> Value:
        """A required input.

        Raises:
            Unsupported: it is missing.
        """
        if i >= len(self.inputs):
            raise Unsupported(f"its input {i} is missing")
        return self.inputs[i]

    def shape(self, i: int = 0) -> Shape:
        """Shape of an input."""
        return tuple(self.value(i).fake.shape)

    def rank(self, i: int = 0) -> int:
        """Number of dimensions of an input."""
        return self.value(i).fake.dim()

    def dtype(self, i: int = 0) -> torch.dtype:
        """Type of an input."""
        return self.value(i).fake.dtype

    def is_float(self, i: int = 0) -> bool:
        """Whether an input holds real numbers."""
        return self.dtype(i).is_floating_point

    def axis(self, axis: int, rank: int | None = None) -> int:
        """``axis`` counted from the front.

        Raises:
            Unsupported: out of range.
        """
        return axis_from_front(axis, self.rank() if rank is None else rank)

    def note(self, text: str) -> None:
        """Say something once about the whole graph."""
        if text not in self.notes:
            self.notes.append(text)

    def refuse(self, *flags: str) -> None:
        """Complain of flags that are set and that are not converted.

        Raises:
            Unsupported: one is set.
        """
        for flag in flags:
            if self.attributes.flag(flag):
                raise Unsupported(f"{flag}={self.attributes.text(flag)}")


Translation = Callable[[Site], Call]
OPERATORS: dict[str, Translation] = {}
# Inputs of an operator that are states: by operator, the names that MXNet gives them.
STATES: dict[str, dict[int, str]] = {}
# Operators that stand in many graphs, and why they are not here.
REASONS: dict[str, str] = {
    "_foreach": "control flow is not converted",
    "_while_loop": "control flow is not converted",
    "_cond": "control flow is not converted",
    "Custom": "its code is not in the file",
    "ROIPooling": "PyTorch has no such operator",
    "_contrib_ROIAlign": "PyTorch has no such operator",
    "_contrib_DeformableConvolution": "PyTorch has no such operator",
    "_contrib_ModulatedDeformableConvolution": "PyTorch has no such operator",
    "_contrib_Proposal": "PyTorch has no such operator",
    "_contrib_MultiProposal": "PyTorch has no such operator",
}


def operator(*names: str) -> Callable[[Translation], Translation]:
    """Register a translation; all names that MXNet knows the operator by."""

    def register(translation: Translation) -> Translation:
        for name in names:
            OPERATORS[name] = translation
        return translation

    return register


def direct(function: Callable[..., Any], *names: str) -> None:
    """Register a function that takes the inputs alone."""

    def translation(site: Site) -> Call:
        return Call(function, tuple(site.inputs))

    operator(*names)(translation)
