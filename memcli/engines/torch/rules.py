"""What the executor must know of a function before it runs it a second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar


class OwnRules:
    """A function that says itself how it runs a second time.

    ``again``: what to call then; ``draws``: it draws random numbers; ``with_gradients``: it runs
    again as if gradients were asked for; ``leaves_states``: ``again`` does not look at states;
    ``saves_alike``: run again with gradients, ``again`` saves what the function saves, in order.
    """

    draws: bool = False
    with_gradients: bool = False
    leaves_states: bool = False
    saves_alike: bool = False

    def again(self, *args: Any, **kwargs: Any) -> Any:
        """Gives what a call gives, and changes nothing."""
        raise NotImplementedError

    def __deepcopy__(self, memo: Any) -> OwnRules:
        return self  # told by identity


Function = TypeVar("Function", bound=Callable[..., Any])

_AGAIN: dict[Any, Callable[..., Any]] = {}
_DRAWS: set[Any] = set()
_WITH_GRADIENTS: set[Any] = set()


def recomputed_by(other: Callable[..., Any]) -> Callable[[Function], Function]:
    """Have ``other`` called in a function's place, with its arguments, when it runs again.

    ``other`` gives the same values and leaves states (running statistics) as they are.
    """

    def register(function: Function) -> Function:
        _AGAIN[function] = other
        return function

    return register


def draws_random(function: Function) -> Function:
    """Mark a function that draws random numbers: the generator's state is replayed for it."""
    _DRAWS.add(function)
    return function


def recomputed_with_gradients(function: Function) -> Function:
    """Mark a function that takes other kernels, which round otherwise, where no gradient is asked
    for: it runs again as it ran first, and what it saves inside itself is dropped with its result.
    """
    _WITH_GRADIENTS.add(function)
    return function


def with_gradients(function: Any) -> bool:
    """Whether a function is marked by :func:`recomputed_with_gradients`."""
    if isinstance(function, OwnRules):
        return function.with_gradients
    return function in _WITH_GRADIENTS


def again_of(function: Any) -> Any:
    """What to call when ``function`` runs again: itself, where nothing else is registered."""
    if isinstance(function, OwnRules):
        return function.again
    return _AGAIN.get(function, function)


def draws(function: Any) -> bool:
    """Whether a function draws random numbers."""
    if isinstance(function, OwnRules):
        return function.draws
    return function in _DRAWS
