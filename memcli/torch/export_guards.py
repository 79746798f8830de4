"""What ``torch.export`` would lose without a word: told while it follows a call, and refused.

An exported graph has the operators of a forward pass. What it has not: backward functions that
the user wrote, hooks on tensors, tensors that ``forward`` leaves on the module, and whatever
Python's own random numbers decide.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from memcli.errors import BadInput
from memcli.quoting import first_of

# PyTorch's own, of which an export keeps the gradient or that it is documented to leave out.
_KNOWN_FUNCTIONS = ("torch._", "torch.nn.modules._functions.BackwardHookFunction")
_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")
# What every module has, whatever its class.
_OWN = frozenset(nn.Module().__dict__)
_PLAIN = frozenset({bool, int, float, complex, str, type(None)})

# (number of the module, name of the attribute)
Attribute = tuple[int, str]

# Functions of PyTorch are replaced meanwhile.
_lock = threading.RLock()


@contextlib.contextmanager
def nothing_lost(model: nn.Module, functions: bool = True) -> Iterator[set[Attribute]]:
    """Within it, ``torch.export`` follows a call of the model; attributes end as they began.

    Gives a set that is filled with the plain attributes that ``forward`` assigns to.
    ``functions``: whether the user's own backward functions would be lost.

    Raises:
        BadInput: the graph would lack something that decides about gradients.
    """
    modules = list(model.named_modules())
    attributes = [_Attributes(module) for _, module in modules]
    drawn = random.getstate(), np.random.get_state()
    written: set[Attribute] = set()
    holding: set[Attribute] = set()
    found: list[BadInput] = []
    with _lock:
        try:
            with _refusing(found, functions), _assignments(model, written, holding):
                yield written
        except Exception as error:
            if found and error is not found[0]:  # tracers put errors into errors of their own
                raise found[0] from error
            raise
        finally:
            for number, before in enumerate(attributes):
                holding |= {(number, name) for name in before.put_back()}
            moved = not _same_states(drawn, (random.getstate(), np.random.get_state()))
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])
    if found:  # raised, and caught by the model
        raise found[0]
    if holding:
        names = [f"{modules[number][0]}.{name}".lstrip(".") for number, name in sorted(holding)]
        raise BadInput(
            f"forward leaves tensors on the module: {first_of(names)}",
            "return them with the outputs, or make them buffers (register_buffer)",
        )
    if moved:
        raise BadInput(
            "forward draws from Python's or numpy's random numbers: a graph would do for ever what "
            "the first draw decides",
            "draw with torch, or outside of forward",
        )


def settings_of(model: nn.Module) -> dict[Attribute, Any]:
    """Numbers, texts and tensors that modules hold as plain attributes; forward may read them."""
    found: dict[Attribute, Any] = {}
    for number, module in enumerate(model.modules()):
        for name, value in module.__dict__.items():
            kind = type(value)
            if name in _OWN:
                continue
            if kind in _PLAIN:
                found[number, name] = value
            elif kind in (tuple, list) and all(type(item) in _PLAIN for item in value):
                found[number, name] = tuple(value)
            elif isinstance(value, Tensor):
                found[number, name] = _Same(value)
    return found


class _Same:
    """Equal to the same tensor alone, which it holds."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.tensor is self.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


@contextlib.contextmanager
def _refusing(found: list[BadInput], functions: bool) -> Iterator[None]:
    """Functions that would be lost raise, and put what they raise into ``found``."""

    def refuse(message: str, hint: str) -> None:
        found.append(BadInput(message, hint))
        raise found[-1]

    function = torch.autograd.Function
    original = function.__dict__["apply"]
    hooks = {name: Tensor.__dict__[name] for name in _HOOKS}
    here = threading.get_ident()  # other threads go on as ever

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != here:
            return original.__get__(None, cls)(*args, **kwargs)
        place = f"{cls.__module__}.{cls.__qualname__}"
        if place == "torch.utils.checkpoint.CheckpointFunction":
            refuse(
                "the model calls torch.utils.checkpoint with use_reentrant=True, which "
                "torch.export takes for a part without gradients",
                "give use_reentrant=False, or leave it to the plan",
            )
        if not place.startswith(_KNOWN_FUNCTIONS):
            refuse(
                f"the model calls the torch.autograd.Function {cls.__qualname__}, whose backward "
                "torch.export does not follow",
                "write it with PyTorch's operators, or register it as an operator "
                "(torch.library.custom_op, register_autograd)",
            )
        return original.__get__(None, cls)(*args, **kwargs)

    def hooked(register: Any) -> Any:
        def hook(self: Tensor, *args: Any) -> Any:
            if threading.get_ident() == here:
                refuse(
                    "forward puts a hook on a tensor, which torch.export does not follow",
                    "put hooks on parameters and outputs, outside of forward",
                )
            return register(self, *args)

        return hook

    with contextlib.ExitStack() as stack:
        if functions:
            stack.enter_context(_replaced(function, "apply", classmethod(apply)))
        for name, register in hooks.items():
            stack.enter_context(_replaced(Tensor, name, hooked(register)))
        yield


@contextlib.contextmanager
def _assignments(
    model: nn.Module, written: set[Attribute], holding: set[Attribute]
) -> Iterator[None]:
    """Notes which plain attributes are assigned to; in ``holding`` those that are given tensors."""
    number_of = {
        id(module): number
        for number, module in enumerate(model.modules())
        if not _is_torchs(module)
    }
    original = nn.Module.__setattr__

    def assign(self: nn.Module, name: str, value: Any) -> None:
        number = number_of.get(id(self))
        if number is not None and not any(name in table for table in _tables(self)):
            (holding if _tensors(value) else written).add((number, name))
        original(self, name, value)

    with _replaced(nn.Module, "__setattr__", assign):
        yield


def _tables(module: nn.Module) -> tuple[Collection[str], ...]:
    """Names that are no plain attributes."""
    return _OWN, module._parameters, module._buffers, module._modules


def _is_torchs(module: nn.Module) -> bool:
    """PyTorch's own layers leave nothing; recurrent ones hold their parameters in a list, too."""
    return type(module).__module__.startswith("torch.nn.")


@contextlib.contextmanager
def _replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    original = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


class _Attributes:
    """The plain attributes of a module at one time, and what is in containers among them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.values = {n: v for n, v in module.__dict__.items() if n not in _OWN}
        self.contents = {
            n: v.copy() for n, v in self.values.items() if type(v) in (list, dict, set)
        }
        looked_at = {} if _is_torchs(module) else self.values
        self.tensors = {n: list(map(id, _tensors(v))) for n, v in looked_at.items()}

    def put_back(self) -> list[str]:
        """Makes them what they were; the names of those that came to hold other tensors."""
        now = self.module.__dict__
        changed = []
        for name in [n for n in now if n not in _OWN and n not in self.values]:
            if _tensors(now[name]):
                changed.append(name)
                del now[name]
        for name, value in self.values.items():
            if name in self.tensors and list(map(id, _tensors(value))) != self.tensors[name]:
                changed.append(name)  # put into a container, or into an object
            now[name] = value
            if name in self.contents:
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(self.contents[name])
        return changed


def _tensors(value: Any) -> list[Tensor]:
    """Tensors in a value: in containers, and in objects that are no modules, one level deep."""
    found = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (nn.Module, type)):
            found += [t for t in pytree.tree_leaves(vars(leaf)) if isinstance(t, Tensor)]
    return found


def _same_states(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Whether two states of Python's and numpy's random numbers are the same."""
    ours, theirs = one[1], other[1]
    return one[0] == other[0] and all(
        np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )


def kind_of_constant(value: Any) -> tuple[type, Any]:
    """What a graph depends on of an input that is no tensor.

    Raises:
        BadInput: it can change without being another object.
    """
    try:
        hash(value)
    except TypeError:
        raise BadInput(
            f"forward is called with a {type(value).__name__}, whose content a graph would keep",
            "give a tensor, or a list, tuple or dict of tensors and numbers",
        ) from None
    return type(value), value
