"""The example networks: one in MXNet and PyTorch, planned and verified from their files."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import EXAMPLES, Command, needs_mxnet, only_json

sys.path.insert(0, str(EXAMPLES))
from networks import sizes  # the examples are no package of memcli's

torch = pytest.importorskip("torch")
from tests.torch_models import CHEAP  # noqa: E402

BATCH = 4


def script(name: str, *options: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """A script of the examples, run as a program; its exit status."""
    monkeypatch.setattr(sys, "argv", [name, *options])
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# --------------------------------------------------------------------------- one network, twice

# Each kind of unit, stem, shortcut and form once, as small as it gets.
SMALL: dict[str, Callable[[], sizes.Size]] = {
    "resnet of small images": lambda: sizes.resnet(8, small=True),
    "resnet with bottlenecks": lambda: sizes.ResNet((1, 2), width=8, side=32, classes=7),
    "the planner's resnet": lambda: sizes.ResNet((2, 1), width=8, side=36, classes=7, classic=True),
    "densenet": lambda: sizes.densenet(10, 4, bottleneck=False, side=16),
    "densenet-bc": lambda: sizes.densenet(16, 4, side=16),
    "densenet-bc of large images": lambda: sizes.DenseNet((2, 1), 4, 8, side=36, classes=7),
    "the planner's densenet": lambda: sizes.DenseNet(
        (2, 1), 4, 8, side=36, classes=7, classic=True
    ),
    "mobilenet": lambda: sizes.MobileNetV2(0.25, side=64, classes=7),
    "lstm": lambda: sizes.LSTM(layers=2, hidden=6, steps=3, inputs=5, classes=7, batch=BATCH),
}


@needs_mxnet
@pytest.mark.parametrize("name", SMALL)
def test_both_frameworks_build_one_network(name: str) -> None:
    """As many parameters of the same shapes, and from the same values the same loss."""
    from networks.modules import inputs, module
    from networks.symbols import symbol

    size = SMALL[name]()
    torch.manual_seed(3)
    network, given = module(size), inputs(size, BATCH)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:  # others have the value that they always have
                parameter.add_(0.1 * torch.randn_like(parameter))
        expected = float(network(*given.values()))
    loss, arguments = mxnet_loss(symbol(size), size, network, given)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert arguments == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_a_fused_lstm_is_the_unrolled_one(fused: bool) -> None:
    """Both forms of the module: PyTorch's own layer says what the loss has to be."""
    from networks.modules import inputs, module

    size = sizes.LSTM(layers=2, hidden=6, steps=3, inputs=5, classes=7, fused=fused)
    torch.manual_seed(3)
    network, given = module(size), inputs(size, BATCH)
    layer = torch.nn.LSTM(6, 6, 2, batch_first=True)
    values = [v for k, v in network.named_parameters() if k.startswith("layers")]
    with torch.no_grad():
        for own, value in zip(layer.parameters(), values, strict=True):
            own.copy_(value)
        tops, _ = layer(network.embed(given["data"]))
        losses = [
            torch.nn.functional.cross_entropy(network.head(tops[:, t]), given["label"][:, t])
            for t in range(size.steps)
        ]
        assert float(network(*given.values())) == pytest.approx(BATCH * float(sum(losses)), 1e-5)


def mxnet_loss(
    symbol: Any, size: sizes.Size, network: Any, given: dict[str, Any]
) -> tuple[float, int]:
    """The loss of the symbol with the module's weights, and how many values they have."""
    from networks.symbols.base import mx

    values = {name: tensor.numpy() for name, tensor in given.items()}
    if isinstance(size, sizes.LSTM):
        feeds, weights = lstm_values(size, network, values)
    else:
        feeds = {"data": values["image"], "softmax_label": values["label"]}
        names = [n for n in symbol.list_arguments() if n not in feeds]
        # both are made from the input to the loss: the order is the same
        weights = dict(zip(names, (p.detach().numpy() for p in network.parameters()), strict=True))
    shapes = {name: value.shape for name, value in feeds.items()}
    executor = symbol.simple_bind(mx.cpu(), **shapes)
    for name, array in executor.arg_dict.items():
        if name not in feeds:
            assert array.shape == weights[name].shape, name
        array[:] = feeds.get(name, weights.get(name))
    outputs = [output.asnumpy() for output in executor.forward(is_train=True)]
    arguments = sum(executor.arg_dict[name].size for name in weights)
    if isinstance(size, sizes.LSTM):
        return float(sum(output.sum() for output in outputs[: size.steps])), arguments
    chosen = outputs[0][np.arange(BATCH), values["label"]]
    return float(-np.log(chosen).mean()), arguments


def lstm_values(size: sizes.LSTM, network: Any, given: dict[str, Any]) -> tuple[Any, Any]:
    """Inputs of the symbol, step by step, and its weights: MXNet has its gates in another order."""
    feeds = {}
    for step in range(size.steps):
        feeds[f"t{step}_data"] = given["data"][:, step]
        feeds[f"t{step}_label"] = given["label"][:, step]
    for layer in range(size.layers):
        for state in "ch":
            feeds[f"l{layer}_init_{state}"] = np.zeros((BATCH, size.hidden), np.float32)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    weights = {
        "embed_weight": state["embed.weight"],
        "cls_weight": state["head.weight"],
        "cls_bias": state["head.bias"],
    }
    for layer in range(size.layers):
        for kind in ("weight", "bias"):
            for ours, theirs in (("i2h", "ih"), ("h2h", "hh")):
                value = state[f"layers.{layer}.{kind}_{theirs}"]
                gates = np.split(value, 4)  # in, forget, candidate, out
                in_order = np.concatenate([gates[0], gates[2], gates[1], gates[3]])
                weights[f"l{layer}_{ours}_{kind}"] = in_order
    return feeds, weights


# --------------------------------------------------------------------------- depths


@pytest.mark.parametrize("depth", [18, 34, 35, 50, 101, 152, 200, 500, 1001])
def test_resnet_has_the_depth_asked_for(depth: int) -> None:
    """Convolutions off the shortcuts, and one linear layer."""
    size = sizes.resnet(depth)
    assert sum(size.units) * (3 if size.bottleneck else 2) + 2 == depth
    assert min(size.units) >= 1


@pytest.mark.parametrize("depth", [20, 110, 164, 1001, 1202])
def test_small_resnet_has_the_depth_asked_for(depth: int) -> None:
    size = sizes.resnet(depth, small=True)
    assert sum(size.units) * (3 if size.bottleneck else 2) + 2 == depth


@pytest.mark.parametrize(
    ("depth", "growth", "bottleneck", "millions"),
    [
        (40, 12, False, 1.0),
        (100, 12, False, 7.0),
        (100, 12, True, 0.8),
        (250, 24, True, 15.3),
        (190, 40, True, 25.6),
    ],
)
def test_densenet_has_the_published_parameters(
    depth: int, growth: int, bottleneck: bool, millions: float
) -> None:
    """Table 2 of arXiv 1608.06993, in millions to one decimal."""
    from networks.modules import DenseNet

    with torch.device("meta"):
        network = DenseNet(sizes.densenet(depth, growth, bottleneck=bottleneck))
    found = sum(p.numel() for p in network.parameters())
    assert round(found / 1e6, 1) == pytest.approx(millions, abs=0.05)


def test_depth_1000_has_a_thousand_convolutions() -> None:
    """Those on shortcuts counted, which a depth does not count otherwise."""
    from networks.modules import ResNet

    with torch.device("meta"):
        network = ResNet(sizes.resnet(1000, classic=True))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 1001


# --------------------------------------------------------------------------- files

EXPORTS: dict[str, tuple[sizes.Size, dict[str, int]]] = {
    "resnet": (sizes.ResNet((1, 1), width=8, side=32, classes=7), {"BatchNormalization": 9}),
    "densenet": (
        sizes.densenet(7, 4, bottleneck=False, side=8, dropout=0.2),
        {"BatchNormalization": 6, "Dropout": 5},
    ),
    "mobilenet": (
        sizes.MobileNetV2(
            0.25, side=32, classes=7, dropout=0.2, stages=((1, 16, 1, 1), (6, 24, 2, 2))
        ),
        {"BatchNormalization": 11, "Dropout": 1},
    ),
    "lstm": (sizes.LSTM(hidden=8, steps=3, classes=9), {"Sigmoid": 18}),
    "fused-lstm": (sizes.LSTM(hidden=8, steps=3, classes=9, fused=True), {"LSTM": 2}),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_train_under_a_plan_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """In training form, without weights, at a batch that the exporter never saw."""
    import onnx

    import memcli.torch
    from memcli.formats.onnx.file import read_onnx
    from memcli.formats.onnx.plan import write_plan
    from memcli.formats.trained_file import new_plan

    pytest.importorskip("onnxscript")
    from networks.modules import inputs
    from networks.onnx_export import write_onnx

    size, operators = EXPORTS[name]
    write_onnx(size, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    graph = onnx.load(tmp_path / "net.onnx", load_external_data=False).graph
    for kind, count in operators.items():
        nodes = [node for node in graph.node if node.op_type == kind]
        assert len(nodes) == count
        if kind == "BatchNormalization":
            modes = {a.i for n in nodes for a in n.attribute if a.name == "training_mode"}
            assert modes == {1}
    given = inputs(size, 5)
    file = read_onnx(tmp_path / "net.onnx")
    marks = {
        node_name: "again" if node.op_type in CHEAP else "kept"
        for node_name, node in zip(file.node_names, file.graph.node, strict=True)
    }
    shapes = {key: list(value.shape) for key, value in given.items()}
    plan = new_plan(file, marks, strategy="by operator", shapes=shapes, dtype="float32")
    write_plan(file, plan, tmp_path / "planned.onnx", overwrite=True)
    steps, peaks = [], []
    for planned in (False, True):
        torch.manual_seed(0)
        network = memcli.torch.load(tmp_path / "planned.onnx", weights="random", plan=planned)
        peaks.append(network.memory(*given.values(), plan=planned).peak)
        torch.manual_seed(1)  # dropout draws the same
        loss = network(*given.values())
        loss.backward()
        gradients = {key: p.grad for key, p in network.named_parameters()}
        steps.append({"loss": loss, **gradients, **dict(network.named_buffers())})
    plain, under_plan = steps
    if name != "fused-lstm":  # one operator: there is nothing in it to tell apart
        assert peaks[1] < peaks[0]
    assert plain.keys() == under_plan.keys() and len(plain) > 8
    assert all(torch.equal(value, under_plan[key]) for key, value in plain.items())


@needs_mxnet
def test_both_files_are_planned_and_hold_the_same_work(
    memcli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real commands: as many bytes of parameters, and FLOPs, in either file."""
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    options = ("densenet-bc", "--depth", "10", "--growth", "4", "-o")
    for name in ("net-symbol.json", "net.onnx"):
        assert script("make_network.py", *options, name, monkeypatch=monkeypatch) == 0
    search = ("--batch", "2", "--strategy", "cheap", "--json")
    symbol = only_json(memcli("plan", "net-symbol.json", *search))
    export = only_json(memcli("plan", "net.onnx", *search, "-o", "planned.onnx", "--measure"))
    for plan, data in ((symbol, "data"), (export, "image")):
        assert plan["shapes"][data] == [2, 3, 32, 32]
        assert plan["memory"]["planned_bytes"] < plan["memory"]["baseline_bytes"]
    assert symbol["memory"]["parameter_bytes"] == export["memory"]["parameter_bytes"]
    # MXNet's side counts eight for each element that is normalised, PyTorch's one
    less, more = (plan["recompute"]["forward_flops"] for plan in (export, symbol))
    assert less < more < 1.15 * less
    assert export["verify"]["ok"]
    assert export["verify"]["gradients"]["compared"] == 29


@needs_mxnet
@pytest.mark.parametrize(
    ("name", "options", "example"),
    [
        ("make_resnet.py", (), "resnet-50-symbol.json"),
        ("make_densenet.py", (), "densenet-201-symbol.json"),
        ("make_mobilenet_v2.py", (), "mobilenet-v2-symbol.json"),
        ("make_lstm.py", (), "lstm-symbol.json"),
        ("make_onnx.py", ("resnet-50",), "resnet-50.onnx"),
        ("make_network.py", ("resnet", "--classic"), "resnet-50-symbol.json"),
        ("make_network.py", ("lstm",), "lstm-symbol.json"),
    ],
)
def test_scripts_make_the_examples(
    name: str,
    options: tuple[str, ...],
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Byte for byte."""
    monkeypatch.chdir(tmp_path)
    assert script(name, *options, "-o", example, monkeypatch=monkeypatch) == 0
    assert (tmp_path / example).read_bytes() == (EXAMPLES / example).read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("resnet", "--depth", "51"), "nearest: 50 and 53"),
        (("resnet", "--depth", "21", "--images", "cifar"), "nearest: 20 and 26"),
        (("densenet-bc", "--depth", "99"), "nearest: 94 and 100"),
        (("densenet-bc", "--depth", "100", "--images", "imagenet"), "121, 169, 201, 264"),
        (("lstm", "--fused"), "--framework torch"),
        (("resnet", "--classic", "--images", "cifar"), "--classic"),
        (("resnet", "--units", "1", "0"), "--units"),
        (("resnet", "--classic", "--side", "4"), "--side"),
        (("densenet", "--growth", "0"), "--growth"),
        (("densenet", "--weights"), "--weights"),
        (("densenet", "-o", "net.txt"), ".onnx"),
        (("densenet", "-o", "nowhere/net.json"), "nowhere"),
    ],
)
def test_what_cannot_be_made_is_said(
    options: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script("make_network.py", *options, monkeypatch=monkeypatch) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_starting_weights_can_be_put_in(tmp_path: Path) -> None:
    """The module's own, from the seed; the file is whole by itself."""
    import onnx

    pytest.importorskip("onnxscript")
    from networks.modules import module
    from networks.onnx_export import write_onnx

    size = sizes.densenet(7, 4, bottleneck=False, side=8)
    write_onnx(size, tmp_path / "net.onnx", weights=True, seed=2)
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model)
    torch.manual_seed(2)
    expected = module(size).state_dict()
    found = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    assert set(dict(module(size).named_parameters())) <= set(found)
    for name, value in found.items():
        if name in expected:
            assert np.array_equal(value, expected[name].numpy()), name


def test_help_names_every_network_and_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("make_network.py", "--help", monkeypatch=monkeypatch) == 0
    whole = capsys.readouterr().out
    for name in ("resnet", "densenet", "densenet-bc", "mobilenet-v2", "lstm"):
        assert re.search(rf"^ +{name}\b", whole, re.MULTILINE)
        assert script("make_network.py", name, "--help", monkeypatch=monkeypatch) == 0
        assert "--framework" in capsys.readouterr().out
