"""Runs a graph under a plan: node by node in eager mode, recomputing what the plan drops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from memcli.engines.torch.program import Program, Step, attribute, compile_graph, fill, marks_of
from memcli.engines.torch.run import Run
from memcli.marks import AGAIN, ALL_MARKS, AUXILIARY, EACH, KEPT

__all__ = ["AGAIN", "AUXILIARY", "EACH", "KEPT", "PlannedModule"]


class PlannedModule(torch.nn.Module):
    """A graph that trains under a plan, with the graph module's own parameters and buffers.

    ``marks``: by name of an fx node, what becomes of the storages that it makes: ``KEPT`` (the
    default), ``AGAIN`` (dropped after their last use in the forward pass, recomputed when the
    backward pass first needs them and held until its last need), ``EACH`` (recomputed for every
    need). ``AUXILIARY`` added to a mark: what the function saves inside itself (pooling indices,
    dropout masks) is dropped and recomputed as well. Nodes that give out views make no storages;
    what the graph gives out always stays. Gradients, outputs and states are those of the graph
    run without a plan, bit for bit where the kernels are deterministic.

    Works with several forward passes before a backward pass, ``retain_graph``, double backward,
    autocast and optimizers; parameters, inputs and constant buffers may not change between a
    forward pass and its backward pass.

    Raises:
        BadInput: the graph has module calls or methods, or ``marks`` does not fit it.
    """

    def __init__(self, module: GraphModule, marks: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.program = compile_graph(module)
        self.marks = marks_of(self.program, marks or {}, ALL_MARKS)
        self.run_class: Callable[[Program, Sequence[int], list[Tensor]], Run] = Run
        # Called after each step with its result: for who measures, stage by stage.
        self.watch: Callable[[Step, Any], None] | None = None
        self.training = module.training
        # The same objects under the same names: state_dict, optimizers and DDP see no difference.
        for name, parameter in module._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in module._buffers.items():
            self.register_buffer(name, buffer, name not in module._non_persistent_buffers_set)
        for name, child in module._modules.items():
            self.add_module(name, child)
        for _, path in self.program.attributes:
            if "." not in path and not hasattr(self, path):
                value = getattr(module, path)
                if isinstance(value, Tensor):
                    self.register_buffer(path, value, persistent=False)
                else:
                    setattr(self, path, value)

    def forward(self, *inputs: Any) -> Any:
        """The graph's outputs, structured as it gives them out.

        Raises:
            TypeError: the number of inputs is not the graph's.
        """
        program = self.program
        if len(inputs) != len(program.inputs):
            raise TypeError(
                f"the graph has {len(program.inputs)} inputs "
                f"({', '.join(program.input_names)}); got {len(inputs)}"
            )
        values: list[Any] = [None] * program.n_values
        for number, given in zip(program.inputs, inputs, strict=True):
            values[number] = given
        for number, path in program.attributes:
            values[number] = attribute(self, path)
        if not torch.is_grad_enabled():
            return self._plain(values)
        given_in = [*program.inputs, *(number for number, _ in program.attributes)]
        externals = [values[n] for n in given_in if isinstance(values[n], Tensor)]
        run = self.run_class(program, self.marks, externals)
        for number in program.unread:
            values[number] = None
        with torch.autograd.graph.saved_tensors_hooks(run.pack, run.unpack):
            for step in program.steps:
                values[step.value] = run.call(step, values)
                if self.watch is not None:
                    self.watch(step, values[step.value])
                for number in step.free_after:
                    run.free(values[number])
                    values[number] = None
        outputs = fill(program.outputs, values)
        run.finish(outputs)
        return outputs

    def _plain(self, values: list[Any]) -> Any:
        """Without gradients nothing is saved, so there is nothing to plan."""
        for step in self.program.steps:
            args, kwargs = step.arguments(values)
            values[step.value] = step.function(*args, **kwargs)
            args = kwargs = None  # type: ignore[assignment]
            for number in step.free_after:
                values[number] = None
        return fill(self.program.outputs, values)
