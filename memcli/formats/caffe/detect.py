"""Telling a Caffe net definition from other text."""

from __future__ import annotations

import re
from typing import Literal

# What may come before the first field.
_BLANK = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s+|#[^\n]*)*")
_FIELD = re.compile(rb"([a-z_0-9]+)\s*(:?\s*[{<]|:)")
_BLOCK = re.compile(rb"(?:^|[\s{}])layers?\s*:?\s*[{<\[]")
_NET = {
    b"name",
    b"input",
    b"input_shape",
    b"input_dim",
    b"force_backward",
    b"state",
    b"debug_info",
    b"layer",
    b"layers",
}
_SOLVER = {
    b"net",
    b"train_net",
    b"test_net",
    b"base_lr",
    b"lr_policy",
    b"test_iter",
    b"test_interval",
    b"max_iter",
    b"solver_mode",
    b"net_param",
    b"type",
    b"iter_size",
    b"random_seed",
    b"display",
    b"momentum",
    b"weight_decay",
    b"snapshot",
    b"snapshot_prefix",
    b"gamma",
    b"power",
}


def looks_like_caffe(data: bytes) -> Literal["net", "solver"] | None:
    """Whether text begins as a net or a solver of Caffe and has what one has."""
    if b"\0" in data[:4096]:
        return None
    blank = _BLANK.match(data)
    first = _FIELD.match(data, blank.end() if blank else 0)
    if first is None:
        return None
    if first.group(1) in _NET and _BLOCK.search(data):
        return "net"
    if first.group(1) in _SOLVER and re.search(rb"(?m)^\s*(?:base_lr|(?:train_)?net)\s*:", data):
        return "solver"
    return None
