"""A module as it runs in eager mode, on tensors without data.

Libraries take other branches where they believe that they are traced: explicit masks in place of
``is_causal``, other kernels. What they look at is switched off meanwhile.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

# By module: functions that tell whether a forward pass is traced, and what they say in eager mode.
# transformers asks whether its tensors are fake; all else that it asks is true of a real run, too.
_TOLD = {
    "transformers.utils.import_utils": {"is_fake_tensor": False},
}


_here = threading.local()


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Libraries find nothing that speaks of tracing."""
    with contextlib.ExitStack() as stack:
        for module_name, functions in _TOLD.items():
            module = sys.modules.get(module_name)
            for name, answer in functions.items():
                if module is not None and hasattr(module, name):
                    stack.enter_context(_replaced(module, name, _always(answer)))
        yield


def _always(answer: bool) -> Any:
    return lambda *args, **kwargs: answer


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Fakes:
    """Fake tensors that stand for real ones, each once: aliases of one storage stay aliases."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.device = device  # None: of each tensor
        self._of: dict[int, tuple[Tensor, Tensor]] = {}

    def fresh(self, tensor: Tensor) -> Tensor:
        """One that nothing else stands for."""
        with self.mode:
            like = torch.empty_strided(
                tensor.shape,
                tensor.stride(),
                dtype=tensor.dtype,
                device=self.device or tensor.device,
            )
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(like, requires_grad=tensor.requires_grad)
        if tensor.requires_grad and not tensor.is_leaf:
            # as in the call, where it has a history
            with self.mode, torch.enable_grad():
                return like.requires_grad_().view_as(like)
        return like.requires_grad_(tensor.requires_grad)

    def of(self, tensor: Tensor) -> Tensor:
        """The one of a parameter or buffer."""
        if id(tensor) not in self._of:
            self._of[id(tensor)] = tensor, self.fresh(tensor)
        return self._of[id(tensor)][1]


@contextlib.contextmanager
def without_data(model: nn.Module, fakes: Fakes) -> Iterator[dict[str, Tensor]]:
    """The module has fake parameters and buffers; {dotted name: what was there}.

    Names are those of the first place where a tensor is; tied ones have one. Modules in it that
    are under plans of their own run without them.
    """
    before = is_without_data()
    _here.without_data = True
    real: dict[str, Tensor] = {}
    seen: set[int] = set()
    undo: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for prefix, module in model.named_modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in seen:
                        seen.add(id(tensor))
                        real[f"{prefix}.{name}" if prefix else name] = tensor
                    undo.append((table, name, tensor))  # type: ignore[arg-type]
                    table[name] = fakes.of(tensor)  # type: ignore[assignment]
        for module in model.modules():
            # recurrent layers hold their parameters in a list, too
            for name, value in list(module.__dict__.items()):
                if type(value) in (list, tuple) and any(id(item) in seen for item in value):
                    undo.append((module.__dict__, name, value))
                    module.__dict__[name] = type(value)(
                        fakes.of(item) if id(item) in seen else item for item in value
                    )
        yield real
    finally:
        _here.without_data = before
        for table, name, value in reversed(undo):
            table[name] = value


def is_without_data() -> bool:
    """Whether a module of this thread runs on fake parameters now."""
    return bool(getattr(_here, "without_data", False))
