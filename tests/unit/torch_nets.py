"""Small nets as fx graphs of plain functions, for tests of the PyTorch engine."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from memcli.engines.torch.rules import draws_random, recomputed_by, recomputed_with_gradients


def _batch_norm_again(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5)


@recomputed_by(_batch_norm_again)
def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Trains, and updates its running statistics."""
    return F.batch_norm(x, mean, var, weight, bias, True, 0.1, 1e-5)


@draws_random
def dropout(x: Tensor, p: float) -> Tensor:
    return F.dropout(x, p, True)


@draws_random
def dropout_with_mask(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Two outputs, as ONNX's Dropout has them."""
    mask = torch.rand_like(x) > p
    return x * mask / (1 - p), mask


def gated(x: Tensor) -> Tensor:
    """Saves two tensors inside itself."""
    return torch.sigmoid(x) * torch.tanh(x)


@recomputed_with_gradients
def gated_with_gradients(x: Tensor) -> Tensor:
    """The same, run again as it ran first."""
    return torch.sigmoid(x) * torch.tanh(x)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two outputs, each in its own storage."""
    return x.sin(), x.exp()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A composite: what it makes and saves inside is no output of it."""
    return torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1) @ v


def lstm_cell(x: Tensor, h: Tensor, c: Tensor, w: Tensor, r: Tensor, b: Tensor) -> Any:
    i, f, g, o = torch.chunk(x @ w + h @ r + b, 4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


class Builder:
    """Puts a graph together; parameters have seeded values."""

    def __init__(self, seed: int = 0) -> None:
        self.root = nn.Module()
        self.graph = Graph()
        self.generator = torch.Generator().manual_seed(seed)
        self.count = 0

    def input(self, name: str) -> Node:
        return self.graph.placeholder(name)

    def parameter(self, *shape: int, scale: float = 0.3) -> Node:
        value = torch.randn(*shape, generator=self.generator) * scale
        return self._tensor(nn.Parameter(value))

    def ones(self, n: int) -> Node:
        return self._tensor(nn.Parameter(torch.ones(n)))

    def buffer(self, value: Tensor) -> Node:
        return self._tensor(value)

    def _tensor(self, value: Tensor) -> Node:
        name = f"t{self.count}"
        self.count += 1
        if isinstance(value, nn.Parameter):
            self.root.register_parameter(name, value)
        else:
            self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        return self.graph.call_function(function, args, kwargs)

    def conv(self, x: Node, cin: int, cout: int, k: int, stride: int = 1) -> Node:
        w = self.parameter(cout, cin, k, k, scale=(cin * k * k) ** -0.5)
        return self(torch.conv2d, x, w, None, (stride, stride), (k // 2, k // 2))

    def bn(self, x: Node, n: int) -> Node:
        stats = self.buffer(torch.zeros(n)), self.buffer(torch.ones(n))
        return self(batch_norm, x, self.ones(n), self.parameter(n), *stats)

    def done(self, *outputs: Node) -> GraphModule:
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        return GraphModule(self.root, self.graph)


def bottleneck(b: Builder, x: Node, cin: int, width: int, stride: int, expand: int = 4) -> Node:
    y = b(torch.relu, b.bn(b.conv(x, cin, width, 1), width))
    y = b(torch.relu, b.bn(b.conv(y, width, width, 3, stride), width))
    y = b.bn(b.conv(y, width, width * expand, 1), width * expand)
    if cin != width * expand or stride != 1:
        x = b.bn(b.conv(x, cin, width * expand, 1, stride), width * expand)
    return b(torch.relu, b(operator.add, y, x))


def resnet(
    blocks: tuple[int, ...] = (2, 2), width: int = 4, classes: int = 5, stem: int = 3
) -> GraphModule:
    """With (3, 4, 6, 3), 64, 1000 and 7: ResNet-50."""
    b = Builder()
    x = b.input("x")
    x = b(torch.relu, b.bn(b.conv(x, 3, width, stem, 2), width))
    x = b(F.max_pool2d, x, 3, 2, 1)
    cin = width
    for stage, n in enumerate(blocks):
        for block in range(n):
            stride = 2 if stage and not block else 1
            x = bottleneck(b, x, cin, width << stage, stride)
            cin = (width << stage) * 4
    x = b(torch.flatten, b(F.adaptive_avg_pool2d, x, (1, 1)), 1)
    return b.done(b(torch.addmm, b.parameter(classes), x, b.parameter(cin, classes)))


def densenet() -> GraphModule:
    b = Builder()
    x = b.conv(b.input("x"), 3, 4, 3)
    features = [x]
    for i in range(3):
        n = 4 + 4 * i
        y = b(torch.cat, list(features), 1)
        y = b.conv(b(torch.relu, b.bn(y, n)), n, 4, 3)
        features.append(y)
    y = b(F.avg_pool2d, b(torch.cat, list(features), 1), 2)
    return b.done(b(torch.mean, y, (2, 3)))


def mlp() -> GraphModule:
    """Dropout of two kinds, a parameter used twice, a value used twice by one function."""
    b = Builder()
    x = b.input("x")
    w = b.parameter(8, 8)
    y = b(torch.relu, b(torch.matmul, x, w))
    y = b(dropout, y, 0.3)
    y = b(torch.tanh, b(torch.matmul, y, w))
    pair = b(dropout_with_mask, y, 0.5)
    y = b(operator.getitem, pair, 0)
    y = b(operator.mul, y, y)
    z = b(torch.exp, b(operator.neg, y))
    return b.done(b(operator.add, y, z), z)


def transformer(blocks: int = 2, width: int = 8, heads: int = 2, words: int = 11) -> GraphModule:
    b = Builder()
    ids = b.input("ids")
    table = b.parameter(words, width)
    x = b(operator.add, b(F.embedding, ids, table), b.parameter(6, width))
    for block in range(blocks):
        y = b(F.layer_norm, x, (width,), b.ones(width), b.parameter(width))
        qkv = b(torch.matmul, y, b.parameter(width, 3 * width))
        parts = b(torch.chunk, qkv, 3, -1)
        q, k, v = (
            b(
                torch.permute,
                b(torch.reshape, b(operator.getitem, parts, i), (-1, 6, heads, width // heads)),
                (0, 2, 1, 3),
            )
            for i in range(3)
        )
        if block:
            a = b(attention, q, k, v)
        else:
            s = b(torch.matmul, q, b(torch.transpose, k, -2, -1))
            s = b(operator.mul, s, 0.5)
            a = b(torch.matmul, b(dropout, b(torch.softmax, s, -1), 0.2), v)
        a = b(torch.reshape, b(torch.permute, a, (0, 2, 1, 3)), (-1, 6, width))
        x = b(operator.add, x, b(torch.matmul, a, b.parameter(width, width)))
        y = b(F.layer_norm, x, (width,), b.ones(width), b.parameter(width))
        y = b(F.gelu, b(torch.matmul, y, b.parameter(width, 4 * width)))
        x = b(operator.add, x, b(torch.matmul, y, b.parameter(4 * width, width)))
    # the table once more: tied weights
    return b.done(b(torch.log_softmax, b(torch.matmul, x, b(torch.t, table)), -1))


def lstm(steps: int = 4, width: int = 5) -> GraphModule:
    b = Builder()
    x = b.input("x")
    w, r, bias = b.parameter(3, 4 * width), b.parameter(width, 4 * width), b.parameter(4 * width)
    h = b(torch.expand_copy, b.parameter(1, width), (2, width))
    c = b(torch.tanh, h)
    parts = b(torch.unbind, x, 0)
    for t in range(steps):
        pair = b(lstm_cell, b(operator.getitem, parts, t), h, c, w, r, bias)
        h, c = b(operator.getitem, pair, 0), b(operator.getitem, pair, 1)
    return b.done(h, c)


def views() -> GraphModule:
    """Slices, expands, transposes and splits of one storage, read by what saves them."""
    b = Builder()
    x = b(torch.sin, b.input("x"))
    a, c = (b(operator.getitem, b(torch.split, x, 2, 1), i) for i in range(2))
    y = b(operator.mul, a, b(torch.tanh, c))
    z = b(operator.mul, b(torch.transpose, x, 0, 1), b(torch.cos, b(torch.t, x)))
    e = b(torch.Tensor.expand, b(operator.getitem, x, (slice(None), slice(0, 1))), (6, 4))
    u = b(operator.mul, e, x)
    k = b(torch.exp, b(torch.Tensor.contiguous, b(torch.reshape, u, (-1,))))
    top = b(torch.topk, k, 3)
    unused = b(torch.sigmoid, k)
    b(torch.tanh, unused)
    w = b(torch.complex, z, b(torch.neg, z))
    w = b(operator.mul, b(torch.conj, w), b(torch.sin, w))
    return b.done(
        y, b(torch.view_as_real, w), b(operator.getitem, top, 0), b(operator.getitem, top, 1), u
    )


def random_net(seed: int, size: int) -> GraphModule:
    """Operators of all kinds in any order on matrices of 6 rows: chains, branches, several ends."""
    pick = random.Random(seed)
    b = Builder(seed)
    width = pick.choice((4, 8, 16))
    x = b(torch.matmul, b.input("x"), b.parameter(4, width))
    values = [(x, width)]
    unread = {0}
    for _ in range(size - 1):
        recent = len(values) - 1 - min(int(pick.expovariate(0.8)), len(values) - 1)
        (a, wide), other = values[recent], pick.randrange(len(values))
        kind = pick.choice(
            ("unary", "unary", "linear", "linear", "binary", "binary", "inside", "pair", "view")
        )
        read = {recent}
        if kind == "unary":
            function = pick.choice((torch.relu, torch.tanh, torch.sin, torch.exp, torch.neg))
            made = b(function, a), wide
        elif kind == "linear":
            to = pick.choice((2, 8, 24))
            made = b(torch.matmul, a, b.parameter(wide, to)), to
        elif kind == "inside":
            function = pick.choice((gated, gated_with_gradients))
            made = (b(dropout, a, 0.5) if pick.random() < 0.4 else b(function, a)), wide
        elif kind == "pair":
            pair = b(halves, a)
            second = b(operator.getitem, pair, 1)
            made = b(operator.getitem, pair, 0), wide
            if pick.random() < 0.5:
                unread.add(len(values))
                values.append((second, wide))
        elif kind == "view":
            made = b(operator.getitem, a, (slice(None), slice(0, wide // 2))), wide // 2
        else:
            c, other_wide = values[other]
            read.add(other)
            if other_wide == wide and pick.random() < 0.6:
                made = b(pick.choice((operator.add, operator.mul)), a, c), wide
            else:
                made = b(torch.cat, [a, c], 1), wide + other_wide
        unread = (unread - read) | {len(values)}
        values.append(made)
    ends = [values[k][0] for k in sorted(unread)]
    return b.done(*ends)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c2, self.b2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop, self.out = nn.Dropout(0.4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.b1(self.c1(x))), 2)
        y = F.hardtanh(self.b2(self.c2(y))) + y
        return self.out(self.drop(y.mean((2, 3))))


def exported(decompose: bool = True) -> GraphModule:
    """What torch.export makes of a convolutional net in training, states updated by copies."""
    torch.manual_seed(0)
    program = torch.export.export(_Block().train(), (torch.randn(2, 3, 8, 8),))
    if decompose:
        program = program.run_decompositions({})
    return program.module(check_guards=False) if _GUARDS else program.module()


_GUARDS = "check_guards" in torch.export.ExportedProgram.module.__code__.co_varnames

NETS: dict[str, tuple[Callable[[], GraphModule], Callable[[], tuple[Tensor, ...]]]] = {
    "resnet": (resnet, lambda: (torch.randn(2, 3, 16, 16),)),
    "densenet": (densenet, lambda: (torch.randn(2, 3, 8, 8),)),
    "mlp": (mlp, lambda: (torch.randn(4, 8, requires_grad=True),)),
    "transformer": (transformer, lambda: (torch.randint(0, 11, (3, 6)),)),
    "lstm": (lstm, lambda: (torch.randn(4, 2, 3),)),
    "views": (views, lambda: (torch.randn(6, 4, requires_grad=True),)),
    "exported": (exported, lambda: (torch.randn(2, 3, 8, 8),)),
    "exported_training": (lambda: exported(False), lambda: (torch.randn(2, 3, 8, 8),)),
}


def nodes_of(module: GraphModule) -> list[str]:
    """Names of the function nodes."""
    return [n.name for n in module.graph.nodes if n.op == "call_function"]
