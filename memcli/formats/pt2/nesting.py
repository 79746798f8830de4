"""How a program's arguments and outputs are nested: the texts that ``torch.utils._pytree`` writes.

Tuples, lists and tables alone are made again; a class of the user's own is a table of its fields
where the text has their names, else a tuple. Nothing is imported by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_MOST_DEPTH = 50


@dataclass(frozen=True)
class Nesting:
    """A leaf (no ``kind``), or a ``tuple``, ``list`` or ``dict`` of others with these keys."""

    kind: str = ""
    children: tuple[Nesting, ...] = ()
    keys: tuple[Any, ...] = ()

    @property
    def leaves(self) -> int:
        """How many values are in it."""
        return sum(child.leaves for child in self.children) if self.kind else 1

    def filled(self, values: Iterator[Any]) -> Any:
        """Values in their places, taken one after the other."""
        if not self.kind:
            return next(values)
        items = [child.filled(values) for child in self.children]
        if self.kind == "dict":
            return dict(zip(self.keys, items, strict=True))
        return items if self.kind == "list" else tuple(items)

    def flat(self, value: Any, what: str) -> list[Any]:
        """The values of an argument in order.

        Raises:
            TypeError: it is nested in another way.
        """
        if not self.kind:
            return [value]
        if self.kind == "dict":
            if not isinstance(value, dict) or set(value) != set(self.keys):
                raise TypeError(f"{what} is a dict of {', '.join(map(str, self.keys))}")
            items: Sequence[Any] = [value[key] for key in self.keys]
        else:
            if not isinstance(value, (tuple, list)) or len(value) != len(self.children):
                raise TypeError(f"{what} is a {self.kind} of {len(self.children)}")
            items = value
        return [
            leaf
            for child, item in zip(self.children, items, strict=True)
            for leaf in child.flat(item, what)
        ]


def parsed(text: str) -> Nesting | None:
    """The nesting of a text; None for what is of no known form."""
    try:
        version, tree = json.loads(text)
        return _nesting(tree, 0) if version == 1 else None
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return None


def _nesting(tree: dict[str, Any], depth: int) -> Nesting:
    if depth > _MOST_DEPTH:
        raise ValueError
    kind = tree["type"]
    children = tuple(_nesting(child, depth + 1) for child in tree["children_spec"])
    if kind is None:
        if children:
            raise ValueError
        return Nesting()
    if kind in ("builtins.tuple", "builtins.list"):
        return Nesting(kind.removeprefix("builtins."), children)
    keys = _keys(tree.get("context"), len(children))
    if keys is None and kind in ("builtins.dict", "collections.OrderedDict"):
        raise ValueError
    return Nesting("tuple" if keys is None else "dict", children, keys or ())


def _keys(context: Any, count: int) -> tuple[Any, ...] | None:
    """Names of so many fields, from whatever the class writes of itself."""
    found = json.loads(context) if isinstance(context, str) else context
    while isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    if isinstance(found, list) and found and isinstance(found[0], list) and count == len(found[0]):
        found = found[0]
    simple = isinstance(found, list) and all(isinstance(k, (str, int)) for k in found)
    if not simple or len(found) != count or len(set(found)) != count:
        return None
    return tuple(found)
