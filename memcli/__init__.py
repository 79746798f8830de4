"""memcli: rewrites saved model graphs so that they train in a fraction of the memory.

``from memcli import mxnet as mx`` is MXNet, ready to train; so is a plain ``import mxnet`` once
any part of memcli is imported (:mod:`memcli.mxnet_import`).
"""

from __future__ import annotations

import memcli.mxnet_import  # noqa: F401 - registers the finder
from memcli.version import __version__

TYPE_CHECKING = False  # typing itself takes longer to load than all else that loads here
if TYPE_CHECKING:
    from typing import Any

# The commands in Python (memcli.api), loaded when one is asked for.
_COMMANDS = ("plan", "verify", "inspect", "compare", "fit", "solve", "export", "strip", "load")
__all__ = [*_COMMANDS, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "mxnet":
        from memcli.engines.mxnet.shim import import_mxnet

        return import_mxnet()
    if name in _COMMANDS:
        from memcli import api

        return getattr(api, name)
    raise AttributeError(f"module 'memcli' has no attribute {name!r}")
