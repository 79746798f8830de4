"""How large a training step is: its batch, its memory, and the same step at another batch."""

from __future__ import annotations

from memcli.engines.mxnet.record import Analysis


def needed_bytes(analysis: Analysis) -> int:
    """What a verifying process takes at most: pool, parameters twice, and a copy to compare."""
    pool = analysis.model.evaluate(analysis.model.none()).pool_bytes
    arguments = sum(a["bytes"] for a in analysis.arguments)
    largest = max((a["bytes"] for a in analysis.arguments), default=0)
    return pool + 2 * arguments + analysis.state_bytes + 2 * largest + (400 << 20)


def batch_of(analysis: Analysis) -> int:
    """The leading dimension of the first input."""
    roles = {a["name"]: a["role"] for a in analysis.arguments}
    leading = [s[0] for n, s in analysis.inputs.items() if roles.get(n) == "input" and s]
    return leading[0] if leading else 1
