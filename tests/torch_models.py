"""Networks of the usual kinds, small, with exports to ONNX and plans for them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcli.formats.onnx.file import read_onnx
from memcli.formats.onnx.plan import write_plan
from memcli.formats.trained_file import new_plan

# What a plan that drops a lot drops.
CHEAP = (
    "BatchNormalization",
    "Relu",
    "Concat",
    "Add",
    "Gelu",
    "LayerNormalization",
    "Dropout",
    "Softmax",
    "MaxPool",
    "Mul",
    "Erf",
    "Tanh",
)


class Residual(nn.Module):
    """Two convolutions with in-place activations, as ResNet's basic block."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        y += shortcut
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, width: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Residual(width, width, 1), Residual(width, width, 1))
        self.layer2 = nn.Sequential(Residual(width, 2 * width, 2))
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.stem(x))), 3, 2, 1)
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class DenseNet(nn.Module):
    def __init__(self, layers: int = 3, growth: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, growth, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(growth * (i + 1)) for i in range(layers))
        self.convs = nn.ModuleList(
            nn.Conv2d(growth * (i + 1), growth, 3, padding=1) for i in range(layers)
        )
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(growth * (layers + 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.first(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(self.drop(conv(F.relu(norm(torch.cat(features, 1))))))
        return self.head(F.avg_pool2d(torch.cat(features, 1), 2).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Tied input and output embeddings, learned positions."""

    def __init__(self, words: int = 13, width: int = 8, length: int = 6) -> None:
        super().__init__()
        self.wte = nn.Embedding(words, width)
        self.wpe = nn.Parameter(torch.randn(length, width) * 0.1)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.wte.weight)


MODELS: dict[str, tuple[type[nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "resnet": (ResNet, lambda n: (torch.randn(n, 3, 16, 16),)),
    "densenet": (DenseNet, lambda n: (torch.randn(n, 3, 8, 8),)),
    "gpt": (GPT, lambda n: (torch.randint(0, 13, (n, 6)),)),
}


def made(name: str, seed: int = 0) -> nn.Module:
    """A network in training with seeded weights."""
    torch.manual_seed(seed)
    return MODELS[name][0]().train()


def batches(name: str, count: int, size: int = 4, seed: int = 1) -> list[tuple[Tensor, ...]]:
    torch.manual_seed(seed)
    return [MODELS[name][1](size) for _ in range(count)]


def export(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    *,
    dynamo: bool = True,
    optimize: bool = False,
    dynamic: bool = False,
) -> Path:
    """A true training export: BatchNormalization and Dropout in their training form."""
    options: dict[str, Any] = {"input_names": ["data"], "dynamo": dynamo}
    if dynamo:
        options |= {"optimize": optimize, "verbose": False}
        options["custom_translation_table"] = _training_forms()
        if dynamic:
            options["dynamic_shapes"] = ({0: "batch"},)
    else:
        options["training"] = (
            torch.onnx.TrainingMode.TRAINING if model.training else torch.onnx.TrainingMode.EVAL
        )
        options["do_constant_folding"] = False
        if dynamic:
            options["dynamic_axes"] = {"data": {0: "batch"}}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(model, inputs, str(path), **options)
    finally:
        logging.disable(level)
    return path


def _training_forms() -> dict[Any, Any]:
    from onnxscript import opset18 as op

    def batch_norm(  # type: ignore[no-untyped-def]
        x, weight, bias, running_mean, running_var, training, momentum, eps
    ):
        y, mean, var = op.BatchNormalization(
            x,
            weight,
            bias,
            running_mean,
            running_var,
            epsilon=eps,
            momentum=1.0 - momentum,
            training_mode=1,
        )
        return y, mean, var, mean, var

    def dropout(x, p, train):  # type: ignore[no-untyped-def]
        y, mask = op.Dropout(x, op.Constant(value_float=p), op.Constant(value_int=1) == 1)
        return y, mask

    aten = torch.ops.aten
    return {aten._native_batch_norm_legit_functional.default: batch_norm}


def plan_of(
    path: Path,
    out: Path,
    shape: tuple[int, ...],
    *,
    drop: Callable[[str], bool] = lambda op: op in CHEAP,
    as_training: list[str] | None = None,
    mark: str = "again",
) -> Path:
    """A planned file in which all nodes of some operators are dropped."""
    file = read_onnx(path)
    marks = {
        name: mark if drop(node.op_type) else "kept"
        for name, node in zip(file.node_names, file.graph.node, strict=True)
    }
    plan = new_plan(
        file,
        marks,
        strategy="by operator",
        shapes={file.inputs[0].name: list(shape)},
        dtype="float32",
        as_training=as_training,
    )
    write_plan(file, plan, out, overwrite=True)
    return out
