"""The MXNet engine's processes: one real step, its memory, and what happens when one dies."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcli.engines import gpus
from memcli.engines.gpus import check_gpu
from memcli.engines.mxnet import shim as mxnet_shim
from memcli.engines.mxnet.step import train_step
from memcli.engines.processes.jobs import run_job
from memcli.engines.processes.parent_side import WorkerFailed
from memcli.engines.processes.worker import engine_text
from memcli.errors import BadInput, EngineFailed
from tests.conftest import needs_mxnet

ROOT = Path(__file__).resolve().parents[2]
BATCH, CHANNELS, SIDE = 4, 16, 24
MAP_BYTES = BATCH * CHANNELS * SIDE * SIDE * 4


def conv_net(blocks: int = 4, marked: frozenset[str] = frozenset()) -> str:
    """A symbol JSON: ``blocks`` times convolution, BatchNorm and ReLU, then a softmax loss.

    The nodes named in ``marked`` are to be recomputed.
    """
    nodes: list[dict[str, Any]] = []

    def add(op: str, name: str, inputs: list[int], **attrs: str) -> int:
        if name in marked:
            attrs["__force_mirroring__"] = "True"
        node: dict[str, Any] = {"op": op, "name": name, "inputs": [[i, 0, 0] for i in inputs]}
        nodes.append(node | ({"attrs": attrs} if attrs else {}))
        return len(nodes) - 1

    top = add("null", "data", [])
    for i in range(blocks):
        weight = add("null", f"conv{i}_weight", [])
        top = add(
            "Convolution",
            f"conv{i}",
            [top, weight],
            kernel="(3, 3)",
            pad="(1, 1)",
            num_filter=str(CHANNELS),
            no_bias="True",
        )
        inputs = [add("null", f"bn{i}_{part}", []) for part in ("gamma", "beta", "mean", "var")]
        top = add("BatchNorm", f"bn{i}", [top, *inputs], fix_gamma="False")
        top = add("Activation", f"relu{i}", [top], act_type="relu")
    top = add("Pooling", "pool", [top], global_pool="True", kernel="(1, 1)", pool_type="avg")
    weight, bias = add("null", "fc_weight", []), add("null", "fc_bias", [])
    top = add("FullyConnected", "fc", [top, weight, bias], num_hidden="5")
    label = add("null", "softmax_label", [])
    top = add("SoftmaxOutput", "softmax", [top, label])
    return json.dumps(
        {
            "nodes": nodes,
            "arg_nodes": [i for i, node in enumerate(nodes) if node["op"] == "null"],
            "heads": [[top, 0, 0]],
            "attrs": {"mxnet_version": ["int", 10901]},
        }
    )


def step(folder: Path, name: str, symbol: str, **job: Any) -> dict[str, Any]:
    """One step of ``symbol``; its results go to ``NAME.npz``."""
    path = folder / f"{name}.json"
    path.write_text(symbol)
    whole = {
        "symbol": str(path),
        "shapes": {"data": [BATCH, 3, SIDE, SIDE]},
        "save": str(folder / f"{name}.npz"),
        "env": {"OMP_NUM_THREADS": "2"},
    }
    return train_step(whole | job, workdir=folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same net plain, plain under the ordinary engine, and with most of it recomputed."""
    folder = tmp_path_factory.mktemp("steps")
    # All but one ReLU, from whose output the backward pass starts again.
    names = {f"{kind}{i}" for kind in ("conv", "bn", "relu") for i in range(4)} - {"relu1"}
    marked = conv_net(marked=frozenset(names))
    return {
        "folder": folder,
        "plain": step(folder, "plain", conv_net(), trace=True),
        "threaded": step(folder, "threaded", conv_net(), repeat=2),
        "marked": step(folder, "marked", marked, trace=True),
    }


def assert_same_bits(folder: Path, first: str, second: str) -> None:
    """Every array of two steps is equal to the bit."""
    with np.load(folder / f"{first}.npz") as a, np.load(folder / f"{second}.npz") as b:
        assert set(a.files) == set(b.files)
        assert len(a.files) > 20
        for key in a.files:
            assert a[key].dtype == b[key].dtype, key
            assert a[key].tobytes() == b[key].tobytes(), key


@needs_mxnet
def test_recomputing_changes_no_bit(runs: dict[str, Any]) -> None:
    assert_same_bits(runs["folder"], "plain", "marked")
    for name in ("plain", "marked"):
        assert runs[name]["repeatable"]
        assert runs[name]["nonfinite"] == {"outputs": 0, "gradients": 0, "states": 0}


@needs_mxnet
def test_tracing_changes_no_bit(runs: dict[str, Any]) -> None:
    assert_same_bits(runs["folder"], "plain", "threaded")
    assert runs["threaded"]["trace"] is None
    assert runs["threaded"]["step_seconds"] > 0
    plain, threaded = (runs[n]["after_backward_bytes"] for n in ("plain", "threaded"))
    assert abs(plain - threaded) < MAP_BYTES // 4


@needs_mxnet
def test_labels_are_classes_and_gradients_are_not_all_zero(runs: dict[str, Any]) -> None:
    with np.load(runs["folder"] / "plain.npz") as arrays:
        assert np.abs(arrays["out_0"].sum(axis=1) - 1).max() < 1e-5
        names = runs["plain"]["arguments"]
        for name in ("conv0_weight", "bn2_gamma", "fc_bias"):
            assert np.abs(arrays[f"grad_{names.index(name)}"]).max() > 0, name
        told = json.loads(arrays["names"].tobytes())
        assert told["arguments"] == names


@needs_mxnet
def test_measured_memory_is_that_of_the_feature_maps(runs: dict[str, Any]) -> None:
    plain = runs["plain"]
    # Convolution and BatchNorm of each block are kept; ReLU works in BatchNorm's buffer or its own.
    # The books of the C library are good for some KB, which is much for so small a net.
    kept = plain["after_forward_bytes"] / MAP_BYTES
    assert 7.95 < kept < 12.5
    assert plain["peak_bytes"] >= plain["after_backward_bytes"] - MAP_BYTES // 10
    assert plain["bound_bytes"] >= plain["arrays_bytes"] > 0
    saved = plain["peak_bytes"] - runs["marked"]["peak_bytes"]
    assert saved > MAP_BYTES


@needs_mxnet
@pytest.mark.parametrize("name", ["plain", "marked"])
def test_trace_grows_and_names_every_operator(runs: dict[str, Any], name: str) -> None:
    trace = runs[name]["trace"]
    rows = [row for part in ("forward", "backward") for row in trace[part]]
    sizes = [size for _, size in rows]
    slack = MAP_BYTES // 20  # the pool only grows; the C library's books move by a few KB
    assert all(b >= a - slack for a, b in itertools.pairwise(sizes))
    assert sizes[-1] == pytest.approx(runs[name]["after_backward_bytes"], abs=slack)
    forward = [output for output, _ in trace["forward"]]
    backward = [output for output, _ in trace["backward"]]
    assert [f"conv{i}_output" for i in range(4)] == [o for o in forward if o.startswith("conv")]
    assert any(re.match(r"conv2_(mirror_)?backward", output) for output in backward)
    mirrored = any(output == "relu2_mirror_output" for output in backward)
    assert mirrored == (name == "marked")


@needs_mxnet
def test_outputs_that_are_no_losses_get_gradients_of_ones(tmp_path: Path) -> None:
    raw = json.loads(conv_net(blocks=1))
    raw["nodes"] = raw["nodes"][:-2]
    raw["heads"] = [[len(raw["nodes"]) - 1, 0, 0]]
    raw["arg_nodes"] = [i for i, n in enumerate(raw["nodes"]) if n["op"] == "null"]
    result = step(tmp_path, "open", json.dumps(raw))
    assert result["head_gradients"]
    with np.load(tmp_path / "open.npz") as arrays:
        bias = arrays[f"grad_{result['arguments'].index('fc_bias')}"]
    assert np.array_equal(bias, np.full(5, BATCH, np.float32))


@needs_mxnet
def test_gradients_of_unwritten_memory_are_left_out(tmp_path: Path) -> None:
    raw = json.loads(conv_net(blocks=1))
    reshape = {"op": "Reshape", "name": "flat", "attrs": {"shape": "(-1,)"}}
    label = len(raw["nodes"]) - 2
    raw["nodes"].insert(label + 1, reshape | {"inputs": [[label, 0, 0]]})
    raw["nodes"][-1]["inputs"][1] = [label + 1, 0, 0]
    raw["heads"] = [[label + 2, 0, 0]]
    shapes = {"data": [BATCH, 3, SIDE, SIDE], "softmax_label": [BATCH]}
    result = step(tmp_path, "label", json.dumps(raw), shapes=shapes)
    index = result["arguments"].index("softmax_label")
    assert result["undefined"] == [index]
    assert index not in result["gradients"]
    assert result["unstable"] == []
    with np.load(tmp_path / "label.npz") as arrays:
        assert f"grad_{index}" not in arrays.files


@needs_mxnet
def test_a_graph_that_does_not_bind_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="MXNet"):
        step(tmp_path, "bad", conv_net(), shapes={"data": [BATCH, 3, SIDE]})


# --------------------------------------------------------------------------- processes

WORKER = """
import os, signal, sys, time
from memcli.engines.processes.worker import worker_main
from memcli.errors import BadInput

def load():
    with open(os.environ["MEMCLI_LOADS"], "a") as loads:
        loads.write("loaded\\n")
    if "MEMCLI_CRASH" in os.environ:
        print("about to crash", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

def handle(job, workdir, progress):
    print("python says hello", flush=True)
    os.system("echo a program says hello")
    progress("working", 0.5)
    (workdir / "pid").write_text(str(os.getpid()))
    if job["do"] == "signal":
        os.kill(os.getpid(), job["signal"])
    if job["do"] == "sleep":
        time.sleep(60)
    if job["do"] == "refuse":
        raise BadInput("the file is bad", "mend it")
    if job["do"] == "bug":
        {}["absent"]
    return {"path": sys.path, "env": os.environ.get("MEMCLI_TEST")}

if __name__ == "__main__":
    worker_main(handle)
"""


WAYS = [pytest.param(False, id="fresh")]
if sys.platform == "linux":
    WAYS.append(pytest.param(True, id="forked"))


@pytest.fixture(params=WAYS)
def preloaded(request: pytest.FixtureRequest) -> bool:
    """Whether jobs run in forks of a process that has the engine loaded."""
    return bool(request.param)


@pytest.fixture
def worker(tmp_path: Path, preloaded: bool) -> Path:
    """A folder with the module ``small_worker``; a file ``preloaded`` says how it is run."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "small_worker.py").write_text(WORKER)
    if preloaded:
        (tmp_path / "preloaded").touch()
    return tmp_path


def run_small(worker: Path, do: str, **more: Any) -> dict[str, Any]:
    """``small_worker`` doing one of the things it can."""
    env = {"PYTHONPATH": str(worker / "modules"), "MEMCLI_TEST": "1"}
    return run_job(
        "small_worker",
        {"do": do, "signal": int(more.pop("signal", 0))},
        workdir=worker,
        env={**env, "MEMCLI_LOADS": str(worker / "loads"), **more.pop("env", {})},
        doing="training one step of net.json",
        preloaded=(worker / "preloaded").exists(),
        **more,
    )


def test_only_progress_comes_through(worker: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[tuple[str, float | None]] = []
    result = run_small(worker, "work", on_progress=lambda *said: heard.append(said))
    assert result["env"] == "1"
    assert heard == [("working", 0.5)]
    assert capfd.readouterr() == ("", "")


def test_current_folder_is_not_on_the_workers_path(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(worker)
    assert "" not in run_small(worker, "work")["path"]


@pytest.mark.parametrize(
    ("number", "help_"), [(signal.SIGSEGV, "original"), (signal.SIGKILL, "memory")]
)
def test_a_crash_names_signal_and_job(worker: Path, number: signal.Signals, help_: str) -> None:
    with pytest.raises(EngineFailed) as caught:
        run_small(worker, "signal", signal=number)
    assert number.name in caught.value.message
    assert "training one step of net.json (working)" in caught.value.message
    assert help_ in caught.value.hint
    assert caught.value.exit_status == 3
    assert "hello" in caught.value.log_tail  # type: ignore[attr-defined]


def test_errors_of_the_worker_come_back_as_what_they_are(worker: Path) -> None:
    with pytest.raises(BadInput) as refused:
        run_small(worker, "refuse")
    assert refused.value.lines() == ["the file is bad", "mend it"]
    with pytest.raises(WorkerFailed, match="KeyError: 'absent'") as broken:
        run_small(worker, "bug")
    assert "small_worker.py" in broken.value.log_tail


def test_a_worker_that_takes_too_long_is_ended(worker: Path) -> None:
    with pytest.raises(WorkerFailed, match="longer than 1 s"):
        run_small(worker, "sleep", timeout=1.0)
    assert_gone(int((worker / "pid").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="engines are loaded for each job")
@pytest.mark.parametrize("preloaded", [True], indirect=True)
def test_an_engine_is_loaded_once(worker: Path) -> None:
    with pytest.raises(WorkerFailed):
        run_small(worker, "signal", signal=signal.SIGSEGV)
    first = (worker / "pid").read_text()
    assert run_small(worker, "work")["env"] == "1"
    assert (worker / "pid").read_text() != first  # a crash took its own process alone
    assert (worker / "loads").read_text() == "loaded\n"
    # what is read when an engine is loaded may be another one with another environment
    assert run_small(worker, "work", env={"MEMCLI_TEST": "2"})["env"] == "2"
    assert (worker / "loads").read_text() == "loaded\n" * 2


@pytest.mark.skipif(sys.platform != "linux", reason="engines are loaded for each job")
@pytest.mark.parametrize("preloaded", [True], indirect=True)
def test_an_engine_that_crashes_when_it_is_loaded(worker: Path) -> None:
    for _ in range(2):
        with pytest.raises(WorkerFailed, match=r"SIGSEGV.*Its last words: about to crash"):
            run_small(worker, "work", env={"MEMCLI_CRASH": "1"})


def assert_gone(pid: int) -> None:
    """The process is no more, or only its entry is (init may be slow to take that)."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_memcli(worker: Path, preloaded: bool, number: signal.Signals) -> None:
    script = (
        "import sys, signal; from pathlib import Path\n"
        "from memcli.engines.processes.jobs import run_job\n"
        # A test runner in the background may have it ignored, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"run_job('small_worker', {{'do': 'sleep', 'signal': 0}}, preloaded={preloaded},"
        "        workdir=Path(sys.argv[1]))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(worker / "modules")])}
    env["MEMCLI_LOADS"] = str(worker / "loads")
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(worker)], env=env, stderr=subprocess.DEVNULL
    )
    pid_file = worker / "pid"
    for _ in range(200):
        if pid_file.exists() and pid_file.read_text():
            break
        time.sleep(0.05)
    parent.send_signal(number)
    parent.wait(10)
    assert_gone(int(pid_file.read_text()))
    if number == signal.SIGINT:
        assert not list(worker.glob("job-*"))


def test_the_line_of_an_engine_error_that_counts() -> None:
    text = (
        "simple_bind error. Arguments:\ndata: (8, 3)\nTraceback (most recent call last):\n"
        '  File "../src/executor/../common/exec_utils.h", line 415\n'
        "MXNetError: Error in operator n18: [23:49:37] ../src/operator/nn/dropout.cc:132: "
        "input type to dropout is not specified.\nStack trace:\n  [bt] (0) libmxnet.so(+0x1)"
    )
    assert engine_text(text) == "Error in operator n18: input type to dropout is not specified."


# --------------------------------------------------------------------------- graphics cards


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts an nvidia-smi on PATH that shows cards of the given compute capabilities."""

    def put(*capabilities: str, knows_capability: bool = True) -> None:
        rows = [
            f"{i}, Card {c}, {c + ', ' if knows_capability else ''}24576 MiB, 535.1, GPU-{i}"
            for i, c in enumerate(capabilities)
        ]
        refuse = "" if knows_capability else "case $1 in *compute_cap*) exit 6;; esac\n"
        body = "".join(f"echo '{row}'\n" for row in rows)
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{refuse}{body}")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return put


def test_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.list_gpus() == []
    with pytest.raises(EngineFailed, match="No GPU here") as caught:
        check_gpu(0)
    assert "--cpu" in caught.value.hint


@pytest.mark.parametrize("capability", ["9.0", "12.0", "3.7"])
def test_card_without_machine_code_is_refused(nvidia_smi: Any, capability: str) -> None:
    nvidia_smi(capability)
    with pytest.raises(EngineFailed) as caught:
        check_gpu(0)
    assert f"compute capability {capability}" in caught.value.message
    assert "no PTX" in caught.value.message
    assert "memcli verify --cpu" in caught.value.hint


@pytest.mark.parametrize("capability", ["5.0", "8.0", "8.6"])
def test_usable_card_needs_the_cuda_build(
    nvidia_smi: Any, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    nvidia_smi(capability)
    monkeypatch.setattr(mxnet_shim, "library_path", lambda: Path("libmxnet.so"))
    monkeypatch.setattr(mxnet_shim, "is_cuda_build", lambda: False)
    with pytest.raises(EngineFailed, match="CPU build") as caught:
        check_gpu(0)
    assert "memcli[cu112]" in caught.value.hint
    monkeypatch.setattr(mxnet_shim, "is_cuda_build", lambda: True)
    assert check_gpu(0).capability_text == capability


def test_cards_are_numbered_as_cuda_does(nvidia_smi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi("9.0", "8.0")
    with pytest.raises(EngineFailed, match="no GPU 2"):
        check_gpu(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.capability_text for gpu in gpus.visible_gpus()] == ["8.0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-0")
    assert [gpu.index for gpu in gpus.visible_gpus()] == [1, 0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineFailed, match="hides all cards"):
        check_gpu(0)


def test_driver_that_does_not_tell_the_capability(nvidia_smi: Any) -> None:
    nvidia_smi("8.0", knows_capability=False)
    (gpu,) = gpus.list_gpus()
    assert (gpu.capability, gpu.memory_bytes, gpu.driver) == (None, 24 << 30, "535.1")
