"""Wraps layers of a Keras 3 model in tf.recompute_grad."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

# <plan>
# Layers that are recomputed together, by name; in a model within the model: "inner/layer".
GROUPS: list[tuple[str, ...]] = []
# Layers that every group runs for itself, rather than hold on to what they make.
REPEATED: tuple[str, ...] = ()
# </plan>


def recompute(
    model: keras.Model,
    groups: Sequence[Sequence[str]] | None = None,
    repeated: Sequence[str] | None = None,
) -> keras.Model:
    """A model of the same layers and weights that recomputes groups in the backward pass.

    Compile and fit it; save and load ``model``, which learns with it.

    BatchNorm's statistics are updated once, and Dropout draws the same masks again. A functional or
    sequential model can have any groups. Of another one, layers are wrapped one by one (in place),
    and what runs together has to be one layer: :func:`together` is for its own ``call``.

    Raises:
        ValueError: a name that the model has not, or a group that cannot run as one.
    """
    groups = GROUPS if groups is None else groups
    repeated = REPEATED if repeated is None else repeated
    if isinstance(model, (keras.Sequential, keras.src.models.Functional)):
        return _Recomputing(model, groups, repeated)
    for group in groups:
        if len(group) > 1:
            raise ValueError(
                f"{', '.join(group[:4])}: these run together only in a functional model; put them "
                "into one layer, or call together(layers, function) in the model's own call"
            )
        layer = _layer(model, group[0])
        layer.call = together([layer], layer.call)
    return model


def together(layers: Sequence[keras.layers.Layer], function: Callable[..., Any]) -> Any:
    """``function`` with everything that it makes dropped, and recomputed when it is asked for.

    Args:
        layers: those that it calls. Their statistics and seeds are read before and written after,
            outside of what runs twice.
        function: calls layers on its arguments.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        flat = tf.nest.flatten((args, kwargs))
        places = [k for k, x in enumerate(flat) if tf.is_tensor(x) and x.dtype.is_floating]
        states = [v for layer in layers for v in layer.non_trainable_variables]
        states = list({id(v): v for v in states}.values())
        before = [(v, tf.convert_to_tensor(v.value)) for v in states]
        structure: list[Any] = []

        def pure(*given: tf.Tensor) -> list[tf.Tensor]:
            filled = list(flat)
            for place, tensor in zip(places, given, strict=True):
                filled[place] = tensor
            own, named = tf.nest.pack_sequence_as((args, kwargs), filled)
            with keras.StatelessScope(state_mapping=before) as scope:
                made = function(*own, **named)
            structure[:] = [made]
            after = [tf.convert_to_tensor(scope.get_current_value(v)) for v in states]
            # Whole numbers (seeds) have no gradient, and 32 bits fit into a float64.
            after = [x if x.dtype.is_floating else tf.cast(x, tf.float64) for x in after]
            return [*tf.nest.flatten(made), *map(tf.stop_gradient, after)]

        _refuse_masks(flat, layers)
        results = tf.recompute_grad(pure)(*(flat[k] for k in places))
        outputs = results[: len(results) - len(states)]
        for variable, value in zip(states, results[len(outputs) :], strict=True):
            if value.dtype != variable.value.dtype:
                value = tf.cast(tf.cast(value, tf.int64), variable.value.dtype)
            variable.assign(value)
        return tf.nest.pack_sequence_as(structure[0], outputs)

    return run


class _Recomputing(keras.Model):
    """Runs the nodes of a functional model, group by group."""

    def __init__(
        self, model: keras.Model, groups: Sequence[Sequence[str]], repeated: Sequence[str]
    ) -> None:
        super().__init__(name=f"{model.name}_recomputing")
        self.inner = model
        self._plan = _Plan(model, groups, repeated)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if isinstance(inputs, dict):
            given = [inputs[tensor.name] for tensor in self.inner.inputs]
        else:
            given = keras.tree.flatten(inputs)
        values = {id(t): v for t, v in zip(self.inner.inputs, given, strict=True)}
        for part in self._plan.parts:
            self._plan.run(part, values, training)
        outputs = [values[self._plan.same(t)] for t in keras.tree.flatten(self.inner.output)]
        return keras.tree.pack_sequence_as(self.inner.output, outputs)


class _Plan:
    """``parts``: lists of nodes, each after those that it reads, and whether they are a group."""

    def __init__(
        self, model: keras.Model, groups: Sequence[Sequence[str]], repeated: Sequence[str]
    ) -> None:
        opened = {
            name.rsplit("/", k)[0]
            for group in groups
            for name in group
            for k in range(1, name.count("/") + 1)
        }
        self.alias: dict[int, int] = {}
        self.nodes: list[Any] = []
        self.names: list[str] = []
        self._open(model, "", opened)
        self.maker = {id(t): k for k, node in enumerate(self.nodes) for t in node.outputs}
        wanted = {self.same(t) for t in keras.tree.flatten(model.output)}
        of = self._groups(groups)
        self.repeated = {self._number(name) for name in repeated} - set(of)
        self._take_in(of)
        self.parts = self._ordered(of, wanted)

    def same(self, tensor: Any) -> int:
        """The tensor that one stands for: a model's input within a model is what it is given."""
        found = id(tensor)
        while found in self.alias:
            found = self.alias[found]
        return found

    def run(self, part: Any, values: dict[int, Any], training: bool | None) -> None:
        nodes, grouped, reads, makes = part
        layers = [self.nodes[k].operation for k in nodes]
        layers = [op for op in layers if isinstance(op, keras.layers.Layer)]

        def function(*given: Any) -> list[Any]:
            known = dict(zip(reads, given, strict=True))
            for k in nodes:
                self._run_node(k, known, training)
            return [known[t] for t in makes]

        made = (
            together(layers, function)(*(values[t] for t in reads))
            if grouped
            else function(*(values[t] for t in reads))
        )
        values.update(zip(makes, made, strict=True))

    def _run_node(self, k: int, known: dict[int, Any], training: bool | None) -> None:
        node = self.nodes[k]
        args, kwargs = node.arguments.fill_in(
            {id(t): known[self.same(t)] for t in node.input_tensors}
        )
        joined = self._joined(k, known)
        if joined is not None:
            args, kwargs = (joined,), {}
        call = node.operation
        if training is not None and getattr(call, "_call_has_training_arg", False):
            kwargs["training"] = training
        made = keras.tree.flatten(call(*args, **kwargs))
        known.update(zip(map(id, node.outputs), made, strict=True))

    def _joined(self, k: int, known: dict[int, Any]) -> list[Any] | None:
        """What a concatenation of repeated concatenations joins: all at once, not step by step."""
        operation = self.nodes[k].operation
        if k not in self.repeated or not isinstance(operation, keras.layers.Concatenate):
            return None
        return [known[t] for t in self._flat(k, operation.axis)]

    def _flat(self, k: int, axis: int) -> list[int]:
        flat: list[int] = []
        for tensor in map(self.same, self.nodes[k].input_tensors):
            maker = self.maker.get(tensor, -1)
            inner = self.nodes[maker].operation if maker in self.repeated else None
            if isinstance(inner, keras.layers.Concatenate) and inner.axis == axis:
                flat += self._flat(maker, axis)
            else:
                flat.append(tensor)
        return flat

    def _open(self, model: keras.Model, prefix: str, opened: set[str]) -> None:
        for node in _nodes_of(model):
            name = prefix + node.operation.name
            if name not in opened:
                self.nodes.append(node)
                self.names.append(name)
                continue
            inner = node.operation
            for outside, inside in zip(node.input_tensors, inner.inputs, strict=True):
                self.alias[id(inside)] = id(outside)
            self._open(inner, f"{name}/", opened)
            for outside, inside in zip(node.outputs, keras.tree.flatten(inner.output), strict=True):
                self.alias[id(outside)] = id(inside)

    def _number(self, name: str) -> int:
        """The node of a layer; names of operations differ in case, and may have a number more."""
        for found in (name, name.lower(), name.rpartition("_")[0]):
            if found in self.names:
                return self.names.index(found)
        some = ", ".join(self.names[:5])
        raise ValueError(
            f"the model has no layer {name}; it has {some}, ... (keras.utils.clear_session() "
            "before the model is built gives layers without a name the same ones again)"
        )

    def _groups(self, groups: Sequence[Sequence[str]]) -> dict[int, int]:
        return {self._number(name): g for g, group in enumerate(groups) for name in group}

    def _take_in(self, of: dict[int, int]) -> None:
        """Give layers that no group names, and that stand between two of one, to that group.

        An export may have lost them, as it loses Dropout.
        """
        reads = [
            [self.maker[t] for t in map(self.same, node.input_tensors) if t in self.maker]
            for node in self.nodes
        ]
        before, after = ([0] * len(self.nodes) for _ in range(2))
        for k, makers in enumerate(reads):
            for maker in makers:
                before[k] |= before[maker] | (1 << of[maker] if maker in of else 0)
        for k in reversed(range(len(self.nodes))):
            own = after[k] | (1 << of[k] if k in of else 0)
            for maker in reads[k]:
                after[maker] |= own
        for k in range(len(self.nodes)):
            both = before[k] & after[k]
            if both and k not in of and k not in self.repeated:
                of[k] = both.bit_length() - 1

    def _reads(self, k: int) -> list[int]:
        """The tensors that a node needs from outside, through what is repeated."""
        found: list[int] = []
        for tensor in map(self.same, self.nodes[k].input_tensors):
            maker = self.maker.get(tensor, -1)
            found += self._reads(maker) if maker in self.repeated else [tensor]
        return list(dict.fromkeys(found))

    def _needs(self, k: int) -> list[int]:
        """The repeated nodes that a node reads, each after those that it reads itself."""
        found: list[int] = []
        for tensor in map(self.same, self.nodes[k].input_tensors):
            maker = self.maker.get(tensor, -1)
            if maker in self.repeated:
                found += [*self._needs(maker), maker]
        return list(dict.fromkeys(found))

    def _ordered(self, of: dict[int, int], wanted: set[int]) -> list[Any]:
        members: dict[Any, list[int]] = {}
        for k in range(len(self.nodes)):
            if k not in self.repeated or any(id(t) in wanted for t in self.nodes[k].outputs):
                members.setdefault(of.get(k, ("alone", k)), []).append(k)
        part_of = {k: part for part, nodes in members.items() for k in nodes}
        reads = {
            part: list(
                dict.fromkeys(
                    t
                    for k in nodes
                    for t in self._reads(k)
                    if part_of.get(self.maker.get(t, -1)) != part
                )
            )
            for part, nodes in members.items()
        }
        handed = wanted.union(*reads.values()) if reads else wanted
        done: set[Any] = set()
        parts = []
        while len(done) < len(members):
            ready = [
                part
                for part in members
                if part not in done
                and all(part_of[self.maker[t]] in done for t in reads[part] if t in self.maker)
            ]
            if not ready:
                raise ValueError(f"groups read one another: {self._named(members, done)}")
            for part in ready:
                done.add(part)
                nodes = list(
                    dict.fromkeys(k for own in members[part] for k in (*self._needs(own), own))
                )
                makes = [
                    id(t) for k in members[part] for t in self.nodes[k].outputs if id(t) in handed
                ]
                parts.append((nodes, not isinstance(part, tuple), reads[part], makes))
        return parts

    def _named(self, members: dict[Any, list[int]], done: set[Any]) -> str:
        left = [nodes for part, nodes in members.items() if part not in done and len(nodes) > 1]
        return "; ".join(", ".join(self.names[k] for k in nodes[:3]) for nodes in left[:3])


def _nodes_of(model: keras.Model) -> list[Any]:
    """The calls that make up a functional model, each after those that it reads."""
    function = getattr(model, "_functional", None) or model
    by_depth = function._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if not node.is_input
    ]


def _layer(model: keras.Model, path: str) -> Any:
    found: Any = model
    for name in path.split("/"):
        inner = {layer.name: layer for layer in found._layers}
        if name not in inner:
            raise ValueError(f"{found.name} has no layer {name}; it has {', '.join(inner)}")
        found = inner[name]
    return found


def _refuse_masks(tensors: Iterable[Any], layers: Sequence[keras.layers.Layer]) -> None:
    if any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors):
        names = ", ".join(layer.name for layer in layers[:3])
        raise ValueError(f"{names}: a mask does not go into a group; leave it out of GROUPS")
