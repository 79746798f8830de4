"""Several workers that train one ONNX model together, on the CPU: real processes, gloo, DDP."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from memcli.cli.main import status  # noqa: E402
from memcli.engines.processes.jobs import run_jobs  # noqa: E402
from memcli.engines.torch.record import job_of  # noqa: E402
from memcli.engines.torch.runs import train  # noqa: E402
from memcli.errors import EngineFailed  # noqa: E402
from memcli.formats.onnx.file import read_onnx  # noqa: E402
from memcli.formats.onnx.plan import write_plan  # noqa: E402
from memcli.formats.onnx.roles import tensor_roles  # noqa: E402
from memcli.formats.trained_file import new_plan  # noqa: E402
from tests.conftest import ROOT, Command, only_json, start_memcli  # noqa: E402
from tests.small_onnx import Model, dense_network, residual_network  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch has no torch.distributed with gloo",
)


def test_two_workers_have_the_plans_bits_and_its_memory(memcli: Command, tmp_path: Path) -> None:
    path = dense_network(tmp_path / "dense.onnx")
    done = memcli(
        "plan",
        str(path),
        "--batch",
        "8",
        "--workers",
        "2",
        "--strategy",
        "cheap",
        "-o",
        "p.onnx",
        "--json",
        "--measure",
    )
    assert done.returncode == 0, done.stderr
    plan = only_json(done)
    verified = plan["verify"]
    split = {"workers": 2, "batch": 8, "batch_each": 4}
    assert plan["split"] == verified["split"] == split
    # what the file says is what each worker runs
    assert plan["shapes"] == verified["shapes"] == {"image": [4, 3, 12, 12]}
    assert read_onnx(str(tmp_path / "p.onnx")).plan().workers == 2  # type: ignore[union-attr]
    memory = plan["memory"]
    assert [row["rank"] for row in verified["workers"]] == [0, 1]
    for row in (*verified["workers"], verified):
        for run, size in (("baseline", "baseline_bytes"), ("planned", "planned_bytes")):
            assert row[run]["measured_bytes"] == row[run]["estimated_bytes"] == memory[size]
            assert row[run]["step_seconds"] > 0
    parameters = memory["parameter_bytes"]
    for row in verified["workers"]:
        assert row["device"] == row["name"] == "cpu"
        # the buckets are told apart: they are none of the feature maps
        assert row["bucket_bytes"] == row["gradient_bytes"] == parameters
    for part in ("outputs", "gradients", "states"):
        counts = [row[part]["bit_equal"] for row in verified["workers"]]
        assert counts[0] == counts[1] > 0
        assert verified[part]["compared"] == verified[part]["bit_equal"] == sum(counts)
    assert verified["ok"] and verified["device"] == "cpu"
    assert not any("gradients are not the same" in note for note in verified["notes"])


def two_headed(path: Path) -> Path:
    """A loss, and an output beside it whose weights get no gradient."""
    m = Model()
    x = m.normalised(m.convolution("image", "stem", 8, 3), "norm", 8)
    x = m.node("ReduceMean", [x], "mean", axes=[2, 3], keepdims=0)
    side = m.node("MatMul", [x, m.weight("side.weight", 8, 5)], "side")
    x = m.node("MatMul", [x, m.weight("fc.weight", 8, 10)], "logits")
    x = m.node("Mul", [x, x], "square")
    loss = m.node("ReduceMean", [x], "loss", axes=[0, 1], keepdims=0)
    return m.write(path, {"image": ("N", 3, 12, 12)}, {loss: (), side: ("N", 5)})


def test_gradients_are_the_mean_of_all_workers(tmp_path: Path) -> None:
    file = read_onnx(str(two_headed(tmp_path / "two.onnx")))
    roles: dict[str, str] = {name: leaf.role for name, leaf in tensor_roles(file).items()}
    job = job_of(file, {"image": [2, 3, 12, 12]}, roles, tmp_path / "model.onnx")

    def arrays(name: str, devices: int, seed: int) -> list[Any]:
        train(name, job, {}, tmp_path, ["cpu"] * devices, seed, 1, None)
        return [dict(np.load(tmp_path / f"{name}-{rank}.npz")) for rank in range(devices)]

    workers = arrays("both", 2, 0)
    alone = [arrays(f"alone{seed}", 1, seed)[0] for seed in (0, 1)]
    gradients = [key for key in alone[0] if key.startswith("grad_")]
    assert len(gradients) == 4  # those of stem, norm and fc: the side's weights get none
    for key in gradients:
        mean = (alone[0][key] + alone[1][key]) / 2
        assert not np.array_equal(alone[0][key], alone[1][key])
        # a process alone has more threads than each worker, and may round otherwise for it
        assert all(np.allclose(found[key], mean, rtol=1e-5, atol=1e-6) for found in workers)
        assert np.array_equal(workers[0][key], workers[1][key])
    for key in alone[0].keys() - set(gradients):  # outputs and BatchNorm's statistics are its own
        assert all(np.array_equal(a[key], b[key]) for a, b in zip(workers, alone, strict=True))


def workers_of(pid: int) -> list[int]:
    """Processes that train for a command, in the order in which it started them."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"memcli.engines.torch.step" in command and str(pid).encode() in command:
            found.append(int(entry.name))
    return sorted(found)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.parametrize("ending", ["crash", "interrupt"])
def test_no_worker_is_left_behind(tmp_path: Path, ending: str) -> None:
    file = read_onnx(str(residual_network(tmp_path / "residual.onnx")))
    shapes = {"image": [4, 3, 16, 16]}
    marks = dict.fromkeys(file.node_names, "kept")
    plan = new_plan(file, marks, strategy="by hand", shapes=shapes, dtype="float32")
    write_plan(file, plan, tmp_path / "p.onnx", overwrite=False)
    process = start_memcli("verify", "p.onnx", "--batch", "64", "--workers", "2", cwd=tmp_path)
    assert process.stderr is not None
    assert any("with the others" in line for line in process.stderr)  # they have found each other
    workers = workers_of(process.pid)
    assert len(workers) == 2
    if ending == "crash":
        os.kill(workers[1], signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert workers_of(process.pid) == []
    assert "Traceback" not in errors
    if ending == "interrupt":
        assert process.returncode == 130, errors
        return
    # not worker 0, which lost its connection to the one that was killed
    assert process.returncode == 3, errors
    assert "worker 1" in errors and "SIGKILL" in errors and "baseline graph" in errors


WORKER = """
import time
from memcli.engines.processes.parent_side import PeerLost
from memcli.engines.processes.worker import worker_main

def handle(job, workdir, progress):
    progress("at work", 0.5)
    time.sleep(job["seconds"])
    if job["ends"] == "lost":
        raise PeerLost("it lost its connection to another worker")
    if job["ends"] == "memory":
        raise MemoryError("Cannot allocate memory for 7 tensors")
    return {}

if __name__ == "__main__":
    worker_main(handle)
"""


def test_the_worker_that_began_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "group_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    jobs = [
        {"ends": "lost", "seconds": 0},
        {"ends": "memory", "seconds": 1},
        {"ends": "well", "seconds": 300},
    ]
    began = time.monotonic()
    with pytest.raises(EngineFailed, match=r"worker 1: .*out of memory.*7 tensors"):
        run_jobs("group_worker", jobs, labels=[f"worker {k}" for k in range(3)])
    assert time.monotonic() - began < 60  # nobody waited for the third


def test_what_cannot_be_split_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(dense_network(tmp_path / "dense.onnx"))
    symbol = str(ROOT / "examples" / "lstm-symbol.json")
    for arguments, said in (
        (["plan", path, "--batch", "7", "--workers", "3"], "batch of 7"),
        (["plan", path, "--gpu", "0,0"], "twice"),
        (["plan", path, "--gpu", "0,1", "--workers", "2"], "on each card"),
        (["plan", symbol, "--workers", "2"], "MXNet symbol"),
        (["verify", symbol, "--gpu", "0,1"], "MXNet symbol"),
    ):
        assert status(arguments) == 2
        assert said in capsys.readouterr().err
