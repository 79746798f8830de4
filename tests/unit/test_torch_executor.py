"""Running a graph under a plan gives what the graph gives: bits, states and errors alike."""

from __future__ import annotations

import copy
import gc
import operator
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from memcli.engines.torch.executor import (  # noqa: E402
    AGAIN,
    AUXILIARY,
    EACH,
    PlannedModule,
)
from memcli.engines.torch.geometry import tensors_in  # noqa: E402
from memcli.engines.torch.tracking import measure_step, total  # noqa: E402
from memcli.errors import BadInput  # noqa: E402
from tests.unit import torch_nets as nets  # noqa: E402

torch.set_num_threads(1)
MARKS = [0, AGAIN, EACH, AUXILIARY, AGAIN | AUXILIARY, EACH | AUXILIARY]
_MADE: dict[str, Any] = {}


def made(name: str) -> Any:
    """A net, its inputs, and what a step without a plan gives."""
    if name not in _MADE:
        torch.manual_seed(1)
        make, inputs = nets.NETS[name]
        module, given_in = make(), inputs()
        # PyTorch itself refuses backward through states that the graph updates by copies.
        plain = PlannedModule(module) if name == "exported" else module
        _MADE[name] = module, given_in, step(copy.deepcopy(plain), given_in)
    return _MADE[name]


def step(module: Any, inputs: Any) -> list[Any]:
    """Outputs, gradients and states of one step, seeded."""
    torch.manual_seed(3)
    inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    outputs = module(*inputs)
    total(outputs).backward()
    found = [*tensors_in(outputs), *(p.grad for p in module.parameters())]
    found += [*(i.grad for i in inputs), *module.buffers(), torch.get_rng_state()]
    return [t if t is None else t.detach().clone() for t in found]


def planned(name: str, mark: int) -> PlannedModule:
    module = copy.deepcopy(made(name)[0])
    return PlannedModule(module, dict.fromkeys(nets.nodes_of(module), mark))


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b))


@pytest.mark.parametrize("name", nets.NETS)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_plan_gives_the_same_bits(name: str, data: Any) -> None:
    module, inputs, expected = made(name)
    names = nets.nodes_of(module)
    marks = data.draw(st.lists(st.sampled_from(MARKS), min_size=len(names), max_size=len(names)))
    found = step(PlannedModule(copy.deepcopy(module), dict(zip(names, marks, strict=True))), inputs)
    assert_same(found, expected)


def test_the_graph_itself_without_the_executor() -> None:
    """What is compared with above is what PyTorch's own interpreter of the graph gives."""
    _module, inputs, expected = made("exported")
    assert_same(step(copy.deepcopy(made("exported_training")[0]), inputs)[:8], expected[:8])


@pytest.mark.parametrize("mark", MARKS)
def test_several_forwards_before_backward(mark: int) -> None:
    def run(module: Any) -> list[Any]:
        torch.manual_seed(0)
        inputs = [torch.randn(2, 3, 16, 16) for _ in range(3)]
        losses = [module(x).square().sum() for x in inputs]
        losses[1].backward()
        (losses[0] + 2 * losses[2]).backward()
        return [*(p.grad for p in module.parameters()), *module.buffers()]

    assert_same(run(planned("resnet", mark)), run(copy.deepcopy(made("resnet")[0])))


@pytest.mark.parametrize("mark", MARKS)
def test_backward_again_through_a_graph_that_was_kept(mark: int) -> None:
    def run(module: Any) -> list[Any]:
        torch.manual_seed(0)
        h, c = module(torch.randn(4, 2, 3))
        h.sum().backward(retain_graph=True)  # a part of the graph
        h.square().sum().backward(retain_graph=True)
        c.sum().backward(retain_graph=True)
        (h * c).sum().backward()
        with pytest.raises(RuntimeError, match="second time"):
            h.sum().backward()
        return [p.grad for p in module.parameters()]

    assert_same(run(planned("lstm", mark)), run(copy.deepcopy(made("lstm")[0])))


@pytest.mark.parametrize("mark", MARKS)
def test_two_parts_one_after_the_other(mark: int) -> None:
    """The outputs share what is recomputed; each part is released on its own."""

    def run(module: Any) -> list[Any]:
        torch.manual_seed(0)
        x = torch.randn(6, 4, requires_grad=True)
        outputs = module(x)
        torch.autograd.grad(outputs[2].sum(), x, retain_graph=True)
        outputs[0].sum().backward(retain_graph=True)
        del outputs
        gc.collect()
        return [x.grad]

    assert_same(run(planned("views", mark)), run(copy.deepcopy(made("views")[0])))


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_double_backward(name: str, mark: int) -> None:
    def run(module: Any) -> list[Any]:
        torch.manual_seed(0)
        inputs = made(name)[1]
        parameters = list(module.parameters())
        loss = sum(t.square().sum() for t in tensors_in(module(*inputs)))
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        sum(g.square().sum() for g in grads).backward()
        return [p.grad for p in parameters]

    expected = run(copy.deepcopy(made(name)[0]))
    assert any(g.abs().sum() > 0 for g in expected)
    assert_same(run(planned(name, mark)), expected)


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("around_backward", [False, True])
def test_autocast(mark: int, around_backward: bool) -> None:
    def run(module: Any) -> list[Any]:
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(module.parameters(), 0.01)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                first = module(torch.randn(2, 3, 16, 16)).float().square().sum()
                if around_backward:
                    first.backward()
                    first = module(torch.randn(2, 3, 16, 16)).float().square().sum()
            first.backward()
            optimizer.step()
        return [*(p.grad for p in module.parameters()), *module.buffers()]

    assert_same(run(planned("resnet", mark)), run(copy.deepcopy(made("resnet")[0])))


def test_in_place_changes_are_refused() -> None:
    x = torch.randn(4, 8)
    plain, kept, again = (copy.deepcopy(made("mlp")[0]), planned("mlp", 0), planned("mlp", AGAIN))
    for module in (plain, kept, again):
        loss = total(module(x))
        with torch.no_grad():
            next(iter(module.parameters())).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    for module in (plain, kept, again):
        output, last = module(x)
        with torch.no_grad():
            last.mul_(2)  # exp saves its result
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_an_input_that_only_the_recomputation_reads_may_not_change() -> None:
    module = planned("resnet", AGAIN)
    x = torch.randn(2, 3, 16, 16)
    loss = total(module(x))
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_graphs_that_change_values_in_place_are_refused() -> None:
    b = nets.Builder()
    y = b(torch.sin, b.input("x"))
    z = b(torch.cos, y)
    b(torch.Tensor.add_, y, 1.0)
    module = PlannedModule(b.done(z), {"sin": AGAIN})
    with pytest.raises(RuntimeError, match="'sin' made was changed in place"):
        module(torch.randn(3, requires_grad=True))


@pytest.mark.parametrize("mark", MARKS)
def test_nothing_stays_where_no_backward_pass_runs(mark: int) -> None:
    module = planned("transformer", mark)
    outputs = module(*made("transformer")[1])
    alive = weakref.ref(outputs.untyped_storage())
    gc.disable()
    try:
        del outputs
        assert alive() is None
    finally:
        gc.enable()


def test_an_error_in_backward_leaves_nothing_behind() -> None:
    module = planned("mlp", AGAIN)
    outputs = module(torch.randn(4, 8))
    alive = weakref.ref(outputs[1].untyped_storage())

    def fail(_: Any) -> None:
        raise ValueError("the user's own hook")

    outputs[1].register_hook(fail)
    with pytest.raises(ValueError, match="own hook"):
        total(outputs).backward()
    del outputs
    gc.collect()
    assert alive() is None
    assert_same(step(planned("mlp", AGAIN), made("mlp")[1]), made("mlp")[2])


def test_without_gradients_the_graph_just_runs() -> None:
    module, inputs, _ = made("resnet")
    plan = planned("resnet", AGAIN)
    with torch.no_grad():
        found = plan(*inputs)
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.equal(found, copy.deepcopy(module)(*inputs))


def test_looking_at_saved_tensors_changes_nothing() -> None:
    module = planned("mlp", AGAIN)
    x = torch.randn(4, 8)
    torch.manual_seed(0)
    output, last = module(x)
    seen = last.grad_fn._saved_result.clone()
    assert torch.equal(seen, last.detach())
    total((output, last)).backward()
    plain = copy.deepcopy(made("mlp")[0])
    torch.manual_seed(0)
    total(plain(x)).backward()
    assert_same([p.grad for p in module.parameters()], [p.grad for p in plain.parameters()])


class _SavesTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:  # type: ignore[override]
        (first,), (second,) = ctx.saved_tensors, ctx.saved_tensors
        return grad * (first + second)


def _square(x: Any) -> Any:
    return _SavesTwice.apply(x)


@pytest.mark.parametrize("mark", [0, AGAIN, EACH])
def test_a_custom_function_that_asks_twice(mark: int) -> None:
    b = nets.Builder()
    y = b(_square, b(torch.sin, b.input("x")))
    module = PlannedModule(b.done(b(torch.exp, y)), {"sin": mark, "_square": mark})
    x = torch.randn(5, requires_grad=True)
    module(x).sum().backward()
    again = x.detach().clone().requires_grad_()
    torch.exp(torch.sin(again) ** 2).sum().backward()
    assert torch.allclose(x.grad, again.grad)


def test_thousands_of_nodes_without_recursion() -> None:
    b = nets.Builder()
    y = b.input("x")
    for _ in range(3000):
        y = b(torch.sin, y)
    graph = b.done(y)
    module = PlannedModule(graph, dict.fromkeys(nets.nodes_of(graph)[:-1], AGAIN))
    x = torch.randn(4, requires_grad=True)
    module(x).sum().backward()
    again = x.detach().clone().requires_grad_()
    graph(again).sum().backward()
    assert torch.equal(x.grad, again.grad)


def test_dropped_masks_and_indices_save_memory() -> None:
    b = nets.Builder()
    y = b(torch.relu, b.conv(b.input("x"), 3, 8, 3))
    y = b(nets.dropout, b(F.max_pool2d, y, 2), 0.5)
    graph = b.done(b(torch.mean, b(operator.mul, y, y), (2, 3)))
    x = [torch.randn(2, 3, 16, 16)]
    whole = dict.fromkeys(nets.nodes_of(graph)[:-1], AGAIN)
    more = {**whole, "max_pool2d": AGAIN | AUXILIARY, "dropout": AUXILIARY | AGAIN}
    kept = [measure_step(PlannedModule(copy.deepcopy(graph), m), x).kept for m in (whole, more)]
    indices, mask = 2 * 8 * 8 * 8 * 8, 2 * 8 * 8 * 8 * 4
    assert kept[0] - kept[1] == indices + mask


def test_state_dict_and_training_are_the_graphs_own() -> None:
    module = copy.deepcopy(made("resnet")[0])
    plan = PlannedModule(module, {"relu": AGAIN})
    assert list(plan.state_dict()) == list(module.state_dict())
    assert all(a is b for a, b in zip(plan.parameters(), module.parameters(), strict=True))
    assert copy.deepcopy(plan)(torch.randn(1, 3, 16, 16)).shape == (1, 5)


def test_plans_that_do_not_fit() -> None:
    module = made("mlp")[0]
    with pytest.raises(BadInput, match="'nosuch', which is no function"):
        PlannedModule(module, {"nosuch": AGAIN})
    with pytest.raises(BadInput, match="mark 9"):
        PlannedModule(module, {"relu": 9})
    with pytest.raises(TypeError, match=r"has 1 inputs \(x\); got 2"):
        PlannedModule(module)(1, 2)
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU()))
    with pytest.raises(BadInput, match="call_module"):
        PlannedModule(traced)
