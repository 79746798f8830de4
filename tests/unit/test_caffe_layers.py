"""What Caffe's layers compute, against references written out in numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from tests.caffe_nets import Ran, densenet, inputs, layer, random


def pooled(x: np.ndarray, kernel, stride, pad, method: str) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Caffe's pooling window by window: rounded up, clipped, its divisor."""
    n, c, *sizes = x.shape
    counts = []
    for size, k, s, p in zip(sizes, kernel, stride, pad, strict=True):
        count = math.ceil((size + 2 * p - k) / s) + 1
        if p and (count - 1) * s >= size + p:
            count -= 1
        counts.append(count)
    y = np.zeros((n, c, *counts), x.dtype)
    for i, j in itertools.product(*map(range, counts)):
        starts = [o * s - p for o, s, p in zip((i, j), stride, pad, strict=True)]
        padded = [
            min(a + k, size + p) for a, k, size, p in zip(starts, kernel, sizes, pad, strict=True)
        ]
        divisor = math.prod(b - a for a, b in zip(starts, padded, strict=True))
        rows, columns = (
            slice(max(a, 0), min(b, size)) for a, b, size in zip(starts, padded, sizes, strict=True)
        )
        window = x[:, :, rows, columns]
        y[:, :, i, j] = window.max((2, 3)) if method == "MAX" else window.sum((2, 3)) / divisor
    return y


@given(
    sizes=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pad=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    method=st.sampled_from(["MAX", "AVE"]),
)
@settings(max_examples=60, deadline=None)
def test_pooling_rounds_up_clips_and_divides_as_caffe_does(sizes, kernel, stride, pad, method):  # type: ignore[no-untyped-def]
    assume(all(p < k <= s for p, k, s in zip(pad, kernel, sizes, strict=True)))
    # beyond that Caffe's last window holds nothing: refused, see below
    assume(all(p or t <= k for p, k, t in zip(pad, kernel, stride, strict=True)))
    x = random(2, 2, *sizes)
    text = inputs(x=x.shape) + layer(
        "Pooling",
        "x",
        more=f"""pooling_param {{ pool: {method}
        kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]}
        pad_h: {pad[0]} pad_w: {pad[1]} }}""",
    )
    found = Ran(text, {"x": x}).outputs["y"]
    wanted = pooled(x, kernel, stride, pad, method)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_global_pooling_and_rounding_down() -> None:
    x = random(2, 3, 6, 5)
    text = inputs(x=x.shape)
    text += layer("Pooling", "x", "a", "pooling_param { pool: AVE global_pooling: true }", "a")
    text += layer(
        "Pooling", "x", "b", "pooling_param { kernel_size: 2 stride: 2 round_mode: FLOOR }", "b"
    )
    outputs = Ran(text, {"x": x}).outputs
    np.testing.assert_allclose(outputs["a"], x.mean((2, 3), keepdims=True), rtol=1e-5)
    assert outputs["b"].shape == (2, 3, 3, 2)


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ("", lambda a, b, c: a + b + c),
        ("coeff: 1 coeff: -1 coeff: 0.5", lambda a, b, c: a - b + 0.5 * c),
        ("operation: PROD", lambda a, b, c: a * b * c),
        ("operation: MAX", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    ],
)
def test_eltwise(parameters: str, wanted) -> None:  # type: ignore[no-untyped-def]
    parts = {name: random(2, 3, 4, seed=i) for i, name in enumerate("abc")}
    text = inputs(**{n: a.shape for n, a in parts.items()})
    text += layer("Eltwise", "a b c", more=f"eltwise_param {{ {parameters} }}")
    np.testing.assert_allclose(Ran(text, parts).outputs["y"], wanted(*parts.values()), rtol=1e-5)


@pytest.mark.parametrize(
    ("axis", "axes", "shape"), [(1, 1, (3, 1, 1)), (2, 2, (4, 5)), (1, -1, (3, 4, 5)), (0, 0, ())]
)
def test_scale_covers_its_axes(axis: int, axes: int, shape: tuple[int, ...]) -> None:
    x = random(2, 3, 4, 5)
    text = inputs(x=x.shape) + layer(
        "Scale", "x", more=f"scale_param {{ axis: {axis} num_axes: {axes} bias_term: true }}"
    )
    ran = Ran(text, {"x": x})
    assert set(ran.weights) == {"l.weight", "l.bias"}
    weight, bias = (ran.weights[f"l.{k}"].reshape(shape) for k in ("weight", "bias"))
    np.testing.assert_allclose(ran.outputs["y"], x * weight + bias, rtol=1e-5, atol=1e-6)


def test_scale_and_bias_by_a_second_bottom() -> None:
    x, per_image = random(2, 3, 4, 5), random(2, 3, seed=1)
    text = inputs(x=x.shape, s=per_image.shape)
    text += layer("Scale", "x s", "y", "scale_param { axis: 0 }", "a")
    text += layer("Bias", "x s", "z", "bias_param { axis: 0 }", "b")
    outputs = Ran(text, {"x": x, "s": per_image}).outputs
    np.testing.assert_allclose(outputs["y"], x * per_image[:, :, None, None], rtol=1e-5)
    np.testing.assert_allclose(outputs["z"], x + per_image[:, :, None, None], rtol=1e-5)


def test_batch_norm_without_scale_has_no_parameters() -> None:
    x = random(4, 3, 5, 5)
    ran = Ran(inputs(x=x.shape) + layer("BatchNorm", "x"), {"x": x})
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    assert not ran.weights
    np.testing.assert_allclose(
        ran.outputs["y"], (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-5
    )


def test_a_scale_joins_its_batch_norm_only_where_nothing_else_reads_it() -> None:
    x = random(4, 3, 5, 5)
    start = inputs(x=x.shape) + layer("BatchNorm", "x", "n", name="norm")
    scale = layer("Scale", "n", "n", "scale_param { bias_term: true }", "scale")
    joined = Ran(start + scale, {"x": x})
    read_before = layer("ReLU", "n", "r", name="relu")
    apart = Ran(start + read_before + scale, {"x": x})
    by_rows = Ran(start + layer("Scale", "n", "n", "scale_param { axis: 2 }", "scale"), {"x": x})
    count = [[node.op_type for node in ran.file.graph.node] for ran in (joined, apart, by_rows)]
    assert count == [
        ["BatchNormalization"],
        ["BatchNormalization", "Relu", "Mul", "Add"],
        ["BatchNormalization", "Mul"],
    ]
    variance = x.var((0, 2, 3), keepdims=True)
    normed = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(variance + 1e-5)
    for ran in (joined, apart):
        weight, bias = (ran.weights[f"scale.{k}"].reshape(3, 1, 1) for k in ("weight", "bias"))
        name = ran.file.outputs[-1].name
        np.testing.assert_allclose(ran.outputs[name], normed * weight + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apart.outputs["r"], np.maximum(normed, 0), rtol=1e-4, atol=1e-5)


def test_global_statistics_are_used_where_asked_for() -> None:
    x = random(4, 3, 5, 5)
    text = inputs(x=x.shape) + layer(
        "BatchNorm", "x", more="batch_norm_param { use_global_stats: true }"
    )
    np.testing.assert_allclose(Ran(text, {"x": x}).outputs["y"], x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_lrn_across_channels() -> None:
    x = random(2, 7, 3, 3)
    text = inputs(x=x.shape) + layer(
        "LRN", "x", more="lrn_param { local_size: 5 alpha: 0.3 beta: 0.6 k: 2 }"
    )
    squares = np.pad(x**2, ((0, 0), (2, 2), (0, 0), (0, 0)))
    total = sum(squares[:, k : k + 7] for k in range(5))
    wanted = x / (2 + 0.3 / 5 * total) ** 0.6
    np.testing.assert_allclose(Ran(text, {"x": x}).outputs["y"], wanted, rtol=1e-5)


def test_lrn_within_channels_counts_padding_and_knows_no_k() -> None:
    x = random(2, 2, 4, 5)
    text = inputs(x=x.shape) + layer(
        "LRN",
        "x",
        more="""lrn_param { local_size: 3 alpha: 0.5
        beta: 0.75 k: 7 norm_region: WITHIN_CHANNEL }""",
    )
    squares = np.pad(x**2, ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = sum(
        squares[:, :, i : i + 4, j : j + 5] for i, j in itertools.product(range(3), range(3))
    )
    wanted = x * (1 + 0.5 / 9 * total) ** -0.75
    np.testing.assert_allclose(Ran(text, {"x": x}).outputs["y"], wanted, rtol=1e-5)


def cross_entropies(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each place; scores (N, C, H, W), labels (N, H, W)."""
    log = scores - scores.max(1, keepdims=True)
    log = log - np.log(np.exp(log).sum(1, keepdims=True))
    return -np.take_along_axis(log, labels[:, None], 1)[:, 0]


@pytest.mark.parametrize(
    ("parameters", "ignored", "divisor"),
    [
        ("", None, "all"),
        ("normalization: FULL", 1, "all"),
        ("normalization: VALID", 1, "valid"),
        ("", 1, "valid"),
        ("normalize: false", None, "batch"),
        ("normalization: BATCH_SIZE", 1, "batch"),
        ("normalization: NONE", 1, "one"),
        ("normalization: NONE", None, "one"),
    ],
)
@pytest.mark.parametrize("form", ["images", "rows", "labels of four dimensions"])
def test_softmax_loss_is_normalized_as_asked(
    parameters: str, ignored: int | None, divisor: str, form: str
) -> None:
    side = 1 if form == "rows" else 3
    scores = random(4, 5, side, side)
    labels = np.random.default_rng(2).integers(0, 3, (4, side, side))
    labels[0] = 1
    shown = (4, 1, side, side) if "four" in form else (4,) if form == "rows" else labels.shape
    if ignored is not None:
        parameters += f" ignore_label: {ignored}"
    given = scores[:, :, 0, 0] if form == "rows" else scores
    text = inputs(x=given.shape, t=shown)
    text += layer("SoftmaxWithLoss", "x t", more=f"loss_param {{ {parameters} }} loss_weight: 0.3")
    counted = np.ones(labels.shape) if ignored is None else labels != ignored
    each = cross_entropies(scores.astype(np.float64), labels) * counted
    by = {"all": each.size, "valid": counted.sum(), "batch": 4, "one": 1}[divisor]
    ran = Ran(text, {"x": given, "t": labels.reshape(shown)})
    (found,) = ran.outputs.values()
    assert found == pytest.approx(0.3 * each.sum() / by, rel=1e-5)
    assert list(ran.outputs) == ["l/weighted"]


def test_a_batch_without_a_valid_label_has_no_loss() -> None:
    x, t = random(2, 3), np.full(2, 1)
    text = inputs(x=x.shape, t=(2,))
    text += layer("SoftmaxWithLoss", "x t", more="loss_param { ignore_label: 1 }")
    ran = Ran(text, {"x": x, "t": t})
    assert ran.outputs["y"] == 0 and not ran.gradient("x").any()


def test_losses_of_floats() -> None:
    a, b = random(4, 2, 3), random(4, 2, 3, seed=1)
    text = inputs(a=a.shape, b=b.shape)
    text += layer("EuclideanLoss", "a b", "e", name="e")
    text += layer("SigmoidCrossEntropyLoss", "a b", "s", name="s")
    text += layer("SigmoidCrossEntropyLoss", "a b", "n", "loss_param { normalization: NONE }", "n")
    outputs = Ran(text, {"a": a, "b": b}).outputs
    assert outputs["e"] == pytest.approx(((a - b) ** 2).sum() / 8, rel=1e-5)
    # Caffe's own form of it
    positive = a >= 0
    each = -(a * (b - positive) - np.log(1 + np.exp(a - 2 * a * positive)))
    assert outputs["s"] == pytest.approx(each.sum() / 4, rel=1e-5)
    assert outputs["n"] == pytest.approx(each.sum(), rel=1e-5)


def test_sigmoid_loss_leaves_ignored_targets_out() -> None:
    x, t = random(4, 6), np.random.default_rng(1).integers(-1, 2, (4, 6)).astype(np.float32)
    text = inputs(x=x.shape, t=t.shape) + layer(
        "SigmoidCrossEntropyLoss",
        "x t",
        more="loss_param { ignore_label: -1 normalization: VALID }",
    )
    each = (np.log1p(np.exp(x)) - x * t)[t != -1]
    assert Ran(text, {"x": x, "t": t}).outputs["y"] == pytest.approx(each.mean(), rel=1e-5)


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_hinge_loss(norm: str) -> None:
    x, t = random(4, 5), np.array([0, 4, 2, 2])
    text = inputs(x=x.shape, t=t.shape)
    text += layer("HingeLoss", "x t", more=f"hinge_loss_param {{ norm: {norm} }}")
    signs = np.ones_like(x)
    signs[np.arange(4), t] = -1
    margins = np.maximum(0, 1 + signs * x) ** (1 if norm == "L1" else 2)
    assert Ran(text, {"x": x, "t": t}).outputs["y"] == pytest.approx(margins.sum() / 4, rel=1e-5)


@pytest.mark.parametrize("old", [False, True])
def test_contrastive_loss(old: bool) -> None:
    a, b = random(4, 3), random(4, 3, seed=1)
    y = np.array([1, 0, 0, 1], np.float32)
    text = inputs(a=a.shape, b=b.shape, s=y.shape)
    legacy = f"legacy_version: {str(old).lower()}"
    text += layer(
        "ContrastiveLoss", "a b s", more=f"contrastive_loss_param {{ margin: 3 {legacy} }}"
    )
    square = ((a - b) ** 2).sum(1)
    gap = np.maximum(3 - square, 0) if old else np.maximum(3 - np.sqrt(square), 0) ** 2
    found = Ran(text, {"a": a, "b": b, "s": y}).outputs["y"]
    assert found == pytest.approx((y * square + (1 - y) * gap).sum() / 8, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "parameters", "wanted"),
    [
        ("ReLU", "relu_param { negative_slope: 0.1 }", lambda x: np.where(x > 0, x, 0.1 * x)),
        ("ELU", "elu_param { alpha: 0.5 }", lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
        ("BNLL", "", lambda x: np.log1p(np.exp(x))),
        ("AbsVal", "", np.abs),
        ("Power", "power_param { power: 2 scale: 3 shift: 4 }", lambda x: (4 + 3 * x) ** 2),
        ("Power", "power_param { scale: 3 shift: 4 }", lambda x: 4 + 3 * x),
        ("Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }", lambda x: 2 ** (1 + 0.5 * x)),
        ("Exp", "", np.exp),
        ("Log", "log_param { base: 10 scale: 0.1 shift: 5 }", lambda x: np.log10(5 + 0.1 * x)),
        ("Softmax", "", lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
        (
            "Softmax",
            "softmax_param { axis: -1 }",
            lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
        ),
        ("Threshold", "threshold_param { threshold: 0.2 }", lambda x: x > 0.2),
        (
            "MVN",
            "",
            lambda x: (x - x.mean((2, 3), keepdims=True)) / (x.std((2, 3), keepdims=True) + 1e-9),
        ),
        (
            "MVN",
            "mvn_param { across_channels: true normalize_variance: false }",
            lambda x: x - x.mean((1, 2, 3), keepdims=True),
        ),
        (
            "Reduction",
            "reduction_param { operation: ASUM axis: 1 coeff: 2 }",
            lambda x: 2 * np.abs(x).sum((1, 2, 3)),
        ),
        ("Reduction", "reduction_param { operation: MEAN axis: 2 }", lambda x: x.mean((2, 3))),
        ("Reduction", "reduction_param { operation: SUMSQ axis: 3 }", lambda x: (x**2).sum(3)),
        ("ArgMax", "argmax_param { axis: 1 }", lambda x: x.argmax(1, keepdims=True)),
        ("ArgMax", "", lambda x: x.reshape(len(x), -1).argmax(1).reshape(-1, 1, 1)),
        ("Flatten", "flatten_param { axis: 2 }", lambda x: x.reshape(*x.shape[:2], -1)),
        ("Flatten", "flatten_param { end_axis: 2 }", lambda x: x.reshape(len(x), -1, x.shape[3])),
        (
            "Reshape",
            "reshape_param { shape { dim: 0 dim: -1 dim: 5 } }",
            lambda x: x.reshape(len(x), -1, 5),
        ),
        (
            "Reshape",
            "reshape_param { shape { dim: 2 dim: -1 } axis: 1 num_axes: 1 }",
            lambda x: x.reshape(len(x), 2, 2, 6, 5),
        ),
        ("Reshape", "reshape_param { shape { dim: -1 dim: 5 } }", lambda x: x.reshape(-1, 5)),
        ("Tile", "tile_param { axis: 2 tiles: 3 }", lambda x: np.tile(x, (1, 1, 3, 1))),
        ("Permute", "permute_param { order: 0 order: 2 }", lambda x: x.transpose(0, 2, 1, 3)),
        ("ShuffleChannel", "shuffle_channel_param { group: 2 }", lambda x: x[:, [0, 2, 1, 3]]),
        ("Upsample", "upsample_param { scale: 2 }", lambda x: x.repeat(2, 2).repeat(2, 3)),
        ("Swish", "swish_param { beta: 2 }", lambda x: x / (1 + np.exp(-2 * x))),
        ("Clip", "clip_param { min: -0.5 max: 0.25 }", lambda x: np.clip(x, -0.5, 0.25)),
    ],
)
def test_layers_of_one_blob(kind: str, parameters: str, wanted) -> None:  # type: ignore[no-untyped-def]
    for batch in (2, 3):  # the graph is for any batch, whatever the net says
        x = random(batch, 4, 6, 5)
        text = inputs(x=(2, 4, 6, 5)) + layer(kind, "x", more=parameters)
        found = Ran(text, {"x": x}).outputs["y"]
        expected = np.asarray(wanted(x), np.float32)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_interp_puts_corners_on_corners() -> None:
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    text = inputs(x=x.shape) + layer("Interp", "x", more="interp_param { zoom_factor: 2 }")
    found = Ran(text, {"x": x}).outputs["y"]
    assert found.shape == (1, 1, 5, 7)
    np.testing.assert_allclose(found[:, :, ::2, ::2], x, rtol=1e-6)
    np.testing.assert_allclose(found[0, 0, 1], (found[0, 0, 0] + found[0, 0, 2]) / 2, rtol=1e-6)


def test_convolutions_of_all_kinds() -> None:
    x = random(2, 4, 7, 6)
    text = inputs(x=x.shape)
    text += layer(
        "Convolution",
        "x",
        "a",
        """convolution_param { num_output: 6 group: 2
        kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 0 }""",
        "a",
    )
    text += layer(
        "Convolution",
        "x",
        "b",
        """convolution_param { num_output: 3 kernel_size: 3
        dilation: 2 pad: 2 bias_term: false }""",
        "b",
    )
    text += layer(
        "Deconvolution",
        "x",
        "c",
        """convolution_param { num_output: 4 group: 4
        kernel_size: 4 stride: 2 pad: 1 }""",
        "c",
    )
    ran = Ran(text, {"x": x})
    functional = torch.nn.functional
    w = {name: torch.from_numpy(value) for name, value in ran.weights.items()}
    t = torch.from_numpy(x)
    wanted = {
        "a": functional.conv2d(t, w["a.weight"], w["a.bias"], (2, 1), (1, 0), groups=2),
        "b": functional.conv2d(t, w["b.weight"], None, 1, 2, 2),
        "c": functional.conv_transpose2d(t, w["c.weight"], w["c.bias"], 2, 1, groups=4),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(ran.outputs[name], value, rtol=1e-4, atol=1e-5)
    assert ran.outputs["c"].shape == (2, 4, 14, 12)


@pytest.mark.parametrize(("axis", "transpose"), [(1, False), (1, True), (2, False)])
def test_inner_products(axis: int, transpose: bool) -> None:
    x = random(2, 3, 4, 5)
    text = inputs(x=x.shape) + layer(
        "InnerProduct",
        "x",
        more=f"""inner_product_param {{
        num_output: 7 axis: {axis} transpose: {str(transpose).lower()} }}""",
    )
    ran = Ran(text, {"x": x})
    weight = ran.weights["l.weight"]
    product = x.reshape(*x.shape[:axis], -1) @ (weight if transpose else weight.T)
    np.testing.assert_allclose(
        ran.outputs["y"], product + ran.weights["l.bias"], rtol=1e-4, atol=1e-5
    )


def test_blobs_written_in_place_and_shared_weights() -> None:
    x = random(3, 4)
    of = 'inner_product_param { num_output: 4 } param { name: "w" } param { name: "b" }'
    text = inputs(x=x.shape)
    text += layer("InnerProduct", "x", "h", of, "first") + layer("ReLU", "h", "h", name="relu")
    text += layer("InnerProduct", "h", "y", of, "second") + layer("TanH", "y", "y", name="tanh")
    ran = Ran(text, {"x": x})
    assert set(ran.weights) == {"w", "b"}
    hidden = np.maximum(x @ ran.weights["w"].T + ran.weights["b"], 0)
    wanted = np.tanh(hidden @ ran.weights["w"].T + ran.weights["b"])
    np.testing.assert_allclose(ran.outputs["y/tanh"], wanted, rtol=1e-4, atol=1e-5)


def test_slices_crops_and_concats() -> None:
    x, like = random(2, 6, 5, 5), random(2, 6, 3, 2, seed=1)
    text = inputs(x=x.shape, like=like.shape)
    text += layer("Slice", "x", "a b", "slice_param { slice_point: 2 }", "cut")
    text += layer("Concat", "b a", "c", name="join")
    text += layer("Crop", "c like", "d", "crop_param { axis: 2 offset: 1 offset: 2 }", "crop")
    found = Ran(text, {"x": x, "like": like}).outputs["d"]
    wanted = np.concatenate([x[:, 2:], x[:, :2]], 1)[:, :, 1:4, 2:4]
    np.testing.assert_array_equal(found, wanted)


def test_frozen_layers_have_no_gradients() -> None:
    x = random(2, 3)
    text = inputs(x=x.shape) + layer(
        "InnerProduct", "x", more="inner_product_param { num_output: 2 } param { lr_mult: 0 }"
    )
    assert set(Ran(text, {"x": x}).weights) == {"l.bias"}


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_dense_block_is_its_plain_layers(bottleneck: bool) -> None:
    depth = 16 if bottleneck else 10
    values = {
        "data": random(4, 3, 32, 32),
        "label": np.random.default_rng(0).integers(0, 10, 4),
    }
    plain = Ran(densenet(depth=depth, bottleneck=bottleneck), values)
    block = Ran(
        densenet(depth=depth, bottleneck=bottleneck, dense_block=True),
        values,
        order=plain.in_file_order(),
    )
    assert plain.outputs["loss"] == block.outputs["loss"] > 0
    np.testing.assert_array_equal(plain.gradient("data"), block.gradient("data"))
