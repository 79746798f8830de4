"""Just enough of protobuf's wire format to tell an ONNX model from other binary files."""

from __future__ import annotations

# ModelProto's fields (onnx.proto): number -> wire type (0 varint, 2 length and bytes).
_MODEL_FIELDS = {
    1: 0,  # ir_version
    2: 2,  # producer_name
    3: 2,  # producer_version
    4: 2,  # domain
    5: 0,  # model_version
    6: 2,  # doc_string
    7: 2,  # graph
    8: 2,  # opset_import
    14: 2,  # metadata_props
    20: 2,  # training_info
    25: 2,  # functions
    26: 2,  # configuration
}
_IR_VERSION, _GRAPH, _OPSETS = 1, 7, 8


def looks_like_onnx(data: bytes) -> bool:
    """Whether ``data`` begins as an ONNX model does.

    True for one that is cut short within its graph as well: reading it then says so. Needs the
    graph field, and beside it the version or the operator sets; all other fields must be ones
    that a model has.
    """
    seen: set[int] = set()
    position = 0
    while position < len(data):
        tag = _varint(data, position)
        if tag is None:
            return False
        key, position = tag
        number, wire = key >> 3, key & 7
        if _MODEL_FIELDS.get(number) != wire:
            return False
        value = _varint(data, position)
        if value is None:
            return False
        amount, position = value
        if number == _IR_VERSION and not 0 < amount < 1000:
            return False
        seen.add(number)
        if wire == 2:
            position += amount
        if position > len(data):
            return number == _GRAPH and _IR_VERSION in seen
    return _GRAPH in seen and bool(seen & {_IR_VERSION, _OPSETS})


def _varint(data: bytes, position: int) -> tuple[int, int] | None:
    """(value, position after it), or None where there is no whole varint of up to 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            return None
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    return None
