"""Operators that save or make other things on a device than they do when run on fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from memcli.engines.torch.kernel_rules import LikeKernels

_DROPOUTS = {
    torch.dropout,
    torch.nn.functional.dropout,
    torch.ops.aten.dropout,
    torch.ops.aten.dropout.default,
}


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


class _AsAsked(TorchDispatchMode):
    """BatchNorm and InstanceNorm make the gradient of their input only where it is asked for.

    On fake tensors they make it whatever the operator's output mask says; PyTorch's own kernels
    follow the mask, for the CPU and for CUDA. cuDNN's has none: it always makes it (``on_card``).
    """

    def __init__(self, on_card: bool) -> None:
        super().__init__()
        self.on_card = on_card

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _BATCH_NORM_BACKWARDS:
            return result
        _, input, weight, _, _, _, _, training, _, mask, *_ = args
        if mask[0] or (self.on_card and training and _run_by_cudnn(input, weight)):
            return result
        return (None, *result[1:])


_BATCH_NORM_BACKWARDS = {
    torch.ops.aten.native_batch_norm_backward.default,
    torch.ops.aten.batch_norm_backward.default,
}
# Of an input that PyTorch gives to cuDNN's BatchNorm.
_CUDNN_MOST_IMAGES = 880_801
_CUDNN_MOST_ELEMENTS = 2**31 - 1


def _run_by_cudnn(input: torch.Tensor, weight: torch.Tensor | None) -> bool:
    """Whether a card's BatchNorm in training is cuDNN's.

    By the rule of ``_select_batch_norm_backend`` (ATen/native/Normalization.cpp), which itself can
    be asked only of tensors that are on a card.
    """
    return (
        weight is not None
        and torch.bfloat16 not in (input.dtype, weight.dtype)
        and (input.dtype != torch.float16 or weight.dtype == torch.float32)
        and input.dim() >= 3
        and input.shape[0] <= _CUDNN_MOST_IMAGES
        and input.numel() < _CUDNN_MOST_ELEMENTS
    )


@contextlib.contextmanager
def as_on(device: str) -> Iterator[None]:
    """Fake CPU runs inside save and make what the device ("cpu" or "cuda") would."""
    like: contextlib.AbstractContextManager[Any] = _LikeOneDnn() if device == "cpu" else _LikeCuda()
    with LikeKernels(), like, _AsAsked(on_card=device != "cpu"):
        yield
