"""What ``forward`` gives, as a form that is filled with the tensors of another call."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class _Looked(dict[int, Any]):
    """A memo of ``copy.deepcopy`` that tells which of the tensors in it were come across."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__({id(t): t for t in tensors})
        self.tensors = set(self)
        self.found: dict[int, Tensor] = {}

    def get(self, key: Any, default: Any = None) -> Any:
        """As a dictionary does."""
        if key in self.tensors:
            self.found[key] = self[key]
        return super().get(key, default)


class OutputForm:
    """An output's structure. ``tensors``: those in it, in order.

    Containers that PyTorch's pytrees know are taken apart; tensors in other objects (a cache of
    keys and values) are found by a deep copy.
    """

    def __init__(self, output: Any, known: Sequence[Tensor]) -> None:
        leaves, self.structure = pytree.tree_flatten(output)
        self.tensors: list[Tensor] = []
        self.leaves: list[Any] = []
        found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        self.own_loss = isinstance(found, Tensor) and found.requires_grad and found.numel() == 1
        numbers: dict[int, int] = {}

        def number(tensor: Tensor) -> int:
            if id(tensor) not in numbers:
                numbers[id(tensor)] = len(self.tensors)
                self.tensors.append(tensor)
            return numbers[id(tensor)]

        for leaf in leaves:
            if isinstance(leaf, Tensor):
                self.leaves.append(number(leaf))
            elif hasattr(leaf, "__dict__") and not isinstance(leaf, type):
                memo = _Looked(known)
                held = copy.deepcopy(leaf, memo)
                places = {key: number(tensor) for key, tensor in memo.found.items()}
                self.leaves.append(_Object(held, places))
            else:
                self.leaves.append(_Plain(leaf))

    def filled(self, tensors: Sequence[Any]) -> Any:
        """The output with other tensors in the places of those that it was recorded with."""
        leaves = []
        for leaf in self.leaves:
            if isinstance(leaf, int):
                leaves.append(tensors[leaf])
            elif isinstance(leaf, _Object):
                memo = {key: tensors[number] for key, number in leaf.places.items()}
                leaves.append(copy.deepcopy(leaf.held, memo))
            else:
                leaves.append(leaf.value)
        return pytree.tree_unflatten(leaves, self.structure)


class _Plain:
    def __init__(self, value: Any) -> None:
        self.value = value


class _Object:
    def __init__(self, held: Any, places: dict[int, int]) -> None:
        self.held = held
        self.places = places
