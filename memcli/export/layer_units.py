"""A traced step's graph cut into units (layers, modules): what a user can wrap in a function."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Path = tuple[str, ...]

# A scope with this part of all tensors in it is no layer but what holds the layers.
_CONTAINER = 0.5


@dataclass(frozen=True)
class Dataflow:
    """Which step makes and reads each storage.

    ``makers``: over storages, its step. ``readers``: over storages, the steps that read it.
    ``saved``: over storages, whether autograd keeps it in a step without a plan. ``size``: bytes.
    ``results``: over storages, whether it is a result, and not something a function saves inside.
    """

    makers: NDArray[np.int64]
    readers: list[list[int]]
    saved: NDArray[np.bool_]
    given_out: NDArray[np.bool_]
    results: NDArray[np.bool_]
    size: NDArray[np.int64]

    @property
    def n_storages(self) -> int:
        """Number of storages."""
        return len(self.makers)


@dataclass(frozen=True)
class Unit:
    """Steps that stand in one scope. ``single``: one step that stands in no scope of its own."""

    path: Path
    steps: tuple[int, ...]
    single: bool = False


def prefix_of(paths: Iterable[Path]) -> Path:
    """What all paths begin with; the last part of a single path is no prefix."""
    listed = sorted({path for path in paths if path})
    if not listed:
        return ()
    first, last = listed[0], listed[-1]
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return first[: min(length, len(last) - 1)]


def units_of(
    paths: Sequence[Path], names: Sequence[str], made: NDArray[np.int64], flow: Dataflow
) -> list[Unit]:
    """Units in an order in which each comes after all that it reads.

    A scope that holds most of the tensors is looked into; a unit whose steps depend on others in
    between is cut into its steps.

    Args:
        paths: of each step, its scope.
        names: of each step, its node's name.
        made: of each step, the bytes that it makes.
        flow: what reads what.
    """
    keys = _keys(paths, names, made)
    while True:
        of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        unit = [of[key] for key in keys]
        order = _ordered(unit, len(of), flow)
        if len(order) == len(of):
            break
        stuck = set(range(len(of))) - set(order)
        for step, (key, number) in enumerate(zip(keys, unit, strict=True)):
            if number in stuck and not key[1]:
                keys[step] = (key[0], names[step])
    members: list[list[int]] = [[] for _ in of]
    for step, number in enumerate(unit):
        members[number].append(step)
    listed = list(of)
    return [
        Unit(
            (*listed[k][0], *filter(None, [listed[k][1].rpartition("/")[2]])),
            tuple(members[k]),
            bool(listed[k][1]),
        )
        for k in order
    ]


def _keys(
    paths: Sequence[Path], names: Sequence[str], made: NDArray[np.int64]
) -> list[tuple[Path, str]]:
    """(the scope that is a unit, the node's name where it stands in none)."""
    root = prefix_of(path for path, size in zip(paths, made.tolist(), strict=True) if size)
    opened = {root[:k] for k in range(len(root) + 1)}
    total = int(made.sum())
    while True:
        keys = []
        weight: dict[Path, int] = {}
        deeper: set[Path] = set()
        for path, size in zip(paths, made.tolist(), strict=True):
            length = 0
            while length < len(path) and path[:length] in opened:
                length += 1
            key = path[:length]
            keys.append(key)
            if key not in opened:
                weight[key] = weight.get(key, 0) + size
                if len(path) > len(key):
                    deeper.add(key)
        large = {key for key in deeper if weight[key] > _CONTAINER * total}
        if not large:
            break
        opened |= large
    return [
        (key, "" if key and key not in opened else name)
        for key, name in zip(keys, names, strict=True)
    ]


def _ordered(unit: Sequence[int], count: int, flow: Dataflow) -> list[int]:
    """Units by first step, each after those that it reads; those on cycles are left out."""
    after: list[set[int]] = [set() for _ in range(count)]
    waits = [0] * count
    for storage in range(flow.n_storages):
        source = unit[int(flow.makers[storage])]
        for reader in flow.readers[storage]:
            target = unit[reader]
            if target != source and target not in after[source]:
                after[source].add(target)
                waits[target] += 1
    ready = [k for k in range(count) if not waits[k]]  # units are numbered by first step
    heapq.heapify(ready)
    order = []
    while ready:
        k = heapq.heappop(ready)
        order.append(k)
        for target in after[k]:
            waits[target] -= 1
            if not waits[target]:
                heapq.heappush(ready, target)
    return order
