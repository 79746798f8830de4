"""An exported program as a ``torch.fx`` module: one function call for each operator that stays.

Sizes are numbers here: the program's computations with sizes are done while it is converted, at
the shapes that its inputs are bound to. Operators that write into a tensor stand as operators
that give it out anew; views of it are taken anew behind them.
"""

from __future__ import annotations

import functools
import math
import operator as python_operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from memcli.engines.torch.aten_rules import draws, leaves_states
from memcli.engines.torch.convert.calls import REFUSALS, Names, said
from memcli.engines.torch.convert.exported_functions import (
    copied,
    filled,
    in_mode,
    on_device_of,
    set_state,
    written,
    zeroed,
)
from memcli.engines.torch.convert.onnx_graph import Converted, FreeInput
from memcli.engines.torch.geometry import has_storage, storage_key
from memcli.errors import REFUSED, BadInput
from memcli.formats.pt2.archive import Archive
from memcli.formats.pt2.file import Payload, Pt2File, writes_in_place
from memcli.formats.pt2.graph import ExportedNode, Held, Ref, Special, Unread, operator_of
from memcli.formats.symbol.values import LARGEST_TENSOR
from memcli.quoting import shown

_LARGEST_NUMBER = 1 << 63
# Checks of the program's own, of sizes and values: nothing follows from them.
_CHECKS = frozenset(
    {
        "_assert_scalar",
        "_assert_async",
        "_assert_tensor_metadata",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
        "_functional_assert_async",
        "_functional_assert_scalar",
    }
)
_SIZES: dict[str, Callable[..., Any]] = {
    "sym_size": lambda tensor, dim: tensor.shape[dim],
    "sym_numel": lambda tensor: tensor.numel(),
    "sym_stride": lambda tensor, dim: tensor.stride(dim),
    "sym_storage_offset": lambda tensor: tensor.storage_offset(),
}
# Change how a tensor is looked at, and not what is in it.
_VIEWS_IN_PLACE = frozenset(
    {"detach_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_"}
)
_DETACHES = frozenset({"detach", "detach_"})
_WRITES: dict[str, Callable[..., Any]] = {"copy_": copied, "fill_": filled, "zero_": zeroed}
_TRAINED_STATES = frozenset({"_native_batch_norm_legit", "native_batch_norm"})


@dataclass
class _Value:
    """What a name of the program stands for: a tensor, a number, None, or a list of these."""

    fake: Any
    node: Any = None  # of the fx graph; a number stands for itself
    trained: bool = False  # a gradient goes through it
    source: str = ""  # the name that it is a view of, or the same tensor as
    view: _Call | None = None  # how it is taken from ``source``
    held: Held | None = None
    stale: bool = False  # what it is a view of was written to since
    is_input: bool = False


@dataclass
class _Call:
    """A function with its arguments; tensors are in them as :class:`Ref`."""

    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    item: tuple[int, ...] = ()  # where in the result
    like: bool = False  # a tensor that says the device goes before the arguments


@dataclass
class _Refusal(Exception):
    why: str
    hint: str = ""


def convert_exported(
    file: Pt2File,
    *,
    shapes: Mapping[str, Sequence[int]],
    archive: Archive | None = None,
    fake: bool | None = None,
    name: str = "the program",
) -> Converted:
    """Convert a program for the shapes that its inputs are bound to.

    Args:
        file: with the graph; its archive need not have any data.
        shapes: {input: its shape}.
        archive: where weights are read from; needed where they are real.
        fake: parameters and buffers without data, of the active FakeTensorMode if there is one. By
            default where a FakeTensorMode is active.
        name: of the file, to begin messages with.

    Raises:
        BadInput: an operator that is not PyTorch's own or that cannot be planned, or shapes that
            do not fit.
    """
    active = detect_fake_mode()
    mode = active if active is not None else FakeTensorMode()
    if fake is None:
        fake = active is not None
    with unset_fake_temporarily():
        return _Conversion(file, mode, archive, fake, name).converted(shapes)


class _Conversion:
    def __init__(
        self, file: Pt2File, mode: FakeTensorMode, archive: Archive | None, fake: bool, name: str
    ) -> None:
        self.file = file
        self.graph = file.graph
        self.mode = mode
        self.archive = archive
        self.fake = fake
        self.name = name
        self.leaves = file.leaves()
        self.root = torch.nn.Module()
        self.fx = torch.fx.Graph()
        self.names = Names(self.root)
        self.values: dict[str, _Value] = {}
        self.fakes: list[Tensor] = []  # held, so that no storage's key is another's
        self.roles: dict[str, dict[str, str]] = {"parameter": {}, "state": {}, "constant": {}}
        self.attributes: dict[str, Any] = {}  # nodes by name in the module
        self.changed: dict[str, str] = {}  # value that a buffer has at the end, by the buffer's own
        self.folded: list[str] = []
        self.like: Any = None

    def converted(self, shapes: Mapping[str, Sequence[int]]) -> Converted:
        inputs = self._inputs(shapes)
        for held in self.graph.held:
            self.values[held.value] = self._held(held)
        for node in self.graph.nodes:
            try:
                self._run(node)
            except _Refusal as refusal:
                raise BadInput(
                    f"{self.name}: node {shown(node.name)} ({node.operator}): {refusal.why}",
                    refusal.hint,
                ) from refusal
            except REFUSALS as error:
                raise BadInput(
                    f"{self.name}: node {shown(node.name)} ({node.operator}): {REFUSED}: "
                    f"{said(error)}"
                ) from error
        outputs = self._finish()
        module = torch.fx.GraphModule(self.root, self.fx, "ConvertedModel")
        read = {node.target for node in self.fx.nodes if node.op == "get_attr"}
        roles = {
            role: {key: value for key, value in names.items() if key in read}
            for role, names in self.roles.items()
        }
        return Converted(
            module=module,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            parameters=roles["parameter"],
            states=roles["state"],
            constants=roles["constant"],
            folded=self.folded,
        )

    # -- what the module is given and holds -----------------------------------------------------

    def _inputs(self, shapes: Mapping[str, Sequence[int]]) -> list[FreeInput]:
        inputs = []
        for name, meta in self.graph.inputs:
            if name not in shapes:
                raise BadInput(f"{self.name}: no shape is given for the input {shown(name)}")
            shape = tuple(int(size) for size in shapes[name])
            dtype = getattr(torch, meta.dtype)
            argument = self.names.own(name)
            node = self.fx.create_node("placeholder", argument, name=argument)
            node.meta["memcli"] = {"name": name, "values": ((shape, dtype),)}
            with self.mode:
                fake = torch.empty(shape, dtype=dtype)
            self.fakes.append(fake)
            self.values[name] = _Value(fake, node, is_input=True)
            self.like = self.like if self.like is not None else node
            inputs.append(FreeInput(name, argument, shape, dtype))
        for name, value in self.graph.fixed.items():
            self.values[name] = _Value(value, value)
        return inputs

    def _held(self, held: Held) -> _Value:
        payload = self.file.payloads[held.target]
        dtype = getattr(torch, payload.dtype)
        with self.mode:
            fake = torch.empty_strided(payload.sizes, payload.strides, dtype=dtype)
        self.fakes.append(fake)
        floats = dtype.is_floating_point or dtype.is_complex
        return _Value(fake, None, held.kind == "parameter" and floats, held=held)

    def _attribute(self, held: Held) -> Any:
        """The fx node of a tensor of the module; the module's attribute is made at its first use.

        Parameters that are tied are one.
        """
        leaf = self.leaves[held.target]
        target = leaf.tied_to or held.target
        if target in self.attributes:
            return self.attributes[target]
        payload = self.file.payloads[target]
        attribute = self.names.own(target)
        tensor = self._elements(payload)
        if leaf.role == "parameter":
            floats = tensor.dtype.is_floating_point or tensor.dtype.is_complex
            trained = floats and payload.requires_grad
            self.root.register_parameter(
                attribute, torch.nn.Parameter(tensor, requires_grad=trained)
            )
        else:
            self.root.register_buffer(attribute, tensor)
        self.roles[leaf.role][attribute] = target
        with self.fx.inserting_before(next(iter(self._calls()), None)):
            node = self.fx.create_node("get_attr", attribute, name=attribute)
        node.meta["memcli"] = {
            "name": target,
            "role": leaf.role,
            "values": ((tuple(tensor.shape), tensor.dtype),),
        }
        self.attributes[target] = node
        return node

    def _calls(self) -> Any:
        return (node for node in self.fx.nodes if node.op == "call_function")

    def _elements(self, payload: Payload) -> Tensor:
        dtype = getattr(torch, payload.dtype)
        if self.fake:
            with self.mode:
                return torch.empty_strided(payload.sizes, payload.strides, dtype=dtype)
        assert self.archive is not None
        return tensor_of(self.archive, payload)

    # -- names ----------------------------------------------------------------------------------

    def _value(self, name: str) -> _Value:
        """What a name stands for now; a view of what was written to since is taken anew."""
        value = self.values[name]
        if value.stale:
            call = value.view
            assert call is not None
            fake, node = self._called(call, name)
            value.fake, value.node, value.stale = fake, node, False
        if value.held is not None and value.node is None:
            value.node = self._attribute(value.held)
        return value

    def _called(self, call: _Call, name: str) -> tuple[Any, Any]:
        """A view taken anew: (fake, node)."""
        fake: Any = self._fake(call)
        made = self._emit(call, Names.identifier(name.replace("/", "_")))
        self._describe(made, name, "view", [name], fake)
        node: Any = made
        for at in call.item:
            fake = fake[at]
            node = self.fx.create_node("call_function", python_operator.getitem, (node, at))
            self._describe(node, name, "view", [name], fake)
        return fake, node

    def _emit(self, call: _Call, name: str) -> Any:
        node_of = functools.partial(self._filled, form=lambda name: self._value(name).node)
        args = tuple(node_of(a) for a in call.args)
        kwargs = {key: node_of(a) for key, a in call.kwargs.items()}
        if call.like:
            args = (self._any_tensor(), *args)
        return self.fx.create_node("call_function", call.function, args, kwargs, name=name)

    def _any_tensor(self) -> Any:
        """A tensor that is where the module is."""
        if self.like is None:
            held = next((h for h in self.graph.held), None)
            if held is None:
                raise _Refusal("nothing says where it runs: the program reads no tensor")
            self.like = self._value(held.value).node
        return self.like

    def _fake(self, call: _Call) -> Any:
        fake_of = functools.partial(self._filled, form=lambda name: self._value(name).fake)
        args = [fake_of(a) for a in call.args]
        if call.like:
            with self.mode:
                args = [torch.empty(0), *args]
        with self.mode, torch.no_grad():
            return call.function(*args, **{key: fake_of(a) for key, a in call.kwargs.items()})

    def _filled(self, argument: Any, form: Callable[[str], Any]) -> Any:
        if isinstance(argument, Ref):
            return form(argument.name)
        if isinstance(argument, list):
            return [self._filled(item, form) for item in argument]
        return argument

    # -- nodes ----------------------------------------------------------------------------------

    def _run(self, node: ExportedNode) -> None:
        parts = operator_of(node.target)
        if parts is None:
            self._number(node, _number_function(node.target))
            return
        namespace, name, overload = parts
        if name in _CHECKS:
            self.folded.append(node.name)
            return
        if name in _SIZES:
            self._number(node, _SIZES[name])
            return
        function = operator_named(namespace, name, overload)
        if name == "copy" and overload == "default":  # without a gradient of its own
            self._call(node, self._bound(node, copied, function._schema))
            return
        if writes_in_place(node.target):
            self._in_place(node, function, name)
            return
        arguments = function._schema.arguments
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in arguments)
        if writes and name not in _TRAINED_STATES:
            raise _Refusal("it writes into what it is given")
        self._call(node, self._bound(node, function, function._schema))

    def _number(self, node: ExportedNode, function: Callable[..., Any]) -> None:
        args = [self._filled(a.value, lambda name: self._value(name).fake) for a in node.arguments]
        result = function(*args)
        if isinstance(result, int) and abs(result) > _LARGEST_NUMBER:
            raise _Refusal("a size would have more than 64 bits")
        if not isinstance(result, (int, float, bool)):
            raise _Refusal("a size depends on the values of tensors")
        self.folded.append(node.name)
        for output in node.first_outputs:
            if output:
                self.values[output] = _Value(result, result)

    def _bound(self, node: ExportedNode, function: Callable[..., Any], schema: Any) -> _Call:
        """The operator with the node's arguments, in a form that runs on any device."""
        known = {a.name: a for a in schema.arguments}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        place: str | int | None = None
        in_order = list(known)
        for given in node.arguments:
            if given.name not in known:
                raise _Refusal(f"has no argument {shown(given.name)}")
            value = _constants(given.value)
            positional = (
                not kwargs
                and not known[given.name].kwarg_only
                and len(args) + (isinstance(place, int)) < len(in_order)
                and in_order[len(args) + isinstance(place, int)] == given.name
            )
            if isinstance(given.value, Special) and given.value.kind == "device":
                place = len(args) if positional else given.name
            elif positional:
                args.append(value)
            else:
                kwargs[given.name] = value
        called: Any = in_mode(function, node.gradients, node.autocast)
        if place is not None:
            called = on_device_of(called, place)
        return _Call(called, args, kwargs, like=place is not None)

    def _call(self, node: ExportedNode, call: _Call) -> None:
        fake = self._checked(self._fake(call))
        made = self._emit(call, Names.identifier(node.name.replace("/", "_")))
        flat = [name for name in node.first_outputs]
        self._describe(made, node.name, node.operator, flat, fake)
        trained = node.gradients and node.operator not in _DETACHES and self._reads_trained(call)
        single = len(node.outputs) == 1 and isinstance(node.outputs[0], str)
        if single and not isinstance(fake, (tuple, list)):
            self._take(node.outputs[0], fake, made, call, (), trained)  # type: ignore[arg-type]
            return
        rows: list[tuple[str, tuple[int, ...]]] = []
        if len(node.outputs) == 1 and not single:
            rows += [(name, (i,)) for i, name in enumerate(node.outputs[0])]
        else:
            for i, output in enumerate(node.outputs):
                if isinstance(output, str):
                    rows.append((output, (i,)))
                else:
                    rows += [(name, (i, k)) for k, name in enumerate(output)]
        for name, at in rows:
            if not name:
                continue
            item, source = fake, made
            for i in at:
                item = item[i]
                source = self.fx.create_node(
                    "call_function",
                    python_operator.getitem,
                    (source, i),
                    name=Names.identifier(name.replace("/", "_")),
                )
                self._describe(source, node.name, node.operator, [name], item)
            self._take(name, item, source, call, at, trained)

    def _take(
        self, name: str, fake: Any, node: Any, call: _Call, at: tuple[int, ...], trained: bool
    ) -> None:
        """A result under its name, and what it is a view of."""
        if isinstance(fake, bool | int | float) or fake is None:
            self.values[name] = _Value(fake, fake)
            return
        if not isinstance(fake, Tensor):
            raise _Refusal(f"gives a {type(fake).__name__}, no tensor")
        self.fakes.append(fake)
        floats = fake.dtype.is_floating_point or fake.dtype.is_complex
        value = _Value(fake, node, trained and floats)
        source = self._source_of(fake, call)
        if source:
            value.source, value.view = (
                source,
                _Call(call.function, call.args, call.kwargs, at, call.like),
            )
        self.values[name] = value

    def _source_of(self, fake: Tensor, call: _Call) -> str:
        """The tensor among the arguments that a result is a view of; '' for one of its own."""
        if not has_storage(fake):
            return ""
        key = storage_key(fake)
        for name in _names([*call.args, *call.kwargs.values()]):
            other = self.values[name].fake
            if isinstance(other, Tensor) and has_storage(other) and storage_key(other) == key:
                return name
        return ""

    def _reads_trained(self, call: _Call) -> bool:
        return any(self.values[n].trained for n in _names([*call.args, *call.kwargs.values()]))

    def _checked(self, fake: Any) -> Any:
        for item in fake if isinstance(fake, (tuple, list)) else (fake,):
            if isinstance(item, Tensor) and item.numel() > LARGEST_TENSOR:
                raise _Refusal(f"its output would have {item.numel()} elements")
        return fake

    def _describe(
        self, made: Any, name: str, operator: str, outputs: Sequence[str], fake: Any
    ) -> None:
        items = fake if isinstance(fake, (tuple, list)) else (fake,)
        flat = [part for item in items for part in (item if isinstance(item, list) else [item])]
        made.meta["memcli"] = {
            "name": name,
            "op": operator,
            "output": next(filter(None, outputs), name),
            "outputs": tuple(outputs),
            "values": tuple(
                (tuple(i.shape), i.dtype) if isinstance(i, Tensor) else None for i in flat
            ),
        }

    # -- writing into tensors ---------------------------------------------------------------------

    def _in_place(self, node: ExportedNode, function: OpOverload, name: str) -> None:
        first = node.arguments[0].value if node.arguments else None
        if not isinstance(first, Ref):
            raise _Refusal("writes into what is no tensor")
        target = first.name
        value = self._value(target)
        if name in _VIEWS_IN_PLACE:
            plain = operator_named("aten", name[:-1], function._overloadname)
            self._call(node, self._bound(node, plain, plain._schema))
            for output in node.first_outputs:
                self.values[target] = self.values[output]
            return
        root = self._root(target)
        held = self.values[root].held
        if self.values[root].is_input or (held is not None and held.kind == "parameter"):
            what = "an input" if held is None else "a parameter"
            raise _Refusal(
                f"writes into {what} of the program",
                "a forward pass that is planned may not change its inputs or parameters",
            )
        if self.values[root].trained and (not node.gradients or self._detached(target)):
            raise _Refusal(
                "writes without gradients into a tensor that has one",
                "take a copy of it first (clone)",
            )
        call = self._bound(node, _functional(name, function), function._schema)
        whole = self._value(root)
        part = None
        if _place(value.fake) != _place(whole.fake):
            part = _place(value.fake)[1:]
            if value.fake.dtype != whole.fake.dtype or not _dense(whole.fake):
                raise _Refusal("writes into a part of a tensor that lies in memory with gaps")
        call.args[0] = Ref(root)
        call.function = written(call.function, part)
        fake = self._checked(self._fake(call))
        made = self._emit(call, Names.identifier(node.name.replace("/", "_")))
        self._describe(made, node.name, node.operator, node.first_outputs, fake)
        trained = node.gradients and (self._reads_trained(call) or whole.trained)
        self.fakes.append(fake)
        for other in self._views_of(root):
            self.values[other].stale = True
        written_to = _Value(fake, made, trained)
        self.values[root] = written_to
        if held is not None:
            self.changed[held.value] = root
        for other in self._views_of(root):
            self.values[other].trained |= trained
        for output in node.first_outputs:
            if output:
                self._same(output, target)

    def _same(self, name: str, other: str) -> None:
        """A second name for a tensor."""
        value = self._value(other)
        call = _Call(torch.ops.aten.alias.default, [Ref(other)], {})
        self.values[name] = _Value(value.fake, value.node, value.trained, source=other, view=call)

    def _root(self, name: str) -> str:
        while self.values[name].source:
            name = self.values[name].source
        return name

    def _views_of(self, root: str) -> list[str]:
        return [name for name in self.values if name != root and self._root(name) == root]

    def _detached(self, name: str) -> bool:
        """Whether a view of a tensor with a gradient was taken without it."""
        while self.values[name].source:
            value = self.values[name]
            if not value.trained and self.values[value.source].trained:
                return True
            name = value.source
        return False

    # -- the end ----------------------------------------------------------------------------------

    def _finish(self) -> list[str]:
        targets = {held.target: held.value for held in self.graph.held}
        for target, value in self.graph.updates:
            if target not in targets:
                raise BadInput(f"{self.name}: updates {shown(target)}, which it does not hold")
            self.changed[targets[target]] = value
        held = {h.value: h for h in self.graph.held}
        states = []
        for buffer, value in self.changed.items():
            new = self._value(value)
            state = self._attribute(held[buffer])
            if new.node is not state:
                states.append((held[buffer].target, state, new.node))
        outputs, given = [], []
        for output in self.graph.outputs:
            if isinstance(output, Ref) and isinstance(self._value(output.name).fake, Tensor):
                outputs.append(output.name)
                given.append(self._value(output.name).node)
        for target, state, node in states:
            made = self.fx.create_node("call_function", set_state, (state, node))
            self._describe(made, f"{target} (state)", "set_state", [f"{target} (state)"], None)
        if not given:
            raise BadInput(f"{self.name}: gives no tensor, so that there is nothing to train")
        self.fx.output(tuple(given))
        for node in reversed(list(self.fx.nodes)):
            if node.users or node.op not in ("call_function", "get_attr"):
                continue
            if node.op == "call_function" and _has_effect(node.target):
                continue
            if node.op == "call_function":
                self.folded.append(node.meta["memcli"]["name"])
            self.fx.erase_node(node)
        present = {n.meta["memcli"]["name"] for n in self._calls()}
        self.folded = [name for name in dict.fromkeys(self.folded) if name not in present]
        self.fx.lint()
        return outputs


def _functional(name: str, function: OpOverload) -> Callable[..., Any]:
    """What an operator that writes into its first argument leaves there."""
    if name in _WRITES:
        return _WRITES[name]
    return operator_named("aten", name[:-1], function._overloadname)


def tensor_of(archive: Archive, payload: Payload) -> Tensor:
    """A tensor with the elements that an archive holds of it.

    Raises:
        BadInput: they are damaged.
    """
    dtype = getattr(torch, payload.dtype)
    if 0 in payload.sizes:
        return torch.empty(payload.sizes, dtype=dtype)
    data = bytearray(archive.read(payload.member, LARGEST_TENSOR))
    whole = torch.frombuffer(data, dtype=torch.uint8)
    whole = whole[: len(data) // dtype.itemsize * dtype.itemsize].view(dtype)
    return whole.as_strided(payload.sizes, payload.strides, payload.offset).clone()


def operator_named(namespace: str, name: str, overload: str) -> OpOverload:
    """One of PyTorch's own operators, registered with its dispatcher.

    Raises:
        _Refusal: there is none, or it is registered for scripts alone.
    """
    qualified = f"{namespace}::{name}" + ("" if overload == "default" else f".{overload}")
    if qualified not in _registered_names():
        raise _Refusal("this PyTorch has no such operator")
    found = getattr(getattr(getattr(torch.ops, namespace), name, None), overload, None)
    if not isinstance(found, OpOverload):
        raise _Refusal("this PyTorch has no such operator")
    return found


@functools.cache
def _registered_names() -> frozenset[str]:
    return frozenset(torch._C._dispatch_get_all_op_names())


def _constants(value: Any) -> Any:
    """An argument with PyTorch's constants in the place of their names."""
    if isinstance(value, Special):
        return None if value.kind == "device" else getattr(torch, value.name)
    if isinstance(value, Unread):
        raise _Refusal(f"takes the text {shown(str(value))}, which is no mode of an operator")
    if isinstance(value, list):
        return [_constants(item) for item in value]
    return value


def _names(argument: Any) -> list[str]:
    if isinstance(argument, Ref):
        return [argument.name]
    if isinstance(argument, list):
        return [name for item in argument for name in _names(item)]
    return []


def _number_function(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(".")
    if name == "pow":
        return _power
    if module == "_operator":
        return getattr(python_operator, name)  # type: ignore[no-any-return]
    if module == "math":
        return getattr(math, name)  # type: ignore[no-any-return]
    return _SYMBOLIC[name]


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1 and exponent > 63:
        raise _Refusal("a size would have more than 64 bits")
    return base**exponent


_SYMBOLIC: dict[str, Callable[..., Any]] = {
    "sym_max": max,
    "sym_min": min,
    "sym_int": int,
    "sym_float": float,
    "sym_not": python_operator.not_,
    "sym_ite": lambda condition, one, other: one if condition else other,
    "sym_sum": sum,
    "_sym_sqrt": math.sqrt,
}


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Type and place of a tensor in its memory."""
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def _dense(tensor: Tensor) -> bool:
    """Whether a tensor fills its memory without gaps."""
    return bool(torch.ops.aten.is_non_overlapping_and_dense.default(tensor))


def _has_effect(function: Any) -> bool:
    """Whether a call must stay though nothing reads it: it draws, or updates states."""
    return function is set_state or draws(function) or leaves_states(function)
