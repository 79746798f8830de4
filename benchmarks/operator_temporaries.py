"""What each operator of PyTorch takes on a card inside itself, against the rules for it.

    python benchmarks/operator_temporaries.py [--all]

A sweep over operators, types and layouts of inputs (``cases``) on a card, or on the simulated card:
below autograd, the allocations of each operator are recorded one by one and compared with what
``memcli/engines/torch/device_temporaries.py`` says of it. Printed are those that differ (``--all``:
every one that takes anything inside itself). Status 1: one differs by 1 MiB or a fifth or more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memcli.engines.torch.cards import card_here
from memcli.engines.torch.device_temporaries import script_of


class Watched(TorchDispatchMode):
    """Compares what each operator allocates, in order, with the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.card = card_here()
        self.rows: dict[str, tuple[list[Any], list[Any]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        torch.cuda.memory._record_memory_history(context=None, clear_history=True)
        result = func(*args, **kwargs)
        events = torch.cuda.memory._snapshot()["device_traces"][0]
        torch.cuda.memory._record_memory_history(enabled=None)
        real, places = [], {}
        for event in events:
            if event["action"] == "alloc":
                places[event["addr"]] = len(real)
                real.append(("take", event["size"]))
            elif event["action"] == "free_requested":
                real.append(("give", event["size"]))
        for tensor in new_results(result, args, kwargs):
            at = places.get(tensor.untyped_storage().data_ptr())
            if at is not None:
                real[at] = ("out", real[at][1])
        said: list[Any] = []
        sizes: list[int] = []
        outs: set[int] = set()
        fresh = {t.untyped_storage()._cdata: t for t in new_results(result, args, kwargs)}
        for act, what in script_of(func, args, kwargs, result, self.card):
            if act == "take":
                sizes.append(what)
                said.append((act, what))
            elif act == "give":
                said.append((act, sizes[what]))
            elif act == "out":
                key = what.untyped_storage()._cdata
                if key in fresh and key not in outs:
                    outs.add(key)
                    said.append((act, what.untyped_storage().nbytes()))
        for key, tensor in fresh.items():
            if key not in outs:
                said.append(("out", tensor.untyped_storage().nbytes()))
        if _rounded(real) != _rounded(said) or any(a == "take" for a, _ in real):
            self.rows[f"{func} {described(args)} {described(kwargs)}"] = real, said
        return result


def new_results(result: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Tensors that an operator gives out in storages of their own."""
    had = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
    return [
        t
        for t in tree_leaves(result)
        if isinstance(t, Tensor)
        and t.is_cuda
        and t.untyped_storage()._cdata not in had
        and t.untyped_storage().nbytes()
    ]


def _rounded(acts: list[Any]) -> list[Any]:
    """Without what the allocator cannot tell apart."""
    return [(act, -(-size // 512) * 512) for act, size in acts]


def peak(acts: list[Any]) -> int:
    """The most that is held at once."""
    high = now = 0
    for act, size in _rounded(acts):
        now += -size if act == "give" else size
        high = max(high, now)
    return high


def described(value: Any) -> str:
    """An argument in words: type, shape, and strides where they are not the usual ones."""
    if isinstance(value, Tensor):
        lies = "" if value.is_contiguous() else f" strides {list(value.stride())}"
        return f"{str(value.dtype)[6:]}{list(value.shape)}{lies}"
    if isinstance(value, dict):
        return ", ".join(f"{k}={described(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(described, value)) + ")"
    return str(value)


TYPES = [torch.float32, torch.float16, torch.bfloat16]


def layouts(*shape: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """A leaf of a shape that lies in different ways."""

    def leaf(*size: int) -> Tensor:
        return torch.zeros(size, dtype=dtype, device="cuda", requires_grad=True)

    yield "plain", leaf(*shape)
    yield "slice", leaf(shape[0], shape[1] * 2, *shape[2:])[:, : shape[1]]
    yield "transposed", leaf(shape[0], *shape[:0:-1]).permute(0, *range(len(shape) - 1, 0, -1))
    if len(shape) == 4:
        yield "channels last", leaf(*shape).contiguous(memory_format=torch.channels_last)
    yield "expanded", leaf(1, *shape[1:]).expand(*shape)


def cases(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Operators on inputs of different layouts, each a function that gives a tensor."""

    def weight(*size: int) -> Tensor:
        return torch.zeros(size, dtype=dtype, device="cuda", requires_grad=True)

    def classes(n: int, *size: int) -> Tensor:
        return torch.randint(0, n, size, device="cuda")

    for lies, x in layouts(8, 96, 28, 28, dtype=dtype):
        for name, function in {
            "conv3x3": lambda x: F.conv2d(x, weight(64, 96, 3, 3), weight(64), padding=1),
            "conv1x1": lambda x: F.conv2d(x, weight(64, 96, 1, 1)),
            "conv strided": lambda x: F.conv2d(x, weight(64, 96, 3, 3), stride=2),
            "depthwise": lambda x: F.conv2d(
                x, weight(96, 1, 7, 7), weight(96), padding=3, groups=96
            ),
            "grouped": lambda x: F.conv2d(x, weight(96, 24, 3, 3), groups=4),
            "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
            "avg_pool": lambda x: F.avg_pool2d(x, 2),
            "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
            "batch_norm": lambda x: F.batch_norm(
                x,
                None,
                None,
                torch.ones(96, device="cuda", requires_grad=True),
                torch.zeros(96, device="cuda", requires_grad=True),
                True,
            ),
            "group_norm": lambda x: F.group_norm(x, 8, weight(96), weight(96)),
            "instance_norm": lambda x: F.instance_norm(x),
            "layer_norm": lambda x: F.layer_norm(x, (28,), weight(28), weight(28)),
            "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
            "pad": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
            "relu": F.relu,
            "gelu": F.gelu,
            "silu": F.silu,
            "mean": lambda x: x.mean((2, 3)),
            "sum": lambda x: x.sum((0, 2, 3)),
            "cat": lambda x: torch.cat([x, x], 1),
            "softmax": lambda x: x.softmax(1),
            "flatten": lambda x: x.flatten(1) * 2,
        }.items():
            yield f"{name}, {lies}", lambda f=function, x=x: f(x)
    for lies, x in layouts(4, 128, 512, dtype=dtype):
        for name, function in {
            "linear": lambda x: F.linear(x, weight(768, 512), weight(768)),
            "linear without bias": lambda x: F.linear(x, weight(768, 512)),
            "matmul": lambda x: x @ x.transpose(1, 2),
            "einsum": lambda x: torch.einsum("b i k, o k -> b i o", x, weight(256, 512)),
            "layer_norm": lambda x: F.layer_norm(x, (512,), weight(512), weight(512)),
            "rms_norm": lambda x: F.rms_norm(x, (512,), weight(512)),
            "softmax": lambda x: x.softmax(-1),
            "log_softmax": lambda x: x.log_softmax(-1),
            "bias": lambda x: x + weight(512),
            "scale": lambda x: x * weight(512),
            "sum": lambda x: x.sum(1),
            "max": lambda x: x.max(-1).values,
            "amax": lambda x: x.amax(-1),
            "cumsum": lambda x: x.cumsum(1),
            "sort": lambda x: x.sort(-1).values,
            "topk": lambda x: x.topk(5).values,
            "std": lambda x: x.std(-1),
            "norm": lambda x: x.norm(),
            "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
            "where": lambda x: torch.where(x > 0, x, 0.0),
            "dropout": lambda x: F.dropout(x, 0.1, True),
            "gather": lambda x: x.gather(-1, classes(512, 4, 128, 1)),
            "cross entropy": lambda x: F.cross_entropy(x.reshape(-1, 512), classes(512, 512)),
            "conv1d": lambda x: F.conv1d(x, weight(64, 128, 3), weight(64), padding=1),
        }.items():
            yield f"{name}, {lies}", lambda f=function, x=x: f(x)
    for rows, width in ((100, 64), (4096, 768), (100_352, 96), (25_088, 192)):
        yield (
            f"layer_norm {rows}x{width}",
            lambda r=rows, w=width: F.layer_norm(weight(r, w), (w,), weight(w), weight(w)),
        )
        yield f"bias of {rows}x{width}", lambda r=rows, w=width: weight(r, w) + weight(w)
    for count in (64, 5000):
        yield f"embedding {count}", lambda n=count: F.embedding(classes(5000, n), weight(5000, 128))
        yield f"indexing {count}", lambda n=count: weight(5000, 128)[classes(5000, n)]
    for heads in (64, 48):
        q = [weight(2, 8, 128, heads) for _ in range(3)]
        yield f"attention {heads}", lambda q=q: F.scaled_dot_product_attention(*q)
        yield (
            f"causal attention {heads}",
            lambda q=q: F.scaled_dot_product_attention(*q, is_causal=True),
        )


def watch(dtype: torch.dtype) -> Watched:
    """Runs every case of a type forward and backward."""
    watched = Watched()
    for name, function in cases(dtype):
        try:
            with watched:
                result = function()
                weights = torch.ones_like(result, requires_grad=False)
                result.backward(weights, inputs=leaves(result))
        except RuntimeError as error:
            print(f"{name}, {dtype}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
    return watched


def leaves(result: Tensor) -> list[Tensor]:
    """Leaves below a tensor in the graph of its gradients."""
    found, seen, stack = [], set(), [result.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack += [n for n, _ in node.next_functions]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true")
    names = [str(dtype).removeprefix("torch.") for dtype in TYPES]
    parser.add_argument("--types", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    start = torch.ones(64, 64, device="cuda", requires_grad=True)
    (start @ start).sum().backward()  # cuBLAS's work spaces
    status = differing = total = 0
    for dtype in (getattr(torch, name) for name in options.types):
        for name, (real, said) in watch(dtype).rows.items():
            total += 1
            off = peak(real) - peak(said)
            same = _rounded(real) == _rounded(said)
            differing += not same
            if abs(off) >= 1 << 20 or abs(off) > 0.2 * max(peak(real), 1 << 16):
                status = 1
            if options.all or not same:
                print(f"{'' if same else f'{off:+} '}{name}\n    real {real}\n    said {said}")
    print(f"{torch.cuda.get_device_name()}: {total} take memory inside, {differing} differ")
    return status


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # libraries of a simulated card may abort at the end
