"""Reading plan records: JSON that has passed through other hands, so every field is checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from memcli.errors import BadInput
from memcli.formats.symbol.environment import check_environment
from memcli.quoting import shown

# Types of the inputs that a plan is made for.
DTYPES = ("float32", "float16", "float64", "bfloat16")
Check = Callable[[Any], bool]


def is_count(value: object) -> bool:
    """A whole number from 0 that fits 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def is_number(value: object) -> bool:
    """A count, or a finite float."""
    return is_count(value) or (isinstance(value, float) and math.isfinite(value))


def is_text(value: object) -> bool:
    """A string."""
    return isinstance(value, str)


def is_sha256(value: object) -> bool:
    """64 hexadecimal digits in small letters."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def list_of(item: Check) -> Check:
    """A list whose items all pass."""
    return lambda value: isinstance(value, list) and all(map(item, value))


def dict_of(item: Check, key: Callable[[str], object] = is_text) -> Check:
    """A table whose keys and values all pass."""
    return lambda value: isinstance(value, dict) and all(key(k) and item(value[k]) for k in value)


def common_fields(schema: int) -> dict[str, tuple[Check, str]]:
    """What every plan record has: for each field its check, and what it should be."""
    return {
        "schema": (lambda value: value == schema and is_count(value), f"the number {schema}"),
        "memcli_version": (is_text, "a string"),
        "strategy": (is_text, "a string"),
        "shapes": (dict_of(list_of(is_count)), "a table of lists of integers"),
        "dtype": (DTYPES.__contains__, f"one of {', '.join(DTYPES)}"),
        "environment": (lambda value: isinstance(value, dict), "a table of strings"),
        "original_name": (is_text, "a string"),
        "original_sha256": (is_sha256, "a SHA-256 of 64 hexadecimal digits"),
        "n_nodes": (is_count, "a number of nodes"),
        "memory": (dict_of(is_count), "a table of bytes"),
        "recompute": (dict_of(is_number), "a table of numbers"),
    }


def read_record(
    text: str,
    where: str,
    fields: Mapping[str, tuple[Check, str]],
    schema: int,
    mend: str,
    optional: Collection[str] = (),
) -> dict[str, Any]:
    """The fields of a record, all checked; keys that a later memcli may add are passed over.

    Args:
        text: a JSON object.
        where: the file and the place in it, for messages.
        fields: names, and what checks each.
        schema: the newest version that is understood.
        mend: what to do about a record that cannot be read.
        optional: names of fields that may be missing.

    Raises:
        BadInput: not such a text; the message begins with ``where`` and names the field.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: is not the JSON that memcli writes", mend) from error
    if not isinstance(values, dict):
        raise BadInput(f"{where}: is {shown(values)}, not an object", mend)
    written = values.get("schema")
    if isinstance(written, int) and written > schema:
        raise BadInput(
            f"{where}: was written by a newer memcli (schema {shown(written)})",
            "upgrade memcli to use this plan",
        )
    checked: dict[str, Any] = {}
    for name, (is_good, wanted) in fields.items():
        if name not in values:
            if name in optional:
                continue
            raise BadInput(f"{where}: has no '{name}'", mend)
        if not is_good(values[name]):
            raise BadInput(f"{where}: '{name}' is not {wanted}", mend)
        checked[name] = values[name]
    if "environment" in checked:
        checked["environment"] = check_environment(checked["environment"], where, mend)
    return checked
