"""Memory against depth, of the baseline, under each system's technique, and under ``auto``.

    python benchmarks/growth.py [--only densenet|resnet] [--time-limit SECONDS] [--plot growth.svg]
                                [--log rows.jsonl] [--json]

DenseNet (growth 12, without bottlenecks, batch 64, 32 x 32; PyTorch engine) and ResNet (bottleneck
units, batch 32, 224 x 224; MXNet) are built in several depths, and planned. Memory is the
estimate, which ``seed_systems.py`` and ``verify`` measure. The exponent is the slope of a straight
line through the logarithms of depth and memory: 1 where memory is linear in depth. ``--plot``
draws both charts (needs matplotlib); ``--log`` appends rows, and leaves out what is in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from seed_commands import Workbench

from memcli.reports.console import notes_console
from memcli.reports.tables import new_table
from memcli.units import MIB

_BASELINE = "baseline"


@dataclass(frozen=True)
class Sweep:
    """A network that grows; ``techniques`` are strategies by the name that the chart gives them."""

    title: str
    network: tuple[str, ...]  # arguments of make_network.py, without the depth
    ending: str
    batch: int
    depths: tuple[int, ...]
    techniques: dict[str, str]
    plan: tuple[str, ...] = ()


SWEEPS = {
    "densenet": Sweep(
        "DenseNet, growth 12, batch 64 (PyTorch)",
        ("densenet", "--growth", "12"),
        ".onnx",
        64,
        (40, 64, 88, 112, 136, 160),
        {
            "TensorFlow: recompute-grad": "recompute-grad",
            "LuaTorch: optmemory-3": "optmemory-3",
            "LuaTorch, PyTorch: optmemory-4": "optmemory-4",
            "Caffe: caffe-dense": "caffe-dense",
            "auto": "auto",
        },
    ),
    "resnet": Sweep(
        "ResNet, batch 32 (MXNet)",
        ("resnet",),
        ".json",
        32,
        (50, 101, 152, 200, 302, 500, 752, 1001),
        {"MXNet planner: memonger": "memonger", "Chen et al.: sqrt": "sqrt", "auto": "auto"},
    ),
}


@dataclass(frozen=True)
class Row:
    """Memory of feature maps and their gradients, bytes, of one depth under one technique."""

    sweep: str
    depth: int
    technique: str
    memory: int
    again: float


def measure(
    name: str, depth: int, limit: float | None, bench: Workbench, done: Sequence[Row]
) -> list[Row]:
    """The rows of one depth that are not among ``done``."""
    sweep = SWEEPS[name]
    have = {row.technique for row in done if (row.sweep, row.depth) == (name, depth)}
    wanted = {text: s for text, s in sweep.techniques.items() if text not in have}
    if not wanted:
        return []
    model = f"{name}-{depth}{sweep.ending}"
    network, *options = sweep.network
    bench.script("make_network.py", network, "--depth", str(depth), *options, "-o", model)
    rows = []
    for technique, strategy in wanted.items():
        given = ["--batch", str(sweep.batch), "--strategy", strategy, *sweep.plan]
        if limit is not None:
            given += ["--time-limit", f"{limit:g}"]
        plan = bench.memcli("plan", model, *given)
        if _BASELINE not in have:
            rows.append(Row(name, depth, _BASELINE, plan["memory"]["baseline_bytes"], 0.0))
            have.add(_BASELINE)
        again = plan["recompute"]["fraction"]
        rows.append(Row(name, depth, technique, plan["memory"]["planned_bytes"], again))
    return rows


def exponent(rows: Sequence[Row]) -> float:
    """The slope of log memory over log depth, by least squares."""
    depths = np.log([row.depth for row in rows])
    return float(np.polyfit(depths, np.log([row.memory for row in rows]), 1)[0])


def by_technique(name: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one sweep, the smallest depth first."""
    groups: dict[str, list[Row]] = {_BASELINE: []}
    groups.update({technique: [] for technique in SWEEPS[name].techniques})
    for row in sorted(rows, key=lambda row: row.depth):
        if row.sweep == name:
            groups[row.technique].append(row)
    return {technique: group for technique, group in groups.items() if group}


def print_table(name: str, rows: Sequence[Row], console: Console) -> None:
    """Depths side by side, MiB, and the exponent."""
    groups = by_technique(name, rows)
    depths = sorted({row.depth for group in groups.values() for row in group})
    columns = [("MiB at a depth of", "left"), *((str(d), "right") for d in depths)]
    table = new_table(SWEEPS[name].title, [*columns, ("exponent", "right")])
    for technique, group in groups.items():
        at = {row.depth: row.memory for row in group}
        cells = [f"{at[d] / MIB:,.0f}" if d in at else "" for d in depths]
        slope = f"{exponent(group):.2f}" if len(group) > 1 else ""
        table.add_row(technique, *cells, slope)
    console.print(table)


def draw(rows: Sequence[Row], path: str) -> None:
    """Both sweeps side by side, memory against depth."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": "memcli", "font.size": 9.0}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9.6, 4.2))
        FigureCanvasAgg(figure)
        names = [name for name in SWEEPS if by_technique(name, rows)]
        for place, name in enumerate(names, 1):
            axes = figure.add_subplot(1, len(names), place)
            for technique, group in by_technique(name, rows).items():
                axes.plot(
                    [row.depth for row in group],
                    [row.memory / 2**30 for row in group],
                    "o-",
                    markersize=3,
                    linewidth=1.8 if technique == "auto" else 1.0,
                    label=f"{technique}: depth^{exponent(group):.2f}"
                    if len(group) > 1
                    else technique,
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            ticks = sorted({row.depth for row in rows if row.sweep == name})
            axes.set_xticks(ticks, [str(depth) for depth in ticks], rotation=45)
            axes.minorticks_off()
            axes.set_title(SWEEPS[name].title, fontsize=10)
            axes.set_xlabel("depth (layers)")
            axes.set_ylabel("feature maps and their gradients (GiB)")
            axes.grid(True, color="#e6e8eb", linewidth=0.8)
            axes.legend(fontsize=7.5, frameon=False)
        figure.tight_layout()
        plain = {"metadata": {"Date": None}} if path.endswith(".svg") else {}
        figure.savefig(path, **plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(SWEEPS))
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="of each search")
    parser.add_argument("--plot", metavar="FILE", help="draw the charts: .svg, .png")
    parser.add_argument("--log", type=Path, help="append rows, and leave out what is in it")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    options = parser.parse_args()
    rows: list[Row] = []
    if options.log and options.log.exists():
        rows = [Row(**json.loads(line)) for line in options.log.read_text().splitlines()]
    notes = notes_console()
    names = [options.only] if options.only else list(SWEEPS)
    for name in names:
        for depth in SWEEPS[name].depths:
            with tempfile.TemporaryDirectory(prefix="growth-") as folder:
                bench = Workbench(Path(folder), lambda text: notes.print(text, highlight=False))
                new = measure(name, depth, options.time_limit, bench, rows)
            rows += new
            if options.log:
                with options.log.open("a", encoding="utf-8") as log:
                    log.writelines(json.dumps(asdict(row)) + "\n" for row in new)
    if options.json:
        print(json.dumps({"schema": 1, "rows": [asdict(row) for row in rows]}))
    else:
        for name in names:
            print_table(name, rows, Console(width=120, highlight=False))
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
