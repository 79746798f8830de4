"""Step times of a network without a plan and under several plans, in turns in one process.

    python benchmarks/step_times.py MODEL.onnx PLANNED.onnx ... [--batch N] [--rounds 7] [--json]

Processes that run one after another differ by more than many a plan costs. Here every round trains
a step of each file, so that all of them see the same machine: a plan's ratio is the median over the
rounds of its step's time to that of MODEL in the same round. Plans are those that the files carry;
MODEL is trained without one, for the shapes of the first plan. On the CPU, or with ``--gpu N`` on
a card.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from torch import Tensor
from torch_measure import time_in_turns

import memcli.torch
from memcli.engines.torch.convert.onnx_graph import FreeInput
from memcli.engines.torch.inputs import input_values
from memcli.engines.torch.loss import training_loss
from memcli.engines.torch.tracking import training_step
from memcli.reports.console import progress_bar
from memcli.reports.tables import new_table
from memcli.torch.plans import read_planned

Shapes = dict[str, tuple[int, ...]]


def shapes_for(planned: str, batch: int | None) -> Shapes:
    """The shapes of a plan, with another leading dimension where one is asked for."""
    plan = read_planned(planned).plan
    assert plan is not None
    shapes = {name: tuple(shape) for name, shape in plan.shapes.items()}
    if batch is None:
        return shapes
    return {name: (batch, *shape[1:]) if shape else shape for name, shape in shapes.items()}


def step_of(path: str, plan: bool, shapes: Shapes, device: torch.device) -> Callable[[], None]:
    """A training step of the file on inputs that are the same for all files."""
    module = memcli.torch.load(path, weights="random", shapes=shapes, device=device, plan=plan)
    wanted = [
        FreeInput(v.name, v.name, shapes[v.name], getattr(torch, v.dtype))
        for v in read_planned(path, required=False).file.inputs
    ]
    inputs: list[Tensor] = [value.to(device) for value in input_values(wanted, 0)]

    def step() -> None:
        module.zero_grad(set_to_none=True)
        training_step(module, inputs, training_loss)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="the baseline")
    parser.add_argument("planned", nargs="+")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gpu", type=int, help="number of the card; default: the CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    options = parser.parse_args()
    device = torch.device("cpu" if options.gpu is None else f"cuda:{options.gpu}")
    shapes = shapes_for(options.planned[0], options.batch)
    files = [options.model, *options.planned]
    steps = [step_of(path, number > 0, shapes, device) for number, path in enumerate(files)]
    rounds = options.rounds
    with progress_bar("timing") as report:
        times = time_in_turns(
            steps,
            rounds,
            device,
            lambda number: report(f"round {number} of {rounds}", number / (rounds + 1)),
        )
    rows = [
        {
            "file": path,
            "seconds": median(each),
            "ratio": median(a / b for a, b in zip(each, times[0], strict=True)),
            "all_seconds": each,
        }
        for path, each in zip(files, times, strict=True)
    ]
    if options.json:
        print(json.dumps({"schema": 1, "device": str(device), "rows": rows}))
        return
    table = new_table(
        f"A training step on {device}: median of {rounds} rounds",
        [("file", "left"), ("seconds", "right"), ("against the baseline", "right")],
    )
    for row in rows:
        table.add_row(
            Path(str(row["file"])).name, f"{row['seconds']:.3f}", f"{row['ratio'] - 1:+.1%}"
        )
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
