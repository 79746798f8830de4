"""Seconds that forward operators take, by the roofline: arithmetic or memory, whichever is slower.

Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009. An operator that does F floating-point
operations and moves B bytes takes at least max(F / peak rate, B / bandwidth) seconds. To this
comes what it costs to start an operator at all, which is most of the time of very small ones.

FLOPs alone take a BatchNorm for free beside a convolution: on a GPU it is bound by memory and
takes about as long as a 1x1 convolution of the same size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memcli.graph.training import TrainingGraph

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Machine:
    """A device's two roofs. FLOPs per second in FP32, bytes per second of its main memory.

    ``launch_seconds``: what starting one operator costs, work or none. ``kernels``: the two rates
    of operators whose kernels stay far below the roofs, by operator, or by operator and what
    :func:`kernel_of` adds to it.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    launch_seconds: float
    kernels: Mapping[str, tuple[float, float]] = field(default_factory=dict)


# Time between the starts of two kernels. Empty CUDA kernels without synchronization can be started
# every 3 microseconds at best (measured at the University of Virginia, "CUDA kernel
# overhead"); with the arguments and the engine's own bookkeeping it is more.
_LAUNCH = 5e-6

# FP32 without tensor cores, at boost clock, and memory bandwidth, of NVIDIA's data sheets and
# architecture white papers named beside each. Real kernels reach 60 to 90% of either: the ratio
# between the two is what plans depend on.
MACHINES: dict[str, Machine] = {
    m.name: m
    for m in (
        # "NVIDIA Tesla M40" data sheet: 7 TFLOPS, 288 GB/s
        Machine("m40", 7.0e12, 288e9, _LAUNCH),
        # "GeForce GTX TITAN X" product page: 3072 cores at 1075 MHz, 336.5 GB/s (Maxwell)
        Machine("titan-x", 6.6e12, 336.5e9, _LAUNCH),
        # "NVIDIA GeForce GTX 1080 Ti" product page: 3584 cores at 1582 MHz, 484 GB/s
        Machine("gtx-1080-ti", 11.3e12, 484e9, _LAUNCH),
        # "NVIDIA Tesla P100" white paper: 10.6 TFLOPS, 732 GB/s (SXM2)
        Machine("p100", 10.6e12, 732e9, _LAUNCH),
        # "NVIDIA V100" data sheet: 15.7 TFLOPS, 900 GB/s (SXM2)
        Machine("v100", 15.7e12, 900e9, _LAUNCH),
        # "NVIDIA T4" data sheet: 8.1 TFLOPS, 320 GB/s
        Machine("t4", 8.1e12, 320e9, _LAUNCH),
        # "NVIDIA Turing GPU architecture" white paper: 13.4 TFLOPS (reference clock), 616 GB/s
        Machine("rtx-2080-ti", 13.4e12, 616e9, _LAUNCH),
        # "NVIDIA A100" data sheet: 19.5 TFLOPS, 1555 GB/s (40 GB) and 2039 GB/s (80 GB, SXM)
        Machine("a100", 19.5e12, 1555e9, _LAUNCH),
        Machine("a100-80gb", 19.5e12, 2039e9, _LAUNCH),
        # "NVIDIA A10" data sheet: 31.2 TFLOPS, 600 GB/s
        Machine("a10", 31.2e12, 600e9, _LAUNCH),
        # "NVIDIA Ampere GA102 GPU architecture" white paper: 35.6 TFLOPS, 936 GB/s
        Machine("rtx-3090", 35.6e12, 936e9, _LAUNCH),
        # "NVIDIA H100" and "H200" data sheets: 67 TFLOPS (SXM), 3.35 and 4.8 TB/s
        Machine("h100", 67e12, 3350e9, _LAUNCH),
        Machine("h200", 67e12, 4800e9, _LAUNCH),
        # Four cores of AVX2: two multiply-adds of eight numbers each cycle (Intel's optimization
        # manual, Haswell) at 2.5 GHz are 80 GFLOP/s a core; two channels of DDR4-2666 (JEDEC
        # JESD79-4) are 42.7 GB/s. MXNet takes some microseconds to hand an operator over.
        Machine("cpu", 320e9, 42.7e9, 5e-6),
    )
}

# For a device of which nothing is known: a V100, 17 FLOPs for each byte. Data-centre cards lie
# between 12 (A100) and 25 (T4), and so do GeForce cards up to Turing.
DEFAULT_MACHINE = Machine("default", 15.7e12, 900e9, _LAUNCH)

# MXNet's own kernels on the CPU, without oneDNN, which plans run on. Measured one by one in
# processor time with benchmarks/operator_costs.py --plain on ResNet-50, DenseNet-201, MobileNetV2
# and the LSTM of examples/ (x86-64 with AVX2): the ratios between them are what plans depend on.
# The roofs of a CPU are no guide here: a clip or a LeakyReLU runs at a fifteenth of the speed of a
# sum, element by element with a branch, and a grouped convolution group by group. Other
# normalizations are taken to be as BatchNorm, other functions of one element as tanh.
PLAIN_CPU = Machine(
    "mxnet-cpu",
    45e9,
    17e9,
    5e-6,
    kernels={
        "Convolution grouped": (1.1e9, 17e9),
        "Deconvolution grouped": (1.1e9, 17e9),
        "BatchNorm": (45e9, 4.5e9),
        "BatchNorm_v1": (45e9, 4.5e9),
        "LayerNorm": (45e9, 4.5e9),
        "InstanceNorm": (45e9, 4.5e9),
        "GroupNorm": (45e9, 4.5e9),
        "LeakyReLU": (45e9, 1.2e9),
        "clip": (45e9, 1.2e9),
        # by an exponential for each element
        "Activation": (45e9, 0.73e9),
        "Activation relu": (45e9, 10.6e9),
        "LeakyReLU elu": (45e9, 0.73e9),
        "LeakyReLU selu": (45e9, 0.73e9),
        "LeakyReLU gelu": (45e9, 0.73e9),
        "sigmoid": (45e9, 0.73e9),
        "tanh": (45e9, 0.73e9),
        "exp": (45e9, 0.73e9),
        "softmax": (45e9, 0.65e9),
        "log_softmax": (45e9, 0.65e9),
        "SoftmaxOutput": (45e9, 0.65e9),
        "SoftmaxActivation": (45e9, 0.65e9),
        "softmax_cross_entropy": (45e9, 0.65e9),
        "SliceChannel": (45e9, 1.5e9),
        "Pooling": (45e9, 3.7e9),
        "Pooling_v1": (45e9, 3.7e9),
    },
)

# nvidia-smi's names of cards, by what tells them apart; the first that is found counts.
_CARDS = (
    (r"A100.*80\s?GB", "a100-80gb"),
    (r"A100", "a100"),
    (r"A10\b", "a10"),
    (r"H200", "h200"),
    (r"H100", "h100"),
    (r"V100", "v100"),
    (r"P100", "p100"),
    (r"M40\b", "m40"),
    (r"\bT4\b", "t4"),
    (r"1080 Ti", "gtx-1080-ti"),
    (r"2080 Ti", "rtx-2080-ti"),
    (r"RTX 3090(?! Ti)", "rtx-3090"),
    (r"GTX TITAN X", "titan-x"),
)

# Operators that read of their first input only as much as they write; others read it whole.
_READS_WHAT_IT_WRITES = frozenset(
    {
        "Embedding",
        "_contrib_SparseEmbedding",
        "take",
        "batch_take",
        "pick",
        "gather_nd",
        "slice",
        "slice_axis",
        "slice_like",
        "Crop",
        "SequenceLast",
        "choose_element_0index",
        "_contrib_boolean_mask",
        "_npi_slice",
    }
)
# Where the table of indices comes second (Embedding: the first input is the indices).
_TABLE_SECOND = frozenset({"Embedding", "_contrib_SparseEmbedding"})
# Inputs read for their shape alone, which MXNet nevertheless takes for read.
_SHAPE_ONLY = {"slice_like": (1,), "broadcast_like": (1,), "shape_array": (0,), "size_array": (0,)}
# Statistics over more than a cache holds, then the work: the data comes in twice.
_READS_TWICE = frozenset(
    {
        "BatchNorm",
        "BatchNorm_v1",
        "CuDNNBatchNorm",
        "_contrib_SyncBatchNorm",
        "InstanceNorm",
        "GroupNorm",
    }
)


def machine_named(name: str) -> Machine:
    """The preset of a name.

    Args:
        name: of a preset (``MACHINES``), or of a card as nvidia-smi prints it.

    Returns:
        The default machine where no preset fits.
    """
    preset = MACHINES.get(name.strip().lower())
    if preset is not None:
        return preset
    for pattern, key in _CARDS:
        if re.search(pattern, name, re.IGNORECASE):
            return MACHINES[key]
    return DEFAULT_MACHINE


def only_names_data(graph: TrainingGraph) -> NDArray[np.bool_]:
    """Over forward nodes: whether the operator does nothing but give its input another name.

    It has each of its outputs in an input's own buffer and nothing to compute (in-place identity
    pairs: Reshape, Flatten, ``_copy``, BlockGrad, ``amp_multicast`` without a cast). Not where
    the input is a variable: its memory is the caller's, and the data are copied.
    """
    result = np.zeros(graph.n_forward, bool)
    for v in range(graph.n_forward):
        if graph.kind[v] < 0:
            continue
        inputs = graph.inputs(v)
        first = int(graph.first[v])
        named = set()
        for p in range(int(graph.pair_ptr[v]), int(graph.pair_ptr[v + 1])):
            i, o = int(graph.pair_in[p]), int(graph.pair_out[p])
            if not graph.pair_identity[p] or i >= len(inputs):
                continue
            read, written = int(inputs[i]), first + o
            if (
                not graph.variable[graph.entry_node[read]]
                and graph.entry_bytes[read] == graph.entry_bytes[written]
            ):
                named.add(written)
        result[v] = bool(named) and all(e in named for e in graph.entries(v))
    return result


def moved_bytes(graph: TrainingGraph) -> Floats:
    """Over forward nodes: bytes read and written, every tensor once (BatchNorm: its data twice).

    Parameters count, inputs that are read for their shape alone do not; a table (Embedding,
    ``take``) is read where it is looked up. Operators that only name data move none.
    """
    result = np.zeros(graph.n_forward, np.float64)
    names = only_names_data(graph)
    for v in range(graph.n_forward):
        if graph.kind[v] < 0 or names[v]:
            continue
        op = graph.op(v)
        written = float(sum(graph.entry_bytes[e] for e in graph.entries(v)))
        table = 1 if op in _TABLE_SECOND else 0
        read = 0.0
        seen = set()
        for slot, i in enumerate(range(int(graph.in_ptr[v]), int(graph.in_ptr[v + 1]))):
            entry = int(graph.in_entry[i])
            if graph.in_ignored[i] or slot in _SHAPE_ONLY.get(op, ()) or entry in seen:
                continue
            seen.add(entry)
            size = float(graph.entry_bytes[entry])
            if op in _READS_WHAT_IT_WRITES and slot == table:
                size = min(size, written)
            elif slot == 0 and op in _READS_TWICE and not _uses_stored_statistics(graph, v):
                size *= 2
            read += size
        result[v] = read + written
    return result


def _uses_stored_statistics(graph: TrainingGraph, node: int) -> bool:
    attrs = graph.kinds[graph.kind[node]].attrs
    return attrs.get("use_global_stats", "False") in ("True", "1")


def work_seconds(flops: Floats, moved: Floats, machine: Machine = DEFAULT_MACHINE) -> Floats:
    """Seconds that operators take by the roofline, without their launch.

    Args:
        flops: of each operator.
        moved: bytes that each reads and writes.
        machine: whose roofs they run under.
    """
    return np.maximum(flops / machine.flops_per_second, moved / machine.bytes_per_second)


def kernel_of(graph: TrainingGraph, node: int) -> str:
    """The operator, and what decides which kernel runs it.

    That is the groups of a convolution and the function of an activation.
    """
    op = graph.op(node)
    attrs = graph.kinds[graph.kind[node]].attrs
    if op in ("Convolution", "Convolution_v1", "Deconvolution"):
        return f"{op} grouped" if attrs.get("num_group", "1") not in ("1", "0") else op
    return f"{op} {attrs['act_type']}" if "act_type" in attrs else op


def roofline_seconds(graph: TrainingGraph, machine: Machine = DEFAULT_MACHINE) -> Floats:
    """Seconds that each forward node takes on ``machine``; 0 for variables.

    max(FLOPs / peak rate, bytes / bandwidth) and the launch. An operator that only names data
    costs its launch alone.
    """
    # What only names data computes nothing either, whatever its FLOPs are booked at.
    flops = np.where(only_names_data(graph), 0.0, graph.flops[: graph.n_forward])
    moved = moved_bytes(graph)
    seconds = work_seconds(flops, moved, machine)
    for v in range(graph.n_forward) if machine.kernels else ():
        if graph.kind[v] >= 0:
            own = machine.kernels.get(kernel_of(graph, v)) or machine.kernels.get(graph.op(v))
            if own is not None:
                seconds[v] = max(flops[v] / own[0], moved[v] / own[1])
    operators = graph.kind[: graph.n_forward] >= 0
    return np.where(operators, seconds + machine.launch_seconds, 0.0)
