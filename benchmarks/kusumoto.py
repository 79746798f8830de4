"""Against Kusumoto et al.'s dynamic programming on their own computational graphs.

    python benchmarks/kusumoto.py FOLDER [--program BINARY] [--time-limit 30] [--only TEXT]

FOLDER holds ``cg_*.txt`` (``computational_graphs`` of pfnet-research/recompute). BINARY is their
approximate planner, built there with ``g++ -O3 mksch/DP2.cpp mksch/dag_dp.cpp``; without it, the
least budgets that it was measured to meet are used. All memory in GB:

* by their formula: the least budget of their program, of our reading of their algorithm, and of
  ours with the wider family of lower sets (``prefixes``);
* under the simulator, on the joint graph (``ForwardGraph.joint``): the plain order, their plan at
  its least budget with its extra time, what ``solve`` makes of that same peak, and the least peak
  that ``solve`` finds with its extra time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from memcli.formats.cost_graphs.chainer_text import parse_chainer_text
from memcli.solve.base import ScheduleSettings
from memcli.solve.least_peak import least_peak
from memcli.solve.lower_sets import LowerSets
from memcli.solve.search import nothing, prepare, solve
from memcli.solve.simulator import plain_schedule, simulate

# Least budget that the authors' approximate program met, GB.
MEASURED = {
    "vgg19": 2.11,
    "unet": 5.80,
    "googlenet": 0.49,
    "resnet50": 1.31,
    "resnet152": 1.48,
    "pspnet": 1.23,
    "densenet": 1.69,
}
GB = 1e9


def their_least(program: Path, graph: bytes, high: int) -> float:
    """The least budget that the program meets, by bisection to 0.2%, GB."""
    low = 0
    while high - low > 0.002 * high:
        middle = (low + high) // 2
        run = subprocess.run([program, "-b", str(middle)], input=graph, capture_output=True)
        if b"IMPOSSIBLE" in run.stdout:
            low = middle
        else:
            high = middle
    return high / GB


def main() -> int:
    """Print the table; 1 where a least memory is not under theirs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--program", type=Path)
    parser.add_argument("--time-limit", type=float, default=30)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print(
        f"{'graph':10} {'tensors':>7} | {'theirs':>7} {'again':>7} {'wider':>7} | {'plain':>7} "
        f"{'theirs':>7} {'extra':>7} {'ours':>7} | {'least':>7} {'extra':>7} {'bound':>7} "
        f"{'seconds':>7}"
    )
    prepare()
    missed = 0
    for name, measured in MEASURED.items():
        if options.only not in name:
            continue
        started = time.monotonic()
        data = (options.folder / f"cg_{name}.txt").read_bytes()
        forward = parse_chainer_text(data, name)
        if options.program:
            measured = their_least(options.program, data, 2 * sum(forward.sizes))
        family = LowerSets(forward)
        again = family.least_budget()
        chain = family.chain(again)
        assert chain is not None
        wider = LowerSets(forward, "prefixes").least_budget()
        graph = forward.joint()
        sequence = family.schedule(chain)
        theirs = simulate(graph, np.where(sequence < 0, ~sequence, sequence))
        plain = simulate(graph, plain_schedule(graph))
        settings = ScheduleSettings(time_limit=options.time_limit, prove=False)
        same = solve(graph, theirs.peak, settings)
        lowest = least_peak(graph, settings, options.time_limit, nothing)
        cheap = solve(graph, lowest.least_peak, settings, start=lowest.least)
        base = graph.plain_seconds
        print(
            f"{name:10} {forward.n:7} | {measured:7.3f} {again / GB:7.3f} {wider / GB:7.3f} | "
            f"{plain.peak / GB:7.3f} {theirs.peak / GB:7.3f} "
            f"{100 * (theirs.seconds / base - 1):6.1f}% {100 * same.extra / base:6.1f}% | "
            f"{lowest.least_peak / GB:7.3f} {100 * cheap.extra / base:6.1f}% "
            f"{lowest.budget / GB:7.3f} {time.monotonic() - started:7.1f}",
            flush=True,
        )
        missed += lowest.least_peak / GB >= measured or wider > again
    print(f"{missed} not under theirs")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
