"""Modules of the user's own that a plan is applied to: followed to the bit, or refused."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import memcli.torch  # noqa: E402
from memcli.errors import BadInput  # noqa: E402
from tests.torch_models import export, plan_of  # noqa: E402


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x).relu()).relu())

    def between(self, x: Tensor) -> Tensor:
        return self.second(x)


class Rounded(torch.autograd.Function):
    """The straight-through estimator: forward rounds, backward hands on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class OwnBackward(Base):
    def between(self, x: Tensor) -> Tensor:
        return Rounded.apply(self.second(x) * 4)


class Hooked(Base):
    def between(self, x: Tensor) -> Tensor:
        y = self.second(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * 2)
        return y


class Reentrant(Base):
    def between(self, x: Tensor) -> Tensor:
        return checkpoint(self.second, x, use_reentrant=True)


class Auxiliary(Base):
    """Leaves a part of its loss on itself, as mixtures of experts do."""

    def between(self, x: Tensor) -> Tensor:
        self.extra = x.square().mean()
        return self.second(x)


class Remembering(Base):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def between(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return self.second(x)


class Skipping(Base):
    def between(self, x: Tensor) -> Tensor:
        return x if random.random() < 0.5 else self.second(x)


REFUSED = {
    OwnBackward: r"autograd\.Function Rounded",
    Hooked: "hook on a tensor",
    Reentrant: "use_reentrant=True",
    Auxiliary: "leaves tensors on the module: extra",
    Remembering: "leaves tensors on the module: seen",
    Skipping: "random numbers",
}


class Counting(Base):
    """Counts its calls, and has a temperature that may be changed between steps."""

    temperature = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0
        self.calls = 0

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (self.second(x) / self.temperature).softmax(-1)


class Shifted(Base):
    """Writes a part of one tensor into another."""

    def between(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 1:] = x[:, :-1]
        y[:, :1] = self.second(x)[:, :1]
        return self.second(y)


class Instances(Base):
    """Running statistics of InstanceNorm: the second run leaves them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(self.second(x).unflatten(0, (-1, 4))).flatten(0, 1)


class Recurrent(Base):
    """A recurrent layer in float32 whatever autocast is on around it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.lstm(self.second(x).unflatten(0, (-1, 4)))[0].flatten(0, 1)


class Upwards(nn.Module):
    """Transposed convolutions without a normalization, and weights that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3, 2, 1)),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 2, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        made = self.body(x.reshape(-1, 2, 4, 4))
        return F.mse_loss(made, x.reshape(-1, 2, 4, 4)) + F.adaptive_avg_pool2d(made, 1).sum()


def planned(model: nn.Module, folder: Path, x: Tensor) -> Path:
    """A plan that drops every node, of an export of a copy: exports leave things on modules."""
    path = export(copy.deepcopy(model), (x,), folder / "m.onnx")
    return plan_of(path, folder / "p.onnx", tuple(x.shape), drop=lambda _: True)


def step(model: Any, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers of a step."""
    model.zero_grad()
    out = model(x)
    out.square().sum().backward()
    found = {"out": out.detach()}
    found |= {name: p.grad.clone() for name, p in model.named_parameters()}
    return found | {name: b.clone() for name, b in model.named_buffers()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_what_a_graph_would_lose_is_refused(kind: type[Base], tmp_path: Path) -> None:
    x = torch.randn(8, 8)
    path = planned(Base(), tmp_path, x)
    model = kind().train()
    before = {k: v for k, v in model.__dict__.items() if k[0] != "_"}
    with pytest.raises(BadInput, match=REFUSED[kind]) as caught:
        memcli.torch.apply(path, model, x)
    assert caught.value.hint
    assert {k: v for k, v in model.__dict__.items() if k[0] != "_"} == before
    # and PyTorch is as it was
    assert torch.equal(Rounded.apply(torch.tensor([0.6])), torch.tensor([1.0]))
    torch.ones(1, requires_grad=True).register_hook(lambda gradient: gradient)


@pytest.mark.parametrize("kind", [Shifted, Instances, Recurrent, Upwards])
def test_what_is_followed_trains_to_the_same_bits(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    model = kind().train()
    reference = copy.deepcopy(model)
    applied = memcli.torch.apply(planned(model, tmp_path, x), model, x)
    for _ in range(2):
        same(step(applied, x), step(reference, x))


def test_attributes_that_forward_reads_may_change(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 8)
    model = Counting().train()
    reference = copy.deepcopy(model)
    applied = memcli.torch.apply(planned(model, tmp_path, x), model, x)
    for temperature in (1.0, 0.2, 0.2, 1.0):
        model.temperature = reference.temperature = temperature
        same(step(applied, x), step(reference, x))
    assert len(applied._held) == 2  # the counter is no reason to export again


def test_arrays_are_no_inputs(tmp_path: Path) -> None:
    x = torch.randn(8, 8)
    applied = memcli.torch.apply(planned(Base(), tmp_path, x), Base(), x)
    with pytest.raises(BadInput, match="called with a ndarray"):
        applied(x.numpy())
