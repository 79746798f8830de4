"""Memory of a PyTorch step: measured, estimated on fake tensors and modelled, to the byte."""

from __future__ import annotations

import contextlib
import copy
import operator
import timeit
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from memcli.engines.torch.executor import PlannedModule  # noqa: E402
from memcli.engines.torch.memory.cuda_allocator import CachingAllocator  # noqa: E402
from memcli.engines.torch.memory.model import TorchModel  # noqa: E402
from memcli.engines.torch.memory.trace import Trace  # noqa: E402
from memcli.engines.torch.trace import trace  # noqa: E402
from memcli.engines.torch.tracking import estimate_step, measure_step  # noqa: E402
from tests.unit import torch_nets as nets  # noqa: E402

torch.set_num_threads(1)
MARKS = [0, 1, 2, 4, 5, 6]
MIB = 2**20
_TRACED: dict[tuple[str, bool], Any] = {}


def autocast(on: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if on else contextlib.nullcontext()


def traced(name: str, half: bool = False) -> Any:
    """A net, its inputs, the names of its nodes and its model."""
    if (name, half) not in _TRACED:
        torch.manual_seed(1)
        make, inputs = nets.NETS[name]
        module, given_in = make(), inputs()
        with autocast(half):
            recorded = trace(module, given_in)
        model = TorchModel(Trace.from_bytes(recorded.to_bytes()))
        _TRACED[name, half] = module, given_in, nets.nodes_of(module), model
    return _TRACED[name, half]


def resnet50() -> tuple[Any, list[Any], list[str]]:
    module = nets.resnet((3, 4, 6, 3), 64, 1000, 7)
    return module, [torch.empty(16, 3, 224, 224, device="meta")], nets.nodes_of(module)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", nets.NETS)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_model_is_exact(name: str, half: bool, data: Any) -> None:
    """Peaks, and every stage of both passes, of any plan."""
    module, inputs, names, model = traced(name, half)
    kinds = data.draw(st.sampled_from([MARKS, [1], [2], [0], [0, 1], [5]]))
    marks = data.draw(st.lists(st.sampled_from(kinds), min_size=len(names), max_size=len(names)))
    with autocast(half):
        estimated = estimate_step(
            PlannedModule(module, dict(zip(names, marks, strict=True))), inputs
        )
    plan = np.array(marks, np.uint8)
    cost, timeline = model.evaluate(plan), model.timeline(plan)
    assert cost.feasible
    assert (cost.live_peak_bytes, cost.all_peak_bytes) == (estimated.peak, estimated.all_peak)
    assert timeline.kept_bytes == estimated.kept
    assert dict(zip(names, timeline.forward.tolist(), strict=True)) == estimated.forward
    backward = {n: b for n, b in zip(names, timeline.backward.tolist(), strict=True) if b >= 0}
    assert backward == estimated.backward
    part, node = model.stage_at(cost.peak_at)
    assert getattr(estimated, part).get(node, cost.live_peak_bytes) == cost.live_peak_bytes


@pytest.mark.parametrize("name", nets.NETS)
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fake_tensors_take_what_real_ones_take(name: str, data: Any) -> None:
    module, inputs, names, _ = traced(name)
    marks = data.draw(st.lists(st.sampled_from(MARKS), min_size=len(names), max_size=len(names)))
    planned = PlannedModule(copy.deepcopy(module), dict(zip(names, marks, strict=True)))
    for p in planned.parameters():
        p.grad = None
    estimated = estimate_step(planned, inputs)
    assert measure_step(planned, [x.detach().requires_grad_(x.requires_grad) for x in inputs]) == (
        estimated
    )
    assert all(p.grad is not None for p in planned.parameters())


def test_resnet_50() -> None:
    """Batch 16 at 224: the figures that were measured on real tensors."""
    module, inputs, names = resnet50()
    model = TorchModel(trace(module, inputs))
    sums = [n for n in names if n.startswith("add") and n != "addmm"]
    kept = {*sums[::3], names[-1]}
    third = np.array([0 if n in kept else 1 for n in names], np.uint8)
    plain, cost = model.evaluate(model.none()), model.evaluate(third)
    assert plain.all_peak_bytes / MIB == pytest.approx(1331.0, abs=0.1)
    assert cost.all_peak_bytes / MIB == pytest.approx(647.0, abs=0.1)
    estimated = estimate_step(
        PlannedModule(module, dict(zip(names, third.tolist(), strict=True))), inputs
    )
    assert estimated.all_peak == cost.all_peak_bytes
    assert estimated.gradient_bytes == model.trace.parameter_bytes
    # 4.1 thousand million multiply-adds an image
    assert model.trace.flops.sum() / 16 == pytest.approx(2 * 4.1e9, rel=0.03)
    assert 0.9 * model.trace.flops.sum() < cost.recompute_flops < model.trace.flops.sum()
    assert min(timeit.repeat(lambda: model.evaluate(third), number=5, repeat=5)) / 5 < 1e-3


def test_thousands_of_nodes() -> None:
    b = nets.Builder()
    y = b.input("x")
    for i in range(2000):
        y = b((torch.sin, torch.tanh, torch.exp)[i % 3], y)
    graph = b.done(y)
    model = TorchModel(trace(graph, [torch.randn(64, requires_grad=True)]))
    some = np.array([i % 40 != 0 for i in range(2000)], np.uint8)
    assert model.evaluate(some).live_peak_bytes < model.evaluate(model.none()).live_peak_bytes / 10
    assert min(timeit.repeat(lambda: model.evaluate(some), number=2, repeat=5)) / 2 < 10e-3
    # every need anew, back to the input: two million recomputations are not worth counting
    cost = model.evaluate(model.none() + np.uint8(2))
    assert not cost.feasible
    with pytest.raises(ValueError, match="more often"):
        model.timeline(model.none() + np.uint8(2))


def test_a_loss_of_the_users_own() -> None:
    module, inputs, names, _ = traced("resnet")
    target = torch.tensor([1, 2])

    def loss(outputs: Any) -> Any:
        return F.cross_entropy(outputs, torch.empty_like(outputs[:, 0], dtype=torch.int64))

    model = TorchModel(trace(module, inputs, loss))
    marks = {n: 1 for n in names if n.startswith("relu")}
    plan = np.array([marks.get(n, 0) for n in names], np.uint8)
    planned = PlannedModule(module, marks)
    assert model.evaluate(plan).live_peak_bytes == estimate_step(planned, inputs, loss).peak
    real = copy.deepcopy(planned)
    measured = measure_step(real, inputs, lambda o: F.cross_entropy(o, target))
    assert abs(measured.peak - model.evaluate(plan).live_peak_bytes) <= 64


def test_work_of_steps() -> None:
    b = nets.Builder()
    y = b(torch.matmul, b.input("x"), b.parameter(8, 16))
    graph = b.done(b(torch.relu, b(torch.reshape, y, (2, 4, 16))))
    recorded = trace(graph, [torch.randn(8, 8)])
    assert recorded.flops.tolist() == [2 * 8 * 8 * 16, 0, 128]
    assert recorded.moved_bytes.tolist() == [4 * (64 + 128 + 128), 0, 4 * 256]
    assert recorded.names == ["matmul", "reshape", "relu"]
    model = TorchModel(recorded)
    assert model.makes.tolist() == [True, False, True]
    assert model.droppable.tolist() == [True, False, False]  # the last is the graph's output
    assert model.result_bytes.tolist() == [512, 0, 512]
    assert (recorded.parameter_bytes, recorded.input_bytes) == (512, 256)


def test_masks_on_a_cuda_device_are_bytes() -> None:
    b = nets.Builder()
    y = b(nets.dropout, b(torch.relu, b.input("x")), 0.5)
    graph = b.done(b(operator.add, y, 1.0))
    x = [torch.randn(64, 64, requires_grad=True)]
    cpu, cuda = (
        TorchModel(trace(graph, x, device=d)).timeline(np.zeros(3, np.uint8)).kept_bytes
        for d in ("cpu", "cuda")
    )
    assert cpu - cuda == 64 * 64 * 3


FIRST_LAYERS: dict[str, tuple[tuple[int, ...], Any]] = {
    **{
        f"BatchNorm of {len(shape)} dimensions": (shape, lambda b, x: b.bn(x, 4))
        for shape in ((32, 4), (8, 4, 16), (8, 4, 6, 6), (4, 4, 4, 4, 4))
    },
    "BatchNorm by running statistics": (
        (8, 4, 6, 6),
        lambda b, x: b(
            F.batch_norm,
            x,
            b.buffer(torch.zeros(4)),
            b.buffer(torch.ones(4)),
            b.ones(4),
            b.parameter(4),
        ),
    ),
    **{
        f"InstanceNorm of {len(shape)} dimensions": (
            shape,
            lambda b, x: b(F.instance_norm, x, None, None, b.ones(4), b.parameter(4)),
        )
        for shape in ((8, 4, 16), (8, 4, 6, 6), (4, 4, 4, 4, 4))
    },
    "GroupNorm": ((8, 4, 6, 6), lambda b, x: b(F.group_norm, x, 2, b.ones(4), b.parameter(4))),
    "LayerNorm": ((8, 4, 16), lambda b, x: b(F.layer_norm, x, (16,), b.ones(16), b.parameter(16))),
    "convolution": ((8, 4, 6, 6), lambda b, x: b.conv(x, 4, 4, 3)),
    "linear": ((8, 16), lambda b, x: b(F.linear, x, b.parameter(16, 16), b.parameter(16))),
}


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_data_gets_a_gradient_only_where_one_is_asked_for(name: str, asked: bool) -> None:
    """A layer that reads the data itself: its output mask says what it makes."""
    shape, layer = FIRST_LAYERS[name]
    b = nets.Builder()
    graph = b.done(b(torch.relu, layer(b, b.input("x"))))
    inputs = [torch.randn(shape, requires_grad=asked)]
    estimated = estimate_step(PlannedModule(graph), inputs)
    model = TorchModel(trace(graph, inputs))
    assert model.evaluate(model.none()).live_peak_bytes == estimated.peak
    assert measure_step(PlannedModule(copy.deepcopy(graph)), inputs) == estimated


@pytest.mark.parametrize(
    ("shape", "dtype", "always"),
    [
        ((8, 4, 6, 6), torch.float32, True),
        ((8, 4, 6, 6), torch.bfloat16, False),
        ((32, 4), torch.float32, False),
    ],
)
def test_cudnn_makes_the_gradient_of_the_data_always(
    shape: tuple[int, ...], dtype: Any, always: bool
) -> None:
    """Its BatchNorm cannot be told not to; PyTorch's own kernels run what it does not."""
    b = nets.Builder()
    graph = b.done(b(torch.relu, b.bn(b.input("x"), 4))).to(dtype)
    x = torch.randn(shape).to(dtype)
    models = [TorchModel(trace(graph, [x], device=d)) for d in ("cpu", "cuda")]
    cpu, cuda = (m.evaluate(m.none()).live_peak_bytes for m in models)
    # on a card the statistics of half precision are in float32: two of four channels
    statistics = 2 * 4 * 2 if dtype == torch.bfloat16 else 0
    assert cuda - cpu == (x.nbytes if always else 0) + statistics


def test_not_a_trace() -> None:
    with pytest.raises(ValueError, match="not a trace"):
        Trace.from_bytes(b"PK something else")


@pytest.mark.parametrize("name", nets.NETS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cuda_blocks(name: str, data: Any) -> None:
    """Small tensors fill their blocks: the rounded peak is what the allocator counts."""
    _, _, names, exact = traced(name)
    model = TorchModel(exact.trace, allocator="cuda")
    marks = data.draw(st.lists(st.sampled_from(MARKS), min_size=len(names), max_size=len(names)))
    plan = np.array(marks, np.uint8)
    device = model.device_memory(plan)
    assert device.allocated_peak == model.evaluate(plan).all_peak_bytes
    assert device.allocated_peak % 512 == 0
    assert device.reserved_peak % (2 * MIB) == 0
    assert device.reserved_peak >= device.allocated_peak + device.resident
    assert exact.evaluate(plan).all_peak_bytes <= device.allocated_peak


def test_the_caching_allocator() -> None:
    """By the rules of CUDACachingAllocator.cpp, worked out by hand."""
    allocator = CachingAllocator()
    first = [allocator.allocate(size) for size in (1, 513, MIB)]
    assert (allocator.allocated, allocator.reserved) == (512 + 1024 + MIB, 2 * MIB)
    allocator.allocate(MIB)  # what is left of the segment is too small
    assert allocator.reserved == 4 * MIB
    large = allocator.allocate(3 * MIB)
    assert allocator.reserved == 24 * MIB
    rest = allocator.allocate(16 * MIB)  # the segment's 17 MiB: 1 MiB is not split off
    assert (allocator.reserved, allocator.allocated) == (24 * MIB + 0, 22 * MIB + 1536)
    for address in (*first, large, rest):
        allocator.free(address)
    assert allocator.allocated == MIB
    reserved = allocator.reserved
    assert allocator.allocate(20 * MIB) >= 0
    assert allocator.reserved == reserved  # joined again, the segment serves it
    allocator.allocate(20 * MIB + 1)
    assert allocator.reserved == reserved + 22 * MIB
