"""Which cost chooses the faster plan: step times of plans within one budget, in pairs.

    python benchmarks/cost_choice.py [GRAPH ...] [--budget 50%] [--costs roofline,flops] [--batch N]
        [--rounds 9] [--time-limit SECONDS] [--threads N]

GRAPH: MXNet symbols; none: the examples. Each is planned once by each cost. Then one process binds
the baseline and all plans on MXNet's plain kernels (MXNET_MKLDNN_ENABLED=0) and trains a step
of each in every round, in turns. Of each plan: the median over the rounds of its step's time to
that of the baseline in the same round, by the clock and by processor time, which other work
on the machine hardly touches; and the median of the first plan's to the second's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BATCHES = {"resnet-50": 8, "densenet-201": 4, "mobilenet-v2": 16, "lstm": 64}


def measure(job: dict[str, Any]) -> list[list[tuple[float, float]]]:
    """Rounds of (clock, processor) seconds of a step of each file; the first round warms up."""
    import numpy as np

    from memcli.engines.mxnet.shim import import_mxnet

    mx = import_mxnet()
    executors = []
    for path in job["files"]:
        symbol = mx.sym.load(path)
        shapes = {k: tuple(v) for k, v in job["shapes"].items() if k in symbol.list_arguments()}
        # some losses have no gradient with respect to their labels
        trained = {n: "null" if "label" in n else "write" for n in symbol.list_arguments()}
        executor = symbol.simple_bind(mx.cpu(), grad_req=trained, **shapes)
        chance = np.random.RandomState(0)
        for name in sorted(executor.arg_dict):
            array = executor.arg_dict[name]
            array[:] = 0 if "label" in name else chance.uniform(-0.05, 0.05, array.shape)
        executors.append(executor)
    rounds = []
    for number in range(job["rounds"] + 1):
        row = []
        for executor in executors:
            began, used = time.perf_counter(), time.process_time()
            outputs = executor.forward(is_train=True)
            executor.backward([mx.nd.ones_like(output) for output in outputs])
            mx.nd.waitall()
            row.append((time.perf_counter() - began, time.process_time() - used))
        if number:
            rounds.append(row)
    return rounds


def plans(path: str, options: argparse.Namespace, batch: int | None, folder: str) -> dict[str, Any]:
    """Plan by each cost; the files, their shapes, and what each plan recomputes."""
    files, found = [path], []
    for cost in options.costs.split(","):
        out = str(Path(folder) / f"{cost}.json")
        command = [
            sys.executable,
            "-m",
            "memcli",
            "plan",
            path,
            "--budget",
            options.budget,
            "--cost",
            cost,
            "-o",
            out,
            "--force",
            "--json",
        ]
        command += ["--batch", str(batch)] if batch else []
        command += ["--time-limit", str(options.time_limit)] if options.time_limit else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        plan = json.loads(done.stdout)
        files.append(out)
        found.append(plan)
    return {"files": files, "shapes": found[0]["shapes"], "plans": found}


def report(path: str, options: argparse.Namespace, batch: int | None) -> None:
    """Print a row for each plan of one graph."""
    with tempfile.TemporaryDirectory() as folder:
        made = plans(path, options, batch, folder)
        job = {"files": made["files"], "shapes": made["shapes"], "rounds": options.rounds}
        environment = {**os.environ, "MXNET_MKLDNN_ENABLED": "0"}
        environment["OMP_NUM_THREADS"] = str(options.threads)
        done = subprocess.run(
            [sys.executable, __file__, "--measure", json.dumps(job)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    rounds = json.loads(done.stdout.splitlines()[-1])
    print(f"{Path(path).name}, batch {batch or 'of the file'}, {options.budget}")
    for number, plan in enumerate(made["plans"], 1):
        ratios = [median(row[number][k] / row[0][k] for row in rounds) for k in (0, 1)]
        memory, again = plan["memory"], plan["recompute"]["fraction"]
        print(
            f"  --cost {plan['cost']['kind']:<9} {memory['planned_bytes'] / 2**20:9,.1f} MiB, "
            f"{again:6.1%} of the FLOPs again, step {ratios[0]:.3f} (processor {ratios[1]:.3f})"
        )
    if len(made["plans"]) > 1:
        pairs = [median(row[1][k] / row[2][k] for row in rounds) for k in (0, 1)]
        print(f"  the first to the second: {pairs[0]:.3f} (processor {pairs[1]:.3f})", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("graph", nargs="*", help="MXNet symbols; none: the examples")
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--costs", default="roofline,flops")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--time-limit", type=float)
    parser.add_argument("--threads", type=int, default=1, help="of MXNet's kernels")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure))))
        return 0
    jobs = [(path, options.batch) for path in options.graph] or [
        (str(EXAMPLES / f"{name}-symbol.json"), options.batch or batch)
        for name, batch in BATCHES.items()
    ]
    for path, batch in jobs:
        report(path, options, batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
