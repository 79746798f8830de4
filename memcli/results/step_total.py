"""What training takes in all, part by part: the one figure to hold against a card."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass
class Breakdown:
    """Where the memory of a training step goes. Bytes.

    Args:
        parameters: of the network.
        gradients: of the parameters that are trained.
        optimizer: what the optimizer keeps from step to step.
        states: auxiliary states: moving statistics and the like.
        inputs: labels included.
        input_gradients: of the inputs, where the engine makes them.
        pool: activations and their gradients, at the peak of the forward and backward pass.
        update: temporaries of the optimizer's own step. They are there when activations are
            not, so that the larger of both counts.
    """

    parameters: int
    gradients: int
    optimizer: int
    states: int
    inputs: int
    input_gradients: int
    pool: int
    update: int = 0

    @property
    def beside_pool(self) -> int:
        """All that is there whatever the plan."""
        return sum(dataclasses.astuple(self)) - self.pool - self.update

    @property
    def total(self) -> int:
        """The peak of the whole step."""
        return self.beside_pool + max(self.pool, self.update)


@dataclass(frozen=True)
class StepTotal:
    """What a card, or the process on the CPU, must hold to train. Bytes.

    Args:
        optimizer: one of ``OPTIMIZERS``.
        baseline: without a plan.
        planned: under the plan.
        reserve: what the engine and its libraries take for themselves.
        reserve_assumed: what the reserve is for, where the user did not give it.
        on_card: a card trains it, and not the CPU.
        memory: what there is; None where nobody said.
        card: the kind of card that ``memory`` is of, as its maker calls it; '' where not named.
        baseline_slack: what the allocator of a card has reserved in gaps between tensors, where it
            is modelled (PyTorch).
        planned_slack: the same under the plan.
    """

    optimizer: str
    baseline: Breakdown
    planned: Breakdown
    reserve: int
    reserve_assumed: str = ""
    on_card: bool = False
    memory: int | None = None
    card: str = ""
    baseline_slack: int = 0
    planned_slack: int = 0

    @property
    def baseline_bytes(self) -> int:
        """The sum without a plan."""
        return self.baseline.total + self.baseline_slack + self.reserve

    @property
    def planned_bytes(self) -> int:
        """The sum under the plan."""
        return self.planned.total + self.planned_slack + self.reserve
