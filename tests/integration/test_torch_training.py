"""Plans in the user's own training: the same bits in less memory, by every road there."""

from __future__ import annotations

import copy
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")

import memcli.torch  # noqa: E402
from memcli.engines.torch.tracking import measure_step  # noqa: E402
from memcli.errors import BadInput  # noqa: E402
from memcli.formats.onnx.file import read_onnx  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.torch_models import MODELS, batches, export, made, plan_of  # noqa: E402

NAMES = list(MODELS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``planned(name, ...)``: a planned export of one of the networks, made once."""
    folder = tmp_path_factory.mktemp("planned")

    def get(name: str, train: bool = True, **options: Any) -> Path:
        label = "-".join([name, str(train), *(f"{k}-{v}" for k, v in options.items())])
        out = folder / f"{label}-planned.onnx"
        if not out.exists():
            inputs = batches(name, 1)[0]
            path = export(made(name).train(train), inputs, folder / f"{label}.onnx", **options)
            restored = [] if train else ["training form"]
            plan_of(path, out, tuple(inputs[0].shape), as_training=restored)
        return out

    return get


def train(
    module: torch.nn.Module,
    name: str,
    *,
    steps: int = 5,
    parts: int = 1,
    scale: float = 1.0,
    autocast: bool = False,
) -> list[float]:
    """Losses of some steps with momentum, gradients scaled and accumulated over ``parts``."""
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    torch.manual_seed(7)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        for inputs in batches(name, parts, seed=step):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = module(*inputs).float().square().mean()
            (loss * scale / parts).backward()
            losses.append(loss.item())
        for parameter in module.parameters():
            parameter.grad /= scale
        optimizer.step()
    return losses


def same_states(a: torch.nn.Module, b: torch.nn.Module) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert list(one) == list(other)
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def check_memory(model: Any, inputs: tuple[Any, ...], planned: Any) -> None:
    """The plan saves memory, and as much as the module says: its estimate is the real peak."""
    with_plan, without = (model.memory(*inputs, plan=plan) for plan in (True, False))
    assert with_plan.peak < without.peak
    assert with_plan.kept < 0.85 * without.kept
    model.zero_grad()
    assert measure_step(planned, inputs).peak == with_plan.peak


HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated and scaled": {"parts": 2, "scale": 1024.0},
    "autocast": {"autocast": True, "scale": 8.0},
}


@pytest.mark.parametrize("name", NAMES)
def test_applied_trains_to_the_same_bits(planned: Any, name: str) -> None:
    own = made(name)
    start = copy.deepcopy(own.state_dict())
    model = memcli.torch.apply(planned(name), own)
    for how in HOW.values():
        reference = made(name)
        model.load_state_dict(start)
        model.train()
        assert train(model, name, **how) == train(reference, name, **how)
        same_states(own, reference)
        same_states(model, reference)
        model.eval()
        reference.eval()
        inputs = batches(name, 1, seed=3)[0]
        assert torch.equal(model(*inputs), reference(*inputs))
    assert len(model._held) == 2  # with autocast and without
    model.train()
    check_memory(model, inputs, next(iter(model._held.values())).planned)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", NAMES)
def test_loaded_trains_to_the_same_bits(planned: Any, name: str, how: str) -> None:
    model = memcli.torch.load(planned(name))
    reference = memcli.torch.load(planned(name), plan=False)
    losses = train(model, name, **HOW[how])
    assert losses == train(reference, name, **HOW[how])
    assert how != "plain" or losses[-1] < losses[0]
    same_states(model, reference)
    inputs = batches(name, 1)[0]
    check_memory(model, inputs, model._planned(tuple(tuple(x.shape) for x in inputs)))


@pytest.mark.parametrize("name", ["resnet", "densenet"])
def test_loaded_computes_what_the_module_computes(planned: Any, name: str) -> None:
    own = made(name)
    model = memcli.torch.load(planned(name, dynamic=True))
    for size in (4, 3, 2):
        inputs = batches(name, 1, size, seed=size)[0]
        for module in (own, model):
            for dropout in module.modules():
                if isinstance(dropout, torch.nn.Dropout):
                    dropout.p = 0.0
        own.eval()
        model.eval()
        torch.testing.assert_close(model(*inputs), own(*inputs), rtol=1e-4, atol=1e-5)
    assert len(model.shapes()) == 3
    # Running statistics are learned in training, and used in evaluation.
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    model(*inputs)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {model.onnx_names[k].rpartition(".")[2] for k in changed} == {
        "running_mean",
        "running_var",
    }
    model.eval()
    first = model(*inputs)
    assert torch.equal(first, model(*inputs))
    with torch.no_grad():
        assert torch.equal(first, model(*inputs))


def test_other_shapes_share_the_weights(planned: Any) -> None:
    model = memcli.torch.load(planned("resnet", dynamic=True), shapes={"data": (2, 3, 24, 24)})
    assert model.shapes() == [{"data": (2, 3, 24, 24)}]
    parameters = {id(p) for p in model.parameters()}
    small, large = batches("resnet", 1, 2)[0][0], torch.randn(3, 3, 24, 24)
    (model(small).sum() + model(data=large).sum()).backward()
    assert {id(p) for p in model.parameters()} == parameters
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(BadInput, match="dimensions"):
        model(torch.randn(2, 3, 8))
    with pytest.raises(TypeError, match="data"):
        model()


def test_state_dict_copies_and_types(planned: Any, tmp_path: Path) -> None:
    path = planned("resnet")
    model = memcli.torch.load(path)
    assert model.onnx_names["layer1_0_bn1_running_mean"] == "layer1.0.bn1.running_mean"
    inputs = batches("resnet", 1)[0]
    train(model, "resnet", steps=1)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = memcli.torch.load(path)
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    losses = [train(m, "resnet", steps=2) for m in (model, other, copied, pickled)]
    assert all(loss == losses[0] for loss in losses)
    model.double()
    for doubled in (model, pickle.loads(pickle.dumps(model))):
        assert doubled(inputs[0].double()).dtype == torch.float64
    by_file_name = {name: model.state_dict()[key] for key, name in model.onnx_names.items()}
    given = memcli.torch.load(path, weights=by_file_name)
    assert all(torch.equal(given.state_dict()[k], v.float()) for k, v in model.state_dict().items())
    with pytest.raises(BadInput, match=r"fc\.bias"):
        memcli.torch.load(path, weights={"fc.bias": torch.zeros(3)})


def test_copies_of_an_applied_model_are_their_own(planned: Any) -> None:
    model = memcli.torch.apply(planned("densenet"), made("densenet"))
    copied = copy.deepcopy(model)
    assert copied.state_dict().keys() == model.state_dict().keys()
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}
    assert {id(p) for p in copied.parameters()} == {id(p) for p in copied.model.parameters()}
    assert train(model, "densenet", steps=2) == train(copied, "densenet", steps=2)
    model.double()
    assert model(batches("densenet", 1)[0][0].double()).dtype == torch.float64


def test_tied_weights_are_one_parameter(planned: Any) -> None:
    for options in ({}, {"dynamo": False}):
        model = memcli.torch.load(planned("gpt", **options))
        own = made("gpt")
        assert sum(p.numel() for p in model.parameters()) == sum(
            p.numel() for p in own.parameters()
        )


EXPORTS = [
    ("resnet", {"train": False}),
    ("resnet", {"train": False, "optimize": True}),
    ("resnet", {"train": True, "dynamo": False}),
    ("resnet", {"train": False, "dynamo": False}),
    ("densenet", {"train": True, "dynamo": False}),
    ("gpt", {"train": False, "optimize": True}),
]


@pytest.mark.parametrize(("name", "options"), EXPORTS, ids=str)
def test_plans_of_all_kinds_of_exports_fit(planned: Any, name: str, options: Any) -> None:
    own = made(name)
    model = memcli.torch.apply(planned(name, **options), own)
    inputs = batches(name, 1)[0]
    matched = model.prepare(*inputs)
    assert matched.part >= 0.9
    # The marks are the right nodes': what ran under Relu and BatchNorm modules is dropped.
    exported = next(iter(model._held.values())).planned
    cheap = [s.name for s in exported.program.steps if "relu" in s.name]
    assert all(matched.marks[step] for step in cheap)
    assert not any(mark for step, mark in matched.marks.items() if step.startswith("conv"))
    check_memory(model, inputs, exported)
    assert train(model, name, steps=2) == train(made(name), name, steps=2)


def test_plans_of_other_networks_are_refused(planned: Any) -> None:
    with pytest.raises(BadInput, match=r"has \d+ of the \d+ nodes of the model; not there: '"):
        memcli.torch.apply(planned("densenet"), made("resnet"), batches("resnet", 1)[0])
    with pytest.raises(BadInput) as caught:
        memcli.torch.apply(planned("densenet", dynamo=False), made("resnet"))
    assert "dynamo=True" in caught.value.hint


def test_plan_without_its_file_fits_at_the_first_call(planned: Any) -> None:
    plan = read_onnx(planned("gpt")).plan()
    assert plan is not None
    model = memcli.torch.apply(plan, made("gpt"))
    assert train(model, "gpt", steps=2) == train(made("gpt"), "gpt", steps=2)


class Structured(torch.nn.Module):
    """Keyword inputs, several outputs, a counter of its own, a frozen normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)
        self.norm, self.frozen = torch.nn.BatchNorm1d(6), torch.nn.BatchNorm1d(6)
        self.register_buffer("seen", torch.zeros(()))

    def train(self, mode: bool = True) -> Structured:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Any, *, power: int = 1, extra: Any = None) -> dict[str, Any]:
        self.seen += x.shape[0]
        y = torch.relu(self.frozen(self.norm(self.first(x)))) ** power
        y = self.norm(y)  # the same normalization twice
        if extra is not None:
            y = y + extra
        return {"out": self.second(torch.tanh(y)), "features": (y, None)}


def test_applied_keeps_structures_and_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = Structured().train()
    reference = copy.deepcopy(own)
    x, extra = torch.randn(5, 4), torch.randn(5, 6, requires_grad=True)
    path = export(own, (x,), tmp_path / "structured.onnx")
    plan = plan_of(path, tmp_path / "planned.onnx", (5, 4))
    model = memcli.torch.apply(plan, own)
    for module in (model, reference):
        for power in (1, 2):
            result = module(x, power=power, extra=extra)
            (result["out"].sum() + result["features"][0].square().sum()).backward()
        assert result["features"][1] is None
    assert int(own.seen) == int(reference.seen) == 10
    assert int(own.norm.num_batches_tracked) == 4
    same_states(own, reference)
    for a, b in zip(own.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


class Regions(torch.nn.Module):
    """Parts without gradients and with an autocast of their own, and casts in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.norm, self.drop = torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.2)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.first(x).float()) + x
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            scale = torch.sigmoid(self.second(x)).float() * 2
        with torch.autocast("cpu", torch.bfloat16):
            z = self.drop(self.norm(self.second(y)))
        z = self.second(z.to(x.dtype)) * scale
        return z.float() @ self.first.weight.float()


@pytest.mark.parametrize("autocast", [False, True])
def test_applied_keeps_regions_and_casts(tmp_path: Path, autocast: bool) -> None:
    torch.manual_seed(0)
    own = Regions().train()
    reference, x = copy.deepcopy(own), torch.randn(5, 4)
    path = export(own, (x,), tmp_path / "regions.onnx")
    model = memcli.torch.apply(plan_of(path, tmp_path / "planned.onnx", (5, 4)), own)
    for _ in range(2):
        for module in (model, reference):
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = module(x)
            out.float().square().sum().backward()
    for a, b in zip(own.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    same_states(own, reference)


def test_weights_that_are_not_there(planned: Any, tmp_path: Path) -> None:
    model = onnx.load(planned("resnet"))
    path = tmp_path / "external.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=64)
    inputs = batches("resnet", 1)[0]
    within, beside = memcli.torch.load(planned("resnet")), memcli.torch.load(path)
    assert torch.equal(within(*inputs), beside(*inputs))
    (tmp_path / "w.bin").unlink()
    with pytest.raises(BadInput, match=r"w\.bin") as caught:
        memcli.torch.load(path)
    assert "weights='random'" in caught.value.hint
    a, b = (memcli.torch.load(path, weights="random", seed=3) for _ in range(2))
    assert train(a, "resnet", steps=2) == train(b, "resnet", steps=2)


def test_files_without_a_plan_are_refused(planned: Any, tmp_path: Path) -> None:
    path = export(made("densenet"), batches("densenet", 1)[0], tmp_path / "plain.onnx")
    for use in (memcli.torch.load, lambda p: memcli.torch.apply(p, made("densenet"))):
        with pytest.raises(BadInput, match="carries no plan") as caught:
            use(path)
        assert "memcli plan" in caught.value.hint
    assert memcli.torch.load(path, plan=False, shapes={"data": (2, 3, 8, 8)}).plan is None


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch has no torch.distributed with gloo",
)
def test_distributed_data_parallel(planned: Any, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("ddp_training.py")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-addr",
            "127.0.0.1",
            "--master-port",
            str(port),
            str(script),
            str(planned("resnet")),
            str(tmp_path),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    for found in ranks:
        assert found.pop("world") == 2
        assert found.pop("load hooks") == found.pop("apply hooks") == [1]
        assert len(found) == 6
        for name, outcome in found.items():
            assert outcome["equal"] and outcome["finite"] and outcome["compared"] > 100, name
    # Gradients are the mean over both processes, which have other data.
    for name in ranks[0]:
        assert ranks[0][name]["checksum"] == ranks[1][name]["checksum"], name


@pytest.mark.slow
@pytest.mark.parametrize("example", ["train_planned_onnx.py", "train_planned_module.py"])
def test_examples_run(example: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "bit for bit" in result.stdout


def test_memcli_itself_does_not_import_torch() -> None:
    code = "import sys, memcli, memcli.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
