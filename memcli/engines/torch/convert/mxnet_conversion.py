"""The walk over an MXNet symbol that builds the fx graph."""

from __future__ import annotations

import operator as python_operator
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memcli.engines.torch.convert.calls import REFUSALS, Call, Names, complaints, said
from memcli.engines.torch.convert.mxnet_operators import register_all
from memcli.engines.torch.convert.mxnet_operators.attributes import Attributes, type_of
from memcli.engines.torch.convert.mxnet_operators.registry import (
    OPERATORS,
    REASONS,
    STATES,
    Site,
    Value,
)
from memcli.engines.torch.convert.onnx_graph import FreeInput
from memcli.engines.torch.convert.values import Unsupported
from memcli.errors import REFUSED, BadInput, MemcliError
from memcli.formats.symbol.check import Entry, SymbolNode, depth_first_order

Shape = tuple[int, ...]

_INTEGERS = re.compile(r"_contrib_(quantize|quantized|dequantize|requantize)|_sg_mkldnn_")


@dataclass(frozen=True)
class Holding:
    """An argument or state of the symbol, and what it is in the module."""

    name: str  # in the file
    prepared: str  # in the symbol that was converted
    role: str  # "parameter", "input", "label" or "state"
    attribute: str  # of the module; of inputs and labels the argument of its forward
    shape: Shape
    dtype: torch.dtype


class SymbolConversion:
    """One conversion: values by node, the fx graph so far, and what was found wrong."""

    def __init__(
        self,
        nodes: Sequence[SymbolNode],
        heads: Sequence[Entry],
        *,
        shapes: Mapping[str, Shape],
        dtypes: Mapping[str, str],
        roles: Mapping[str, str],
        names: list[str],
        known: Mapping[int, Sequence[Shape]],
        values: Mapping[str, Any],
        mode: FakeTensorMode,
        fake: bool,
        name: str,
    ) -> None:
        register_all()
        self.inputs: list[FreeInput] = []
        self.arguments: list[Holding] = []
        self.auxiliary: list[Holding] = []
        self.constants: dict[str, str] = {}
        self.notes: list[str] = []
        self.outputs: list[str] = []
        self._shapes, self._dtypes, self._roles = shapes, dtypes, roles
        self._known, self._values = known, values
        self._mode, self._fake, self._name = mode, fake, name
        self._heads = heads
        self._nodes, self._names = _with_states(nodes, names)
        self._order, _ = depth_first_order(self._nodes, list(heads), {})
        self._root = torch.nn.Module()
        self._graph = torch.fx.Graph()
        self._made: dict[int, tuple[Value, ...]] = {}
        self._anchor: Value | None = None
        self._identifiers = Names(self._root)
        self._wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._poisoned: set[int] = set()

    def run(self) -> None:
        """Convert all nodes that the outputs need.

        Raises:
            BadInput: one message for everything that is not supported.
        """
        self._hold_variables()
        for position in self._order:
            node = self._nodes[position]
            if node.is_variable:
                continue
            try:
                self._convert(position, node)
            except Unsupported as error:
                self._wrong[node.op, str(error)].append(self._names[position])
                self._poisoned.add(position)
            except (MemcliError, MemoryError):
                raise
            except Exception as error:
                why = f"its attributes or inputs do not fit: {said(error)}"
                self._wrong[node.op, why].append(self._names[position])
                self._poisoned.add(position)
        if self._wrong:
            raise BadInput(
                f"{self._name}: PyTorch cannot run it: {complaints(self._wrong)}",
                "MXNet itself trains it: --engine mxnet",
            )
        results = [self._entry(*head) for head in self._heads]
        self.outputs = [self._output_name(*head) for head in self._heads]
        self._graph.output(tuple(value.node for value in results))

    def finish(self) -> torch.fx.GraphModule:
        """The module."""
        self._graph.lint()
        return torch.fx.GraphModule(self._root, self._graph, "ConvertedSymbol")

    # -- variables --------------------------------------------------------------------------

    def _hold_variables(self) -> None:
        """Placeholders before all else, then what the module holds, in MXNet's order."""
        states = self._states()
        waiting = []
        for position in self._order:
            node = self._nodes[position]
            if not node.is_variable:
                continue
            role = "state" if position in states else self._roles.get(node.name, "parameter")
            if role in ("input", "label"):
                self._hold(position, role)
            else:
                waiting.append((position, role))
        held = {h.prepared: h for h in self.arguments}
        for position, role in waiting:
            self._hold(position, role)
        held.update({h.prepared: h for h in self.arguments})
        self.arguments = [
            held[self._nodes[position].name]
            for position in self._order
            if self._nodes[position].is_variable and position not in states
        ]

    def _states(self) -> set[int]:
        found = set()
        for position in self._order:
            node = self._nodes[position]
            for slot in STATES.get(node.op, ()):
                if slot < len(node.inputs) and self._nodes[node.inputs[slot][0]].is_variable:
                    found.add(node.inputs[slot][0])
        return found

    def _hold(self, position: int, role: str) -> None:
        prepared, name = self._nodes[position].name, self._names[position]
        if prepared not in self._shapes:
            raise BadInput(
                f"{self._name}: the shape of '{name}' is not known",
                f"give it with --shape {name}=…",
            )
        shape = self._shapes[prepared]
        dtype = type_of(self._dtypes.get(prepared, "float32"))
        attribute = self._identifiers.own(name)
        fake = self._empty(shape, dtype)
        if role in ("input", "label"):
            node = self._graph.create_node("placeholder", attribute, name=attribute)
            self.inputs.append(FreeInput(name, attribute, shape, dtype))
        else:
            tensor = fake if self._fake else self._elements(prepared, shape, dtype)
            if role == "parameter":
                trains = dtype.is_floating_point
                fake = fake if not trains else fake.requires_grad_()
                self._root.register_parameter(
                    attribute, torch.nn.Parameter(tensor, requires_grad=trains)
                )
            else:
                self._root.register_buffer(attribute, tensor)
            node = self._graph.create_node("get_attr", attribute, name=attribute)
        node.meta["memcli"] = {"name": name, "values": ((shape, dtype),), "position": position}
        holding = Holding(name, prepared, role, attribute, shape, dtype)
        (self.auxiliary if role == "state" else self.arguments).append(holding)
        self._made[position] = (Value(node, fake.detach()),)

    def _elements(self, prepared: str, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        given = self._values.get(prepared)
        if given is None:
            return torch.zeros(shape, dtype=dtype)
        return torch.from_numpy(np.array(given)).to(dtype).reshape(shape)

    # -- operators --------------------------------------------------------------------------

    def _convert(self, position: int, node: SymbolNode) -> None:
        if _INTEGERS.match(node.op):
            raise Unsupported("quantized to integers: no gradient passes")
        if node.op not in OPERATORS:
            raise Unsupported(REASONS.get(node.op, "not among the operators converted"))
        if any(source in self._poisoned for source, _ in node.inputs):
            self._poisoned.add(position)
            return
        inputs = [self._entry(*entry) for entry in node.inputs]
        attributes = {key: v for key, v in node.attrs.items() if not key.startswith("__")}
        known = self._known.get(position)
        site = Site(
            node.op,
            self._names[position],
            inputs,
            Attributes(attributes),
            known,
            self._anchor_value,
            self.notes,
        )
        call = OPERATORS[node.op](site)
        fake = self._fake_result(call)
        results = tuple(fake) if call.many else (fake,)
        for result, shape in zip(results, known or (), strict=False):
            if tuple(result.shape) != tuple(shape):
                raise Unsupported(
                    f"MXNet makes the shape {tuple(shape)}, not {tuple(result.shape)}"
                )
        args, kwargs = call.filled(Value, lambda value: value.node)
        fx_node = self._graph.create_node(
            "call_function", call.function, args, kwargs, name=self._identifiers.own(site.name)
        )
        described = tuple((tuple(r.shape), r.dtype) for r in results)
        names = tuple(self._output_name(position, i) for i in range(len(results)))
        self._mark(fx_node, position, node.op, names, described)
        values = []
        for i, result in enumerate(results):
            source = fx_node
            if call.many:
                source = self._graph.create_node(
                    "call_function",
                    python_operator.getitem,
                    (fx_node, i),
                    name=self._identifiers.own(names[i]),
                )
                self._mark(source, position, node.op, (names[i],), (described[i],))
            values.append(Value(source, result))
        self._made[position] = tuple(values)

    def _mark(
        self, node: torch.fx.Node, position: int, op: str, outputs: tuple[str, ...], values: Any
    ) -> None:
        node.meta["memcli"] = {
            "name": self._names[position],
            "op": op,
            "output": outputs[0],
            "outputs": outputs,
            "values": values,
            "position": position,
        }

    def _entry(self, position: int, output: int) -> Value:
        values = self._made[position]
        if output >= len(values):
            raise Unsupported(
                f"reads output {output} of '{self._names[position]}', which it does not have here"
            )
        return values[output]

    def _anchor_value(self) -> Value:
        """An empty buffer: constants are made on the device where the module is."""
        if self._anchor is None:
            attribute = self._identifiers.own("memcli_device")
            self._root.register_buffer(attribute, torch.empty(0), persistent=False)
            self.constants[attribute] = attribute
            first = next((n for n in self._graph.nodes if n.op != "placeholder"), None)
            with self._graph.inserting_before(first):
                node = self._graph.create_node("get_attr", attribute, name=attribute)
            self._anchor = Value(node, self._empty((0,), torch.float32))
        return self._anchor

    def _fake_result(self, call: Call) -> Any:
        args, kwargs = call.filled(Value, lambda value: value.fake)
        try:
            with self._mode, torch.no_grad():
                return call.function(*args, **kwargs)
        except REFUSALS as error:
            raise Unsupported(f"{REFUSED}: {said(error)}") from error

    def _empty(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        with self._mode:
            return torch.empty(shape, dtype=dtype)

    # -- names and messages -----------------------------------------------------------------

    def _output_name(self, position: int, output: int) -> str:
        """As MXNet calls it: NAME_output, or NAME_output2 where there are several."""
        node, name = self._nodes[position], self._names[position]
        if node.is_variable:
            return name
        several = len(self._made[position]) > 1 if position in self._made else output > 0
        return f"{name}_output{output}" if several else f"{name}_output"


def _with_states(
    nodes: Sequence[SymbolNode], names: list[str]
) -> tuple[list[SymbolNode], list[str]]:
    """The nodes with the states that files from before MXNet 0.9 do not list."""
    result, labels = list(nodes), [*names]
    for position, node in enumerate(nodes):
        states = STATES.get(node.op)
        if not states or len(node.inputs) != min(states):
            continue
        inputs = list(node.inputs)
        for state in states.values():
            inputs.append((len(result), 0))
            result.append(SymbolNode("null", f"{node.name}_{state}", (), {}))
            labels.append(f"{names[position]}_{state}")
        result[position] = SymbolNode(node.op, node.name, tuple(inputs), node.attrs)
    return result, labels
