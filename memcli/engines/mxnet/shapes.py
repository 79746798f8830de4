"""Which shapes and dtypes a symbol trains with: the user's, the file's, or a checked guess.

Order: what the user says, what the file says (``__shape__`` attributes, which MXNet reads
itself), and only for what is still unknown a guess, accepted where MXNet's own shape inference
then knows every tensor of the graph. Each guess is reported.
"""

from __future__ import annotations

import fnmatch
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memcli.errors import BadInput
from memcli.formats.symbol.values import impossible, tuple_of
from memcli.quoting import whole_number

# Shapes without the batch, most usual first: image networks, then small images and vectors.
USUAL_SHAPES: tuple[tuple[int, ...], ...] = (
    (3, 224, 224),
    (3, 299, 299),
    (3, 112, 112),
    (3, 32, 32),
    (1, 28, 28),
    (1, 32, 32),
    (3, 256, 256),
    (3, 300, 300),
    (3, 320, 320),
    (3, 416, 416),
    (3, 448, 448),
    (3, 480, 480),
    (3, 512, 512),
    (3, 640, 640),
    (3, 112, 96),
    (3, 128, 128),
    (3, 144, 144),
    (1, 112, 112),
    (1, 128, 128),
    (1, 224, 224),
    (3, 12, 12),
    (3, 24, 24),
    (3, 48, 48),
    (100, 1, 1),
    (784,),
)
DEFAULT_BATCH = 32
# More elements than this in one tensor is a slip of the keyboard, not a network.
LARGEST_DIMENSION = 1 << 31

# Operator slots that hold parameters; slot 0 is always data.
_PARAMETER_OPERATORS = frozenset(
    {
        "Convolution",
        "Convolution_v1",
        "Deconvolution",
        "FullyConnected",
        "BatchNorm",
        "BatchNorm_v1",
        "Embedding",
        "LayerNorm",
        "GroupNorm",
        "InstanceNorm",
        "_contrib_SyncBatchNorm",
        "_contrib_DeformableConvolution",
        "_contrib_ModulatedDeformableConvolution",
        "CuDNNBatchNorm",
        "_contrib_SparseEmbedding",
    }
)
_PARAMETER_ENDINGS = (
    "weight",
    "bias",
    "gamma",
    "beta",
    "parameters",
    "alpha",
    "moving_mean",
    "moving_var",
    "running_mean",
    "running_var",
    "_w",
    "_b",
    "scale",
)
_LABEL_OPERATORS = frozenset(
    {
        "SoftmaxOutput",
        "Softmax",
        "LinearRegressionOutput",
        "LogisticRegressionOutput",
        "MAERegressionOutput",
        "SVMOutput",
    }
)


@dataclass
class ResolvedShapes:
    """Everything about a symbol's arguments; names are the prepared symbol's (``n17``)."""

    shapes: dict[str, tuple[int, ...]]
    known: dict[str, tuple[int, ...]]
    types: dict[str, str]
    aux: dict[str, tuple[tuple[int, ...], str]]
    inputs: dict[str, list[int]]  # original names of what is fed, with its shape
    assumed: list[str]  # original names of guessed inputs
    arguments: list[dict[str, Any]]
    auxiliary: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    parameter_bytes: int
    state_bytes: int
    entry_types: dict[str, str] = field(default_factory=dict)
    internals: list[tuple[int, int, int]] = field(default_factory=list)
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)


def find_roles(raw: dict[str, Any]) -> dict[int, str]:
    """The role of each variable: ``parameter``, ``label`` or ``input``, by position in the file."""
    nodes = raw["nodes"]
    roles: dict[int, str] = {}
    for node in nodes:
        for slot, source in enumerate(node["inputs"]):
            position = source[0]
            if nodes[position]["op"] != "null":
                continue
            role = "input"
            if (slot and node["op"] in _PARAMETER_OPERATORS) or (
                slot == 1 and node["op"] in ("RNN", "LeakyReLU")
            ):
                role = "parameter"
            elif slot and node["op"] in _LABEL_OPERATORS:
                role = "label"
            order = ("parameter", "label", "input")
            if position not in roles or order.index(role) < order.index(roles[position]):
                roles[position] = role
    return roles


def _complete(shape: tuple[int, ...] | None) -> bool:
    return shape is not None and len(shape) > 0 and all(d > 0 for d in shape)


def _file_shape(attributes: dict[str, str]) -> tuple[int, ...] | None:
    """The ``__shape__`` attribute, with 0 for what it leaves open."""
    value = tuple_of(attributes.get("__shape__"))
    return None if value is None else tuple(max(0, d or 0) for d in value)


class Resolver:
    """Works out shapes by asking MXNet's inference again and again."""

    def __init__(
        self,
        mx: Any,
        symbol: Any,
        raw: dict[str, Any],
        names: list[str],
        explain: Callable[[Exception], str],
    ) -> None:
        self.mx = mx
        self.symbol = symbol
        self.names = names
        self.explain = explain
        self.arguments: list[str] = symbol.list_arguments()
        self.attributes: dict[str, dict[str, str]] = symbol.attr_dict()
        roles = find_roles(raw)
        self.role: dict[str, str] = {}
        self._prepared: dict[str, list[str]] = {}
        for argument in self.arguments:
            name = self.original(argument)
            self._prepared.setdefault(name, []).append(argument)
            position = self.position(argument)
            role = roles.get(position, "input") if position is not None else "parameter"
            if role == "input" and name.endswith(_PARAMETER_ENDINGS):
                role = "parameter"
            if role == "input" and name.endswith("label"):
                role = "label"
            self.role[argument] = role

    def position(self, prepared: str) -> int | None:
        """Position in the file of a variable, None for one that MXNet put in while upgrading."""
        return whole_number(prepared[1:], len(self.names) - 1)

    def original(self, prepared: str) -> str:
        """The file's name of a prepared variable."""
        position = self.position(prepared)
        if position is not None:
            return self.names[position]
        # a state that MXNet adds to graphs older than 0.9: n17_moving_mean
        node, _, rest = prepared.partition("_")
        owner = self.position(node)
        return f"{self.names[owner]}_{rest}" if owner is not None else prepared

    def prepared(self, original: str) -> list[str]:
        """All arguments of that name in the file (names repeat)."""
        return self._prepared.get(original, [])

    def partial(self, known: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """What MXNet can tell of every argument.

        Raises:
            BadInput: the shapes contradict the graph.
        """
        try:
            shapes, _, _ = self.symbol.infer_shape_partial(**known)
        except (self.mx.base.MXNetError, ValueError, TypeError) as error:
            raise BadInput(f"these shapes do not fit the graph: {self.explain(error)}") from None
        return dict(zip(self.arguments, [tuple(s) for s in shapes or []], strict=False))

    def missing(self, known: dict[str, tuple[int, ...]]) -> list[str]:
        """Arguments without a whole shape, outputs of the graph included as ``''``."""
        shapes = self.partial(known)
        return [a for a in self.arguments if not _complete(shapes.get(a))]

    def agrees(self, known: dict[str, tuple[int, ...]]) -> bool:
        """Whether the shapes do not contradict the graph."""
        try:
            self.partial(known)
        except BadInput:
            return False
        return True

    def fits(self, known: dict[str, tuple[int, ...]]) -> bool:
        """Whether MXNet then knows the shape of every argument and output."""
        try:
            if self.missing(known):
                return False
            shapes, outputs, _ = self.symbol.infer_shape(**known)
        except (BadInput, self.mx.base.MXNetError, ValueError, TypeError):
            return False
        return shapes is not None and all(_complete(tuple(s)) or not s for s in outputs)


def _check_shape(name: str, shape: list[int]) -> tuple[int, ...]:
    if not shape or any(not isinstance(d, int) or d <= 0 for d in shape):
        raise BadInput(
            f"shape {shape} of '{name}' is not possible: every dimension must be positive"
        )
    size = 1
    for d in shape:
        size *= d
    if max(shape) > LARGEST_DIMENSION or size > 1 << 40:
        raise BadInput(f"shape {shape} of '{name}' is absurd: {size:,} elements")
    return tuple(shape)


def resolve_shapes(
    mx: Any,
    symbol: Any,
    raw: dict[str, Any],
    names: list[str],
    job: dict[str, Any],
    explain: Callable[[Exception], str],
) -> ResolvedShapes:
    """Shapes and types of everything, or an error that names the input and the option.

    Args:
        mx: the module ``mxnet``.
        symbol: of ``mxnet``, the prepared copy.
        raw: the symbol file's content.
        names: of the nodes in the file, by position.
        job: ``shapes`` (by original name), ``unnamed_shape``, ``batch``, ``dtype``, ``dtypes`` (by
            original name, before ``dtype``).
        explain: one line of an MXNet error.

    Raises:
        BadInput: unknown names, impossible shapes or types, or an input whose shape cannot be told.
    """
    resolver = Resolver(mx, symbol, raw, names, explain)
    known: dict[str, tuple[int, ...]] = {}
    said: set[str] = set()
    for name, shape in (job.get("shapes") or {}).items():
        targets = resolver.prepared(name) or [
            a for a in resolver.arguments if fnmatch.fnmatchcase(resolver.original(a), name)
        ]
        if not targets:
            free = [resolver.original(a) for a in resolver.arguments if resolver.role[a] == "input"]
            raise BadInput(
                f"--shape {name}=...: the graph has no input of that name",
                f"its inputs: {', '.join(free[:8])}" if free else "",
            )
        for target in targets:
            known[target] = _check_shape(name, shape)
            said.add(target)
    batch = job.get("batch")
    if batch is not None and not 0 < batch <= LARGEST_DIMENSION:
        raise BadInput(f"--batch {batch} is not possible: it must be positive")

    from_file: dict[str, tuple[int, ...]] = {}
    for argument in resolver.arguments:
        shape = _file_shape(resolver.attributes.get(argument, {}))
        if shape and argument not in said and resolver.role[argument] != "parameter":
            from_file[argument] = shape
    # Inputs with a whole shape in the file keep it, or get the batch that the user asks for;
    # labels may hold several rows for each sample (one for each step).
    old = next((s[0] for a, s in from_file.items() if resolver.role[a] == "input" and s[0] > 0), 0)
    for argument, shape in from_file.items():
        if batch is not None and resolver.role[argument] == "input":
            known[argument] = (batch, *shape[1:])
        elif batch is not None and old and shape[0] % old == 0:
            known[argument] = (shape[0] // old * batch, *shape[1:])

    assumed: list[str] = []
    open_inputs = [
        a
        for a in resolver.arguments
        if resolver.role[a] == "input" and a not in known and not _complete(from_file.get(a))
    ]
    unnamed = job.get("unnamed_shape")
    if unnamed is not None:
        candidates = [a for a in resolver.arguments if resolver.role[a] == "input"]
        free = open_inputs if open_inputs else candidates
        if len(free) > 1:
            still = resolver.missing(known)
            free = [a for a in free if a in still] or free
        if len(free) > 1:
            shape = _check_shape(resolver.original(free[0]), unnamed)
            free = [a for a in free if resolver.fits({**known, a: shape})][:1] or free
        if len(free) != 1:
            shown = ", ".join(resolver.original(a) for a in (free or candidates)[:8])
            raise BadInput(
                f"--shape without a name, but the graph has {len(free)} inputs to give it to",
                f"name it: --shape NAME=...; inputs: {shown}",
            )
        known[free[0]] = _check_shape(resolver.original(free[0]), unnamed)
        said.add(free[0])
        if free[0] in assumed:
            assumed.remove(free[0])

    try:
        missing = resolver.missing(known)
    except BadInput:
        # Some operators fail where they know nothing of their input, rather than wait for it.
        if not open_inputs or all(a in known for a in open_inputs):
            raise
        missing = [a for a in open_inputs if a not in known]
    if missing:
        # Shapes of the file that lack the batch alone: that of the others, or the usual one.
        leading = batch or next((known[a][0] for a in said), DEFAULT_BATCH)
        guess = {
            a: (leading, *s[1:])
            for a, s in from_file.items()
            if a in missing and a not in known and s[0] == 0 and all(d > 0 for d in s[1:])
        }
        if guess and resolver.agrees({**known, **guess}):
            known.update(guess)
            assumed.extend(guess)
            missing = resolver.missing(known)
    open_inputs = [a for a in missing if resolver.role[a] == "input" and a not in known]
    # A graph may be described by one free input while the others (labels, begin states) follow.
    if missing and len(open_inputs) >= 1:
        for guess in _guesses(resolver, open_inputs, from_file, batch):
            if resolver.fits({**known, **guess}):
                known.update(guess)
                assumed.extend(guess)
                missing = []
                break
    if missing:
        raise _unknown_shapes(resolver, raw, known, missing)
    return _finish(resolver, known, job.get("dtype") or "float32", job.get("dtypes") or {}, assumed)


def _unknown_shapes(
    resolver: Resolver,
    raw: dict[str, Any],
    known: dict[str, tuple[int, ...]],
    missing: list[str],
) -> BadInput:
    """The error that names the inputs without a shape, and how to give it.

    Inputs whose names differ in a number are named together, by a glob that fits no others. What
    is not known of a shape is a letter: no shape is proposed that may be none.
    """
    wanted = [a for a in missing if resolver.role[a] == "input"]
    wanted = wanted or [a for a in missing if resolver.role[a] != "parameter"] or missing
    groups = _grouped_names(
        [resolver.original(a) for a in wanted], [resolver.original(a) for a in resolver.arguments]
    )
    first = {resolver.original(a): a for a in reversed(wanted)}
    texts = [f"'{n}' ({len(g)} inputs)" if len(g) > 1 else f"'{n}'" for n, g in groups.items()]
    more = f" and {len(texts) - 6} more" if len(texts) > 6 else ""
    options = [
        shlex.quote(f"{name}={_possible_shape(resolver, raw, known, first[group[0]])}")
        for name, group in groups.items()
    ]
    give = " ".join(f"--shape {option}" for option in options[:3])
    if len(options) > 3:
        give += " ..."
    if len(wanted) > 1:
        give += ', or all at once: --shapes FILE.json ({"NAME": [D, D, ...], ...})'
    word = "inputs" if len(wanted) > 1 else "input"
    return BadInput(
        f"the shape of {word} {', '.join(texts[:6])}{more} is not in the file and cannot be "
        "inferred",
        f"give it, a number for each letter: {give}"
        if re.search(r"=\S*[A-Z]", give)
        else f"give it: {give}",
    )


def _grouped_names(wanted: list[str], others: list[str]) -> dict[str, list[str]]:
    """Names by a glob for those that differ in their digits alone, or each by itself."""
    by_glob: dict[str, list[str]] = {}
    for name in dict.fromkeys(wanted):
        by_glob.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    groups: dict[str, list[str]] = {}
    for glob, names in by_glob.items():
        fits = {name for name in others if fnmatch.fnmatchcase(name, glob)}
        if len(names) > 1 and fits == set(names):
            groups[glob] = names
        else:
            groups |= {name: [name] for name in names}
    return groups


def _possible_shape(
    resolver: Resolver, raw: dict[str, Any], known: dict[str, tuple[int, ...]], argument: str
) -> str:
    """What is known of an input's shape, as ``--shape`` takes it, with letters for the rest."""
    try:
        inferred = resolver.partial(known).get(argument) or ()
    except BadInput:
        inferred = ()
    if inferred:
        return ",".join(str(d) if d > 0 else "D" for d in inferred)
    usual = (DEFAULT_BATCH, *USUAL_SHAPES[0])
    position = resolver.position(argument)
    if position is not None and _is_image(raw, position):
        agrees = resolver.agrees({**known, argument: usual})
        return ",".join(map(str, usual)) if agrees else "N,C,H,W"
    return "D,D,..."


# Operators of one input that keep its shape, which may stand between a picture and a convolution.
_KEEPS_SHAPE = frozenset(
    {
        "BatchNorm",
        "Activation",
        "LeakyReLU",
        "Cast",
        "cast",
        "_copy",
        "identity",
        "BlockGrad",
        "_minus_scalar",
        "_plus_scalar",
        "_mul_scalar",
        "_div_scalar",
        "_rdiv_scalar",
        "_rminus_scalar",
        "Dropout",
        "clip",
        "amp_cast",
        "_MinusScalar",
        "_PlusScalar",
        "_MulScalar",
        "_DivScalar",
    }
)


def _is_image(raw: dict[str, Any], position: int) -> bool:
    """Whether a convolution or pooling over two dimensions reads a variable."""
    same = {position}
    for number, node in enumerate(raw["nodes"]):
        if not node["inputs"] or node["inputs"][0][0] not in same:
            continue
        if node["op"] in ("Convolution", "Convolution_v1", "Pooling", "Pooling_v1"):
            attributes = node.get("attrs") or node.get("attr") or node.get("param") or {}
            kernel = re.findall(r"\d+", str(attributes.get("kernel", "")))
            # where the layout is another, so are the places of the channels
            return len(kernel) == 2 and attributes.get("layout", "NCHW") in ("NCHW", "None")
        if node["op"] in _KEEPS_SHAPE:
            same.add(number)
    return False


def _guesses(
    resolver: Resolver,
    open_inputs: list[str],
    from_file: dict[str, tuple[int, ...]],
    batch: int | None,
) -> Any:
    """Guesses in order: the usual image shapes for the one input that all others follow from."""
    leading = batch or DEFAULT_BATCH
    main = next((a for a in open_inputs if resolver.original(a) == "data"), open_inputs[0])
    hint = from_file.get(main)
    for shape in USUAL_SHAPES:
        whole = (leading, *shape)
        if hint and (
            len(hint) != len(whole)
            or any(h not in (0, w) for h, w in zip(hint[1:], whole[1:], strict=True))
        ):
            continue
        yield {main: whole}
        if batch is None and leading != 1 and shape == USUAL_SHAPES[0]:
            # networks with a batch of one built into a reshape
            yield {main: (1, *shape)}


def _finish(
    resolver: Resolver,
    known: dict[str, tuple[int, ...]],
    dtype: str,
    dtypes: dict[str, str],
    assumed: list[str],
) -> ResolvedShapes:
    """Infer everything from ``known``.

    Raises:
        BadInput: MXNet cannot infer shapes or dtypes after all.
    """
    mx, symbol = resolver.mx, resolver.symbol

    try:
        shapes, out_shapes, aux_shapes = symbol.infer_shape(**known)
    except (mx.base.MXNetError, ValueError) as error:
        raise BadInput(f"shape inference failed: {resolver.explain(error)}") from None
    if shapes is None:
        raise BadInput("MXNet cannot infer the shapes of this graph, even with all inputs given")
    by_argument = {a: tuple(s) for a, s in zip(resolver.arguments, shapes, strict=True)}
    inputs = [a for a in resolver.arguments if resolver.role[a] != "parameter"]
    try:
        given = {
            a: np.dtype(dtype).type
            for a in inputs
            if resolver.role[a] == "input" and "__dtype__" not in resolver.attributes.get(a, {})
        }
    except TypeError:
        raise BadInput(f"--dtype {dtype}: no such type") from None
    explicit = _explicit_types(resolver, dtypes)
    given.update(explicit)
    # Where the user names single arguments, the others' types follow from them, as in
    # simple_bind's type_dict; an input left alone is float32 only where nothing else is inferred.
    first = explicit if dtype == "float32" else {}
    types, out_types, aux_types = _infer_types(mx, symbol, resolver, given, explicit, first)
    argument_types = {a: np.dtype(t).name for a, t in zip(resolver.arguments, types, strict=True)}
    internals = symbol.get_internals()
    names = internals.list_outputs()
    _, internal_shapes, _ = internals.infer_shape(**by_argument)
    _, internal_types, _ = internals.infer_type(
        **{a: np.dtype(t).type for a, t in argument_types.items()}
    )
    entry_types: dict[str, str] = {}
    rows: list[tuple[int, int, int]] = []
    seen: dict[str, int] = {}
    variables = set(resolver.arguments) | set(symbol.list_auxiliary_states())
    for name, shape, kind in zip(names, internal_shapes or [], internal_types or [], strict=False):
        node = name if name in variables else name.split("_", 1)[0]
        index = seen.get(node, 0)
        seen[node] = index + 1
        entry_types[f"{node}:{index}"] = np.dtype(kind).name
        position = resolver.position(node)
        if impossible(shape):
            raise BadInput(
                f"'{resolver.original(node)}' would have the shape {tuple(shape)}, and MXNet has "
                "no tensors of more than 2^31 elements",
                "give a smaller --batch or --shape, or see the sizes among its attributes",
            )
        elements = math.prod(shape)
        rows.append((-1 if position is None else position, index, elements))
    aux_names = symbol.list_auxiliary_states()

    def describe(name: str, shape: Any, kind: Any) -> dict[str, Any]:
        return {
            "prepared": name,
            "name": resolver.original(name),
            "shape": [int(d) for d in shape],
            "dtype": np.dtype(kind).name,
            "bytes": int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize,
            "role": resolver.role.get(name, "state"),
        }

    arguments = [
        describe(a, s, t) for a, s, t in zip(resolver.arguments, shapes, types, strict=True)
    ]
    auxiliary = [
        describe(a, s, t) for a, s, t in zip(aux_names, aux_shapes, aux_types, strict=True)
    ]
    fed = [a for a in arguments if a["role"] != "parameter"]
    return ResolvedShapes(
        shapes=by_argument,
        known=known,
        types=argument_types,
        aux={
            n: (tuple(s), np.dtype(t).name)
            for n, s, t in zip(aux_names, aux_shapes, aux_types, strict=True)
        },
        inputs={a["name"]: a["shape"] for a in fed},
        assumed=sorted({resolver.original(a) for a in assumed}),
        arguments=arguments,
        auxiliary=auxiliary,
        outputs=[
            {"name": n, "shape": [int(d) for d in s], "dtype": np.dtype(t).name}
            for n, s, t in zip(symbol.list_outputs(), out_shapes, out_types, strict=True)
        ],
        parameter_bytes=sum(a["bytes"] for a in arguments if a["role"] == "parameter"),
        state_bytes=sum(a["bytes"] for a in auxiliary),
        entry_types=entry_types,
        internals=rows,
        attributes={k: v for k, v in resolver.attributes.items() if "__mirror_stage__" in v},
    )


def _explicit_types(resolver: Resolver, dtypes: dict[str, str]) -> dict[str, Any]:
    """Types that the user gives by name, for the prepared arguments.

    Raises:
        BadInput: no such argument, or no such type.
    """
    explicit: dict[str, Any] = {}
    for name, kind in dtypes.items():
        targets = resolver.prepared(name)
        if not targets:
            raise BadInput(f"dtype of '{name}': the graph has no argument of that name")
        try:
            explicit.update(dict.fromkeys(targets, np.dtype(kind).type))
        except TypeError:
            raise BadInput(f"dtype {kind} of '{name}': no such type") from None
    return explicit


def _infer_types(
    mx: Any,
    symbol: Any,
    resolver: Resolver,
    given: dict[str, Any],
    explicit: dict[str, Any],
    first: dict[str, Any],
) -> Any:
    """Types of arguments, outputs and states: the inputs' first, float32 for what stays open.

    ``given`` are all inputs' types, ``explicit`` those that the user named, which every attempt
    keeps; ``first`` is tried before anything else where it is not empty.
    """
    # Some operators want the type of a label or an index (one_hot) before they infer anything.
    labels = {
        a: np.float32
        for a in resolver.arguments
        if resolver.role[a] == "label" and "__dtype__" not in resolver.attributes.get(a, {})
    }
    starts = [first, given] if first else [given]
    attempts: list[dict[str, Any]] = [t for s in starts for t in (s, {**labels, **s})]
    if all(t is np.float32 for t in given.values()):
        attempts.append(explicit)
        attempts.append(
            {
                a: np.float32
                for a in resolver.arguments
                if "__dtype__" not in resolver.attributes.get(a, {})
            }
            | explicit
        )
    message = "incomplete"
    for attempt in attempts:
        try:
            types, _, _ = symbol.infer_type_partial(**attempt)
            if types is None:
                continue
            full = {
                a: (t if t is not None else np.float32)
                for a, t in zip(resolver.arguments, types, strict=True)
            }
            found = symbol.infer_type(**full)
        except (mx.base.MXNetError, ValueError, TypeError) as error:
            message = resolver.explain(error)
            continue
        if found[0] is not None:
            return found
    raise BadInput(
        f"the dtypes of the graph do not fit together: {message}",
        "give the dtype of its inputs with --dtype",
    )
