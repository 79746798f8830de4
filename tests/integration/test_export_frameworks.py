"""Keras models through tf2onnx, and scripts of ``memcli export`` run by TensorFlow and JAX."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from memcli.cli.main import status
from memcli.formats.onnx.file import read_onnx
from memcli.formats.onnx.plan import write_plan
from memcli.formats.onnx.training import as_training
from memcli.formats.trained_file import new_plan
from tests.conftest import ROOT

pytest.importorskip("torch")


def _there(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


needs_tensorflow = pytest.mark.skipif(
    not _there("tensorflow", "keras", "tf2onnx"),
    reason="TensorFlow, Keras and tf2onnx are not installed: pip install 'memcli[tensorflow]'",
)
needs_jax = pytest.mark.skipif(
    not _there("jax", "keras"), reason="JAX and Keras are not installed: memcli[jax,tensorflow]"
)


def run(script: str, *arguments: str) -> str:
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "integration" / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def by_hand(folder: Path, name: str, batch: int) -> None:
    """A plan as ``memcli plan`` writes them, without its search: sums and products stay."""
    file, restored = as_training(read_onnx(folder / f"{name}.onnx"))
    (given,) = file.inputs
    marks = {
        name: "kept" if node.op_type in ("Add", "MatMul") else "again"
        for name, node in zip(file.node_names, file.graph.node, strict=True)
    }
    shapes = {given.name: [batch, *(int(d) for d in (given.dims or ())[1:] if d)]}
    plan = new_plan(
        file, marks, strategy="by hand", shapes=shapes, dtype="float32", as_training=restored
    )
    write_plan(file, plan, folder / f"{name}-planned.onnx", overwrite=False)


def exported(folder: Path, name: str, target: str) -> None:
    """The script ``NAME_script.py`` from ``NAME-planned.onnx``."""
    plan, script = folder / f"{name}-planned.onnx", folder / f"{name}_script.py"
    assert status(["export", str(plan), "--to", target, "-o", str(script)]) == 0


@pytest.mark.slow
@needs_tensorflow
def test_keras_models_are_planned_and_trained_with_recompute_grad(tmp_path: Path) -> None:
    run("tensorflow_step.py", "write", str(tmp_path))
    # an LSTM is one operator that runs as a whole: it is planned, and there is little to wrap
    for name in ("densenet", "lstm"):
        path, out = str(tmp_path / f"{name}.onnx"), str(tmp_path / f"{name}-planned.onnx")
        options = ["--as-training", "--batch", "8", "--strategy", "sqrt"]
        assert status(["plan", path, "-o", out, *options]) == 0
    for name in ("residual", "transformer"):
        by_hand(tmp_path, name, 8)
    for name in ("densenet", "residual", "transformer"):
        exported(tmp_path, name, "tensorflow")
    found = json.loads(run("tensorflow_step.py", "train", str(tmp_path)).splitlines()[-1])
    for name in ("densenet", "residual", "transformer"):
        assert found[name]["groups"] > 1
        for how in {"eager", "graph"} & set(found[name]):
            ran = found[name][how]
            assert ran["difference"] < 1e-4, (name, how)
            # BatchNorm's statistics move once, seeds of Dropout go on as they would have
            assert ran["equal_states"] == ran["states"] > 0, (name, how)
            assert ran["moved_states"] == ran["states"], (name, how)
    plain, wrapped = found["held"]
    assert wrapped < 0.4 * plain


def chain(path: Path, blocks: int, conv: bool) -> None:
    """Layers named as in the JAX programs."""
    rng = np.random.default_rng(0)
    nodes, held, last = [], [], "x"

    def weight(name: str, *shape: int) -> str:
        values = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        held.append(numpy_helper.from_array(values, name))
        return name

    def node(op: str, scope: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        made = [f"{scope}/{op}{len(nodes)}_{k}" for k in range(outputs)]
        name = f"net/{scope}/{op}"
        nodes.append(helper.make_node(op, inputs, made, name=name, **attributes))
        return made[0]

    for k in range(blocks):
        if conv:
            w = weight(f"conv{k}.weight", 16, 16 if k else 3, 3, 3)
            last = node("Conv", f"conv{k}", [last, w], pads=[1] * 4)
            parts = [weight(f"norm{k}.{p}", 16) for p in ("gamma", "beta", "mean", "variance")]
            last = node("BatchNormalization", f"norm{k}", [last, *parts], 3, training_mode=1)
            last = node("Gelu", f"gelu{k}", [last])
            continue
        up, down = weight(f"up{k}", 64, 256), weight(f"down{k}", 256, 64)
        h = node("Gelu", f"block{k}", [node("MatMul", f"block{k}", [last, up])])
        h = node("MatMul", f"block{k}", [node("Sin", f"block{k}", [h]), down])
        last = node("Add", f"block{k}", [last, h])
    dims: list[int | str] = ["n", 3, 16, 16] if conv else ["n", 64]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        held,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(made, path)


@needs_jax
def test_scopes_of_jax_are_recomputed(tmp_path: Path) -> None:
    chain(tmp_path / "blocks.onnx", 8, False)
    chain(tmp_path / "chain.onnx", 8, True)
    for name, batch in (("blocks", 256), ("chain", 8)):
        by_hand(tmp_path, name, batch)
        exported(tmp_path, name, "jax")
    found = json.loads(run("jax_step.py", str(tmp_path)).splitlines()[-1])
    assert found["groups"] > 1
    for name, part in (("blocks", 0.75), ("keras", 0.9)):
        assert found[name]["difference"] < 1e-5 and found[name]["arrays"] > 10
        plain, wrapped = found[name]["bytes"]
        assert wrapped < part * plain, name
    assert "no operation is in the scope elsewhere" in found["refused"]
