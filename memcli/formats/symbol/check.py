"""Checks a parsed symbol file against what MXNet 1.9.1's loader accepts.

Accepts everything that loads there, save graphs that load and can never run: a cycle that an
output depends on, and output numbers below zero (MXNet wraps them around and crashes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memcli.errors import BadInput
from memcli.formats.symbol.values import impossible, tuple_of
from memcli.quoting import shown

_TOP_KEYS = {"nodes", "arg_nodes", "node_row_ptr", "heads", "attrs"}
_NODE_KEYS = {
    "op",
    "name",
    "inputs",
    "attrs",
    "attr",
    "param",
    "control_deps",
    "subgraphs",
    "backward_source_id",
}
_USUAL_KEYS = {"op", "name", "inputs", "attrs"}
# Types that a value of the top-level 'attrs' may name, as MXNet 1.9.1 registers them.
_ITEM_TYPES = {
    "list_int": "int",
    "list_str": "str",
    "list_shape": "list_int",
    "list_layout": "str",
}
_ATTR_TYPES = ("int", "str", "size_t", *_ITEM_TYPES)

# Attributes that say how many; MXNet checks none of them before it counts or divides by them.
_COUNTS = frozenset({"num_group", "num_groups", "num_outputs", "num_args", "heads"})
_LARGEST_COUNT = 1 << 16

# Inputs that operators write to, which are variables: MXNet reads beyond its arrays where another
# node stands there (FMutateInputs in src/operator at the 1.9.1 tag).
_WRITTEN_INPUTS: dict[str, tuple[int, ...]] = {
    "BatchNorm": (3, 4),
    "BatchNorm_v1": (3, 4),
    "CuDNNBatchNorm": (3, 4),
    "SyncBatchNorm": (3, 4),
    "_contrib_SyncBatchNorm": (3, 4),
    "_contrib_BatchNormWithReLU": (3, 4),
    "_contrib_batch_norm_relu": (3, 4),
    "IdentityAttachKLSparseReg": (1,),
}

# Loops within loops; each level is four of JSON, and Python's own JSON writer has a limit.
_DEEPEST_SUBGRAPH = 20

Entry = tuple[int, int]


@dataclass(frozen=True)
class SymbolNode:
    """One node as the file has it."""

    op: str  # 'null' for variables
    name: str  # may be empty, and may repeat
    inputs: tuple[Entry, ...]  # (node position, output index)
    attrs: dict[str, str]  # what MXNet takes from param, attr and attrs together

    @property
    def is_variable(self) -> bool:
        """Whether it is a variable (``null``): a parameter, an input or a state."""
        return self.op == "null"


def checked_graph(raw: dict[str, Any], name: str) -> tuple[list[SymbolNode], list[Entry]]:
    """Check a whole symbol file.

    Args:
        raw: its content.
        name: of the file; begins each message.

    Returns:
        Its nodes, and the heads: outputs of the graph.

    Raises:
        BadInput: with the place in the file and what is wrong there.
    """
    return _graph(raw, f"{name}: ", 0)


def attribute_keys(node: dict[str, Any]) -> list[str]:
    """Keys of the node's attribute tables in the order in which MXNet looks things up.

    ``attrs`` and ``attr`` fill the same table and each clears it first, so of the two the later
    in the file counts; ``param`` adds what is not there yet.
    """
    own = [key for key in node if key in ("attrs", "attr")]
    return own[-1:] + (["param"] if "param" in node else [])


def attributes(node: dict[str, Any]) -> dict[str, str]:
    """What MXNet takes from a raw node's tables together."""
    found: dict[str, str] = {}
    for table in reversed(attribute_keys(node)):
        found.update(node[table])
    return found


def attribute(node: dict[str, Any], key: str) -> str | None:
    """One of :func:`attributes`; None where it is not there."""
    return next((node[t][key] for t in attribute_keys(node) if key in node[t]), None)


def depth_first_order(
    nodes: list[SymbolNode], heads: list[Entry], control: dict[int, list[int]]
) -> tuple[list[int], int | None]:
    """Positions in MXNet's own order, and a node on a cycle or None.

    Depth first from the heads, inputs before control dependencies, nodes that no head needs left
    out.

    Args:
        nodes: of the file.
        heads: outputs of the graph.
        control: positions that a node waits for without reading them, by position.
    """
    state = bytearray(len(nodes))  # 0 new, 1 on the way down, 2 done
    order: list[int] = []
    for head, _ in heads:
        if state[head]:
            continue
        state[head] = 1
        stack = [(head, iter(_needs(nodes, control, head)))]
        while stack:
            position, needs = stack[-1]
            for need in needs:
                if state[need] == 1:
                    return order, need
                if state[need] == 0:
                    state[need] = 1
                    stack.append((need, iter(_needs(nodes, control, need))))
                    break
            else:
                state[position] = 2
                order.append(position)
                stack.pop()
    return order, None


def control_dependencies(raw: dict[str, Any]) -> dict[int, list[int]]:
    """{position: positions it waits for without reading them}, for the nodes that have any."""
    return {
        position: node["control_deps"]
        for position, node in enumerate(raw["nodes"])
        if node.get("control_deps")
    }


def _needs(nodes: list[SymbolNode], control: dict[int, list[int]], position: int) -> list[int]:
    return [source for source, _ in nodes[position].inputs] + control.get(position, [])


def _graph(raw: Any, at: str, depth: int) -> tuple[list[SymbolNode], list[Entry]]:
    """``at`` is the prefix of places: 'x.json: ' or 'x.json: nodes[3].subgraphs[0].'."""
    if depth > _DEEPEST_SUBGRAPH:
        raise BadInput(f"{at.split(': ', maxsplit=1)[0]}: subgraphs are nested {depth} deep")
    _expect(isinstance(raw, dict), at.rstrip(".: "), raw, "an object")
    _check_keys(raw, _TOP_KEYS, ("nodes", "arg_nodes", "heads"), at)
    _expect(isinstance(raw["nodes"], list), f"{at}nodes", raw["nodes"], "a list")
    count = len(raw["nodes"])
    nodes = [_node(node, f"{at}nodes[{i}]", count, depth) for i, node in enumerate(raw["nodes"])]
    heads = _entries(raw["heads"], f"{at}heads", nodes, count)
    for position, node in enumerate(nodes):
        for i, (source, output) in enumerate(node.inputs):
            if output and nodes[source].is_variable:
                raise _no_such_output(f"{at}nodes[{position}].inputs[{i}]", source, output)
        for i in _WRITTEN_INPUTS.get(node.op, ()):
            if i < len(node.inputs) and not nodes[node.inputs[i][0]].is_variable:
                raise BadInput(
                    f"{at}nodes[{position}].inputs[{i}]: {shown(node.name)} ({node.op}) writes to "
                    f"it, and it is no variable but node {node.inputs[i][0]}",
                    "MXNet crashes on such a graph; give the operator a variable for its state",
                )
    _check_extras(raw, at, nodes)
    order_of = depth_first_order(nodes, heads, control_dependencies(raw))
    if order_of[1] is not None:
        where = f"{at}nodes[{order_of[1]}]"
        raise BadInput(f"{where}: depends on itself: the graph has a cycle", "no engine can run it")
    return nodes, heads


def _check_extras(raw: dict[str, Any], at: str, nodes: list[SymbolNode]) -> None:
    """arg_nodes, node_row_ptr and attrs, which say nothing that the nodes do not."""
    _expect(isinstance(raw["arg_nodes"], list), f"{at}arg_nodes", raw["arg_nodes"], "a list")
    for i, position in enumerate(raw["arg_nodes"]):
        if type(position) is not int or not 0 <= position < len(nodes):
            _position(position, f"{at}arg_nodes[{i}]", len(nodes))
        if not nodes[position].is_variable:
            raise BadInput(
                f"{at}arg_nodes[{i}]: names node {position}, an operator, but lists variables alone"
            )
    pointers = raw.get("node_row_ptr", [])
    _expect(isinstance(pointers, list), f"{at}node_row_ptr", pointers, "a list")
    for i, pointer in enumerate(pointers):
        if type(pointer) is not int or not 0 <= pointer < 1 << 31:
            _whole(pointer, f"{at}node_row_ptr[{i}]")
    attrs = raw.get("attrs", {})
    _expect(isinstance(attrs, dict), f"{at}attrs", attrs, "an object")
    for key, value in attrs.items():
        where = f"{at}attrs[{shown(key)}]"
        _expect(
            isinstance(value, list) and len(value) == 2 and isinstance(value[0], str),
            where,
            value,
            'a pair like ["int", 10901]',
        )
        if value[0] not in _ATTR_TYPES:
            raise BadInput(
                f"{where}: MXNet knows no type {shown(value[0])}",
                f"it knows {', '.join(_ATTR_TYPES)}",
            )
        _attr_value(value[0], value[1], where)
        if key == "mxnet_version" and value[0] != "int":
            raise BadInput(f"{where}: is a {value[0]}, not an int")


def _attr_value(kind: str, value: Any, where: str) -> None:
    if kind == "str":
        _expect(isinstance(value, str), where, value, "a string")
    elif kind == "int":
        _whole(value, where, bits=31)
    elif kind == "size_t":
        _whole(value, where, bits=64)
    else:
        _expect(isinstance(value, list), where, value, "a list")
        for i, item in enumerate(value):
            _attr_value(_ITEM_TYPES[kind], item, f"{where}[{i}]")


def _node(raw: Any, where: str, count: int, depth: int) -> SymbolNode:
    _expect(isinstance(raw, dict), where, raw, "an object")
    _check_keys(raw, _NODE_KEYS, ("op", "name", "inputs"), f"{where}.")
    op, name = raw["op"], raw["name"]
    _expect(isinstance(op, str), f"{where}.op", op, "a string")
    _expect(isinstance(name, str), f"{where}.name", name, "a string")
    if not op:
        raise BadInput(f"{where}.op: is empty", "a variable's is 'null'")
    for key in ("attrs", "attr", "param"):
        if key not in raw:
            continue
        table = raw[key]
        _expect(isinstance(table, dict), f"{where}.{key}", table, "an object of strings")
        for name_of, value in table.items():
            if not isinstance(value, str):
                raise BadInput(
                    f"{where}.{key}[{shown(name_of)}]: is {shown(value)}, not a string",
                    "MXNet wants every attribute in quotes",
                )
    if not _USUAL_KEYS.issuperset(raw):
        _check_rare_keys(raw, where, count, depth)
    inputs = _entries(raw["inputs"], f"{where}.inputs", None, count)
    attrs = attributes(raw)
    shape = attrs.get("__shape__")
    if shape is not None and shape.strip() not in ("", "None"):
        sizes = tuple_of(shape)
        if sizes is None or impossible(sizes):
            raise BadInput(
                f"{where}: the __shape__ of {shown(name)} is {shown(shape)}, which no tensor has",
                "correct it, or take the attribute off",
            )
    if not _COUNTS.isdisjoint(attrs):
        _check_counts(op, attrs, f"{where} ({shown(op)} {shown(name)})")
    return SymbolNode(op, name, tuple(inputs), attrs)


def _check_counts(op: str, attrs: dict[str, str], where: str) -> None:
    """Numbers that MXNet divides by, or makes as many outputs or inputs of, before it looks."""
    for key in _COUNTS.intersection(attrs):
        number = (tuple_of(attrs[key]) or (None,))[0]
        least = 0 if key == "num_args" else 1
        if number is not None and op != "null" and not least <= number <= _LARGEST_COUNT:
            raise BadInput(
                f"{where}: its {key} is {shown(attrs[key])}, which should be from {least} to "
                f"{_LARGEST_COUNT}"
            )


def _check_rare_keys(raw: dict[str, Any], where: str, count: int, depth: int) -> None:
    dependencies = raw.get("control_deps", [])
    _expect(isinstance(dependencies, list), f"{where}.control_deps", dependencies, "a list")
    for i, position in enumerate(dependencies):
        _position(position, f"{where}.control_deps[{i}]", count)
    if "backward_source_id" in raw:
        _whole(raw["backward_source_id"], f"{where}.backward_source_id", bits=31)
    subgraphs = raw.get("subgraphs", [])
    _expect(isinstance(subgraphs, list), f"{where}.subgraphs", subgraphs, "a list")
    for i, subgraph in enumerate(subgraphs):
        _graph(subgraph, f"{where}.subgraphs[{i}].", depth + 1)


def _entries(raw: Any, where: str, nodes: list[SymbolNode] | None, count: int) -> list[Entry]:
    """Lists of [node, output] or [node, output, version]; MXNet wants no order among nodes."""
    _expect(isinstance(raw, list), where, raw, "a list")
    entries = []
    for i, entry in enumerate(raw):
        if _is_plain_entry(entry, count):
            entries.append((entry[0], entry[1]))
            continue
        at = f"{where}[{i}]"
        _expect(
            isinstance(entry, list) and len(entry) in (2, 3), at, entry, "[node, output, version]"
        )
        source, output = entry[0], entry[1]
        _position(source, at, count)
        if type(output) is not int or not 0 <= output < 1 << 32:
            raise BadInput(f"{at}: {shown(output)} is not an output number")
        if len(entry) == 3:
            _whole(entry[2], f"{at}[2]")
        if nodes is not None and output and nodes[source].is_variable:
            raise _no_such_output(at, source, output)
        entries.append((source, output))
    return entries


def _is_plain_entry(entry: Any, count: int) -> bool:
    """Whether ``entry`` is as nearly all are; saves making up the name of the place."""
    return (
        type(entry) is list
        and len(entry) in (2, 3)
        and type(entry[0]) is int
        and 0 <= entry[0] < count
        and type(entry[1]) is int
        and entry[1] == 0
        and (len(entry) == 2 or (type(entry[2]) is int and 0 <= entry[2] < 1 << 16))
    )


def _position(value: Any, where: str, count: int) -> None:
    if type(value) is not int:  # bool is an int to isinstance
        raise BadInput(f"{where}: {shown(value)} is not a node position")
    if not 0 <= value < count:
        raise BadInput(f"{where}: refers to node {shown(value)}, but there are {count}")


def _no_such_output(where: str, source: int, output: int) -> BadInput:
    return BadInput(f"{where}: wants output {output} of node {source}, a variable, which has one")


def _whole(value: Any, where: str, bits: int = 32) -> None:
    if type(value) is not int or not -1 << bits < value < 1 << bits:
        raise BadInput(f"{where}: {shown(value)} is not an integer of {bits} bits")


def _expect(good: bool, where: str, value: Any, wanted: str) -> None:
    if not good:
        raise BadInput(f"{where}: is {shown(value)}, not {wanted}")


def _check_keys(raw: dict[str, Any], known: set[str], needed: tuple[str, ...], at: str) -> None:
    for key in needed:
        if key not in raw:
            whole_file = at.endswith(": ")
            hint = "is it a saved MXNet symbol (NAME-symbol.json)?" if whole_file else ""
            raise BadInput(f"{at.rstrip('.: ')}: has no '{key}'", hint)
    for key in raw:
        if key not in known:
            raise BadInput(f"{at}{shown(key)}: MXNet cannot load a file with this key", "remove it")
