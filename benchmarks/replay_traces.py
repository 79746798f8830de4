"""Replays recorded events of PyTorch's CUDA allocator through memcli's emulation of it.

    python benchmarks/replay_traces.py FOLDER

Each ``*.json`` or ``*.json.gz`` file of the folder holds a recording of a real card: the events
``[action, address, bytes, stream]`` and the segments at the end, as
``torch.cuda.memory._snapshot()`` has them. Printed for each: how many allocations went to the
address, and how many new segments were taken, where the rules of
``memcli/engines/torch/memory/cuda_allocator.py`` say. Status 1: one did not; 2: a file is no
recording, or there is none.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from memcli.engines.torch.memory.recorded import BadRecording, replay_recording

_MOST_BYTES = 1 << 30  # of one file, unpacked


def read(path: Path) -> Any:
    """The content of a recording's file.

    Raises:
        BadRecording: it is not JSON, or too long.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise BadRecording(f"longer than {_MOST_BYTES} bytes")
        return json.loads(text)
    except (OSError, EOFError, zlib.error, RecursionError, MemoryError) as error:
        raise BadRecording(f"cannot be read: {error or type(error).__name__}") from error
    except ValueError as error:
        raise BadRecording(f"not JSON: {str(error)[:200]}") from error


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if folder.is_file():
        paths = [folder]
    elif folder.is_dir():
        paths = sorted(p for p in folder.rglob("*") if p.name.endswith((".json", ".json.gz")))
    else:
        print(f"{folder}: no such folder", file=sys.stderr)
        return 2
    if not paths:
        print(f"{folder}: no recording (*.json, *.json.gz)", file=sys.stderr)
        return 2
    status = 0
    print(f"{'file':44} {'allocations':>13} {'segments':>11} {'allocated':>10} {'reserved':>10}")
    for path in paths:
        began = time.perf_counter()
        try:
            found = replay_recording(read(path))
        except BadRecording as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            status = 2
            continue
        name = path.name.removesuffix(".gz").removesuffix(".json").removesuffix("_snapshot")
        print(
            f"{name:44.44} {found.exact:>6}/{found.allocations:<6}"
            f" {found.exact_segments:>5}/{found.segments:<5}"
            f" {found.allocated_peak / 2**20:>10.1f} {found.reserved_peak / 2**20:>10.1f}"
            f"  {time.perf_counter() - began:.1f} s"
            + (f", {found.inferred} of the start inferred" if found.inferred else "")
        )
        for miss in found.misses:
            print(f"    {miss}")
        if not found.ok:
            status = max(status, 1)
    return status


if __name__ == "__main__":
    sys.exit(main())
