"""Functions of a tensor and a number; the result has the type of the tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator

Tensor = torch.Tensor


def quotient_of(x: Tensor, number: float) -> Tensor:
    """``number / x``."""
    return number / x


def power_of(x: Tensor, number: float) -> Tensor:
    """``number ** x``."""
    return torch.pow(number, x)


def remainder_of(x: Tensor, number: float) -> Tensor:
    """``number`` modulo ``x``."""
    return torch.remainder(torch.full_like(x, number), x)


def at_least(x: Tensor, number: float) -> Tensor:
    """The larger one of ``x`` and ``number``."""
    return torch.clamp(x, min=number)


def at_most(x: Tensor, number: float) -> Tensor:
    """The smaller one of ``x`` and ``number``."""
    return torch.clamp(x, max=number)


def hypotenuse(x: Tensor, number: float) -> Tensor:
    """``sqrt(x^2 + number^2)``."""
    return torch.sqrt(x * x + number * number)


def equals(x: Tensor, number: float) -> Tensor:
    """1 where equal, else 0, in the type of ``x``; so do the comparisons below."""
    return torch.eq(x, number).to(x.dtype)


def differs(x: Tensor, number: float) -> Tensor:
    """See :func:`equals`."""
    return torch.ne(x, number).to(x.dtype)


def exceeds(x: Tensor, number: float) -> Tensor:
    """See :func:`equals`."""
    return torch.gt(x, number).to(x.dtype)


def reaches(x: Tensor, number: float) -> Tensor:
    """See :func:`equals`."""
    return torch.ge(x, number).to(x.dtype)


def below(x: Tensor, number: float) -> Tensor:
    """See :func:`equals`."""
    return torch.lt(x, number).to(x.dtype)


def within(x: Tensor, number: float) -> Tensor:
    """See :func:`equals`."""
    return torch.le(x, number).to(x.dtype)


def of_whole_numbers(x: Tensor, number: float, function: Callable[..., Any]) -> Tensor:
    """A function of integers, computed in real numbers and cut to the type of ``x``."""
    return function(x.double(), number).to(x.dtype)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "_plus_scalar": torch.add,
    "_minus_scalar": torch.sub,
    "_rminus_scalar": torch.rsub,
    "_mul_scalar": torch.mul,
    "_div_scalar": torch.div,
    "_rdiv_scalar": quotient_of,
    "_mod_scalar": torch.remainder,
    "_rmod_scalar": remainder_of,
    "_power_scalar": torch.pow,
    "_rpower_scalar": power_of,
    "_maximum_scalar": at_least,
    "_minimum_scalar": at_most,
    "_hypot_scalar": hypotenuse,
    "_equal_scalar": equals,
    "_not_equal_scalar": differs,
    "_greater_scalar": exceeds,
    "_greater_equal_scalar": reaches,
    "_lesser_scalar": below,
    "_lesser_equal_scalar": within,
}
_OLD_NAMES = {
    "_PlusScalar": "_plus_scalar",
    "_MinusScalar": "_minus_scalar",
    "_RMinusScalar": "_rminus_scalar",
    "_MulScalar": "_mul_scalar",
    "_DivScalar": "_div_scalar",
    "_RDivScalar": "_rdiv_scalar",
    "_ModScalar": "_mod_scalar",
    "_RModScalar": "_rmod_scalar",
    "_PowerScalar": "_power_scalar",
    "_RPowerScalar": "_rpower_scalar",
    "_MaximumScalar": "_maximum_scalar",
    "_MinimumScalar": "_minimum_scalar",
    "_HypotScalar": "_hypot_scalar",
    "_EqualScalar": "_equal_scalar",
    "_NotEqualScalar": "_not_equal_scalar",
    "_GreaterScalar": "_greater_scalar",
    "_GreaterEqualScalar": "_greater_equal_scalar",
    "_LesserScalar": "_lesser_scalar",
    "_LesserEqualScalar": "_lesser_equal_scalar",
}


@operator(*_FUNCTIONS, *_OLD_NAMES)
def with_number(site: Site) -> Call:
    function = _FUNCTIONS[_OLD_NAMES.get(site.op, site.op)]
    number = site.attributes.number("scalar", 1.0)
    if site.is_float():
        return Call(function, (site.value(), number))
    return Call(of_whole_numbers, (site.value(), number, function))
