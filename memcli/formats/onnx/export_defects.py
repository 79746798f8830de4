"""What an ONNX file has lost of the network that it was exported from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from onnx import NodeProto, TensorProto

from memcli.formats.onnx.check import domain_of
from memcli.formats.onnx.external import is_external, tensor_array
from memcli.formats.onnx.file import OnnxFile
from memcli.formats.onnx.roles import constant_tensor
from memcli.formats.onnx.signature import metadata, module_class, module_of, signature_kinds
from memcli.formats.onnx.tf_layers import is_tf2onnx, tf_layers, took_tf_batchnorm
from memcli.formats.trained_file import Loss
from memcli.quoting import first_of, shown

LossKind = Literal[
    "batchnorm-folded",
    "batchnorm-inference",
    "dropout-inference",
    "parameters-folded",
    "parameters-merged",
    "mxnet",
    "tensorflow-inference",
    "tensorflow-pieces",
    "tensorflow-dropout",
]
RULE_KEY = "pkg.onnxscript.rewriter.rule_name"
FOLDING_RULE = "FuseBatchNormInto"
# Operator sets in which BatchNormalization and Dropout got a training mode as an argument.
BATCHNORM_MODE_SINCE = 14
DROPOUT_MODE_SINCE = 12
# PyTorch's exporter names a tensor after the fx node that makes it. 'getitem' takes one of several
# results, of which a convolution has one: a Conv that makes it stands where a BatchNorm was.
_TUPLE_ITEM = re.compile(r"(?:^|[./])getitem(?:_\d+)?$")


class _InPieces(NamedTuple):
    kinds: tuple[str, ...]  # of TfLayer
    what: str
    text: str


_IN_PIECES: dict[LossKind, _InPieces] = {
    "tensorflow-inference": _InPieces(
        ("scaled",), "BatchNormalization", "of TensorFlow became a product with fixed statistics"
    ),
    "tensorflow-pieces": _InPieces(
        ("spelled out", "computed"),
        "BatchNormalization",
        "of TensorFlow spelled out operator by operator, each of which counts",
    ),
    "tensorflow-dropout": _InPieces(("dropout",), "Dropout", "of TensorFlow in pieces"),
}


def losses(file: OnnxFile) -> list[Loss]:
    """What the file has lost, as far as it can be told; empty for a true training export.

    Nothing is lost where the graph was made from a net that says itself how it is trained.
    """
    if file.format != "onnx":
        return []
    found = []
    named = list(zip(file.graph.node, file.node_names, strict=True))
    folded = [file.node_names[position] for position in folded_batchnorms(file)]
    if folded:
        found.append(
            Loss(
                "batchnorm-folded",
                folded,
                f"BatchNormalization was folded into {_count(folded, 'node')} ({_some(folded)}): "
                "the file trains without it; --as-training puts new ones in",
            )
        )
    frozen = [name for node, name in named if is_inference_batchnorm(node, file.opset)]
    if frozen:
        found.append(
            Loss(
                "batchnorm-inference",
                frozen,
                f"{_count(frozen, 'BatchNormalization')} in inference mode ({_some(frozen)}): "
                "the statistics are fixed; --as-training sets training mode",
            )
        )
    pieces = tf_layers(file.working)
    mend = "--as-training puts the operator back"
    if file.opset < BATCHNORM_MODE_SINCE:
        mend = f"export it in operator set {BATCHNORM_MODE_SINCE} or later to have it put back"
    for kind, words in _IN_PIECES.items():
        scopes = [layer.scope for layer in pieces if layer.kind in words.kinds]
        if scopes:
            found.append(
                Loss(
                    kind,
                    scopes,
                    f"{_count(scopes, words.what)} {words.text} ({_some(scopes)}); {mend}",
                )
            )
    off = [name for node, name in named if is_inference_dropout(node, file)]
    if off:
        mend = (
            "--as-training turns it on"
            if file.opset >= DROPOUT_MODE_SINCE
            else f"operator set {file.opset} has no training mode for it: convert the file to 13"
        )
        found.append(
            Loss(
                "dropout-inference",
                off,
                f"{_count(off, 'Dropout')} in inference mode ({_some(off)}), passing its input "
                f"through; {mend}",
            )
        )
    swallowed = _swallowed(file, bool(folded))
    merged, tied = _read_from_others(file, swallowed)
    swallowed = [name for name in swallowed if name not in merged and name not in tied]
    if merged:
        found.append(
            Loss(
                "parameters-merged",
                [],
                f"{_count(merged, 'parameter')} of the module merged with others of the same "
                f"initial value ({_some(merged)}): the file trains them as one; export with "
                "torch.onnx.export(..., optimize=False) to keep them apart",
            )
        )
    if swallowed:
        found.append(
            Loss(
                "parameters-folded",
                [],
                f"{_count(swallowed, 'parameter')} of the module folded into constants "
                f"({_some(swallowed)}): not told from trained tensors, or gone; export with "
                "torch.onnx.export(..., optimize=False) to keep them",
            )
        )
    if file.graph.name == "mxnet_converted_model":
        gammas = _gammas_of_one(file)
        if gammas:
            found.append(
                Loss(
                    "mxnet",
                    gammas,
                    f"exported from MXNet: {_count(gammas, 'BatchNormalization')} with a scale of "
                    "ones, which MXNet may have held fixed (fix_gamma) and is trained here",
                )
            )
    return found


def folded_batchnorms(file: OnnxFile) -> list[int]:
    """Positions of the nodes that a BatchNormalization was folded into, and that none follows.

    One that does follow was put in anew, or there were two.
    """
    normalized = {
        node.input[0]
        for node in file.graph.node
        if node.op_type == "BatchNormalization" and node.input
    }
    return [
        position
        for position, node in enumerate(file.graph.node)
        if _took_batchnorm(node, file) and not normalized.intersection(node.output)
    ]


def _took_batchnorm(node: NodeProto, file: OnnxFile) -> bool:
    """Whether a convolution (or matrix product) has a BatchNormalization in its weights."""
    if domain_of(node) or node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    if FOLDING_RULE in metadata(node.metadata_props, RULE_KEY):
        return True
    if is_tf2onnx(file.model):
        return took_tf_batchnorm(node)
    if ".batchnorm." in module_class(node):
        return True
    return (
        file.model.producer_name == "pytorch"
        and node.op_type != "Gemm"
        and bool(node.output)
        and _TUPLE_ITEM.search(node.output[0]) is not None
    )


def is_inference_batchnorm(node: NodeProto, opset: int) -> bool:
    """Whether this is a BatchNormalization that uses its running statistics."""
    if domain_of(node) or node.op_type != "BatchNormalization":
        return False
    if opset < BATCHNORM_MODE_SINCE:
        # Before, the number of outputs told it: one in inference, up to five in training.
        return sum(map(bool, node.output)) == 1
    return not any(a.name == "training_mode" and a.i for a in node.attribute)


def is_inference_dropout(node: NodeProto, file: OnnxFile) -> bool:
    """Whether this is a Dropout that drops nothing because of its mode.

    One whose ratio is zero drops nothing in any mode, and is not meant; nor is one whose mode is
    computed or an input.
    """
    if domain_of(node) or node.op_type != "Dropout" or dropout_ratio(node, file) == 0:
        return False
    if file.opset < DROPOUT_MODE_SINCE:
        return True
    if len(node.input) < 3 or not node.input[2]:
        return True
    mode = constant_value(file, node.input[2])
    return mode is not None and not bool(mode.any())


def dropout_ratio(node: NodeProto, file: OnnxFile) -> float | None:
    """What share a Dropout drops; None where it is computed."""
    if file.opset < DROPOUT_MODE_SINCE:
        return next((a.f for a in node.attribute if a.name == "ratio"), 0.5)
    if len(node.input) < 2 or not node.input[1]:
        return 0.5
    ratio = constant_value(file, node.input[1])
    return None if ratio is None or ratio.size != 1 else float(ratio.ravel()[0])


def constant_value(file: OnnxFile, name: str) -> np.ndarray | None:
    """The value of an initializer or Constant node; None for other tensors and external ones."""
    tensor: TensorProto | None = next((t for t in file.graph.initializer if t.name == name), None)
    if tensor is None:
        node = next((n for n in file.graph.node if name in n.output), None)
        tensor = constant_tensor(node) if node is not None and node.op_type == "Constant" else None
    return None if tensor is None or is_external(tensor) else tensor_array(tensor)


def _swallowed(file: OnnxFile, folded: bool) -> list[str]:
    """Parameters that the exporter lists and the graph lacks, those of folded BatchNorms aside."""
    noted = signature_kinds(file.graph)
    held = {tensor.name for tensor in file.graph.initializer}
    missing = [name for name, kind in noted.items() if kind == "parameter" and name not in held]
    if folded:
        # What shares a prefix with running statistics belonged to a BatchNorm.
        modules = {name.rpartition(".")[0] for name in noted if name.endswith(".running_mean")}
        modules |= {module_of(file.graph.node[position]) for position in folded_batchnorms(file)}
        missing = [name for name in missing if name.rpartition(".")[0] not in modules]
    return missing


def _read_from_others(file: OnnxFile, missing: list[str]) -> tuple[list[str], list[str]]:
    """Of parameters that the graph lacks, those whose module reads another module's in their place.

    Returns:
        Those that were merged, since they had one initial value throughout (biases of zeros); and
        those that are tied in the module itself, which are random numbers.
    """
    noted = signature_kinds(file.graph)
    values = {tensor.name: tensor for tensor in file.graph.initializer}
    read: dict[str, set[str]] = {}
    for node in file.graph.node:
        module = module_of(node)
        for name in node.input:
            if noted.get(name) == "parameter" and name.rpartition(".")[0] != module:
                read.setdefault(module, set()).add(name)
    merged, tied = [], []
    for name in missing:
        module, _, last = name.rpartition(".")
        alike = (n for n in read.get(module, ()) if n.rpartition(".")[2] == last)
        others = [values[n] for n in alike if n in values]
        if any(_is_uniform(tensor) for tensor in others):
            merged.append(name)
        elif others:
            tied.append(name)
    return merged, tied


def _is_uniform(tensor: TensorProto) -> bool:
    """Whether all elements are the same number, as far as they are at hand."""
    if is_external(tensor):
        return len(tensor.dims) == 1
    array = np.asarray(tensor_array(tensor))
    return bool(array.size) and bool((array == array.flat[0]).all())


def _gammas_of_one(file: OnnxFile) -> list[str]:
    values = {t.name: t for t in file.graph.initializer if not is_external(t)}
    found = []
    for node, name in zip(file.graph.node, file.node_names, strict=True):
        if node.op_type == "BatchNormalization" and len(node.input) > 1:
            gamma = values.get(node.input[1])
            if gamma is not None and bool((np.asarray(tensor_array(gamma)) == 1).all()):
                found.append(name)
    return found


def _count(items: list[str], what: str) -> str:
    return f"{len(items)} {what}{'' if len(items) == 1 or what == 'Dropout' else 's'}"


def _some(names: Iterable[str]) -> str:
    return first_of(map(shown, names))
