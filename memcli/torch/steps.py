"""Training steps of a module: as it runs in eager mode, and as a recorded graph."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree

from memcli.engines.torch.device_rules import as_on
from memcli.engines.torch.executor import PlannedModule
from memcli.engines.torch.geometry import tensors_in
from memcli.engines.torch.memory.plan_model import TorchPlanModel
from memcli.engines.torch.tape import ALLOCATED, FREED, Tape
from memcli.engines.torch.trace import trace
from memcli.engines.torch.tracking import StepMemory, estimate_step, total
from memcli.errors import BadInput
from memcli.torch.eager import Fakes, untraced, without_data
from memcli.torch.guards import Answering
from memcli.torch.inplace import Together
from memcli.torch.proof import OperatorLog
from memcli.torch.recording import Recording
from memcli.torch.regimes import Span

Loss = Callable[[Any], Tensor]
CPU = torch.device("cpu")
CUDA_BLOCK = 512  # to whose multiples PyTorch's allocator rounds sizes up


def default_loss(output: Any) -> Tensor:
    """The output's own loss where it has one, else the sum of the outputs in float32.

    Raises:
        ValueError: no output depends on anything that requires a gradient.
    """
    found = own_loss(output)
    return total(_seen(output)) if found is None else found


def own_loss(output: Any) -> Tensor | None:
    """The attribute or item ``loss``, as outputs of Hugging Face's models have it."""
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(found, Tensor) and found.requires_grad and found.numel() == 1:
        return found
    return None


def _seen(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def leaf_names(forward: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> list[str]:
    """Names of the leaves of ``(args, kwargs)``: those of forward's parameters, with numbers."""
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
        positional = [name for name in bound.signature.parameters if name in bound.arguments][
            : len(args)
        ]
    except (TypeError, ValueError):
        positional = []
    positional += [f"input_{n}" for n in range(len(positional), len(args))]
    names: list[str] = []
    for name, value in [*zip(positional, args, strict=False), *dict(kwargs).items()]:
        count = len(pytree.tree_leaves(value))
        names += [name] if count == 1 else [f"{name}_{n}" for n in range(count)]
    flat = pytree.tree_leaves((tuple(args), dict(kwargs)))
    names = [n if n.isidentifier() else f"input_{i}" for i, n in enumerate(names)]
    if len(names) != len(flat) or len(set(names)) != len(names):
        names = [f"input_{n}" for n in range(len(flat))]
    return names


def detached(recording: Recording, marks: Mapping[str, int], span: Span) -> PlannedModule:
    """The recorded graph under a plan, on the parameters as they are, without the module.

    For estimates: devices among its arguments are the CPU, where fake tensors are. A call begins
    the autocast ``span``, which the loss is to end.
    """
    root = nn.Module()
    tensors = {**recording.names, **recording.constants}
    mangled = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        mangled[name] = f"t{number}"
        if isinstance(tensor, nn.Parameter):
            root.register_parameter(mangled[name], tensor)
        else:
            root.register_buffer(mangled[name], tensor)
    graph = Graph()
    of: dict[Any, Any] = {}
    for node in recording.graph.nodes:
        if node.op == "output":
            graph.output(torch.fx.map_arg(node.args[0], of.__getitem__))
            continue
        copied = of[node] = graph.node_copy(node, of.__getitem__)
        if node.op == "get_attr":
            copied.target = mangled[str(node.target)]
        elif isinstance(node.target, Together):
            copied.target = node.target.mapped(_on_cpu)
        copied.args, copied.kwargs = _on_cpu(copied.args), _on_cpu(copied.kwargs)
    module = GraphModule(root, graph)
    module.__dict__["_parameters"] = root._parameters
    module.__dict__["_buffers"] = root._buffers
    planned = PlannedModule(module, marks)
    planned.register_forward_pre_hook(lambda *_: span.enter())
    return planned


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    if isinstance(value, (tuple, list)):
        items = [_on_cpu(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return value


def flat_loss(recording: Recording, loss: Loss, span: Span) -> Loss:
    """The loss of what the graph gives."""

    def of(outputs: Any) -> Tensor:
        found = loss(recording.form.filled(outputs))
        span.leave()
        return found

    return of


def eager_memory(
    model: nn.Module,
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    loss: Loss,
    span: Span,
    answers: Sequence[Any] = (),
    device: str = "cpu",
    log: OperatorLog | None = None,
) -> StepMemory:
    """The memory of a training step of the module without any plan; nothing is computed.

    Tensors that Python holds in local variables are alive for as long as in a real step. ``log``:
    takes down the operators of the forward pass.
    """
    fakes = Fakes(CPU)
    leaves, structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
    tape = Tape()
    with without_data(model, fakes) as real:
        given = [fakes.fresh(x) if isinstance(x, Tensor) else _on_cpu(x) for x in leaves]
        fake_args, fake_kwargs = pytree.tree_unflatten(given, structure)
        known = [fakes.of(tensor) for tensor in real.values()]
        tape.known([*known, *tensors_in(given)])
        if log is not None:
            tape.on_operator = log.note
        with (
            span.off(),
            untraced(),
            torch.enable_grad(),
            fakes.mode,
            as_on(device),
            tape,
            Answering(answers) if answers else contextlib.nullcontext(),
        ):
            span.enter()
            output = forward(*fake_args, **fake_kwargs)
            tape.on_operator = None
            found = loss(output)
            span.leave()
            found.backward()
            del found
        gradients = {tape.number_of(p.grad) for p in known if p.grad is not None} - {-1}
        events = list(tape.events)
        del output
    block = CUDA_BLOCK if device == "cuda" else 1
    return profile(events, [-(-size // block) * block for size in tape.bytes], gradients)


def planned_memory(
    recording: Recording,
    marks: Mapping[str, int],
    leaves: Sequence[Any],
    loss: Loss,
    span: Span,
    device: str,
) -> StepMemory:
    """The memory of a training step of the recorded graph under a plan; nothing is computed.

    For the CPU, a run of the executor without data. A card's allocator rounds sizes, and its
    operators save other things: there by the exact model that plans are searched with.
    """
    with span.off():
        if device == "cpu":
            return estimate_step(
                detached(recording, marks, span),
                leaves,
                flat_loss(recording, loss, span),
                closed_over=True,
            )
        recorded = trace(
            detached(recording, {}, span),
            leaves,
            flat_loss(recording, loss, span),
            device=device,
            closed_over=True,
        )
    flags = np.array([marks.get(name, 0) for name in recorded.names], np.uint8)
    cost = TorchPlanModel(recorded).exact.evaluate(flags)
    return StepMemory(peak=cost.live_peak_bytes, all_peak=cost.all_peak_bytes)


def profile(
    events: Sequence[tuple[int, int, int]], sizes: Sequence[int], gradients: set[int]
) -> StepMemory:
    """Peaks of allocations and releases."""
    result = StepMemory(gradient_bytes=sum(sizes[n] for n in gradients))
    live = live_all = 0
    for kind, number, _ in events:
        if kind not in (ALLOCATED, FREED):
            continue
        change = sizes[number] if kind == ALLOCATED else -sizes[number]
        live_all += change
        if number not in gradients:
            live += change
        result.peak = max(result.peak, live)
        result.all_peak = max(result.all_peak, live_all)
    return result


def check_trains(recording: Recording, name: str) -> None:
    """Raises BadInput where nothing that the module gives depends on a parameter."""
    if not any(t.requires_grad for t in recording.form.tensors):
        raise BadInput(
            f"{name} gives nothing that requires a gradient, so that there is nothing to train",
            "plans are for training: unfreeze parameters (requires_grad_())",
        )
