"""Ends commands at random moments by SIGINT, SIGTERM and SIGHUP, and looks at what they leave.

    python benchmarks/kills.py [--tries 300] [--seed 0] [--within SECONDS] [--log FILE]

A command that is ended must be gone within two seconds, with 128 + the signal's number, one line on
standard error and no traceback, without a process or a file left behind; where the file that was
asked for is there, it is whole, and the line says so. Commands are run on small graphs, so that a
try is short; some signals go to the command's process alone (a scheduler's), some to its process
group (Ctrl-C in a terminal), some come twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "MEMCLI_KILLS_TRY"
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
LATE_SECONDS = 2.0

# The file that a command writes is the last of its arguments, where it has a suffix.
COMMANDS: dict[str, list[str]] = {
    "plan": ["plan", "net.json", "--time-limit", "2", "-o", "out.json"],
    "plan ONNX": ["plan", "net.onnx", "--time-limit", "2", "-o", "out.onnx"],
    "plan --measure": ["plan", "net.json", "--time-limit", "1", "--measure", "-o", "out.json"],
    "inspect": ["inspect", "planned.json"],
    "inspect ONNX": ["inspect", "planned.onnx"],
    "verify": ["verify", "planned.json"],
    "verify ONNX": ["verify", "planned.onnx"],
    "verify --workers": ["verify", "planned.onnx", "--workers", "2"],
    "compare": ["compare", "net.json", "--time-limit", "1", "--plot", "out.svg"],
    "fit": ["fit", "net.json", "--memory", "64MB", "--time-limit", "1", "-o", "out.json"],
    "solve": ["solve", "costs.json", "--budget", "60%", "--time-limit", "2", "-o", "out.json"],
    "export": ["export", "planned.onnx", "--to", "torch", "-o", "out.py"],
    "doctor": ["doctor"],
}


def write_inputs(folder: Path) -> None:
    """A small network as an MXNet symbol and as ONNX, and a graph of costs."""
    (folder / "net.json").write_text(json.dumps(dense_symbol(12)))
    write_dense_onnx(folder / "net.onnx", 12)
    (folder / "costs.json").write_text(json.dumps(cost_chain(40)))


def dense_symbol(layers: int, batch: int = 8, width: int = 64) -> dict[str, Any]:
    """Dense layers with an activation after each, as MXNet writes a symbol."""
    nodes: list[dict[str, Any]] = [
        {"op": "null", "name": "data", "attrs": {"__shape__": f"({batch}, {width})"}, "inputs": []}
    ]
    last = 0
    for number in range(layers):
        name = f"fc{number}"
        nodes.append({"op": "null", "name": f"{name}_weight", "inputs": []})
        nodes.append({"op": "null", "name": f"{name}_bias", "inputs": []})
        end = len(nodes)
        inputs = [[last, 0, 0], [end - 2, 0, 0], [end - 1, 0, 0]]
        nodes.append(
            {
                "op": "FullyConnected",
                "name": name,
                "attrs": {"num_hidden": str(width)},
                "inputs": inputs,
            }
        )
        nodes.append(
            {
                "op": "Activation",
                "name": f"act{number}",
                "attrs": {"act_type": "tanh"},
                "inputs": [[end, 0, 0]],
            }
        )
        last = end + 1
    return {
        "nodes": nodes,
        "arg_nodes": [k for k, node in enumerate(nodes) if node["op"] == "null"],
        "node_row_ptr": list(range(len(nodes) + 1)),
        "heads": [[last, 0, 0]],
        "attrs": {"mxnet_version": ["int", 10901]},
    }


def write_dense_onnx(path: Path, layers: int, batch: int = 512, width: int = 64) -> None:
    """Dense layers with activations after each, in modules of PyTorch's."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    chance = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for number in range(layers):
        block = f"/blocks/blocks.{number}"
        weight = chance.normal(size=(width, width)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        for op, inputs in (("MatMul", [f"w{number}"]), ("Tanh", []), ("Sigmoid", []), ("Exp", [])):
            name = f"{block}/{op}"
            nodes.append(helper.make_node(op, [last, *inputs], [f"{name}_output"], name))
            last = f"{name}_output"
    shape = [batch, width]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))


def cost_chain(length: int) -> dict[str, Any]:
    """A training graph's costs in networkx's node-link form: forward, and back again."""
    total = 2 * length
    nodes = [{"id": k, "cost_cpu": 1 + k % 3, "cost_ram": 1 + k % 5} for k in range(total)]
    links = [{"source": k, "target": k + 1} for k in range(total - 1)]
    links += [{"source": k, "target": total - 1 - k} for k in range(length - 1)]
    return {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}


@dataclass
class Try:
    """One command that was ended, and what was wrong with how it ended ([]: nothing)."""

    command: str
    number: signal.Signals
    after: float  # seconds from its start to the signal
    status: int = 0
    took: float = 0.0  # seconds from the signal to its end
    kind: str = "ended"  # "finished": it was done; "start": Python itself was not yet
    faults: list[str] = field(default_factory=list)
    errors: str = ""


class Killer:
    """Runs commands in ``folder``, each try with folders of its own for what it writes.

    ``seconds``: within which the signal comes, by command; else those that it takes when nobody
    ends it.
    """

    def __init__(self, folder: Path, seed: int, seconds: dict[str, float] | None = None) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.seconds: dict[str, float] = dict(seconds or {})
        self._count = 0
        write_inputs(folder)
        for arguments in (
            ["plan", "net.json", "--time-limit", "1", "-o", "planned.json"],
            ["plan", "net.onnx", "--time-limit", "1", "-o", "planned.onnx"],
        ):
            self._whole(arguments)

    def _whole(self, arguments: list[str]) -> float:
        started = time.monotonic()
        process, _ = self._start(arguments, self.folder / "whole")
        _, errors = process.communicate(timeout=300)
        if process.returncode:
            raise RuntimeError(f"memcli {' '.join(arguments)}: {errors}")
        return time.monotonic() - started

    def _start(self, arguments: list[str], own: Path) -> tuple[subprocess.Popen[str], str]:
        self._count += 1
        mark = f"{os.getpid()}-{self._count}"
        for name in ("tmp", "state"):
            (own / name).mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(own / "tmp"),
            MARK: mark,
            "XDG_STATE_HOME": str(own / "state"),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "memcli", *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_interrupts,
        )
        return process, mark

    def kill(self, name: str) -> Try:
        """One try of a command, ended at a random moment of its time."""
        own = self.folder / "try"
        arguments = list(COMMANDS[name])
        out = None
        if "-o" in arguments or "--plot" in arguments:
            out = own / "out" / arguments[-1]
            arguments[-1] = str(out)
        (own / "out").mkdir(parents=True, exist_ok=True)
        if name not in self.seconds:
            self.seconds[name] = self._whole(arguments)
            _empty(own)
            (own / "out").mkdir(parents=True, exist_ok=True)
        tried = Try(
            name, self.chance.choice(SIGNALS), self.chance.uniform(0, self.seconds[name] + 0.1)
        )
        group, twice = self.chance.random() < 0.5, self.chance.random() < 0.2
        process, mark = self._start(arguments, own)
        time.sleep(tried.after)
        if process.poll() is not None:
            tried.kind = "finished"
        sent = time.monotonic()
        _send(process.pid, tried.number, group)
        if twice:
            time.sleep(self.chance.uniform(0, 0.1))
            _send(process.pid, tried.number, group)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            tried.faults.append("late: not gone after 30 s")
            os.killpg(process.pid, signal.SIGKILL)
        tried.took = time.monotonic() - sent
        tried.status = process.wait()
        left = [pid for pid in marked(mark) if not _gone_soon(pid)]
        if left:
            tried.faults.append(f"orphans: {[_command_line(pid) for pid in left]}")
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert process.stderr is not None
        tried.errors = process.stderr.read()
        process.stderr.close()
        self._judge(tried, own, out)
        _empty(own)
        return tried

    def _judge(self, tried: Try, own: Path, out: Path | None) -> None:
        lines = tried.errors.splitlines()
        if tried.kind == "ended" and tried.status == 0:
            tried.kind = "finished"
        in_python = not re.search(r'File ".*memcli/(cli|engines|unfinished)', tried.errors)
        if tried.status == -tried.number or ("KeyboardInterrupt" in tried.errors and in_python):
            tried.kind = "start"
        if tried.kind == "ended":
            if tried.took > LATE_SECONDS:
                tried.faults.append(f"late: {tried.took:.1f} s")
            if tried.status != 128 + tried.number:
                tried.faults.append(f"status {tried.status}")
            if not lines or not lines[-1].startswith("memcli: interrupted"):
                tried.faults.append("no last line that says it was interrupted")
        if tried.kind != "start" and ("Traceback" in tried.errors or "Error:" in tried.errors):
            tried.faults.append("traceback")
        stray = list((own / "tmp").rglob("*"))
        stray += [p for p in (own / "out").iterdir() if p != out]
        stray += list((own / "state").rglob(".memcli-*"))
        if stray:
            tried.faults.append(f"stray files: {[p.name for p in stray]}")
        if out is not None and out.exists():
            if not _is_whole(out):
                tried.faults.append("a file in part")
            if "nothing was written" in tried.errors:
                tried.faults.append("nothing was written, it says, and OUT is there")
        elif " written" in tried.errors and "nothing was written" not in tried.errors:
            tried.faults.append("OUT is not there, and is said to be")


def _hear_interrupts() -> None:
    """A job in a shell's background has them ignored, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _send(pid: int, number: int, group: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(pid, number)


def marked(mark: str) -> Iterator[int]:
    """Processes that have the mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
            except OSError:
                continue


def _gone_soon(pid: int) -> bool:
    """Whether it is only on its way out."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[-120:]
    except OSError:
        return "?"


def _is_whole(path: Path) -> bool:
    if path.suffix == ".json":
        try:
            return isinstance(json.loads(path.read_text()), dict)
        except ValueError:
            return False
    if path.suffix == ".onnx":
        import onnx

        return len(onnx.load(str(path)).graph.node) > 0
    return path.stat().st_size > 100


def _empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def tries(folder: Path, count: int, seed: int, within: float | None) -> Iterator[Try]:
    """``count`` commands that are ended, all commands in turn, ``within`` so many seconds."""
    killer = Killer(folder, seed, None if within is None else dict.fromkeys(COMMANDS, within))
    names = list(COMMANDS)
    for number in range(count):
        yield killer.kill(names[number % len(names)])


def main() -> int:
    """Prints a row for each command; 1 where a command did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--within",
        type=float,
        help="signals come within these seconds, not within those that the command takes",
    )
    parser.add_argument("--log", type=Path, help="each try goes to this file, a line of JSON")
    given = parser.parse_args()
    done: list[Try] = []
    with tempfile.TemporaryDirectory() as folder:
        for tried in tries(Path(folder), given.tries, given.seed, given.within):
            done.append(tried)
            if given.log:
                with given.log.open("a") as log:
                    print(json.dumps(vars(tried) | {"number": tried.number.name}), file=log)
            if tried.faults:
                print(
                    f"{tried.command}: {tried.number.name} after {tried.after:.2f} s: "
                    f"{'; '.join(tried.faults)}\n{tried.errors}",
                    file=sys.stderr,
                )
    columns = f"{'command':<18}{'tries':>6}{'ended':>7}{'finished':>9}{'start':>6}{'longest':>9}"
    print(columns + "  faults")
    for name in COMMANDS:
        rows = [tried for tried in done if tried.command == name]
        kinds = Counter(tried.kind for tried in rows)
        longest = max((tried.took for tried in rows if tried.kind == "ended"), default=0.0)
        faults = Counter(fault.split(":")[0] for tried in rows for fault in tried.faults)
        told = ", ".join(f"{count} {fault}" for fault, count in faults.items()) or "-"
        print(
            f"{name:<18}{len(rows):>6}{kinds['ended']:>7}{kinds['finished']:>9}"
            f"{kinds['start']:>6}{longest:>8.2f}s  {told}"
        )
    bad = sum(bool(tried.faults) for tried in done)
    print(
        f"{len(done)} tries, {len(done) - bad} as they should be, {bad} not; start: Python "
        "itself was starting, before the first line of memcli"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
