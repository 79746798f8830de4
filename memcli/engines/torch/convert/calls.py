"""What conversions of all formats share: calls with values inside, names, and complaints."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from memcli.engines.torch.convert.values import Unsupported
from memcli.quoting import cut

Held = TypeVar("Held")

# What PyTorch raises for arguments that it does not take.
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, AssertionError)
_NAMES_SHOWN = 3


@dataclass
class Call:
    """A function with its arguments, the conversion's ``Value`` wherever a tensor stands.

    ``many``: the function returns a tuple, one item for each output of the node.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    many: bool = False

    def filled(
        self, kind: type[Held], form: Callable[[Held], Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with what ``form`` makes of each value, wherever it stands in them.

        ``kind``: the conversion's class of values.
        """

        def mapped(argument: Any) -> Any:
            if isinstance(argument, kind):
                return form(argument)
            if isinstance(argument, (tuple, list)):
                items = [mapped(item) for item in argument]
                return tuple(items) if isinstance(argument, tuple) else items
            return argument

        return mapped(self.args), {key: mapped(item) for key, item in self.kwargs.items()}


class Names:
    """Python identifiers for a module's attributes and a graph's nodes."""

    def __init__(self, root: torch.nn.Module) -> None:
        self._root = root
        self._taken: set[str] = set()

    @staticmethod
    def identifier(name: str) -> str:
        """``name`` as an identifier that is no keyword and no attribute of every module."""
        text = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
        if text[0].isdigit() or keyword.iskeyword(text) or hasattr(torch.nn.Module, text):
            text = f"_{text}"
        return text

    def own(self, name: str) -> str:
        """An identifier that nothing else has, and from now on is taken."""
        text = self.identifier(name)
        unique, count = text, 1
        while unique in self._taken or hasattr(self._root, unique):
            unique, count = f"{text}_{count}", count + 1
        self._taken.add(unique)
        return unique


def said(error: BaseException) -> str:
    """What an exception says, on one line; its kind where it says nothing."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return first or type(error).__name__


def complaints(wrong: Mapping[tuple[str, str], list[str]]) -> str:
    """All that is not supported, in words; ``wrong``: {(what, why): names of the nodes}."""
    parts = []
    for (what, why), names in wrong.items():
        first = ", ".join(cut(name, 80) for name in names[:_NAMES_SHOWN])
        first += ", …" if len(names) > _NAMES_SHOWN else ""
        count = f"{len(names)} node{'s' if len(names) > 1 else ''}"
        parts.append(f"{what} ({count}: {first}): {why}")
    return "; ".join(parts)


def axis_from_front(axis: int, rank: int) -> int:
    """``axis`` of a tensor of ``rank`` dimensions, counted from the front.

    Raises:
        Unsupported: out of range.
    """
    if not -rank <= axis < max(rank, 1):
        raise Unsupported(f"axis {axis} of a tensor of {rank} dimensions")
    return axis + rank if axis < 0 else axis
