"""The largest batch that fits, asking about as few batches as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable

_LARGEST_BATCH = 1 << 31


def largest(
    need: Callable[[int], int | None],
    available: int,
    *,
    seen: Iterable[int] = (),
    guess: int | None = None,
) -> int:
    """A batch that fits with the next one that does not; 0 where batch 1 does not fit.

    The steps double, or go where the line through what is known points to, then halve the rest. The
    returned batch was seen to fit and the next one seen not to, so the answer does not rest on
    memory growing with the batch. Where it does not grow (a greedy pool may need less for a larger
    batch), a still larger batch that fits is not ruled out.

    Args:
        need: bytes of a batch, None where it cannot be had.
        available: bytes.
        seen: batches that cost little to look at.
        guess: where to begin beyond them, by default where they point to.
    """
    known: dict[int, int | None] = {}

    def fits(batch: int) -> bool:
        if batch not in known:
            known[batch] = need(batch)
        size = known[batch]
        return size is not None and size <= available

    low = max((batch for batch in seen if fits(batch)), default=0)
    high = min((batch for batch in known if batch > low), default=_LARGEST_BATCH + 1)
    turn = 0
    while high - low > 1:
        trial = _next_trial(known, low, high, available, turn)
        if turn == 0 and guess is not None:
            trial = guess
        trial = min(max(trial, low + 1), high - 1)
        if fits(trial):
            low = trial
        else:
            high = trial
        turn += 1
    return low


def _next_trial(
    known: dict[int, int | None], low: int, high: int, available: int, turn: int
) -> int:
    """Where the line through what is known meets the memory; the middle where that is no help."""
    bounded = high <= _LARGEST_BATCH
    middle = (low + high) // 2 if bounded else max(2 * low, 1)
    sized = {batch: size for batch, size in known.items() if size is not None}
    if len(sized) < 2 or (turn > 5 and turn % 2):
        # on a curve the line alone may close in from one side, a step at a time
        return middle
    near = min(sized, key=lambda batch: abs(sized[batch] - available))
    # of two neighbours the rounding of blocks would tell more than the batch
    apart = [batch for batch in sized if abs(batch - near) > near // 8]
    other = min(
        apart or [batch for batch in sized if batch != near],
        key=lambda batch: abs(sized[batch] - available),
    )
    slope = (sized[other] - sized[near]) / (other - near)
    if slope <= 0:
        return middle
    target = int(near + (available - sized[near]) / slope)
    if bounded and target >= high and high not in sized:
        # the line says nothing of where batches begin to be refused: is it here, or where?
        return middle if turn % 2 else high - 1
    return target if bounded else min(target, 64 * max(low, 1))
