"""memcli in Python: the commands with their options as keywords.

Each function gives an object whose ``to_json()`` is what the command's ``--json`` prints. Errors
are those of :mod:`memcli.errors`: ``BadInput``, ``AnswerIsNo`` and ``EngineFailed``.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memcli.choices import CARD_NAMES, OPTIMIZERS
from memcli.errors import BadInput
from memcli.request import Devices, Progress, ShapeRequest
from memcli.search.base import Settings
from memcli.units import parse_size, parse_size_or_zero

if TYPE_CHECKING:
    from memcli.formats.detect import Model
    from memcli.formats.stripped import Stripped
    from memcli.results.compared import Comparison
    from memcli.results.exported import Exported
    from memcli.results.fitted import Fitted
    from memcli.results.inspected import Inspected
    from memcli.results.planned import Planned
    from memcli.results.solved import Solved
    from memcli.results.verified import Verified

Path = str | os.PathLike[str]
Shapes = Mapping[str, Sequence[int]]
Cards = int | Sequence[int] | None


def plan(
    model: Model,
    *,
    output: Path | None = None,
    force: bool = False,
    strategy: str = "auto",
    budget: int | str | None = None,
    memory: int | str | None = None,
    card: str = "",
    optimizer: str = "sgd",
    reserve: int | str | None = None,
    cpu: bool = False,
    max_recompute: float | None = None,
    shapes: Shapes | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    frozen: Sequence[str] = (),
    imports: Sequence[str] = (),
    keep: Sequence[str] = (),
    recompute: Sequence[str] = (),
    threshold: Sequence[int] = (),
    trials: int = 6,
    rewrite: bool = True,
    as_training: bool = False,
    time_limit: float | None = None,
    seed: int = 0,
    environment: str = "best",
    kernels: str = "plain",
    cost: str = "roofline",
    gpu: Cards = None,
    workers: int = 1,
    on_progress: Progress | None = None,
) -> Planned:
    """Searches for a plan, and writes the model with it where ``output`` is given.

    Args:
        model: path of an MXNet symbol, an ONNX file or a Caffe net.
        output: file for the planned model.
        force: replace ``output`` where it exists.
        strategy: name of a search strategy.
        budget: most memory, in bytes or as ``"6GiB"`` or ``"50%"``; None: as little as can be.
        memory: most memory of the whole training step, as ``budget``; in place of it.
        card: the kind of card that ``memory`` is of, and says: a name of ``CARDS``.
        optimizer: a name of ``OPTIMIZERS``.
        reserve: what the engine takes for itself, as ``budget``; None: what is assumed.
        cpu: ``memory`` is the CPU's, and not a card's.
        max_recompute: most recomputation, in percent of the forward pass's FLOPs.
        shapes: of inputs, by name.
        batch: leading dimension of the inputs.
        dtype: of the inputs.
        frozen: globs of parameters that are not trained.
        imports: Python files that register MXNet's user operators. They are run.
        keep: globs of nodes that are never recomputed.
        recompute: globs of nodes that always are.
        threshold: stage sizes to try, MB (strategy ``memonger``).
        trials: thresholds tried after the first three guesses (strategy ``memonger``).
        rewrite: whether nodes may be put into the graph.
        as_training: put BatchNorm and Dropout of an ONNX file back into training mode.
        time_limit: seconds.
        seed: of the search.
        environment: ``best``, or ``default`` where the plan may need no environment variable.
        kernels: ``plain``, or ``any`` where MXNet's plan may need oneDNN or cuDNN.
        cost: what recomputation costs: ``roofline``, ``flops`` or ``measured``.
        gpu: the card, or cards that train together; None: the CPU.
        workers: how many train together on the CPU.
        on_progress: told what is being done, and which part of it is done (0 to 1, or None).

    Raises:
        BadInput: bad file, shapes, options or output.
        AnswerIsNo: no plan fits the budget, or the limit on recomputation.
        EngineFailed: the engine or a device is missing, or it crashed.
    """
    from memcli.commands.plan import make_plan

    settings = Settings(
        thresholds=list(threshold),
        trials=trials,
        keep=list(keep),
        recompute=list(recompute),
        max_recompute=None if max_recompute is None else max_recompute / 100,
        time_limit=time_limit,
        environment=environment,
        kernels=kernels,
        cost=cost,
        rewrite=rewrite,
        seed=seed,
    )
    _check_strategy(strategy)
    return make_plan(
        model,
        _request(shapes, batch, dtype, frozen, imports),
        strategy,
        settings,
        budget=_size_text(budget),
        memory=_size(memory),
        card=_one_of(card, CARD_NAMES, "card"),
        optimizer=_one_of(optimizer, OPTIMIZERS, "optimizer"),
        reserve=_size(reserve, zero=True),
        cpu=cpu,
        devices=_devices(gpu, workers),
        training=as_training,
        out=None if output is None else os.fspath(output),
        force=force,
        on_progress=on_progress,
    )


def verify(
    planned: Model,
    *,
    original: Model | None = None,
    gpu: Cards = None,
    workers: int = 1,
    engine: str = "auto",
    seed: int = 0,
    steps: int | None = None,
    kernels: str | None = None,
    shapes: Shapes | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    frozen: Sequence[str] = (),
    imports: Sequence[str] = (),
    on_progress: Progress | None = None,
) -> Verified:
    """Trains a step of the planned model and of its original, and compares everything.

    Args:
        planned: path of a planned model.
        original: path of the model without the plan; None: found by name and SHA-256.
        gpu: as for :func:`plan`.
        workers: as for :func:`plan`.
        engine: what trains an MXNet symbol: ``auto``, ``mxnet`` or ``torch``.
        seed: of parameters and inputs.
        steps: how many are timed.
        kernels: MXNet on the CPU: ``plain``, ``default`` or ``both``.
        shapes: in place of the plan's; so are the following.
        batch: leading dimension of the inputs.
        dtype: of the inputs.
        frozen: globs of parameters that are not trained.
        imports: as for :func:`plan`.
        on_progress: as for :func:`plan`.

    Raises:
        BadInput: no plan, no original, or shapes that cannot be.
        EngineFailed: the engine or a device is missing, or a step crashed.
    """
    from memcli.commands.verify import verify as run

    return run(
        planned,
        original=original,
        engine=engine,
        devices=_devices(gpu, workers),
        seed=seed,
        steps=steps,
        kernels=kernels,
        request=_request_or_none(shapes, batch, dtype, frozen, imports),
        on_progress=on_progress,
    )


def inspect(
    model: Model,
    *,
    shapes: Shapes | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    frozen: Sequence[str] = (),
    imports: Sequence[str] = (),
    top: int = 10,
    on_progress: Progress | None = None,
) -> Inspected:
    """What a saved or planned model holds, and where its training memory goes.

    Args:
        model: its path.
        shapes: of inputs, by name, in place of those of the file or plan; so are the following.
        batch: leading dimension of the inputs.
        dtype: of the inputs.
        frozen: globs of parameters that are not trained.
        imports: as for :func:`plan`.
        top: how many of the largest tensors.
        on_progress: as for :func:`plan`.

    Raises:
        BadInput: no such model, or its shapes cannot be told.
        EngineFailed: the engine is missing or crashed.
    """
    from memcli.commands.inspect import inspect as run

    request = _request_or_none(shapes, batch, dtype, frozen, imports)
    return run(model, request, dtype=dtype, top=top, on_progress=on_progress)


def compare(
    model: Model,
    *,
    strategies: Sequence[str] = (),
    budgets: Sequence[str] = (),
    shapes: Shapes | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    frozen: Sequence[str] = (),
    imports: Sequence[str] = (),
    as_training: bool = False,
    time_limit: float | None = None,
    seed: int = 0,
    environment: str = "best",
    kernels: str = "plain",
    cost: str = "roofline",
    gpu: int | None = None,
    on_progress: Progress | None = None,
) -> Comparison:
    """All strategies and several budgets side by side.

    Args:
        model: its path.
        strategies: names; by default those for any graph.
        budgets: sizes such as ``"6GiB"`` or ``"50%"``; by default a ladder of percentages.
        shapes: as for :func:`plan`, and so are the following.
        batch: leading dimension of the inputs.
        dtype: of the inputs.
        frozen: globs of parameters that are not trained.
        imports: Python files that register MXNet's user operators.
        as_training: put an ONNX file back into training mode.
        time_limit: seconds, of each row.
        seed: of the searches.
        environment: ``best`` or ``default``.
        kernels: ``plain`` or ``any``.
        cost: ``roofline``, ``flops`` or ``measured``.
        gpu: the card; None: the CPU.
        on_progress: told what is being done.

    Raises:
        BadInput: bad file, shapes or budgets.
        EngineFailed: the engine or a device is missing, or it crashed.
    """
    from memcli.commands.compare import compare as run

    for name in strategies:
        _check_strategy(name)
    settings = Settings(
        time_limit=time_limit, environment=environment, kernels=kernels, cost=cost, seed=seed
    )
    return run(
        model,
        _request(shapes, batch, dtype, frozen, imports),
        settings,
        strategies=strategies,
        budgets=budgets,
        devices=_devices(gpu, 1),
        training=as_training,
        on_progress=on_progress,
    )


def fit(
    model: Model,
    *,
    memory: int | str,
    reserve: int | str | None = None,
    output: Path | None = None,
    force: bool = False,
    optimizer: str = "sgd",
    strategy: str = "auto",
    max_recompute: float | None = None,
    shapes: Shapes | None = None,
    dtype: str | None = None,
    frozen: Sequence[str] = (),
    imports: Sequence[str] = (),
    as_training: bool = False,
    time_limit: float | None = None,
    seed: int = 0,
    environment: str = "best",
    kernels: str = "plain",
    cost: str = "roofline",
    cpu: bool = False,
    gpu: int | None = None,
    on_progress: Progress | None = None,
) -> Fitted:
    """The largest batch that trains in a given memory, as the model is and with a plan.

    Args:
        model: its path.
        memory: what there is, in bytes or as ``"16GiB"``.
        reserve: what to leave free of it; None: what the engine is assumed to take for itself.
        output: file for the planned model at that batch.
        force: replace ``output`` where it exists.
        optimizer: ``sgd``, ``momentum`` or ``adam``.
        strategy: name of a search strategy.
        max_recompute: most recomputation, in percent of the forward pass's FLOPs.
        shapes: as for :func:`plan`, and so are the following.
        dtype: of the inputs.
        frozen: globs of parameters that are not trained.
        imports: Python files that register MXNet's user operators.
        as_training: put an ONNX file back into training mode.
        time_limit: seconds, of each search.
        seed: of the searches.
        environment: ``best`` or ``default``.
        kernels: ``plain`` or ``any``.
        cost: ``roofline``, ``flops`` or ``measured``.
        cpu: the memory is the CPU's.
        gpu: the card to time operators on.
        on_progress: told what is being done.

    Raises:
        BadInput: bad file, sizes or output, or a batch that is built into the model.
        AnswerIsNo: not even batch 1 fits.
        EngineFailed: the engine or a device is missing, or it crashed.
    """
    from memcli.commands.fit import fit as run

    _check_strategy(strategy)
    settings = Settings(
        cost=cost,
        max_recompute=None if max_recompute is None else max_recompute / 100,
        time_limit=time_limit,
        environment=environment,
        kernels=kernels,
        seed=seed,
    )
    return run(
        model,
        _request(shapes, None, dtype, frozen, imports),
        memory if isinstance(memory, int) else parse_size(memory),
        settings,
        strategy=strategy,
        optimizer=_one_of(optimizer, OPTIMIZERS, "optimizer"),
        reserve=_size(reserve, zero=True),
        cpu=cpu,
        gpu=gpu,
        training=as_training,
        out=None if output is None else os.fspath(output),
        force=force,
        on_progress=on_progress,
    )


def export(planned: Model, to: str, *, on_progress: Progress | None = None) -> Exported:
    """A planned ONNX file's plan as groups of layers for a framework's own checkpoints.

    Args:
        planned: its path.
        to: ``torch``, ``tensorflow`` or ``jax``.
        on_progress: told what is being done.

    Raises:
        BadInput: no ONNX file, or one without a plan.
        AnswerIsNo: nothing that the framework can wrap takes less memory than no plan.
        EngineFailed: PyTorch, whose memory is counted, is missing or crashed.
    """
    from memcli.commands.export import export as run

    return run(planned, to, on_progress=on_progress)


def strip(planned: Model, output: Path, *, force: bool = False) -> Stripped:
    """Writes the model of a planned file without its plan.

    Args:
        planned: its path.
        output: file for the model.
        force: replace ``output`` where it exists.

    Raises:
        BadInput: no plan, or an output that cannot be written.
    """
    from memcli.commands.strip import strip as run

    return run(planned, os.fspath(output), force=force)


def solve(
    graph: Path,
    *,
    budget: int | str | None = None,
    time_limit: float = 60.0,
    seed: int = 0,
    output: Path | None = None,
    force: bool = False,
) -> Solved:
    """A schedule for a graph of costs.

    Args:
        graph: path of a graph in node-link JSON or Chainer's text format.
        budget: most memory, in bytes or as ``"6GiB"`` or ``"80%"`` of the plain order's peak; None:
            the least peak.
        time_limit: seconds of search.
        seed: of the search.
        output: file for the JSON object.
        force: replace ``output`` where it exists.

    Raises:
        BadInput: a bad file, budget or output.
        AnswerIsNo: no schedule meets the budget, or none was found.
    """
    from memcli.commands.solve import solve_file, write_solution
    from memcli.solve.base import ScheduleSettings as SolveSettings

    settings = SolveSettings(time_limit=time_limit, seed=seed)
    solved = solve_file(
        os.fspath(graph),
        settings,
        budget=_size_text(budget),
        out=None if output is None else os.fspath(output),
        force=force,
    )
    if output is not None:
        write_solution(solved.to_json(), os.fspath(output), force)
    return solved


def load(planned: Path, **options: Any) -> Any:
    """A planned ONNX file or Caffe net as a module of PyTorch; see :func:`memcli.torch.load`."""
    from memcli.torch import load as run

    return run(os.fspath(planned), **options)


def _check_strategy(name: str) -> None:
    from memcli.search.registry import STRATEGIES

    if name not in STRATEGIES:
        raise BadInput(f"strategy {name!r}: there is none of that name", ", ".join(STRATEGIES))


def _size_text(size: int | str | None) -> str | None:
    return f"{size}B" if isinstance(size, int) else size


def _size(size: int | str | None, zero: bool = False) -> int | None:
    """Bytes of a size; ``zero``: none at all is one, too."""
    if not isinstance(size, str):
        return size
    return parse_size_or_zero(size) if zero else parse_size(size)


def _one_of(name: str, names: Collection[str], what: str) -> str:
    """The name, where there is such a thing.

    Raises:
        BadInput: there is none.
    """
    if name and name not in names:
        raise BadInput(f"{what} {name!r} is not known", f"there are: {', '.join(names)}")
    return name


def _devices(gpu: Cards, workers: int) -> Devices:
    cards = () if gpu is None else (gpu,) if isinstance(gpu, int) else tuple(gpu)
    if cards and workers > 1:
        raise BadInput("workers is for the CPU: several cards have a worker each")
    return Devices(cards, workers)


def _request(
    shapes: Shapes | None,
    batch: int | None,
    dtype: str | None,
    frozen: Sequence[str],
    imports: Sequence[str],
) -> ShapeRequest:
    from memcli.engines.user_code import check_files

    given = {name: [int(d) for d in shape] for name, shape in (shapes or {}).items()}
    for name, shape in given.items():
        if any(d <= 0 for d in shape):
            raise BadInput(f"shape {shape} of {name!r}: every dimension must be positive")
    if batch is not None and not 0 < batch < 1 << 31:
        raise BadInput(f"batch {batch} is not possible: it must be between 1 and 2147483647")
    return ShapeRequest(
        shapes=given,
        batch=batch,
        dtype=dtype,
        frozen=tuple(frozen),
        imports=check_files(tuple(imports)),
    )


def _request_or_none(
    shapes: Shapes | None,
    batch: int | None,
    dtype: str | None,
    frozen: Sequence[str],
    imports: Sequence[str],
) -> ShapeRequest | None:
    if not (shapes or batch is not None or dtype is not None or frozen or imports):
        return None
    return _request(shapes, batch, dtype, frozen, imports)
