"""memcli's plans beside PyTorch's own ways to save memory, in one run on one device.

    python benchmarks/torch_peers.py [--device cpu|cuda:0] [--small] [--only NETWORK ...]
                                     [--batch NETWORK=N ...] [--budget B ...] [--no-compile]
                                     [--repeat 7] [--time-limit SECONDS] [--log rows.json]

Each peer's row is followed by two of memcli: a plan whose measured peak is no higher than the
peer's (its time is to be compared), and the least memory at no more recomputation than the peer's,
or than its step time allows where a compiler hides what it recomputes (its peak is to be compared).
Peak: live bytes of one step without parameters, their gradients, states and inputs. Again: FLOPs
of matrix products, convolutions and attention beyond the plain step's, in percent of its forward
pass; in brackets with one for each element that any other operator makes. Time: median of steps
that were run in turns. Equal: gradients and states with the plain step's bits (a checkpoint updates
BatchNorm's statistics twice; what a compiler makes of a network rounds otherwise).
The default sizes are for a GPU; --small takes tiny ones. One thread on the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch_measure import Bench, Measured, typical
from torch_methods import Method, Planner, checkpointed, compiled, plain, selective
from torch_networks import SIZES, SMALL, Size, make_network

from memcli.engines.torch.step import device_of, make_deterministic
from memcli.errors import MemcliError
from memcli.reports.tables import mib, new_table

BUDGETS = [1.0, 0.5, 0.2]
SMALL_BUDGETS = [0.5]
# Two medians this close are the same time.
_SAME_TIME = 1.03
_AT_MEMORY, _AT_WORK = "memcli, its memory", "memcli, its work"


@dataclass
class Point:
    """A peer, and memcli where the peer is."""

    peer: Method
    at_memory: Method | None = None
    at_work: Method | None = None

    @property
    def methods(self) -> list[Method]:
        return [m for m in (self.peer, self.at_memory, self.at_work) if m is not None]

    @property
    def no_more_time(self) -> bool:
        """Whether memcli at the peer's memory takes no more time."""
        peer, own = self.peer.measured, self.at_memory and self.at_memory.measured
        assert peer is not None
        return (
            own is not None and own.peak <= peer.peak and (own.seconds <= _SAME_TIME * peer.seconds)
        )

    @property
    def no_more_memory(self) -> bool:
        """Whether memcli at the peer's recomputation or time takes no more memory."""
        peer, own = self.peer.measured, self.at_work and self.at_work.measured
        assert peer is not None
        return own is not None and own.peak <= peer.peak

    @property
    def nor_time(self) -> bool:
        """Whether that plan takes no more time, either."""
        peer, own = self.peer.measured, self.at_work and self.at_work.measured
        assert peer is not None
        return (
            self.no_more_memory and own is not None and (own.seconds <= _SAME_TIME * peer.seconds)
        )


def compare(name: str, size: Size, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """One network: prints its table, gives its rows."""
    network, inputs = make_network(name, size, device=options.device)
    bench = Bench(network, inputs)
    base = plain(network, inputs)
    assert base.step is not None
    base.step().backward()
    bench.expect(base.step)
    base.measured = bench.measure(base.step)
    peers = [checkpointed(network, inputs), selective(network, inputs)]
    if not options.no_compile:
        peers += compiled(network, inputs, options.budget, bench)
    running = [m for m in peers if m.step is not None]
    for peer in running:
        assert peer.step is not None
        peer.measured = bench.measure(peer.step)
    planner = Planner(network, inputs, options.time_limit)
    points = [Point(peer) for peer in running]
    first = time_all(bench, [base, *running], max(3, options.repeat // 2))
    for point in points:
        plan_at(point, base, planner, bench, options)
    if options.repeat:
        # the plans and the peers in turns, for all to see the same machine
        everything = [base, *(m for p in points for m in p.methods if m.step is not None)]
        time_all(bench, everything, options.repeat)
    print_table(name, size, base, points, [m for m in peers if m.step is None], console)
    count = len(points)
    summary = {
        "points": count,
        "no_more_time": sum(p.no_more_time for p in points),
        "no_more_memory": sum(p.no_more_memory for p in points),
        "nor_time": sum(p.nor_time for p in points),
    }
    console.print(
        f"{name}: at the peers' memory memcli takes no more time at {summary['no_more_time']} of "
        f"{count} points; at their recomputation or time no more memory at "
        f"{summary['no_more_memory']} of {count} (and no more time at {summary['nor_time']}).\n"
    )
    return {
        "network": name,
        "batch": size.batch,
        "device": str(bench.device),
        "estimated_plain_peak": planner.plain.pool_bytes,
        "plain": asdict(base.measured),
        "first_times": first,
        "points": [_row(p) for p in points],
        "left_out": {m.label: m.problem for m in peers if m.step is None},
        "summary": summary,
    }


def _row(point: Point) -> dict[str, Any]:
    def shown(method: Method | None) -> dict[str, Any] | None:
        if method is None:
            return None
        if method.measured is None:
            return {"problem": method.problem}
        return asdict(method.measured)

    return {
        "peer": point.peer.label,
        "measured": shown(point.peer),
        "memcli_at_memory": shown(point.at_memory),
        "memcli_at_work": shown(point.at_work),
    }


def time_all(bench: Bench, methods: Sequence[Method], repeats: int) -> dict[str, float]:
    """Fills in the medians; gives them by label."""
    times = bench.time([m.step for m in methods if m.step is not None], repeats)
    for method, taken in zip(methods, times, strict=True):
        assert method.measured is not None
        method.measured.times = taken
        method.measured.seconds = typical(taken)
    return {m.label: m.measured.seconds for m in methods if m.measured is not None}


def plan_at(
    point: Point, base: Method, planner: Planner, bench: Bench, options: argparse.Namespace
) -> None:
    """Plans at the peer's memory and at its recomputation, measured."""
    peer, whole = point.peer.measured, base.measured
    assert peer is not None and whole is not None
    budget = min(peer.peak, planner.plain.pool_bytes)
    for _ in range(3):
        method, _ = planner.plan(_AT_MEMORY, budget=budget)
        point.at_memory = measured(method, bench)
        over = 0 if method.measured is None else method.measured.peak - peer.peak
        if over <= 0:
            break
        # what is outside the model (workspaces of the libraries, say) comes off the budget
        budget -= over
    allowed = (peer.work - whole.work) / max(1.0, whole.forward_work)
    label = _AT_WORK
    if point.peer.compiled and bench.device.type == "cuda":
        # fused kernels cannot be counted; a forward pass is about a third of a step
        allowed = 3 * (peer.seconds / whole.seconds - 1)
        label = "memcli, its time"
    elif point.peer.compiled:
        # what it recomputes in fused kernels is not told apart: all of them, once
        cheap = 1 - whole.forward_flops / max(1.0, whole.forward_work)
        allowed = (peer.flops - whole.flops) / max(1.0, whole.forward_work) + cheap
    if allowed < 0:
        point.at_work = Method(label, None, "the peer is faster than the plain step")
        return
    method, _ = planner.plan(label, max_recompute=allowed)
    point.at_work = measured(method, bench)


def measured(method: Method, bench: Bench) -> Method:
    """The method with its measurement, after a step that warms up."""
    if method.step is not None:
        bench.fresh()
        method.step().backward()
        method.measured = bench.measure(method.step)
    return method


def print_table(
    name: str,
    size: Size,
    base: Method,
    points: Sequence[Point],
    left_out: Sequence[Method],
    console: Console,
) -> None:
    """The rows; what did not run below them."""
    whole = base.measured
    assert whole is not None
    table = new_table(
        f"{name}, batch {size.batch} of {'x'.join(map(str, size.input))}",
        [
            ("method", "left"),
            ("peak MiB", "right"),
            ("of plain", "right"),
            ("again", "right"),
            ("ms", "right"),
            ("of plain", "right"),
            ("gradients =", "right"),
            ("states =", "right"),
        ],
    )
    for method in [base, *(m for p in points for m in p.methods)]:
        own = method.label.startswith("memcli")
        label = f"  {method.label}" if own else method.label
        if method.measured is None:
            table.add_row(label, "-", "", "", "", "", "", "")
        else:
            table.add_row(label, *_cells(method.measured, whole, method.compiled))
    console.print(table)
    missing = [m for p in points for m in p.methods if m.measured is None]
    for method in [*left_out, *missing]:
        console.print(f"{method.label}: {method.problem}", markup=False)


def _cells(one: Measured, whole: Measured, hidden: bool) -> list[str]:
    flops = (one.flops - whole.flops) / max(1.0, whole.forward_flops)
    work = (one.work - whole.work) / max(1.0, whole.forward_work)
    again = f"{flops:.0%}" if hidden else f"{flops:.0%} ({work:.0%})"
    return [
        mib(one.peak),
        f"{one.peak / whole.peak:.0%}",
        again,
        f"{1000 * one.seconds:.1f}",
        f"{one.seconds / whole.seconds:.0%}",
        f"{one.gradients[0]}/{one.gradients[1]}",
        f"{one.states[0]}/{one.states[1]}",
    ]


def parsed() -> argparse.Namespace:
    """The options, with defaults of the size that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--small", action="store_true", help="tiny networks")
    parser.add_argument("--only", action="append", choices=list(SIZES))
    parser.add_argument("--batch", action="append", default=[], metavar="NETWORK=N")
    parser.add_argument("--budget", action="append", type=float, help="of torch.compile, 0 to 1")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--repeat", type=int, default=7, help="steps that are timed")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="of each plan's search")
    parser.add_argument("--log", type=Path, help="write all figures as JSON")
    options = parser.parse_args()
    options.budget = options.budget or (SMALL_BUDGETS if options.small else BUDGETS)
    if options.time_limit is None:
        options.time_limit = 1.5 if options.small else 10.0
    return options


def main() -> None:
    """Parse, run, print."""
    options = parsed()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)  # kernels without a fixed order
    try:
        device = device_of(options.device.replace("cuda", "gpu"))
    except MemcliError as error:
        sys.exit(f"{error}")
    make_deterministic(device)
    sizes = dict(SMALL if options.small else SIZES)
    for text in options.batch:
        name, _, number = text.partition("=")
        if name not in sizes or not number.isdigit() or int(number) < 1:
            sys.exit(f"--batch {text}: write it like resnet-50=16")
        sizes[name] = replace(sizes[name], batch=int(number))
    console = Console(width=100, highlight=False)
    what = "CPU, 1 thread" if device.type == "cpu" else torch.cuda.get_device_name(device)
    console.print(f"PyTorch {torch.__version__}, {what}\n")
    rows = []
    for name in options.only or list(sizes):
        try:
            rows.append(compare(name, sizes[name], options, console))
        except torch.OutOfMemoryError:
            batch = sizes[name].batch
            console.print(f"{name}: batch {batch} does not fit; give --batch {name}=N\n")
            continue
        if options.log:
            options.log.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
