"""Stock MXNet, with nothing of memcli: loads a symbol file, binds it, and says what it allocates.

    python stock.py FILE SHAPES-JSON [TYPES-JSON]

Run in a process of its own by the tests. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys

import numpy

for _old, _new in (("bool", bool), ("object", object), ("int", int), ("float", float)):
    if _old not in numpy.__dict__:
        setattr(numpy, _old, _new)

import mxnet as mx  # noqa: E402


def main() -> None:
    symbol = mx.sym.load(sys.argv[1])
    shapes = {k: tuple(v) for k, v in json.loads(sys.argv[2]).items()}
    types = json.loads(sys.argv[3]) if len(sys.argv) > 3 else None
    if types is not None:
        known, _, _ = symbol.infer_type(**types)
        types = dict(zip(symbol.list_arguments(), known))  # noqa: B905 - any Python
    executor = symbol.simple_bind(mx.cpu(), grad_req="write", type_dict=types, **shapes)
    text = executor.debug_str()
    total = next(line for line in text.splitlines() if "MB allocated" in line)
    marks = symbol.attr_dict()
    print(
        json.dumps(
            {
                "total_mb": int(total.split()[1]),
                "mirrored": text.count("_mirror\n"),
                "arguments": symbol.list_arguments(),
                "outputs": symbol.list_outputs(),
                "states": symbol.list_auxiliary_states(),
                "marked": sum("__force_mirroring__" in a for a in marks.values()),
            }
        )
    )


main()
