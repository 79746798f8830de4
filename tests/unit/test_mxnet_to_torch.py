"""MXNet's operators in PyTorch: outputs, gradients and states against MXNet itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from memcli.errors import BadInput
from tests.conftest import needs_mxnet

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def mx() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        # RNN in oneDNN knows no double precision; and its code is not the one of the engine jobs
        patch.setenv("MXNET_MKLDNN_ENABLED", "0")
        patch.setenv("MXNET_USE_MKLDNN_RNN", "0")
        from memcli.engines.mxnet.shim import import_mxnet

        torch.set_num_threads(1)
        yield import_mxnet()


@dataclass
class Case:
    """A symbol of a few operators, and what its variables are."""

    build: Callable[[Any], Any]  # from mxnet.symbol
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, Any] = field(default_factory=dict)  # by default normal
    fixed: tuple[str, ...] = ()  # MXNet makes no gradient of these
    types: dict[str, str] = field(default_factory=dict)  # of those that are not ``dtype``
    dtype: str = "float64"
    tolerance: float = 1e-7  # attributes are single precision in MXNet


def check(mx: Any, case: Case) -> Any:
    """One step in both engines; the converted symbol."""
    from memcli.engines.torch.convert.mxnet_graph import convert_symbol

    symbol = case.build(mx.sym)
    arguments, states = symbol.list_arguments(), symbol.list_auxiliary_states()
    kinds = {name: case.types.get(name, case.dtype) for name in arguments + states}
    types = {name: np.dtype(kinds[name]).type for name in arguments}
    executor = symbol.simple_bind(
        mx.cpu(),
        grad_req={n: "null" if n in case.fixed else "write" for n in arguments},
        type_dict=types,
        **{n: s for n, s in case.shapes.items() if n in arguments},
    )
    rng = np.random.default_rng(7)
    values = {}
    for name, held in {**executor.arg_dict, **executor.aux_dict}.items():
        given = case.values.get(name)
        if given is None:
            low = 0.5 if name.endswith("var") else 0.0
            given = np.abs(rng.standard_normal(held.shape)) + low if low else None
        if given is None:
            given = rng.standard_normal(held.shape)
        values[name] = np.broadcast_to(np.asarray(given, held.dtype), held.shape).copy()
        held[:] = values[name]
    executor.forward(is_train=True)
    heads = [rng.standard_normal(out.shape) for out in executor.outputs]
    pairs = zip(heads, executor.outputs, strict=True)
    executor.backward([mx.nd.array(head, dtype=out.dtype) for head, out in pairs])
    known = {**executor.arg_dict, **executor.aux_dict}
    converted = convert_symbol(
        json.loads(symbol.tojson()),
        {name: held.shape for name, held in known.items()},
        kinds,
        values=values,
    )
    module = converted.module
    inputs = [torch.from_numpy(values[free.name]) for free in converted.inputs]
    inputs = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    outputs = module(*inputs)
    reached = [
        (out, torch.from_numpy(head).to(out.dtype))
        for out, head in zip(outputs, heads, strict=True)
        if out.requires_grad
    ]
    torch.autograd.backward([out for out, _ in reached], [head for _, head in reached])
    for i, (ours, theirs) in enumerate(zip(outputs, executor.outputs, strict=True)):
        close(ours, theirs, f"output {i}", case.tolerance)
    given = {free.argument: tensor for free, tensor in zip(converted.inputs, inputs, strict=True)}
    assert [held.name for held in converted.arguments] == arguments
    assert [held.name for held in converted.auxiliary] == states
    for held in converted.arguments:
        theirs = executor.grad_dict.get(held.name)
        tensor = given.get(held.attribute)
        tensor = getattr(module, held.attribute) if tensor is None else tensor
        if theirs is not None:
            ours = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            close(ours, theirs, f"gradient of {held.name}", case.tolerance)
    for held in converted.auxiliary:
        theirs = executor.aux_dict[held.name]
        close(getattr(module, held.attribute), theirs, held.name, case.tolerance)
    called = [n for n in module.graph.nodes if n.op == "call_function"]
    operators = [n["name"] for n in json.loads(symbol.tojson())["nodes"] if n["op"] != "null"]
    firsts = [n.meta["memcli"] for n in called if "getitem" not in str(n.target)]
    assert sorted(meta["name"] for meta in firsts) == sorted(operators)
    return converted


def close(ours: Any, theirs: Any, what: str, tolerance: float) -> None:
    expected = theirs.asnumpy()
    values = ours.detach().numpy()
    assert values.shape == expected.shape, what
    scale = max(1e-3, float(np.abs(expected).max(initial=0.0)))
    worst = float(np.abs(values.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
    assert worst <= tolerance * scale, f"{what}: {worst} of {scale}"


# For operators that MXNet has in single precision alone.
SINGLE: dict[str, Any] = {"dtype": "float32", "tolerance": 1e-5}


def named(sym: Any, op: str) -> Any:
    """The function that makes an operator."""
    for place in (sym, sym.contrib, sym._internal):
        if hasattr(place, op):
            return getattr(place, op)
    raise LookupError(op)


def one(op: str, size: tuple[int, ...], /, **attributes: Any) -> Case:
    """A single operator on one input; ``values`` and such are the case's own."""
    own = {k: attributes.pop(k) for k in ("values", "dtype", "tolerance") if k in attributes}

    def build(sym: Any) -> Any:
        return named(sym, op)(sym.Variable("x"), name="op", **attributes)

    return Case(build, {"x": size}, **own)


def two(op: str, left: tuple[int, ...], right: tuple[int, ...], **attributes: Any) -> Case:
    """A single operator on two inputs."""
    keys = ("values", "dtype", "fixed", "tolerance")
    own = {k: attributes.pop(k) for k in keys if k in attributes}
    return Case(
        lambda sym: named(sym, op)(sym.Variable("x"), sym.Variable("y"), name="op", **attributes),
        {"x": left, "y": right},
        **own,
    )


def loss(op: str, shape: tuple[int, ...], label: Any, **attributes: Any) -> Case:
    """A loss layer on scores and labels."""
    fixed = ("label",) if op == "softmax_cross_entropy" else ()
    label = np.asarray(label, float)
    return Case(
        lambda sym: getattr(sym, op)(
            sym.Variable("x"), sym.Variable("label"), name="op", **attributes
        ),
        {"x": shape, "label": label.shape},
        {"label": label},
        fixed,
    )


def norm(**attributes: Any) -> Case:
    return one("BatchNorm", (4, 3, 5, 5), **attributes)


def rnn(mode: str, **attributes: Any) -> Case:
    def build(sym: Any) -> Any:
        names = ["x", "p", "h", "c"] if mode == "lstm" else ["x", "p", "h"]
        out = sym.RNN(
            *[sym.Variable(n) for n in names],
            mode=mode,
            state_size=4,
            state_outputs=True,
            name="op",
            **{"num_layers": 1, **attributes},
        )
        return sym.Group(list(out))

    return Case(build, {"x": (5, 2, 3)}, tolerance=1e-6)


def self_attention(sym: Any) -> Any:
    x = sym.Variable("x")
    scores = sym.contrib.interleaved_matmul_selfatt_qk(x, heads=2, name="scores")
    weights = sym.softmax(scores, name="weights")
    return sym.contrib.interleaved_matmul_selfatt_valatt(x, weights, heads=2, name="op")


GRID = np.array([[0.0, 2, 1], [3, 1, 0]])
CASES: dict[str, Case] = {
    "conv": one(
        "Convolution",
        (2, 4, 7, 6),
        kernel=(3, 2),
        num_filter=6,
        stride=(2, 1),
        pad=(1, 0),
        num_group=2,
    ),
    "conv dilated": one(
        "Convolution", (1, 2, 9, 9), kernel=(3, 3), num_filter=3, dilate=(2, 2), no_bias=True
    ),
    "conv 1d": one("Convolution", (2, 3, 9), kernel=(3,), num_filter=4, pad=(1,)),
    "conv 3d": one("Convolution", (1, 2, 4, 5, 5), kernel=(2, 3, 3), num_filter=3),
    "deconv": one(
        "Deconvolution",
        (2, 4, 4, 4),
        kernel=(4, 4),
        num_filter=6,
        stride=(2, 2),
        pad=(1, 1),
        num_group=2,
    ),
    "deconv adj": one(
        "Deconvolution",
        (1, 2, 4, 4),
        kernel=(3, 3),
        num_filter=2,
        stride=(2, 2),
        adj=(1, 1),
        no_bias=False,
    ),
    "deconv target": one(
        "Deconvolution",
        (1, 2, 4, 4),
        kernel=(4, 4),
        num_filter=2,
        stride=(2, 2),
        target_shape=(7, 8),
    ),
    "fc": one("FullyConnected", (2, 3, 4), num_hidden=5),
    "fc last": one("FullyConnected", (2, 3, 4), num_hidden=5, flatten=False, no_bias=True),
    "bn": norm(fix_gamma=False, eps=1e-3, momentum=0.8),
    "bn fixed": norm(fix_gamma=True),
    "bn global": norm(use_global_stats=True, fix_gamma=False),
    "bn global fixed": norm(use_global_stats=True),
    "bn axis": one("BatchNorm", (4, 5, 3), axis=2, fix_gamma=False),
    "bn of one": one("BatchNorm", (1, 3), fix_gamma=False),
    "layer norm": one("LayerNorm", (3, 4, 5), eps=1e-4),
    "layer norm axis": one("LayerNorm", (3, 4, 5), axis=1),
    "instance norm": one("InstanceNorm", (2, 3, 4, 4), eps=1e-3, **SINGLE),
    "group norm": one("GroupNorm", (2, 4, 3, 3), num_groups=2, **SINGLE),
    "l2 instance": one("L2Normalization", (2, 3, 4)),
    "l2 channel": one("L2Normalization", (2, 3, 4), mode="channel"),
    "l2 spatial": one("L2Normalization", (2, 3, 4), mode="spatial"),
    "lrn": one("LRN", (2, 7, 3, 3), nsize=5, alpha=1e-2, knorm=1.5, **SINGLE),
    "relu": one("Activation", (3, 4), act_type="relu"),
    "sigmoid": one("Activation", (3, 4), act_type="sigmoid"),
    "tanh": one("Activation", (3, 4), act_type="tanh"),
    "softrelu": one("Activation", (3, 4), act_type="softrelu"),
    "softsign": one("Activation", (3, 4), act_type="softsign"),
    "leaky": one("LeakyReLU", (3, 4), act_type="leaky", slope=0.1),
    "elu": one("LeakyReLU", (3, 4), act_type="elu", slope=0.3),
    "selu": one("LeakyReLU", (3, 4), act_type="selu", dtype="float32", tolerance=1e-6),
    "gelu": one("LeakyReLU", (3, 4), act_type="gelu", **SINGLE),
    "hard sigmoid": one("hard_sigmoid", (3, 4)),
    "softmax": one("softmax", (2, 3, 4), axis=1, temperature=2.0),
    "softmax of lengths": Case(
        lambda sym: sym.softmax(
            sym.Variable("x"), length=sym.Variable("n"), use_length=True, axis=1, name="op"
        ),
        {"x": (2, 4), "n": (2,)},
        {"n": [2, 4]},
        fixed=("n",),
        types={"n": "int32"},
    ),
    "softmin": one("softmin", (2, 3)),
    "log softmax": one("log_softmax", (2, 3, 4)),
    "softmax activation": one("SoftmaxActivation", (2, 5), **SINGLE),
    "softmax channel": one("SoftmaxActivation", (2, 3, 2, 2), mode="channel", **SINGLE),
    "softmax output": loss("SoftmaxOutput", (3, 4), [1, 0, 2], grad_scale=0.5),
    "softmax batch": loss("SoftmaxOutput", (3, 4), [1, 0, 2], normalization="batch"),
    "softmax valid": loss(
        "SoftmaxOutput", (3, 4), [1, 0, 2], normalization="valid", use_ignore=True, ignore_label=0
    ),
    "softmax valid all": loss(
        "SoftmaxOutput", (3, 4), [1, -1, 2], normalization="valid", use_ignore=True
    ),
    "softmax ignore": loss("SoftmaxOutput", (3, 4), [1, 0, 2], use_ignore=True, ignore_label=2),
    "softmax smooth": loss("SoftmaxOutput", (3, 4), [1, 0, 2], smooth_alpha=0.2),
    "softmax soft": loss("SoftmaxOutput", (2, 3), [[0.2, 0.3, 0.5], [1, 0, 0]], grad_scale=2.0),
    "softmax multi": loss("SoftmaxOutput", (2, 4, 3), GRID, multi_output=True),
    "softmax multi batch": loss(
        "SoftmaxOutput", (2, 4, 3), GRID, multi_output=True, normalization="batch", grad_scale=3.0
    ),
    "softmax multi valid": loss(
        "SoftmaxOutput",
        (2, 4, 3),
        GRID,
        multi_output=True,
        normalization="valid",
        use_ignore=True,
        ignore_label=1,
    ),
    "softmax multi ignore": loss(
        "SoftmaxOutput",
        (2, 4, 3, 1),
        GRID[:, :, None],
        multi_output=True,
        use_ignore=True,
        ignore_label=0,
    ),
    "softmax preserve": loss("SoftmaxOutput", (2, 3, 4), GRID, preserve_shape=True),
    "softmax preserve valid": loss(
        "SoftmaxOutput",
        (2, 3, 4),
        GRID,
        preserve_shape=True,
        normalization="valid",
        use_ignore=True,
        ignore_label=3,
    ),
    "softmax preserve batch": loss(
        "SoftmaxOutput", (2, 3, 4), GRID, preserve_shape=True, normalization="batch"
    ),
    "linear regression": loss("LinearRegressionOutput", (2, 3), GRID, grad_scale=0.7),
    "linear regression flat": loss("LinearRegressionOutput", (3, 1), [1, 0, 2]),
    "logistic regression": loss("LogisticRegressionOutput", (2, 3), GRID),
    "absolute regression": loss("MAERegressionOutput", (2, 3), GRID),
    "svm": loss("SVMOutput", (3, 4), [1, 0, 2], margin=0.8, regularization_coefficient=0.5),
    "svm linear": loss("SVMOutput", (3, 4), [1, 0, 2], use_linear=True),
    "cross entropy": loss("softmax_cross_entropy", (3, 4), [1, 0, 2]),
    "make loss": one("MakeLoss", (3, 4), grad_scale=0.3),
    "make loss batch": one("MakeLoss", (3, 4), normalization="batch"),
    "make loss valid": one("MakeLoss", (3, 4), normalization="valid", valid_thresh=0.2),
    "make_loss": one("make_loss", (3, 4)),
    "block": Case(
        lambda sym: sym.BlockGrad(sym.Variable("x")) * sym.Variable("y"), {"x": (2, 3), "y": (2, 3)}
    ),
    "embedding": Case(
        lambda sym: sym.Embedding(sym.Variable("x"), input_dim=4, output_dim=3, name="op"),
        {"x": (2, 3)},
        {"x": GRID},
        fixed=("x",),
    ),
    # Its gradient comes from outside, so that MXNet does not work in place (see the note).
    "prelu": Case(
        lambda sym: sym.LeakyReLU(sym.Variable("x"), act_type="prelu", name="op"),
        {"x": (2, 3, 4)},
        {"op_gamma": [0.1, 0.5, -0.3]},
    ),
    **{
        f"pool {kind} {convention}": one(
            "Pooling",
            (2, 3, 8, 7),
            kernel=(3, 3),
            stride=(2, 2),
            pad=(1, 0),
            pool_type=kind,
            pooling_convention=convention,
        )
        for kind in ("max", "avg", "sum")
        for convention in ("valid", "full")
    },
    "pool without pad": one(
        "Pooling",
        (2, 3, 8, 7),
        kernel=(3, 3),
        stride=(2, 2),
        pad=(1, 1),
        pool_type="avg",
        pooling_convention="full",
        count_include_pad=False,
    ),
    "pool lp": one(
        "Pooling", (2, 3, 6, 6), kernel=(2, 2), stride=(2, 2), pool_type="lp", p_value=2
    ),
    "pool wide pad": one("Pooling", (1, 2, 6, 6), kernel=(3, 3), pad=(2, 2), pool_type="max"),
    "pool wide pad avg": one("Pooling", (1, 2, 6, 6), kernel=(3, 3), pad=(2, 2), pool_type="avg"),
    "pool 1d": one("Pooling", (2, 3, 8), kernel=(3,), stride=(2,), pool_type="max"),
    "pool 3d": one("Pooling", (1, 2, 4, 4, 4), kernel=(2, 2, 2), pool_type="avg"),
    "pool global max": one("Pooling", (2, 3, 4, 4), global_pool=True, kernel=(2, 2)),
    "pool global avg": one("Pooling", (2, 3, 4, 4), global_pool=True, pool_type="avg"),
    "pool global sum": one("Pooling", (2, 3, 4, 4), global_pool=True, pool_type="sum"),
    "lstm": rnn("lstm"),
    "lstm deep": rnn("lstm", num_layers=2, bidirectional=True),
    "gru": rnn("gru", num_layers=2),
    "rnn tanh": rnn("rnn_tanh", bidirectional=True),
    "rnn relu": rnn("rnn_relu"),
    "reshape": one("Reshape", (2, 3, 4), shape=(0, -1)),
    "reshape rest": one("Reshape", (2, 3, 4), shape=(-3, -2)),
    "reshape split": one("Reshape", (2, 6, 4), shape=(0, -4, -1, 2, 0)),
    "reshape reverse": one("Reshape", (10, 5, 4), shape=(-1, 0), reverse=True),
    "flatten": one("Flatten", (2, 3, 4)),
    "transpose": one("transpose", (2, 3, 4)),
    "transpose axes": one("transpose", (2, 3, 4), axes=(1, 2, 0)),
    "swap": one("SwapAxis", (2, 3, 4), dim1=0, dim2=2),
    "expand": one("expand_dims", (2, 3), axis=-1),
    "squeeze": one("squeeze", (2, 1, 3, 1)),
    "squeeze axis": one("squeeze", (2, 1, 3, 1), axis=1),
    "split": Case(
        lambda sym: sym.Group(
            list(sym.SliceChannel(sym.Variable("x"), num_outputs=3, axis=1, name="op"))
        ),
        {"x": (2, 6, 2)},
    ),
    "split squeezed": Case(
        lambda sym: sym.SliceChannel(
            sym.Variable("x"), num_outputs=3, axis=-1, squeeze_axis=True, name="op"
        )[1],
        {"x": (2, 2, 3)},
    ),
    "slice axis": one("slice_axis", (3, 7), axis=-1, begin=-5, end=-1),
    "slice": one("slice", (5, 7), begin=(1, None), end=(None, -2), step=(2, 1)),
    "slice backwards": one("slice", (5, 7), begin=(None, 5), end=(None, 1), step=(-1, -2)),
    "slice like": two("slice_like", (5, 7), (3, 4), axes=(0,)),
    "crop": two("Crop", (1, 2, 7, 7), (1, 1, 4, 4), offset=(1, 2), num_args=2, **SINGLE),
    "crop center": one("Crop", (1, 2, 7, 8), h_w=(3, 4), center_crop=True, num_args=1, **SINGLE),
    "reverse": one("reverse", (2, 3, 4), axis=(0, 2)),
    "tile": one("tile", (2, 3), reps=(2, 1, 2)),
    "repeat": one("repeat", (2, 3), repeats=2, axis=1),
    "repeat all": one("repeat", (2, 3), repeats=2),
    "stack": two("stack", (2, 3), (2, 3), axis=1, num_args=2),
    "concat": two("Concat", (2, 3), (2, 4), dim=-1, num_args=2),
    "pad": one(
        "Pad",
        (1, 2, 3, 3),
        mode="constant",
        pad_width=(0, 0, 0, 0, 1, 2, 3, 0),
        constant_value=2.0,
        **SINGLE,
    ),
    "pad edge": one("Pad", (1, 2, 3, 3), mode="edge", pad_width=(0, 0, 0, 0, 1, 2, 3, 0)),
    "pad reflect": one("Pad", (1, 2, 4, 4), mode="reflect", pad_width=(0, 0, 0, 0, 1, 2, 3, 0)),
    "broadcast axis": one("broadcast_axis", (2, 1, 3), axis=1, size=4),
    "broadcast to": one("broadcast_to", (2, 1, 3), shape=(0, 4, 0)),
    "broadcast like": two("broadcast_like", (2, 1), (2, 4)),
    "depth to space": one("depth_to_space", (1, 8, 2, 3), block_size=2),
    "space to depth": one("space_to_depth", (1, 2, 4, 6), block_size=2),
    "dot": two("dot", (2, 3), (3, 4)),
    "dot transposed": two("dot", (3, 2), (4, 3), transpose_a=True, transpose_b=True),
    "dot of vectors": two("dot", (3,), (3,)),
    "batch dot": two("batch_dot", (2, 3, 4), (2, 5, 4), transpose_b=True),
    "take": two("take", (4, 3), (2, 3), values={"y": GRID}, fixed=("y",)),
    "take wrap": two(
        "take", (3, 4), (2, 3), axis=1, mode="wrap", values={"y": GRID + 3}, fixed=("y",)
    ),
    "pick": two("pick", (3, 4), (3,), axis=1, keepdims=True, values={"y": [1, 0, 3]}, fixed=("y",)),
    "gather": two("gather_nd", (3, 4), (2, 3), values={"y": [[0, 2, 1], [3, 1, 1]]}, fixed=("y",)),
    "one hot": one("one_hot", (2, 3), depth=5, on_value=2.0, off_value=-1.0, values={"x": GRID}),
    "where": Case(
        lambda sym: sym.where(sym.Variable("c"), sym.Variable("x"), sym.Variable("y"), name="op"),
        {"c": (2, 3), "x": (2, 3), "y": (2, 3)},
        {"c": [[1, 0, 2], [0, 0, 1]]},
    ),
    "clip": one("clip", (3, 4), a_min=-0.5, a_max=0.7),
    "smooth l1": one("smooth_l1", (3, 4), scalar=1.5),
    "upsampling": one("UpSampling", (1, 2, 3, 3), scale=2, sample_type="nearest", num_args=1),
    "bilinear": one("BilinearResize2D", (1, 2, 4, 5), height=7, width=9),
    "adaptive": one("AdaptiveAvgPooling2D", (1, 2, 7, 5), output_size=(3, 2)),
    "sequence mask": Case(
        lambda sym: sym.SequenceMask(
            sym.Variable("x"), sym.Variable("n"), use_sequence_length=True, value=-1.0, name="op"
        ),
        {"x": (4, 2, 3), "n": (2,)},
        {"n": [2, 4]},
        fixed=("n",),
    ),
    "sequence last": Case(
        lambda sym: sym.SequenceLast(
            sym.Variable("x"), sym.Variable("n"), use_sequence_length=True, axis=1, name="op"
        ),
        {"x": (2, 4, 3), "n": (2,)},
        {"n": [2, 4]},
        fixed=("n",),
    ),
    "sequence reverse": Case(
        lambda sym: sym.SequenceReverse(
            sym.Variable("x"), sym.Variable("n"), use_sequence_length=True, name="op"
        ),
        {"x": (4, 2, 3), "n": (2,)},
        {"n": [2, 4]},
        fixed=("n",),
    ),
    "self attention": Case(self_attention, {"x": (3, 2, 24)}, **SINGLE),
    "add n": Case(
        lambda sym: sym.add_n(*[sym.Variable(n) for n in "xyz"], name="op"),
        dict.fromkeys("xyz", (2, 3)),
    ),
    "arange": Case(
        lambda sym: sym.broadcast_mul(
            sym.Variable("x"), sym.arange(1, 7, 2, name="range", dtype="float64"), name="op"
        ),
        {"x": (2, 3)},
    ),
    "arange of a stop": Case(
        lambda sym: sym.broadcast_mul(
            sym.Variable("x"), sym.arange(3, repeat=2, name="range", dtype="float64"), name="op"
        ),
        {"x": (2, 6)},
    ),
    **{
        f"{op} {keep}": one(op, (2, 3, 4), axis=(0, 2), keepdims=keep)
        for op in ("sum", "mean", "max", "min", "prod", "norm")
        for keep in (True, False)
    },
    "sum of all": one("sum", (2, 3)),
    "sum but": one("sum", (2, 3, 4), axis=1, exclude=True),
    "max of equals": one("max", (2, 3), axis=1, values={"x": [[1, 1, 0], [2, 2, 2]]}),
    **{
        f"{op}": two(op, (2, 3), (2, 3))
        for op in (
            "elemwise_add",
            "elemwise_sub",
            "elemwise_mul",
            "elemwise_div",
            "_maximum",
            "_minimum",
            "_equal",
            "_greater",
            "_hypot",
        )
    },
    **{
        f"{op}": two(op, (2, 1, 3), (1, 4, 3))
        for op in (
            "broadcast_add",
            "broadcast_sub",
            "broadcast_mul",
            "broadcast_div",
            "broadcast_maximum",
            "broadcast_minimum",
            "broadcast_lesser",
            "broadcast_not_equal",
            "broadcast_mod",
        )
    },
    "maximum of equals": two(
        "_maximum", (1, 3), (1, 3), values={"x": [[1, 2, 3]], "y": [[1, 5, 2]]}
    ),
    **{
        op: one(op, (2, 3), scalar=1.5)
        for op in (
            "_plus_scalar",
            "_minus_scalar",
            "_rminus_scalar",
            "_mul_scalar",
            "_div_scalar",
            "_rdiv_scalar",
            "_maximum_scalar",
            "_minimum_scalar",
            "_rpower_scalar",
            "_mod_scalar",
            "_greater_scalar",
            "_lesser_equal_scalar",
            "_equal_scalar",
            "_hypot_scalar",
        )
    },
    **{
        op: one(op, (2, 3))
        for op in (
            "square",
            "exp",
            "abs",
            "sign",
            "negative",
            "floor",
            "ceil",
            "round",
            "rint",
            "trunc",
            "sin",
            "cos",
            "arctan",
            "sinh",
            "expm1",
            "reciprocal",
            "erf",
            "relu",
            "sigmoid",
            "softsign",
            "zeros_like",
            "ones_like",
            "cbrt",
            "logical_not",
            "identity",
        )
    },
    **{
        op: one(op, (2, 3), values={"x": [[0.3, 0.8, 0.5], [0.1, 0.9, 0.7]]})
        for op in (
            "sqrt",
            "rsqrt",
            "log",
            "log2",
            "log10",
            "log1p",
            "arcsin",
            "arccos",
            "gammaln",
            "gamma",
            "rcbrt",
            "tan",
            "arctanh",
            "erfinv",
        )
    },
    "power": one("_power_scalar", (2, 3), scalar=1.5, values={"x": np.abs(GRID) + 0.5}),
    "argmax": Case(lambda sym: sym.BlockGrad(sym.argmax(sym.Variable("x"), axis=1)), {"x": (2, 5)}),
    "argsort": Case(
        lambda sym: sym.BlockGrad(sym.argsort(sym.Variable("x"), axis=1, is_ascend=False)),
        {"x": (2, 5)},
    ),
    "topk": one("topk", (2, 5), axis=1, k=2, ret_typ="value"),
}


@needs_mxnet
@pytest.mark.parametrize("case", list(CASES))
def test_operator(mx: Any, case: str) -> None:
    check(mx, CASES[case])


@needs_mxnet
def test_unsupported_operators_are_told_together(mx: Any) -> None:
    from memcli.engines.torch.convert.mxnet_graph import convert_symbol

    x = mx.sym.Variable("x")
    boxes = mx.sym.contrib.box_nms(x, name="first")
    boxes = mx.sym.contrib.box_nms(boxes, name="second")
    last = mx.sym.LeakyReLU(mx.sym.Variable("y"), act_type="rrelu", name="noise")
    raw = json.loads(mx.sym.Group([boxes, last]).tojson())
    with pytest.raises(BadInput) as error:
        convert_symbol(raw, {"x": (2, 5, 6), "y": (2, 3)}, name="net.json")
    message = str(error.value)
    assert "net.json" in message
    assert "_contrib_box_nms (1 node: first)" in message or "2 nodes: first, second" in message
    assert "LeakyReLU (1 node: noise): act_type=rrelu" in message


def test_recomputed_batch_norm_leaves_the_moving_statistics() -> None:
    from memcli.engines.torch.convert.mxnet_operators.normalization import batch_norm
    from memcli.engines.torch.rules import again_of

    torch.manual_seed(0)
    x, gamma, beta = torch.randn(4, 3, 2, 2), torch.rand(3) + 0.5, torch.randn(3)
    mean, variance = torch.zeros(3), torch.ones(3)
    first = batch_norm(x, gamma, beta, mean, variance, False, 1, 0.9, 1e-3)
    kept = mean.clone(), variance.clone()
    assert not torch.equal(mean, torch.zeros(3))
    again = again_of(batch_norm)(x, gamma, beta, mean, variance, False, 1, 0.9, 1e-3)
    assert torch.equal(first, again)
    assert torch.equal(mean, kept[0]) and torch.equal(variance, kept[1])


def test_a_planned_symbol_trains_bit_identically() -> None:
    """Every node dropped and recomputed: same gradients and moving statistics, to the bit."""
    from memcli.engines.torch.convert.mxnet_graph import convert_symbol
    from memcli.engines.torch.executor import AGAIN, PlannedModule

    raw = symbol_of_two_blocks()
    shapes = {
        "data": (4, 3, 8, 8),
        "label": (4,),
        "w1": (6, 3, 3, 3),
        "g1": (6,),
        "b1": (6,),
        "m1": (6,),
        "v1": (6,),
        "w2": (5, 6 * 16),
    }
    rng = np.random.default_rng(1)
    values = {name: rng.random(shape, np.float32) + 0.1 for name, shape in shapes.items()}
    roles = {"data": "input", "label": "label"}
    results = []
    for planned in (False, True):
        converted = convert_symbol(raw, shapes, roles=roles, values=values)
        module: Any = converted.module
        if planned:
            calls = [n.name for n in module.graph.nodes if n.op == "call_function"]
            module = PlannedModule(module, dict.fromkeys(calls, AGAIN))
        inputs = [torch.from_numpy(values["data"]), torch.tensor([0.0, 1, 2, 3])]
        torch.manual_seed(3)
        out = module(*inputs)[0]
        out.backward(torch.ones_like(out))
        gradients = {n: p.grad for n, p in module.named_parameters()}
        results.append((gradients, dict(module.named_buffers())))
    for first, second in zip(*results, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            if first[name] is None:
                assert second[name] is None and name == "g1"  # fixed
            else:
                assert torch.equal(first[name], second[name]), name


def symbol_of_two_blocks() -> dict[str, Any]:
    """A file from before MXNet 0.9 in all but its states: convolution, BatchNorm, pooling, loss."""
    nodes: list[dict[str, Any]] = []

    def add(op: str, name: str, inputs: tuple[int, ...] = (), **attrs: str) -> int:
        entries = [[i, 0, 0] for i in inputs]
        nodes.append({"op": op, "name": name, "attrs": attrs, "inputs": entries})
        return len(nodes) - 1

    data, w1 = add("null", "data"), add("null", "w1")
    x = add(
        "Convolution",
        "conv",
        (data, w1),
        kernel="(3L, 3L)",
        pad="(1, 1)",
        num_filter="6",
        no_bias="True",
    )
    states = tuple(add("null", name) for name in ("g1", "b1", "m1", "v1"))
    x = add("BatchNorm", "bn", (x, *states))
    x = add("Activation", "relu", (x,), act_type="relu")
    x = add("Dropout", "drop", (x,), p="0.3")
    x = add("Pooling", "pool", (x,), kernel="(2, 2)", stride="(2, 2)", pool_type="max")
    x = add("FullyConnected", "fc", (x, add("null", "w2")), num_hidden="5", no_bias="1")
    x = add("SoftmaxOutput", "softmax", (x, add("null", "label")))
    variables = [i for i, node in enumerate(nodes) if node["op"] == "null"]
    return {"nodes": nodes, "arg_nodes": variables, "heads": [[x, 0, 0]]}
