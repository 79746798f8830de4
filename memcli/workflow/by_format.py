"""Commands that take files of any format, told by what is in them."""

from __future__ import annotations

from collections.abc import Callable

from memcli.engines.analysis import ShapeRequest
from memcli.errors import BadInput
from memcli.formats.detect import ModelFormat, detect_format, read_model_bytes
from memcli.planners.base import Settings
from memcli.workflow import (
    inspecting,
    onnx_inspecting,
    onnx_planning,
    onnx_verifying,
    planning,
    verifying,
)
from memcli.workflow.inspected import Inspected

Progress = Callable[[str, float | None], None]


def format_of(path: str) -> ModelFormat:
    """What kind of model a file is.

    Raises:
        BadInput: unreadable, or neither.
    """
    return detect_format(read_model_bytes(path)[0], path)


def make_plan(
    model: str,
    request: ShapeRequest,
    strategy: str,
    settings: Settings,
    *,
    budget: str | None = None,
    device: str = "cpu",
    training: bool = False,
    out: str | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> planning.Planned | onnx_planning.OnnxPlanned:
    """``memcli plan``; see :func:`planning.make_plan` and :func:`onnx_planning.make_onnx_plan`."""
    planning.check_output(model, out, force)
    if format_of(model) == "onnx":
        return onnx_planning.make_onnx_plan(
            model, request, strategy, settings, budget=budget, device=device, training=training,
            out=out, force=force, on_progress=on_progress,
        )  # fmt: skip
    if training:
        raise BadInput("--as-training is for ONNX files: an MXNet symbol is always in both modes")
    return planning.make_plan(
        model, request, strategy, settings, budget=budget, device=device, out=out, force=force,
        on_progress=on_progress,
    )  # fmt: skip


def verify(
    planned: str,
    *,
    original: str | None = None,
    gpu: int | None = None,
    seed: int = 0,
    request: ShapeRequest | None = None,
    on_progress: Progress | None = None,
) -> verifying.Verified:
    """``memcli verify``; see :func:`verifying.verify` and :func:`onnx_verifying.verify_onnx`."""
    run = onnx_verifying.verify_onnx if format_of(planned) == "onnx" else verifying.verify
    return run(
        planned, original=original, gpu=gpu, seed=seed, request=request, on_progress=on_progress
    )


def inspect(
    path: str,
    request: ShapeRequest | None = None,
    *,
    dtype: str | None = None,
    top: int = 10,
    on_progress: Progress | None = None,
) -> Inspected:
    """``memcli inspect``; see :func:`onnx_inspecting.inspect_onnx`, and :mod:`inspecting`."""
    look = onnx_inspecting.inspect_onnx if format_of(path) == "onnx" else inspecting.inspect
    return look(path, request, dtype=dtype, top=top, on_progress=on_progress)
