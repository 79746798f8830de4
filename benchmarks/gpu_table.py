"""Everything that is measured on a GPU, in one call: to be repeated on any card.

    python benchmarks/gpu_table.py --gpu 0 [--part onnx|mxnet|peers ...] [--only NETWORK ...]
                                   [--budget 60% ...] [--time-limit SECONDS] [--log table.json]
    python benchmarks/gpu_table.py --cpu      # the same, small, without a card

onnx: examples and exports of torch_networks.py are planned for the device at each budget with the
real command, and a step of baseline and plan is trained. mxnet: the same with the examples for
MXNet, which PyTorch trains where MXNet has no code for the card. peers: torch_peers.py.
The table is Markdown, sizes are MiB: estimated and measured live peak of a step (parameters, their
gradients and inputs not counted), and what the process took from the device (reserved, with
everything). Budgets are of the baseline; "least": as little memory as one more forward pass
allows. Times on a card are medians of steps after a warm-up, on the CPU of a single cold one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
LEAST = "least"
SIMULATED_CARD = "simulated card"  # what memcli verify calls the device where one ran
_ASIDES = ("note:", "planning:", "verifying:")
_HEAD = (
    "| network, batch | budget | baseline: estimated | measured | reserved | planned: estimated "
    "| measured | reserved | estimate off | step, ms | gradients equal | states equal |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---|---|---|---|"
)


@dataclass(frozen=True)
class Model:
    """``made``: options of make_onnx.py; without them a network of torch_networks.py, exported.

    ``cpu_batch``, ``cpu_made``: the same where it runs on the CPU; an export is small there.
    """

    name: str
    batch: int
    cpu_batch: int | None
    made: tuple[str, ...] = ()
    cpu_made: tuple[str, ...] = ()


ONNX = [
    Model("resnet-50", 64, 2, ("resnet-50",), ("resnet-50",)),
    Model("densenet-bc", 256, 4, ("densenet-bc",), ("densenet-bc", "--depth", "40")),
    Model("densenet-121", 64, None),
    Model("gpt", 8, None),
    Model("vit-b-16", 64, None),
]
MXNET = [
    Model("resnet-50", 32, 2),
    Model("densenet-201", 32, 1),
    Model("mobilenet-v2", 64, 2),
    Model("lstm", 128, 8),
]


class Table:
    """Runs commands, prints rows as they come, keeps them for the log."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.log: dict[str, Any] = {"device": None, "onnx": [], "mxnet": [], "peers": []}

    def memcli(self, *arguments: str) -> tuple[int, dict[str, Any] | None, str]:
        """Status, the JSON object if any, and what was said beside notes and progress."""
        environment = dict(os.environ, XDG_STATE_HOME=str(self.folder), PYTHONPATH=_path())
        done = subprocess.run(
            [sys.executable, "-m", "memcli", *arguments, "--json"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if not line.startswith(_ASIDES)] or said[-1:]
        try:
            found = json.loads(done.stdout)
        except ValueError:
            found = None
        return done.returncode, found, " ".join(errors)

    @property
    def device(self) -> list[str]:
        """The option that says where to run."""
        return ["--cpu"] if self.options.cpu else ["--gpu", str(self.options.gpu)]

    def rows(
        self,
        part: str,
        name: str,
        batch: int,
        model: Path,
        plan: Sequence[str],
        verify: Sequence[str],
    ) -> None:
        """Plans and verifies at each budget; a row or a line for each."""
        for budget in self.options.budget:
            planned = self.folder / f"{name}-{part}-planned{model.suffix}"
            search = ["--force", "-o", str(planned), *plan]
            if budget != LEAST:
                search += ["--budget", budget]
            if self.options.time_limit is not None:
                search += ["--time-limit", str(self.options.time_limit)]
            row: dict[str, Any] = {"network": name, "batch": batch, "budget": budget}
            status, made, said = self.memcli("plan", str(model), *search)
            if status == 0 and made is not None:
                row["recompute"] = made["recompute"]
                arguments = [str(planned), "--original", str(model), *self.device, *verify]
                status, found, said = self.memcli("verify", *arguments)
                if found is not None:
                    row["verify"] = {k: v for k, v in found.items() if k != "stages"}
                    row["stages"] = found["stages"]
                    self.log["device"] = found["device"]
            row["status"], row["said"] = status, said
            print(shown(row), flush=True)
            self.log[part].append(row)
            self.write()

    def write(self) -> None:
        """The log so far."""
        if self.options.log:
            self.options.log.write_text(json.dumps(self.log, indent=1))


def _path() -> str:
    return os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))


def shown(row: dict[str, Any]) -> str:
    """A row of the table; of what did not run, what was said."""
    first = f"| {row['network']}, {row['batch']} | {row['budget']} |"
    verified = row.get("verify")
    if verified is None:
        return f"{first} {'did not run' if row['status'] > 1 else 'no'}: {row['said'][:300]} |"
    cells, off = [], []
    for part in ("baseline", "planned"):
        run = verified[part]
        sizes = [run["estimated_bytes"], run["measured_bytes"], run.get("reserved_bytes", 0)]
        cells += [f"{size / 2**20:,.1f}" if size else "-" for size in sizes]
        off.append(f"{sizes[0] / max(1, sizes[1]) - 1:+.2%}")
    times = [1000 * verified[part]["step_seconds"] for part in ("baseline", "planned")]
    more = times[1] / times[0] - 1 if times[0] else 0.0
    cells.append(f"{off[0]}, {off[1]}")
    if verified["device"] == SIMULATED_CARD:
        # it counts memory; neither times nor bits mean anything there
        return f"{first} {' | '.join(cells)} | simulated card | - | - |"
    cells.append(f"{times[0]:.1f} to {times[1]:.1f} ({more:+.0%})")
    for part in ("gradients", "states"):
        cells.append(f"{verified[part]['bit_equal']}/{verified[part]['compared']}")
    return f"{first} {' | '.join(cells)} |"


def onnx_file(model: Model, table: Table) -> tuple[Path, int, list[str]]:
    """The file of a network, its batch, and options for planning it.

    Raises:
        Exception: whatever the exporter meets.
    """
    cpu = table.options.cpu
    path = table.folder / f"{model.name}.onnx"
    if model.made:
        batch = model.cpu_batch if cpu and model.cpu_batch else model.batch
        made = model.cpu_made if cpu else model.made
        command = [sys.executable, str(EXAMPLES / "make_onnx.py"), *made, "-o", str(path)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ})
        return path, batch, ["--batch", str(batch)]
    import torch
    from torch_networks import SIZES, SMALL, make_network

    size = SMALL[model.name] if cpu else replace(SIZES[model.name], batch=model.batch)
    network, inputs = make_network(model.name, size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # what else could be installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the exporter's own optimization would fold BatchNorm into the convolutions
        torch.onnx.export(
            network,
            tuple(inputs),
            str(path),
            input_names=["data", "label"],
            dynamo=True,
            optimize=False,
            verbose=False,
            external_data=True,
        )
    return path, size.batch, ["--as-training"]


def run_onnx(table: Table) -> None:
    """The ONNX part."""
    for model in wanted(ONNX, table.options):
        try:
            path, batch, options = onnx_file(model, table)
        except Exception as error:  # exporters fail in many ways
            first = (str(error).strip().splitlines() or [""])[0]
            print(f"| {model.name} | did not export: {type(error).__name__}: {first[:160]} |")
            continue
        place = [] if table.options.cpu else table.device
        table.rows("onnx", model.name, batch, path, [*options, *place], [])
        for file in table.folder.glob(f"{model.name}*.onnx*"):
            file.unlink()  # exports have their weights beside them


def run_mxnet(table: Table) -> None:
    """The examples for MXNet, where ``verify`` takes them to PyTorch."""
    if importlib.util.find_spec("mxnet") is None:
        print("MXNet graphs: left out, mxnet is not installed (it reads their shapes)")
        return
    arguments = [sys.executable, "-m", "memcli", "verify", "--help"]
    environment = dict(os.environ, PYTHONPATH=_path())
    told = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    if "--engine" not in told.stdout:
        print("MXNet graphs: left out, this memcli verifies them with MXNet alone")
        return
    verify = ["--engine", "torch" if table.options.cpu else "auto"]
    for model in wanted(MXNET, table.options):
        batch = model.cpu_batch if table.options.cpu and model.cpu_batch else model.batch
        path = EXAMPLES / f"{model.name}-symbol.json"
        table.rows("mxnet", model.name, batch, path, ["--batch", str(batch)], verify)


def run_peers(table: Table) -> None:
    """``torch_peers.py`` on the same device."""
    options = table.options
    log = table.folder / "peers.json"
    command = [sys.executable, str(HERE / "torch_peers.py"), "--log", str(log)]
    command += ["--small"] if options.cpu else ["--device", f"cuda:{options.gpu}"]
    for name in options.only or []:
        command += ["--only", name]
    if options.time_limit is not None:
        command += ["--time-limit", str(options.time_limit)]
    subprocess.run(command, check=False, env=dict(os.environ, PYTHONPATH=_path()))
    if log.exists():
        table.log["peers"] = json.loads(log.read_text())
        table.write()


def wanted(models: Sequence[Model], options: argparse.Namespace) -> list[Model]:
    """Those named by ``--only``, else all."""
    return [m for m in models if not options.only or m.name in options.only]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gpu", type=int, metavar="N")
    where.add_argument("--cpu", action="store_true", help="small, without a card")
    parser.add_argument("--part", action="append", choices=["onnx", "mxnet", "peers"])
    parser.add_argument("--only", action="append", choices=[m.name for m in [*ONNX, *MXNET]])
    parser.add_argument("--budget", action="append", help=f"60%%, 4GiB, or {LEAST}")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="of each search")
    parser.add_argument("--log", type=Path, help="write all figures as JSON")
    options = parser.parse_args()
    options.budget = options.budget or ["60%", "40%", LEAST]
    parts = options.part or ["onnx", "mxnet", "peers"]
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        table = Table(options, Path(folder))
        for part, run in (("onnx", run_onnx), ("mxnet", run_mxnet)):
            if part in parts:
                print(f"\n{'ONNX' if part == 'onnx' else 'MXNet graphs'}\n\n{_HEAD}")
                run(table)
        if table.log["device"]:
            print(f"\nRun on: {table.log['device']}\n", flush=True)
        if "peers" in parts:
            run_peers(table)


if __name__ == "__main__":
    main()
