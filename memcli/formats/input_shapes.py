"""Concrete shapes for a file's free inputs: the user's, the file's own, and guesses."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Protocol

from memcli.errors import BadInput
from memcli.formats.trained_file import TensorValue, TrainedFile
from memcli.quoting import shown

Dim = int | str | None


class ShapesAsked(Protocol):
    """What the user says of shapes; :class:`memcli.engines.mxnet.record.ShapeRequest` is one."""

    shapes: dict[str, list[int]]
    unnamed: list[int] | None
    batch: int | None
    dtype: str | None
    dtypes: dict[str, str]


@dataclass(frozen=True)
class BoundShapes:
    """Shapes and types of all free inputs, in the file's order."""

    shapes: dict[str, list[int]]
    dtypes: dict[str, str]
    assumed: list[str]  # inputs with a dimension that was guessed
    symbols: dict[str, int]  # what each symbolic dimension of the file was bound to


DEFAULT_BATCH = 32  # as for MXNet graphs
_IMAGE_SIDE = 224
_SEQUENCE = 128
_CHANNELS = (1, 3, 4)
_FLOAT_TYPES = ("float16", "bfloat16", "float32", "float64")
_BATCH_NAME = re.compile(r"batch|^n$|^bs$|^b$|^unk_|dynamicdimension", re.IGNORECASE)
_SIDE_NAME = re.compile(r"height|width|^[hw]$|size|dim_?[23]", re.IGNORECASE)
_LENGTH_NAME = re.compile(r"seq|len|time|token|frame|step|^[tls]$", re.IGNORECASE)
# Lengths of what a decoder has generated before: nothing that training has.
_NO_GUESS = re.compile(r"past|total|cache", re.IGNORECASE)


def bind_shapes(file: TrainedFile, asked: ShapesAsked) -> BoundShapes:
    """A shape for every free input; one value for each symbolic dimension, throughout.

    What ``--shape`` says goes first, then the file's fixed dimensions, then ``--batch`` for the
    leading ones, then guesses: a batch of 32 (or what a label of a fixed size says), sides of 224
    for images, sequences of 128. A fixed batch in the file gives way to what the user asks for:
    the leading dimension of the first input, and of labels that have the same.

    Raises:
        BadInput: no such input, a wrong rank, a fixed dimension that does not fit, two values for
            one symbolic dimension, a dimension that no guess fits, an impossible type.
    """
    return _Binding(file, asked).bound()


class _Binding:
    """The free inputs while their dimensions are found out."""

    def __init__(self, file: TrainedFile, asked: ShapesAsked) -> None:
        self.file = file
        self.asked = asked
        self.inputs = {value.name: value for value in file.inputs}
        self.symbols: dict[str, int] = {}
        self.from_input: dict[str, str] = {}  # which input (or option) gave a symbol its value
        self.given: dict[str, list[int]] = {}
        self.assumed: set[str] = set()
        self.elastic = _elastic_inputs(file)

    def bound(self) -> BoundShapes:
        """The whole."""
        # of two that name one input the later one counts
        said = {t: shape for n, shape in self.asked.shapes.items() for t in self._targets(n)}
        for target, shape in said.items():
            self._give(target, shape)
        if self.asked.unnamed is not None:
            self._give(self._unnamed_target(self.asked.unnamed), self.asked.unnamed)
        dims = {name: self._known(value) for name, value in self.inputs.items()}
        self._bind_batch(dims)
        shapes = {name: self._completed(name, row) for name, row in dims.items()}
        self.file.check_sizes(self.symbols)
        assumed = self.assumed.union(self.file.assumed)
        ordered = [name for name in self.inputs if name in assumed]
        return BoundShapes(shapes, self._dtypes(), ordered, dict(self.symbols))

    def _targets(self, name: str) -> list[str]:
        found = [i for i in self.inputs if i == name] or [
            i for i in self.inputs if fnmatch.fnmatchcase(i, name)
        ]
        if not found:
            raise BadInput(
                f"--shape {name}=...: the graph has no input of that name",
                f"its inputs: {', '.join(list(self.inputs)[:8])}" if self.inputs else "",
            )
        return found

    def _unnamed_target(self, shape: list[int]) -> str:
        """The one input that a shape without a name is for."""
        rest = [name for name in self.inputs if name not in self.given]
        fitting = [n for n in rest if self._misfit(self.inputs[n], shape) is None]
        candidates = fitting or rest
        if len(candidates) > 1:
            still_open = [n for n in candidates if not _fixed(self.inputs[n])]
            candidates = still_open if len(still_open) == 1 else candidates
        if len(candidates) != 1:
            raise BadInput(
                f"--shape without a name, but the graph has {len(candidates)} inputs to give it to",
                f"name it: --shape NAME=...; inputs: {', '.join(list(self.inputs)[:8])}",
            )
        return candidates[0]

    def _misfit(self, value: TensorValue, shape: list[int]) -> str | None:
        """Why a shape cannot be an input's; None where it can."""
        if value.dims is None:
            return None
        if len(shape) != len(value.dims):
            return f"has {len(value.dims)} dimensions {_text(value.dims)}, not {len(shape)}"
        for position, (dim, size) in enumerate(zip(value.dims, shape, strict=True)):
            leading = position == 0 and value.name in self.elastic
            if isinstance(dim, int) and dim != size and not leading:
                return f"has {_text(value.dims)} in the file: dimension {position} is {dim}"
        return None

    def _give(self, name: str, shape: list[int]) -> None:
        value = self.inputs[name]
        said = ",".join(map(str, shape))
        misfit = self._misfit(value, shape)
        if misfit is not None:
            raise BadInput(
                f"--shape {name}={said}: the input {misfit}",
                f"write it like --shape {name}={_example(value, self.symbols)}",
            )
        self.given[name] = list(shape)
        for dim, size in zip(value.dims or (), shape, strict=False):
            if isinstance(dim, str):
                self._bind(dim, size, f"--shape {name}={said}")

    def _bind(self, symbol: str, size: int, by: str) -> None:
        if self.symbols.get(symbol, size) != size:
            raise BadInput(
                f"{by}: dimension {shown(symbol)} would be {size}, but "
                f"{self.from_input[symbol]} makes it {self.symbols[symbol]}",
                "it is one dimension in the file, and needs one size",
            )
        self.symbols.setdefault(symbol, size)
        self.from_input.setdefault(symbol, by)

    def _known(self, value: TensorValue) -> list[Dim]:
        if value.name in self.given:
            return list(self.given[value.name])
        if value.dims is None:
            raise BadInput(
                f"the shape of input {shown(value.name)} is not in the file",
                f"give it: --shape {value.name}=D,D,... (its dimensions)",
            )
        return list(value.dims)

    def _bind_batch(self, dims: dict[str, list[Dim]]) -> None:
        """The leading dimension, where the user gives a batch or the file leaves it open."""
        batch = self.asked.batch
        symbol = _batch_symbol(list(self.inputs.values()))
        if batch is not None and not 0 < batch < 1 << 31:
            raise BadInput(f"--batch {batch} is not possible: it must be positive")
        if batch is None:
            batch = self._batch_of_others(symbol)
            if batch is None and symbol is not None and self.file.batch is not None:
                batch = self.file.batch
                self._bind(symbol, batch, "the file")
        elif symbol is not None:
            self._bind(symbol, batch, f"--batch {batch}")
        if batch is None:
            return
        if self.asked.batch is not None and self.file.fixed_sizes and not symbol:
            self._refuse_other_batch(batch)
        for name, row in dims.items():
            if name in self.given or not row:
                continue
            if row[0] is None or (isinstance(row[0], int) and name in self.elastic):
                if row[0] is None and self.asked.batch is None:
                    self.assumed.add(name)
                row[0] = batch

    def _refuse_other_batch(self, batch: int) -> None:
        """A batch that is none of the fixed sizes."""
        leading = [value.dims[0] for value in self.inputs.values() if value.dims]
        if batch not in leading:
            raise BadInput(
                f"--batch {batch}: the file is for fixed sizes, a batch of "
                f"{', '.join(map(str, dict.fromkeys(leading))) or 'none'}",
                "export it with a dynamic batch: torch.export.export(..., "
                "dynamic_shapes={'x': {0: torch.export.Dim('batch')}})",
            )

    def _batch_of_others(self, symbol: str | None) -> int | None:
        """The batch that shapes of the user's own imply; None where they say nothing."""
        if symbol is not None and symbol in self.symbols:
            return self.symbols[symbol]
        for name, shape in self.given.items():
            value = self.inputs[name]
            if shape and value.dims and (value.dims[0] is None or name in self.elastic):
                return shape[0]
        return None

    def _completed(self, name: str, row: list[Dim]) -> list[int]:
        value = self.inputs[name]
        shape: list[int] = []
        for position, dim in enumerate(row):
            if isinstance(dim, int):
                shape.append(dim)
                continue
            size = self.symbols.get(dim) if dim is not None else None
            if size is None:
                size = self._guess(value, position, dim)
                self.assumed.add(name)
                if dim is not None:
                    self._bind(dim, size, f"the guess for input {name}")
            elif dim is not None and self.from_input[dim].startswith("the guess"):
                self.assumed.add(name)
            shape.append(size)
        return shape

    def _guess(self, value: TensorValue, position: int, dim: str | None) -> int:
        likely = None if dim is None else self.file.likely_size(dim, self.symbols)
        if likely is not None:
            return likely
        symbol = _batch_symbol(list(self.inputs.values()))
        unnamed_front = position == 0 and dim is None
        if unnamed_front or (dim is not None and dim == symbol):
            return _label_batch(list(self.inputs.values())) or DEFAULT_BATCH
        if dim is None or not _NO_GUESS.search(dim):
            if position in _image_sides(value):
                return _IMAGE_SIDE
            tokens = value.dtype in ("int64", "int32") and len(value.dims or ()) == 2
            named = dim is not None and _LENGTH_NAME.search(dim) and len(value.dims or ()) >= 3
            if (position == 1 and tokens) or named:
                return _SEQUENCE
        what = f" ({shown(dim)})" if dim is not None else ""
        raise BadInput(
            f"dimension {position}{what} of input {shown(value.name)} is not in the file, and no "
            "guess is a good one",
            f"give it: --shape {value.name}={_example(value, self.symbols)}",
        )

    def _dtypes(self) -> dict[str, str]:
        unknown = [name for name in self.asked.dtypes if name not in self.inputs]
        if unknown:
            raise BadInput(f"dtype of {shown(unknown[0])}: the graph has no input of that name")
        wanted = self.asked.dtype
        if wanted is not None and wanted not in _FLOAT_TYPES:
            raise BadInput(f"--dtype {wanted}: not a type of floats", f"{', '.join(_FLOAT_TYPES)}")
        found = {}
        for name, value in self.inputs.items():
            dtype = value.dtype
            if wanted is not None and dtype in _FLOAT_TYPES:
                dtype = wanted
            found[name] = self.asked.dtypes.get(name, dtype)
        return found


def guess_hint(file: TrainedFile, bound: BoundShapes) -> str:
    """What may mend an operator's refusal of its inputs' shapes, where some were guessed."""
    name = bound.assumed[0]
    value = next(v for v in file.inputs if v.name == name)
    guess = ",".join(map(str, bound.shapes[name]))
    leading = {s: size for s, size in bound.symbols.items() if s == _batch_symbol(file.inputs)}
    more = f" (and of {len(bound.assumed) - 1} more)" if len(bound.assumed) > 1 else ""
    return (
        f"the shape of input {shown(name)}{more} is a guess, {guess}, which may be the cause; give "
        f"its own: --shape {name}={_example(value, leading)}"
    )


def batch_dims(file: TrainedFile) -> dict[str, list[int]]:
    """Positions of the batch among each free input's dimensions; inputs without it left out.

    The symbolic dimension that is the batch wherever it is, unnamed leading ones, and fixed
    leading ones that :func:`bind_shapes` lets go.
    """
    inputs = file.inputs
    symbol, elastic = _batch_symbol(inputs), _elastic_inputs(file)
    found = {}
    for value in inputs:
        positions = [
            position
            for position, dim in enumerate(value.dims or ())
            if (symbol is not None and dim == symbol)
            or (position == 0 and (dim is None or (isinstance(dim, int) and value.name in elastic)))
        ]
        if positions:
            found[value.name] = positions
    return found


def _batch_symbol(inputs: list[TensorValue]) -> str | None:
    """The symbolic dimension that is the batch: one that leads, by its name if there are several.

    In ``[["layers", "batch", 512], ...]`` it leads nowhere; there the name alone can tell it.
    """
    leading = [v.dims[0] for v in inputs if v.dims and isinstance(v.dims[0], str)]
    named = [d for d in leading if _BATCH_NAME.search(d) and not _LENGTH_NAME.search(d)]
    elsewhere = [
        d for v in inputs for d in v.dims or () if isinstance(d, str) and "batch" in d.lower()
    ]
    return next(iter(named or elsewhere or leading), None)


def _elastic_inputs(file: TrainedFile) -> set[str]:
    """Inputs whose fixed leading dimension is a batch, which may be another one as well.

    Integers of rank 1 are labels or the like, one for each sample. With no symbolic dimension in
    front, the first input's leading one is the batch, and that of inputs of integers equal to it.
    """
    if file.fixed_sizes:
        return set()
    inputs = file.inputs
    labels = {v.name for v in inputs if _is_label(v)}
    if _batch_symbol(inputs) is not None:
        return labels
    first = next((v for v in inputs if v.dims and len(v.dims) > 1), None)
    if first is None or not first.dims:
        return labels
    others = [v for v in inputs if v.dims and v.dims[0] == first.dims[0] and "int" in v.dtype]
    return labels | {first.name} | {v.name for v in others}


def _is_label(value: TensorValue) -> bool:
    return (
        value.dtype in ("int64", "int32")
        and value.dims is not None
        and len(value.dims) == 1
        and isinstance(value.dims[0], int)
    )


def _label_batch(inputs: list[TensorValue]) -> int | None:
    """The batch that a label of a fixed size says, where the other inputs leave it open."""
    for value in inputs:
        if _is_label(value) and value.dims is not None and isinstance(value.dims[0], int):
            return value.dims[0]
    return None


def _image_sides(value: TensorValue) -> tuple[int, ...]:
    """Positions of height and width of an input that looks like images; empty for others."""
    dims = value.dims or ()
    if len(dims) != 4 or value.dtype not in _FLOAT_TYPES:
        return ()
    if dims[1] in _CHANNELS:
        return (2, 3)
    if dims[3] in _CHANNELS:
        return (1, 2)
    named = [i for i, d in enumerate(dims) if isinstance(d, str) and _SIDE_NAME.search(d)]
    return tuple(named)


def _fixed(value: TensorValue) -> bool:
    return value.dims is not None and all(isinstance(d, int) for d in value.dims)


def _example(value: TensorValue, symbols: dict[str, int]) -> str:
    """The input's shape with what is known filled in and the rest by name."""
    if value.dims is None:
        return "D,D,..."
    return ",".join(
        str(d) if isinstance(d, int) else str(symbols.get(d, d.upper())) if d else "?"
        for d in value.dims
    )


def _text(dims: tuple[Dim, ...]) -> str:
    return "(" + ", ".join("?" if d is None else str(d) for d in dims) + ")"
