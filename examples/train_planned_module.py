"""Train your own ``nn.Module`` under the plan of its ONNX export, and see what that saves.

    python train_planned_module.py

Export, plan, apply, train: the loop, the optimizer and the checkpoints stay as they were. Needs
the extra ``torch``, and onnxscript for the export; runs on the CPU in seconds.
"""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import memcli.torch
from memcli.formats.onnx.file import read_onnx
from memcli.formats.onnx.plan import new_plan, write_plan

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


def plan_by_hand(path: Path, out: Path) -> None:
    """What ``memcli plan`` does with a search: here cheap operators are recomputed."""
    file = read_onnx(path)
    cheap = {"Concat", "BatchNormalization", "Relu"}
    marks = {
        name: "again" if node.op_type in cheap else "kept"
        for name, node in zip(file.node_names, file.graph.node, strict=True)
    }
    shapes = {file.inputs[0].name: [BATCH, 3, SIZE, SIZE]}
    plan = new_plan(file, marks, strategy="by hand", shapes=shapes, dtype="float32")
    write_plan(file, plan, out, overwrite=True)


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # optimize=False leaves each BatchNormalization where it is.
        torch.onnx.export(model, (data,), "dense.onnx", dynamo=True, optimize=False, verbose=False)
    plan_by_hand(Path("dense.onnx"), Path("planned.onnx"))

    planned = memcli.torch.apply("planned.onnx", model)
    peak, without = (planned.memory(data, plan=plan).peak for plan in (True, False))
    print(f"live peak of a step: {peak / 2**20:.2f} MiB, {without / 2**20:.2f} without the plan")

    losses, expected = train(planned), train(reference)
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
