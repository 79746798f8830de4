"""Small programs of ``torch.export`` for tests, and their archives member by member."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """BatchNorm, writing in place, dropout, a part without gradients, a frozen layer, a loss."""

    def __init__(self, blocks: int = 3, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
            )
            for _ in range(blocks)
        )
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(channels, 10)
        self.frozen = nn.Linear(10, 10)
        self.frozen.requires_grad_(False)
        self.register_buffer("average", torch.zeros(10))
        self.register_buffer("offset", torch.arange(10.0), persistent=False)

    def forward(self, image: Tensor, label: Tensor, scale: int = 1) -> dict[str, Tensor]:
        x = self.stem(image)
        for block in self.blocks:
            y = block(x)
            y[:, :2] *= 2.0  # a part of it, in place
            y += x
            x = nn.functional.relu_(y)
        logits = self.head(self.drop(x.mean((2, 3)))) + self.offset
        with torch.no_grad():
            mean = logits.mean(0)
            self.average.mul_(0.9).add_(mean, alpha=0.1)
        logits = self.frozen(logits - mean) + torch.tensor(0.5)
        loss = nn.functional.cross_entropy(logits, label) * scale
        return {"logits": logits, "loss": loss}


def inputs(batch: int = 4) -> tuple[Tensor, Tensor]:
    """An image and a label."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, 8, 8, generator=generator), torch.arange(batch) % 10


def saved(
    path: Path, *, training: bool = True, dynamic: bool = True, decomposed: bool = False
) -> nn.Module:
    """Writes the program of a network; the network itself comes back."""
    torch.manual_seed(0)
    model = Residual().train(training)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"image": {0: batch}, "label": {0: batch}, "scale": None} if dynamic else None
    program = torch.export.export(model, inputs(), {"scale": 2}, dynamic_shapes=shapes)
    if decomposed:
        program = program.run_decompositions({})
    torch.export.save(program, path)
    return model


def rewritten(data: bytes, change: Callable[[dict[str, bytes]], Any]) -> bytes:
    """An archive with its members changed, by name without the folder."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        folder = file.namelist()[0].partition("/")[0]
        members = {n[len(folder) + 1 :]: file.read(n) for n in file.namelist()}
    change(members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in members.items():
            file.writestr(f"{folder}/{name}", content)
    return out.getvalue()


def with_graph(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """An archive with its program's JSON changed."""

    def edit(members: dict[str, bytes]) -> None:
        name = next(n for n in members if n.startswith("models/"))
        graph = json.loads(members[name])
        change(graph)
        members[name] = json.dumps(graph).encode()

    return rewritten(data, edit)
