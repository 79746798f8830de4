"""Commands that take files of any format, told by what is in them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from memcli.engines.analysis import ShapeRequest
from memcli.engines.child import WorkerFailed
from memcli.engines.gpus import check_gpu, visible_gpus
from memcli.errors import BadInput, EngineFailed
from memcli.formats.detect import Model, ModelFormat, ModelSource, model_path, read_source
from memcli.formats.wording import STANDARD, shown_path
from memcli.planners.base import Settings
from memcli.workflow import (
    comparing,
    exporting,
    fitting,
    inspecting,
    onnx_comparing,
    onnx_fitting,
    onnx_inspecting,
    onnx_planning,
    onnx_verifying,
    planning,
    symbol_in_torch,
    verifying,
)
from memcli.workflow.inspected import Inspected
from memcli.workflow.memory_models import NO_MODELS, ModelRequest
from memcli.workflow.onnx_workers import devices_for
from memcli.workflow.verified import AS_PLANNED, Verified

Progress = Callable[[str, float | None], None]


@contextmanager
def about(*models: Model | None) -> Iterator[None]:
    """Errors of what is done with these files name one of them, whoever raises them."""
    try:
        yield
    except (BadInput, WorkerFailed) as error:
        names = [shown_path(model_path(model)) for model in models if model is not None]
        said = error.message
        if not any(name in said for name in names):
            error.message = f"{names[0]}: {said}"
        raise


def format_of(path: Model) -> ModelFormat:
    """What kind of model a file is.

    Raises:
        BadInput: unreadable, or none that memcli knows.
    """
    return read_source(path).format


def is_of_torch(path: Model) -> bool:
    """Whether PyTorch plans and trains a file: all but MXNet's symbols.

    Raises:
        BadInput: as :func:`format_of`.
    """
    return format_of(path) != "mxnet-symbol"


def refuse_training(training: bool) -> None:
    """Raises BadInput where an MXNet symbol is to be put into training mode."""
    if training:
        raise BadInput("--as-training is for ONNX files: an MXNet symbol is always in both modes")


def refuse_imports(path: Model, request: ShapeRequest | None) -> None:
    """Raises BadInput where the user's operators are named for a file that PyTorch trains."""
    if request is not None and request.imports and is_of_torch(path):
        raise BadInput(
            f"{shown_path(model_path(path))}: is no MXNet symbol, and --import is for MXNet's user "
            "operators"
        )


def refuse_workers(path: Model, gpus: Sequence[int], workers: int) -> None:
    """Raises BadInput where several workers are to train an MXNet symbol."""
    if len(gpus) > 1 or workers > 1:
        raise BadInput(
            f"{shown_path(model_path(path))}: is an MXNet symbol: several workers (--gpu 0,1 or "
            "--workers) are for ONNX files, which PyTorch trains",
            "plan for one device, with its part of the batch: MXNet runs the same graph on each",
        )


def make_plan(
    model: Model,
    request: ShapeRequest,
    strategy: str,
    settings: Settings,
    *,
    budget: str | None = None,
    gpus: Sequence[int] = (),
    workers: int = 1,
    training: bool = False,
    out: str | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> planning.Planned | onnx_planning.OnnxPlanned:
    """``memcli plan``; see :func:`planning.make_plan` and :func:`onnx_planning.make_onnx_plan`.

    ``gpus``: numbers of the cards to plan for, none for the CPU; ``workers``: how many train
    together on the CPU.
    """
    device = devices_for(gpus[:1], 1)[0]
    model = read_source(model)
    refuse_imports(model, request)
    with about(model):
        if is_of_torch(model):
            return onnx_planning.make_onnx_plan(
                model, request, strategy, settings, budget=budget, device=device,
                workers=max(len(gpus), workers), training=training, out=out, force=force,
                on_progress=on_progress,
            )  # fmt: skip
        refuse_training(training)
        refuse_workers(model, gpus, workers)
        return planning.make_plan(
            model, request, strategy, settings, budget=budget, device=device, out=out,
            force=force, on_progress=on_progress,
        )  # fmt: skip


def engine_for(gpu: int | None, wanted: str) -> tuple[str, str]:
    """Which engine verifies an MXNet symbol, ``mxnet`` or ``torch``, and why where it is PyTorch.

    ``wanted``: ``auto``, or one of the two by hand. MXNet where its build has code for the card.
    """
    if wanted != "auto":
        return wanted, "--engine torch" if wanted == "torch" else ""
    if gpu is None:
        return "mxnet", ""
    try:
        check_gpu(gpu)
    except EngineFailed as error:
        if importlib.util.find_spec("torch") is None or gpu >= len(visible_gpus()):
            return "mxnet", ""  # which then says what is missing
        return "torch", error.message
    return "mxnet", ""


def check_card(model: Model, gpus: Sequence[int]) -> None:
    """Refuse a card that an MXNet symbol could not be verified on, before any work is done.

    Raises:
        EngineFailed: there is no such card, or neither MXNet nor PyTorch trains on it here.
    """
    if gpus and not is_of_torch(model) and engine_for(gpus[0], "auto")[0] == "mxnet":
        check_gpu(gpus[0])


def verify(
    planned: Model,
    *,
    original: Model | None = None,
    engine: str = "auto",
    gpus: Sequence[int] = (),
    workers: int = 1,
    seed: int = 0,
    steps: int | None = None,
    kernels: str | None = None,
    request: ShapeRequest | None = None,
    on_progress: Progress | None = None,
) -> Verified:
    """``memcli verify``; see the ``verify`` functions of the modules beside this one.

    ``engine``: for MXNet symbols, see :func:`engine_for`. ``gpus``: numbers of the cards, none for
    the CPU; ``workers``: how many train together there. ``steps``: how many are timed after a
    warm-up step, of which the median counts; None: 5 on a card, on the CPU as many as a few seconds
    allow.
    ``kernels``: for MXNet on the CPU, see :func:`verifying.verify`.

    Raises:
        BadInput: as they do; MXNet or its kernels asked for on an ONNX file, several workers on a
            symbol.
    """
    if planned == original == STANDARD:
        raise BadInput(
            "standard input cannot be both the planned graph and the original",
            "give one of them as a file",
        )
    planned = read_source(planned)
    refuse_imports(planned, request)
    with about(planned, original):
        return _verify(
            planned, original=original, engine=engine, gpus=gpus, workers=workers, seed=seed,
            steps=steps, kernels=kernels, request=request, on_progress=on_progress,
        )  # fmt: skip


def _verify(
    planned: ModelSource,
    *,
    original: Model | None,
    engine: str,
    gpus: Sequence[int],
    workers: int,
    seed: int,
    steps: int | None,
    kernels: str | None,
    request: ShapeRequest | None,
    on_progress: Progress | None,
) -> verifying.Verified:
    onnx = planned.format != "mxnet-symbol"
    if onnx and engine == "mxnet":
        what = "an ONNX file" if planned.format == "onnx" else "a Caffe net"
        raise BadInput(
            f"{shown_path(planned.path)}: is {what}: PyTorch runs it, MXNet does not"
        )
    if kernels not in (None, AS_PLANNED) and (onnx or gpus or engine == "torch"):
        raise BadInput("--kernels is for MXNet graphs that MXNet trains on the CPU")
    if onnx:
        return onnx_verifying.verify_onnx(
            planned, original=original, gpus=gpus, workers=workers, seed=seed, steps=steps,
            request=request, on_progress=on_progress,
        )  # fmt: skip
    refuse_workers(planned, gpus, workers)
    gpu = gpus[0] if gpus else None
    chosen, why = engine_for(gpu, engine)
    if chosen == "torch":
        return symbol_in_torch.verify_symbol_in_torch(
            planned, original=original, gpu=gpu, seed=seed, steps=steps, request=request, why=why,
            on_progress=on_progress,
        )  # fmt: skip
    return verifying.verify(
        planned, original=original, gpu=gpu, seed=seed, steps=steps, kernels=kernels,
        request=request, on_progress=on_progress,
    )  # fmt: skip


def compare(
    model: Model,
    request: ShapeRequest,
    settings: Settings,
    *,
    strategies: Sequence[str] = (),
    budgets: Sequence[str] = (),
    gpu: int | None = None,
    training: bool = False,
    on_progress: Progress | None = None,
) -> comparing.Comparison:
    """``memcli compare``; see :func:`comparing.compare` and :func:`onnx_comparing.compare_onnx`.

    ``gpu``: compare plans for CUDA; operators are timed on this card if ``settings.cost`` says so.
    """
    device = "cpu" if gpu is None else f"gpu:{gpu}"
    model = read_source(model)
    with about(model):
        if is_of_torch(model):
            return onnx_comparing.compare_onnx(
                model, request, settings, strategies=strategies, budgets=budgets,
                device=device, training=training, on_progress=on_progress,
            )  # fmt: skip
        refuse_training(training)
        if gpu is not None and settings.cost != "measured":
            raise BadInput("--gpu is for ONNX files: MXNet plans the same memory on all devices")
        return comparing.compare(
            model, request, settings, strategies=strategies, budgets=budgets, device=device,
            on_progress=on_progress,
        )  # fmt: skip


def fit(
    model: Model,
    request: ShapeRequest,
    memory: int,
    settings: Settings,
    *,
    strategy: str = "auto",
    optimizer: str = "sgd",
    reserve: int | None = None,
    cpu: bool = False,
    gpu: int | None = None,
    training: bool = False,
    out: str | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> fitting.Fitted:
    """``memcli fit``; see :func:`fitting.fit` and :func:`onnx_fitting.fit_onnx`.

    ``reserve``: bytes to leave free; None: what the engine is assumed to take for itself.
    ``cpu``: the memory is the CPU's, and not a card's. ``gpu``: the card to time operators on if
    ``settings.cost`` says so; by default the first for CUDA's memory, else the CPU.
    """
    model = read_source(model)
    with about(model):
        if is_of_torch(model):
            return onnx_fitting.fit_onnx(
                model, request, memory, settings, strategy=strategy, optimizer=optimizer,
                reserve=reserve, device="cpu" if cpu else f"gpu:{gpu or 0}", training=training,
                out=out, force=force, on_progress=on_progress,
            )  # fmt: skip
        refuse_training(training)
        if cpu:
            raise BadInput("--cpu is for ONNX files: MXNet plans the same memory on all devices")
        return fitting.fit(
            model, request, memory, settings, strategy=strategy, optimizer=optimizer,
            reserve=reserve, cpu=cpu, device="cpu" if gpu is None else f"gpu:{gpu}", out=out,
            force=force, on_progress=on_progress,
        )  # fmt: skip


def inspect(
    model: Model,
    request: ShapeRequest | None = None,
    *,
    dtype: str | None = None,
    top: int = 10,
    models: ModelRequest = NO_MODELS,
    on_progress: Progress | None = None,
) -> Inspected:
    """``memcli inspect``; see :func:`onnx_inspecting.inspect_onnx`, and :mod:`inspecting`."""
    model = read_source(model)
    look = onnx_inspecting.inspect_onnx if is_of_torch(model) else inspecting.inspect
    with about(model):
        return look(model, request, dtype=dtype, top=top, models=models, on_progress=on_progress)


def export(
    planned: Model, target: str, *, on_progress: Progress | None = None
) -> exporting.Exported:
    """``memcli export``; see :func:`exporting.export_plan`.

    Raises:
        BadInput: as it does, and for files that are not ONNX.
    """
    planned = read_source(planned)
    if planned.format != "onnx":
        raise BadInput(
            f"{shown_path(planned.path)}: is no ONNX file, and its plan is not for PyTorch, "
            "TensorFlow or JAX",
            "it takes ONNX files that memcli plan wrote; MXNet trains planned symbols as they are",
        )
    with about(planned):
        return exporting.export_plan(planned, target, on_progress)
