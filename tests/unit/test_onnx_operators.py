"""Operators of ONNX one by one: ONNX's own backend tests, and onnxruntime over many attributes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")

from memcli.engines.torch.convert import convert  # noqa: E402
from memcli.engines.torch.convert.onnx_operators import register_all  # noqa: E402
from memcli.engines.torch.convert.registry import OPERATORS  # noqa: E402
from memcli.errors import BadInput  # noqa: E402

# Small tensors: more threads only wait for one another.
torch.set_num_threads(1)

# Backend tests that are left out, by regular expression, and why.
SKIPPED = {
    r"training_mode$": "the running variance follows PyTorch (unbiased), as exports mean it",
    r"^test_bernoulli": "random numbers",
    r"^test_training_dropout(_mask|_default|_default_mask)?$": "random numbers",
    r"_same_values": "PyTorch's topk does not say which of equal elements comes first",
    r"^test_resize_downsample_scales_(linear|cubic)_align_corners$": (
        "wants a fractional output size in the formula; onnxruntime and PyTorch take the real one"
    ),
    r"_with_peepholes$": "peephole weights are refused",
    r"^test_col2im_5d$": "PyTorch folds images of two dimensions alone",
    r"^test_range_.*_expanded$": "the function's body is a loop",
}
# Messages of refusals that are right for a test.
REFUSED = (
    r"type (STRING|U?INT[24]|UINT(16|32|64)|FLOAT4|FLOAT8)",
    r"operator set [0-8];",
    r"is not a tensor",
    r"quantized to integers",
    r"loops are not converted",
    r"not among the operators converted",
    r"an operator of another domain",
    r"its output's shape depends on data",
    r"labels of type",
    r"its condition depends on data",
    r"sequences of different lengths",
)
LOW_PRECISION = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


def backend_tests() -> list[Any]:
    # onnx 1.22 loads them from files without their data, and collects them with it
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    # Expanded ones repeat the operators by their function bodies; attention's are the richest.
    return [t for t in found if not t.name.endswith("_expanded") or "attention_4d_gqa" in t.name]


def as_torch(array: Any) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def run_converted(model: onnx.ModelProto, arrays: dict[str, Any]) -> tuple[Any, ...]:
    """The outputs; inputs that the operator needs to know beforehand are bound one by one."""
    bound: dict[str, Any] = {}
    while True:
        shapes = {n: a.shape for n, a in arrays.items() if n not in bound}
        try:
            converted = convert(model, shapes=shapes, values=bound)
            break
        except BadInput as error:
            wanted = re.search(r"its input \d+ \('(\w+)'\) depends on data", error.message)
            if wanted is None and "training mode depends" in error.message:
                wanted = re.search("(t)", "t")
            if wanted is None or wanted[1] in bound or wanted[1] not in arrays:
                raise
            bound[wanted[1]] = as_torch(arrays[wanted[1]])
    with torch.no_grad():
        return converted.module(*(as_torch(arrays[i.name]) for i in converted.inputs))


def assert_same(got: Any, wanted: Any, rtol: float, atol: float) -> None:
    if isinstance(wanted, list):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other, rtol, atol)
        return
    expected = as_torch(wanted)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    close = LOW_PRECISION.get(got.dtype, 0.0)
    if not got.is_complex():
        got, expected = got.double(), expected.double()
    torch.testing.assert_close(
        got, expected, rtol=max(rtol, close), atol=max(atol, close), equal_nan=True
    )


def test_backend_node_tests() -> None:
    """All of ONNX's own node tests: the same values, or refused for a reason that is listed."""
    passed, refused, failed = 0, 0, []
    covered = set()
    for case in backend_tests():
        if any(re.search(pattern, case.name) for pattern in SKIPPED):
            continue
        inputs, outputs = case.data_sets[0]
        model = case.model
        inputs = [np.asarray(a) if isinstance(a, np.generic) else a for a in inputs]
        if model.opset_import[0].version in (7, 8):
            model.opset_import[0].version = 9  # the operators that these try did not change
        if not all(isinstance(array, np.ndarray) for array in inputs):
            continue  # sequences, optionals, types that numpy has not
        if any(isinstance(array, onnx.TensorProto) for array in outputs):
            continue
        held = {tensor.name for tensor in model.graph.initializer}
        names = [value.name for value in model.graph.input if value.name not in held]
        try:
            got = run_converted(model, dict(zip(names, inputs, strict=True)))
        except BadInput as error:
            refused += 1
            if not any(re.search(pattern, error.message) for pattern in REFUSED):
                failed.append(f"{case.name}: {error.message}")
            continue
        try:
            for one, other in zip(got, outputs, strict=True):
                assert_same(one, other, max(case.rtol, 1e-3), max(case.atol, 1e-5))
        except AssertionError as error:
            failed.append(f"{case.name}: {str(error)[:200]}")
            continue
        passed += 1
        covered.update(node.op_type for node in model.graph.node)
    assert not failed, "\n".join(failed)
    assert passed >= 850, f"{passed} passed, {refused} refused"
    register_all()
    # No operator is there, of those that this onnx knows, that neither these tests nor those below
    # try.
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert (set(OPERATORS) & known) - covered - TRIED_BELOW == set()


TRIED_BELOW = {
    "Bernoulli",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "ConcatFromSequence",
    "SequenceAt",
    "SplitToSequence",
    "NonZero",
    "Unique",
    "GlobalLpPool",
}


def single(
    op: str,
    inputs: dict[str, Any],
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
    constants: dict[str, Any] | None = None,
    order: Sequence[str] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; ``constants`` are initializers that stay constant."""
    constants = constants or {}
    names = list(order if order is not None else [*inputs, *constants])
    node = helper.make_node(op, names, list(outputs), name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs if name],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def assert_as_onnxruntime(model: onnx.ModelProto, inputs: dict[str, Any]) -> None:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    wanted = session.run(None, inputs)
    roles = {tensor.name: "constant" for tensor in model.graph.initializer}
    converted = convert(model, shapes={n: a.shape for n, a in inputs.items()}, roles=roles)
    with torch.no_grad():
        got = converted.module(*(as_torch(inputs[i.name]) for i in converted.inputs))
    for one, other in zip(got, wanted, strict=True):
        assert_same(one, other, 1e-4, 1e-5)


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


few = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@st.composite
def windows(draw: Any, pooling: bool) -> dict[str, Any]:
    """Attributes of windows over one or two dimensions, all kinds of padding."""
    rank = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 2)) for _ in range(rank)]
    found: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)],
    }
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if mode == "NOTSET":
        found["dilations"] = dilation
        found["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
        if pooling:
            found["ceil_mode"] = draw(st.integers(0, 1))
    else:
        found["auto_pad"] = mode
    return found


@few
@given(windows(pooling=False), st.integers(1, 2), st.booleans())
def test_convolutions(attributes: dict[str, Any], groups: int, bias: bool) -> None:
    rank = len(attributes["kernel_shape"])
    x = numbers(2, 4, *(7, 8)[:rank])
    weights = {"w": numbers(6, 4 // groups, *attributes["kernel_shape"], seed=1)}
    if bias:
        weights["b"] = numbers(6, seed=2)
    model = single("Conv", {"x": x}, constants=weights, group=groups, **attributes)
    assert_as_onnxruntime(model, {"x": x})


@few
@given(windows(pooling=False), st.integers(1, 2), st.booleans(), st.booleans())
def test_transposed_convolutions(
    attributes: dict[str, Any], groups: int, bias: bool, extra: bool
) -> None:
    rank = len(attributes["kernel_shape"])
    assume(attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID"))
    if extra:
        attributes["output_padding"] = [s - 1 for s in attributes["strides"]]
    x = numbers(2, 4, *(5, 6)[:rank])
    weights = {"w": numbers(4, 3, *attributes["kernel_shape"], seed=1)}
    if bias:
        weights["b"] = numbers(3 * groups, seed=2)
    model = single("ConvTranspose", {"x": x}, constants=weights, group=groups, **attributes)
    assert_as_onnxruntime(model, {"x": x})


@few
@given(windows(pooling=True), st.booleans())
def test_max_pooling(attributes: dict[str, Any], indices: bool) -> None:
    x = numbers(2, 3, *(7, 8)[: len(attributes["kernel_shape"])])
    outputs = ("y", "i") if indices else ("y",)
    assert_as_onnxruntime(single("MaxPool", {"x": x}, outputs, **attributes), {"x": x})


@few
@given(windows(pooling=True), st.integers(0, 1))
def test_average_pooling(attributes: dict[str, Any], include: int) -> None:
    x = numbers(2, 3, *(7, 8)[: len(attributes["kernel_shape"])])
    model = single("AveragePool", {"x": x}, count_include_pad=include, **attributes)
    assert_as_onnxruntime(model, {"x": x})


@few
@given(
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]),
    st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    st.sampled_from([(2.0, 2.0), (0.5, 0.5), (1.5, 3.0), (0.7, 1.3), (1.0, 2.5)]),
    st.booleans(),
)
def test_resizing(
    mode: str, coordinates: str, rounding: str, scales: tuple[float, float], by_size: bool
) -> None:
    x = numbers(1, 2, 6, 5)
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = rounding
    size = np.array([1, 2, int(6 * scales[0]), int(5 * scales[1])], np.int64)
    given_scales = np.array([1, 1, *scales], np.float32)
    constants = {"s": size} if by_size else {"s": given_scales}
    order = ["x", "", "", "s"] if by_size else ["x", "", "s"]
    model = single("Resize", {"x": x}, constants=constants, order=order, **attributes)
    assert_as_onnxruntime(model, {"x": x})


@few
@given(
    st.sampled_from(["constant", "reflect", "edge", "wrap"]),
    st.lists(st.integers(-1, 3), min_size=8, max_size=8),
)
def test_padding(mode: str, pads: list[int]) -> None:
    if mode != "constant":
        pads = [max(0, p) for p in pads]
    x = numbers(4, 5, 6, 4)
    constants = {"p": np.array(pads, np.int64)}
    if mode == "constant":
        constants["v"] = np.array(1.5, np.float32)
    model = single("Pad", {"x": x}, constants=constants, mode=mode)
    assert_as_onnxruntime(model, {"x": x})


@few
@given(
    st.lists(
        st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(-3, 3).filter(bool)),
        min_size=3,
        max_size=3,
    ),
    st.permutations([0, 1, 2]),
)
def test_slicing(parts: list[tuple[int, int, int]], axes: list[int]) -> None:
    x = numbers(5, 6, 7)
    starts, ends, steps = (np.array(column, np.int64) for column in zip(*parts, strict=True))
    constants = {"s": starts, "e": ends, "a": np.array(axes, np.int64), "t": steps}
    assert_as_onnxruntime(single("Slice", {"x": x}, constants=constants), {"x": x})


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize(
    ("kind", "gates", "attributes"),
    [
        ("LSTM", 4, {}),
        ("GRU", 3, {"linear_before_reset": 1}),
        ("GRU", 3, {"linear_before_reset": 0}),
        ("RNN", 1, {}),
        ("RNN", 1, {"activations": "Relu"}),
    ],
)
def test_recurrent_layers(
    kind: str, gates: int, attributes: dict[str, Any], direction: str, states: bool
) -> None:
    d, hidden = 2 if direction == "bidirectional" else 1, 5
    if "activations" in attributes:
        attributes = {"activations": [attributes["activations"]] * d}
    x = numbers(4, 3, 6)
    constants = {
        "w": numbers(d, gates * hidden, 6, seed=1),
        "r": numbers(d, gates * hidden, hidden, seed=2),
        "b": numbers(d, 2 * gates * hidden, seed=3),
    }
    order = ["x", "w", "r", "b"]
    if states:
        constants["h"] = numbers(d, 3, hidden, seed=4)
        order += ["", "h"]
        if kind == "LSTM":
            constants["c"] = numbers(d, 3, hidden, seed=5)
            order.append("c")
    outputs = ("y", "h_last", "c_last") if kind == "LSTM" else ("y", "h_last")
    model = single(
        kind,
        {"x": x},
        outputs,
        constants=constants,
        order=order,
        direction=direction,
        hidden_size=hidden,
        **attributes,
    )
    assert_as_onnxruntime(model, {"x": x})


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_of_old_and_new_operator_sets(kind: str, opset: int, axis: int) -> None:
    x = numbers(3, 4, 5)
    assert_as_onnxruntime(single(kind, {"x": x}, opset=opset, axis=axis), {"x": x})


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_local_response_norm(size: int) -> None:
    """The formula of the operator's text, as onnxruntime takes no even size."""
    x = numbers(2, 7, 3, 3)
    model = single("LRN", {"x": x}, size=size, alpha=0.3, beta=0.6, bias=2.0)
    wanted = np.empty_like(x)
    for c in range(7):
        first, last = max(0, c - (size - 1) // 2), min(6, c + -(-(size - 1) // 2))
        squares = (x[:, first : last + 1] ** 2).sum(1)
        wanted[:, c] = x[:, c] / (2.0 + 0.3 / size * squares) ** 0.6
    (got,) = convert(model).module(torch.from_numpy(x))
    assert_same(got, wanted, 1e-5, 1e-6)


@pytest.mark.parametrize(
    ("op", "opset", "attributes"),
    [
        ("Upsample", 9, {"mode": "nearest"}),
        ("Upsample", 9, {"mode": "linear"}),
        ("Resize", 10, {"mode": "nearest"}),
        ("Resize", 10, {"mode": "linear"}),
    ],
)
def test_resizing_of_old_operator_sets(op: str, opset: int, attributes: dict[str, Any]) -> None:
    x = numbers(1, 2, 4, 3)
    scales = {"s": np.array([1, 1, 2, 3], np.float32)}
    model = single(op, {"x": x}, opset=opset, constants=scales, **attributes)
    assert_as_onnxruntime(model, {"x": x})


def test_sequences_that_splitting_makes() -> None:
    x = numbers(6, 4)
    nodes = [
        helper.make_node("SplitToSequence", ["x", "n"], ["s"], axis=0),
        helper.make_node("SequenceAt", ["s", "i"], ["last"]),
        helper.make_node("ConcatFromSequence", ["s"], ["whole"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_empty_tensor_value_info(name) for name in ("last", "whole")],
        [
            helper.make_tensor("n", TensorProto.INT64, [], [2]),
            helper.make_tensor("i", TensorProto.INT64, [], [-1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert_as_onnxruntime(model, {"x": x})


def test_non_zero_of_a_constant() -> None:
    x = numbers(2)
    nodes = [
        helper.make_node("NonZero", ["c"], ["places"]),
        helper.make_node("Cast", ["places"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_empty_tensor_value_info("y")],
        [helper.make_tensor("c", TensorProto.FLOAT, [2, 2], [1, 0, 0, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert_as_onnxruntime(model, {"x": x})


@pytest.mark.parametrize(
    "value", [np.finfo(np.float32).min, np.finfo(np.float32).tiny, -np.inf, 0.1, 1e-45, 16777217.0]
)
@pytest.mark.parametrize("op", ["Where", "Mul", "Add", "Less"])
def test_scalar_constants_keep_their_value(op: str, value: float) -> None:
    """Also where the number that stands for them in the call is a double."""
    x = numbers(3, 4)
    constants = {"c": np.array(value, np.float32)}
    order = ["x", "c"]
    if op == "Where":
        constants["w"] = x > 0
        order = ["w", "x", "c"]
    model = single(op, {"x": x}, constants=constants, order=order)
    with np.errstate(all="ignore"):
        c = constants["c"]
        wanted = {
            "Where": np.where(x > 0, x, c),
            "Mul": x * c,
            "Add": x + c,
            "Less": x < c,
        }[op]
    (got,) = convert(model, roles={"c": "constant", "w": "constant"}).module(torch.from_numpy(x))
    assert torch.equal(got, torch.from_numpy(wanted))


def test_global_lp_pool() -> None:
    x = numbers(2, 3, 4, 5)
    assert_as_onnxruntime(single("GlobalLpPool", {"x": x}, p=3), {"x": x})


def draws_of(model: onnx.ModelProto, x: Any) -> Any:
    from memcli.engines.torch.rules import draws

    converted = convert(model, shapes={"x": x.shape})
    calls = [node for node in converted.module.graph.nodes if node.op == "call_function"]
    assert any(draws(node.target) for node in calls)
    torch.manual_seed(0)
    return converted.module(torch.from_numpy(x))


@pytest.mark.parametrize(
    ("op", "attributes", "mean", "deviation"),
    [
        ("RandomUniformLike", {"low": 2.0, "high": 4.0}, 3.0, 2 / 12**0.5),
        ("RandomNormalLike", {"mean": -1.0, "scale": 0.5}, -1.0, 0.5),
        ("Bernoulli", {}, 0.25, 0.1875**0.5),
    ],
)
def test_random_numbers(op: str, attributes: Any, mean: float, deviation: float) -> None:
    x = np.full((100, 100), 0.25, np.float32)
    (y,) = draws_of(single(op, {"x": x}, **attributes), x)
    assert abs(y.mean() - mean) < 0.03 and abs(y.std() - deviation) < 0.03


@pytest.mark.parametrize("op", ["RandomUniform", "RandomNormal"])
def test_random_numbers_of_a_shape(op: str) -> None:
    model = single(op, {}, shape=[50, 40])
    (y,) = convert(model).module()
    assert y.shape == (50, 40) and 0.2 < y.std() < 1.2 and y.unique().numel() > 1900


@pytest.mark.parametrize("mask", [False, True])
def test_dropout_in_training(mask: bool) -> None:
    x = np.ones((100, 100), np.float32)
    constants = {"r": np.array(0.2, np.float32), "t": np.array(True)}
    outputs = ("y", "m") if mask else ("y",)
    found = draws_of(single("Dropout", {"x": x}, outputs, constants=constants), x)
    kept = found[0] != 0
    assert abs(kept.float().mean() - 0.8) < 0.02
    assert torch.equal(found[0][kept], torch.full_like(found[0][kept], 1 / 0.8))
    if mask:
        assert torch.equal(found[1], kept)


def test_all_unsupported_operators_are_listed_at_once() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="first"),
        helper.make_node("Cast", ["a"], ["b"], name="after", to=TensorProto.FLOAT),
        helper.make_node("Mystery", ["x"], ["c"], name="second", domain="com.example"),
        helper.make_node("Mystery", ["c"], ["d"], name="third", domain="com.example"),
        helper.make_node("Add", ["b", "d"], ["y"], name="sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_empty_tensor_value_info("y")],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    with pytest.raises(BadInput) as caught:
        convert(helper.make_model(graph, opset_imports=imports), name="net.onnx")
    message = caught.value.message
    assert message.startswith("net.onnx: ")
    assert "NonZero (1 node: first): its input 0 ('x') depends on data" in message
    assert "com.example::Mystery (2 nodes: second, third)" in message
    assert "after" not in message and "sum" not in message
