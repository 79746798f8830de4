"""PyTorch modules as ONNX training graphs, by PyTorch's own exporter.

The exporter takes BatchNorm for inference whatever the module's mode; here it is told otherwise.
Needs onnxscript beside torch: pip install 'memcli[torch]' onnxscript.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx_ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import opset18
from torch._subclasses.fake_tensor import FakeTensorMode

from memcli.formats.atomic import write_atomically
from networks import sizes
from networks.modules import inputs, module

# Where each node stands in the code that exported it: paths of this machine.
_TRACES = ("pkg.torch.onnx.stack_trace", "pkg.onnxscript.optimizer.folded_from")
_LARGEST_FILE = 2**31 - 1  # what protobuf writes
_BATCH = 2  # of the call that is followed; the exporter takes 1 for a fixed size


def write_onnx(size: sizes.Size, path: Path, *, weights: bool = False, seed: int = 0) -> None:
    """Exports the network of ``size`` with its loss and an open batch.

    Without ``weights`` none are ever made: each is described as a part of a file beside ``path``,
    which planning does not need and ``memcli verify`` makes up. With them, the file holds what the
    module starts from.

    Raises:
        ValueError: the weights do not fit into a file.
        BadInput: ``path`` cannot be written.
    """
    with contextlib.nullcontext() if weights else FakeTensorMode():
        torch.manual_seed(seed)
        network, given = module(size), inputs(size, _BATCH)
    total = sum(p.numel() * p.element_size() for p in network.state_dict().values())
    if weights and total > _LARGEST_FILE:
        raise ValueError(f"the weights take {total:,} bytes, too many for an ONNX file")
    model = _exported(network, given)
    _tidy(model)
    if not weights:
        _describe_weights(model, f"{path.stem}.weights", path.parent)
    proto = onnx_ir.to_proto(model)
    write_atomically(path, proto.SerializeToString(), overwrite=True)


def _exported(network: torch.nn.Module, given: dict[str, torch.Tensor]) -> onnx_ir.Model:
    """What the exporter makes of a call, and none of what it says."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                tuple(given.values()),
                dynamo=True,
                optimize=False,  # which would fold BatchNorm into the convolutions
                verbose=False,
                input_names=list(given),
                output_names=["loss"],
                dynamic_shapes=tuple({0: "batch"} for _ in given),
                custom_translation_table={
                    torch.ops.aten._native_batch_norm_legit_functional.default: _batch_norm
                },
            )
    finally:
        logging.disable(level)
    assert program is not None
    return program.model


def _batch_norm(  # type: ignore[no-untyped-def]  # onnxscript reads the signature
    x, weight, bias, running_mean, running_var, training, momentum, eps
) -> Any:
    """BatchNorm in training: its result, what it saves, and the new statistics."""
    y, mean, variance = opset18.BatchNormalization(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        epsilon=eps,
        momentum=1.0 - momentum,
        training_mode=1,
    )
    return y, mean, variance, mean, variance


def _tidy(model: onnx_ir.Model) -> None:
    """Works out what depends on nothing but numbers, parameters excepted: they are to train."""
    parameters = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            parameters[name], value.const_value = value.const_value, None
    onnxscript.optimizer.fold_constants(model)
    for node in model.graph:
        for key in _TRACES:
            node.metadata_props.pop(key, None)
        # The exporter gives a convolution without bias one of zeros, which is no parameter.
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) == 3 else None
        if bias is not None and bias.const_value is not None:
            assert not bias.const_value.numpy().any()
            node.resize_inputs(2)
    for name, tensor in parameters.items():
        model.graph.initializers[name].const_value = tensor
    RemoveUnusedNodesPass()(model)


def _describe_weights(model: onnx_ir.Model, name: str, folder: Path) -> None:
    """Puts a place in the file ``name`` in place of each value that was never made."""
    offset = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not _is_fake(tensor):
            continue
        value.const_value = onnx_ir.ExternalTensor(
            name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=tensor.shape,
            name=value.name or "",
            base_dir=folder,
        )
        offset += tensor.nbytes


def _is_fake(tensor: Any) -> bool:
    return isinstance(getattr(tensor, "raw", None), torch._subclasses.FakeTensor)
