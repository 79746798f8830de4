"""Functions that run without gradients, or under no autocast, whatever the caller has on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from memcli.engines.torch.aten_rules import again_of, draws, leaves_states, with_gradients
from memcli.engines.torch.rules import draws_random, recomputed_by, recomputed_with_gradients

DEVICES = ("cpu", "cuda")


class Within:
    """A function as it runs in such a part."""

    def __init__(self, function: Callable[..., Any], gradients: bool, casts: bool) -> None:
        self.function = function
        self.gradients = gradients
        self.casts = casts
        self.__name__ = getattr(function, "__name__", str(function))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            if not self.gradients:
                stack.enter_context(torch.no_grad())
            if not self.casts:
                stack.enter_context(without_autocast())
            return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Within:
        return self  # told by identity


@functools.cache
def within(function: Any, gradients: bool, casts: bool) -> Any:
    """The function without gradients or without autocast; itself where it has both."""
    if gradients and casts:
        return function
    wrapped = Within(function, gradients, casts)
    if draws(function):
        draws_random(wrapped)
    if with_gradients(function):
        recomputed_with_gradients(wrapped)
    if leaves_states(function):
        recomputed_by(within(again_of(function), gradients, casts))(wrapped)
    return wrapped


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Autocast off on every device."""
    with contextlib.ExitStack() as stack:
        for kind in DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
