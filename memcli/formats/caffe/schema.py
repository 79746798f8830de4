"""Message classes of Caffe's net definitions, made from the table of their fields.

No maintained package ships Caffe's compiled definitions; protobuf, which comes with ``onnx``, makes
the classes at run time.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from memcli.formats.caffe.messages import ENUMS, MESSAGES

_PACKAGE = "memcli.caffe"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: dict[str, Any] = {
    "string": _Field.TYPE_STRING,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "uint32": _Field.TYPE_UINT32,
    "int64": _Field.TYPE_INT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
}


@functools.cache
def message_class(name: str) -> type[Any]:
    """The class of a message of the table, ``NetParameter`` or one within it."""
    found = _pool().FindMessageTypeByName(f"{_PACKAGE}.{name}")
    make = getattr(message_factory, "GetMessageClass", None)
    if make is None:  # protobuf before 4.22
        return message_factory.MessageFactory(_pool()).GetPrototype(found)  # type: ignore
    return make(found)


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="memcli/caffe.proto", package=_PACKAGE, syntax="proto2"
    )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split("; "):
            message.field.append(_field(text))
    for name, values in ENUMS.items():
        # Values live beside their enumeration: each in a message of its own, or they would clash.
        holder = file.message_type.add(name=f"{name}Enum")
        enum = holder.enum_type.add(name=name)
        for value in values.split():
            key, _, number = value.partition("=")
            enum.value.add(name=key, number=int(number))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _field(text: str) -> Any:
    name, kind, number, *default = text.split(" ")
    repeated = kind.endswith("*")
    kind = kind.rstrip("*")
    field = _Field(
        name=name,
        number=int(number),
        label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
    )
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    elif kind in ENUMS:
        field.type = _Field.TYPE_ENUM
        field.type_name = f".{_PACKAGE}.{kind}Enum.{kind}"
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
    if default:
        field.default_value = default[0]
    return field
