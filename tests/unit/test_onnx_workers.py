"""How a batch is split over workers: shapes alone, nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx")


from memcli.engines.torch.split import split_request
from memcli.errors import BadInput
from memcli.formats.onnx.file import read_onnx
from memcli.request import ShapeRequest
from tests.small_onnx import Model, dense_network


def test_the_batch_is_of_all_workers_wherever_it_stands(tmp_path: Path) -> None:
    m = Model()
    m.node("Add", ["sequence", "label"], "y")
    inputs = {"sequence": (12, "batch", 6), "label": ("batch", 1)}
    file = read_onnx(str(m.write(tmp_path / "m.onnx", inputs, {"y": (12, "batch", 6)})))
    asked, split, _ = split_request(file, ShapeRequest(shapes={"sequence": [12, 6, 6]}), 3)
    assert asked.shapes == {"sequence": [12, 2, 6], "label": [2, 1]}
    assert (split.workers, split.batch, split.each) == (3, 6, 2)


def test_a_plan_for_some_workers_is_run_by_others(tmp_path: Path) -> None:
    file = read_onnx(str(dense_network(tmp_path / "dense.onnx")))
    planned = ShapeRequest(shapes={"image": [8, 3, 12, 12]})
    for made_for, workers, each in ((1, 2, 4), (2, 2, 8), (2, 4, 4), (4, 2, 16)):
        asked, split, _ = split_request(file, planned, workers, made_for)
        assert asked.shapes == {"image": [each, 3, 12, 12]}
        assert split.batch == 8 * made_for == each * workers


def test_a_guessed_batch_is_said(tmp_path: Path) -> None:
    file = read_onnx(str(dense_network(tmp_path / "dense.onnx")))
    asked, split, assumed = split_request(file, ShapeRequest(), 4)
    assert assumed == ["image"]
    assert asked.shapes["image"][0] * 4 == split.batch


def test_what_has_no_equal_parts_is_refused(tmp_path: Path) -> None:
    file = read_onnx(str(dense_network(tmp_path / "dense.onnx")))
    with pytest.raises(BadInput, match=r"batch of 10 .* 4 workers") as refused:
        split_request(file, ShapeRequest(batch=10), 4)
    assert "--batch 8" in refused.value.hint
    m = Model()
    m.node("Relu", ["x"], "y")
    fixed = read_onnx(str(m.write(tmp_path / "fixed.onnx", {"x": ()}, {"y": ()})))
    with pytest.raises(BadInput, match="no input has a batch"):
        split_request(fixed, ShapeRequest(), 2)
