"""``memcli export --to torch``: the script trains the user's module to the same bits in the memory
that it says, and bad input ends well."""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")

from torch import Tensor, nn  # noqa: E402

from memcli.cli.main import status  # noqa: E402
from memcli.engines.torch.tape import ALLOCATED, Tape  # noqa: E402
from tests.conftest import EXAMPLES  # noqa: E402

BATCH = 4


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(2):
            parts += [
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.GELU(),
            ]
        self.body = nn.Sequential(*parts, nn.Dropout(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Net(nn.Module):
    def __init__(self, blocks: int = 6, channels: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def made() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    folder = tmp_path_factory.mktemp("export")

    def get(dynamo: bool) -> Path:
        path, out = folder / f"net-{dynamo}.onnx", folder / f"planned-{dynamo}.onnx"
        if not out.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = torch.zeros(BATCH, 3, 24, 24)
                mode: dict[str, Any] = {"dynamo": True, "optimize": False, "verbose": False}
                if not dynamo:
                    training = torch.onnx.TrainingMode.TRAINING
                    mode = {"dynamo": False, "training": training, "do_constant_folding": False}
                torch.onnx.export(made().train(), (x,), str(path), **mode)
            arguments = ["plan", str(path), "-o", str(out), "--time-limit", "2", "--as-training"]
            assert status(arguments) == 0
        return out

    return get


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step(model: nn.Module) -> tuple[list[Tensor], dict[str, Tensor], int]:
    """Gradients, states, and the most bytes that a step holds over parameters and input."""
    torch.manual_seed(1)
    x = torch.randn(BATCH, 3, 24, 24)
    tape = Tape()
    tape.known([*model.parameters(), *model.buffers(), x])
    with tape:
        model(x).float().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    own = {tape.number_of(g) for g in gradients}
    live = peak = 0
    for kind, number, _ in tape.events:
        if number not in own:
            live += tape.bytes[number] if kind == ALLOCATED else -tape.bytes[number]
            peak = max(peak, live)
    return [g.clone() for g in gradients], dict(model.state_dict()), peak


@pytest.mark.parametrize("dynamo", [True, False])
def test_the_script_trains_to_the_same_bits_in_the_memory_it_says(
    planned: Callable[[bool], Path], dynamo: bool, tmp_path: Path, capsys: Any
) -> None:
    out, plan = tmp_path / "wrap_net.py", planned(dynamo)
    capsys.readouterr()
    assert status(["export", str(plan), "--to", "torch", "-o", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert out.read_text() == said["script"] and "memcli" not in _code(said["script"])
    own = made().train()
    wrapped = load(out).recompute(copy.deepcopy(own))
    before, states, plain = step(own)
    after, others, peak = step(wrapped)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert list(states) == list(others)
    assert all(torch.equal(states[k], others[k]) for k in states)
    assert states["blocks.0.body.1.num_batches_tracked"].item() == 1
    # what the file says of the graph is what a step of the module takes, wrapped and not
    assert plain == pytest.approx(said["unplanned"]["live_peak_bytes"], rel=0.02)
    assert peak == pytest.approx(said["exported"]["live_peak_bytes"], rel=0.1)
    assert peak < 0.6 * plain
    assert said["plan"]["live_peak_bytes"] <= said["exported"]["live_peak_bytes"]
    wrapped.eval()
    with torch.no_grad():
        assert torch.equal(wrapped(torch.ones(1, 3, 24, 24)), own.eval()(torch.ones(1, 3, 24, 24)))


def _code(script: str) -> str:
    return script.split('"""', 2)[2]


def test_saved_calls_and_rows_keep_the_bits(tmp_path: Path) -> None:
    from memcli.reports.emitted.recompute_torch import recompute

    own = made().train()
    groups = [("blocks.0", "blocks.1"), ("blocks.2",), ("blocks.3.body.1", "blocks.3.body.2")]
    saved = {"blocks.0": {"convolution": (1, 3)}, "blocks.2": {"convolution": (0,)}}
    less = recompute(copy.deepcopy(own), groups, {})
    more = recompute(copy.deepcopy(own), groups, saved)
    (before, states, plain), (after, others, peak), (again, _, kept) = map(step, (own, less, more))
    assert all(
        torch.equal(a, b) and torch.equal(a, c)
        for a, b, c in zip(before, after, again, strict=True)
    )
    assert all(torch.equal(states[k], others[k]) for k in states)
    assert peak < plain
    # three convolutions' results stay on, in groups that are not at the peak together
    assert kept >= peak
    with pytest.raises(ValueError, match=r"no module blocks\.9"):
        recompute(made(), [("blocks.9",)])
    with pytest.raises(ValueError, match=r"the model is no nn\.Sequential"):
        recompute(made(), [("stem", "head")])


@pytest.mark.parametrize("target", ["tensorflow", "jax"])
def test_scripts_for_others_name_the_same_scopes(
    planned: Callable[[bool], Path], target: str, capsys: Any
) -> None:
    plan = planned(True)
    capsys.readouterr()
    assert status(["export", str(plan), "--to", target]) == 0
    tree = ast.parse(capsys.readouterr().out)
    (groups,) = (
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.AnnAssign) and n.value and ast.unparse(n.target) == "GROUPS"
    )
    scopes = [scope for group in groups for scope in group]
    assert len(scopes) == len(set(scopes)) and any("blocks" in s or "0" in s for s in scopes)


def test_bad_input_ends_well(planned: Callable[[bool], Path], tmp_path: Path, capsys: Any) -> None:
    plan = planned(True)
    unplanned = plan.parent / "net-True.onnx"
    for arguments, status_, words in (
        ([str(unplanned), "--to", "torch"], 2, "carries no plan to export"),
        (
            [str(EXAMPLES / "resnet-50-symbol.json"), "--to", "jax"],
            2,
            "is neither ONNX nor an exported program",
        ),
        ([str(plan)], 2, "--to"),
        ([str(plan), "--to", "caffe"], 2, "caffe"),
        ([str(plan), "--to", "torch", "-o", str(plan), "--force"], 2, "is the model itself"),
    ):
        capsys.readouterr()
        assert status(["export", *arguments]) == status_
        said = capsys.readouterr()
        assert words in said.err and not said.out
    there = tmp_path / "there.py"
    there.write_text("mine")
    assert status(["export", str(plan), "--to", "torch", "-o", str(there)]) == 2
    assert there.read_text() == "mine"


def test_a_plan_that_drops_nothing_is_no_script(tmp_path: Path, capsys: Any) -> None:
    path, out = tmp_path / "small.onnx", tmp_path / "planned.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = nn.Sequential(nn.Linear(4, 4))
        torch.onnx.export(small, (torch.zeros(2, 4),), str(path), dynamo=True, verbose=False)
    assert status(["plan", str(path), "-o", str(out), "--time-limit", "1"]) == 0
    assert status(["export", str(out), "--to", "torch"]) == 1
    assert "no modules can be wrapped" in capsys.readouterr().err
