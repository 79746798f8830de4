"""Concat flattening: ``Concat(Concat(a, b), c)`` becomes ``Concat(a, b, c)``.

A dense block that is saved as a chain of Concats keeps every intermediate Concat for the next
one: recomputing the last would recompute the whole chain, and memory grows with the square of
the depth. Flattened, each Concat starts from the blocks' own outputs (Pleiss et al., "Memory-
Efficient Implementation of DenseNets", arXiv 1707.06990, shares buffers to the same end).

Rules:

1. Both nodes are ``Concat`` along the same axis, and the outer one reads the inner one's output.
2. The inner Concat has exactly one other reader. With none, flattening would save nothing; with
   more, the gradients of the pieces would be grouped differently.
3. The order of what is concatenated stays.
4. Names that are written down to undo the change are unique in the file.
5. Where three or four operators read a piece afterwards, identities group them two by two; where
   more, and not Concats alone, the Concats read an identity of it.
6. A long chain is flattened in groups: every k-th of its n Concats stays for those behind it, with
   k the square root of n rounded up to a multiple of four; of the longest chains those at given
   parts of their length instead (whole blocks of pieces are used again by MXNet's pool more often
   than the pieces; where to cut, the pool tells). It bounds how many gradients a piece adds up,
   too.

Exact: Concat only moves data, its gradient only slices it, and the gradients of each piece are
added in the same order as before, the last reader's first
(:mod:`memcli.engines.mxnet.rewrites.exactness` checks it on the graph that comes out). oneDNN
chooses layouts by what a Concat reads, and other layouts round otherwise: there, and there alone,
results differ in the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memcli.engines.mxnet.rewrites.base import Rewrite, RewriteConditions
from memcli.engines.mxnet.rewrites.exactness import SumComparison, leaves
from memcli.formats.symbol.check import attribute
from memcli.formats.symbol.edits import IDENTITY, GraphBuilder, Raw, Rewiring, rewire

if TYPE_CHECKING:
    from memcli.engines.mxnet.record import Analysis

_CONCATS = frozenset({"Concat", "concat"})
# Chains of so many Concats and more are flattened in groups.
_SHORTEST_CHAIN = 9
# Where groups of the longest chains end, in other forms: the last Concats are the largest.
_LONGEST = ((0.5,), (0.5, 0.875))


class FlattenedConcats(Rewrite[list[Rewiring]]):
    """Nested Concats made one; see the module's text."""

    name = "flattened Concats"
    may_reorder_sums = False

    def find(
        self, raw: Raw, analysis: Analysis | None, conditions: RewriteConditions
    ) -> list[Rewiring] | None:
        """How to flatten long chains in groups and short ones whole.

        Not where oneDNN may run the plan: it chooses layouts by what a Concat reads, and rounds by
        the layout. The plan must be able to name the variable that selects plain kernels.
        """
        if conditions.kernels != "plain" or conditions.environment != "best":
            return None
        return flatten_concats(raw, _SHORTEST_CHAIN) or None

    def alternatives(
        self,
        raw: Raw,
        analysis: Analysis,
        conditions: RewriteConditions,
        found: list[Rewiring] | None,
    ) -> list[list[Rewiring]]:
        """All chains flattened whole, and the longest in other groups."""
        if not found:
            return []
        # the gradients of a piece add up early, so that many may read it
        others = [flatten_concats(raw)]
        others += [flatten_concats(raw, _SHORTEST_CHAIN, longest=parts) for parts in _LONGEST]
        return others

    def relocated(self, found: list[Rewiring], moved: Mapping[int, int]) -> list[Rewiring]:
        """See :meth:`Rewrite.relocated`."""
        return [
            Rewiring(moved[c.position], [(moved[p], k) for p, k in c.inputs], c.attrs)
            for c in found
        ]

    def apply(self, raw: Raw, found: list[Rewiring]) -> tuple[Raw, dict[int, int]]:
        """Flattens, and puts identities where pieces then have too many readers."""
        raw = rewire(raw, found)
        return insert_chains(raw, grouped_sums(raw, {change.position for change in found}))

    def keeps_sums(self, sums: SumComparison, found: list[Rewiring]) -> bool:
        """Whether a piece's gradients add up as they did through the chain of Concats.

        Through the chain they add up from the last Concat to the first, each as one term, before
        anything else that reads the piece, of which there may be one.
        """
        return sums.same_in_place and _keeps_order_of_chain(sums, found)

    def describe(self, found: list[Rewiring]) -> str:
        """See :meth:`Rewrite.describe`."""
        return f"{len(found)} Concats flattened"


def _keeps_order_of_chain(sums: SumComparison, changes: Sequence[Rewiring]) -> bool:
    names = [node["name"] for node in sums.raw["nodes"]]
    place = {
        names[p]: p for p, node in enumerate(sums.raw["nodes"]) if node["op"].lower() == "concat"
    }
    rewired = {names[change.position] for change in changes}
    for terms in sums.sums_after:
        if not any(name in rewired for name, _ in leaves(terms)):
            continue
        order = [place.get(term[0], -1) if isinstance(term[0], str) else -1 for term in terms]
        if len(order) > 1 and order[0] < order[1]:
            order[:2] = order[1::-1]
        known = [p for p in order if p >= 0]
        if len(order) - len(known) > 1:
            return False
        if order[: len(known)] != sorted(known, reverse=True):
            return False
    return True


@dataclass(frozen=True)
class ConcatChain:
    """Readers (position, slot) of output ``output`` of ``position``, in the order of the file.

    ``together``: all of them read one identity, rather than one behind the other.
    """

    position: int
    output: int
    readers: Sequence[tuple[int, int]]
    together: bool = False


def insert_chains(
    raw: Raw, chains: Sequence[ConcatChain], suffix: str = "_shared"
) -> tuple[Raw, dict[int, int]]:
    """Identities between a tensor and its readers, so that gradients are added two by two.

    The first reader reads the tensor, the second an identity of it, the third an identity of that
    and so on; the last two read the same one. The gradient of the last reader is then added to
    that of the one before, the sum to that of the one before that: a chain of sums of two.

    Returns:
        The new content, and the new position of each old one.
    """
    if not chains:
        return raw, {p: p for p in range(len(raw["nodes"]))}
    behind: dict[int, list[ConcatChain]] = {}
    for chain in chains:
        behind.setdefault(chain.position, []).append(chain)
    new = GraphBuilder(raw)
    for position, node in enumerate(raw["nodes"]):
        new.keep(position)
        for chain in behind.get(position, ()):
            source = (new.moved[position], chain.output)
            if chain.together:
                at = new.insert(IDENTITY, f"{node['name']}{suffix}", [[*source, 0]])
                new.turned.update(dict.fromkeys(chain.readers, (at, 0)))
                continue
            for number, reader in enumerate(chain.readers[1:], start=1):
                if number < len(chain.readers) - 1:
                    name = f"{node['name']}{suffix}{number}"
                    source = (new.insert(IDENTITY, name, [[*source, 0]]), 0)
                new.turned[reader] = source
    return new.finished(), new.moved


def grouped_sums(raw: dict[str, Any], rewired: Collection[int]) -> list[ConcatChain]:
    """Identities for pieces that more than two operators read after flattening.

    MXNet adds three or four gradients from the right (``elemwise_sum.h``), two, or more than four,
    from the left, which is the order that the chain of Concats had: three or four are grouped two
    by two. Where something else than Concats reads a piece of five readers or more, the Concats get
    an identity of their own, so that only gradients that move values are added one by one.

    Args:
        raw: the content with the Concats flattened.
        rewired: positions in ``raw`` of the Concats that were flattened.
    """
    heads = {(head[0], head[1] if len(head) > 1 else 0) for head in raw["heads"]}
    readers: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for position, node in enumerate(raw["nodes"]):
        for slot, source in enumerate(node["inputs"]):
            key = (source[0], source[1] if len(source) > 1 else 0)
            readers.setdefault(key, []).append((position, slot))
    chains = []
    for (position, output), found in readers.items():
        if (
            len(found) < 3
            or raw["nodes"][position]["op"] == "null"
            or (position, output) in heads
            or not any(reader in rewired for reader, _ in found)
            or not all(reader > position for reader, _ in found)
        ):
            continue
        concats = [at for at in found if raw["nodes"][at[0]]["op"] in _CONCATS]
        if len(found) < 5 or (len(concats) < 5 and concats != found):
            chains.append(ConcatChain(position, output, found))
        elif concats != found:
            chains.append(ConcatChain(position, output, concats, together=True))
    return chains


def flatten_concats(
    raw: dict[str, Any], shortest: float = math.inf, *, longest: Sequence[float] = ()
) -> list[Rewiring]:
    """The rewirings that flatten a symbol's nested Concats; empty where there are none.

    Args:
        raw: the symbol file's content.
        shortest: chains of so many Concats, and longer ones, are flattened in groups.
        longest: where groups of the longest ones end, as parts of their length.
    """
    nodes: list[dict[str, Any]] = raw["nodes"]
    readers: dict[int, int] = {}
    for node in nodes:
        for source in {i[0] for i in node["inputs"]}:
            readers[source] = readers.get(source, 0) + 1
    for head in raw["heads"]:
        readers[head[0]] = readers.get(head[0], 0) + 1
    names: dict[str, int] = {}
    for node in nodes:
        names[node["name"]] = names.get(node["name"], 0) + 1
    nested = {
        position: {
            i[0]
            for i in node["inputs"]
            # Files may list a node before its inputs; such a Concat is left as it is.
            if i[0] < position
            and nodes[i[0]]["op"] in _CONCATS
            and readers[i[0]] == 2
            and _axis(nodes[i[0]]) == _axis(node)
        }
        for position, node in enumerate(nodes)
        if node["op"] in _CONCATS
    }
    stay = _ends_of_groups(nested, shortest, longest)
    flat: dict[int, list[tuple[int, int]]] = {}
    changes = []
    for position, inner in nested.items():
        node = nodes[position]
        own = [(i[0], i[1] if len(i) > 1 else 0) for i in node["inputs"]]
        new: list[tuple[int, int]] = []
        for source, output in own:
            new += flat[source] if source in inner - stay else [(source, output)]
        flat[position] = new
        if new != own and all(names[nodes[source]["name"]] == 1 for source, _ in own):
            changes.append(Rewiring(position, new, {"num_args": str(len(new))}))
        elif new != own:
            flat[position] = own
    return changes


def _ends_of_groups(
    nested: Mapping[int, set[int]], shortest: float, longest: Sequence[float]
) -> set[int]:
    """Concats that stay whole, by chain. ``nested``: {Concat: those that it could take up}."""
    place: dict[int, int] = {}
    chain: dict[int, int] = {}
    for position, inner in nested.items():
        before = max(inner, key=place.__getitem__, default=None)
        place[position] = 1 if before is None else place[before] + 1
        chain[position] = position if before is None else chain[before]
    lengths: dict[int, int] = {}
    for position, first in chain.items():
        lengths[first] = max(lengths.get(first, 0), place[position])
    most = max(lengths.values(), default=0)
    ends = set()
    for position, first in chain.items():
        length = lengths[first]
        group = 4 * math.ceil(math.sqrt(length) / 4)
        if longest and length == most:
            ends_here = place[position] in {math.ceil(part * length) for part in longest}
        else:
            ends_here = place[position] % group == 0
        if length >= shortest and ends_here:
            ends.add(position)
    return ends


def _axis(node: dict[str, Any]) -> str:
    return attribute(node, "dim") or "1"
