"""Torch7's buffers: by hand on a tiny net, as laws on random ones, and as published."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.frameworks.buffers import GRADIENTS, module_buffers
from memcli.frameworks.models import MODELS, ModelFigure, model_figures
from memcli.frameworks.sharing import by_liveness, by_type
from memcli.graph.dense_blocks import DenseBlocks
from memcli.graph.training import TrainingGraph
from memcli.units import MIB
from tests.unit.module_nets import Net, dense_layer, densenet_bc, passes

# liuzhuang13/DenseNet: models/README.md and README.md. MB on a TITAN X, batch 64, 32 x 32.
PUBLISHED = [5453, 3746, 2969, 2188, 1655]  # -optMemory 0..4, 100 layers, growth 12
WIDE = {36: 4008, 48: 5245, 60: 6508}  # growth: MB of 40 layers, nothing shared
DEEPEST = 8.3  # GB of 190 layers, growth 40, -optMemory 4


def figures(graph: TrainingGraph) -> list[ModelFigure]:
    nothing = np.zeros(graph.n_forward, np.int64)
    return model_figures(graph, list(MODELS), passes(graph), nothing)


@lru_cache(maxsize=8)
def published_net(layers: int, growth: int) -> list[float]:
    """MiB of each model of a published DenseNet-BC, with parameters and their gradients."""
    graph = densenet_bc(layers, growth)
    # BatchNorms' scales and shifts are not among the variables here: 2 numbers a channel
    norms = [v for v in range(graph.n_forward) if graph.op(v) == "BatchNorm"]
    numbers = sum(2 * graph.shape(int(graph.first[v]))[1] for v in norms)
    weights = [v for v in range(1, graph.n_forward) if graph.variable[v]]
    numbers += sum(int(graph.elements[graph.first[v]]) for v in weights)
    return [(f.total + 2 * 4 * numbers) / MIB for f in figures(graph)]


@lru_cache(maxsize=1)
def rest() -> float:
    """MiB that published figures of other networks have over the model: context, work space."""
    return float(np.mean([mb - published_net(6, growth)[0] for growth, mb in WIDE.items()]))


def test_levels_follow_the_published_ratios() -> None:
    """The five levels on the network of the table; what no model knows is taken from other ones."""
    levels = [mib + rest() for mib in published_net(16, 12)]
    for level, published in zip(levels, PUBLISHED, strict=True):
        assert level / levels[0] == pytest.approx(published / PUBLISHED[0], rel=0.10)


def test_other_published_networks() -> None:
    for growth, published in WIDE.items():
        assert published_net(6, growth)[0] + rest() == pytest.approx(published, rel=0.03)
    assert (published_net(31, 40)[4] + rest()) / 1024 == pytest.approx(DEEPEST, rel=0.10)


A, K, B, P = 10, 2, 3, 1  # channels: of the first piece, growth, bottleneck; side of the pool


def tiny() -> TrainingGraph:
    """A convolution, two dense layers, BatchNorm, ReLU and a pooling to one pixel."""
    net = Net(batch=2, side=3)
    first = net("conv", 0, channels=A)
    one = dense_layer(net, first, K, B)
    two = dense_layer(net, net("cat", first, one), K, B)
    net("AveragePool", net.normalised(net("cat", first, one, two)), side=P)
    return net.graph()


def test_buffers_of_a_tiny_net_by_hand() -> None:
    """Each sum is read off the modules; in channels, ``pooled`` by its part of a channel."""
    channel = 2 * 3 * 3 * 4  # bytes of one: batch, side, side, float32
    s0, s1, s2 = A, A + K, A + 2 * K  # what the layers and the last BatchNorm read
    pooled = s2 * P * P / 9
    shared = max(B, s2), max(s1, B), s2  # gradients: of BatchNorms, convolutions, the pooling
    layers = 2 * (B + B + K)  # of both: first convolution, BatchNorm and ReLU, last convolution
    plain = A + s0 + s1 + layers + s1 + s2 + s2 + pooled
    own = 3 * (s0 + s1) + 4 * B + s2 + s2
    expected = {
        "torch7-0": (plain, own, 2 * K),
        # By use: the pooling's gradient and the last BatchNorm's take turns with those inside
        # the layers; of what Concats add up in, the second layer's has a storage of its own, the
        # first layer's goes where the last BatchNorm's was. First BatchNorms' gradients, which
        # are only added up, share nothing.
        "torch7-1": (plain, s2 + s2 + s1 + s0 + s1, 2 * K),
        "torch7-2": (plain, sum(shared) + s1 + s0 + s1, 2 * K),
        # the middle Concat built anew, the last one joined, with gradients of all pieces
        "torch7-3": (plain, sum(shared) + s1 + s2, 0),
        "torch7-4": (plain - s0, sum(shared) + s1 + s2, 0),
    }
    for found in figures(tiny()):
        assert (found.outputs, found.gradients, found.copies) == tuple(
            round(part * channel) for part in expected[found.name]
        ), found.name
        assert found.moved == 0


def test_residual_sums_and_relus_work_in_place() -> None:
    net = Net()
    x = net("conv", 0, channels=8)
    y = net("bn", net("conv", net.normalised(x), channels=8))
    net("conv", net("Relu", net("add", x, y)), channels=4)
    found = figures(net.graph())[0]
    # three convolutions and two BatchNorms make something, the sum and the ReLUs nothing
    assert found.outputs == 4 * (8 + 8 + 8 + 8 + 4)
    # of the last convolution, both BatchNorms, the middle convolution, and added up for x
    assert found.gradients == 4 * (8 + 8 + 8 + 8 + 8)


def test_maximum_pooling_needs_what_it_made() -> None:
    net = Net()
    x = net("MaxPool", net("conv", 0, channels=8))
    net("conv", net("Relu", x), channels=1)
    assert figures(net.graph())[0].outputs == 4 * (8 + 8 + 8 + 1)


def test_recursive_concatenation_is_the_same_network() -> None:
    for layers in (1, 2, 5):
        flat, nested = (
            densenet_bc(layers, 4, batch=2, side=8, recursive=way) for way in (False, True)
        )
        assert [vars(f) for f in figures(flat)] == [vars(f) for f in figures(nested)]
        assert len(DenseBlocks(flat).layers) == len(DenseBlocks(nested).layers) == 3 * layers
        assert len(DenseBlocks(nested).rebuilt) == 3 * (layers - 1)


def test_memory_grows_linearly_with_all_shared_and_quadratically_without() -> None:
    few, many = (figures(densenet_bc(n, 12, batch=1)) for n in (20, 40))
    assert many[0].total > 3.2 * few[0].total
    assert many[4].total < 2.2 * few[4].total


@st.composite
def dense_nets(draw: st.DrawFn) -> TrainingGraph:
    """Dense blocks of several layers, of any sizes."""
    net = Net(batch=2, side=8)
    x = net("conv", 0, channels=draw(st.integers(1, 8)))
    for block in range(draw(st.integers(1, 2))):
        parts = [x]
        growth = draw(st.integers(1, 4))
        width = draw(st.one_of(st.none(), st.integers(1, 8)))
        for _ in range(draw(st.integers(3, 6))):
            parts.append(dense_layer(net, x, growth, width))
            x = net("cat", *parts)
        x = net("conv", net.normalised(x), channels=draw(st.integers(1, 8)))
        x = net("AveragePool", x, side=8 >> block + 1)
    return net.graph()


@st.composite
def any_nets(draw: st.DrawFn) -> TrainingGraph:
    """Operators that read whatever of one size there is."""
    net = Net(batch=1, side=2)
    made = [net("conv", 0, channels=4)]
    for _ in range(draw(st.integers(1, 14))):
        op = draw(
            st.sampled_from(
                ["conv", "bn", "Relu", "Relu", "cat", "cat", "add", "MaxPool", "Mul", "Flatten"]
            )
        )
        x = draw(st.sampled_from(made[-4:]))
        alike = [v for v in made if net.channels[v] == net.channels[x]]
        if op == "cat":
            made.append(net(op, *draw(st.lists(st.sampled_from(made), min_size=2, max_size=4))))
        elif op in ("add", "Mul"):
            made.append(net(op, x, draw(st.sampled_from(alike))))
        elif op == "conv":
            made.append(net(op, x, channels=draw(st.integers(1, 4))))
        else:
            made.append(net(op, x))
    return net.graph()


@settings(max_examples=40, deadline=None)
@given(dense_nets())
def test_every_level_is_less_on_dense_nets(graph: TrainingGraph) -> None:
    none, liveness, kinds, concats, norms = figures(graph)
    assert none.total > liveness.total and none.total > kinds.total
    assert kinds.outputs == none.outputs > concats.outputs > norms.outputs
    assert none.total > concats.total > norms.total
    assert concats.gradients == norms.gradients
    assert not any(f.moved for f in (none, liveness, kinds, concats, norms))


@settings(max_examples=150, deadline=None)
@given(any_nets(), st.booleans())
def test_what_shares_memory_is_never_in_use_at_once(graph: TrainingGraph, joined: bool) -> None:
    nothing = np.zeros(graph.n_forward, np.int64)
    buffers = module_buffers(graph, passes(graph), nothing, joined=joined, rerun=joined)
    for storages in (by_liveness(buffers), by_type(buffers)[0]):
        tenants = [b for storage in storages for b in storage.tenants]
        assert sorted(map(id, tenants)) == sorted(map(id, buffers))
        for storage in storages:
            lives = sorted(life for b in storage.tenants for life in b.lives)
            assert all(a[1] < b[0] for a, b in pairwise(lives))
            assert storage.size == max(b.size for b in storage.tenants)
        gradients = sum(s.size for s in storages if s.part == GRADIENTS)
        assert gradients >= most_alive([b for b in buffers if b.part == GRADIENTS])


def most_alive(buffers: list) -> int:  # type: ignore[type-arg]
    """The most bytes in use at one time: no sharing gets under it."""
    times = {start for b in buffers for start, _ in b.lives}
    return max(
        (sum(b.size for b in buffers for s, e in b.lives if s <= t <= e) for t in times), default=0
    )


@settings(max_examples=100, deadline=None)
@given(any_nets())
def test_sharing_never_takes_more_on_any_net(graph: TrainingGraph) -> None:
    none, liveness, kinds, concats, norms = figures(graph)
    assert liveness.total <= none.total and kinds.total <= none.total
    assert none.outputs == liveness.outputs == kinds.outputs >= concats.outputs >= norms.outputs
    if not DenseBlocks(graph).layers:
        assert (concats.total, norms.total) == (kinds.total, kinds.total)
