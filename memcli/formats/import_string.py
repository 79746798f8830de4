"""Models that are built by the user's own code: ``package.module:function`` in a file's place."""

from __future__ import annotations

import os
import re

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
# Where the engine is that calls the function: loaded when a model is named so.
BUILDER = "memcli.engines.torch.building:built_source"


def is_import_string(model: str) -> bool:
    """Whether a model is named by a function: of that form, and no file of that name is there."""
    return _FORM.fullmatch(model) is not None and not os.path.lexists(model)
