"""Launched by torchrun on the CPU: training under a plan against training without, in DDP.

Arguments: a planned file of the small ResNet, and the folder that each process writes its findings
to (``rank0.json``, ...).
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import memcli.torch
from tests.torch_models import batches, made

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "find_unused_parameters": {"find_unused_parameters": True},
    "static_graph": {"static_graph": True, "bucket_cap_mb": 0.001},
}
STEPS = 3


def train(module: nn.Module, settings: dict[str, Any], rank: int) -> list[Tensor]:
    """Gradients of each step, and the states at the end; the module is left as it was."""
    start = copy.deepcopy(module.state_dict())
    parallel = DistributedDataParallel(module, **settings)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    seen: list[Tensor] = []
    for (data,) in batches("resnet", STEPS, seed=10 + rank):
        optimizer.zero_grad()
        parallel(data).square().mean().backward()
        seen += [p.grad.clone() for p in module.parameters() if p.grad is not None]
        optimizer.step()
    seen += [value.clone() for value in module.state_dict().values()]
    module.load_state_dict(start)
    return seen


def hook_calls(module: nn.Module) -> set[int]:
    """How often hooks on parameters' gradients fire in one backward pass."""
    counts = [0] * len(list(module.parameters()))

    def counted(number: int) -> Any:
        def hook(_: Tensor) -> None:
            counts[number] += 1

        return hook

    handles = [
        parameter.register_post_accumulate_grad_hook(counted(number))
        for number, parameter in enumerate(module.parameters())
    ]
    module(*batches("resnet", 1)[0]).square().mean().backward()
    for handle in handles:
        handle.remove()
    return set(counts)


def main(planned: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    own = made("resnet")
    pairs = {
        "load": (memcli.torch.load(planned), memcli.torch.load(planned, plan=False)),
        "apply": (memcli.torch.apply(planned, copy.deepcopy(own)), own),
    }
    found: dict[str, Any] = {"world": dist.get_world_size()}
    for name, (with_plan, without) in pairs.items():
        for setting, settings in SETTINGS.items():
            a, b = (train(module, settings, rank) for module in (with_plan, without))
            found[f"{name} {setting}"] = {
                "compared": len(a),
                "equal": len(a) == len(b) and all(map(torch.equal, a, b)),
                "finite": all(bool(t.isfinite().all()) for t in a),
                "checksum": sum(float(t.double().abs().sum()) for t in a[: len(a) // 2]),
            }
        found[f"{name} hooks"] = sorted(hook_calls(with_plan))
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
