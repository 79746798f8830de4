"""CUDA's autocast on tensors of the CPU, whose own casts other operators.

Which operators run in the lower precision, in float32, or in the widest type of what they read, is
CUDA's list here (``ATen/autocast_mode.h``). It is put in the place of the CPU's for as long as a
step is recorded, so that functions that call others inside are cast where they are on a card.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_LOWER = """
_convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d
conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv
linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell
_thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
_scaled_dot_product_flash_attention scaled_dot_product_attention
"""
_FLOAT32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm
frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss
cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp
upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d
upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
_upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa
"""
_FLOAT32_RESULT = """
prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
linalg_matrix_norm.str_ord sum sum.dim_IntList
"""
_WIDEST = (
    "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add"
)

_KEY = "AutocastCPU"
_EXCLUDED = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


class _Casts:
    """Casts, those of parameters kept until autocast ends."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Any, Tensor]] = {}

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value, dtype)
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            return [self.cast(v, dtype) for v in value]
        return value

    def _tensor(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if not eligible(tensor) or tensor.dtype == dtype:
            return tensor
        keeps = (
            torch.is_autocast_cache_enabled()
            and tensor.dtype == torch.float32
            and dtype == torch.get_autocast_dtype("cpu")
            and tensor.is_leaf
            and tensor.requires_grad
            and not tensor._is_view()
        )
        if not keeps:
            return tensor.to(dtype)
        found = self.kept.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        cast = tensor.to(dtype)
        self.kept[id(tensor)] = weakref.ref(tensor), cast
        return cast


def eligible(value: Any) -> bool:
    """Whether autocast casts a value at all."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
        and value.device.type == "cpu"
    )


def _kernels(casts: _Casts) -> Iterator[tuple[str, Callable[..., Any]]]:
    def redispatched(op: Any, change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[..., Any]:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(_EXCLUDED):
                args, kwargs = change(args, kwargs)
                return op(*args, **kwargs)

        return kernel

    def to(dtype_of: Callable[[Any, Any], torch.dtype]) -> Callable[[Any, Any], tuple[Any, Any]]:
        def change(args: Any, kwargs: Any) -> tuple[Any, Any]:
            dtype = dtype_of(args, kwargs)
            # the last first, as the compiler of PyTorch's kernels evaluates arguments
            named = {k: casts.cast(kwargs[k], dtype) for k in reversed(kwargs)}
            return [casts.cast(a, dtype) for a in reversed(args)][::-1], named

        return change

    def result_in_float32(op: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
        names = [argument.name for argument in op._schema.arguments]
        at = names.index("dtype")

        def change(args: Any, kwargs: Any) -> tuple[Any, Any]:
            if not eligible(args[0]):
                return args, kwargs
            if len(args) > at:
                dtype = torch.float32 if args[at] is None else args[at]
                return [*args[:at], dtype, *args[at + 1 :]], kwargs
            if kwargs.get("dtype") is None:
                kwargs = {**kwargs, "dtype": torch.float32}
            return args, kwargs

        return change

    def widest(args: Any, kwargs: Any) -> torch.dtype:
        lower = torch.get_autocast_dtype("cpu")
        found = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if eligible(t)]
        return torch.float32 if any(t.dtype == torch.float32 for t in found) else lower

    lower = to(lambda *_: torch.get_autocast_dtype("cpu"))
    for names, change in (
        (_LOWER, lower),
        (_FLOAT32, to(lambda *_: torch.float32)),
        (_FLOAT32_RESULT, None),
        (_WIDEST, to(widest)),
    ):
        for name in names.split():
            packet, _, overload = name.partition(".")
            op = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
            if op is not None:
                yield name, redispatched(op, change or result_in_float32(op))


@contextlib.contextmanager
def cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """Operators on the CPU are cast inside as ``torch.autocast("cuda", dtype)`` casts on a card.

    While it is active the CPU's own autocast is CUDA's in every thread of the process.
    """
    casts = _Casts()
    kernels = dict(_kernels(casts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = torch.library.Library("aten", "IMPL", _KEY)
        for name in _cast_on_cpu() - set(kernels):
            library.impl(name, torch.library.fallthrough_kernel, allow_override=True)
        for name, kernel in kernels.items():
            library.impl(name, kernel, allow_override=True)
    try:
        with torch.autocast("cpu", dtype):
            yield
    finally:
        library._destroy()
        casts.kept.clear()


def _cast_on_cpu() -> set[str]:
    """Operators of which the CPU has a rule of its own."""
    names = (n for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::"))
    return {
        name.removeprefix("aten::")
        for name in names
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, _KEY)
    }
