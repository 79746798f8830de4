"""PyTorch's allocator and its emulation side by side: random requests, every count compared.

Run by ``test_simulated_card.py`` on the simulated card: ``fuzz_allocator.py STEPS SEED CAPACITY``.
A capacity above 0 is the card's memory in bytes, which is run out of.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys

import torch

from memcli.engines.torch.memory.cuda_allocator import CachingAllocator, OutOfMemory

steps, seed, capacity = map(int, sys.argv[1:])
draw = random.Random(seed)
ours = CachingAllocator(capacity=capacity or None)
streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
held: list[tuple[int, int]] = []  # real address, ours
refused = 0
for step in range(steps):
    if held and draw.random() < (0.48 if not capacity else 0.3):
        real, emulated = held.pop(draw.randrange(len(held)))
        torch.cuda.caching_allocator_delete(real)
        ours.free(emulated)
    elif draw.random() < 0.002:
        torch.cuda.empty_cache()
        ours.empty_cache()
    else:
        most = draw.choice([4096, 1 << 20, 3 << 20, 12 << 20, 60 << 20])
        size, stream = draw.randint(1, most), draw.randrange(len(streams))
        real = emulated = -1
        try:
            real = torch.cuda.caching_allocator_alloc(size, 0, streams[stream])
        except torch.OutOfMemoryError:
            refused += 1
        with contextlib.suppress(OutOfMemory):
            emulated = ours.allocate(size, stream)
        assert (real == -1) == (emulated == -1), f"step {step}: {size} bytes"
        if real != -1:
            held.append((real, emulated))
    stats = torch.cuda.memory_stats()
    counts = {
        "allocated_bytes": (ours.allocated, ours.allocated_peak),
        "reserved_bytes": (ours.reserved, ours.reserved_peak),
        "requested_bytes": (ours.requested, ours.requested_peak),
    }
    for name, (now, peak) in counts.items():
        assert stats[f"{name}.all.current"] == now, f"step {step}: {name}"
        assert stats[f"{name}.all.peak"] == peak, f"step {step}: peak of {name}"
print(f"{steps} steps, {refused} refused")
sys.stdout.flush()
os._exit(0)
