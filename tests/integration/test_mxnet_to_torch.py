"""MXNet graphs converted to PyTorch train one step with MXNet's own numbers."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcli.engines.mxnet.record import analyze
from memcli.engines.mxnet.rewrites.gradients import without_gradient
from memcli.engines.mxnet.step import train_step
from memcli.formats.symbol.file import SymbolFile
from memcli.formats.symbol.prepare import prepare
from memcli.request import ShapeRequest
from tests.conftest import CORPUS, EXAMPLES, needs_corpus, needs_mxnet

torch = pytest.importorskip("torch")

pytestmark = needs_mxnet


@dataclass
class Compared:
    """How far one step in PyTorch is from MXNet's, relative to each tensor's largest value."""

    worst: dict[str, float] = field(default_factory=dict)  # by kind: out, grad, aux
    where: dict[str, str] = field(default_factory=dict)
    counted: int = 0
    random: bool = False
    undefined: int = 0
    nonfinite: int = 0


def compare(path: Path, folder: Path, **asked: Any) -> Compared:
    """One step in both engines with the same values; ``asked``: of a ShapeRequest."""
    from memcli.engines.torch.convert.mxnet_graph import convert_analyzed
    from memcli.engines.torch.rules import draws

    torch.set_num_threads(1)
    raw = without_dropout(SymbolFile.read(path).raw)
    none = without_gradient(raw)
    analysis = analyze(raw, ShapeRequest(**asked), no_gradient=none)
    converted = convert_analyzed(raw, analysis, name=path.name)
    text, _ = prepare(raw, marked=())
    (folder / "symbol.json").write_text(text)
    saved = folder / "step.npz"
    wanted = {
        a["prepared"]: "null" if int(a["prepared"][1:]) in none else "write"
        for a in analysis.arguments
    }
    job = {
        "symbol": str(folder / "symbol.json"),
        "save": str(saved),
        "grad_req": wanted,
        **analysis.binding(),
    }
    ran = train_step(job, workdir=folder)
    expected = np.load(saved)
    ours = step_of(converted, analysis, raw)
    slopes = slopes_of(converted)
    sparse = {a["prepared"] for a in analysis.arguments if is_sparse(raw, a["prepared"])}
    result = Compared(
        random=any(draws(n.target) for n in converted.module.graph.nodes),
        undefined=len(ran["undefined"]),
        nonfinite=sum(ran["nonfinite"].values()),
    )
    largest = max(
        float(np.abs(expected[key]).max(initial=0.0)) for key in expected if key[:4] == "grad"
    )
    for key, values in ours.items():
        kind, _, number = key.partition("_")
        if key not in expected:  # no gradient, or one that MXNet makes of unwritten memory
            assert kind == "grad"
            continue
        if kind == "grad" and ran["arguments"][int(number)] in sparse:
            continue  # MXNet has none for it
        theirs = expected[key].astype(np.float64)
        assert theirs.shape == values.shape, key
        scale = float(np.max(np.abs(theirs), initial=0.0))
        if kind == "grad":  # of a bias before BatchNorm it is rounding errors alone
            scale = max(scale, 1e-4 * largest)
        difference = float(np.max(np.abs(theirs - values), initial=0.0))
        if kind == "grad" and int(number) in slopes:  # MXNet's own slip, see the note
            slope = slopes[int(number)]
            difference = min(difference, float(np.max(np.abs(theirs - values * slope))))
        relative = difference / scale if scale else difference
        if not relative <= result.worst.get(kind, -1.0):
            result.worst[kind] = relative
            names = {"out": ran["outputs"], "grad": ran["arguments"], "aux": ran["states"]}[kind]
            result.where[kind] = names[int(number)]
        result.counted += 1
    return result


def slopes_of(converted: Any) -> dict[int, Any]:
    """Values of the arguments that LeakyReLU takes for slopes, by place."""
    names = set()
    for node in converted.module.graph.nodes:
        if node.meta.get("memcli", {}).get("op") == "LeakyReLU" and len(node.args) > 1:
            names.add(str(node.args[1]))
    return {
        i: plain(getattr(converted.module, held.attribute))
        for i, held in enumerate(converted.arguments)
        if held.attribute in names
    }


def is_sparse(raw: dict[str, Any], prepared: str) -> bool:
    """Whether a variable is stored sparse."""
    node = raw["nodes"][int(prepared[1:])]
    return node.get("attrs", {}).get("__storage_type__", "0") != "0"


def without_dropout(raw: dict[str, Any]) -> dict[str, Any]:
    """The graph with dropout of nothing: the engines draw different numbers."""
    raw = copy.deepcopy(raw)
    for node in raw["nodes"]:
        if node["op"] in ("Dropout", "RNN"):
            for key in ("attrs", "attr", "param"):
                if "p" in node.get(key, {}):
                    node[key]["p"] = "0"
    return raw


def step_of(converted: Any, analysis: Any, raw: Any) -> dict[str, Any]:
    """Outputs, gradients and states of one step, under the keys of MXNet's own results."""
    from memcli.engines.torch.convert.mxnet_step_values import step_values

    prepared = json.loads(prepare(raw, marked=())[0])
    values = step_values(prepared, analysis)
    module = converted.module.train()
    inputs = {}
    for held in converted.arguments:
        if held.role in ("input", "label"):
            tensor = torch.from_numpy(values[held.prepared]).to(held.dtype)
            inputs[held.attribute] = tensor.requires_grad_(held.dtype.is_floating_point)
    outputs = module(*[inputs[free.argument] for free in converted.inputs])
    reached = [out for out in outputs if out.requires_grad]
    torch.autograd.backward(reached, [torch.ones_like(out) for out in reached])
    results = {f"out_{i}": plain(out) for i, out in enumerate(outputs)}
    for i, held in enumerate(converted.arguments):
        tensor = inputs.get(held.attribute)
        tensor = getattr(module, held.attribute) if tensor is None else tensor
        results[f"grad_{i}"] = plain(
            torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        )
    for i, held in enumerate(converted.auxiliary):
        results[f"aux_{i}"] = plain(getattr(module, held.attribute))
    return results


def plain(tensor: Any) -> Any:
    """As a numpy array of double precision."""
    return tensor.detach().double().numpy()


EXAMPLE_SHAPES: dict[str, dict[str, list[int]]] = {
    "mobilenet-v2-symbol.json": {"data": [2, 3, 32, 32]},
    "lstm-symbol.json": {},
}


@pytest.mark.parametrize("name", EXAMPLE_SHAPES)
def test_examples_train_as_in_mxnet(name: str, tmp_path: Path) -> None:
    # double precision: what is left then is no rounding that deep BatchNorms blow up
    compared = compare(
        EXAMPLES / name, tmp_path, shapes=EXAMPLE_SHAPES[name], batch=2, dtype="float64"
    )
    assert compared.counted > 20
    assert {"out", "grad"} <= compared.worst.keys()
    assert all(worst < 1e-6 for worst in compared.worst.values()), compared


@needs_corpus
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("gh-1996scarlet-det1.json", "float32", 1e-3),  # PReLU, two outputs without a loss
        ("gh-apache-save_000800-7b38.json", "float64", 1e-6),  # a file that lists no states
    ],
)
def test_corpus_graphs_train_as_in_mxnet(
    name: str, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    compared = compare(CORPUS / name, tmp_path, batch=2, dtype=dtype)
    assert all(worst < tolerance for worst in compared.worst.values()), compared
