"""Roofline times and FLOPs against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memcli.engines.mxnet.memory import operators as table
from memcli.graph.flops import forward_flops
from memcli.graph.roofline import (
    DEFAULT_MACHINE,
    MACHINES,
    Machine,
    machine_named,
    moved_bytes,
    only_names_data,
    roofline_seconds,
)
from memcli.graph.training import Kind, TrainingGraph

# 1 TFLOP/s, 100 GB/s, no cost of launching: figures can be read off.
PLAIN = Machine("plain", 1e12, 100e9, 0.0)


def forward_graph(nodes: list[dict[str, Any]], itemsize: int = 4) -> TrainingGraph:
    """A graph of a forward pass alone.

    A node: ``shape`` of a variable; or ``op``, ``attrs``, ``inputs`` (node numbers, or pairs of
    node and output) and ``shapes`` of its outputs. ``itemsize`` is that of all.
    """
    kinds, kind, first, shapes, in_ptr, in_entry = [], [], [0], [], [0], []
    pair_ptr, pairs = [0], []
    ignored, flops, sizes = [], [], []
    for node in nodes:
        made = node["shapes"] if "op" in node else [node["shape"]]
        if "op" in node:
            reads = [i if isinstance(i, tuple) else (i, 0) for i in node["inputs"]]
            entries = [first[u] + o for u, o in reads]
            attrs = node.get("attrs", {})
            kind.append(len(kinds))
            kinds.append(Kind(node["op"], attrs, len(entries), len(made)))
            in_entry += entries
            skip = table.ignored_inputs(node["op"], attrs, len(entries))
            ignored += [int(i in skip) for i in range(len(entries))]
            pairs += table.inplace_pairs(node["op"], attrs, len(entries), len(made))
            inputs = [shapes[e] for e in entries]
            flops.append(forward_flops(node["op"], attrs, inputs, made))
        else:
            kind.append(-1)
            flops.append(0.0)
        sizes += [node.get("itemsize", itemsize)] * len(made)
        shapes += made
        first.append(len(shapes))
        in_ptr.append(len(in_entry))
        pair_ptr.append(len(pairs))
    n = len(nodes)
    ints, flags = np.int64, np.uint8
    entry_node = np.repeat(np.arange(n), np.diff(first))
    return TrainingGraph(
        n_forward=n,
        kind=np.array(kind, ints),
        kinds=kinds,
        first=np.array(first, ints),
        elements=np.array([int(np.prod(s)) for s in shapes], ints),
        itemsize=np.array(sizes, ints),
        in_ptr=np.array(in_ptr, ints),
        in_entry=np.array(in_entry, ints),
        in_node=entry_node[np.array(in_entry, ints)],
        in_ignored=np.array(ignored, flags),
        dep_ptr=np.zeros(n + 1, ints),
        dep_node=np.zeros(0, ints),
        owner=np.full(n, -1, ints),
        position=np.arange(n),
        outputs=np.array([len(shapes) - 1], ints),
        n_forward_outputs=1,
        external=np.zeros(len(shapes), ints),
        pair_ptr=np.array(pair_ptr, ints),
        pair_in=np.array([p[0] for p in pairs], ints),
        pair_out=np.array([p[1] for p in pairs], ints),
        pair_identity=np.array([p[2] for p in pairs], flags),
        ignores_all=np.zeros(n, flags),
        is_grad_add=np.zeros(n, flags),
        can_recompute=np.ones(n, flags),
        can_barrier=np.zeros(n, flags),
        fails_unread=np.zeros(n, flags),
        flops=np.array(flops, np.float64),
        shape_ptr=np.cumsum([0, *(len(s) for s in shapes)]),
        shape_dim=np.array([d for s in shapes for d in s], ints),
        visible=np.ones(len(shapes), flags),
        names=[f"n{v}" for v in range(n)],
        file_names=[f"n{v}" for v in range(n)],
        file_variable=["op" not in node for node in nodes],
    )


def conv_and_norm(itemsize: int = 4) -> TrainingGraph:
    """A 3x3 convolution of 64 to 64 channels on 8 x 56 x 56, then BatchNorm."""
    wide = (8, 64, 56, 56)
    vector = {"shape": (64,)}
    return forward_graph(
        [
            {"shape": wide},
            {"shape": (64, 64, 3, 3)},
            {"op": "Convolution", "inputs": [0, 1], "shapes": [wide]},
            vector,
            vector,
            vector,
            vector,
            {
                "op": "BatchNorm",
                "inputs": [2, 3, 4, 5, 6],
                "shapes": [wide, (64,), (64,)],
            },
        ],
        itemsize,
    )


MAP = 8 * 64 * 56 * 56  # elements: 1,605,632


def test_convolution_is_bound_by_arithmetic() -> None:
    graph = conv_and_norm()
    seconds = roofline_seconds(graph, PLAIN)
    # 2 x 64 x 9 FLOPs for each of 1,605,632 elements: 1.850 GFLOP, 1.850 ms at 1 TFLOP/s;
    # its 13.0 MB would take 0.13 ms
    assert seconds[2] == pytest.approx(2 * 64 * 9 * MAP / 1e12)
    assert seconds[2] == pytest.approx(1.8497e-3, rel=1e-4)
    assert moved_bytes(graph)[2] == (2 * MAP + 64 * 64 * 9) * 4


def test_batchnorm_is_bound_by_memory() -> None:
    graph = conv_and_norm()
    # data read twice and written once, four vectors read and two written
    moved = (3 * MAP + 6 * 64) * 4
    assert moved_bytes(graph)[7] == moved == 19_269_120
    # 0.193 ms at 100 GB/s; its 12.8 MFLOP would take 0.013 ms
    assert roofline_seconds(graph, PLAIN)[7] == pytest.approx(1.926912e-4)
    assert graph.flops[7] / 1e12 < 1.3e-5


def test_a_convolution_is_bound_by_arithmetic_and_variables_cost_nothing() -> None:
    graph = conv_and_norm()
    seconds = roofline_seconds(graph, PLAIN)
    assert seconds[2] * PLAIN.flops_per_second == pytest.approx(graph.flops[2])
    assert seconds[[0, 1, 3, 4, 5, 6]].tolist() == [0] * 6


def test_half_precision_moves_half() -> None:
    assert moved_bytes(conv_and_norm(2)).tolist() == (moved_bytes(conv_and_norm()) / 2).tolist()


def test_launch_is_paid_by_every_operator_and_no_variable() -> None:
    graph = conv_and_norm()
    slow = Machine("slow", 1e12, 100e9, 1e-3)
    more = roofline_seconds(graph, slow) - roofline_seconds(graph, PLAIN)
    assert more == pytest.approx([0, 0, 1e-3, 0, 0, 0, 0, 1e-3])


def test_naming_data_costs_no_bytes_unless_it_is_the_callers() -> None:
    flat = (8, 64 * 56 * 56)
    graph = forward_graph(
        [
            {"shape": (8, 64, 56, 56)},
            {"op": "Reshape", "inputs": [0], "shapes": [flat]},  # of a variable: a copy
            {"op": "Activation", "inputs": [1], "shapes": [flat]},
            {"op": "Flatten", "inputs": [2], "shapes": [flat]},
            {"op": "_copy", "inputs": [3], "shapes": [flat]},
            {"op": "BlockGrad", "inputs": [4], "shapes": [flat]},
            {
                "op": "amp_multicast",
                "attrs": {"num_outputs": "2"},
                "inputs": [5, 2],
                "shapes": [flat, flat],
            },
            {"op": "transpose", "inputs": [(6, 0)], "shapes": [flat[::-1]]},
        ]
    )
    both = MAP * 4 * 2
    assert moved_bytes(graph).tolist() == [0, both, both, 0, 0, 0, 0, both]
    assert only_names_data(graph).tolist() == [False, False, False, True, True, True, True, False]
    assert roofline_seconds(graph, PLAIN)[3:7].tolist() == [0, 0, 0, 0]


def test_a_cast_is_no_name() -> None:
    graph = forward_graph(
        [
            {"shape": (4,)},
            {"op": "Activation", "inputs": [0], "shapes": [(4,)], "itemsize": 2},
            {"op": "amp_multicast", "attrs": {"num_outputs": "1"}, "inputs": [1], "shapes": [(4,)]},
        ]
    )
    assert moved_bytes(graph)[2] == 4 * 2 + 4 * 4


def test_tables_are_read_where_they_are_looked_up() -> None:
    graph = forward_graph(
        [
            {"shape": (32, 20)},
            {"shape": (50_000, 512)},
            {"op": "Embedding", "inputs": [0, 1], "shapes": [(32, 20, 512)]},
            {"op": "slice_axis", "inputs": [2], "shapes": [(32, 1, 512)]},
            {"op": "zeros_like", "inputs": [2], "shapes": [(32, 20, 512)]},
            {"op": "elemwise_mul", "inputs": [2, 2], "shapes": [(32, 20, 512)]},
        ]
    )
    looked_up = 32 * 20 * 512 * 4
    assert moved_bytes(graph).tolist()[2:] == [
        32 * 20 * 4 + 2 * looked_up,  # not the 102 MB of the table
        2 * 32 * 512 * 4,
        looked_up,  # only the shape of its input is read
        2 * looked_up,  # one tensor, though it comes in twice
    ]


@pytest.mark.parametrize(
    ("shown", "preset"),
    [
        ("v100", "v100"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA A10", "a10"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx-2080-ti"),
        ("cpu", "cpu"),
    ],
)
def test_cards_by_name(shown: str, preset: str) -> None:
    assert machine_named(shown) is MACHINES[preset]


def test_unknown_cards_get_the_default() -> None:
    assert machine_named("NVIDIA GeForce MX150") is DEFAULT_MACHINE
    assert 12 < DEFAULT_MACHINE.flops_per_second / DEFAULT_MACHINE.bytes_per_second < 25


@pytest.mark.parametrize(
    ("op", "attrs", "inputs", "outputs", "flops"),
    [
        # sub-pixel: each element is moved once, and reshaping is for nothing
        ("Reshape", {}, [(1, 64, 8, 8)], [(1, 4, 4, 4, 8, 8)], 0),
        ("transpose", {}, [(1, 4, 4, 4, 8, 8)], [(1, 4, 8, 4, 8, 4)], 4096),
        ("Embedding", {"input_dim": "50000"}, [(32, 20), (50_000, 512)], [(32, 20, 512)], 327_680),
        # each of 4 x 7 x 9 sums has 5 products
        ("batch_dot", {}, [(4, 7, 5), (4, 5, 9)], [(4, 7, 9)], 2 * 4 * 7 * 9 * 5),
        ("batch_dot", {"transpose_a": "True"}, [(4, 5, 7), (4, 5, 9)], [(4, 7, 9)], 2520),
        ("dot", {"transpose_a": "True"}, [(5, 7), (5, 9)], [(7, 9)], 630),
        # 3 sequences, 11 steps, one LSTM layer of 8 to 16: 4 x 16 x (8 + 16 + 2) parameters
        ("RNN", {}, [(11, 3, 8), (1664,), (1, 3, 16)], [(11, 3, 16)], 2 * 1664 * 33),
        ("LRN", {"nsize": "5"}, [(1, 8, 4, 4)], [(1, 8, 4, 4)], 16 * 128),
        ("L2Normalization", {}, [(2, 100)], [(2, 100), (2,)], 800),
        ("SliceChannel", {}, [(2, 12)], [(2, 3)] * 4, 24),
        ("add_n", {}, [(10,)] * 5, [(10,)], 40),
        ("mean", {}, [(10, 10)], [(10,)], 100),
        ("_contrib_AdaptiveAvgPooling2D", {}, [(1, 8, 7, 7)], [(1, 8, 1, 1)], 392),
        ("Activation", {"act_type": "tanh"}, [(10,)], [(10,)], 60),
        ("Activation", {"act_type": "relu"}, [(10,)], [(10,)], 10),
        ("LeakyReLU", {}, [(10,)], [(10,)], 10),
        (
            "UpSampling",
            {"sample_type": "bilinear"},
            [(1, 2, 5, 5), (2, 1, 4, 4)],
            [(1, 2, 10, 10)],
            2 * 50 * 16,
        ),
        # attention of 2 heads of 8 over 6 positions, batch 3: 16 sums of 8, then of 6
        (
            "_contrib_interleaved_matmul_selfatt_qk",
            {"heads": "2"},
            [(6, 3, 48)],
            [(6, 6, 6)],
            2 * 216 * 8,
        ),
        (
            "_contrib_interleaved_matmul_selfatt_valatt",
            {"heads": "2"},
            [(6, 3, 48), (6, 6, 6)],
            [(6, 3, 16)],
            2 * 288 * 6,
        ),
        (
            "_contrib_interleaved_matmul_encdec_qk",
            {"heads": "2"},
            [(6, 3, 16), (5, 3, 32)],
            [(6, 6, 5)],
            2 * 180 * 8,
        ),
        (
            "_contrib_interleaved_matmul_encdec_valatt",
            {"heads": "2"},
            [(5, 3, 32), (6, 6, 5)],
            [(6, 3, 16)],
            2 * 288 * 5,
        ),
        ("_npi_einsum", {"subscripts": "ij,jk->ik"}, [(3, 4), (4, 5)], [(3, 5)], 2 * 60),
        ("_npi_tensordot", {"a_axes_summed": "(1,)"}, [(3, 4), (4, 5)], [(3, 5)], 2 * 60),
        (
            "Correlation",
            {"kernel_size": "1"},
            [(1, 32, 8, 8)] * 2,
            [(1, 441, 8, 8)],
            2 * 441 * 64 * 32,
        ),
    ],
)
def test_flops(op: str, attrs: dict[str, str], inputs: Any, outputs: Any, flops: float) -> None:
    assert forward_flops(op, attrs, inputs, outputs) == flops
