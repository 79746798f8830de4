"""What recomputing costs: FLOPs, roofline and measured time of every operator type.

    python benchmarks/operator_costs.py [GRAPH ...] [--batch N] [--gpu N] [--plain] [--limit 60]

GRAPH: MXNet symbols or ONNX files, timed in MXNet and in PyTorch; none: the examples. Each kind
of operator is timed alone on the engine; of symbols the sum over all nodes is set against one whole
forward pass (a ratio of 1: operators cost in a graph what they cost alone). Two ratios: of the
clock, and of processor time, which other work on the machine hardly touches. Then a row for each
operator type: its share of the forward pass by FLOPs, by roofline, and measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from memcli.engines.gpus import check_gpu
from memcli.engines.mxnet.planning import read_symbol
from memcli.engines.mxnet.record import analyze
from memcli.engines.mxnet.timing import (
    argument_dtypes,
    measure_forward_seconds,
    measure_operator_seconds,
)
from memcli.engines.operator_times import OperatorTimes
from memcli.engines.torch.memory.model import step_seconds
from memcli.engines.torch.planning import analyze_file, kind_of, read_for_training
from memcli.engines.torch.timing import measure_step_seconds
from memcli.errors import MemcliError
from memcli.formats.detect import read_source
from memcli.graph.roofline import roofline_seconds
from memcli.graph.training import TrainingGraph
from memcli.reports.tables import new_table
from memcli.request import ShapeRequest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BATCHES = {"resnet-50": 8, "densenet-201": 4, "mobilenet-v2": 16, "lstm": 64}
Floats = NDArray[np.float64]


def by_operator(graph: TrainingGraph, values: Floats) -> dict[str, float]:
    """Part of the sum of ``values`` (over forward nodes) that each operator type has, 0 to 1."""
    total = float(values.sum()) or 1.0
    shares: dict[str, float] = {}
    for v in range(graph.n_forward):
        if graph.kind[v] >= 0:
            op = graph.op(v)
            shares[op] = shares.get(op, 0.0) + float(values[v]) / total
    return shares


def correlation(a: Floats, b: Floats, operators: NDArray[np.bool_]) -> float:
    """Rank correlation (Spearman) of two costs over the operators."""
    ranks = []
    for values in (a[operators], b[operators]):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])  # equal ones share a rank
    return float(np.corrcoef(*ranks)[0, 1])


def report(path: Path, batch: int | None, device: str, onednn: bool, limit: float) -> None:
    """Print the tables of one graph."""
    console = Console(width=100, highlight=False)
    if read_source(path).format == "onnx":
        request = ShapeRequest(batch=batch)
        file, _, _ = read_for_training(str(path), False, request, [])
        step = analyze_file(file, request, kind_of(device), None)
        times = measure_step_seconds(step, device, limit_seconds=limit)
        tell(console, times)
        roofline = step_seconds(step.trace, times.machine)
        table_of(console, path, batch, step.graph, times, roofline)
        return
    source = read_symbol(str(path))
    analysis = analyze(source.raw, ShapeRequest(batch=batch))
    graph = analysis.graph
    times = measure_operator_seconds(
        graph, device, dtypes=argument_dtypes(analysis), onednn=onednn, limit_seconds=limit
    )
    clock, processor = measure_forward_seconds(source.raw, analysis, device, onednn=onednn)
    tell(console, times)
    alone, alone_processor = times.seconds.sum(), times.processor_seconds.sum()
    console.print(
        f"  operators one by one {alone:.4f} s, whole forward pass {clock:.4f} s: "
        f"ratio {alone / clock:.2f}"
    )
    if device == "cpu":
        console.print(
            f"  in processor time {alone_processor:.4f} s and {processor:.4f} s: "
            f"ratio {alone_processor / processor:.2f}"
        )
    table_of(console, path, batch, graph, times, roofline_seconds(graph, times.machine))


def tell(console: Console, times: OperatorTimes) -> None:
    """How the times were had, and what could not be timed."""
    for note in times.notes:
        console.print(f"  {note}")
    for op, why in times.failed.items():
        console.print(f"  {op}: {why}")


def table_of(
    console: Console,
    path: Path,
    batch: int | None,
    graph: TrainingGraph,
    times: OperatorTimes,
    roofline: Floats,
) -> None:
    """A row for each operator type, and how far costs agree with times."""
    flops = graph.flops[: graph.n_forward]
    measured = by_operator(graph, times.seconds)
    shares = [by_operator(graph, values) for values in (flops, roofline, times.processor_seconds)]
    table = new_table(
        f"{path.name}, batch {batch or 'of the file'}: share of the forward pass",
        [
            ("operator", "left"),
            ("nodes", "right"),
            ("FLOPs", "right"),
            ("roofline", "right"),
            ("measured", "right"),
            ("processor", "right"),
            ("ms", "right"),
        ],
    )
    for op, share in sorted(measured.items(), key=lambda item: -item[1]):
        nodes = sum(graph.op(v) == op for v in range(graph.n_forward))
        by_flops, by_roofline, by_processor = (s[op] for s in shares)
        table.add_row(
            op,
            str(nodes),
            f"{by_flops:.1%}",
            f"{by_roofline:.1%}",
            f"{share:.1%}",
            f"{by_processor:.1%}",
            f"{share * times.seconds.sum() * 1e3:,.2f}",
        )
    console.print(table)
    operators = graph.kind[: graph.n_forward] >= 0
    console.print(
        "  rank correlation with the measured times: "
        f"FLOPs {correlation(flops, times.seconds, operators):.2f}, "
        f"roofline {correlation(roofline, times.seconds, operators):.2f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("graph", nargs="*", type=Path, help="of either format; none: the examples")
    parser.add_argument("--batch", type=int, help="leading dimension, in place of the file's")
    parser.add_argument("--gpu", type=int, metavar="N", help="on this card, not the CPU")
    parser.add_argument("--plain", action="store_true", help="without oneDNN")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for timing each graph")
    options = parser.parse_args()
    device = "cpu" if options.gpu is None else f"gpu:{options.gpu}"
    jobs = [(path, options.batch) for path in options.graph] or [
        (EXAMPLES / f"{name}-symbol.json", options.batch or batch)
        for name, batch in BATCHES.items()
    ]
    try:
        onnx = {path for path, _ in jobs if read_source(path).format == "onnx"}
        if options.gpu is not None and len(onnx) < len(jobs):
            check_gpu(options.gpu)
        for path, batch in jobs:
            print(path.name, flush=True)
            report(path, batch, device, not options.plain, options.limit)
    except MemcliError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
