"""Net definitions in protobuf's text form: parsed, with the lines that layers stand on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format

from memcli.errors import BadInput
from memcli.formats.caffe.schema import message_class
from memcli.quoting import shown

_TOKEN = re.compile(
    r"""(?P<blank>[\s\ufeff]+|\#[^\n]*)|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
    r"""|(?P<mark>[{}<>\[\]:;,])|(?P<word>[^\s{}<>\[\]:;,"'#]+)|(?P<other>.)""",
)
_CLOSING = {"{": "}", "<": ">", "[": "]"}


@dataclass
class NetText:
    """A parsed net definition."""

    net: Any  # NetParameter
    # Lines, from 1, of the top level's ``layer`` and ``layers`` blocks, in the file's order.
    lines: dict[str, list[int]]
    notes: list[str]  # on fields that Caffe has not, which are passed over


def parse_net(text: str, name: str) -> NetText:
    """Parses a net definition; ``name`` of the file begins messages.

    Fields that neither Caffe nor a fork that memcli knows has are passed over with a note.

    Raises:
        BadInput: no such text; the message has the line.
    """
    net = message_class("NetParameter")()
    try:
        text_format.Parse(text.lstrip("\ufeff"), net, allow_unknown_field=True)
    except text_format.ParseError as error:
        line = error.GetLine()
        why = re.sub(r"^\d+:\d+ : ", "", str(error)).replace("memcli.caffe.", "")
        why = re.sub(r"^'.*?': ", "", why, flags=re.DOTALL).replace("\n", " ")
        where = f"{name}: line {line}: " if line else f"{name}: "
        raise BadInput(f"{where}is no Caffe net definition: {shorter(why)}") from error
    except (RecursionError, UnicodeError, ValueError) as error:
        raise BadInput(f"{name}: is no Caffe net definition: {shorter(str(error))}") from error
    lines: dict[str, list[int]] = {"layer": [], "layers": []}
    unknown: dict[str, list[int]] = {}
    for path, field, line in _fields(text):
        kind = _message_at(path)
        if kind is None:
            continue
        if field not in kind.fields_by_name:
            unknown.setdefault(f"{kind.name} has no field {shown(field)}", []).append(line)
        elif not path and field in lines:
            lines[field].append(line)
    notes = [
        f"{what} in Caffe ({'line' if len(at) == 1 else 'lines'} {', '.join(map(str, at[:4]))}"
        f"{', ...' if len(at) > 4 else ''}): passed over"
        for what, at in unknown.items()
    ]
    return NetText(net, lines, notes)


def shorter(text: str) -> str:
    """A message of at most a line or two."""
    return text if len(text) <= 200 else text[:197] + "..."


def _message_at(path: tuple[str, ...]) -> Any:
    """Descriptor of the message that the fields on the way lead to; None where one is unknown."""
    kind = message_class("NetParameter").DESCRIPTOR
    for field in path:
        found = kind.fields_by_name.get(field)
        kind = None if found is None else found.message_type
        if kind is None:
            return None
    return kind


def _fields(text: str) -> Iterator[tuple[tuple[str, ...], str, int]]:
    """(fields on the way, field, line) of every field of a sound text."""
    line = 1
    path: list[str] = []
    closing: list[str] = []
    name = ""  # the field whose value comes next
    for token in _TOKEN.finditer(text):
        word, kind = token.group(), token.lastgroup
        in_list = bool(closing) and closing[-1] == "]"
        if kind == "word" and not name and (word[0].isalpha() or word[0] == "_"):
            name = word
            yield tuple(path), name, line
        elif kind in ("word", "string") and not in_list:
            name = ""
        elif kind == "mark" and word in _CLOSING:
            closing.append(_CLOSING[word])
            if word != "[":
                path.append(name)
                name = ""
        elif kind == "mark" and closing and word == closing[-1]:
            closing.pop()
            ended = path.pop() if word != "]" else ""
            # a message in a list: the field's next one may follow
            name = ended if closing and closing[-1] == "]" else ""
        line += word.count("\n")
