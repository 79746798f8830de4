"""``memcli strip``: a plan goes on, and comes off without a trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.conftest import Command, needs_mxnet, only_json
from tests.integration.test_rewrites import dense_block
from tests.integration.test_rewrites import residual_network as residual_symbol
from tests.small_onnx import residual_network


@needs_mxnet
@pytest.mark.parametrize(
    "text", [residual_symbol("LeakyReLU", "leaky"), dense_block(8)], ids=["residual", "dense"]
)
def test_a_symbol_is_what_it_was(text: str, memcli: Command, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(text)
    done = memcli("plan", "net.json", "-o", "p.json")
    assert done.returncode == 0, done.stderr
    assert "rewritten" in done.stdout
    done = memcli("strip", "p.json", "-o", "back.json", "--json")
    told = only_json(done)
    assert told["removed_nodes"] > 0 and told["marks"] > 0 and told["format"] == "mxnet-symbol"
    assert json.loads((tmp_path / "back.json").read_text()) == json.loads(text)
    again = memcli("strip", "back.json", "-o", "twice.json")
    assert again.returncode == 2 and "carries no plan" in again.stderr
    assert not (tmp_path / "twice.json").exists()


def test_an_onnx_file_is_the_original_to_the_byte(memcli: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    residual_network(tmp_path / "net.onnx", 2)
    original = (tmp_path / "net.onnx").read_bytes()
    done = memcli("plan", "net.onnx", "--batch", "2", "--strategy", "cheap", "-o", "p.onnx")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.onnx").read_bytes() != original
    done = memcli("strip", "p.onnx", "-o", "back.onnx")
    assert done.returncode == 0 and "net.onnx', byte for byte" in done.stdout
    assert (tmp_path / "back.onnx").read_bytes() == original
    done = memcli("strip", "net.onnx", "-o", "none.onnx")
    assert done.returncode == 2 and "net.onnx: carries no plan" in done.stderr


def test_a_caffe_net_is_the_original_to_the_byte(memcli: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.caffe_nets import inputs, layer

    text = "# mine\n" + inputs(data=(4, 8), label=(4,))
    text += layer("InnerProduct", "data", "a", "inner_product_param { num_output: 8 }", "fc1")
    text += layer("ReLU", "a", "b", name="act")
    text += layer("InnerProduct", "b", "c", "inner_product_param { num_output: 2 }", "fc2")
    text += layer("SoftmaxWithLoss", "c label", "loss", name="loss")
    (tmp_path / "net.prototxt").write_text(text)
    done = memcli("plan", "net.prototxt", "--strategy", "cheap", "-o", "p.prototxt")
    assert done.returncode == 0, done.stderr
    told = only_json(memcli("strip", "p.prototxt", "-o", "back.prototxt", "--json"))
    assert told["is_original"] and told["format"] == "caffe-prototxt"
    assert (tmp_path / "back.prototxt").read_text() == text


def test_out_is_kept_unless_it_is_forced(memcli: Command, tmp_path: Path) -> None:
    """A file with marks and no record: what memonger's script saves."""
    nodes = [
        {"op": "null", "name": "data", "inputs": []},
        {
            "op": "Flatten",
            "name": "flat",
            "attrs": {"__force_mirroring__": "True"},
            "inputs": [[0, 0, 0]],
        },
    ]
    raw = {
        "nodes": nodes,
        "arg_nodes": [0],
        "heads": [[1, 0, 0]],
        "attrs": {"mxnet_version": ["int", 10901]},
    }
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(json.dumps(raw).encode()))
    (tmp_path / "out.json").write_text("mine")
    done = memcli("strip", "p.json.gz", "-o", "out.json")
    assert done.returncode == 2 and "--force" in done.stderr
    assert (tmp_path / "out.json").read_text() == "mine"
    done = memcli("strip", "p.json.gz", "-o", "out.json", "--force")
    assert done.returncode == 0, done.stderr
    assert "1 mark was taken off" in done.stderr
    assert "mirroring" not in (tmp_path / "out.json").read_text()
    done = memcli("strip", "p.json.gz", "-o", "p.json.gz", "--force")
    assert done.returncode == 2 and "never overwritten" in done.stderr
