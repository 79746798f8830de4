"""Functions that stand in a converted graph for operators of an exported program."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memcli.engines.torch.aten_rules import again_of, draws, leaves_states, with_gradients
from memcli.engines.torch.rules import draws_random, recomputed_by, recomputed_with_gradients
from memcli.formats.pt2.graph import Autocast

# In place of a device in an argument: where the first argument is.
Place = str | int


class InMode:
    """A function as it runs in a part of the program: without gradients, or under autocast."""

    def __init__(
        self, function: Callable[..., Any], gradients: bool, autocast: tuple[Autocast, ...]
    ) -> None:
        self.function = function
        self.gradients = gradients
        self.autocast = autocast
        self.__name__ = getattr(function, "__name__", str(function))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            if not self.gradients:
                stack.enter_context(torch.no_grad())
            for part in self.autocast:
                dtype = None if part.dtype is None else getattr(torch, part.dtype)
                stack.enter_context(torch.autocast(part.device, dtype, part.enabled))
            return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> InMode:
        return self  # told by identity


class OnDeviceOf:
    """A function that makes a tensor, where its first argument is and not where it was exported.

    ``place``: position or name of the function's own argument that says the device.
    """

    def __init__(self, function: Callable[..., Any], place: Place) -> None:
        self.function = function
        self.place = place
        self.__name__ = getattr(function, "__name__", str(function))

    def __call__(self, like: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.place, str):
            return self.function(*args, **{**kwargs, self.place: like.device})
        before, after = args[: self.place], args[self.place :]
        return self.function(*before, like.device, *after, **kwargs)

    def __deepcopy__(self, memo: Any) -> OnDeviceOf:
        return self  # told by identity


class Written:
    """An operator that writes into a tensor, as one that gives out the tensor as it is then.

    The first argument is the tensor that is written to, or one that it is a part of, at ``part``
    (sizes, strides, offset): then all of that one is given out, with the part in its place.
    ``function`` computes what is written from the part and the other arguments.
    """

    def __init__(self, function: Callable[..., Any], part: tuple[Any, ...] | None) -> None:
        self.function = function
        self.part = part
        self.__name__ = getattr(function, "__name__", str(function))

    def __call__(self, whole: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        into = whole if self.part is None else whole.as_strided(*self.part)
        made: Tensor = self.function(into, *args, **kwargs)
        if made.dtype != into.dtype:
            made = made.to(into.dtype)
        if made.shape != into.shape:
            made = made.expand(into.shape)
        if self.part is None:
            return made
        # Not as_strided_scatter: of what is written over, it lets gradients through.
        result = whole.clone()
        result.as_strided(*self.part).copy_(made)
        return result

    def __deepcopy__(self, memo: Any) -> Written:
        return self  # told by identity


def _registered(wrapped: Any, function: Any, again: Callable[[Any], Any]) -> Any:
    """``wrapped`` with what the executor must know of ``function``."""
    if draws(function):
        draws_random(wrapped)
    if with_gradients(function):
        recomputed_with_gradients(wrapped)
    if leaves_states(function):
        recomputed_by(again(again_of(function)))(wrapped)
    return wrapped


@functools.cache
def in_mode(function: Any, gradients: bool, autocast: tuple[Autocast, ...]) -> Any:
    """See :class:`InMode`; the function itself where it has gradients and no autocast."""
    if gradients and not autocast:
        return function
    wrapped = InMode(function, gradients, autocast)
    return _registered(wrapped, function, lambda again: in_mode(again, gradients, autocast))


@functools.cache
def on_device_of(function: Any, place: Place) -> OnDeviceOf:
    """See :class:`OnDeviceOf`."""
    wrapped = OnDeviceOf(function, place)
    return _registered(wrapped, function, lambda again: on_device_of(again, place))  # type: ignore[no-any-return]


@functools.cache
def written(function: Any, part: tuple[Any, ...] | None) -> Written:
    """See :class:`Written`."""
    return _registered(  # type: ignore[no-any-return]
        Written(function, part), function, lambda again: written(again, part)
    )


def copied(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``copy_`` leaves in a tensor: a tensor of its own."""
    return source.to(into).expand(into.shape).clone()


def filled(into: Tensor, value: Any) -> Tensor:
    """What ``fill_`` leaves in a tensor."""
    if isinstance(value, Tensor):
        return value.to(into).expand(into.shape).clone()
    return torch.full_like(into, value)


def zeroed(into: Tensor) -> Tensor:
    """What ``zero_`` leaves in a tensor."""
    return torch.zeros_like(into)


def _state_stays(state: Tensor, value: Tensor) -> None:
    """The second run of :func:`set_state`: the state has been set."""


@recomputed_by(_state_stays)
def set_state(state: Tensor, value: Tensor) -> None:
    """A buffer gets the value that the forward pass has for it at its end."""
    with torch.no_grad():
        state.copy_(value)
