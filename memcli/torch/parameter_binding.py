"""Graphs that run on the parameters and buffers of another module, whatever becomes of those."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from memcli.engines.torch.executor import KEPT, PlannedModule
from memcli.engines.torch.tracking import StepMemory, estimate_step

_MODEL, _CONSTANTS = "model", "constants"


class Tables(nn.Module):
    """The very tables of parameters, buffers and children that ``owner`` has.

    Not ``owner`` itself: a reference to it would be a cycle, and keep its memory for long.
    """

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        share(self, owner)


class Constants(nn.Module):
    """What a graph reads beside parameters and buffers."""

    def __init__(self, values: Mapping[str, Tensor | nn.Module] | None = None) -> None:
        super().__init__()
        for name, value in (values or {}).items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            else:
                self.register_buffer(name, value)

    def names(self) -> set[str]:
        """All of them."""
        return {*self._buffers, *self._modules}


def share(module: nn.Module, owner: nn.Module) -> None:
    """``module`` sees and changes the tables of parameters, buffers and children of ``owner``."""
    for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        module.__dict__[table] = owner.__dict__[table]


def planned_on(
    owner: nn.Module, graph: Graph, constants: Constants, marks: Mapping[str, int]
) -> PlannedModule:
    """A graph under a plan that reads ``owner``'s parameters and buffers by their dotted names.

    They are looked up at each call, so moving, converting or replacing them is seen. A name
    among ``constants`` stands for one of those. ``marks``: by node name, of function nodes.
    """
    graph = copy.deepcopy(graph)
    own = constants.names()
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = f"{_CONSTANTS if node.target in own else _MODEL}.{node.target}"
    root = nn.Module()
    root.add_module(_MODEL, Tables(owner))
    root.add_module(_CONSTANTS, constants)
    module = GraphModule(root, graph)
    module.__dict__["_modules"] = root._modules  # it makes copies of what it finds in ``root``
    return PlannedModule(module, marks)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer is; the CPU where it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def step_memory(planned: PlannedModule, inputs: Sequence[Any], plan: bool) -> StepMemory:
    """The memory of a training step on the sum of the outputs, estimated without any data."""
    same = copy.copy(planned)
    if not plan:
        same.marks = [KEPT] * len(planned.marks)
    return estimate_step(same, inputs)
