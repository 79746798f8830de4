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
    """Functions that are other kernels there.

    Dropout is one kernel and saves a mask of bytes; here it saves a mask of floats. Attention is
    flash attention in the lower precisions and memory-efficient attention else. Recurrent layers
    copy their weights into one buffer, which stays to the backward pass.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return _dropout(*args, **kwargs)
        if func in _ATTENTIONS:
            return _attention(func, *args, **kwargs)
        if func in _RECURRENT:
            return _recurrent(func, args, kwargs)
        return func(*args, **kwargs)


def _dropout(
    input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, **named: Any
) -> Any:
    training = bool(named.get("train", training))
    if inplace or not training or not 0 < p < 1:
        return torch.nn.functional.dropout(input, p, training, inplace)
    return torch.native_dropout(input, p, True)[0]


class _Holding(torch.autograd.Function):
    """Gives a tensor on, and holds another one until its gradient has passed."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(held)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        ctx.saved_tensors  # noqa: B018  # it is asked for, and then let go
        return gradient, None


def _recurrent(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """cuDNN's layers: the weights that a graph has one by one are copied into one buffer.

    What cuDNN reserves for the backward pass beside is not known.
    """
    lists = [a for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple))]
    weights = lists[-1] if lists else []  # behind the states, of which an LSTM has two
    if not weights or not all(isinstance(w, torch.Tensor) for w in weights):
        return func(*args, **kwargs)
    size = sum(w.numel() for w in weights)
    flat = torch.empty(size, dtype=weights[0].dtype, device=weights[0].device)
    result = func(*args, **kwargs)
    if not torch.is_grad_enabled() or not result[0].requires_grad:
        return result
    return (_Holding.apply(result[0], flat), *result[1:])


_RECURRENT = {
    torch.lstm,
    torch.gru,
    torch.rnn_tanh,
    torch.rnn_relu,
    torch.ops.aten.lstm.input,
    torch.ops.aten.gru.input,
    torch.ops.aten.rnn_tanh.input,
    torch.ops.aten.rnn_relu.input,
}
_ATTENTIONS = {
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
}
_FLASH_MOST_WIDTH = 256


def _attention(
    func: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """By the rules of ``_fused_sdp_choice_cuda`` (transformers/cuda/sdp_utils.cpp), the usual ones.

    What neither kernel takes is left to PyTorch, whose plain attention is a card's as well.
    """
    # autocast casts before the choice is made
    kind = query.dtype
    if torch.is_autocast_enabled("cpu") and kind in _CAST:
        kind = torch.get_autocast_dtype("cpu")
        query, key, value = (t.to(kind) for t in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(kind)
    named = {"scale": scale, "enable_gqa": enable_gqa}
    width, values = query.shape[-1], value.shape[-1]
    step = 16 // kind.itemsize
    fits = (
        query.dim() == key.dim() == value.dim() == 4
        and not enable_gqa
        and kind in _CAST
        and query.shape[1] == key.shape[1]
        and all(t.stride(-1) == 1 for t in (query, key, value))
    )
    flash = kind != torch.float32 and attn_mask is None and width == values and width % 8 == 0
    if fits and flash and width <= _FLASH_MOST_WIDTH:
        return torch.ops.aten._scaled_dot_product_flash_attention.default(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    if fits and width % step == 0 and values % step == 0 and _readable(attn_mask):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            zero = torch.zeros((), dtype=kind, device=query.device)
            attn_mask = torch.where(attn_mask, zero, float("-inf"))
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:2], query.shape[2], key.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention.default(
            query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
        )[0]
    return func(query, key, value, attn_mask, dropout_p, is_causal, **named)


def _readable(mask: torch.Tensor | None) -> bool:
    """Whether memory-efficient attention takes a mask as it lies: rows of whole vectors."""
    return mask is None or (not mask.requires_grad and mask.shape[-1] % 8 == 0)


_CAST = (torch.float32, torch.float16, torch.bfloat16)


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
        if self.on_card and func in _BATCH_NORMS:
            return _with_float_statistics(result)
        if func not in _BATCH_NORM_BACKWARDS:
            return result
        _, input, weight, _, _, _, _, training, _, mask, *_ = args
        if mask[0] or (self.on_card and training and _run_by_cudnn(input, weight)):
            return result
        return (None, *result[1:])


def _with_float_statistics(result: Any) -> Any:
    """A card keeps the statistics of a batch in float32 whatever the type of the batch."""
    halves = (torch.float16, torch.bfloat16)
    return tuple(
        t.float() if number in (1, 2) and t is not None and t.dtype in halves else t
        for number, t in enumerate(result)
    )


_BATCH_NORMS = {
    torch.ops.aten.native_batch_norm.default,
    torch.ops.aten._native_batch_norm_legit.default,
    torch.ops.aten._native_batch_norm_legit.no_stats,
    torch.ops.aten._native_batch_norm_legit_functional.default,
}
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
