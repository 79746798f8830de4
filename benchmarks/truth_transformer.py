"""A transformer of which real cards' memory is published, estimated without a card.

    python benchmarks/truth_transformer.py [--tokens 128 256 512 1024] [--measure]
        [--against FOLDER]

A decoder of 24 layers, width 1,024, 16 heads, feed-forward 4,096, vocabulary 10,000, batch 4, as
``docs/truth.md`` describes it: every layer written out in operators of eager PyTorch, AdamW by
hand, parameter by parameter, out of place. 128 and 256 tokens in float32, 512 and 1,024 under
``torch.autocast("cuda", bfloat16)`` around the whole step. Printed are the estimated allocated peak
and reserved bytes of the third training step beside those of the real card (``REAL``), in MiB.
``--measure`` runs the same on the card that is here, which may be a simulated one. ``--against``:
compares the sizes of the step's allocations with recordings of the real ones. Status 1: a peak is
more than 0.5% off, or reserved memory more than 2%.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memcli.engines.torch.cards import Card
from memcli.engines.torch.whole_step import play_steps

BATCH, LAYERS, WIDTH, HEADS, INNER, WORDS = 4, 24, 1024, 16, 4096, 10_000
# Real cards' figures in MiB: allocated peak, reserved (snapshots of training steps, torch 2.11).
REAL = {128: (6_696.4, 6_900), 256: (8_690.3, 8_836), 1024: (23_089.5, 24_012)}
# A card with cuBLAS's smaller work space, as the real one had.
CARD = Card("NVIDIA RTX 3090", (8, 6), 82, 1536)


class Linear(nn.Module):
    """A matrix, and no bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", x, self.weight)


class Embedding(nn.Module):
    """Rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WORDS, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight[tokens]


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = x.to(torch.float32)
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        x = x * scale
        return (self.weight * x).to(kind)


class Rotary(nn.Module):
    """Turns the two halves of each vector against one another."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.empty(2, tokens, WIDTH // HEADS // 2), False)

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self.table[0, : x.shape[-2]], self.table[1, : x.shape[-2]]
        first = cos * one - sin * other
        second = sin * one + cos * other
        return torch.cat([first.unsqueeze(-1), second.unsqueeze(-1)], -1).flatten(-2)


def softmax(x: Tensor) -> Tensor:
    rescaled = x - torch.max(x, dim=-1, keepdim=True)[0]
    powers = torch.exp(rescaled)
    return powers / torch.sum(powers, dim=-1, keepdim=True)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("...qd,...kd->...qk", query, key) / math.sqrt(query.shape[-1])
    scores = torch.where(mask, scores, float("-inf"))
    weights = softmax(scores)
    return torch.einsum("...qk,...kd->...qd", weights, value)


class Attention(nn.Module):
    """Causal attention of several heads with rotary positions."""

    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self.q, self.k, self.v = (Linear(WIDTH, WIDTH) for _ in range(3))
        self.output = Linear(WIDTH, WIDTH)
        self.rotary = rotary

    def forward(self, x: Tensor) -> Tensor:
        *_, tokens, _ = x.shape
        q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
        q = self.rotary(q)
        k = self.rotary(k)
        places = torch.arange(tokens, device=x.device)
        mask = (places.view(-1, 1) >= places.view(1, -1)).expand(1, 1, tokens, tokens)
        found = attention(q, k, v, mask)
        found = found.transpose(1, 2).flatten(-2).contiguous()
        return self.output(found)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (
            Linear(WIDTH, INNER),
            Linear(INNER, WIDTH),
            Linear(WIDTH, INNER),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(rotary), FeedForward()
        self.first, self.second = RMSNorm(), RMSNorm()

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attention(self.first(x))
        summed = x + attended
        fed = self.feed_forward(self.second(summed))
        return summed + fed


class Transformer(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        rotary = Rotary(tokens)
        self.embedding = Embedding()
        self.layers = nn.ModuleList(Layer(rotary) for _ in range(LAYERS))
        self.norm = RMSNorm()
        self.head = Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def log_softmax(x: Tensor) -> Tensor:
    x = x - torch.max(x, dim=-1, keepdim=True)[0]
    return x - torch.log(torch.sum(torch.exp(x), dim=-1, keepdim=True))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    losses = -log_softmax(logits)
    return torch.mean(torch.gather(losses, -1, targets.unsqueeze(-1)))


class AdamW(torch.optim.Optimizer):
    """Written out, parameter by parameter and out of place."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"rate": 1e-3, "decay": 0.01})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                gradient = parameter.grad.data
                parameter.data -= group["rate"] * group["decay"] * parameter.data
                mean_before = state.get("mean", torch.zeros_like(gradient))
                square_before = state.get("square", torch.zeros_like(gradient))
                mean = 0.9 * mean_before + 0.1 * gradient
                square = 0.95 * square_before + 0.05 * torch.square(gradient)
                parameter.data -= group["rate"] * mean / (torch.sqrt(square) + 1e-8)
                state["mean"], state["square"] = mean, square


def training(tokens: int, device: str) -> tuple[Callable[[], None], list[Tensor]]:
    """A function that runs one step, and the tensors that are there before the first."""
    with torch.device(device):
        model = Transformer(tokens)
    optimizer = AdamW(model.parameters())
    words = torch.zeros((BATCH, tokens), dtype=torch.int64, device=device)
    targets = torch.zeros((BATCH, tokens), dtype=torch.int64, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = model(words)
        loss = cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()

    return step, [*model.parameters(), *model.buffers(), words, targets]


def autocast_of(tokens: int) -> torch.dtype | None:
    return torch.bfloat16 if tokens >= 512 else None


def measured(tokens: int) -> tuple[int, int]:
    """Allocated and reserved peak of the third step on the card that is here."""
    step, _ = training(tokens, "cuda")
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        kind = autocast_of(tokens)
        if kind is None:
            step()
        else:
            with torch.autocast("cuda", kind):
                step()
    stats = torch.cuda.memory_stats()
    return stats["requested_bytes.all.peak"], stats["reserved_bytes.all.peak"]


def compare(sizes: list[int], path: Path) -> str:
    """Where the allocations of a step first differ in size from a recording's."""
    with gzip.open(path) as file:
        events = json.load(file)["events"]
    real = [event[2] for event in events if event[0] == "alloc"]
    ours = [-(-size // 512) * 512 for size in sizes]
    same = sum(a == b for a, b in zip(ours, real, strict=False))
    first = next((i for i, (a, b) in enumerate(zip(ours, real, strict=False)) if a != b), None)
    text = f"{len(ours)} allocations, {len(real)} recorded, {same} of one size in their places"
    if first is not None:
        text += f"; first at {first}: {ours[first - 4 : first + 8]}, {real[first - 4 : first + 8]}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    status = 0
    for tokens in options.tokens:
        found = play_steps(
            lambda tokens=tokens: training(tokens, "cpu"),
            steps=3,
            card=CARD,
            autocast=autocast_of(tokens),
        )
        row: dict[str, Any] = {
            "tokens": tokens,
            "precision": "bfloat16 autocast" if autocast_of(tokens) else "float32",
            "allocated_mib": found.requested_peak / 2**20,
            "reserved_mib": found.reserved_peak / 2**20,
        }
        if tokens in REAL:
            allocated, reserved = REAL[tokens]
            row["allocated_off"] = row["allocated_mib"] / allocated - 1
            row["reserved_off"] = row["reserved_mib"] / reserved - 1
            if abs(row["allocated_off"]) > 0.005 or abs(row["reserved_off"]) > 0.02:
                status = 1
        if options.measure:
            row["device"] = torch.cuda.get_device_name()
            allocated, reserved = measured(tokens)
            row["measured_allocated_mib"] = allocated / 2**20
            row["measured_reserved_mib"] = reserved / 2**20
        rows.append(row)
        if not options.json:
            print(
                "  ".join(
                    f"{k} {v:,.1f}"
                    if k.endswith("mib")
                    else f"{k} {v:+.2%}"
                    if k.endswith("off")
                    else f"{k} {v}"
                    for k, v in row.items()
                ),
                flush=True,
            )
        if options.against:
            path = options.against / f"a-medium_{tokens}_training_memory_snapshot.json.gz"
            if path.exists():
                print("   ", compare(found.sizes, path))
    if options.json:
        print(json.dumps(rows, indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main())
