"""Train an ONNX file under the plan that it carries, and see what that saves.

    python train_planned_onnx.py [planned.onnx]

Without a file a small residual network is written and planned here, within 60% of its memory. Needs
the extra ``torch``; runs on the CPU in seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import memcli
import memcli.torch

BATCH, SIZE, CHANNELS, CLASSES = 16, 16, 8, 4


def write_network(path: Path, blocks: int = 4) -> None:
    """A residual network in training form with an open batch dimension, as exporters write it."""
    random = np.random.default_rng(0)
    nodes, weights = [], []

    def weight(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def normal(name: str, *shape: int) -> str:
        return weight(name, random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape))

    def conv_norm(x: str, name: str, inputs: int) -> str:
        kernel = normal(f"{name}.conv.weight", CHANNELS, inputs, 3, 3)
        nodes.append(
            helper.make_node(
                "Conv",
                [x, kernel],
                [f"{name}_conv"],
                f"{name}/conv",
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
            )
        )
        values = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
        names = [weight(f"{name}.bn.{k}", np.full(CHANNELS, v)) for k, v in values.items()]
        outputs = [f"{name}_bn", f"{name}_mean", f"{name}_var"]
        nodes.append(
            helper.make_node(
                "BatchNormalization",
                [f"{name}_conv", *names],
                outputs,
                f"{name}/bn",
                training_mode=1,
            )
        )
        return outputs[0]

    def relu(x: str, name: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [name], f"{name}/relu"))
        return name

    x = relu(conv_norm("data", "stem", 3), "stem_relu")
    for i in range(blocks):
        y = relu(conv_norm(x, f"block{i}.a", CHANNELS), f"block{i}_inner")
        y = conv_norm(y, f"block{i}.b", CHANNELS)
        nodes.append(helper.make_node("Add", [x, y], [f"block{i}_sum"], f"block{i}/add"))
        x = relu(f"block{i}_sum", f"block{i}_out")
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    head = [normal("fc.weight", CLASSES, CHANNELS), weight("fc.bias", np.zeros(CLASSES))]
    nodes.append(helper.make_node("Gemm", ["flat", *head], ["scores"], "fc", transB=1))
    data = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "residual", [data], [scores], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def train(module: memcli.torch.OnnxModule, steps: int = 5) -> list[float]:
    """An ordinary loop: nothing in it knows of the plan."""
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    shapes = module.shapes()[0]
    losses = []
    for _ in range(steps):
        inputs = [torch.randn(shapes[name], generator=generator) for name in module.input_names]
        outputs = module(*inputs)
        scores = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        loss = scores.float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    if len(sys.argv) > 1:
        planned = Path(sys.argv[1])
    else:
        write_network(Path("residual.onnx"))
        planned = Path("planned.onnx")
        plan = memcli.plan("residual.onnx", output=planned, force=True, batch=BATCH, budget="60%")
        print(f"{plan.strategy}: {plan.cost.recompute_fraction:.0%} of a forward pass recomputed")
    module = memcli.torch.load(planned, weights="random")
    plain = memcli.torch.load(planned, weights="random", plan=False)
    print(module)
    data = [torch.zeros(module.shapes()[0][name]) for name in module.input_names]
    peak, without = (module.memory(*data, plan=plan).peak for plan in (True, False))
    print(f"live peak of a step: {peak / 2**20:.2f} MiB, {without / 2**20:.2f} without the plan")
    losses, expected = train(module), train(plain)
    print("losses ", *(f"{loss:.5f}" for loss in losses))
    same = losses == expected and all(
        torch.equal(value, plain.state_dict()[name]) for name, value in module.state_dict().items()
    )
    print("the same as without the plan, bit for bit" if same else "DIFFERENT without the plan")
    module.eval()
    with torch.no_grad():
        outputs = module(*data)
    print("evaluated:", tuple((outputs if isinstance(outputs, torch.Tensor) else outputs[0]).shape))
    torch.save({module.onnx_names[k]: v for k, v in module.state_dict().items()}, "weights.pt")
    sys.exit(not same)


if __name__ == "__main__":
    main()
