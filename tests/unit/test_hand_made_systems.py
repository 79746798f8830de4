"""Plans of hand-made DenseNets: what they make again, what they take, and the same bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402

from memcli.engines.mxnet.memory.model import MXNetModel  # noqa: E402
from memcli.engines.mxnet.search_space import MXNetSpace  # noqa: E402
from memcli.engines.torch.convert.onnx_graph import convert  # noqa: E402
from memcli.engines.torch.executor import PlannedModule  # noqa: E402
from memcli.engines.torch.inputs import input_values  # noqa: E402
from memcli.engines.torch.memory.plan_model import TorchPlanModel  # noqa: E402
from memcli.engines.torch.search_space import TorchSpace  # noqa: E402
from memcli.engines.torch.trace import trace  # noqa: E402
from memcli.errors import BadInput  # noqa: E402
from memcli.graph.cost import Found  # noqa: E402
from memcli.search.base import Search, Settings  # noqa: E402
from memcli.search.published.caffe_dense import NAME as CAFFE  # noqa: E402
from memcli.search.published.caffe_dense import ULTRA  # noqa: E402
from memcli.search.published.optmemory import NAMES, PYTORCH  # noqa: E402
from memcli.search.published.recompute_grad import NAME as TENSORFLOW  # noqa: E402
from memcli.search.registry import GENERAL, STRATEGIES  # noqa: E402
from tests.small_onnx import Model  # noqa: E402
from tests.unit.chains import plain_chain  # noqa: E402
from tests.unit.test_torch_executor import assert_same, step  # noqa: E402

LAYERS = 5
NONE, RETAINED, SHARED, CONCATS, NORMS = NAMES
FORMS = ["flat", "recursive"]


def bottlenecks(path: Path, *, recursive: bool) -> Path:
    """A dense block of bottlenecks, and what is usually behind one."""
    m = Model()
    channels, x = 8, m.convolution("image", "stem", 8, 3)
    parts = [x]
    for k in range(LAYERS):
        y = m.normalised(x, f"norm{k}a", channels)
        y = m.normalised(m.convolution(y, f"conv{k}a", 16, channels, 1), f"norm{k}b", 16)
        parts.append(m.convolution(y, f"conv{k}b", 4, 16))
        channels += 4
        x = m.node("Concat", [x, parts[-1]] if recursive else list(parts), f"cat{k}", axis=1)
    x = m.normalised(x, "last", channels)
    x = m.node("GlobalAveragePool", [x], "mean")
    x = m.node("Flatten", [x], "flat")
    x = m.node("Gemm", [x, m.weight("fc", channels, 3)], "logits")
    return m.write(path, {"image": ("N", 3, 8, 8)}, {x: ("N", 3)})


@pytest.fixture(scope="module", params=FORMS)
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module, its inputs, the exact model, {step: name in the file}, and each plan."""
    path = bottlenecks(
        tmp_path_factory.mktemp("dense") / "dense.onnx", recursive=request.param == "recursive"
    )
    found = convert(onnx.load(str(path)), shapes={"image": [4, 3, 8, 8]}, fake=False)
    inputs = input_values(found.inputs, 0)
    steps = [n.meta["memcli"] for n in found.module.graph.nodes if n.op == "call_function"]
    names = [str(s["output"]) for s in steps]
    model = TorchPlanModel(replace(trace(found.module, inputs), operators=[s["op"] for s in steps]))
    return found.module, inputs, model, names, {s: planned(model, s) for s in STRATEGIES_HERE}


STRATEGIES_HERE = [name for name in STRATEGIES if name not in GENERAL]


def planned(model: TorchPlanModel, strategy: str) -> Found:
    search = Search(TorchSpace(model), Settings())
    STRATEGIES[strategy].run(search)
    return search.answer()


@pytest.mark.parametrize("strategy", STRATEGIES_HERE)
def test_the_same_bits(net: Any, strategy: str) -> None:
    module, inputs, model, _, plans = net
    torch.set_num_threads(1)
    marks = dict(zip(model.trace.names, plans[strategy].plan.recompute.tolist(), strict=True))
    expected = step(copy.deepcopy(module), inputs)
    assert_same(step(PlannedModule(copy.deepcopy(module), marks), inputs), expected)


def test_what_is_made_again(net: Any) -> None:
    """Of the third layer, which reads the Concat that the second adds to."""
    _, _, _, names, plans = net
    layer = ["cat1", "norm2a", "norm2a_relu", "conv2a", "norm2b", "norm2b_relu", "conv2b"]
    expected = {
        NONE: set(),
        RETAINED: set(),
        SHARED: set(),
        CONCATS: {"cat1"},
        NORMS: {"cat1", "norm2a", "norm2a_relu"},
        PYTORCH: {"cat1", "norm2a", "norm2a_relu"},
        TENSORFLOW: {"norm2a", "norm2a_relu", "conv2a", "norm2b", "norm2b_relu"},
        CAFFE: {"cat1", "norm2a", "norm2a_relu", "norm2b", "norm2b_relu"},
        ULTRA: {"cat1", "norm2a", "norm2a_relu", "conv2a", "norm2b", "norm2b_relu"},
    }
    assert set(expected) == set(plans)
    for strategy, again in expected.items():
        marks = dict(zip(names, plans[strategy].plan.recompute.tolist(), strict=True))
        assert {name for name in layer if marks[name]} == again, strategy
        # the stem, the end of the block and what reads it stay in all
        assert not any(marks[name] for name in ("stem", f"cat{LAYERS - 1}", "last_relu", "logits"))


def test_more_goes_less_is_taken(net: Any) -> None:
    costs = {strategy: found.cost for strategy, found in net[4].items()}
    sizes = {strategy: cost.pool_bytes for strategy, cost in costs.items()}
    again = {strategy: cost.recompute_fraction for strategy, cost in costs.items()}
    assert sizes[ULTRA] < sizes[CAFFE] < sizes[NORMS] < sizes[CONCATS] < sizes[NONE]
    assert sizes[NONE] == sizes[RETAINED] == sizes[SHARED] and sizes[PYTORCH] == sizes[NORMS]
    assert sizes[TENSORFLOW] < sizes[NONE]
    assert 0 == again[SHARED] < again[CONCATS] < again[NORMS] < again[CAFFE] < 0.2
    assert again[CAFFE] < again[TENSORFLOW] < again[ULTRA] < 1


def test_a_graph_without_dense_blocks_is_refused() -> None:
    graph = plain_chain(8)
    for name in (CONCATS, NORMS, PYTORCH, TENSORFLOW, CAFFE, ULTRA):
        with pytest.raises(BadInput, match=f"{name} is for dense blocks"):
            STRATEGIES[name].run(Search(MXNetSpace(graph, MXNetModel(graph)), Settings()))
