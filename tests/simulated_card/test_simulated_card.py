"""PyTorch's CUDA build on a simulated card: the real allocator under the real operators.

Memory is counted there for real, and nothing is computed. See README.md beside this file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .build import build
from .environment import headers

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_CORPUS = _ROOT.parent / "shared" / "corpus" / "onnx"
_TORCH = os.environ.get("MEMCLI_CUDA_TORCH", "")

Runner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Runs a program of Python on the simulated card.

    A function of CUDA's that is reached, that nobody wrote and that ``known_stubs.txt`` does not
    name fails the test: what it should have answered is not known.
    """
    if not _TORCH:
        pytest.skip("needs PyTorch's CUDA build: see tests/simulated_card/README.md")
    folder = Path(_TORCH)
    if not (folder / "torch" / "lib" / "libtorch_cuda.so").exists():
        pytest.skip(f"{folder}: holds no CUDA build of PyTorch")
    cuda = headers(folder)
    if cuda is None or shutil.which("cc") is None or shutil.which("nm") is None:
        pytest.skip("needs a C compiler, nm and CUDA's headers")
    out = tmp_path_factory.mktemp("card")
    build(folder / "torch" / "lib", cuda, out)
    known = set((_HERE / "known_stubs.txt").read_text().split("\n"))
    reached = out / "reached.txt"

    def run(
        *arguments: str | Path, status: int | None = 0, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        reached.write_text("")
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(out),
            "PATH": f"{_HERE / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(_ROOT), str(folder)]),
            "SIMULATED_CARD_STUBS": str(reached),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            **settings,
        }
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        if "CUDA_VISIBLE_DEVICES" in settings:
            environment["CUDA_VISIBLE_DEVICES"] = settings["CUDA_VISIBLE_DEVICES"]
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment,
            cwd=out,
            capture_output=True,
            text=True,
            check=False,
        )
        unknown = sorted(set(reached.read_text().split("\n")) - known - {""})
        assert not unknown, f"functions that nobody wrote were reached: {unknown}"
        if status is not None:
            assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    return run


_SAYS = """
import os, torch
cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print([card.name + " " + str(card.uuid)[:2] for card in cards])
a = torch.ones(1 << 20, device="cuda")
free, total = torch.cuda.mem_get_info()
print(a.sum().item(), a.cpu().sum().item(), free < total)
os.sys.stdout.flush(); os._exit(0)
"""


def test_the_card_says_that_it_is_simulated_and_shows_the_devices_asked_for(card: Runner) -> None:
    done = card(
        "-c",
        _SAYS,
        SIMULATED_CARD="a100",
        SIMULATED_CARD_DEVICES="4",
        CUDA_VISIBLE_DEVICES="3,1,9,0",
        SIMULATED_CARD_ZEROS="1",
    )
    assert done.stdout.splitlines() == [
        "['Simulated A100-80GB 44', 'Simulated A100-80GB 22']",
        "0.0 0.0 True",
    ]


def test_pytorchs_allocator_and_its_emulation_agree_at_every_step(card: Runner) -> None:
    assert "6000 steps" in card(_HERE / "fuzz_allocator.py", "6000", "1", "0").stdout


def test_they_run_out_of_memory_at_the_same_request(card: Runner) -> None:
    capacity = 256 << 20
    done = card(
        _HERE / "fuzz_allocator.py",
        "1500",
        "2",
        str(capacity),
        SIMULATED_CARD_MEMORY=str(capacity),
    )
    assert "1500 steps" in done.stdout
    assert " 0 refused" not in done.stdout


def test_operators_take_inside_themselves_what_the_rules_say(card: Runner) -> None:
    done = card(_ROOT / "benchmarks" / "operator_temporaries.py", "--types", "float32")
    assert "take memory inside" in done.stdout


@pytest.mark.skipif(not _CORPUS.is_dir(), reason="needs the corpus in ../shared")
def test_steps_take_what_is_estimated_to_the_byte(card: Runner) -> None:
    done = card(
        _ROOT / "benchmarks" / "card_estimates.py",
        _CORPUS / "tv-resnet18-train-loss-ts.onnx",
        *["--precision", "float32", "bfloat16", "--budget", "none", "60%", "--time-limit", "4"],
    )
    assert "1 of 1 models: 0 bytes off" in done.stdout
    assert "plans take at most their budget" in done.stdout


@pytest.mark.skipif(not _CORPUS.is_dir(), reason="needs the corpus in ../shared")
def test_verify_says_where_it_ran_and_nothing_of_bits(card: Runner, tmp_path: Path) -> None:
    model, planned = _CORPUS / "onnxzoo-light_squeezenet.onnx", tmp_path / "planned.onnx"
    state = {"XDG_STATE_HOME": str(tmp_path)}
    options = ["--gpu", "0", "--budget", "60%", "--time-limit", "4", "--json"]
    made = json.loads(card("-m", "memcli", "plan", model, "-o", planned, *options, **state).stdout)
    assert made["memory"]["on_card"]["reserved"] > made["memory"]["planned_bytes"]
    verify = ["-m", "memcli", "verify", planned, "--original", model, "--gpu", "0", "--steps", "0"]
    found = json.loads(card(*verify, "--json", **state).stdout)
    assert found["device"] == "simulated card"
    assert found["ok"] is None
    assert found["gradients"]["compared"] == 0
    assert found["memory_ok"]
    for run in (found["baseline"], found["planned"]):
        assert run["measured_bytes"] == run["estimated_bytes"]
    text = card(*verify, **state).stdout
    assert "simulated card" in text
    assert "verified" not in text
