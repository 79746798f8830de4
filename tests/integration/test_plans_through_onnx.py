"""What a plan of an ONNX export says to those whose module it is applied to."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import memcli.torch  # noqa: E402
from memcli import plan  # noqa: E402
from memcli.errors import BadInput  # noqa: E402
from memcli.formats.model_file import read_model  # noqa: E402
from memcli.request import ShapeRequest  # noqa: E402


class Block(torch.nn.Module):
    """A LayerNorm and biases of zeros, which exporters merge; a Dropout of nothing; attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(32)
        self.first, self.second = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
        self.none = torch.nn.Dropout(0.0)
        for layer in (self.first, self.second):
            torch.nn.init.zeros_(layer.bias)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = self.first(self.norm(hidden)).unsqueeze(1).chunk(3, -1)
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        return hidden + self.none(self.second(found.contiguous())) + bias


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(4))

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = block(hidden, bias)
        return hidden


def exported(path: Path, **options: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = Net().train()
    example = {"bias": torch.randn(2, 64, 32), "hidden": torch.randn(2, 64, 32)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (), str(path), kwargs=example, dynamo=True, verbose=False, **options
        )
    return model


def test_merged_parameters_are_told(tmp_path: Path) -> None:
    exported(tmp_path / "merged.onnx")
    exported(tmp_path / "apart.onnx", optimize=False)
    asked = ShapeRequest()
    told = {loss.kind: loss.text for loss in read_model(tmp_path / "merged.onnx", asked).losses()}
    # weights are transposed into constants as well
    assert told.keys() == {"parameters-merged", "parameters-folded"}
    assert told["parameters-merged"].startswith("13 parameters of the module merged")
    assert all("optimize=False" in text for text in told.values())
    assert read_model(tmp_path / "apart.onnx", asked).losses() == []
    with pytest.warns(UserWarning, match="merged with others of the same initial value"):
        memcli.torch.load(tmp_path / "merged.onnx", plan=False)


def test_a_module_that_takes_more_than_the_plan_says_is_refused(tmp_path: Path) -> None:
    model = exported(tmp_path / "net.onnx", optimize=False)
    out = tmp_path / "planned.onnx"
    # its attention is one operator in the module, and many in the file
    planned = plan(tmp_path / "net.onnx", budget="95%", output=str(out), strategy="cheap")
    said = planned.cost.pool_bytes
    applied = memcli.torch.apply(out, model, any_memory=True)
    assert applied.peaks is not None
    taken, of_plan = applied.peaks
    example = {"hidden": torch.randn(2, 64, 32), "bias": torch.randn(2, 64, 32)}
    assert of_plan == said and taken == applied.memory(**example).peak
    tight = applied.plan.memory | {"planned_bytes": taken // 2}
    object.__setattr__(applied.plan, "memory", tight)
    with pytest.raises(BadInput, match="this module takes") as refused:
        memcli.torch.apply(applied.plan, model, example_kwargs=example)
    assert "any_memory=True" in refused.value.hint and "memcli.torch.plan" in refused.value.hint
    with pytest.warns(UserWarning, match="this module takes"):
        memcli.torch.apply(applied.plan, model, example_kwargs=example, any_memory=True)
