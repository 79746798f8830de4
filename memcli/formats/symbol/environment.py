"""Environment variables that a plan's record may name: those that memcli itself writes.

A record travels in a file that others may have made, and its variables are set in the engine's
process. A name such as ``MXNET_LIBRARY_PATH`` or ``LD_PRELOAD`` would load the author's code
there, so nothing passes that is not on this list, in the form in which memcli writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from memcli.errors import BadInput
from memcli.quoting import shown

_COUNT = re.compile("[1-9][0-9]{0,9}", re.ASCII)
# {variable: the least and the most that it may be}; decimal digits alone, without leading zeros.
ALLOWED: Mapping[str, tuple[int, int]] = {
    "NNVM_EXEC_MATCH_RANGE": (1, 2**31 - 1),
    "MXNET_EXEC_INPLACE_GRAD_SUM_CAP": (1, 2**16),
    "MXNET_MKLDNN_ENABLED": (0, 1),
    "MXNET_USE_MKLDNN_RNN": (0, 1),
}


def check_environment(values: object, where: str, mend: str = "") -> dict[str, str]:
    """The variables of a plan's record, all of them known and of the form that memcli writes.

    Args:
        values: what the record has.
        where: begins the messages: the file, and the place in it.
        mend: what to do about a record that is refused.

    Raises:
        BadInput: no table of texts, a variable that is not on the list, or a value that memcli
            would not have written.
    """
    if not isinstance(values, dict):
        raise BadInput(f"{where}: 'environment' is {shown(values)}, not a table of strings", mend)
    for name, value in values.items():
        if name not in ALLOWED:
            raise BadInput(
                f"{where}: 'environment' has {shown(name)}, a variable that no plan of memcli sets",
                f"{mend}; run nothing with it unless you trust where the file comes from",
            )
        least, most = ALLOWED[name]
        digits = isinstance(value, str) and (value == "0" or _COUNT.fullmatch(value))
        if not digits or not least <= int(value) <= most:
            raise BadInput(
                f"{where}: 'environment' has {name}={shown(value)}, which is no whole number "
                f"from {least} to {most}",
                mend,
            )
    return dict(values)
