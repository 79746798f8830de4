"""Train your own ``nn.Module`` under a plan, and see what that saves.

    python train_planned_module.py

Plan, apply, train: the loop, the optimizer and the checkpoints stay as they were. Needs the extra
``torch``; runs on the CPU in seconds.
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor, nn

import memcli.torch

BATCH, SIZE = 8, 16


class Dense(nn.Module):
    """Each layer reads all features before it, as in DenseNet: much to keep, little to compute."""

    def __init__(self, layers: int = 4, growth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(growth * i),
                nn.ReLU(inplace=True),
                nn.Conv2d(growth * i, growth, 3, padding=1, bias=False),
            )
            for i in range(1, layers + 1)
        )
        self.head = nn.Linear(growth * (layers + 1), 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(torch.cat(features, 1).mean((2, 3)))


def train(model: nn.Module, steps: int = 5) -> list[float]:
    """An ordinary loop with mixed precision: nothing in it knows of the plan."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        data = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
        labels = torch.randint(0, 4, (BATCH,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(data), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    torch.manual_seed(0)
    model = Dense().train()
    reference = copy.deepcopy(model)
    data = torch.randn(BATCH, 3, SIZE, SIZE)
    plan = memcli.torch.plan(model, data, budget="60%", autocast=torch.bfloat16)
    plan.apply(model)
    before, after = plan.baseline_bytes / 2**20, plan.planned_bytes / 2**20
    print(f"peak of a step: {after:.2f} MiB, {before:.2f} without the plan")

    losses, expected = train(model), train(reference)
    print("losses ", *(f"{loss:.5f}" for loss in losses))
    # The parameters and statistics are the model's own; its checkpoints know nothing of a plan.
    trained = model.state_dict()
    same = losses == expected and all(
        torch.equal(value, trained[name]) for name, value in reference.state_dict().items()
    )
    print("the same as without the plan, bit for bit" if same else "DIFFERENT without the plan")
    torch.save(trained, "model.pt")
    sys.exit(not same)


if __name__ == "__main__":
    main()
