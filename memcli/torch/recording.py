"""A module's forward pass as a graph of the operators that eager mode runs, in its order.

The module runs once on tensors without data, in eager mode, and every operator is written down
above autograd and autocast: linear layers, attention, BatchNorm and dropout stay whole, in-place
operators are what they are, and no library sees a tracer (``torch.export`` is one, and has other
masks, clones and casts). Nothing is left out or put in another order, so that a run of the graph
allocates and rounds as the module does.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import json
import operator
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from memcli.engines.torch.aten_rules import draws
from memcli.engines.torch.geometry import geometry, has_storage, storage_key, tensors_in
from memcli.engines.torch.kernel_rules import LikeKernels
from memcli.engines.torch.rules import OwnRules
from memcli.errors import BadInput
from memcli.torch.eager import Fakes, untraced, without_data
from memcli.torch.export_guards import Attribute, nothing_lost
from memcli.torch.guards import RAN_FOR_VALUES, Guard, OfShape, empty_of, shapes_of, value_of
from memcli.torch.inplace import UPDATING, grouped
from memcli.torch.outputs import OutputForm
from memcli.torch.regimes import (
    EnterAutocast,
    autocast_now,
    in_regime,
    leave_autocast,
)

aten = torch.ops.aten

# Tell whether a value may be, and make nothing.
_CHECKS = frozenset(
    {
        aten._assert_async.default,
        aten._assert_async.msg,
        aten._assert_tensor_metadata.default,
    }
)


@dataclass
class Recording:
    """``graph``: gives out the tensors of ``form``, in order. Names of attributes are dotted.

    ``constants``: other tensors that it reads; ``guards``: values that it holds for;
    ``scopes``: {node: dotted name of the module that it stands in}; ``never``: steps that may not
    run again; ``inside``: {step: operators that it runs, where it is more than one};
    ``written``: plain attributes that ``forward`` assigns to.
    """

    graph: Graph
    form: OutputForm
    constants: dict[str, Tensor]
    guards: list[Guard]
    scopes: dict[str, str]
    never: set[str]
    inside: dict[str, list[str]]
    answers: list[Any]  # what Python read of tensors, in order
    operators: list[tuple[str, Any]]  # in the order in which they run, with the step of each
    names: dict[str, Tensor]  # parameters and buffers that are read
    input_names: list[str]
    written: set[Attribute] = field(default_factory=set)

    def digest(self) -> str:
        """SHA-256 of what the graph does, without sizes: the same at every batch."""
        rows = []
        for node in self.graph.nodes:
            reads = [source.name for source in node.all_input_nodes]
            name = getattr(node.target, "__name__", str(node.target))
            rows.append([node.op, node.name, name, reads])
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def record(
    model: nn.Module,
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    names: Sequence[str],
) -> Recording:
    """Records a call in the model's present mode and under the autocast that is active.

    ``forward``: what is called of the model; ``names``: of the leaves of ``(args, kwargs)``.

    Raises:
        BadInput: the call's operators depend on values that no graph can know beforehand, or
            something of it would be lost.
    """
    fakes = Fakes()
    leaves, structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
    for leaf in leaves:
        _refuse_object(leaf)
    with nothing_lost(model, functions=False) as written, without_data(model, fakes) as real:
        given = [fakes.fresh(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        recorder = _Recorder(model, fakes, real, given, leaves, names)
        fake_args, fake_kwargs = pytree.tree_unflatten(given, structure)
        with (
            _refusing(model),
            torch.enable_grad(),
            untraced(),
            recorder.recording(),
            fakes.mode,
            LikeKernels(),
            enable_python_dispatcher(),
            recorder,
        ):
            output = forward(*fake_args, **fake_kwargs)
        result = recorder.result(output)
    result.written = written
    return result


def _refuse_object(leaf: Any) -> None:
    """Objects that forward may change, as it does with a cache of keys and values."""
    plain = (Tensor, bool, int, float, complex, str, bytes, type, enum.Enum, torch.dtype)
    fixed = (torch.device, torch.layout, torch.memory_format, types.FunctionType, slice)
    if leaf is None or isinstance(leaf, (*plain, *fixed)):
        return
    raise BadInput(
        f"forward is given a {type(leaf).__name__}, an object that it may change",
        "give tensors and numbers, in lists, tuples or dicts; a cache that forward makes itself "
        "(use_cache=True without past_key_values) works",
    )


@contextlib.contextmanager
def _refusing(model: nn.Module) -> Iterator[None]:
    """What PyTorch cannot do without data is told in words."""
    name = type(model).__name__
    try:
        yield
    except BadInput:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise BadInput(
            f"the shapes in {name}'s forward depend on the values of tensors: {error.func}"
            f"{_where(error)}",
            "use operators whose results have one shape (torch.where, masks)",
        ) from error
    except Exception as error:  # whatever the user's code raises
        first = (str(error).strip().splitlines() or [""])[0]
        raise BadInput(
            f"{name} cannot run on tensors without data: {type(error).__name__}: {first}"
            f"{_where(error)}",
            "does the same call run in training mode without memcli? Operators of other packages "
            "need a fake kernel (torch.library.register_fake)",
        ) from error


def _where(error: BaseException) -> str:
    """The user's line that an error came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_inner(f.filename)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _is_inner(path: str) -> bool:
    return "/torch/" in path or "/memcli/torch/" in path or "/memcli/engines/" in path


class CustomFunction(OwnRules):
    """A ``torch.autograd.Function`` of the user's, as one step."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__name__ = function.__name__
        self.draws = True  # nobody knows; the generators' state is put back for a second run

    def __call__(self, *args: Any) -> Any:
        return self.function.apply(*args)

    def again(self, *args: Any) -> Any:
        """The same."""
        return self.function.apply(*args)


class _Recorder(SchemaCheckMode):
    """Sees every operator before autograd and autocast do, and writes it into a graph.

    PyTorch takes modes of three classes of its own on that level, this one alone of which it
    leaves be.
    """

    def __init__(
        self,
        model: nn.Module,
        fakes: Fakes,
        real: Mapping[str, Tensor],
        given: Sequence[Any],
        real_given: Sequence[Any],
        names: Sequence[str],
    ) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)
        self.model = model
        self.graph = Graph()
        self.real = dict(real)
        self.real_given = list(real_given)
        self.of: dict[int, Node] = {}
        self.held: list[Tensor] = []  # so that no identity is another's
        self.made: dict[int, Node] = {}  # by storage: the node that made it
        self.outside: dict[int, Node] = {}  # by storage: the attribute or input that it is
        self.ranges: list[tuple[Node, Node]] = []
        self.states: dict[Node, list[Node]] = {}
        self.readers: dict[int, list[Node]] = {}  # by storage outside
        self.never: set[Node] = set()
        self.constants: dict[str, Tensor] = {}
        self.guards: list[Guard] = []
        self.answers: list[Any] = []
        self.scope: list[str] = []
        self.paused = 0
        self.grads: dict[int, bool] = {}
        kinds = {t.device.type for t in [*real.values(), *tensors_in(list(real_given))]} or {"cpu"}
        self.kinds = tuple(sorted(kinds | {"cpu"}))
        self.ambient = autocast_now(self.kinds)
        self.placeholders: list[Node] = []
        self.attributes: dict[int, str] = {}
        self.fake_of = {name: fakes.of(tensor) for name, tensor in real.items()}
        for name, tensor in self.fake_of.items():
            self.attributes[id(tensor)] = name
        for value, name in zip(given, names, strict=True):
            node = self.graph.placeholder(name)
            self.placeholders.append(node)
            if isinstance(value, Tensor):
                self._know(value, node)
                if has_storage(value):
                    self.outside[storage_key(value)] = node

    def __enter__(self) -> _Recorder:
        TorchDispatchMode.__enter__(self)
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C._DisablePythonDispatcher():
            if self.paused:
                return func(*args, **kwargs)
            if func in RAN_FOR_VALUES:
                return self._value(func, args, kwargs)
            self._gradients_asked_for(args, kwargs)
            try:
                result = func(*args, **kwargs)
            except DynamicOutputShapeException:
                result = self._of_shape(func, args, kwargs)
                func = OfShape(func, self.answers[-1])
        self._note(func, args, kwargs, result)
        return result

    # What the mode does not see by itself

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Follows modules, autocast and functions of the user's."""
        names = {id(module): name for name, module in self.model.named_modules()}
        here = threading.get_ident()
        call = nn.Module.__call__
        enter, leave = torch.autocast.__enter__, torch.autocast.__exit__
        apply = torch.autograd.Function.__dict__["apply"]
        entered: dict[int, bool] = {}

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = names.get(id(module))
            if name is None or threading.get_ident() != here:
                return call(module, *args, **kwargs)
            self.scope.append(name)
            try:
                return call(module, *args, **kwargs)
            finally:
                self.scope.pop()

        def entering(context: torch.autocast) -> Any:
            kind = context.device
            before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
            result = enter(context)
            if threading.get_ident() == here and not self.paused and kind in self.kinds:
                now = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
                entered[id(context)] = noted = now != before or now[0]
                if noted:
                    cache = bool(torch.is_autocast_cache_enabled())
                    self._effect(EnterAutocast(kind, now[0], now[1], cache))
            return result

        def leaving(context: torch.autocast, *error: Any) -> Any:
            if entered.pop(id(context), False):
                self._effect(leave_autocast)
            return leave(context, *error)

        def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
            original = apply.__get__(None, cls)
            if threading.get_ident() != here or self.paused:
                return original(*args, **kwargs)
            return self._custom(cls, original, args, kwargs)

        def hooking(hooks: Any) -> Any:
            if threading.get_ident() == here and not self.paused:
                name = type(hooks).__name__
                raise _checkpointed() if "checkpoint" in name else _hooked(name)
            return hooked(hooks)

        hooked = torch.autograd.graph.saved_tensors_hooks.__enter__
        replaced: tuple[tuple[Any, str, Any], ...] = (
            (torch.autograd.graph.saved_tensors_hooks, "__enter__", hooking),
            (nn.Module, "__call__", called),
            (torch.autocast, "__enter__", entering),
            (torch.autocast, "__exit__", leaving),
            (torch.autograd.Function, "apply", classmethod(applied)),
        )
        before = [owner.__dict__[name] for owner, name, _ in replaced]
        for owner, name, value in replaced:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for (owner, name, _), value in zip(replaced, before, strict=True):
                setattr(owner, name, value)

    def _custom(self, cls: Any, original: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        place = f"{cls.__module__}.{cls.__qualname__}"
        if place == "torch.utils.checkpoint.CheckpointFunction":
            raise _checkpointed()
        if place.startswith("torch.nn.modules._functions.BackwardHookFunction"):
            return original(*args, **kwargs)
        if kwargs:
            raise BadInput(f"{cls.__qualname__}.apply is called with keywords")
        self._gradients_asked_for(args, {})
        versions = [t._version for t in tensors_in(list(args))]
        self.paused += 1
        try:
            result = original(*args)
        finally:
            self.paused -= 1
        if versions != [t._version for t in tensors_in(list(args))]:
            raise BadInput(
                f"the torch.autograd.Function {cls.__qualname__} changes what it is given",
                "have it change a copy, or use PyTorch's in-place operators",
            )
        self._note(CustomFunction(cls), args, {}, result)
        return result

    # The graph

    def _effect(self, function: Callable[..., Any]) -> None:
        node = self.graph.call_function(function)
        self.never.add(node)

    def _know(self, tensor: Tensor, node: Node) -> None:
        self.of[id(tensor)] = node
        self.grads[id(tensor)] = tensor.requires_grad
        self.held.append(tensor)

    def _node(self, tensor: Tensor) -> Node:
        found = self.of.get(id(tensor))
        if found is not None:
            return found
        name = self.attributes.get(id(tensor))
        if name is None:
            alias = self._alias(tensor)
            if alias is not None:
                return alias
            name = f"_constant_{len(self.constants)}"
            if hasattr(tensor, "fake_mode"):
                raise BadInput(
                    "forward makes a tensor in a way that no operator shows",
                    "make tensors with PyTorch's functions",
                )
            with _outside_of_modes():
                self.constants[name] = tensor.detach()
        node = self.graph.create_node("get_attr", name, name=_identifier(name))
        self._know(tensor, node)
        if has_storage(tensor):
            self.outside.setdefault(storage_key(tensor), node)
        return node

    def _alias(self, tensor: Tensor) -> Node | None:
        """A tensor that ``.data`` gave: without history, in the storage of one that is known."""
        if not has_storage(tensor):
            return None
        key = storage_key(tensor)
        where = geometry(tensor)
        for other in reversed([*self.held, *self.fake_of.values()]):
            if has_storage(other) and storage_key(other) == key and geometry(other) == where:
                node = self._node(other)
                if other.requires_grad:
                    node = self.graph.call_function(aten.detach.default, (node,))
                    self._scoped(node)
                self._know(tensor, node)
                return node
        return None

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, (tuple, list)):
            return type(value)(self._mapped(item) for item in value)
        if isinstance(value, dict):
            return {key: self._mapped(item) for key, item in value.items()}
        if isinstance(value, torch.Generator):
            raise BadInput(
                "forward draws from a torch.Generator of its own",
                "draw from the default generator",
            )
        return value

    def _gradients_asked_for(self, args: Any, kwargs: dict[str, Any]) -> None:
        """``requires_grad_()`` on a result is no operator."""
        for tensor in tensors_in([list(args), kwargs]):
            known = self.grads.get(id(tensor))
            if known is False and tensor.requires_grad and tensor.is_leaf:
                node = self.graph.call_function(_require_gradients, (self.of[id(tensor)],))
                self._scoped(node)
                self.grads[id(tensor)] = True

    def _note(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Writes an operator down."""
        made = list(tensors_in(result))
        changed = _changed(func, args, kwargs)
        if not made and not changed:
            return
        read = {id(t) for t in tensors_in([list(args), kwargs])}
        if not changed and len(made) == 1 and id(made[0]) in read:
            return  # handed on, as Dropout(0.0) does
        if func is aten.detach_.default and not args[0].requires_grad:
            return
        if func is aten.lift_fresh.default:
            func = aten.lift_fresh_copy.default  # each call has its own
        autocast = autocast_now(self.kinds)
        target = in_regime(
            func, torch.is_grad_enabled(), None if autocast == self.ambient else autocast
        )
        mapped, named = self._mapped(tuple(args)), self._mapped(kwargs)
        name = (
            str(func.overloadpacket.__name__) if hasattr(func, "overloadpacket") else func.__name__
        )
        node = self.graph.create_node("call_function", target, mapped, named, name=name)
        self._scoped(node)
        for tensor in tensors_in([list(args), kwargs]):
            key = storage_key(tensor) if has_storage(tensor) else None
            if key in self.outside:
                self.readers.setdefault(key, []).append(node)
        for tensor in made:
            if has_storage(tensor):
                key = storage_key(tensor)
                if key not in self.made and key not in self.outside:
                    self.made[key] = node
        self._results(node, result)
        for tensor in changed:
            self._changed(node, tensor, func)

    def _results(self, node: Node, result: Any) -> None:
        if isinstance(result, Tensor):
            if id(result) not in self.of or self.of[id(result)] is node:
                self._know(result, node)
            self.grads[id(result)] = result.requires_grad
        elif isinstance(result, (tuple, list)):
            for position, item in enumerate(result):
                if item is not None and any(True for _ in tensors_in(item)):
                    part = self.graph.call_function(operator.getitem, (node, position))
                    self._scoped(part)
                    self._results(part, item)

    def _changed(self, node: Node, tensor: Tensor, func: Any) -> None:
        """A tensor was changed in place by a node."""
        if not has_storage(tensor):
            raise BadInput(f"{func} changes a tensor that is no part of one storage")
        key = storage_key(tensor)
        if key in self.made:
            if self.made[key] is not node:
                self.ranges.append((self.made[key], node))
            return
        source = self.outside[key]
        if source in self.placeholders:
            raise BadInput(
                f"forward changes its input {source.name} in place ({func})",
                "have it change a copy",
            )
        if source.target in self.real and isinstance(self.real[str(source.target)], nn.Parameter):
            raise BadInput(
                f"forward changes the parameter {source.target} in place ({func})",
                "change parameters outside of forward, or make it a buffer",
            )
        self.states.setdefault(node, []).append(source)
        # what read it before would find another value in the backward pass
        for reader in self.readers.get(key, []):
            if reader is not node and not _looks_away(reader):
                self.never.add(reader)
        self.never.add(node)

    def _scoped(self, node: Node) -> None:
        node.meta["scope"] = self.scope[-1] if self.scope else ""

    # Values

    def _value(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What Python reads of a tensor: known beforehand, or a guard."""
        constants = [getattr(t, "constant", None) for t in tensors_in(list(args))]
        if all(c is not None for c in constants):
            return func(*args, **kwargs)
        mapped = self._mapped(tuple(args))
        guard = Guard.of(func, mapped, self.placeholders)
        changed = {first for first, _ in self.ranges}
        reads = [str(n.target) for n in guard.nodes if n.op == "get_attr"]
        if any(node in changed for node in guard.nodes):
            raise _branches(type(self.model).__name__, "that is computed in place")
        self._refuse_changed(guard)
        if any(draws(n.target) for n in guard.nodes if n.op == "call_function"):
            known = value_of(guard)
            if known is None:
                raise BadInput(
                    f"{type(self.model).__name__}'s forward branches on random numbers{_line()}",
                    "switch that off while training under a plan (LayerDrop: layerdrop=0.0)",
                )
            self.answers.append(known)
            return known
        if self._is_computed(guard, reads):
            raise _branches(type(self.model).__name__, "that the network computes")
        self._evaluate(guard, reads)
        self.answers.append(guard.value)
        return guard.value

    def _refuse_changed(self, guard: Guard) -> None:
        """A value of a buffer that the call has changed is another one before it."""
        for state in {state for states in self.states.values() for state in states}:
            if state in guard.nodes:
                raise BadInput(
                    f"forward reads the value of the buffer {state.target} that it changes"
                    f"{_line()}",
                    "count in Python, outside of forward; BatchNorm: give a momentum",
                )

    def _is_computed(self, guard: Guard, reads: Sequence[str]) -> bool:
        """Whether a value takes what is trained, which runs by other kernels without gradients."""
        trained = any(self.real[n].requires_grad for n in reads if n in self.real)
        return trained or guard.too_long

    def _evaluate(self, guard: Guard, reads: Sequence[str]) -> None:
        values = {**{n: self.real[n] for n in reads if n in self.real}, **self.constants}
        if any(
            isinstance(t, Tensor) and (t.is_meta or hasattr(t, "fake_mode"))
            for t in self.real_given
        ):
            raise BadInput(
                "forward branches on the values of its inputs, and the inputs have none",
                "give real tensors",
            )
        with torch.no_grad(), _outside_of_modes():
            guard.value = guard.evaluate(self.real_given, values.__getitem__)
        self.guards.append(guard)

    def _of_shape(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operator whose result has a shape that depends on values: known beforehand, too."""
        guard = Guard.of(
            functools.partial(shapes_of, func, kwargs), self._mapped(tuple(args)), self.placeholders
        )
        drawn = any(draws(n.target) for n in guard.nodes if n.op == "call_function")
        changed = {first for first, _ in self.ranges}
        reads = [str(n.target) for n in guard.nodes if n.op == "get_attr"]
        computed = self._is_computed(guard, reads)
        if computed or drawn or any(n in changed for n in guard.nodes):
            raise BadInput(
                f"the shapes in {type(self.model).__name__}'s forward depend on what it computes: "
                f"{func}{_line()}",
                "use operators whose results have one shape (torch.where, masks)",
            )
        self._refuse_changed(guard)
        self._evaluate(guard, reads)
        self.answers.append(guard.value)
        return empty_of(guard.value)

    def result(self, output: Any) -> Recording:
        """The recording; ``output``: what the call gave."""
        form = OutputForm(output, list(self.held))
        for tensor in form.tensors:
            self._gradients_asked_for([tensor], {})
        self.graph.output(tuple(self._node(t) for t in form.tensors))
        self.graph.lint()
        scopes = {node.name: node.meta.get("scope", "") for node in self.graph.nodes}
        never = set(self.never)
        for first, last in self.ranges:
            never |= self._states_read_within(first, last)
        graph, inside = grouped(self.graph, self.ranges, self.states)
        step_of = {part: step for step, parts in inside.items() for part in parts}
        # a state that a step changes and does not read is no reason to keep what it makes
        alone = {
            n.name for n in never if n.name in {m.name for m in self.states} and n.name in step_of
        }
        return Recording(
            graph=graph,
            form=form,
            constants=self.constants,
            guards=self.guards,
            scopes=scopes,
            never={step_of.get(n.name, n.name) for n in never if n.name not in alone},
            inside=inside,
            answers=self.answers,
            operators=[
                (step_of.get(n.name, n.name), getattr(n.target, "function", n.target))
                for n in self.graph.nodes
                if n.op == "call_function" and n.target is not operator.getitem
            ],
            names={
                str(n.target): self.real[str(n.target)]
                for n in graph.nodes
                if n.op == "get_attr" and n.target in self.real
            },
            input_names=[n.name for n in self.placeholders],
        )

    def _states_read_within(self, first: Node, last: Node) -> set[Node]:
        """Steps with a state that they both change and read: they cannot run a second time."""
        inside = []
        node = first
        while True:
            inside.append(node)
            if node is last:
                break
            node = node.next
        found = set()
        for node in inside:
            for state in self.states.get(node, ()):
                others = [n for n in inside if n is not node and state in n.all_input_nodes]
                if node.users or any(not _looks_away(n) for n in others):
                    found.add(node)
        return found


def _require_gradients(tensor: Tensor) -> Tensor:
    """``requires_grad_`` on what another step made."""
    return tensor.requires_grad_()


def _looks_away(node: Node) -> bool:
    """Whether an operator updates a state in training without looking at it."""
    target = getattr(node.target, "function", node.target)
    return target in UPDATING


def _changed(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors among the arguments that an operator writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found: list[Tensor] = []
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += tensors_in(list(value) if isinstance(value, (list, tuple)) else [value])
    return found


def _checkpointed() -> BadInput:
    return BadInput(
        "the model recomputes by itself (torch.utils.checkpoint)",
        "switch that off (transformers: gradient_checkpointing_disable()): the plan does it",
    )


def _hooked(name: str) -> BadInput:
    return BadInput(
        f"forward changes how tensors are saved ({name}), which the plan does",
        "train without it, or put it around the call",
    )


def _branches(name: str, what: str) -> BadInput:
    return BadInput(
        f"{name}'s forward reads the value of a tensor {what}{_line()}, so that no graph holds for "
        "every step",
        "use torch.where or a mask in place of the branch",
    )


def _line() -> str:
    """The user's line that runs now."""
    frames = [f for f in traceback.extract_stack() if not _is_inner(f.filename)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


@contextlib.contextmanager
def _outside_of_modes() -> Iterator[None]:
    """Operators run as if no mode were active."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        yield
