"""The process that runs the user's function and exports the model that it builds."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from memcli.engines.processes.parent_side import Progress
from memcli.engines.processes.worker import worker_main
from memcli.errors import BadInput

_GIVES = "it gives (model, args), (model, args, kwargs) or (model, args, kwargs, loss)"


def handle(job: dict[str, Any], workdir: Path, progress: Progress) -> dict[str, Any]:
    """Builds ``name`` with ``folder`` first on the path; the program goes to ``out``.

    Raises:
        BadInput: what the user's code raises or gives, or a model that cannot be exported.
    """
    name = job["name"]
    sys.path.insert(0, job["folder"])
    module_name, _, function_name = name.partition(":")
    torch.manual_seed(0)  # the same weights each time, so that two runs can be compared
    progress("running your code", None)
    function = _function(name, module_name, function_name)
    with _AsBadInput(name, "raised"):
        given = function()
    model, args, kwargs, loss = _checked(name, given)
    notes = []
    if not model.training:
        notes.append(f"{name}: the model is in evaluation mode; call model.train() to train it")
    if loss is not None:
        _with_loss(model, loss)
    progress("exporting", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _exported(name, model, args, kwargs, notes)
        torch.export.save(program, job["out"])
    return {"notes": notes}


def _function(name: str, module_name: str, function_name: str) -> Callable[[], Any]:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.startswith(error.name):
            raise BadInput(
                f"{name}: there is no file of that name, and no module {error.name}",
                "the current folder and installed packages are searched",
            ) from error
        raise BadInput(f"{name}: {said_in(error)}") from error
    except BaseException as error:
        raise BadInput(f"{name}: importing {module_name} raised {said_in(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise BadInput(f"{name}: {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]


class _AsBadInput:
    """What the user's code raises is told as that."""

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not isinstance(error, BadInput | MemoryError):
            raise BadInput(f"{self.name}: {self.what} {said_in(error)}") from error


def said_in(error: BaseException) -> str:
    """An exception's kind and first line, and the last place of the user's own code."""
    lines = str(error).strip().splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and f.filename != __file__]
    own = [f for f in own if not f.filename.startswith("<")]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {lines[0] if lines else 'without a word'}{place}"


def _checked(name: str, given: Any) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]:
    if not isinstance(given, (tuple, list)) or not 2 <= len(given) <= 4:
        raise BadInput(f"{name}: gave a {type(given).__name__}", _GIVES)
    model, args, kwargs, loss = (*given, *(None, None))[:4]
    if isinstance(args, Tensor):
        args = (args,)
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise BadInput(f"{name}: the first that it gave is a {kind}, no module", _GIVES)
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs or {}, dict):
        raise BadInput(f"{name}: its arguments are no tuple, or its keywords no dict", _GIVES)
    if loss is not None and not callable(loss):
        raise BadInput(f"{name}: its loss is a {type(loss).__name__}, no function", _GIVES)
    return model, tuple(args), dict(kwargs or {}), loss


def _with_loss(model: nn.Module, loss: Callable[[Any], Any]) -> None:
    """Has a call of the model give its loss; names of parameters stay."""
    forward = model.forward

    @functools.wraps(forward)
    def with_loss(*args: Any, **kwargs: Any) -> Any:
        return loss(forward(*args, **kwargs))

    with_loss.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = with_loss


def _exported(
    name: str, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], notes: list[str]
) -> torch.export.ExportedProgram:
    """The program with the leading dimension open where it may be, else at these sizes alone."""
    leading = [t.shape[0] for t in pytree.tree_leaves((args, kwargs)) if _has_batch(t)]
    if leading and leading[0] > 1:
        batch = leading[0]
        dims = pytree.tree_map(
            lambda t: {0: torch.export.Dim.AUTO} if _has_batch(t) and t.shape[0] == batch else None,
            _by_name(model, args, kwargs),
        )
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=dims, strict=False)
        except Exception:
            traceback.print_exc()  # to the log
            why = "torch.export cannot leave it open"
            notes.append(f"{name}: exported for the batch of {batch} alone: {why}")
    try:
        return torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        raise BadInput(
            f"{name}: torch.export cannot follow {type(model).__name__}: {said_in(error)}",
            "plans need a forward without branches on the values of tensors",
        ) from error


def _has_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by the names of forward's parameters."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    return dict(bound.arguments)


if __name__ == "__main__":
    worker_main(handle)
