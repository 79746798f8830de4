r"""The JSON dialect of MXNet's own reader, as text.

MXNet reads symbol files with a small JSON reader of its own, which differs from the standard:
of the escapes it knows ``\" \\ \n \r \t`` and no others (a ``\u00e9`` makes the load fail),
control characters may stand in a string as they are, and what follows the graph is not looked at.
"""

from __future__ import annotations

import json
import re
from typing import Any

from memcli.errors import BadInput
from memcli.quoting import shown

# Parsing takes ten times this in memory.
LARGEST_SYMBOL_BYTES = 256 << 20
# Nodes of a graph that is planned; MXNet's joint graph of 100,000 takes two minutes and 1.5 GB.
LARGEST_SYMBOL = 200_000

_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)
_STRING_OR_SPACE = re.compile(r'"(?:[^"\\\n\r]|\\.)*"|[\v\f]', re.DOTALL)
_CONTROL = re.compile("[\x01-\x09\x0b\x0c\x0e-\x1f]")
# json.dumps breaks each list over lines; only a list of plain integers looks like this, since
# no string has a line break of its own.
_BROKEN_NUMBERS = re.compile(r"\[\n\s+(-?\d+(?:,\n\s+-?\d+)*)\n\s+\]")


def parse_symbol_text(data: bytes, name: str) -> dict[str, Any]:
    """Read a symbol's JSON as MXNet does.

    Args:
        data: the file's content.
        name: of the file; begins each message.

    Raises:
        BadInput: not UTF-8, not JSON, an escape that MXNet does not know, or far too large.
    """
    if len(data) > LARGEST_SYMBOL_BYTES:
        raise BadInput(
            f"{name}: is {len(data) >> 20} MiB of text, more than any symbol graph",
            "is it the right file?",
        )
    # told before all is parsed: every node has this key, and hardly anything else
    refuse_too_large(data.count(b'"op"'), name)
    if data.startswith(b"\xef\xbb\xbf"):
        raise BadInput(
            f"{name}: begins with a byte order mark, which MXNet does not read",
            "save it as UTF-8 without one",
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{name}: byte {error.start} ({data[error.start]:#04x}) is not UTF-8 text",
            "the file is damaged, or saved in another encoding",
        ) from error
    _check_escapes(text, name)
    value = _decode(text, name)
    if not isinstance(value, dict):
        raise BadInput(f"{name}: holds {shown(value)}, not an object with 'nodes' and 'heads'")
    return value


def refuse_too_large(nodes: int, name: str) -> None:
    """Raises BadInput for a graph of more nodes than memcli plans."""
    if nodes > LARGEST_SYMBOL:
        raise BadInput(
            f"{name}: has {nodes} nodes; memcli plans symbols of up to {LARGEST_SYMBOL}",
            "plan a part of the network, or fewer of its steps",
        )


def symbol_text(value: dict[str, Any], *, indent: int | None = 2) -> bytes:
    """Write JSON that MXNet reads: UTF-8, no Unicode escapes.

    Args:
        value: the symbol's content.
        indent: in blanks; None: one line, in a fifth of the time.
    """
    if indent is None:
        separators = (",", ":")
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=separators)
    else:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
        text = _BROKEN_NUMBERS.sub(lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    if "\\u00" in text or "\\b" in text or "\\f" in text:
        text = _ESCAPE_WRITTEN.sub(_unescape, text)
    return (text + "\n").encode("utf-8")


_ESCAPE_WRITTEN = re.compile(r"\\(?:u00([0-9a-f]{2})|.)", re.DOTALL)


def _unescape(match: re.Match[str]) -> str:
    """Control characters that json.dumps escapes and MXNet wants as they are."""
    if match[1]:
        return chr(int(match[1], 16))
    return {"\\b": "\b", "\\f": "\f"}.get(match[0], match[0])


def _decode(text: str, name: str) -> Any:
    decoder = json.JSONDecoder()
    try:
        try:
            # What follows the graph is left unread, as MXNet does.
            return decoder.raw_decode(text, _skip_blanks(text))[0]
        except json.JSONDecodeError as error:
            usual = _as_standard_json(text)
            if usual == text:
                raise
            try:
                return decoder.raw_decode(usual, _skip_blanks(usual))[0]
            except json.JSONDecodeError:
                # Positions in the rewritten text are not those of the file.
                raise error from None
    except json.JSONDecodeError as error:
        raise _not_json(error, name) from error
    except RecursionError as error:
        raise BadInput(f"{name}: lists or objects are nested too deeply for a graph") from error
    except (ValueError, MemoryError, OverflowError) as error:
        # An integer of thousands of digits.
        raise BadInput(f"{name}: holds a number or a text that is absurdly large") from error


def _as_standard_json(text: str) -> str:
    """Escapes the control characters that MXNet takes as they are."""

    def escaped(match: re.Match[str]) -> str:
        if not match[0].startswith('"'):
            return " "
        return _CONTROL.sub(lambda m: f"\\u{ord(m[0]):04x}", match[0])

    return _STRING_OR_SPACE.sub(escaped, text)


def _skip_blanks(text: str) -> int:
    return len(text) - len(text.lstrip(" \t\n\r"))


def _not_json(error: json.JSONDecodeError, name: str) -> BadInput:
    place = f"line {error.lineno}, column {error.colno}"
    if not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string"):
        return BadInput(
            f"{name}: {place}: the JSON breaks off there",
            "the file is cut short: copy or download it again",
        )
    return BadInput(f"{name}: {place}: is not valid JSON: {error.msg.lower()}")


def _check_escapes(text: str, name: str) -> None:
    for match in _ESCAPE.finditer(text):
        if match[1] in '"\\nrt' and match[1]:
            continue
        line = text.count("\n", 0, match.start()) + 1
        column = match.start() - text.rfind("\n", 0, match.start())
        if not match[1]:
            raise BadInput(f"{name}: line {line}, column {column}: the JSON breaks off there")
        raise BadInput(
            f"{name}: line {line}, column {column}: MXNet cannot load the escape {match[0]!a}",
            'MXNet knows \\" \\\\ \\n \\r \\t alone; write other characters as UTF-8',
        )
