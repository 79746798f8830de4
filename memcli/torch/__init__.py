"""Plans in the user's own PyTorch training: a planned file as a module, or a plan on a module.

``load("planned.onnx")`` gives a module that trains under the plan that the file carries;
``apply("planned.onnx", model)`` has the user's own module train under it. Both are ordinary
modules: optimizers, autocast, gradient scaling and accumulation, ``state_dict`` and
DistributedDataParallel work as they do without a plan, and give the same bits.

DistributedDataParallel sees the parameters themselves, and their gradient hooks fire once for each
backward pass, when the recomputation is over: nothing is to be set for it.
``find_unused_parameters=True`` and ``static_graph=True`` work too; neither is needed for a plan.
"""

from memcli.torch.applied import AppliedModel, apply
from memcli.torch.loaded import OnnxModule, load
from memcli.torch.loaded_program import ProgramModule
from memcli.torch.module_fit import Fit, fit
from memcli.torch.planning import Plan, plan

__all__ = [
    "AppliedModel",
    "Fit",
    "OnnxModule",
    "Plan",
    "ProgramModule",
    "apply",
    "fit",
    "load",
    "plan",
]
