"""Which buffers share memory under Torch7's schemes."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field

from memcli.frameworks.buffers import ADDED_UP, GRADIENTS, Buffer


@dataclass
class Storage:
    """Memory that buffers share: as large as the largest of them, for ever."""

    tenants: list[Buffer]

    @property
    def size(self) -> int:
        """Bytes."""
        return max(buffer.size for buffer in self.tenants)

    @property
    def part(self) -> str:
        """What it holds."""
        return self.tenants[0].part


def unshared(buffers: list[Buffer]) -> list[Storage]:
    """Every buffer for itself."""
    return [Storage([buffer]) for buffer in buffers]


def by_liveness(buffers: list[Buffer]) -> list[Storage]:
    """What optnet shares in training mode: gradients, greedily by when they are in use.

    Source: fmassa/optimize-net, ``init.lua``, ``analyse`` and ``assign``: gradients in the order
    in which they are used last; each joins, of the storages that nobody uses any more when it is
    made, the one whose size is nearest, else it gets its own. A gradient that is only added to
    another is never seen in use, and shares with nobody: so it is there, so it is here. Outputs
    stay as they are.
    """
    tracked = [b for b in buffers if b.part == GRADIENTS and b.handed_on]
    tracked.sort(key=lambda buffer: buffer.lives[-1][1])
    found: list[Storage] = []
    sizes: list[int] = []
    ends: list[int] = []
    for buffer in tracked:
        start, end = buffer.lives[-1]
        free = [k for k, until in enumerate(ends) if until < start]
        if free:
            chosen = min(free, key=lambda k: abs(sizes[k] - buffer.size))
            found[chosen].tenants.append(buffer)
            sizes[chosen], ends[chosen] = max(sizes[chosen], buffer.size), end
        else:
            found.append(Storage([buffer]))
            sizes.append(buffer.size)
            ends.append(end)
    rest = [b for b in buffers if b.part != GRADIENTS or not b.handed_on]
    return unshared(rest) + found


def by_type(buffers: list[Buffer]) -> tuple[list[Storage], int]:
    """What ``shareGradInput`` and its kin share: one storage for each type of module, in turns two.

    Source: liuzhuang13/DenseNet, ``models/init.lua``: one storage for all gradients of a type of
    module, two in turns for those that containers add up in. This is sound where no two of them are
    in use at once, as in the networks that it was made for. Elsewhere Torch would train on
    overwritten gradients; here those get storages of their own.

    Returns:
        The storages, and how many buffers could not be where the scheme has them.

    Args:
        buffers: of the network.
    """
    result = unshared([b for b in buffers if b.key is None])
    storages: dict[str, list[_Turns]] = {}
    turn = moved = 0
    for buffer in buffers:
        if buffer.key is None:
            continue
        summed = buffer.key == ADDED_UP
        those = storages.setdefault(buffer.key, [_Turns() for _ in range(2 if summed else 1)])
        preferred = those[turn % 2 if summed else 0]
        turn += summed
        if not preferred.takes(buffer):
            moved += 1
            if not any(other.takes(buffer) for other in those):
                those.append(_Turns())
                those[-1].takes(buffer)
    shared = [Storage(t.tenants) for those in storages.values() for t in those if t.tenants]
    return result + shared, moved


@dataclass
class _Turns:
    """Buffers that are never in use at the same time."""

    tenants: list[Buffer] = field(default_factory=list)
    lives: list[tuple[int, int]] = field(default_factory=list)  # of all of them, in order

    def takes(self, buffer: Buffer) -> bool:
        """Take a buffer in, where that is possible."""
        for start, end in buffer.lives:
            at = bisect(self.lives, (start, end))
            before = at > 0 and self.lives[at - 1][1] >= start
            behind = at < len(self.lives) and self.lives[at][0] <= end
            if before or behind:
                return False
        for life in buffer.lives:
            self.lives.insert(bisect(self.lives, life), life)
        self.tenants.append(buffer)
        return True
