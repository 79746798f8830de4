"""Operators that save other things on a CUDA device than on the CPU, when run on fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DROPOUTS = {
    torch.dropout, torch.nn.functional.dropout,
    torch.ops.aten.dropout, torch.ops.aten.dropout.default,
}  # fmt: skip


class _LikeCuda(TorchFunctionMode):
    """Dropout is one kernel there and saves a mask of bytes; here it saves a mask of floats."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return _dropout(*args, **kwargs)
        return func(*args, **kwargs)


def _dropout(
    input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, **named: Any
) -> Any:
    training = bool(named.get("train", training))
    if inplace or not training or not 0 < p < 1:
        return torch.nn.functional.dropout(input, p, training, inplace)
    return torch.native_dropout(input, p, True)[0]


@contextlib.contextmanager
def as_on(device: str) -> Iterator[None]:
    """Fake CPU runs inside save what the device ("cpu" or "cuda") would."""
    if device == "cpu":
        yield
    else:
        with _LikeCuda():
            yield
