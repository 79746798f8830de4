"""Ways to train a network in less memory: PyTorch's own, and memcli's plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch_measure import Bench, Measured, Step
from torch_networks import Network, Runner, plainly

from memcli.engines.torch.executor import PlannedModule
from memcli.engines.torch.loss import training_loss
from memcli.engines.torch.memory.plan_model import TorchPlanModel
from memcli.engines.torch.search_space import TorchSpace
from memcli.engines.torch.trace import trace
from memcli.graph.cost import Cost
from memcli.search.base import Search, Settings
from memcli.search.registry import STRATEGIES

_aten = torch.ops.aten
# What selective checkpointing keeps, as PyTorch's own examples do: what is dear to compute.
_DEAR = [
    op
    for name in (
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "convolution",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
    if (op := getattr(getattr(_aten, name, None), "default", None)) is not None
]


@dataclass
class Method:
    """``step`` None: it cannot run here, and ``problem`` says why."""

    label: str
    step: Step | None
    problem: str = ""
    compiled: bool = False
    measured: Measured | None = None


def _running(network: Network, inputs: Sequence[Tensor], runner: Runner) -> Step:
    def step() -> Tensor:
        network.run = runner
        try:
            return network(*inputs)
        finally:
            network.run = plainly

    return step


def plain(network: Network, inputs: Sequence[Tensor]) -> Method:
    """The step as it is."""
    return Method("PyTorch, plain", _running(network, inputs, plainly))


def checkpointed(network: Network, inputs: Sequence[Tensor]) -> Method:
    """``torch.utils.checkpoint`` of each block."""
    runner = partial(checkpoint, use_reentrant=False)
    return Method("checkpoint per block", _running(network, inputs, runner))


def selective(network: Network, inputs: Sequence[Tensor]) -> Method:
    """Selective checkpointing of each block: matrix products, convolutions, attention stay."""
    contexts = partial(create_selective_checkpoint_contexts, _DEAR)
    runner = partial(checkpoint, use_reentrant=False, context_fn=contexts)
    return Method("selective checkpoint", _running(network, inputs, runner))


def compiled(
    network: Network, inputs: Sequence[Tensor], budgets: Sequence[float], bench: Bench
) -> list[Method]:
    """``torch.compile`` at each ``activation_memory_budget``.

    On CUDA by inductor. On the CPU by the same partitioner with kernels that are not fused
    (``aot_eager_decomp_partition``), which needs no C++ compiler: what inductor's own CPU kernels
    allocate cannot be seen. Its memory and recomputation there are the partitioner's, its time is
    not inductor's.
    """
    from torch._dynamo import lookup_backend, reset
    from torch._functorch import config

    cuda = inputs[0].device.type == "cuda"
    name = "inductor" if cuda else "aot_eager_decomp_partition"
    reset()
    methods = []
    for budget in budgets:
        label = f"compile, budget {budget:g}"
        if not hasattr(TorchDispatchMode, "ignore_compile_internals"):
            why = f"PyTorch {torch.__version__} cannot be looked into while it runs compiled code"
            methods.append(Method(label, None, why))
            continue

        # a function of its own for each budget: compiled code is found again by its backend
        def backend(gm: Any, given: Any, budget: float = budget) -> Any:
            with config.patch(activation_memory_budget=budget):
                return lookup_backend(name)(gm, given)

        step = _running_compiled(network, torch.compile(network, backend=backend), inputs)
        try:
            bench.fresh()
            step().backward()
        except Exception as error:  # compilers fail in many ways
            first = (str(error).strip().splitlines() or [""])[0]
            methods.append(Method(label, None, f"{type(error).__name__}: {first}"[:160]))
            continue
        methods.append(Method(label, step, compiled=True))
    return methods


def _running_compiled(
    network: Network, made: Callable[..., Tensor], inputs: Sequence[Tensor]
) -> Step:
    def step() -> Tensor:
        network.run = plainly
        return made(*inputs)

    return step


class Planner:
    """memcli's plans of a network's step: exported, recorded without data, searched, run.

    ``graph`` has the network's own parameters and states.
    """

    def __init__(
        self, network: nn.Module, inputs: Sequence[Tensor], time_limit: float | None
    ) -> None:
        self.inputs = list(inputs)
        self.time_limit = time_limit
        self.graph: Any = torch.export.export(network, tuple(inputs), strict=False).module()
        kind = self.inputs[0].device.type
        self.trace = trace(PlannedModule(self.graph), self.inputs, training_loss, device=kind)
        self.model = TorchPlanModel(self.trace)
        self.plain = self.model.evaluate(self.model.none())

    def plan(
        self, label: str, *, budget: int | None = None, max_recompute: float | None = None
    ) -> tuple[Method, Cost]:
        """As ``memcli plan --budget BYTES --max-recompute PART``, and the step under it."""
        settings = Settings(budget=budget, max_recompute=max_recompute, time_limit=self.time_limit)
        search = Search(TorchSpace(self.model), settings)
        STRATEGIES["auto"].run(search)
        found = search.answer()
        flags = found.plan.recompute.tolist()
        marks = {n: m for n, m in zip(self.trace.names, flags, strict=True) if m}
        module = PlannedModule(self.graph, marks)
        method = Method(label, lambda: training_loss(module(*self.inputs)))
        if budget is not None and found.cost.pool_bytes > budget:
            method = Method(label, None, f"no plan found below {found.cost.pool_bytes} bytes")
        return method, found.cost
