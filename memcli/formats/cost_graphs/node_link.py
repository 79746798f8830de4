"""Graphs of costs as networkx node-link JSON, in the two dialects that planners publish.

Checkmate's and Moccasin's training graphs: nodes with ``id``, ``cost_cpu`` (time), ``cost_ram``
(bytes); links with ``source`` and ``target``; ids that are numbers are the execution order.
Moccasin's random layered graphs: nodes with ``name``, ``duration`` and ``out_cost``; links with
``0`` and ``1``; ``graph.order`` lists the names in execution order.
"""

from __future__ import annotations

import heapq
import json
import math
from typing import Any

from memcli.errors import BadInput
from memcli.graph.cost_graph import CostGraph
from memcli.quoting import shown

TIME_KEYS = ("cost_cpu", "duration", "time")
MEMORY_KEYS = ("cost_ram", "out_cost", "memory")
LARGEST_TEXT = 256 << 20
# Sums of sizes and times must stay exact.
_LARGEST = 1 << 53


def parse_node_link(data: bytes, name: str) -> CostGraph:
    """The graph in ``data``; ``name`` (of the file) begins each message.

    The order is ``graph.order`` where the file has one; else the ids', where they are numbers and
    every link goes upwards; else the file's, where every link goes forwards; else topological.

    Raises:
        BadInput: not JSON, not a directed node-link graph, a cost that is missing, negative or
            not finite, ids that are missing or repeated, a link to nowhere, a cycle, or an order
            in which a node comes before one that it reads.
    """
    raw = _json(data, name)
    nodes, links = raw.get("nodes"), raw.get("links", raw.get("edges"))
    if not isinstance(nodes, list):
        raise BadInput(f"{name}: has no list 'nodes'", "give networkx node-link JSON")
    if not isinstance(links, list):
        raise BadInput(f"{name}: has no list 'links' (or 'edges')", "give networkx node-link JSON")
    if raw.get("directed") is False:
        raise BadInput(f"{name}: the graph is not directed", "links go from a value to its reader")
    if not nodes:
        raise BadInput(f"{name}: nodes: the graph is empty")
    ids, seconds, sizes = _nodes(nodes, name)
    place = {identity: k for k, identity in enumerate(ids)}
    reads = _links(links, place, name)
    order = _order(raw.get("graph"), ids, place, reads, name)
    rank = {k: r for r, k in enumerate(order)}
    title = raw["graph"].get("name") if isinstance(raw.get("graph"), dict) else None
    return CostGraph.build(
        [ids[k] for k in order],
        [seconds[k] for k in order],
        [sizes[k] for k in order],
        [[rank[u] for u in reads[k]] for k in order],
        name=title if isinstance(title, str) else "",
    )


def _json(data: bytes, name: str) -> dict[str, Any]:
    def constant(text: str) -> Any:
        raise BadInput(f"{name}: holds {text}, which is no number in JSON", "write a finite one")

    if len(data) > LARGEST_TEXT:
        raise BadInput(f"{name}: is over {LARGEST_TEXT >> 20} MiB, more than any graph of costs")
    if not data.strip():
        raise BadInput(f"{name}: is empty", "give networkx node-link JSON")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: byte {error.start} is not UTF-8 text") from error
    try:
        value = json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{name}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}",
            "give networkx node-link JSON",
        ) from error
    except RecursionError as error:
        raise BadInput(f"{name}: is nested too deeply to be a graph") from error
    except ValueError as error:  # an integer of thousands of digits
        raise BadInput(f"{name}: not JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{name}: holds {shown(value)}, not an object with 'nodes' and 'links'")
    return value


def _nodes(nodes: list[Any], name: str) -> tuple[list[int | str], list[float], list[int]]:
    ids: list[int | str] = []
    seconds: list[float] = []
    sizes: list[int] = []
    seen: dict[int | str, int] = {}
    for k, node in enumerate(nodes):
        where = f"{name}: nodes[{k}]"
        if not isinstance(node, dict):
            raise BadInput(f"{where}: is {shown(node)}, not an object")
        key = "id" if "id" in node else "name"
        identity = node.get(key)
        if isinstance(identity, bool) or not isinstance(identity, (int, str)):
            what = f"'{key}' is {shown(identity)}" if key in node else "has no 'id'"
            raise BadInput(f"{where}: {what}", "an id is a whole number or a text")
        if identity in seen:
            raise BadInput(f"{where}: the id {shown(identity)} is that of nodes[{seen[identity]}]")
        seen[identity] = k
        ids.append(identity)
        seconds.append(_cost(node, TIME_KEYS, "time", where))
        size = _cost(node, MEMORY_KEYS, "memory", where)
        if size != int(size):
            raise BadInput(f"{where}: a memory of {shown(size)} is not a whole number of bytes")
        sizes.append(int(size))
    for values, what in ((sizes, "memory"), (seconds, "time")):
        if sum(values) >= _LARGEST:
            raise BadInput(f"{name}: the sum of all nodes' {what} is 2^53 or more")
    return ids, seconds, sizes


def _cost(node: dict[str, Any], keys: tuple[str, ...], what: str, where: str) -> float:
    key = next((k for k in keys if k in node), None)
    if key is None:
        names = ", ".join(f"'{k}'" for k in keys)
        raise BadInput(f"{where}: has no {what}", f"a node needs one of {names}")
    value = node[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadInput(f"{where}: '{key}' is {shown(value)}, not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{where}: '{key}' is not finite")
    if value < 0:
        raise BadInput(f"{where}: '{key}' is {shown(value)}, and a cost is not negative")
    if value >= _LARGEST:
        raise BadInput(f"{where}: '{key}' is 2^53 or more")
    return value


def _links(links: list[Any], place: dict[int | str, int], name: str) -> list[list[int]]:
    reads: list[list[int]] = [[] for _ in place]
    for k, link in enumerate(links):
        where = f"{name}: links[{k}]"
        if not isinstance(link, dict):
            raise BadInput(f"{where}: is {shown(link)}, not an object")
        ends: list[int] = []
        for word, number in (("source", "0"), ("target", "1")):
            key = word if word in link else number
            if key not in link:
                raise BadInput(f"{where}: has no '{word}' (or '{number}')")
            end = link[key]
            if isinstance(end, bool) or not isinstance(end, (int, str)) or end not in place:
                raise BadInput(f"{where}: '{key}' is {shown(end)}, which is no node's id")
            ends.append(place[end])
        if ends[0] == ends[1]:
            raise BadInput(f"{where}: node {shown(link[key])} reads itself")
        reads[ends[1]].append(ends[0])
    return reads


def _order(
    graph: Any,
    ids: list[int | str],
    place: dict[int | str, int],
    reads: list[list[int]],
    name: str,
) -> list[int]:
    given = graph.get("order") if isinstance(graph, dict) else None
    if given is not None:
        return _given_order(given, ids, place, reads, name)
    numbers = [i for i in ids if isinstance(i, int)]
    if len(numbers) == len(ids):
        by_id = sorted(range(len(ids)), key=numbers.__getitem__)
        if all(numbers[u] < numbers[k] for k in by_id for u in reads[k]):
            return by_id
    if all(u < k for k in range(len(ids)) for u in reads[k]):
        return list(range(len(ids)))
    return _topological(ids, reads, name)


def _given_order(
    given: Any,
    ids: list[int | str],
    place: dict[int | str, int],
    reads: list[list[int]],
    name: str,
) -> list[int]:
    where = f"{name}: graph.order"
    if not isinstance(given, list):
        raise BadInput(f"{where}: is {shown(given)}, not a list of ids")
    order: list[int] = []
    done: set[int] = set()
    for k, identity in enumerate(given):
        if isinstance(identity, bool) or not isinstance(identity, (int, str)):
            raise BadInput(f"{where}[{k}]: is {shown(identity)}, not an id")
        if identity not in place:
            raise BadInput(f"{where}[{k}]: {shown(identity)} is no node's id")
        v = place[identity]
        if v in done:
            raise BadInput(f"{where}[{k}]: {shown(identity)} is there twice")
        late = next((u for u in reads[v] if u not in done), None)
        if late is not None:
            raise BadInput(
                f"{where}[{k}]: {shown(identity)} comes before {shown(ids[late])}, which it reads",
                "mend the order, or leave it out for a topological one",
            )
        done.add(v)
        order.append(v)
    if len(order) < len(ids):
        missing = next(i for k, i in enumerate(ids) if k not in done)
        raise BadInput(f"{where}: lacks node {shown(missing)}")
    return order


def _topological(ids: list[int | str], reads: list[list[int]], name: str) -> list[int]:
    """First in the file first, as far as the links allow."""
    readers: list[list[int]] = [[] for _ in ids]
    waiting = [len(set(r)) for r in reads]
    for k, inputs in enumerate(reads):
        for u in set(inputs):
            readers[u].append(k)
    ready = [k for k, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        v = heapq.heappop(ready)
        order.append(v)
        for r in readers[v]:
            waiting[r] -= 1
            if waiting[r] == 0:
                heapq.heappush(ready, r)
    if len(order) < len(ids):
        stuck = next(k for k, count in enumerate(waiting) if count > 0)
        # Walk towards inputs that wait too: sooner or later a node comes again.
        seen: dict[int, int] = {}
        while stuck not in seen:
            seen[stuck] = len(seen)
            stuck = next(u for u in reads[stuck] if waiting[u] > 0)
        cycle = [ids[k] for k, at in seen.items() if at >= seen[stuck]]
        path = " <- ".join(shown(i) for i in [*cycle[:6], *(["..."] if len(cycle) > 6 else [])])
        raise BadInput(f"{name}: links: there is a cycle: {path} <- {shown(cycle[0])}")
    return order
