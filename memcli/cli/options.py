"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from memcli.engines.analysis import ShapeRequest
from memcli.errors import BadInput
from memcli.workflow.costs import COSTS

F = TypeVar("F", bound=Callable[..., Any])

DTYPES = ("float32", "float16", "float64")


class _Number(click.FloatRange):
    """A number that is not negative; neither infinite nor what is no number."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = super().convert(value, param, ctx)
        if number is not None and not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


PERCENT = _Number(min=0)
SECONDS = _Number(min=0, max=1e6)
# What the generators of numpy, PyTorch and MXNet take.
SEED = click.IntRange(0, 2**31 - 1)

_DTYPE = click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=None,
    help="Type of the inputs; parameters follow. [default: float32]",
)
_BATCH = click.option(
    "--batch", type=int, default=None, metavar="N", help="Leading dimension of the inputs."
)
_SHAPE = click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="[NAME=]D,D,...",
    help="Shape of an input, as data=32,3,224,224; NAME may be a glob (t*_data=64,50). "
    "Without NAME where the graph has one free input. Repeatable.",
)


def shape_options(command: F) -> F:
    """``--shape``, ``--batch`` and ``--dtype``."""
    return _SHAPE(_BATCH(_DTYPE(command)))


def sample_options(command: F) -> F:
    """``--shape`` and ``--dtype``, where the batch is the command's own to choose."""
    return _SHAPE(_DTYPE(command))


def training_option(command: F) -> F:
    """``--as-training``."""
    return click.option(
        "--as-training", is_flag=True,
        help="ONNX: put BatchNorm and Dropout back into training mode before planning.",
    )(command)  # fmt: skip


def workers_option(command: F) -> F:
    """``--workers``."""
    return click.option(
        "--workers", type=click.IntRange(1, 1024), default=1, metavar="N",
        help="ONNX, on the CPU: N processes that train together by torch.distributed (gloo), each "
        "with its part of the batch. --gpu 0,1 is the same with a card for each.",
    )(command)  # fmt: skip


def gpu_numbers(text: str | None, workers: int = 1) -> tuple[int, ...]:
    """The cards of ``--gpu``; none where it is not given.

    Raises:
        BadInput: not the numbers of cards, one twice, or ``--workers`` beside it.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise BadInput(f"--gpu {text}: not the number of a card", "write it like --gpu 0")
    numbers = tuple(map(int, parts))
    if len(set(numbers)) < len(numbers):
        raise BadInput(f"--gpu {text}: a card is named twice", "each worker has a card of its own")
    if workers > 1:
        raise BadInput("--workers is for the CPU: --gpu 0,1 has a worker on each card")
    return numbers


def one_gpu(text: str | None) -> int | None:
    """The card of ``--gpu`` where there can be one alone.

    Raises:
        BadInput: not the number of one card.
    """
    numbers = gpu_numbers(text)
    if len(numbers) > 1:
        raise BadInput(f"--gpu {text}: one card alone goes here", "write it like --gpu 0")
    return numbers[0] if numbers else None


def cost_option(command: F) -> F:
    """``--cost``."""
    return click.option(
        "--cost", type=click.Choice(COSTS), default="roofline", show_default=True,
        help="What running an operator again costs: a roofline of its FLOPs and bytes, FLOPs "
        "alone, or its time measured on the device.",
    )(command)  # fmt: skip


def json_option(command: F) -> F:
    """``--json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
    )(command)


def parse_shapes(
    shapes: tuple[str, ...], batch: int | None, dtype: str | None
) -> ShapeRequest:
    """The user's shapes.

    Raises:
        BadInput: text that is no shape, a name given twice, an impossible batch.
    """
    request = ShapeRequest(batch=batch, dtype=dtype)
    if batch is not None and not 0 < batch < 1 << 31:
        raise BadInput(f"--batch {batch} is not possible: it must be between 1 and 2147483647")
    for text in shapes:
        name, equals, dimensions = text.rpartition("=")
        try:
            shape = [int(d) for d in dimensions.strip("()[] ").split(",") if d.strip()]
        except ValueError:
            raise BadInput(
                f"--shape {text}: not a shape", "write it like --shape data=32,3,224,224"
            ) from None
        if not shape:
            raise BadInput(f"--shape {text}: no dimensions", "write it like data=32,3,224,224")
        if any(d <= 0 for d in shape):
            raise BadInput(f"--shape {text}: every dimension must be positive")
        if equals and not name:
            raise BadInput(f"--shape {text}: no name before the '='")
        if equals:
            if name in request.shapes:
                raise BadInput(f"--shape {name} is given twice")
            request.shapes[name] = shape
        elif request.unnamed is not None:
            raise BadInput("--shape without a name is given twice", "name them: --shape NAME=...")
        else:
            request.unnamed = shape
    return request
