"""How layers say what they become: a few ONNX nodes, with shapes known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memcli.errors import BadInput
from memcli.formats.caffe.building import Builder, Shape, Tensor
from memcli.formats.caffe.net import Layer, Net
from memcli.quoting import shown


class Unsupported(Exception):
    """What a layer asks for and ONNX, or memcli, cannot do. All of a net are reported at once."""


@dataclass
class LayerCall:
    """A layer where it stands: its bottoms, parameters and place in the graph."""

    net: Net
    position: int
    layer: Layer
    bottoms: list[Tensor]
    builder: Builder
    shared: dict[str, tuple[Tensor, Shape]]  # parameters by the names that nets share them under

    @property
    def p(self) -> Any:
        """The layer's LayerParameter."""
        return self.layer.parameter

    @property
    def x(self) -> Tensor:
        """The first bottom."""
        return self.bottoms[0]

    def wrong(self, what: str, hint: str = "") -> BadInput:
        """An error that names the layer."""
        return BadInput(f"{self.net.path}: {self.layer.where}: {what}", hint)

    def takes_images(self) -> None:
        """Refuses a layer whose first bottom is not of four dimensions.

        Raises:
            BadInput: it has another number.
        """
        if self.x.rank != 4:
            raise self.wrong(
                f"takes images of four dimensions; its bottom has the shape {self.x.shape}"
            )

    def take(self, bottoms: int | tuple[int, int], tops: int | tuple[int, int] = 1) -> None:
        """Refuses a layer with other numbers of bottoms and tops (each one, or from and to).

        Raises:
            BadInput: another number.
        """
        for what, wanted, have in (
            ("bottom", bottoms, len(self.layer.bottoms)),
            ("top", tops, len(self.layer.tops)),
        ):
            low, high = (wanted, wanted) if isinstance(wanted, int) else wanted
            if not low <= have <= high:
                few = f"{low} or more" if have < low else f"up to {high}"
                few = str(low) if low == high else few
                raise self.wrong(f"has {have} {what}s; the type takes {few}")

    def axis(self, axis: int, rank: int | None = None) -> int:
        """``axis`` counted from the front.

        Raises:
            BadInput: out of range.
        """
        rank = self.x.rank if rank is None else rank
        if not -rank <= axis < rank:
            raise self.wrong(f"axis {axis} of a blob of {rank} dimensions")
        return axis % rank

    def step(
        self,
        suffix: str,
        op: str,
        inputs: Sequence[Tensor | None],
        shape: Shape,
        *,
        integer: bool = False,
        **attributes: Any,
    ) -> Tensor:
        """A node on the way to the layer's result."""
        name = f"{self.layer.name}/{suffix}"
        return self.builder.node(
            self.position, op, inputs, name, [(name, shape, integer)], **attributes
        )[0]

    def result(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        shape: Shape,
        *,
        top: int = 0,
        integer: bool = False,
        **attributes: Any,
    ) -> Tensor:
        """The node that makes a top; the layer's name is its."""
        name = self.layer.name if top == 0 else f"{self.layer.name}/{top}"
        return self.builder.node(
            self.position, op, inputs, name, [(self.blob(top), shape, integer)], **attributes
        )[0]

    def blob(self, top: int = 0) -> str:
        """The tensor's name that a top should have: its own, unless it was written before."""
        if top >= len(self.layer.tops):
            return self.layer.name if top == 0 else f"{self.layer.name}/{top}"
        name = self.layer.tops[top]
        return f"{name}/{self.layer.name}" if name in self.builder.tensors else name

    def weight(self, index: int, what: str, shape: Shape, *, stored: Shape | None = None) -> Tensor:
        """The layer's parameter ``index``, one that it shares by name, or a fixed one (lr_mult 0).

        Args:
            index: of the layer's blobs.
            what: what it is, for its name.
            shape: as Caffe has it.
            stored: as the graph takes it, with the same elements; None: the same.

        Raises:
            BadInput: shared with a layer whose parameter has another shape.
        """
        spec = self.p.param[index] if index < len(self.p.param) else None
        stored = shape if stored is None else stored
        name = f"{self.layer.name}.{what}"
        if spec is None or not spec.name:
            trained = spec is None or spec.lr_mult != 0
            return self.builder.parameter(name, stored, trained=trained)
        if spec.name not in self.shared:
            tensor = self.builder.parameter(spec.name, stored, trained=spec.lr_mult != 0)
            self.shared[spec.name] = tensor, shape
        tensor, owned = self.shared[spec.name]
        if owned != shape:
            permissive = spec.share_mode == 1 and math.prod(owned) == math.prod(shape)
            if not permissive:
                raise self.wrong(
                    f"its parameter {shown(spec.name)} has shape {shape}, and the layer that it is "
                    f"shared with has {owned}"
                )
        if tensor.shape != stored:
            tensor = self.step(
                f"{what}_shared", "Reshape", [tensor, self.builder.ints(*stored)], stored
            )
        return tensor

    def reshaped(self, x: Tensor, shape: Shape, suffix: str = "") -> Tensor:
        """``x`` in another shape, whatever the batch; the layer's result where there is no suffix.

        Leading dimensions that stay are copied.
        """
        if x.shape == shape and suffix:
            return x
        target = list(shape)
        if x.shape and shape and x.shape[0] == shape[0]:
            target[0] = 0
        elif x.count and 0 not in shape:
            target[0] = -1  # what holds the batch in it
        inputs = [x, self.builder.ints(*target)]
        if suffix:
            return self.step(suffix, "Reshape", inputs, shape, integer=x.integer)
        return self.result("Reshape", inputs, shape, integer=x.integer)

    def times(self, x: Tensor, factor: float, suffix: str = "") -> Tensor:
        """``x`` by a number."""
        return self._with_number("Mul", x, factor, suffix)

    def plus(self, x: Tensor, number: float, suffix: str = "") -> Tensor:
        """``x`` and a number."""
        return self._with_number("Add", x, number, suffix)

    def _with_number(self, op: str, x: Tensor, number: float, suffix: str) -> Tensor:
        inputs = [x, self.builder.constant(number)]
        if suffix:
            return self.step(suffix, op, inputs, x.shape)
        return self.result(op, inputs, x.shape)

    def labels(self, x: Tensor, suffix: str = "labels") -> Tensor:
        """``x`` as whole numbers."""
        if x.integer:
            return x
        return self.step(suffix, "Cast", [x], x.shape, integer=True, to=7)

    def sum(self, x: Tensor, axes: Sequence[int], suffix: str, *, mean: bool = False) -> Tensor:
        """``x`` summed up (or its mean) over axes, which go."""
        if not axes:
            return x
        shape = tuple(n for d, n in enumerate(x.shape) if d not in axes)
        op = "ReduceMean" if mean else "ReduceSum"
        return self.step(suffix, op, [x, self.builder.ints(*axes)], shape, keepdims=0)


# One tensor for each top; None for a top that is not made (and that nothing may read).
Result = Tensor | list[Tensor | None]
Translation = Callable[[LayerCall], Result]
LAYERS: dict[str, Translation] = {}
# Types that memcli knows and does not translate, and why.
REASONS: dict[str, str] = {
    "Python": "its code is in another file",
    "Filter": "the shape of its output depends on data",
    "LSTM": "recurrent layers over sequences of open length are not translated",
    "RNN": "recurrent layers over sequences of open length are not translated",
    "InfogainLoss": "its matrix is in another file",
    "Im2col": "it is Caffe's own helper of convolutions",
    "PriorBox": "detection: it has no gradient",
    "MultiBoxLoss": "detection: which boxes match depends on data",
    "DetectionOutput": "detection: the shape of its output depends on data",
    "ROIPooling": "regions depend on data",
    "Proposal": "regions depend on data",
}
# Layers that training does not need.
LEFT_OUT = {"Accuracy", "Silence", "HDF5Output"}


def layer(*types: str) -> Callable[[Translation], Translation]:
    """Register a translation."""

    def register(translation: Translation) -> Translation:
        for kind in types:
            LAYERS[kind] = translation
        return translation

    return register
