"""Values to train one step with: the same for the same place, whichever plan the graph is under.

Each array's values depend on the seed, its place among the arguments (or the states), its shape
and its dtype alone, so that two graphs with the same arguments get the same numbers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.formats.symbol.values import tuple_of

# Operators that hand labels, indices and lengths on without changing what they mean.
_PASSING = frozenset(
    {
        "Reshape",
        "reshape",
        "transpose",
        "Cast",
        "cast",
        "slice",
        "slice_axis",
        "SliceChannel",
        "split",
        "expand_dims",
        "squeeze",
        "SwapAxis",
        "swapaxes",
        "Flatten",
        "flatten",
        "_copy",
        "identity",
        "BlockGrad",
        "stop_gradient",
        "Concat",
        "concat",
        "stack",
        "tile",
        "repeat",
    }
)
_NORMALISERS = frozenset(
    {
        "BatchNorm",
        "BatchNorm_v1",
        "CuDNNBatchNorm",
        "_contrib_SyncBatchNorm",
        "LayerNorm",
        "InstanceNorm",
        "GroupNorm",
    }
)
_WEIGHTED = frozenset(
    {
        "Convolution",
        "Convolution_v1",
        "Deconvolution",
        "FullyConnected",
        "_contrib_DeformableConvolution",
        "_contrib_ModulatedDeformableConvolution",
    }
)
_CTC = frozenset({"CTCLoss", "ctc_loss", "_contrib_CTCLoss", "_contrib_ctc_loss"})
_SEQUENCE = frozenset({"SequenceMask", "SequenceLast", "SequenceReverse"})


@dataclass
class Use:
    """An operator that reads a variable, and in which slot."""

    op: str
    slot: int
    attrs: dict[str, str]
    name: str
    sources: list[str] = field(default_factory=list)  # output names of all its inputs


@dataclass
class Reader:
    """Who reads each variable of a symbol, through operators that only pass values on."""

    uses: dict[str, list[Use]]
    shapes: dict[str, tuple[int, ...]]  # of every output, where MXNet tells


def read_symbol(symbol: Any, shapes: dict[str, tuple[int, ...]]) -> Reader:
    """Look through a symbol for what reads each argument.

    Args:
        symbol: of ``mxnet``.
        shapes: of all its arguments, by name.
    """
    nodes = json.loads(symbol.tojson())["nodes"]
    consumers: list[list[tuple[int, int]]] = [[] for _ in nodes]
    for number, node in enumerate(nodes):
        for slot, source in enumerate(node["inputs"]):
            consumers[source[0]].append((number, slot))

    def output_name(source: list[int]) -> str:
        node = nodes[source[0]]
        return node["name"] if node["op"] == "null" else f"{node['name']}_output"

    uses: dict[str, list[Use]] = {}
    for number, node in enumerate(nodes):
        if node["op"] != "null":
            continue
        found = uses.setdefault(node["name"], [])
        waiting, seen = list(consumers[number]), set()
        while waiting:
            reader, slot = waiting.pop()
            if (reader, slot) in seen:
                continue
            seen.add((reader, slot))
            at = nodes[reader]
            # reshape_like looks at the shape alone of what it reads second
            passes = at["op"] in _PASSING or (at["op"] == "reshape_like" and slot == 0)
            if passes and len(seen) < 1000:
                waiting.extend(consumers[reader])
                continue
            found.append(
                Use(
                    at["op"],
                    slot,
                    at.get("attrs", {}),
                    at["name"],
                    [output_name(s) for s in at["inputs"]],
                )
            )
    known: dict[str, tuple[int, ...]] = {}
    internals = symbol.get_internals()
    try:
        _, inferred, _ = internals.infer_shape_partial(**shapes)
    except Exception:
        inferred = None
    for name, shape in zip(internals.list_outputs(), inferred or [], strict=False):
        known[name] = tuple(shape)
    return Reader(uses, known)


# Losses that leave the gradient of their label as it was.
_LEAVES_LABEL = frozenset(
    {
        "SoftmaxOutput",
        "Softmax",
        "SVMOutput",
        "LinearRegressionOutput",
        "LogisticRegressionOutput",
        "MAERegressionOutput",
    }
)
_NO_GRADIENT = frozenset({"BlockGrad", "stop_gradient", "zeros_like", "ones_like"})


def undefined_gradients(symbol: Any) -> set[str]:
    """Arguments whose gradient MXNet computes from memory that nothing has written.

    A loss leaves the gradient of its label as it was. Where the label is an argument and nothing
    else reads it, those are the zeros of the bind. Where it comes out of an operator (a Reshape,
    say), or has other readers, the gradient goes on from whatever the pool's block held before.
    """
    nodes = json.loads(symbol.tojson())["nodes"]
    readers = [0] * len(nodes)
    for node in nodes:
        for source in node["inputs"]:
            readers[source[0]] += 1
    undefined: set[str] = set()
    seen: set[int] = set()
    for node in nodes:
        if node["op"] not in _LEAVES_LABEL or len(node["inputs"]) < 2:
            continue
        label = node["inputs"][1][0]
        if nodes[label]["op"] == "null" and readers[label] == 1:
            continue
        waiting = [label]
        while waiting:
            number = waiting.pop()
            if number in seen or nodes[number]["op"] in _NO_GRADIENT:
                continue
            seen.add(number)
            if nodes[number]["op"] == "null":
                undefined.add(nodes[number]["name"])
            waiting.extend(source[0] for source in nodes[number]["inputs"])
    return undefined


def argument_values(
    reader: Reader,
    name: str,
    index: int,
    shape: tuple[int, ...],
    dtype: Any,
    seed: int,
    shown: str | None = None,
) -> NDArray[Any]:
    """Values of the argument that is the ``index``-th; finite and sensible for what reads it.

    Args:
        reader: what reads each argument.
        name: the argument's.
        index: of the argument, which varies the values.
        shape: of the values.
        dtype: of the values.
        seed: of random numbers.
        shown: its name in the user's file, where the graph that is trained has other names.
    """
    rng = np.random.default_rng([seed, 0, index])
    values = _for_uses(reader, reader.uses.get(name, []), shape, rng)
    if values is None:
        values = _for_name(shown or name, shape, dtype, rng)
    return _as(values, dtype)


def state_values(
    reader: Reader,
    name: str,
    index: int,
    shape: tuple[int, ...],
    dtype: Any,
    seed: int,
    shown: str | None = None,
) -> NDArray[Any]:
    """Values of an auxiliary state: moving variances around 1, all else small.

    Arguments: see :func:`argument_values`.
    """
    rng = np.random.default_rng([seed, 1, index])
    is_variance = (shown or name).endswith("var") or any(
        use.slot == 4 and use.op in _NORMALISERS for use in reader.uses.get(name, [])
    )
    if is_variance:
        return _as(rng.uniform(0.8, 1.2, shape), dtype)
    return _as(_normal(rng, shape, 0.05), dtype)


def _for_uses(
    reader: Reader, uses: list[Use], shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[Any] | None:
    """Values by what reads the variable; None if nothing there says."""
    # Small ranges first: a variable with several readers has to suit all of them.
    limits = [k for use in uses if (k := _index_limit(reader, use, shape)) is not None]
    if limits:
        return rng.integers(0, max(1, min(limits)), shape)
    for use in uses:
        values = _for_use(reader, use, shape, rng)
        if values is not None:
            return values
    return None


def _index_limit(reader: Reader, use: Use, shape: tuple[int, ...]) -> int | None:
    """How many different integers the operator takes there; None where it takes no integers."""
    op, slot, attrs = use.op, use.slot, use.attrs
    if op in ("Embedding", "_contrib_SparseEmbedding") and slot == 0:
        return _integer(attrs, "input_dim", 1)
    if op == "one_hot" and slot == 0:
        return _integer(attrs, "depth", 1)
    if slot != 1:
        return None
    data = reader.shapes.get(use.sources[0], ()) if use.sources else ()
    if op in ("SoftmaxOutput", "Softmax"):
        data = reader.shapes.get(f"{use.name}_output", data)
        if not data or data == shape:
            return None if data else 2
        channels_second = _true(attrs, "multi_output") or len(data) == 2
        if channels_second:
            return data[1]
        if _true(attrs, "preserve_shape"):
            return data[-1]
        return int(np.prod(data[1:], dtype=np.int64))
    if op in ("SVMOutput", "softmax_cross_entropy"):
        return data[-1] if data else 2
    if op in ("take", "pick"):
        axis = _integer(attrs, "axis", 0 if op == "take" else -1)
        return data[axis] if data and -len(data) <= axis < len(data) else 2
    if op in ("batch_take", "choose_element_0index"):
        return data[-1] if data else 2
    if op in ("gather_nd", "scatter_nd"):
        return min(data) if data else 2
    return None


def _for_use(
    reader: Reader, use: Use, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[Any] | None:
    op, slot, attrs = use.op, use.slot, use.attrs
    data = reader.shapes.get(use.sources[0], ()) if use.sources else ()
    if op in _WEIGHTED and slot:
        if len(shape) > 1:
            return _normal(rng, shape, float(np.sqrt(2.0 / max(1, math.prod(shape[1:])))))
        return _normal(rng, shape, 0.01)
    if op in _NORMALISERS and slot == 1:
        return rng.uniform(0.8, 1.2, shape)
    if op in _NORMALISERS and slot == 2:
        return _normal(rng, shape, 0.1)
    if op == "LeakyReLU" and slot == 1:
        return rng.uniform(0.1, 0.4, shape)
    if op in ("Embedding", "_contrib_SparseEmbedding") and slot == 1:
        return _normal(rng, shape, 0.5)
    if op == "RNN" and slot:
        return _normal(rng, shape, 0.1)
    if op in ("SoftmaxOutput", "Softmax") and slot == 1 and data == shape:
        values = rng.uniform(0.0, 1.0, shape)  # the label is a distribution
        return values / values.sum(axis=1 if len(shape) > 1 else 0, keepdims=True)
    if op == "LogisticRegressionOutput" and slot == 1:
        return rng.integers(0, 2, shape)
    if op in _CTC:
        if slot == 1:
            letters = data[2] if len(data) == 3 else 2
            return rng.integers(1, max(2, letters), shape)
        if slot >= 2:
            label = reader.shapes.get(use.sources[1], (1, 1)) if len(use.sources) > 1 else (1, 1)
            # As long as there is room for: the first of the two is the data's length, in case
            # that it is used.
            is_data = slot == 2 and _true(attrs, "use_data_lengths")
            return np.full(shape, (data or (1,))[0] if is_data else label[-1])
    if op in _SEQUENCE and slot == 1:
        axis = _integer(attrs, "axis", 0)
        return rng.integers(1, (data[axis] if data else 1) + 1, shape)
    if op in ("ROIPooling", "_contrib_ROIAlign", "_contrib_PSROIPooling") and slot == 1:
        return _regions(data, shape, rng)
    if op.startswith("_contrib_MultiBoxTarget") and slot == 1:
        return _boxes(shape, rng)
    if "Proposal" in op and slot == 2:
        # height, width and scale of each picture
        return np.broadcast_to(np.array([data[2] * 16.0, data[3] * 16.0, 1.0]), shape)
    return None


def _for_name(
    name: str, shape: tuple[int, ...], dtype: Any, rng: np.random.Generator
) -> NDArray[Any]:
    """Values by the variable's name, where what reads it does not say."""
    if np.dtype(dtype).kind in "iub" or name.endswith(("label", "mask")):
        return rng.integers(0, 2, shape)
    if name.endswith(("length", "lengths", "_len")):
        return np.ones(shape)
    if name.endswith("weight") and len(shape) > 1:
        return _normal(rng, shape, float(np.sqrt(2.0 / max(1, math.prod(shape[1:])))))
    if name.endswith(("gamma", "var", "scale")):
        return rng.uniform(0.8, 1.2, shape)
    if name.endswith(("beta", "bias", "mean")):
        return _normal(rng, shape, 0.05)
    return _normal(rng, shape, 1.0)


def _regions(
    data: tuple[int, ...], shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[Any]:
    """Regions of interest: picture, then x1, y1, x2, y2 in pixels."""
    values = np.zeros(shape)
    if shape[-1] != 5:
        return values
    batch, high, wide = (data[0], data[2], data[3]) if len(data) == 4 else (1, 4, 4)
    values[..., 0] = rng.integers(0, batch, shape[:-1])
    values[..., 1] = rng.integers(0, max(1, wide // 2), shape[:-1])
    values[..., 2] = rng.integers(0, max(1, high // 2), shape[:-1])
    values[..., 3] = values[..., 1] + max(1, wide // 2)
    values[..., 4] = values[..., 2] + max(1, high // 2)
    return values


def _boxes(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    """Labels of a detector: class, then xmin, ymin, xmax, ymax between 0 and 1."""
    values = np.zeros(shape)
    if len(shape) < 3 or shape[-1] < 5:
        return values
    values[..., 1:3] = rng.uniform(0.0, 0.4, (*shape[:-1], 2))
    values[..., 3:5] = values[..., 1:3] + rng.uniform(0.2, 0.5, (*shape[:-1], 2))
    return values


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> NDArray[Any]:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def _as(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    kind = np.dtype(dtype)
    if kind.kind in "iub" and values.dtype.kind == "f":
        values = np.rint(values)
    return np.ascontiguousarray(values, dtype=kind)


def _integer(attrs: dict[str, str], key: str, default: int) -> int:
    value = tuple_of(attrs.get(key)) or (None,)
    return default if value[0] is None else value[0]


def _true(attrs: dict[str, str], key: str) -> bool:
    return attrs.get(key, "").lower() in ("true", "1")
