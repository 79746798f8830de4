"""Mutates files of all formats, plans in them included, and looks at what memcli does with them.

    python benchmarks/fuzz.py --level readers|engines|commands [--count N] [--seconds S]
                              [--seed N] [--only TEXT] [--keep FOLDER] [--again FILE...]

Three levels. ``readers``: everything between a file's bytes and an engine, in one process: parsing,
checks, plan records, taking plans off and putting them on, shapes, roles of tensors. ``engines``:
what the readers take is analyzed by MXNet or PyTorch, in forks of a host, as commands do it.
``commands``: whole commands in processes of their own.

What must hold. Readers take a file or raise BadInput; engines and commands end with status 0, 1 or
2, and with 3 nowhere: an engine that fails on a bad file is a check that is missing. No traceback;
no file where the command fails; the message names the file, in one or two printable lines; at most
10 s of one processor (or three times what the command takes on the valid file) and 1 GiB. Processor
time and not the clock's, so that a busy machine changes nothing; a whole command's memory is that
of its largest process.

Mutations are drawn by hypothesis (benchmarks/fuzz_inputs.py): it knows awkward values (numbers at
limits, floats, texts of all scripts, and constants that memcli's own source compares with), draws
nothing twice, shrinks what it finds, and a seed gives the same inputs again. atheris installs as
well, and guides libFuzzer by coverage; but what reads bytes here is json, protobuf and zlib, which
are compiled and not covered, so that it would have to be given the same mutations of structure, and
it ends at the first finding. Inputs are made in rounds, each a process with a seed of its own
(SEED.ROUND), so that a crash of a library ends a round and not the run.

Prints a table, and each finding; exit status 1 where there is one. ``--keep`` gets each input that
broke a rule, the smallest that was found, and ``findings.jsonl``. ``--again`` judges such files
once more.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the memcli of this folder, whichever is installed

from fuzz_inputs import Base, mutations, planned_bases, unmutated_bases  # noqa: E402
from hypothesis import HealthCheck, Phase, Verbosity, given, settings  # noqa: E402
from hypothesis import seed as seeded  # noqa: E402

MOST_SECONDS = 10.0
MOST_BYTES = 1 << 30
LEVELS = {"readers": 2000, "engines": 250, "commands": 50}  # inputs of a round
_LONGEST_MESSAGE = 700
_MOST_SHRINKING = 200  # inputs that break a rule as the first did, in a round
# For a process of readers: a bomb ends in MemoryError, and not the machine.
_ADDRESS_SPACE = 8 << 30
_FILE_OF = {
    "symbol": "json",
    "onnx": "onnx",
    "pt2": "pt2",
    "caffe": "prototxt",
    "costs": "json",
}


@dataclass
class Finding:
    """An input that broke a rule. ``kind``: which; ``where``: findings of the same are one."""

    level: str
    base: str
    kind: str  # exception, status 3, no name, long, unprintable, slow, large, crash, ...
    where: str
    text: str
    seed: str = ""
    command: str = ""
    data: bytes = field(default=b"", repr=False)

    @property
    def key(self) -> str:
        """Of all findings that have the same cause, as far as can be told."""
        return f"{self.level}: {self.kind}: {self.where}"


class TooSlow(BaseException):
    """Raised within a reader whose processor time is over."""


# -- readers -----------------------------------------------------------------------------------


def read(base: Base, data: bytes) -> bool:
    """All that is done with a file before an engine; whether it may go to one.

    Raises:
        BadInput: it is refused.
    """
    from memcli.commands.about import about
    from memcli.commands.solve import parse_cost_graph
    from memcli.formats.detect import ModelSource, detect_format, unpacked
    from memcli.quoting import shown_path
    from memcli.solve.simulator import plain_schedule, simulate, working_set_bound

    name = shown_path(base.name)
    plain = unpacked(data, name)
    if base.kind == "costs":
        graph = parse_cost_graph(plain, name)
        simulate(graph, plain_schedule(graph))
        working_set_bound(graph)
        return False
    digest = hashlib.sha256(data).hexdigest()
    source = ModelSource(base.name, plain, digest, detect_format(plain, name))
    with about(source):
        if source.format == "mxnet-symbol":
            _read_symbol(source)
        elif source.format == "pt2":
            _read_program(source)
        else:
            _read_onnx(source)
    return True


def _read_symbol(source: Any) -> None:
    from memcli.engines.mxnet.planning import group_notes, read_symbol
    from memcli.engines.mxnet.rewrites import registry, reserved_blocks
    from memcli.engines.user_code import refuse_unknown
    from memcli.engines.verification import shapes_to_verify
    from memcli.errors import BadInput
    from memcli.formats.symbol import edits as symbol_edits
    from memcli.formats.symbol.file import SymbolFile
    from memcli.formats.symbol.prepare import prepare
    from memcli.formats.symbol.record import PlanRecord

    file = read_symbol(source)
    file.execution_order(), file.existing_marks(), file.marked(), group_notes(file)
    prepare(file.raw, marked=None)
    registry.changes_tensors(file.raw)
    symbol_edits.own_positions(file.raw)
    reserved_blocks.waiting_arguments(file.raw)
    with contextlib.suppress(BadInput):  # each is refused alone, and all must be looked into
        reserved_blocks.scaled_reservation(file.raw, 3, 2)
    with contextlib.suppress(BadInput):
        reserved_blocks.without_reservation(file.raw, file.name)
    record = file.plan()
    if record is not None:
        shapes_to_verify(record, None)
        assert PlanRecord.from_text(record.to_text()) == record
    bare = file.stripped()
    refuse_unknown(file.raw, ())
    order = bare.execution_order()
    if not order:
        return
    plan = PlanRecord("auto", {"data": [1]}, "float32", {}, file.name, file.sha256, len(file.nodes))
    planned = SymbolFile.from_bytes(bare.with_marks(order[:3], plan), file.path)
    assert planned.plan() == plan, "the record that was put on is not the one that is read"
    if bare.plan() is None:
        back = planned.stripped()
        same = back.nodes == bare.nodes and back.heads == bare.heads
        assert same, "the plan that was put on does not come off"


def _read_onnx(source: Any) -> None:
    from memcli.engines.verification import shapes_to_verify
    from memcli.formats.caffe.file import CaffeFile
    from memcli.formats.input_shapes import batch_dims, bind_shapes
    from memcli.formats.model_file import read_model
    from memcli.formats.onnx.export_defects import losses
    from memcli.formats.onnx.plan import moved_notes, planned_bytes, strip_plan
    from memcli.formats.onnx.record import OnnxPlan
    from memcli.formats.onnx.roles import tensor_roles
    from memcli.formats.onnx.scopes import scopes_of
    from memcli.formats.onnx.training import as_training
    from memcli.formats.trained_file import new_plan
    from memcli.request import ShapeRequest

    file = read_model(source, ShapeRequest(), as_planned=True)
    carried = file.carried_plan()
    if carried is not None:
        assert OnnxPlan.from_text(carried.to_text()) == carried
        shapes_to_verify(carried, None)
        file = file.unplanned()
    file.check_operators()
    scopes_of(file), batch_dims(file), file.outputs, file.element_types()
    moved_notes(file, "elsewhere/out.onnx")
    tensor_roles(file), losses(file), as_training(file), file.check_trainable(False)
    shapes = bind_shapes(file, ShapeRequest()).shapes
    plan = new_plan(
        file,
        dict.fromkeys(file.node_names, "again"),
        strategy="auto",
        shapes=shapes,
        dtype="float32",
    )
    if isinstance(file, CaffeFile):
        file.annotated(plan)
        return
    from memcli.formats.onnx.file import parse_onnx

    planned = parse_onnx(planned_bytes(file, plan), file.path)
    assert planned.plan() is not None, "the record that was put on is not read"
    assert strip_plan(planned).exact, "the plan that was put on does not come off"


def _read_program(source: Any) -> None:
    from memcli.engines.verification import shapes_to_verify
    from memcli.formats.input_shapes import batch_dims, bind_shapes
    from memcli.formats.model_file import read_model
    from memcli.formats.node_plan import NodePlan
    from memcli.formats.pt2.file import parse_pt2
    from memcli.formats.pt2.nesting import parsed
    from memcli.formats.trained_file import new_plan
    from memcli.request import ShapeRequest

    file = read_model(source, ShapeRequest())
    carried = file.carried_plan()
    if carried is not None:
        assert NodePlan.from_text(carried.to_text()) == carried
        shapes_to_verify(carried, None)
        file = file.unplanned()
    file.scopes(), batch_dims(file), file.outputs, file.leaves(), file.losses(), file.described
    file.operators(), file.as_training(), parsed(file.graph.in_spec), parsed(file.graph.out_spec)
    shapes = bind_shapes(file, ShapeRequest()).shapes
    marks = dict.fromkeys(file.node_names, "again")
    plan = new_plan(file, marks, strategy="auto", shapes=shapes, dtype="float32")
    planned = parse_pt2(file.planned_bytes(plan), file.path, file.sha256)
    assert planned.plan() is not None, "the record that was put on is not read"
    same = planned.unplanned_bytes() == file.archive.data
    assert same, "the plan that was put on does not come off"


def judge_reader(base: Base, data: bytes) -> tuple[str, Finding | None]:
    """How a file is taken (``taken``, ``refused``), and the rule that this breaks."""
    from memcli.errors import BadInput

    started, before = time.process_time(), _begin_peak()
    fault = None
    outcome = "refused"
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        read(base, data)
        outcome = "taken"
    except BadInput as error:
        fault = _wrong_message(error.lines(), base.name)
    except TooSlow:
        fault = "slow", _place(sys.exc_info()[1]), f"over {MOST_SECONDS:g} s"
    except Exception as error:
        fault = "exception", _place(error), "".join(traceback.format_exception(error))[-4000:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown = _peak() - before
    if fault is None and grown > MOST_BYTES:
        fault = "large", base.name, f"{grown >> 20} MiB"
    _most["seconds"] = max(_most["seconds"], time.process_time() - started)
    _most["bytes"] = max(_most["bytes"], grown)
    return outcome, fault and Finding("readers", base.name, *fault, data=data)


def _wrong_message(lines: Sequence[str], name: str) -> tuple[str, str, str] | None:
    """Which rule of messages is broken: kind, what findings have in common, and the text."""
    from memcli.quoting import shown_message

    text = "\n".join(lines)
    common = re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+", "#", lines[0])[:60]
    if not 1 <= len(lines) <= 2:
        return "lines", common, text
    if name not in lines[0]:
        return "no name", common, text
    if any(len(line) > 20 * _LONGEST_MESSAGE for line in lines):
        return "long", common, text[:2000]  # is cut when it is printed; made of megabytes
    if not all(shown_message(line).isprintable() for line in lines):
        return "unprintable", common, text
    return None


def _place(error: BaseException | None) -> str:
    """The kind of an exception, and the last line of memcli's that it passed."""
    assert error is not None
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if "/memcli/" in frame.filename]
    at = mine[-1] if mine else frames[-1]
    return f"{type(error).__name__} in {at.filename.rpartition('/memcli/')[2]}: {at.name}"


# Of this process: the longest and the largest that an input took.
_most: dict[str, float] = {"seconds": 0.0, "bytes": 0.0}


def _begin_peak() -> int:
    """Bytes that this process takes; its peak is counted from here on (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    try:
        found = re.search(r"VmHWM:\s+([0-9]+)", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


# -- engines -----------------------------------------------------------------------------------


def judge_engine(base: Base, data: bytes) -> tuple[str, Finding | None]:
    """As :func:`judge_reader` for the analysis; ``unread`` where the readers refuse the file."""
    from memcli.errors import BadInput, MemcliError

    try:
        if not read(base, data):
            return "unread", None
    except (BadInput, AssertionError):
        return "unread", None
    started = _seconds_of_children() + time.process_time()
    outcome, fault = "refused", None
    try:
        _analyze(base, data)
        outcome = "taken"
    except BadInput as error:
        fault = _wrong_message(error.lines(), base.name)
    except MemcliError as error:
        said = re.sub(r"/\S*/|'[^']*'|[0-9]+", "#", error.message)
        fault = f"status {error.exit_status}", said[:150], "\n".join(error.lines())
    except Exception as error:
        fault = "exception", _place(error), "".join(traceback.format_exception(error))[-4000:]
    seconds = _seconds_of_children() + time.process_time() - started
    if fault is None and seconds > MOST_SECONDS:
        fault = "slow", base.name, f"{seconds:.1f} s"
    _most["seconds"] = max(_most["seconds"], seconds)
    return outcome, fault and Finding("engines", base.name, *fault, data=data)


def _analyze(base: Base, data: bytes) -> None:
    """The graph as the engine trains it, and what its memory model says of no plan and of one."""
    from memcli.commands.about import about
    from memcli.engines.mxnet.planning import read_symbol
    from memcli.engines.mxnet.record import analyze
    from memcli.engines.torch.planning import analyze_file
    from memcli.formats.detect import read_source
    from memcli.formats.model_file import read_model
    from memcli.request import ShapeRequest

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, base.name)
        path.write_bytes(data)
        source = read_source(path)
        with about(source):
            analysis: Any
            if source.format == "mxnet-symbol":
                analysis = analyze(read_symbol(source).raw, ShapeRequest())
            else:
                file = read_model(source, ShapeRequest(), as_planned=True)
                file.check_operators()
                analysis = analyze_file(file, ShapeRequest(), "cpu", None)
            model = analysis.model
            none = model.none()
            assert model.evaluate(none).pool_bytes >= 0
            model.evaluate((none + analysis.graph.can_recompute).astype(none.dtype))


def _seconds_of_children() -> float:
    """Processor time of this process's children and of those that they waited for (Linux)."""
    total = 0
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.exists() else ():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(int(value) for value in fields[11:15])
    return total / os.sysconf("SC_CLK_TCK")


# -- whole commands ----------------------------------------------------------------------------

# By kind of file; OUT is the file that is written.
_COMMANDS: dict[str, list[list[str]]] = {
    "symbol": [
        ["plan", "--strategy", "none", "-o", "OUT"],
        ["plan", "--strategy", "cheap", "-o", "OUT"],
        ["plan", "--time-limit", "1", "-o", "OUT"],
        ["inspect"],
        ["compare", "--time-limit", "1", "--plot", "OUT.svg"],
        ["fit", "--memory", "64MB", "--reserve", "0", "--strategy", "cheap", "-o", "OUT"],
    ],
    "planned symbol": [["verify"], ["strip", "-o", "OUT"], ["inspect"]],
    "planned onnx": [
        ["verify"],
        ["strip", "-o", "OUT"],
        ["inspect"],
        ["export", "--to", "torch", "-o", "OUT.py"],
        ["export", "--to", "jax", "-o", "OUT.py"],
    ],
    "planned caffe": [["verify"], ["strip", "-o", "OUT"], ["inspect"]],
    "costs": [
        ["solve", "--time-limit", "1", "-o", "OUT"],
        ["solve", "--time-limit", "1", "--budget", "70%", "-o", "OUT"],
    ],
}
_COMMANDS["onnx"] = _COMMANDS["pt2"] = _COMMANDS["symbol"]
_COMMANDS["planned pt2"] = _COMMANDS["planned onnx"]
_COMMANDS["caffe"] = [c for c in _COMMANDS["symbol"] if c[0] != "fit"]


def commands_for(base: Base) -> list[list[str]]:
    """What can be done with such a file."""
    own = _COMMANDS.get(f"planned {base.kind}", []) if base.planned else []
    return [*own, *own, *_COMMANDS[base.kind]] if own else _COMMANDS[base.kind]


class Commands:
    """Runs whole commands in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._usual: dict[tuple[str, ...], float] = {}  # seconds on the valid file

    def judge(
        self, base: Base, data: bytes, command: Sequence[str], as_json: bool
    ) -> tuple[str, Finding | None]:
        """As :func:`judge_reader` for a whole command; the outcome is its status."""
        ran = self.run(base, data, command, as_json)
        line = " ".join(["memcli", command[0], base.name, *command[1:], *["--json"] * as_json])
        fault = ran.fault(base.name, as_json)
        if fault is None and ran.seconds > MOST_SECONDS:
            usual = self.usual(base, command)
            if ran.seconds > max(MOST_SECONDS, 3 * usual):
                fault = "slow", line, f"{ran.seconds:.1f} s, {usual:.1f} s on the valid file"
        if fault is None and ran.most_bytes > MOST_BYTES:
            fault = "large", line, f"{ran.most_bytes >> 20} MiB"
        _most["seconds"] = max(_most["seconds"], ran.seconds)
        _most["bytes"] = max(_most["bytes"], ran.most_bytes)
        found = fault and Finding("commands", base.name, *fault, command=line, data=data)
        return f"status {ran.status}", found

    def usual(self, base: Base, command: Sequence[str]) -> float:
        """Seconds of processor time that the command takes on the valid file."""
        key = base.name, *command
        if key not in self._usual:
            self._usual[key] = self.run(base, base.data, command, False).seconds
        return self._usual[key]

    def run(self, base: Base, data: bytes, command: Sequence[str], as_json: bool) -> Ran:
        """One command, in folders of its own for what it writes."""
        with tempfile.TemporaryDirectory(dir=self.folder) as own:
            for name in ("in", "out", "tmp", "state"):
                Path(own, name).mkdir()
            Path(own, "in", base.name).write_bytes(data)
            out = Path(own, "out", f"out.{_FILE_OF[base.kind]}")
            options = [self._named(word, out) for word in command[1:]]
            arguments = [command[0], base.name, *options, *["--json"] * as_json]
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TMPDIR": str(Path(own, "tmp")),
                "XDG_STATE_HOME": str(Path(own, "state")),
                "OMP_NUM_THREADS": "1",
                "COLUMNS": "80",
            }
            with (
                open(Path(own, "stdout"), "wb") as stdout,
                open(Path(own, "stderr"), "wb") as errors,
            ):
                process = subprocess.Popen(
                    [sys.executable, "-m", "memcli", *arguments],
                    cwd=Path(own, "in"),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=errors,
                    start_new_session=True,
                )
                end = threading.Timer(300, os.killpg, (process.pid, signal.SIGKILL))
                end.start()
                _, status, usage = os.wait4(process.pid, 0)
                end.cancel()
                process.returncode = os.waitstatus_to_exitcode(status)
            return Ran(
                status=process.returncode,
                stdout=Path(own, "stdout").read_text(errors="surrogateescape"),
                errors=Path(own, "stderr").read_text(errors="surrogateescape"),
                written=[p.name for p in Path(own, "out").iterdir()],
                stray=[p.name for p in Path(own, "tmp").iterdir()],
                seconds=usage.ru_utime + usage.ru_stime,
                most_bytes=usage.ru_maxrss << 10,
            )

    @staticmethod
    def _named(word: str, out: Path) -> str:
        if not word.startswith("OUT"):
            return word
        return str(out) if word == "OUT" else str(out.with_suffix(word[3:]))


@dataclass
class Ran:
    """A command that has ended."""

    status: int
    stdout: str
    errors: str
    written: list[str]
    stray: list[str]
    seconds: float  # of processor time, of all its processes
    most_bytes: int  # resident, of the largest of its processes

    def fault(self, name: str, as_json: bool) -> tuple[str, str, str] | None:
        """The rule that it breaks."""
        said = [line for line in self.errors.splitlines() if re.match(r"memcli: |  ", line)]
        common = re.sub(r"'[^']*'|[0-9]+", "#", said[0] if said else self.errors[-150:])[:150]
        tail = self.errors[-4000:]
        if "Traceback" in self.errors + self.stdout or re.search(r"^\w*Error: ", self.errors, re.M):
            last = self.errors.strip().rpartition("\n")[2]
            return "traceback", re.sub(r"'[^']*'|[0-9]+", "#", last)[:150], tail
        if self.status not in (0, 1, 2):
            return f"status {self.status}", common, tail
        if self.status and self.written:
            return "output", common, f"{self.written}: {tail}"
        if self.stray:
            return "stray files", common, f"{self.stray}: {tail}"
        plain = self.errors.replace("\n", "").replace("\r", "") + self.stdout.replace("\n", "")
        if not plain.isprintable():
            return "unprintable", common, ascii(plain)[-4000:]
        if self.status == 2 and (not said or name not in said[0]):
            return "no name", common, tail
        if self.status == 2 and len(said) > 2:
            return "lines", common, tail
        if self.status == 2 and not as_json and self.stdout:
            return "output", common, self.stdout[:1000]
        if as_json and (self.status or self.stdout.strip()):
            try:
                answer = json.loads(self.stdout)
                assert isinstance(answer, dict)
                assert not self.status or answer["error"]["status"] == self.status
            except (ValueError, AssertionError, KeyError, TypeError):
                return "no JSON object", common, self.stdout[:1000]
        return None


# -- rounds ------------------------------------------------------------------------------------


class _Found(Exception):
    """Tells hypothesis of a finding, for it to shrink."""


class _Enough(KeyboardInterrupt):
    """Ends hypothesis's run: it lets nothing else pass."""


def run_round(job: dict[str, Any]) -> None:
    """One round, in a process of its own; a line of JSON for each thing that it tells.

    ``job``: level, seed (a number), count, ends (time.time()), known (keys of findings), only,
    folder (for the input that is judged, and for commands).
    """
    level, folder = job["level"], Path(job["folder"])
    bases = unmutated_bases()
    bases = [b for b in [*bases, *planned_bases(bases)] if job["only"] in f"{b.name} {b.kind}"]
    if level == "engines":
        bases = [base for base in bases if base.kind != "costs"]
    outcomes: Counter[tuple[str, str]] = Counter()
    known = set(job["known"])
    shrinking: list[Finding] = []
    commands = Commands(folder)
    current = folder / "current"

    def judge(base: Base, data: bytes, number: int) -> tuple[str, Finding | None]:
        current.write_bytes(f"{base.name}\n".encode() + data)
        if level == "readers":
            return judge_reader(base, data)
        if level == "engines":
            return judge_engine(base, data)
        choices = commands_for(base)
        return commands.judge(base, data, choices[number % len(choices)], number % 7 == 0)

    phases = [Phase.generate, Phase.shrink] if level == "readers" else [Phase.generate]

    from hypothesis import strategies as st

    @seeded(job["seed"])
    @settings(
        max_examples=50 * job["count"],
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
    )
    @given(mutations(bases, level != "engines"), st.integers(0, 1 << 20))
    def one(mutated: tuple[Base, bytes], number: int) -> None:
        done = sum(outcomes.values()) - outcomes["", "unread"] >= job["count"]
        if done or time.time() > job["ends"] or len(shrinking) > _MOST_SHRINKING:
            raise _Enough
        base, data = mutated
        if level == "commands" and number % 5 and not _is_read(base, data):
            return  # four of five get past the readers
        outcome, finding = judge(base, data, number)
        if not shrinking:
            outcomes["" if outcome == "unread" else base.name, outcome] += 1
        if finding is None or finding.key in known:
            return
        if phases[-1] is not Phase.shrink or finding.kind in ("slow", "large"):
            known.add(finding.key)
            _tell("finding", asdict(finding) | {"data": finding.data.hex()})
        elif not shrinking or finding.key == shrinking[0].key:
            shrinking.append(finding)
            raise _Found

    with contextlib.suppress(_Found, _Enough):
        one()
    if shrinking:
        last = min(shrinking, key=lambda f: abs(len(f.data) - len(_data_of(bases, f))))
        _tell("finding", asdict(last) | {"data": last.data.hex()})
    _tell("done", {"outcomes": [[*key, n] for key, n in outcomes.items()], **_most})


def _data_of(bases: Sequence[Base], finding: Finding) -> bytes:
    return next(base.data for base in bases if base.name == finding.base)


def _is_read(base: Base, data: bytes) -> bool:
    try:
        read(base, data)
    except Exception:
        return False
    return True


def _tell(what: str, value: Any) -> None:
    print(json.dumps({what: value}), flush=True)


@dataclass
class Result:
    """What a run of many rounds came to."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (base, outcome)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0  # the most that an input took of a processor
    most_bytes: int = 0  # readers: that an input added; commands: of a process; engines: of all
    rounds: int = 0

    @property
    def inputs(self) -> int:
        """That got as far as the level is about."""
        return sum(n for (_, outcome), n in self.outcomes.items() if outcome != "unread")


def fuzz(
    level: str,
    count: int,
    seed: int = 0,
    *,
    seconds: float = float("inf"),
    only: str = "",
    keep: Path | None = None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> Result:
    """Rounds of mutated inputs until ``count`` are judged or ``seconds`` over."""
    result = Result()
    ends = time.time() + seconds
    in_vain = 0  # rounds without an input, one after the other
    while result.inputs < count and time.time() < ends and in_vain < 3:
        job = {
            "level": level,
            "seed": 100_000 * seed + result.rounds,
            "only": only,
            "count": min(LEVELS[level], count - result.inputs),
            "ends": min(ends, 1e12),
            "known": [finding.key for finding in result.findings],
        }
        before = result.inputs
        for finding in _round(job, result):
            finding.seed = f"{seed}.{result.rounds}"
            result.findings.append(finding)
            if keep is not None:
                _keep(finding, keep, len(result.findings))
            on_finding(finding)
        result.rounds += 1
        in_vain = in_vain + 1 if result.inputs == before else 0
    return result


def _round(job: dict[str, Any], result: Result) -> Iterator[Finding]:
    """A round's findings; its counts are added to the result."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        told = json.dumps({**job, "folder": folder})
        with tempfile.TemporaryFile() as errors:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            process = subprocess.Popen(
                [sys.executable, __file__, "--round", told],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
            assert process.stdout is not None
            done = False
            for line in process.stdout:
                said = json.loads(line)
                if "finding" in said:
                    data = bytes.fromhex(said["finding"].pop("data"))
                    yield Finding(**said["finding"], data=data)
                    continue
                done = True
                for base, outcome, number in said["done"]["outcomes"]:
                    result.outcomes[base, outcome] += number
                result.seconds = max(result.seconds, said["done"]["seconds"])
                result.most_bytes = max(result.most_bytes, int(said["done"]["bytes"]))
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if job["level"] == "engines":
                result.most_bytes = max(result.most_bytes, usage.ru_maxrss << 10)
            if not done:
                errors.seek(0)
                tail = errors.read()[-4000:].decode(errors="replace")
                name, _, data = Path(folder, "current").read_bytes().partition(b"\n")
                how = f"ended with {process.returncode}"
                where = f"{how}: {tail.strip().rpartition(chr(10))[2][:100]}"
                yield Finding(job["level"], name.decode(), "crash", where, tail, data=data)


def _keep(finding: Finding, folder: Path, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{finding.level}-{finding.seed}-{number}-{finding.base}"
    (folder / name).write_bytes(finding.data)
    values = {k: v for k, v in asdict(finding).items() if k != "data"}
    with (folder / "findings.jsonl").open("a") as file:
        print(json.dumps({"file": name, **values}), file=file)


def again(files: Sequence[Path]) -> Result:
    """Judges kept files once more; their names say the level and the base."""
    result = Result()
    _limit_readers()
    plain = unmutated_bases()
    bases = {base.name: base for base in [*plain, *planned_bases(plain)]}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        commands = Commands(Path(folder))
        for path in files:
            level, _, _, name = path.name.split("-", 3)
            base, data = bases[name], path.read_bytes()
            if level == "commands":
                judged = [commands.judge(base, data, c, False) for c in commands_for(base)]
            else:
                judged = [(judge_reader if level == "readers" else judge_engine)(base, data)]
            for outcome, finding in judged:
                result.outcomes[name, outcome] += 1
                result.findings += [finding] if finding else []
    return result


def _limit_readers() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def over(number: int, frame: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGPROF, over)


def print_table(level: str, result: Result) -> None:
    """A row for each base."""
    outcomes = sorted({outcome for base, outcome in result.outcomes if base})
    print(f"{'file':<24}{'inputs':>8}" + "".join(f"{outcome:>10}" for outcome in outcomes))
    names = sorted({base for base, _ in result.outcomes if base})
    for name in [*names, "all"]:
        row = [
            sum(
                n
                for (base, what), n in result.outcomes.items()
                if what == outcome and base and name in (base, "all")
            )
            for outcome in outcomes
        ]
        print(f"{name:<24}{sum(row):>8}" + "".join(f"{n:>10}" for n in row))
    whose = "added by an input" if level == "readers" else "of a process"
    print(
        f"{level}: {result.inputs} inputs in {result.rounds} rounds, "
        f"{len(result.findings)} findings; at most {result.seconds:.1f} s of a processor, and "
        f"{result.most_bytes >> 20} MiB {whose}"
    )


def main() -> int:
    """Prints the table; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--level", choices=list(LEVELS), default="readers")
    parser.add_argument("--count", type=int, default=2000, help="inputs")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop then")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files with this in their name or kind")
    parser.add_argument("--keep", type=Path, help="folder for what is found")
    parser.add_argument("--again", type=Path, nargs="+", help="judge kept files once more")
    parser.add_argument("--round", help=argparse.SUPPRESS)
    given_options = parser.parse_args()
    if given_options.round:
        job = json.loads(given_options.round)
        _limit_readers()
        if job["level"] == "readers":
            resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
        run_round(job)
        return 0
    if given_options.again:
        result = again(given_options.again)
        for finding in result.findings:
            print_finding(finding)
        return 1 if result.findings else 0
    print(f"seed {given_options.seed}", flush=True)
    result = fuzz(
        given_options.level,
        given_options.count,
        given_options.seed,
        only=given_options.only,
        seconds=given_options.seconds,
        keep=given_options.keep,
        on_finding=print_finding,
    )
    print_table(given_options.level, result)
    return 1 if result.findings else 0


def print_finding(finding: Finding) -> None:
    """What was found, and with what seed."""
    head = f"FOUND {finding.base} (seed {finding.seed}): {finding.kind}: {finding.where}"
    print(
        ascii(head)[1:-1],
        *[f"    {ascii(finding.command)[1:-1]}"] * bool(finding.command),
        *(f"    {ascii(line)[1:-1]}" for line in finding.text.splitlines()[-6:]),
        sep="\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
