"""How many training steps are timed where nobody says how many."""

from __future__ import annotations

# A median of fewer says little.
LEAST = 3
_MOST = 5
# What timing may take, in seconds: LEAST steps of up to 5 s, _MOST of up to 0.6 s.
_LEAST_BUDGET = 15.0
_MOST_BUDGET = 3.0


def steps_to_time(asked: int | None, first_seconds: float) -> int:
    """How many steps are timed after a warm-up step that took ``first_seconds``.

    Args:
        asked: what the user says; None: as many as a few seconds allow.
        first_seconds: of the warm-up step.

    Returns:
        ``asked``, or LEAST to 5; 0 where LEAST steps would take longer than some seconds.
    """
    if asked is not None:
        return max(0, asked)
    if _MOST * first_seconds <= _MOST_BUDGET:
        return _MOST
    return LEAST if LEAST * first_seconds <= _LEAST_BUDGET else 0
