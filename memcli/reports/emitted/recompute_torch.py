"""Wraps modules in torch.utils.checkpoint."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

# <plan>
# Modules that are recomputed together, by name: one, or children of one nn.Sequential in a row.
GROUPS: list[tuple[str, ...]] = []
# What stays all the same: {first module of a group: {kind: which of its calls, from 0}}.
SAVED: dict[str, dict[str, tuple[int, ...]]] = {}
# </plan>

_KINDS = {
    "convolution": {torch.ops.aten.convolution.default},
    "product": {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
    },
}


def recompute(
    model: nn.Module,
    groups: Sequence[Sequence[str]] | None = None,
    saved: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
) -> nn.Module:
    """Makes ``model`` drop what groups make, and recompute it in the backward pass; the model.

    Parameters, buffers and their names stay; BatchNorm's statistics are updated once, and Dropout
    draws the same masks again. Without gradients nothing is wrapped. ``torch.compile`` comes after.

    Raises:
        ValueError: a name that the model has not, or a group that is no row of one nn.Sequential.
    """
    groups = GROUPS if groups is None else groups
    saved = SAVED if saved is None else saved
    modules = dict(model.named_modules())
    missing = [name for group in groups for name in group if name not in modules]
    if missing:
        raise ValueError(f"the model has no module {', '.join(missing[:5])}")
    rows: dict[str, list[list[str]]] = {}
    for group in groups:
        keep = saved.get(group[0], {})
        if len(group) == 1:
            module = modules[group[0]]
            module.forward = _checkpointed(module.forward, [module], keep)  # type: ignore[method-assign]
        else:
            rows.setdefault(group[0].rpartition(".")[0], []).append(list(group))
    for parent, listed in rows.items():
        _wrap_rows(modules[parent], parent, listed, saved)
    return model


def _wrap_rows(
    parent: nn.Module,
    name: str,
    rows: list[list[str]],
    saved: Mapping[str, Mapping[str, Sequence[int]]],
) -> None:
    if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward:
        raise ValueError(f"{name or 'the model'} is no nn.Sequential, whose children run in a row")
    children = dict(parent.named_children())
    parts: list[Callable[..., Any]] = []
    row_of = {child.rpartition(".")[2]: row for row in rows for child in row}
    done: set[str] = set()
    for child, module in children.items():
        row = row_of.get(child)
        if row is None:
            parts.append(module)
        elif row[0] not in done:
            done.add(row[0])
            members = [children[name.rpartition(".")[2]] for name in row]
            run = functools.partial(_in_a_row, members)
            parts.append(_checkpointed(run, members, saved.get(row[0], {})))
    parent.forward = functools.partial(_in_a_row, parts)  # type: ignore[method-assign]


def _in_a_row(parts: Sequence[Callable[..., Any]], x: Any) -> Any:
    for part in parts:
        x = part(x)
    return x


def _checkpointed(
    function: Callable[..., Any], modules: Sequence[nn.Module], keep: Mapping[str, Sequence[int]]
) -> Callable[..., Any]:
    contexts = functools.partial(_contexts, modules, keep)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return forward


def _contexts(modules: Sequence[nn.Module], keep: Mapping[str, Sequence[int]]) -> tuple[Any, Any]:
    """What the first run of a group stands in, and what the second."""
    if not keep:
        return contextlib.nullcontext(), _statistics_as_they_are(modules)
    first, second = create_selective_checkpoint_contexts(_Policy(keep))
    # the statistics' own operations are none of the group's
    return first, _both(_statistics_as_they_are(modules), second)


class _Policy:
    """Keeps the results of some calls, counted anew in each run of a group."""

    def __init__(self, keep: Mapping[str, Sequence[int]]) -> None:
        self.wanted = {kind: set(calls) for kind, calls in keep.items()}
        self.counts: dict[tuple[str, bool], int] = {}

    def __call__(self, ctx: Any, function: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        for kind, functions in _KINDS.items():
            if function in functions:
                key = (kind, ctx.is_recompute)
                number = self.counts[key] = self.counts.get(key, -1) + 1
                if number in self.wanted.get(kind, ()):
                    return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def _both(first: Any, second: Any) -> Iterator[None]:
    with first, second:
        yield


@contextlib.contextmanager
def _statistics_as_they_are(modules: Sequence[nn.Module]) -> Iterator[None]:
    """With momentum 0, a second run of BatchNorm adds nothing to its statistics."""
    norms = {
        norm: (norm.momentum, norm.num_batches_tracked)
        for module in modules
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training
    }
    counts = {n: c.clone() for n, (_, c) in norms.items() if c is not None}
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, tracked) in norms.items():
            norm.momentum = momentum
            if tracked is not None:
                tracked.copy_(counts[norm])
