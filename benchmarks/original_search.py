"""memcli against the classic planner's original script, on the networks that it was shown with.

    python benchmarks/original_search.py --original PATH/memonger.py [--graphs FOLDER]
        [--graph resnet-50 ...] [--proofs] [--json]

For each network, in one run: MXNet's figure without a plan; the original script's search, in a
process of its own with ``mx.gpu`` standing for ``mx.cpu``; memcli's ``--strategy memonger`` in the
default environment, ``--strategy auto`` in both environments, and ``auto`` within the memory that
the original reached (least recomputation). Every MB is MXNet's own ``Total N MB allocated``: the
planned file is written, and bound in a fresh process with the plan's environment set. ``at least``
is what no plan is proven to get under, ``again`` the FLOPs that the engine recomputes, as a part of
one forward pass; with ``--proofs`` what every plan within the original's memory has to recompute is
proven beside it (of the baseline and of its rewritten forms; two minutes each for the LSTM,
seconds for the others).

Networks are taken from FOLDER (``seed-*.json`` or ``.json.gz``, shapes of graphs with many inputs
in ``NAME.shapes.json``), or built by the scripts in ``examples/``.

Seconds: ``search`` is what the user waits for with everything loaded (the original's
``search_plan``; memcli's with its own MXNet process, imports in it included); ``whole`` is the
process from start to end, imports included.

Exit status 1 where a figure that memcli states is not MXNet's.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memcli.engines.mxnet.forms import analyze_forms
from memcli.engines.mxnet.memory.bounds import recompute_bound
from memcli.engines.mxnet.planning import read_symbol
from memcli.engines.mxnet.record import analyze
from memcli.engines.mxnet.shim import import_mxnet
from memcli.engines.mxnet.verifying import plan_of_file
from memcli.reports.console import notes_console, output_console
from memcli.reports.tables import new_table
from memcli.request import ShapeRequest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class Network:
    """Where a network comes from, and the batch that it trains with."""

    seed: str  # name in the folder of graphs, without its ending
    batch: int
    script: str
    options: tuple[str, ...]
    image: bool = True  # one input 'data' of 3 x 224 x 224


NETWORKS = {
    "resnet-50": Network(
        "seed-resnet-3-4-6-3", 32, "make_resnet.py", ("--units", "3", "4", "6", "3")
    ),
    "resnet-3-24-36-3": Network(
        "seed-resnet-3-24-36-3", 32, "make_resnet.py", ("--units", "3", "24", "36", "3")
    ),
    "densenet-201": Network("seed-densenet201", 64, "make_densenet.py", ("--depth", "201")),
    "lstm-4x1024-200": Network(
        "seed-lstm-l4-t200-h1024-xent",
        64,
        "make_lstm.py",
        ("--layers", "4", "--hidden", "1024", "--steps", "200", "--batch", "64"),
        image=False,
    ),
    "mobilenet-v2": Network("mobilenet-v2-symbol", 64, "make_mobilenet_v2.py", ()),
    "lstm-4x1024-1000": Network(
        "seed-lstm-l4-t1000-h1024-xent",
        64,
        "make_lstm.py",
        ("--layers", "4", "--hidden", "1024", "--steps", "1000", "--batch", "64"),
        image=False,
    ),
}
USUAL = [name for name in NETWORKS if name != "lstm-4x1024-1000"]  # that one takes minutes
WITHIN = "auto, original's memory"
# What is asked of memcli; {mb} is what the original reached.
PLANNERS = {
    "memonger": ["--strategy", "memonger", "--environment", "default"],
    "auto": ["--strategy", "auto"],
    "auto, default environment": ["--strategy", "auto", "--environment", "default"],
    WITHIN: ["--strategy", "auto", "--cost", "flops", "--budget", "{mb}MiB"],
}
# A proof of recomputation may take as much: recomputable nodes, and seconds for a form of a graph.
PROOF_NODES = 20_000
PROOF_SECONDS = 900.0


@dataclass
class Result:
    """One planner on one network."""

    mb: int  # MXNet's own figure for the planned file
    stated_mb: int  # what the planner said
    search_seconds: float
    whole_seconds: float
    environment: dict[str, str]
    again: float  # recomputed FLOPs as a part of one forward pass
    least_mb: int | None = None  # that no plan gets under, proven


# --------------------------------------------------------------------------- graphs


def obtain(network: Network, folder: Path | None, work: Path) -> tuple[Path, Shapes]:
    """A plain JSON file of the network in ``work``, and the shapes that it does not hold.

    Raises:
        SystemExit: the folder does not have it.
    """
    model = work / f"{network.seed}.json"
    if folder is None:
        command = [sys.executable, str(EXAMPLES / network.script), *network.options]
        subprocess.run([*command, "-o", str(model)], check=True, stdout=subprocess.DEVNULL)
        return model, {"data": [network.batch, 3, 224, 224]} if network.image else {}
    for path in (folder / model.name, folder / f"{model.name}.gz"):
        if path.exists():
            data = path.read_bytes()
            model.write_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
            break
    else:
        raise SystemExit(f"{folder} has no {model.name} and no {model.name}.gz")
    if network.image:
        return model, {"data": [network.batch, 3, 224, 224]}
    sidecar: Shapes = json.loads((folder / f"{network.seed}.shapes.json").read_text())
    return model, {name: [network.batch, *shape[1:]] for name, shape in sidecar.items()}


# --------------------------------------------------------------------------- processes


def in_process(
    work: Path, what: str, job: dict[str, Any], environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """``job`` done by this script in a fresh process; its seconds from start to end added."""
    job_file, result_file = work / "job.json", work / "result.json"
    job_file.write_text(json.dumps(job))
    started = time.monotonic()
    subprocess.run(
        [sys.executable, __file__, "--worker", what, str(job_file), str(result_file)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    seconds = time.monotonic() - started
    return {**json.loads(result_file.read_text()), "whole_seconds": seconds}


def bind(job: dict[str, Any]) -> dict[str, Any]:
    """MXNet's figure for a file, by a plain ``simple_bind``."""
    mx = import_mxnet()
    symbol = mx.sym.load(job["model"])
    shapes = {name: tuple(shape) for name, shape in job["shapes"].items()}
    text = symbol.simple_bind(mx.cpu(), grad_req="write", **shapes).debug_str()
    total = next(line for line in text.splitlines() if "MB allocated" in line)
    return {"mb": int(total.split()[1])}


def original(job: dict[str, Any]) -> dict[str, Any]:
    """The original's search; its planned symbol goes to ``job['out']``."""
    mx = import_mxnet()
    mx.gpu = mx.cpu  # it binds on a GPU to ask for the cost; the figure is the same
    sys.modules["mxnet"] = mx
    spec = importlib.util.spec_from_file_location("original_memonger", job["original"])
    if spec is None or spec.loader is None:
        raise SystemExit(f"{job['original']} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    symbol = mx.sym.load(job["model"])
    shapes = {name: tuple(shape) for name, shape in job["shapes"].items()}
    started = time.monotonic()
    planned = module.search_plan(symbol, **shapes)
    seconds = time.monotonic() - started
    planned.save(job["out"])
    return {"search_seconds": seconds, "stated_mb": module.get_cost(planned, **shapes)}


def proof(job: dict[str, Any]) -> dict[str, Any]:
    """What every plan within ``job['mb']`` recomputes at least, as a part of a forward pass."""
    forms = analyze_forms(
        read_symbol(job["model"]),
        ShapeRequest(shapes=job["shapes"]),
        rewrite=True,
        environment="best",
    )
    least = [
        recompute_bound(
            form.analysis.graph,
            form.analysis.model,
            job["mb"] << 20,
            most_nodes=PROOF_NODES,
            time_limit=PROOF_SECONDS,
        )
        / form.analysis.model.forward_flops
        for form in forms
    ]
    return {"least": min(least)}


WORKERS = {"bind": bind, "original": original, "proof": proof}


def run_original(work: Path, script: Path, model: Path, shapes: Shapes) -> Result:
    """The original's search, and MXNet's figure for what it found."""
    out = work / "original.json"
    job = {"original": str(script), "model": str(model), "shapes": shapes, "out": str(out)}
    found = in_process(work, "original", job)
    bound = in_process(work, "bind", {"model": str(out), "shapes": shapes})
    source = read_symbol(str(out))
    analysis = analyze(source.raw, ShapeRequest(shapes=dict(shapes)))
    again = analysis.model.plan_cost(plan_of_file(analysis, source)).recompute_fraction
    seconds = found["search_seconds"], found["whole_seconds"]
    return Result(bound["mb"], found["stated_mb"], *seconds, {}, again)


def run_memcli(work: Path, options: list[str], model: Path, shapes: Shapes) -> Result:
    """memcli's command with ``options``, and MXNet's figure for the file that it wrote."""
    out = work / "planned.json"
    command = [sys.executable, "-m", "memcli", "plan", str(model), "-o", str(out), "--force"]
    command += [*options, "--json"]
    for name, shape in shapes.items():
        command += ["--shape", f"{name}={','.join(map(str, shape))}"]
    started = time.monotonic()
    said = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=work
    )
    whole_seconds = time.monotonic() - started
    plan = json.loads(said.stdout)
    environment = plan["environment"]
    # The file that the command wrote, in the environment that it named.
    bound = in_process(work, "bind", {"model": str(out), "shapes": shapes}, environment)
    # All of these networks are float32: their true bytes are those that MXNet counts.
    stated_mb = plan["memory"]["planned_bytes"] >> 20
    again = plan["recompute"]["fraction"]
    seconds = plan["search"]["seconds"], whole_seconds
    least_mb = plan["memory"]["lower_bound_bytes"] >> 20
    return Result(bound["mb"], stated_mb, *seconds, environment, again, least_mb)


# --------------------------------------------------------------------------- the report


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one network, as JSON."""
    notes = notes_console()
    network = NETWORKS[name]
    with tempfile.TemporaryDirectory(prefix="original-search-") as folder:
        work = Path(folder)
        # plan notes its file as the newest plan; that is of no interest to the user.
        os.environ["XDG_STATE_HOME"] = str(work / "state")
        notes.print(f"{name}: baseline", highlight=False)
        model, shapes = obtain(network, options.graphs, work)
        unplanned = in_process(work, "bind", {"model": str(model), "shapes": shapes})["mb"]
        results = {}
        notes.print(f"{name}: the original", highlight=False)
        results["original"] = run_original(work, options.original, model, shapes)
        least = results["original"].mb
        for label, wanted in PLANNERS.items():
            notes.print(f"{name}: memcli {label}", highlight=False)
            text = [option.format(mb=least) for option in wanted]
            results[label] = run_memcli(work, text, model, shapes)
        proven = None
        if options.proofs:
            notes.print(f"{name}: what has to be recomputed", highlight=False)
            job = {"model": str(model), "shapes": shapes, "mb": least}
            proven = in_process(work, "proof", job)["least"]
    return {
        "graph": name,
        "batch": network.batch,
        "unplanned_mb": unplanned,
        "planners": {key: asdict(result) for key, result in results.items()},
        "least_again": proven,
        "exact": all(r.mb == r.stated_mb for r in results.values()),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """For each network a line without a plan, and one for each planner."""
    table = new_table(
        "MB as MXNet allocates them for the written file, and seconds",
        [
            ("network, batch, planner", "left"),
            ("MB", "right"),
            ("at least", "right"),
            ("part", "right"),
            ("again", "right"),
            ("search s", "right"),
            ("whole s", "right"),
            ("ratio", "right"),
        ],
    )
    for row in rows:
        table.add_row(f"{row['graph']}, {row['batch']}", f"{row['unplanned_mb']:,}")
        base = row["planners"]["original"]["whole_seconds"]
        for key, result in row["planners"].items():
            ours = key != "original"
            off = "" if result["mb"] == result["stated_mb"] else f" (said {result['stated_mb']:,})"
            again = f"{result['again']:.0%}"
            if key == WITHIN and row["least_again"] is not None:
                again += f" (at least {row['least_again']:.0%})"
            setting = "".join(f" ({k[5:]}={v})" for k, v in result["environment"].items())
            table.add_row(
                f"  memcli {key}{setting}" if ours else "  original script",
                f"{result['mb']:,}{off}",
                f"{result['least_mb']:,}" if result["least_mb"] is not None else "",
                f"{result['mb'] / row['unplanned_mb']:.0%}",
                again,
                f"{result['search_seconds']:.1f}",
                f"{result['whole_seconds']:.1f}",
                f"{result['whole_seconds'] / base:.2f}" if ours else "",
            )
    console = output_console()
    console.print(table)
    console.print(
        "search: once started (memcli's holds the MXNet process that it starts)\n"
        "whole: the process from start to end\n"
        "ratio: whole, memcli's to the original's"
    )


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        what, job_file, result_file = sys.argv[2:5]
        result = WORKERS[what](json.loads(Path(job_file).read_text()))
        Path(result_file).write_text(json.dumps(result))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--original", type=Path, required=True, metavar="PATH/memonger.py")
    parser.add_argument("--graphs", type=Path, metavar="FOLDER", help="of seed-*.json files")
    parser.add_argument(
        "--graph", choices=list(NETWORKS), action="append", help="this one alone; repeatable"
    )
    parser.add_argument(
        "--proofs", action="store_true", help="prove how little can be recomputed in that memory"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    options = parser.parse_args()
    if not options.original.is_file():
        parser.error(f"{options.original} is not there")
    options.original = options.original.resolve()
    rows = [measure(name, options) for name in options.graph or USUAL]
    if options.json:
        print(json.dumps({"schema": 1, "graphs": rows}))
    else:
        print_table(rows)
    sys.exit(0 if all(row["exact"] for row in rows) else 1)


if __name__ == "__main__":
    main()
