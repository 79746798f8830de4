"""Functions as they run in parts of a forward pass with gradients or autocast of their own.

A recorded forward pass enters and leaves autocast where the module does, as steps of its own: the
casts of weights are then cached, and let go, as in the module. A step that is recomputed in the
backward pass stands alone, so that it brings its own autocast with it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from memcli.engines.torch.aten_rules import again_of, draws, leaves_states, with_gradients
from memcli.engines.torch.rules import OwnRules

# Of each kind of device: its name, whether autocast is on, and the type that it casts to.
Autocast = tuple[tuple[str, bool, torch.dtype], ...]

_entered = threading.local()


def autocast_now(kinds: tuple[str, ...]) -> Autocast:
    """The state of autocast on some kinds of devices."""
    return tuple(
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds
    )


@contextlib.contextmanager
def under(autocast: Autocast, cache: bool = True) -> Iterator[None]:
    """That state of autocast, whatever it is outside."""
    with contextlib.ExitStack() as stack:
        for kind, enabled, dtype in autocast:
            if enabled or torch.is_autocast_enabled(kind):
                stack.enter_context(
                    torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache)
                )
        yield


class Span:
    """Autocast from the start of a forward pass to the end of the loss, as training loops have it.

    The casts of weights that it caches live until then; the backward pass runs outside of it.
    """

    def __init__(self, autocast: Autocast) -> None:
        self.autocast = autocast
        self.entered: list[contextlib.ExitStack] = []

    def enter(self) -> None:
        """Begins it."""
        stack = contextlib.ExitStack()
        stack.enter_context(under(self.autocast))
        self.entered.append(stack)

    def leave(self) -> None:
        """Ends it."""
        if self.entered:
            self.entered.pop().close()
            torch.clear_autocast_cache()  # as the outermost does

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """No autocast but this one's inside; what was entered and not left is left."""
        with under(tuple((kind, False, dtype) for kind, _, dtype in self.autocast)):
            try:
                yield
            finally:
                while self.entered:
                    self.leave()


class InRegime(OwnRules):
    """A function with or without gradients, and in the backward pass under its own autocast."""

    def __init__(
        self, function: Callable[..., Any], gradients: bool, autocast: Autocast | None
    ) -> None:
        self.function = function
        self.gradients = gradients
        self.autocast = autocast
        self.__name__ = getattr(function, "__name__", str(function))
        self.draws = draws(function)
        self.with_gradients = with_gradients(function)
        self.leaves_states = leaves_states(function)
        self._again = again_of(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.gradients:
            return self.function(*args, **kwargs)
        with torch.no_grad():
            return self.function(*args, **kwargs)

    def again(self, *args: Any, **kwargs: Any) -> Any:
        """As it ran first, with states left alone."""
        return self.running_again(self._again)(*args, **kwargs)

    def running_again(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Another function in such a part, as a second run has it."""
        return functools.partial(self._running, function)

    def _running(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            if not self.gradients:
                stack.enter_context(torch.no_grad())
            if self.autocast is not None:
                # A cast of a weight made here has no gradient: none may find it in the cache.
                stack.enter_context(under(self.autocast, cache=False))
            return function(*args, **kwargs)


@functools.cache
def in_regime(function: Any, gradients: bool, autocast: Autocast | None) -> Any:
    """The function in such a part; itself where that is the state outside, too."""
    if gradients and autocast is None:
        return function
    return InRegime(function, gradients, autocast)


class EnterAutocast:
    """A step that enters autocast, until :func:`leave_autocast` is called."""

    def __init__(self, kind: str, enabled: bool, dtype: torch.dtype, cache: bool) -> None:
        self.arguments = kind, dtype, enabled, cache
        self.__name__ = "enter_autocast"
        self.once = True

    def __call__(self) -> None:
        context = torch.autocast(*self.arguments)
        context.__enter__()
        _stack().append(context)

    def __deepcopy__(self, memo: Any) -> EnterAutocast:
        return self


def leave_autocast() -> None:
    """Leaves the autocast that was entered last."""
    _stack().pop().__exit__(None, None, None)


leave_autocast.once = True  # type: ignore[attr-defined]


@contextlib.contextmanager
def all_left() -> Iterator[None]:
    """Whatever was entered inside and not left, as after an error, is left at the end."""
    depth = len(_stack())
    try:
        yield
    finally:
        while len(_stack()) > depth:
            leave_autocast()


def _stack() -> list[Any]:
    if not hasattr(_entered, "stack"):
        _entered.stack = []
    stack: list[Any] = _entered.stack
    return stack
