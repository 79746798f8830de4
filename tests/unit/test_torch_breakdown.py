"""What is alive at the peak of a PyTorch step, tensor by tensor, against the model's own figure."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from memcli.engines.torch.memory.breakdown import torch_live_at_peak  # noqa: E402
from memcli.engines.torch.memory.model import AUXILIARY, TorchModel  # noqa: E402
from memcli.engines.torch.trace import trace  # noqa: E402
from tests.unit.torch_nets import NETS, Builder  # noqa: E402


def inner(x: torch.Tensor) -> torch.Tensor:
    """Takes far more while it runs than it gives or saves."""
    return (x.detach().repeat(1, 64).cumsum(1).sum(1, keepdim=True) + x) * 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", sorted(NETS))
def test_tensors_add_up_under_any_plan(name: str, device: str) -> None:
    make, inputs = NETS[name]
    recorded = trace(make(), inputs(), device=device)
    model = TorchModel(recorded, allocator="cuda" if device == "cuda" else "exact")
    random = np.random.default_rng(0)
    seen = set()
    for number in range(40):
        parts = random.random(3)
        marks = random.choice(3, size=recorded.n_steps, p=parts / parts.sum()).astype(np.uint8)
        inside = random.random(recorded.n_steps) < random.random()
        marks |= np.where(inside & model.has_auxiliaries, AUXILIARY, 0).astype(np.uint8)
        if number == 0:
            marks = model.none()
        cost = model.evaluate(marks)
        if not cost.feasible:
            continue
        peak = torch_live_at_peak(model, marks)
        assert peak.total == peak.split().total == cost.live_peak_bytes
        assert all(tensor.size > 0 for tensor in peak.tensors)
        assert -1 <= peak.node < recorded.n_steps
        if peak.running == "recomputation":
            assert model.evaluate(marks).recomputations and peak.split().recomputed
        if not marks.any():
            assert peak.split().recomputed == 0
        seen.add(peak.running)
    assert "backward" in seen


def test_peak_within_an_operator_of_the_forward() -> None:
    b = Builder()
    x = b(torch.matmul, b.input("x"), b.parameter(4, 4))
    first = b(torch.relu, x)
    module = b.done(b(torch.matmul, b(inner, first), b.parameter(4, 4)))
    recorded = trace(module, [torch.ones(8, 4)])
    model = TorchModel(recorded)
    peak = torch_live_at_peak(model, model.none())
    assert peak.running == "forward" and recorded.names[peak.node] == "inner"
    assert peak.total == model.evaluate(model.none()).live_peak_bytes
    # what comes and goes within: the repeated tensor and its running sums, 64 times the input each
    assert peak.split().gradients >= 2 * 8 * 4 * 64 * 4
    made = {t.node for t in peak.tensors if t.part == "feature maps"}
    assert recorded.names.index("relu") in made


def test_each_kept_tensor_is_there_once() -> None:
    make, inputs = NETS["resnet"]
    model = TorchModel(trace(make(), inputs()))
    peak = torch_live_at_peak(model, model.none())
    kept = sorted(t.entry for t in peak.tensors if t.entry >= 0)
    assert kept and all(a < b for a, b in pairwise(kept))
    sizes = model.program.storages[:, 1]
    assert all(t.size == sizes[t.entry] for t in peak.tensors if t.entry >= 0)
