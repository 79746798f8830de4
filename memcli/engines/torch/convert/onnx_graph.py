"""An ONNX model as a ``torch.fx`` module: one function call for each node that stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx.inliner
import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from memcli.engines.torch.convert.conversion import Conversion
from memcli.engines.torch.convert.default_roles import default_roles
from memcli.engines.torch.convert.values import Unsupported, torch_type
from memcli.errors import BadInput

OLDEST_OPSET = 9


@dataclass(frozen=True)
class FreeInput:
    """One input of the module, in the order of its arguments."""

    name: str  # in the file
    argument: str  # of the module's forward
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Converted:
    """A converted model.

    ``module`` takes its free inputs in their order and returns a tuple, one tensor for each of
    ``outputs``. ``parameters``, ``states`` and ``constants`` give, for attributes of the module,
    the names of the ONNX tensors that they hold; only what the graph reads is there. ``folded``
    names the nodes that have no function call of their own: their values follow from shapes and
    constants, they hand on their input unchanged, or nothing reads them.

    Each ``call_function`` node's ``meta["memcli"]`` has ``name`` (of the file's node, or its first
    output where it has none), ``op``, ``output`` (name of its first output), ``outputs`` (all
    names) and ``values`` ((shape, type) of each); that of ``get_attr`` nodes has ``name``,
    ``role`` and ``values``, that of placeholders ``name`` and ``values``.
    """

    module: torch.fx.GraphModule
    inputs: tuple[FreeInput, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    folded: list[str] = field(default_factory=list)
    # Tensors that the file has no elements of, filled in by the converter.
    filled: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert(
    model: onnx.ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, Any] | None = None,
    roles: Mapping[str, str] | None = None,
    seed: int = 0,
    fake: bool | None = None,
    name: str = "the model",
) -> Converted:
    """Convert a model for the shapes that its inputs are bound to.

    Args:
        shapes: {input name: its shape}; needed where the file leaves a dimension open. A symbolic
            dimension that one input binds is bound for all.
        values: {input name: value} of inputs that stay constant (a flag, a sampling rate); they
            are no free inputs any more.
        roles: {tensor name: "parameter", "state" or "constant"} for initializers and outputs of
            constant nodes, what is not named being constant; by default what
            :func:`default_roles` finds.
        seed: of the weights that the file does not hold (see :class:`Filling`).
        fake: parameters and buffers without data (FakeTensors of the CPU, of the active
            FakeTensorMode if there is one). By default where a FakeTensorMode is active.
        name: of the file, to begin messages with.

    Raises:
        BadInput: operators that are not supported (all of them, with reasons and places), open
            dimensions, an operator set before 9, nodes out of order.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opset = _opset(model, name)
    active = detect_fake_mode()
    mode = active if active is not None else FakeTensorMode()
    if fake is None:
        fake = active is not None
    held = {tensor.name for tensor in model.graph.initializer}
    free = [value for value in model.graph.input if value.name not in held]
    fixed = dict(values or {})
    for given in [*fixed, *(shapes or {})]:
        if given not in {value.name for value in free}:
            raise BadInput(
                f"{name}: has no input {given!r}",
                "its inputs: " + ", ".join(value.name for value in free),
            )
    bound = bind_shapes([v for v in free if v.name not in fixed], shapes or {}, name)
    with unset_fake_temporarily():
        conversion = Conversion(
            model.graph,
            opset=opset,
            roles=default_roles(model.graph) if roles is None else roles,
            seed=seed,
            mode=mode,
            fake=fake,
            name=name,
        )
        inputs = []
        for value in free:
            try:
                dtype = torch_type(value.type.tensor_type.elem_type)
            except Unsupported as error:
                raise BadInput(f"{name}: input {value.name!r}: {error}") from error
            if value.name in fixed:
                conversion.bind_input(value.name, torch.as_tensor(fixed[value.name]).to(dtype))
                conversion.notes.append(f"input {value.name} is {fixed[value.name]} for good")
                continue
            shape = bound[value.name]
            argument = conversion.add_input(value.name, shape, dtype)
            inputs.append(FreeInput(value.name, argument, shape, dtype))
        conversion.run()
        module = conversion.finish()
    return Converted(
        module=module,
        inputs=tuple(inputs),
        outputs=tuple(value.name for value in model.graph.output),
        parameters=conversion.attributes["parameter"],
        states=conversion.attributes["state"],
        constants=conversion.attributes["constant"],
        folded=conversion.folded,
        filled=conversion.filled,
        notes=conversion.notes,
    )


def bind_shapes(
    free: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, Sequence[int]], name: str
) -> dict[str, tuple[int, ...]]:
    """{input name: its shape}, from ``shapes``, the file, and symbols that other inputs bind.

    Raises:
        BadInput: a dimension that nothing binds, another number of dimensions, no tensor.
    """
    symbols: dict[str, int] = {}
    for value in free:
        if not value.type.HasField("tensor_type"):
            raise BadInput(f"{name}: input {value.name!r} is not a tensor")
        dims = value.type.tensor_type.shape.dim
        given = shapes.get(value.name)
        if given is None:
            continue
        if value.type.tensor_type.HasField("shape") and len(given) != len(dims):
            raise BadInput(
                f"{name}: input {value.name!r} has {len(dims)} dimensions, not {len(given)}"
            )
        for dim, size in zip(dims, given, strict=False):
            if dim.dim_param:
                symbols.setdefault(dim.dim_param, int(size))
    bound = {}
    for value in free:
        if value.name in shapes:
            bound[value.name] = tuple(int(size) for size in shapes[value.name])
            continue
        tensor = value.type.tensor_type
        sizes = [
            dim.dim_value if dim.HasField("dim_value") else symbols.get(dim.dim_param)
            for dim in tensor.shape.dim
        ]
        if not tensor.HasField("shape") or any(size is None or size < 0 for size in sizes):
            what = ",".join(d.dim_param or str(d.dim_value or "?") for d in tensor.shape.dim)
            raise BadInput(
                f"{name}: the shape of input {value.name!r} ({what or 'nothing known'}) is open",
                f"give it with --shape {value.name}=…",
            )
        bound[value.name] = tuple(int(size) for size in sizes if size is not None)
    return bound


def _opset(model: onnx.ModelProto, name: str) -> int:
    versions = {imported.domain: imported.version for imported in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    if opset < OLDEST_OPSET:
        raise BadInput(
            f"{name}: operator set {opset}; memcli reads {OLDEST_OPSET} and later",
            "onnx.version_converter.convert_version makes it newer",
        )
    if model.graph.sparse_initializer:
        raise BadInput(f"{name}: has sparse initializers, which are not supported")
    return opset
