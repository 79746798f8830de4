"""Values of options, which the command line lists before anything heavy is loaded."""

from __future__ import annotations

# What stands for the cost of recomputing an operator.
COSTS = ("roofline", "flops", "measured")

# Copies of the parameters that an optimizer keeps beside parameters and gradients. "fused" is
# PyTorch's implementation of that name, in one kernel without temporaries.
OPTIMIZERS = {
    "sgd": 0,
    "momentum": 1,
    "adam": 2,
    "adamw": 2,
    "adam-fused": 2,
    "adamw-fused": 2,
}

# Cards that a plan can be made for without having one: memcli.frameworks.cards.
CARD_NAMES = (
    "rtx3060",
    "rtx3090",
    "rtx4090",
    "rtx5090",
    "titan-rtx",
    "t4",
    "l4",
    "l40s",
    "a10",
    "a100-40",
    "a100-80",
    "h100",
)

# Budgets of compare, in parts of the baseline's memory: from what costs little to what few graphs
# reach.
DEFAULT_BUDGETS = ("80%", "60%", "50%", "40%", "30%", "25%", "20%")

# Frameworks that export writes scripts for.
TARGETS = ("torch", "tensorflow", "jax")

# Kinds of kernels: MXNet's own, on which plans are made, and with oneDNN, as MXNet starts.
PLAIN = "plain"
DEFAULT = "default"
# Those that a plan is made for, and no others.
AS_PLANNED = "planned"

# Searches of solve.
SOLVE_STRATEGIES = {
    "auto": "greedy, annealing, and a proof where the graph is small enough",
    "annealing": "greedy and annealing, no proof",
    "greedy": "relieve the fullest step by the cheapest recomputation until it fits",
}

# Other frameworks' buffers, for inspect --memory-model. The levels are those of -optMemory in
# liuzhuang13/DenseNet, models/README.md and models/init.lua.
MEMORY_MODELS = {
    "torch7-0": "Torch7: every module owns its buffers",
    "torch7-1": "with optnet: gradients shared by liveness",
    "torch7-2": "with shareGradInput: gradients shared by module type",
    "torch7-3": "and Concats of dense blocks in one buffer",
    "torch7-4": "and their BatchNorms' outputs in one, recomputed",
}
# All of these.
ALL = "all"
