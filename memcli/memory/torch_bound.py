"""What no plan of a PyTorch step can get under."""

from __future__ import annotations

import numpy as np

from memcli.memory import torch_trace as events
from memcli.memory.torch_trace import Trace


def torch_bound(trace: Trace, block: int = 1) -> int:
    """Bytes that are alive at once whatever is recomputed.

    In the forward pass: what is still to be read by it. In the backward pass: what autograd has
    asked for and not let go of. In both: temporaries and gradients, which no plan changes, and the
    graph's outputs. A tensor that has another size when it is recomputed counts with the smaller.
    ``block``: every storage is rounded up to a multiple of it.
    """

    def rounded(sizes: np.ndarray) -> list[int]:  # type: ignore[type-arg]
        return [int(x) for x in -(-sizes // block) * block]

    sizes = rounded(np.minimum(trace.storage_bytes, trace.again_bytes))
    first_sizes = rounded(trace.storage_bytes)
    change = rounded(trace.event_bytes)
    handle_storage = trace.handle_storage.tolist()
    auxiliary = trace.auxiliary.tolist()
    needed: dict[int, int] = {}  # reasons for which a storage has to be there
    live = peak = 0
    again = False

    def need(storage: int) -> None:
        nonlocal live
        needed[storage] = needed.get(storage, 0) + 1
        if needed[storage] == 1:
            live += sizes[storage]

    def release(storage: int) -> None:
        nonlocal live
        if storage in needed:
            needed[storage] -= 1
            if not needed[storage]:
                del needed[storage]
                live -= sizes[storage]

    asked: set[int] = set()
    for kind, number, size in zip(
        trace.kinds.tolist(), trace.numbers.tolist(), change, strict=True
    ):
        if kind in (events.AGAIN, events.AGAIN_END):
            again = kind == events.AGAIN
        elif again:
            continue  # what a second run would take: no plan has to
        elif kind == events.ALLOCATED:
            live += size
        elif kind == events.FREED:
            live -= size
        elif kind == events.END:
            made = range(int(trace.first[number]), int(trace.first[number + 1]))
            # tensors of the call that turn out to be its results were counted by it
            live -= sum(first_sizes[s] for s in made)
            for storage in made:
                if not auxiliary[storage]:
                    need(storage)
        elif kind == events.OUTPUT:
            need(number)
        elif kind == events.UNUSED:
            if not auxiliary[number]:
                release(number)
        elif kind == events.UNPACKED:
            if number not in asked:
                asked.add(number)
                need(handle_storage[number])
        elif kind in (events.DONE, events.GONE) and number in asked:
            asked.discard(number)
            release(handle_storage[number])
        peak = max(peak, live)
    return peak
