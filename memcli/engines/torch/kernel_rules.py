"""Results of kernels that fake tensors have otherwise: strides, and types that they refuse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Rows of a grouped product begin at multiples of so many bytes.
_ALIGNED = 16


class LikeKernels(TorchDispatchMode):
    """Within a FakeTensorMode, operators give what PyTorch's kernels give."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._grouped_mm.default and args[0].dtype is not torch.bfloat16:
            return _grouped(*args, **kwargs)
        result = func(*args, **kwargs)
        if func is aten.native_layer_norm_backward.default and result[0] is not None:
            # as its kernels make it, whatever the strides of their input
            return (_contiguous(result[0]), *result[1:])
        return result


def _contiguous(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _grouped(
    left: Tensor, right: Tensor, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> Tensor:
    """``_grouped_mm`` as on the CPU, of any floating type (aten/src/ATen/native/GroupedMMUtils.h).

    Groups are parts of the rows of ``left``, of the columns of ``right``, of what both sum over,
    or the first dimension of both.
    """
    groups = 0 if offs is None else offs.shape[0]
    if left.dim() == 2 and right.dim() == 2:
        size = [groups, left.shape[0], right.shape[1]]
    elif left.dim() == 2:
        size = [left.shape[0], right.shape[2]]
    elif right.dim() == 2:
        size = [left.shape[1], right.shape[1]]
    else:
        size = [left.shape[0], left.shape[1], right.shape[2]]
    dtype = out_dtype or left.dtype
    step = max(1, _ALIGNED // dtype.itemsize)
    width = -(-size[-1] // step) * step
    strides = [width, 1] if len(size) == 2 else [size[1] * width, width, 1]
    return torch.empty_strided(size, strides, dtype=dtype, device=left.device)
