"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from memcli.choices import COSTS, OPTIMIZERS
from memcli.cli.shape_file import read_shape_file
from memcli.engines.user_code import check_files
from memcli.errors import BadInput
from memcli.quoting import STANDARD, whole_number
from memcli.request import ShapeRequest

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


class GivenShapes(tuple[str, ...]):
    """The texts of ``--shape``, and what ``--shapes`` read: true where either is given."""

    from_file: dict[str, list[int]]

    def __bool__(self) -> bool:
        return bool(len(self) or self.from_file)


_FROM_FILE = "memcli.shapes"


def _keep_file(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[_FROM_FILE] = read_shape_file(value)


def _with_file(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> GivenShapes:
    given = GivenShapes(value)
    given.from_file = ctx.meta.get(_FROM_FILE, {})
    return given


_SHAPES_FILE = click.option(
    "--shapes",
    "shape_file",
    metavar="FILE.json",
    is_eager=True,
    expose_value=False,
    callback=_keep_file,
    help='Shapes of many inputs at once: {"NAME": [32, 3, 224, 224], ...}. --shape goes before.',
)
_SHAPE = click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_with_file,
    metavar="[NAME=]D,D,...",
    help="Shape of an input, as data=32,3,224,224; NAME may be a glob (t*_data=64,50). "
    "Without NAME where the graph has one free input. Repeatable.",
)


def frozen_option(command: F) -> F:
    """``--frozen``."""
    return click.option(
        "--frozen",
        multiple=True,
        metavar="GLOB",
        help="Parameters that are not trained (grad_req null, requires_grad False), by name: "
        "--frozen 'stage[1-3]_*'. The inputs then have no gradient either. Repeatable.",
    )(command)


def import_option(command: F) -> F:
    """``--import``."""
    return click.option(
        "--import",
        "imports",
        multiple=True,
        metavar="FILE",
        type=click.Path(),
        help="MXNet: run this Python file of yours in the engine's process first; it registers "
        "the user operators (Custom) of the graph. It is code, and it is run: name only files that "
        "you trust. Repeatable.",
    )(command)


def shape_options(command: F) -> F:
    """``--shape``, ``--shapes``, ``--batch`` and ``--dtype``."""
    return _SHAPE(_SHAPES_FILE(_BATCH(_DTYPE(command))))


def sample_options(command: F) -> F:
    """``--shape``, ``--shapes`` and ``--dtype``, where the batch is the command's to choose."""
    return _SHAPE(_SHAPES_FILE(_DTYPE(command)))


def training_option(command: F) -> F:
    """``--as-training``."""
    return click.option(
        "--as-training",
        is_flag=True,
        help="ONNX: put BatchNorm and Dropout back into training mode before planning.",
    )(command)


def workers_option(command: F) -> F:
    """``--workers``."""
    return click.option(
        "--workers",
        type=click.IntRange(1, 1024),
        default=1,
        metavar="N",
        help="ONNX, on the CPU: N processes that train together by torch.distributed (gloo), each "
        "with its part of the batch. --gpu 0,1 is the same with a card for each.",
    )(command)


def refuse_json_beside(out: str | None, as_json: bool) -> None:
    """Raises BadInput where ``-o -`` and ``--json`` both want standard output."""
    if out == STANDARD and as_json:
        raise BadInput(
            "-o - writes the result to standard output, where --json has its object",
            "give -o a file, or leave --json out",
        )


def written_to(out: str, what: str = "the planned graph") -> str:
    """Where the result went, for the last line of a report."""
    return f"{what} to standard output" if out == STANDARD else out


def gpu_numbers(text: str | None, workers: int = 1) -> tuple[int, ...]:
    """The cards of ``--gpu``; none where it is not given.

    Args:
        text: numbers with commas.
        workers: of ``--workers``.

    Raises:
        BadInput: not the numbers of cards, one twice, or ``--workers`` beside it.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    found = [whole_number(part, 99_999) for part in parts]
    numbers = tuple(number for number in found if number is not None)
    if len(numbers) < len(found):
        raise BadInput(f"--gpu {text}: not the number of a card", "write it like --gpu 0")
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
        "--cost",
        type=click.Choice(COSTS),
        default="roofline",
        show_default=True,
        help="What recomputing an operator costs: a roofline of its FLOPs and bytes, FLOPs "
        "alone, or its time measured on the device.",
    )(command)


def optimizer_option(command: F) -> F:
    """``--optimizer``."""
    return click.option(
        "--optimizer",
        type=click.Choice(list(OPTIMIZERS)),
        default="sgd",
        show_default=True,
        help="What it keeps beside parameters and gradients, in float32: sgd nothing, momentum one "
        "copy of the parameters, adam two. ONNX: in the parameters' own type, with what PyTorch's "
        "step of it takes for a moment (on a card foreach, by default, or fused).",
    )(command)


def reserve_option(command: F) -> F:
    """``--reserve``."""
    return click.option(
        "--reserve",
        metavar="SIZE",
        help="Leave this much free: for the engine itself, CUDA's context, cuDNN's workspaces and "
        "the like, none of which is counted. [default: what is assumed for these, which the "
        "answer tells: on a card 512 MiB and 256 MiB (MXNet: 5% of the card), on the CPU the "
        "process]",
    )(command)


def kernels_option(command: F) -> F:
    """``--kernels``."""
    return click.option(
        "--kernels",
        type=click.Choice(["plain", "any"]),
        default="plain",
        show_default=True,
        help="MXNet: plain: its own kernels run every plan. any: a plan may need oneDNN (MXNet's "
        "default on CPUs) or cuDNN, and says so.",
    )(command)


def json_option(command: F) -> F:
    """``--json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
    )(command)


def parse_shapes(
    shapes: tuple[str, ...],
    batch: int | None,
    dtype: str | None,
    frozen: tuple[str, ...] = (),
    imports: tuple[str, ...] = (),
) -> ShapeRequest:
    """The user's shapes.

    Args:
        shapes: texts of ``--shape``.
        batch: of ``--batch``.
        dtype: of ``--dtype``.
        frozen: globs of ``--frozen``.
        imports: files of ``--import``.

    Raises:
        BadInput: text that is no shape, a name given twice, an impossible batch.
    """
    request = ShapeRequest(batch=batch, dtype=dtype, frozen=frozen, imports=check_files(imports))
    if batch is not None and not 0 < batch < 1 << 31:
        raise BadInput(f"--batch {batch} is not possible: it must be between 1 and 2147483647")
    named: list[str] = []
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
            named.append(name)
        elif request.unnamed is not None:
            raise BadInput("--shape without a name is given twice", "name them: --shape NAME=...")
        else:
            request.unnamed = shape
    # what is said last counts, a glob included
    request.shapes = {**getattr(shapes, "from_file", {}), **request.shapes}
    for name in named:
        request.shapes[name] = request.shapes.pop(name)
    return request
