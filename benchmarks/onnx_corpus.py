"""Plans and verifies a folder of ONNX files in PyTorch on the CPU.

    python benchmarks/onnx_corpus.py FOLDER [--only GLOB ...] [--batch 2] [--shape NAME=D,D ...]
                                     [--time-limit 5] [--log rows.jsonl]

For each file ``memcli plan FILE --as-training --measure``: one real training step of the graph as
saved and of the planned one, each in a process of its own, with made-up weights where the file has
none. Columns: memory, baseline and planned, by the model (MiB), the same measured, how far the
estimate is off, what is recomputed, how many outputs, gradients and states are equal to the bit.
What is refused is listed with the reason. Rows are appended to ``--log``, to go on from there.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def check(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One file's row."""
    row: dict[str, Any] = {"path": path.name}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "memcli",
            "plan",
            str(path),
            "-o",
            f"{folder}/p.onnx",
            "--json",
            "--as-training",
            "--measure",
            "--time-limit",
            str(options.time_limit),
        ]
        shapes = [f"--shape={s}" for s in options.shape]
        batch = ["--batch", str(options.batch)]
        done = subprocess.run([*command, *batch, *shapes], capture_output=True, text=True)
        if done.returncode == 2:
            # the batch may be written into the graph
            done = subprocess.run([*command, *shapes], capture_output=True, text=True)
    if done.returncode > 1 or not done.stdout.strip():
        said = [line for line in done.stderr.splitlines() if not line.startswith("planning:")]
        said = [line for line in said if not line.startswith(("verifying:", "note:"))]
        return row | {"status": done.returncode, "problem": " ".join(said)[:300]}
    plan = json.loads(done.stdout)
    verified = plan["verify"]
    equal = {
        part: (verified[part]["bit_equal"], verified[part]["compared"])
        for part in ("outputs", "gradients", "states")
    }
    return row | {
        "status": done.returncode,
        "steps": plan["model"]["operators"],
        "ok": verified["ok"],
        "baseline": verified["baseline"],
        "planned": verified["planned"],
        "recompute": plan["recompute"]["fraction"],
        "bound": plan["memory"]["lower_bound_bytes"],
        "equal": equal,
        "nonfinite": [n for n in verified["notes"] if "NaN" in n],
    }


def shown(row: dict[str, Any]) -> str:
    """A row as a line."""
    name = f"{row['path'][:44]:44}"
    if "problem" in row:
        return f"{name} refused ({row['status']}): {row['problem'][:160]}"
    sizes = []
    for part in ("baseline", "planned"):
        run = row[part]
        off = run["estimated_bytes"] / max(1, run["measured_bytes"]) - 1
        estimated, measured = run["estimated_bytes"] / 2**20, run["measured_bytes"] / 2**20
        sizes.append(f"{estimated:8.1f} {measured:8.1f} {off:+6.2%}")
    good = sum(a for a, _ in row["equal"].values())
    all_of = sum(b for _, b in row["equal"].values())
    note = "  NaN" if row["nonfinite"] else ""
    return f"{name} {' '.join(sizes)} {row['recompute']:5.0%} {good:5}/{all_of}{note}"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--time-limit", type=float, default=5)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    rows = []
    if options.log and options.log.exists():
        rows = [json.loads(line) for line in options.log.read_text().splitlines()]
    have = {row["path"] for row in rows}
    print(
        f"{'file':44} {'saved est':>8} {'meas':>8} {'off':>6} {'plan est':>8} {'meas':>8} "
        f"{'off':>6} again equal"
    )
    for row in rows:
        print(shown(row))
    for path in sorted(options.folder.glob("*.onnx")):
        if path.name in have or (
            options.only and not any(fnmatch.fnmatch(path.name, glob) for glob in options.only)
        ):
            continue
        row = check(path, options)
        rows.append(row)
        print(shown(row), flush=True)
        if options.log:
            with options.log.open("a") as log:
                log.write(json.dumps(row) + "\n")
    planned = [row for row in rows if "problem" not in row]
    verified = [row for row in planned if row["ok"]]
    parts = sorted(
        r["planned"]["measured_bytes"] / r["baseline"]["measured_bytes"] for r in planned
    )
    print(f"\n{len(rows)} files: {len(planned)} planned, {len(verified)} verified to the bit")
    if parts:
        print(f"memory under the plan, median: {parts[len(parts) // 2]:.0%} of the baseline")


if __name__ == "__main__":
    main()
