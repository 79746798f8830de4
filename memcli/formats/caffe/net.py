"""A net as Caffe builds it for training: the layers of phase TRAIN, and which reads what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memcli.errors import BadInput
from memcli.formats.caffe.schema import message_class
from memcli.formats.caffe.text import NetText
from memcli.formats.caffe.v1 import upgraded
from memcli.quoting import shown

# A blob at the place where it is written: (position of the layer, position among its tops).
Source = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A layer of the training net."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    parameter: Any = field(repr=False, compare=False)  # LayerParameter
    line: int  # in the file, from 1
    block: int  # which layer block of the file it is; -1 for the net's own ``input`` fields

    @property
    def where(self) -> str:
        """The layer for messages."""
        return f"layer {shown(self.name)} (line {self.line}, {self.type})"


@dataclass
class Net:
    """The training net, with every bottom told apart from others of its name."""

    path: str  # as shown in messages
    name: str
    layers: list[Layer]
    # For each layer, where each of its bottoms is written.
    sources: list[list[Source]] = field(default_factory=list)
    # {where a blob is written: layers that read it there, and as which bottom}
    readers: dict[Source, list[tuple[int, int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def readers_of(self, layer: int, top: int = 0) -> list[tuple[int, int]]:
        """Who reads a top before it is written again."""
        return self.readers.get((layer, top), [])


def training_net(parsed: NetText, path: str) -> Net:
    """The layers that a solver trains, wired.

    The net's own ``state`` gives level and stages; the phase is TRAIN whatever it says.

    Raises:
        BadInput: no layers, a definition of the first generation, layers without a type, rules
            that contradict each other, blobs that no layer writes, writes twice or too late.
    """
    net = parsed.net
    blocks = _blocks(parsed, path)
    layers = _input_layers(net, path) if net.input else []
    for position, (parameter, line) in enumerate(blocks):
        name = parameter.name or f"layer {position + 1}"
        if not parameter.type:
            raise BadInput(f"{path}: line {line}: layer {shown(name)} has no type")
        if parameter.include and parameter.exclude:
            raise BadInput(
                f"{path}: line {line}: layer {shown(name)} has include and exclude rules",
                "Caffe takes the one or the other",
            )
        if _included(parameter, net.state):
            layers.append(
                Layer(
                    name,
                    parameter.type,
                    tuple(parameter.bottom),
                    tuple(parameter.top),
                    parameter,
                    line,
                    position,
                )
            )
    if not layers:
        what = "no layer of it is in the phase TRAIN" if blocks else "has no layers"
        raise BadInput(f"{path}: {what}", "give the net that trains (train_test.prototxt)")
    found = Net(path, net.name, layers, notes=list(parsed.notes))
    _wire(found, [parameter for parameter, _ in blocks])
    return found


def _blocks(parsed: NetText, path: str) -> list[tuple[Any, int]]:
    """All layer blocks as LayerParameters, and their lines."""
    net, lines = parsed.net, parsed.lines
    if net.layer and net.layers:
        raise BadInput(
            f"{path}: has 'layer' and 'layers' blocks (lines {lines['layer'][0]} and "
            f"{lines['layers'][0]})",
            "Caffe takes the one or the other: make them all 'layer'",
        )
    kind = "layer" if net.layer else "layers"
    blocks, at = getattr(net, kind), lines[kind]
    if len(at) != len(blocks):  # written as a list
        at = [at[0]] * len(blocks) if at else [1] * len(blocks)
    if kind == "layers":
        for block, line in zip(blocks, at, strict=True):
            if block.HasField("layer"):
                raise BadInput(
                    f"{path}: line {line}: is a net of Caffe's first generation (V0)",
                    "upgrade it: upgrade_net_proto_text OLD NEW, which comes with Caffe",
                )
        return [(upgraded(block), line) for block, line in zip(blocks, at, strict=True)]
    return list(zip(blocks, at, strict=True))


def _input_layers(net: Any, path: str) -> list[Layer]:
    """The net's own ``input`` fields as Input layers."""
    shapes = [list(shape.dim) for shape in net.input_shape]
    flat = list(net.input_dim)
    if not shapes and flat:
        if len(flat) != 4 * len(net.input):
            raise BadInput(
                f"{path}: has {len(flat)} input_dim for {len(net.input)} inputs",
                "each input takes four",
            )
        shapes = [flat[i : i + 4] for i in range(0, len(flat), 4)]
    if shapes and len(shapes) != len(net.input):
        raise BadInput(f"{path}: has {len(shapes)} input_shape for {len(net.input)} inputs")
    made = []
    for i, name in enumerate(net.input):
        parameter = message_class("LayerParameter")(name=name, type="Input", top=[name])
        if shapes:
            parameter.input_param.shape.add(dim=shapes[i])
        made.append(Layer(name, "Input", (), (name,), parameter, 1, -1))
    return made


def _included(layer: Any, state: Any) -> bool:
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule: Any, state: Any) -> bool:
    """Caffe's NetStateRule, in phase TRAIN."""
    stages = set(state.stage)
    return (
        not (rule.HasField("phase") and rule.phase != 0)
        and not (rule.HasField("min_level") and state.level < rule.min_level)
        and not (rule.HasField("max_level") and state.level > rule.max_level)
        and stages.issuperset(rule.stage)
        and stages.isdisjoint(rule.not_stage)
    )


def _wire(net: Net, blocks: list[Any]) -> None:
    """Fills in who reads what. Caffe runs layers in the file's order."""
    written: dict[str, Source] = {}
    for position, layer in enumerate(net.layers):
        row = []
        for number, bottom in enumerate(layer.bottoms):
            source = written.get(bottom)
            if source is None:
                raise _unknown(net, position, bottom, blocks)
            row.append(source)
            net.readers.setdefault(source, []).append((position, number))
        net.sources.append(row)
        for number, top in enumerate(layer.tops):
            in_place = number < len(layer.bottoms) and layer.bottoms[number] == top
            if top in written and not in_place:
                first = net.layers[written[top][0]]
                raise BadInput(
                    f"{net.path}: {layer.where} writes blob {shown(top)}, which {first.where} "
                    "writes already",
                    "give it another name, or the same bottom and top to run in place",
                )
            written[top] = (position, number)


def _unknown(net: Net, position: int, bottom: str, blocks: list[Any]) -> BadInput:
    """What to say of a bottom that is not written before it is read."""
    layer = net.layers[position]
    start = f"{net.path}: {layer.where} reads blob {shown(bottom)}, which"
    if bottom in layer.tops:
        return BadInput(f"{start} it writes itself: a cycle")
    later = next((other for other in net.layers[position:] if bottom in other.tops), None)
    if later is not None:
        return BadInput(
            f"{start} {later.where} writes only later",
            "Caffe runs layers in the file's order: a cycle, or layers out of order",
        )
    if any(bottom in block.top for block in blocks):
        return BadInput(f"{start} no layer of the phase TRAIN writes", "look at its include rules")
    return BadInput(f"{start} no layer writes")
