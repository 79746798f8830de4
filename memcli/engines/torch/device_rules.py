"""Operators that save other things on a device than they do when run on fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

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


class _LikeOneDnn(TorchDispatchMode):
    """Recurrent layers save oneDNN's work space, of whose size fake tensors know nothing.

    The library is asked for it: one layer on zeros of the same shapes, once for each of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.mkldnn_rnn_layer.default or result[3] is None:
            return result
        key = str([(a.shape, a.dtype) if isinstance(a, torch.Tensor) else a for a in args])
        if key not in self.sizes:
            with unset_fake_temporarily(), torch.enable_grad():
                real = [
                    torch.zeros(a.shape, dtype=a.dtype) if isinstance(a, torch.Tensor) else a
                    for a in args
                ]
                space = func(*real, **(kwargs or {}))[3]
                self.sizes[key] = 0 if space is None else space.numel()
        return (*result[:3], torch.empty(self.sizes[key], dtype=torch.uint8))


@contextlib.contextmanager
def as_on(device: str) -> Iterator[None]:
    """Fake CPU runs inside save what the device ("cpu" or "cuda") would."""
    if device == "cpu":
        with _LikeOneDnn():
            yield
    else:
        with _LikeCuda():
            yield
