"""Memory that CUDA's operators take inside themselves: hidden copies and work buffers.

What an operator gives out is seen from outside; not so the contiguous copy that it makes of an
input that lies otherwise, or the buffer in which blocks of a reduction meet. For each operator that
takes such memory there is a rule here, which says what is taken, in which order among the results,
and how long it is held. Rules follow PyTorch's sources (``aten/src/ATen/native/cuda``); those of
cuDNN's and cuBLAS's own work spaces are not among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memcli.engines.torch.cards import Card
from memcli.engines.torch.geometry import tensors_in

aten = torch.ops.aten


@dataclass
class Script:
    """What an operator takes and gives back, in order.

    ``acts``: ("take", bytes), ("give", number of the one taken), ("out", a tensor), ("elsewhere", a
    tensor that is no memory of the card).
    """

    acts: list[tuple[str, Any]] = field(default_factory=list)
    _taken: int = 0

    def take(self, size: int) -> int:
        """A temporary of so many bytes; its number, -1 for none."""
        if size <= 0:
            return -1
        self.acts.append(("take", size))
        self._taken += 1
        return self._taken - 1

    def give(self, *numbers: int) -> None:
        """Temporaries are given back."""
        self.acts += [("give", number) for number in numbers if number >= 0]

    def out(self, *results: Any) -> None:
        """Results are allocated now."""
        self.acts += [("out", tensor) for tensor in tensors_in(list(results))]

    def elsewhere(self, *results: Any) -> None:
        """Results that the card does not hold."""
        self.acts += [("elsewhere", tensor) for tensor in tensors_in(list(results))]

    def copy(
        self, tensor: Any, memory_format: torch.memory_format = torch.contiguous_format
    ) -> int:
        """``tensor.contiguous()``: a temporary where the tensor lies otherwise."""
        if not isinstance(tensor, Tensor) or tensor.is_contiguous(memory_format=memory_format):
            return -1
        return self.take(_bytes(tensor))


Rule = Callable[[Script, Card, tuple[Any, ...], dict[str, Any], Any], None]
_RULES: dict[Any, Rule] = {}
# Operators that multiply matrices with cuBLAS.
PRODUCTS = {
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.addmv.default,
    aten.mv.default,
    aten.dot.default,
    aten._addmm_activation.default,
    aten.linear.default,
}


def script_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, card: Card
) -> list[tuple[str, Any]]:
    """What an operator does with memory on a card beside its results; empty where nothing."""
    rule = _RULES.get(func)
    if rule is None:
        return []
    script = Script()
    rule(script, card, args, kwargs, result)
    return script.acts


def _rule(*operators: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for operator in operators:
            _RULES[operator] = rule
        return rule

    return register


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _argument(args: tuple[Any, ...], position: int, otherwise: Any = None) -> Any:
    return args[position] if len(args) > position else otherwise


# Products of matrices: cuBLAS takes rows or columns that lie side by side.


@_rule(aten.mm.default)
def _mm(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    s.give(*[s.take(_bytes(t)) for t in args[:2] if not _fits_blas(t)])


@_rule(aten.bmm.default)
def _bmm(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    s.give(*[s.take(_bytes(t)) for t in args[:2] if not _fits_blas(t)])


@_rule(aten.addmm.default, aten.baddbmm.default)
def _addmm(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    s.give(*[s.take(_bytes(t)) for t in args[1:3] if not _fits_blas(t)])


def _fits_blas(tensor: Tensor) -> bool:
    """By ``prepare_matrix_for_cublas`` and ``prepare_batch_matrix_for_cublas`` (Blas.cpp)."""
    rows, columns = tensor.shape[-2:]
    down, across = tensor.stride()[-2:]
    return (across == 1 and down >= max(1, columns)) or (down == 1 and across >= max(1, rows))


# Reductions (Reduce.cuh): blocks that share an output meet in a buffer.


@dataclass(frozen=True)
class _Reduction:
    """Sizes of the buffer and of its semaphores; 0: the blocks need none."""

    buffer: int
    semaphores: int


def reduction(
    tensor: Tensor, dims: list[int], card: Card, *, accumulator: int, vector: int = 4
) -> _Reduction:
    """What a reduction takes, by ``setReduceConfig``.

    Args:
        tensor: what is reduced.
        dims: the dimensions that go.
        card: the card.
        accumulator: bytes of a partial result.
        vector: elements that a thread takes at once.
    """
    shape, strides, reduced = _coalesced(tensor, dims)
    outputs = math.prod(n for n, r in zip(shape, reduced, strict=True) if not r)
    inputs = math.prod(n for n, r in zip(shape, reduced, strict=True) if r)
    if not outputs or not inputs:
        return _Reduction(0, 0)
    n_reduced = sum(reduced)
    on_fastest = not shape or n_reduced == len(shape) or strides[0] < strides[n_reduced]
    width, height = (inputs, outputs) if on_fastest else (outputs, inputs)
    fastest = 1 if not shape else strides[0] if on_fastest else strides[n_reduced]
    output_vector = 1
    if fastest == 1:
        if on_fastest and width > 128 and len(shape) == 1:
            width //= vector
        elif not on_fastest:
            output_vector = _output_vector(tensor, shape, strides, n_reduced)
            width //= output_vector
    most = 512 // output_vector
    width_2 = _power_below(width) if width < most else most
    height_2 = _power_below(height) if height < most else most
    block_x = min(width_2, 32)
    block_y = min(height_2, most // block_x)
    block_x = min(width_2, most // block_y)
    threads = block_x * block_y
    step_input, step_output = (block_x, 1) if on_fastest else (1, block_x * output_vector)
    if -(-inputs // step_input) < min(block_y * 16, 256):
        return _Reduction(0, 0)
    step_input *= block_y
    grid = -(-outputs // step_output)
    values = -(-inputs // step_input)
    target = card.processors * (card.threads // threads)
    if values < 256 or grid > target:
        return _Reduction(0, 0)
    ctas = max(min(-(-target // grid), -(-values // 16)), -(-values // 256))
    if ctas <= 1:
        return _Reduction(0, 0)
    buffer = accumulator * outputs * ctas
    if not on_fastest:
        buffer *= block_x * output_vector
    return _Reduction(buffer, 4 * grid)


def _power_below(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


def _output_vector(tensor: Tensor, shape: list[int], strides: list[int], at: int) -> int:
    vector = 4
    others = [stride for d, stride in enumerate(strides) if d != at]
    for number in [tensor.storage_offset(), shape[at], *others]:
        while number % vector:
            vector //= 2
    return vector


def _coalesced(tensor: Tensor, dims: list[int]) -> tuple[list[int], list[int], list[bool]]:
    """Shape, strides and what is reduced as TensorIterator orders them, the fastest first."""
    gone = {d % tensor.dim() for d in dims} if tensor.dim() else set()
    rows = [
        (tensor.shape[d], tensor.stride(d), d in gone)
        for d in reversed(range(tensor.dim()))
        if tensor.shape[d] != 1
    ]
    # insertion sort: reduced dimensions first, and then by the input's strides
    out_strides: dict[int, int] = {}
    step = 1
    for number, (size, _, reduced) in enumerate(rows):
        out_strides[number] = 0 if reduced else step
        step *= 1 if reduced else size
    order = list(range(len(rows)))

    def swap(first: int, second: int) -> int:
        if (out_strides[first] == 0) != (out_strides[second] == 0):
            return 1 if out_strides[second] == 0 else -1
        for strides in (out_strides, {n: row[1] for n, row in enumerate(rows)}):
            one, other = strides[first], strides[second]
            if one == 0 or other == 0:
                continue
            if one != other:
                return 1 if one > other else -1
            if rows[first][0] > rows[second][0]:
                return 1
        return 0

    for i in range(1, len(order)):
        at = i
        for j in range(i - 1, -1, -1):
            better = swap(order[j], order[at])
            if better > 0:
                order[j], order[at] = order[at], order[j]
                at = j
            elif better < 0:
                break
    shape: list[int] = []
    strides: list[int] = []
    outs: list[int] = []
    gone_too: list[bool] = []
    for number in order:
        size, stride, is_reduced = rows[number]
        out = out_strides[number]
        if shape and shape[-1] * strides[-1] == stride and shape[-1] * outs[-1] == out:
            shape[-1] *= size
            continue
        shape.append(size)
        strides.append(stride)
        gone_too.append(is_reduced)
        outs.append(out)
    return shape, strides, gone_too


def _dims(tensor: Tensor, dims: Any) -> list[int]:
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(tensor.dim()))
    return [dims] if isinstance(dims, int) else list(dims)


def _reduce(
    s: Script, card: Card, tensor: Tensor, dims: list[int], accumulator: int, vector: int = 4
) -> None:
    found = reduction(tensor, dims, card, accumulator=accumulator, vector=vector)
    if found.buffer:
        s.give(*reversed([s.take(found.buffer), s.take(found.semaphores)]))


def _accumulator(dtype: torch.dtype) -> int:
    if dtype.is_floating_point or dtype.is_complex:
        return max(4, dtype.itemsize)
    return 8


@_rule(aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim)
def _sum(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    tensor = args[0]
    s.out(result)
    copy = -1
    halves = (torch.float16, torch.bfloat16)
    if tensor.dtype != result.dtype and not (
        tensor.dtype in halves and result.dtype == torch.float32
    ):
        copy = s.take(tensor.numel() * result.element_size())
    dims = _argument(args, 1, kwargs.get("dim"))
    _reduce(s, card, tensor, _dims(tensor, dims), _accumulator(result.dtype))
    s.give(copy)


@_rule(aten.linalg_vector_norm.default)
def _norm(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    dims = _argument(args, 2, kwargs.get("dim"))
    _reduce(s, card, args[0], _dims(args[0], dims), _accumulator(result.dtype))


# Normalization (layer_norm_kernel.cu, group_norm_kernel.cu)


@_rule(aten.native_layer_norm.default)
def _layer_norm(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    copies = [s.copy(args[0]), s.copy(_argument(args, 2)), s.copy(_argument(args, 3))]
    s.out(result)
    s.give(*copies)


@_rule(aten.native_layer_norm_backward.default)
def _layer_norm_backward(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    _row_norm_backward(s, card, args[0], args[1], args[2], result)


@_rule(aten._fused_rms_norm.default)
def _rms_norm(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    copies = [s.copy(args[0]), s.copy(_argument(args, 2))]
    s.out(result)
    s.give(*copies)


@_rule(aten._fused_rms_norm_backward.default)
def _rms_norm_backward(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    _row_norm_backward(s, card, args[0], args[1], args[2], result)


def _row_norm_backward(
    s: Script, card: Card, gradient: Tensor, tensor: Tensor, shape: Any, result: Any
) -> None:
    copies = [s.copy(tensor)]
    columns = math.prod(shape)
    rows = tensor.numel() // max(1, columns)
    weights = [t for t in result[1:] if t is not None]
    if rows <= 64 * 1024 or columns // 32 >= card.processors // 2:
        s.out(result)
        s.give(s.copy(gradient), *copies)
        return
    # Long and narrow: rows are summed in blocks of 32, and the blocks' sums by a reduction.
    s.out(result[0])
    first = [s.take(_bytes(t)) for t in weights]
    copies.append(s.copy(gradient))
    blocks = min(32 * 1024 // -(-columns // 32), -(-rows // 32))
    sums = [s.take(blocks * columns * t.element_size()) for t in weights]
    for held, weight in zip(first, weights, strict=True):
        s.out(weight)
        table = torch.empty((blocks, columns), dtype=weight.dtype, device="meta")
        _reduce(s, card, table, [0], _accumulator(weight.dtype))
        s.give(held)
    s.give(*reversed(sums), *reversed(copies))


@_rule(aten.native_group_norm.default)
def _group_norm(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    tensor, weight, bias, n, channels = args[:5]
    copies = [s.copy(tensor)]
    s.out(result)
    statistics = [t for t in result[1:] if t.element_size() < 4]
    copies += [s.take(t.numel() * 4) for t in statistics]
    if weight is not None or bias is not None:
        copies += [s.take(n * channels * 4), s.take(n * channels * 4)]
    s.give(*reversed(copies))


@_rule(aten.native_group_norm_backward.default)
def _group_norm_backward(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    gradient, tensor, _, _, weight, n, channels, _, group = args[:9]
    copies = [s.copy(gradient), s.copy(tensor)]
    s.out(result)
    copies += [s.take(n * channels * 4), s.take(n * channels * 4)]
    if result[0] is not None:
        inner = [s.take(n * group * 4), s.take(n * group * 4)]
        if weight is not None:
            inner.append(s.take(n * channels * 4))
        s.give(*inner)
    s.give(*copies)


# Softmax (SoftMax.cu)


@_rule(aten._softmax.default, aten._log_softmax.default)
def _softmax(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    s.give(s.copy(args[0]))


@_rule(aten._softmax_backward_data.default)
def _softmax_backward(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    product = s.take(args[1].numel() * max(args[0].element_size(), args[1].element_size()))
    copies = [s.copy(args[1])]
    s.give(*copies, product)


@_rule(aten._log_softmax_backward_data.default)
def _log_softmax_backward(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    s.give(s.copy(args[0]), s.copy(args[1]))


@_rule(aten.native_dropout.default)
def _dropout(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result[1], result[0])


# Convolutions (cudnn/ConvShared.cpp)


def _convolution_format(tensor: Tensor, weight: Tensor) -> torch.memory_format:
    channels_last = torch.channels_last_3d if tensor.dim() == 5 else torch.channels_last
    if tensor.dim() in (4, 5) and any(
        torch._prims_common.suggest_memory_format(t) is channels_last for t in (tensor, weight)
    ):
        return channels_last
    return torch.contiguous_format


@_rule(aten.convolution.default)
def _convolution(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    tensor, weight = args[:2]
    lies = _convolution_format(tensor, weight)
    copies = [s.copy(tensor, lies)]
    s.out(result)
    copies.append(s.copy(weight, lies))
    s.give(*reversed(copies))


@_rule(aten.convolution_backward.default)
def _convolution_backward(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    gradient, tensor, weight, bias = args[:4]
    mask = args[10]
    lies = _convolution_format(tensor, weight)
    if _is_depthwise(tensor, weight, args[9], lies):
        copies = [s.copy(gradient)]
        held = s.copy(tensor) if mask[1] else -1
        if mask[1]:
            s.out(result[1])
        s.give(held)
        if mask[0]:
            s.out(result[0])
        s.give(*copies)
        _bias_gradient(s, card, gradient, result, mask, bias)
        return
    whole = -1 if lies is torch.contiguous_format else s.copy(gradient, lies)
    each = gradient if lies is torch.contiguous_format else None
    held = s.copy(tensor, lies) if mask[1] else -1
    if mask[0]:
        s.out(result[0])
        copies = [s.copy(each), s.copy(weight, lies)]
        s.give(*copies)
    if mask[1]:
        copy = s.copy(each)
        s.out(result[1])
        s.give(copy)
    if tensor.dim() > 3:
        s.give(held, whole)
    _bias_gradient(s, card, gradient, result, mask, bias)
    if tensor.dim() == 3:  # it is a convolution of images one high, which stay to the end
        s.give(held, whole)


def _bias_gradient(
    s: Script, card: Card, gradient: Tensor, result: Any, mask: Any, bias: Any
) -> None:
    if mask[2] and bias:
        s.out(result[2])
        dims = [0, *range(2, gradient.dim())]
        _reduce(s, card, gradient, dims, _accumulator(gradient.dtype))


def _is_depthwise(tensor: Tensor, weight: Tensor, groups: int, lies: torch.memory_format) -> bool:
    """Whether PyTorch's own kernels run a convolution, by ``use_conv_depthwise``."""
    return (
        groups > 1
        and tensor.dim() == 4
        and tensor.shape[1] == groups
        and weight.shape[0] % groups == 0
        and lies is torch.contiguous_format
        and tensor.dtype not in (torch.float16, torch.bfloat16)
    )


# Pooling


@_rule(aten.max_pool2d_with_indices.default, aten.avg_pool2d.default)
def _pool(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    s.give(s.copy(args[0], torch._prims_common.suggest_memory_format(args[0])))


@_rule(aten.max_pool2d_with_indices_backward.default, aten.avg_pool2d_backward.default)
def _pool_backward(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    lies = torch._prims_common.suggest_memory_format(args[1])
    s.out(result)
    s.give(s.copy(args[0], lies), s.copy(args[1], lies))


# Others that read only what lies side by side


@_rule(aten.reflection_pad2d.default, aten.reflection_pad1d.default, aten.cumsum.default)
def _copying(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    s.give(s.copy(args[0]))


@_rule(aten.topk.default)
def _topk(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    s.give(s.copy(args[0]))


@_rule(aten.sort.default)
def _sort(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    s.out(result)
    tensor = args[0]
    if tensor.dim():
        s.give(s.take(tensor.shape[_argument(args, 1, -1)] * 8))


# Embeddings (Embedding.cu): indices are sorted, rows that meet are summed in segments.


@_rule(aten.embedding_dense_backward.default)
def _embedding_backward(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    gradient, indices = args[:2]
    padding, scaled = _argument(args, 3, -1), _argument(args, 4, False)
    count = indices.numel()
    copies = [s.copy(gradient), s.copy(indices)]
    if count <= 3072 and padding < 0 and not scaled:
        s.out(result)
        s.give(*copies)
        return
    size = indices.element_size()
    columns = gradient.shape[-1]
    sorted_, original = s.take(count * size), s.take(count * size)
    _sorting(s, card, count, size, args[2])
    s.out(result)
    # The rows of one index make a segment, long ones several of ten rows each.
    segments, number = s.take(count * size), s.take(8)
    ones = s.take(count * size)
    s.give(s.take(_SCAN), ones)
    unique = min(count, args[2])
    parts, offsets = s.take(unique * size), s.take(unique * size)
    s.give(s.take(_SCAN))
    last = s.take(8)
    most = unique + count // 10
    starts = s.take(most * size)
    sums = s.take(most * columns * 4)
    s.give(sums, starts, last, offsets, parts, number, segments, original, sorted_, *copies)


@_rule(aten.index_put.default, aten.index_put_.default)
def _index_put(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    tensor, indices, values = args[:3]
    given = [i for i in indices if i is not None]
    if not _argument(args, 3, False) or any(i.dtype == torch.bool for i in given):
        return
    s.out(result)
    count = math.prod(torch.broadcast_shapes(*(i.shape for i in given)))
    least, most = s.take(8), s.take(8)
    s.give(s.take(1))
    s.give(s.take(1))
    s.give(most, least)
    linear, other = s.take(count * 8), s.take(count * 8)
    s.give(other)
    copy = s.copy(values)
    sorted_, original = s.take(count * 8), s.take(count * 8)
    _sorting(s, card, count, 8, tensor.shape[0])
    s.give(original, sorted_, copy, linear)


# Bytes that cub asks for where it scans or reduces a few thousand numbers.
_SCAN = 1279


# Pairs that one block sorts, without any buffer.
_ONE_BLOCK = 256 * 9


def _sorting(s: Script, card: Card, count: int, size: int, most: int) -> None:
    """A radix sort of indices below ``most`` with their places (cub's one sweep)."""
    places = s.take(count * size)
    # 384 threads, each of as many pairs of 16 bytes as its registers hold
    tile = 384 * (11 if card.capability >= (9, 0) else 10)
    if count <= _ONE_BLOCK:
        buffer = 1
    else:
        passes = -(-max(1, most).bit_length() // 8)
        # from the second pass on, keys and places go to and fro between two buffers
        double = 2 * (-(-count * size // 256) * 256) if passes > 1 else 0
        buffer = double + 2048 * passes + 1024 * -(-count // tile) + 256 + 255
    s.give(s.take(buffer), places)


# Attention (transformers/cuda/attention_backward.cu)


@_rule(aten._scaled_dot_product_efficient_attention.default)
def _efficient_attention(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    if not _argument(args, 5, 0.0):  # without dropout the generator's state stays on the host
        s.elsewhere(result[2], result[3])


@_rule(aten._scaled_dot_product_flash_attention_backward.default)
def _flash_attention_backward(s: Script, card: Card, args: Any, kwargs: Any, result: Any) -> None:
    query = args[1]
    batch, heads, rows, width = query.shape
    s.out(result)
    rows = -(-rows // 128) * 128
    width = -(-width // 32) * 32
    summed = s.take(batch * heads * rows * 4)
    gradient = s.take(batch * rows * heads * width * 4)
    s.give(gradient, summed)


@_rule(aten._scaled_dot_product_efficient_attention_backward.default)
def _efficient_attention_backward(
    s: Script, card: Card, args: Any, kwargs: Any, result: Any
) -> None:
    gradient, query = args[:2]
    copies = [s.copy(gradient.transpose(1, 2))]
    s.out(result)
    batch, heads, rows, width = query.shape
    values = args[3].shape[-1]
    half = query.dtype != torch.float32
    # in the lower precisions the kernel finds what it needs of the products itself
    product = -1 if half else s.take(batch * heads * rows * values * 4)
    summed = -1 if half else s.take(batch * heads * rows * 4)
    delta = s.take(batch * heads * rows * 4)
    s.give(summed, product)
    blocks = -(-rows // 64)
    space = s.take(batch * heads * (blocks * 64 * -(-width // 64) * 64 * 4 + 16 * blocks))
    s.give(delta, space, *copies)
