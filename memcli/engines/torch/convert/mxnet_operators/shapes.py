"""What MXNet's Reshape makes of a shape (src/operator/tensor/matrix_op-inl.h)."""

from __future__ import annotations

import math

from memcli.engines.torch.convert.mxnet_operators.attributes import Attributes
from memcli.engines.torch.convert.values import Unsupported

Shape = tuple[int, ...]


def reshaped(shape: Shape, spec: Shape, attributes: Attributes) -> Shape:
    """The shape that ``spec`` asks for; codes: 0 the same size, -1 what is left, -2 all others,
    -3 the product of two, -4 one in two. ``reverse``: counted from the right.

    Raises:
        Unsupported: it does not fit.
    """
    backwards = attributes.flag("reverse")
    sizes = shape[::-1] if backwards else shape
    wanted = spec[::-1] if backwards else spec
    try:
        result = _coded(list(sizes), list(wanted))
    except IndexError:
        raise Unsupported(f"shape={spec} of data {shape}") from None
    count = math.prod(shape)
    if -1 in result:
        rest = math.prod(size for size in result if size != -1)
        if not rest or count % rest or result.count(-1) > 1:
            raise Unsupported(f"shape={spec} of data {shape}")
        result[result.index(-1)] = count // rest
    if math.prod(result) != count:
        raise Unsupported(f"shape={spec} of data {shape}")
    return tuple(result[::-1] if backwards else result)


def _coded(sizes: list[int], wanted: list[int]) -> list[int]:
    result: list[int] = []
    source = i = 0
    while i < len(wanted):
        code = wanted[i]
        if code == 0:
            result.append(sizes[source])
            source += 1
        elif code == -2:
            result += sizes[source:]
            source = len(sizes)
        elif code == -3:
            result.append(sizes[source] * sizes[source + 1])
            source += 2
        elif code == -4:
            first, second = wanted[i + 1], wanted[i + 2]
            first = sizes[source] // second if first == -1 else first
            second = sizes[source] // first if second == -1 else second
            result += [first, second]
            source += 1
            i += 2
        else:
            result.append(code)
            source += 1
        i += 1
    return result


def reshaped_like(shape: Shape, other: Shape, attributes: Attributes) -> Shape:
    """``shape`` with the dimensions from lhs_begin to lhs_end replaced by those of ``other``."""

    def bounds(side: str, rank: int) -> tuple[int, int]:
        begin, end = attributes.optional(f"{side}_begin"), attributes.optional(f"{side}_end")
        begin = 0 if begin is None else (begin + rank if begin < 0 else begin)
        end = rank if end is None else (end + rank if end < 0 else end)
        return begin, end

    left, right = bounds("lhs", len(shape)), bounds("rhs", len(other))
    return shape[: left[0]] + other[right[0] : right[1]] + shape[left[1] :]
