"""Metadata put into, and taken off, an ONNX file's bytes; every other byte stays as it is.

Parsing and serializing a model keeps its meaning but not its bytes (order of fields, defaults
written out), so the plan could not be taken off again without a trace. Protobuf's wire format is
simple enough to work on directly: a message is a row of fields, each a tag and a value, in any
order; an entry more is some bytes more (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from onnx import StringStringEntryProto

from memcli.errors import BadInput

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_METADATA = 7, 14
_GRAPH_NODE = 1
_NODE_METADATA = 9


def with_metadata(
    data: bytes, entries: Mapping[str, str], node_entries: Mapping[int, Mapping[str, str]]
) -> bytes:
    """A model's bytes with metadata entries added to the model and to nodes by position.

    Raises:
        BadInput: the bytes are no message.
    """

    def node(position: int, body: memoryview) -> list[bytes | memoryview]:
        return [
            body,
            *(_entry(_NODE_METADATA, k, v) for k, v in node_entries.get(position, {}).items()),
        ]

    parts = _with_nodes(data, node) if node_entries else [memoryview(data)]
    parts += [_entry(_MODEL_METADATA, key, value) for key, value in entries.items()]
    return b"".join(parts)


def without_metadata(data: bytes, key: str, node_key: str) -> bytes:
    """A model's bytes without the metadata of ``key`` on the model and ``node_key`` on nodes.

    Raises:
        BadInput: the bytes are no message.
    """

    def node(_: int, body: memoryview) -> list[bytes | memoryview]:
        return _without(body, _NODE_METADATA, node_key)

    whole = b"".join(_with_nodes(data, node))
    return b"".join(_without(memoryview(whole), _MODEL_METADATA, key))


def _with_nodes(
    data: bytes, change: Callable[[int, memoryview], list[bytes | memoryview]]
) -> list[bytes | memoryview]:
    """The model with each node's bytes replaced by what ``change(position, bytes)`` gives."""
    parts: list[bytes | memoryview] = []
    position = 0
    for number, wire, whole, body in _fields(memoryview(data)):
        if number != _MODEL_GRAPH or wire != _BYTES:
            parts.append(whole)
            continue
        graph: list[bytes | memoryview] = []
        for inner, inner_wire, inner_whole, inner_body in _fields(body):
            if inner != _GRAPH_NODE or inner_wire != _BYTES:
                graph.append(inner_whole)
                continue
            changed = change(position, inner_body)
            position += 1
            size = sum(map(len, changed))
            if size == len(inner_body):
                graph.append(inner_whole)
            else:
                graph += [_head(_GRAPH_NODE, size), *changed]
        size = sum(map(len, graph))
        parts += [whole] if size == len(body) else [_head(_MODEL_GRAPH, size), *graph]
    return parts


def _without(message: memoryview, field: int, key: str) -> list[bytes | memoryview]:
    kept: list[bytes | memoryview] = []
    for number, wire, whole, body in _fields(message):
        if number == field and wire == _BYTES and _key_of(body) == key.encode():
            continue
        kept.append(whole)
    return kept


def _key_of(entry: memoryview) -> bytes:
    key = b""
    for number, wire, _, body in _fields(entry):
        if number == 1 and wire == _BYTES:
            key = bytes(body)
    return key


def _entry(field: int, key: str, value: str) -> bytes:
    body = StringStringEntryProto(key=key, value=value).SerializeToString()
    return _head(field, len(body)) + body


def _head(field: int, size: int) -> bytes:
    return _encoded(field << 3 | _BYTES) + _encoded(size)


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """(field number, wire type, the field's bytes with its tag, those of the value alone)."""
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == _VARINT:
            begin = position
            _, position = _varint(data, position)
        elif wire == _BYTES:
            size, begin = _varint(data, position)
            position = begin + size
        elif wire in (_FIXED64, _FIXED32):
            begin = position
            position += 8 if wire == _FIXED64 else 4
        else:
            raise _damaged()
        if position > len(data):
            raise _damaged()
        yield tag >> 3, wire, data[start:position], data[begin:position]


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise _damaged()


def _damaged() -> BadInput:
    return BadInput("the ONNX file's bytes are no whole message", "copy or download it again")
