"""Caffe nets planned and verified by the real commands in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from memcli.torch import load  # noqa: E402
from tests.caffe_nets import densenet, inputs, layer, write  # noqa: E402
from tests.conftest import Command, only_json  # noqa: E402


def test_a_planned_net_takes_less_memory_and_changes_no_bit(
    memcli: Command, tmp_path: Path
) -> None:
    text = densenet(dense_block=True, dropout=0.2)
    write(tmp_path / "train_test.prototxt", text)
    done = memcli(
        "plan",
        "train_test.prototxt",
        "--strategy",
        "sqrt",
        "-o",
        "planned.prototxt",
        "--json",
        "--measure",
    )
    assert done.returncode == 0, done.stderr
    assert "left out: Accuracy" in done.stderr
    plan = only_json(done)
    memory, verified = plan["memory"], plan["verify"]
    assert plan["model"]["format"] == "caffe-prototxt"
    assert plan["shapes"] == {"data": [4, 3, 32, 32], "label": [4]} and not plan["assumed_shapes"]
    assert memory["planned_bytes"] < 0.6 * memory["baseline_bytes"]
    for run in ("baseline", "planned"):
        assert verified[run]["measured_bytes"] == memory[f"{run}_bytes"]
    for part in ("outputs", "gradients", "states"):
        assert 0 < verified[part]["compared"] == verified[part]["bit_equal"]
    written = (tmp_path / "planned.prototxt").read_text()
    kept = [line for line in written.splitlines() if not line.lstrip().startswith("# memcli")]
    assert kept == text.splitlines()

    looked = only_json(memcli("inspect", "planned.prototxt", "--json"))
    assert looked["model"]["format"] == "caffe-prototxt"
    assert looked["memory"]["planned_bytes"] == memory["planned_bytes"]
    module = load(tmp_path / "planned.prototxt", weights="random")
    loss = module(torch.randn(2, 3, 32, 32), torch.tensor([1, 7]))
    loss.backward()
    assert loss.dim() == 0
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_a_plan_is_written_as_onnx_that_trains(memcli: Command, tmp_path: Path) -> None:
    write(tmp_path / "net.prototxt", densenet(bottleneck=True, batch=16))
    done = memcli("plan", "net.prototxt", "--strategy", "cheap", "--batch", "2", "-o", "p.onnx")
    assert done.returncode == 0, done.stderr
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2])
    found = []
    for plan in (True, False):
        module = load(tmp_path / "p.onnx", weights="random", plan=plan)
        module(images, labels).backward()
        found.append([p.grad for p in module.parameters()])
    assert len(found[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_largest_batch_is_written_with_its_plan(memcli: Command, tmp_path: Path) -> None:
    text = layer("Data", "", "data label", "data_param { batch_size: 8 }", "data")
    of = "convolution_param { num_output: 8 kernel_size: 3 pad: 1 }"
    bottom = "data"
    for k in range(4):
        text += layer("Convolution", bottom, f"c{k}", of, f"c{k}")
        text += layer("ReLU", f"c{k}", f"r{k}", name=f"r{k}")
        bottom = f"r{k}"
    text += layer("InnerProduct", bottom, "f", "inner_product_param { num_output: 3 }", "f")
    text += layer("SoftmaxWithLoss", "f label", "loss", name="loss")
    write(tmp_path / "net.prototxt", text)
    shape = ("--shape", "data=8,1,16,16")
    done = memcli(
        "fit",
        "net.prototxt",
        *shape,
        "--memory",
        "4MiB",
        "--reserve=0",
        "--cpu",
        "--strategy",
        "cheap",
        "-o",
        "fit.prototxt",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = only_json(done)
    assert found["planned"]["batch"] > found["unplanned"]["batch"] > 8
    assert (
        f"# memcli: planned for data {found['planned']['batch']},1,16,16; label"
        in (tmp_path / "fit.prototxt").read_text()
    )


def test_what_cannot_be_done_is_said_and_nothing_is_written(
    memcli: Command, tmp_path: Path
) -> None:
    write(tmp_path / "good.prototxt", densenet())
    write(tmp_path / "bad.prototxt", inputs(x=(2, 3)) + layer("LSTM", "x", name="recurrent"))
    write(tmp_path / "broken.prototxt", densenet()[:-30])
    for arguments, words in (
        (("good.prototxt", "-o", "p.json"), "is written as .prototxt or as .onnx"),
        (("good.prototxt", "-o", "good.prototxt", "--force"), "never overwritten"),
        (("good.prototxt", "--as-training", "-o", "p.prototxt"), "read in its phase TRAIN"),
        (("bad.prototxt", "-o", "p.prototxt"), "'recurrent' (line 2)"),
        (("broken.prototxt", "-o", "p.prototxt"), "broken.prototxt: line "),
    ):
        done = memcli("plan", *arguments)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr
        assert 1 <= len(done.stderr.strip().splitlines()) <= 2
    done = memcli("verify", "good.prototxt")
    assert done.returncode == 2 and "carries no plan" in done.stderr
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {
        "good.prototxt",
        "bad.prototxt",
        "broken.prototxt",
    }
