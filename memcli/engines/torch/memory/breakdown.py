"""What is alive at the moment of the live peak of a PyTorch step, tensor by tensor.

The model's walk is run again and stopped where it found the peak (:mod:`torch_kernels`), and what
it holds then is read off. Gradients and temporaries, which the walk knows as sums, are followed one
by one in the record of the step. Bytes add up to ``TorchModel.evaluate(marks).live_peak_bytes``
exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from memcli.engines.torch.memory import kernels
from memcli.engines.torch.memory import trace as events
from memcli.engines.torch.memory.kernels import (
    _AGAIN,
    _BYTES,
    _CODE,
    _DEPTH,
    _FIRST,
    _HELD,
    _INPUTS,
    _INSTANCE,
    _IS_AUXILIARY,
    _MARK,
    _MEMO,
    _NUMBER,
    _OWN_REFERENCE,
    _PEAK,
    _PEAK_AGAIN,
    _REFERENCES,
    _SIZES,
    _STEP,
)
from memcli.engines.torch.memory.model import Marks, TorchModel
from memcli.results.live_peak import FEATURE_MAPS, GRADIENTS, RECOMPUTED, LivePeak, LiveTensor

# The step that what belongs to none is counted to: the loss and its own gradient.
LOSS = -1


class _Temporary(NamedTuple):
    """A tensor that every plan has."""

    size: int
    step: int  # that took it, in its forward or its backward; LOSS


def torch_live_at_peak(model: TorchModel, marks: Marks) -> LivePeak:
    """The tensors alive when most bytes are, under a plan.

    ``LiveTensor.entry`` is the storage's number, -1 for gradients and temporaries, of which
    ``node`` is the step that they go back through; else the step that makes it. What operators
    take for themselves while they run is a gradient here in either pass, and recomputed in a
    recomputation. Sizes are those of the model: rounded up where its allocator does so.

    Raises:
        ValueError: the plan recomputes without bound.
    """
    marks = model.as_run(np.ascontiguousarray(marks, np.uint8))
    cost = model.evaluate(marks)
    if not cost.feasible:
        raise ValueError("the plan recomputes more often than is worth counting")
    p = model.program
    if not len(p.operations):
        return LivePeak(0, LOSS, "forward")
    at = cost.peak_at
    recomputing = int(p.operations[at, _CODE]) == kernels.UNPACKED
    temporaries, own, correction, step, backward = _temporaries(model, at, recomputing)
    tensors = []
    if recomputing:
        depth = _stop_at_recomputation(model, marks, at, cost.live_peak_bytes)
    else:
        _walk(model, marks, at, cost.recomputations)
    tensors += _storages(model, at)
    if recomputing:
        held, step, size = _frames(model, depth)
        tensors += [
            LiveTensor(s, _step_of(model, s), RECOMPUTED, int(p.storages[s, _AGAIN])) for s in held
        ]
        tensors.append(LiveTensor(-1, step, RECOMPUTED, size))
    made = _made_sizes(model, step) if own else []
    for number, item in temporaries.items():
        part = GRADIENTS
        if number in own and item.size in made:
            made.remove(item.size)
            part = FEATURE_MAPS
        tensors.append(LiveTensor(-1, item.step, part, item.size))
    if correction:
        tensors.append(LiveTensor(-1, step, GRADIENTS, correction))
    running = "recomputation" if recomputing else "backward" if backward else "forward"
    return LivePeak(at, step, running, [t for t in tensors if t.size])


def _walk(model: TorchModel, marks: Marks, until: int, limit: int) -> None:
    """Leaves the model's state as it is before an operation, or where ``limit`` stops it."""
    program = model.program._replace(operations=model.program.operations[:until])
    kernels.walk(program, model.state, marks, limit, np.zeros(0, np.int64))


def _stop_at_recomputation(model: TorchModel, marks: Marks, at: int, peak: int) -> int:
    """State as it is when the recomputation begins that reaches the peak; its depth in frames."""
    low, high = 0, 1
    model.evaluate(marks)
    high = int(kernels.recomputations(model.state).sum())
    # The least number of recomputations, that many allowed, whose peak is the whole step's.
    while low < high:
        middle = (low + high) // 2
        _walk(model, marks, at + 1, middle)
        if int(model.state.live[_PEAK]) >= peak:
            high = middle
        else:
            low = middle + 1
    _walk(model, marks, at + 1, low - 1)
    return int(model.state.live[_DEPTH])


def _storages(model: TorchModel, until: int) -> list[LiveTensor]:
    """What steps made, and what was recomputed, in the state that the walk left."""
    p, state = model.program, model.state
    codes, numbers = p.operations[:until, _CODE], p.operations[:until, _NUMBER]
    called = np.zeros(len(p.steps) - 1, bool)
    called[numbers[codes == kernels.CALL]] = True
    there = called[p.storages[:, _STEP]]
    unused = np.zeros(len(p.storages), bool)
    unused[numbers[codes == kernels.UNUSED]] = True
    dropped = state.storages[:, _MARK] != 0
    auxiliary = p.storages[:, _IS_AUXILIARY] == 1
    kept = there & np.where(dropped, ~unused & ~auxiliary, state.storages[:, _REFERENCES] > 0)
    own = np.zeros(len(p.handle_storage), bool)
    own[numbers[codes == kernels.UNPACKED]] = True
    own[numbers[codes == kernels.DONE]] = False
    own &= state.handles[:, _HELD] == _OWN_REFERENCE
    tensors = [
        LiveTensor(s, _step_of(model, s), FEATURE_MAPS, int(p.storages[s, _BYTES]))
        for s in np.flatnonzero(kept).tolist()
    ]
    again = [
        *np.flatnonzero(there & (state.storages[:, _INSTANCE] > 0)).tolist(),
        *p.handle_storage[own].tolist(),
    ]
    tensors += [
        LiveTensor(s, _step_of(model, s), RECOMPUTED, int(p.storages[s, _AGAIN])) for s in again
    ]
    return tensors


def _frames(model: TorchModel, depth: int) -> tuple[list[int], int, int]:
    """Of a recomputation under way: storages that are held for it, its step, and its bytes."""
    p, state = model.program, model.state
    held = []
    for level in range(depth + 1):
        step, reached = int(state.frames[level, 0]), int(state.frames[level, 1])
        # of the frames below the top, the last group is what the frame above makes
        end = int(state.frames[level + 1, 4]) if level < depth else reached
        row = p.inputs[int(p.steps[step, _INPUTS]) : end].tolist()
        held += [s for s in row if state.storages[s, _MARK] != 0 and state.storages[s, _MEMO] == 0]
    step = int(state.frames[depth, 0])
    made = slice(int(p.steps[step, _FIRST]), int(p.steps[step + 1, _FIRST]))
    inside = p.storages[made, _IS_AUXILIARY] * (state.storages[made, _MARK] != 0)
    return held, step, int(p.steps[step, _PEAK_AGAIN + int(inside.any())])


def _step_of(model: TorchModel, storage: int) -> int:
    return int(model.program.storages[storage, _STEP])


def _made_sizes(model: TorchModel, step: int) -> list[int]:
    if step < 0:
        return []
    p = model.program
    return p.storages[p.steps[step, _FIRST] : p.steps[step + 1, _FIRST], _BYTES].tolist()


def _temporaries(
    model: TorchModel, at: int, before: bool
) -> tuple[dict[int, _Temporary], set[int], int, int, bool]:
    """What every plan has at an operation's highest moment; ``before``: when it begins.

    Also which of it a call under way took, bytes that the model counts and that belong to no
    single tensor, the step at work, and whether it is the backward pass.
    """
    trace, block = model.trace, model.block
    sizes = (-(-trace.event_bytes // block) * block).tolist()
    until = model.events_until
    start = until[at - 1] if at else 0
    high = 0 if before else int(model.program.operations[at, _SIZES])
    alive: dict[int, _Temporary] = {}
    own: set[int] = set()
    step, correction, plain = LOSS, 0, 0
    again = backward = False
    # Results are taken by a call as well, and their release is not in the record.
    freed = set(trace.numbers[trace.kinds == events.FREED].tolist())
    for i, (kind, number) in enumerate(
        zip(trace.kinds.tolist(), trace.numbers.tolist(), strict=True)
    ):
        if i >= start and (plain >= high or i >= until[at]):
            break
        if kind in (events.AGAIN, events.AGAIN_END):
            again, plain = kind == events.AGAIN, 0
        elif again:
            continue
        elif kind in (events.ALLOCATED, events.FREED):
            change = sizes[i] if kind == events.ALLOCATED else -sizes[i]
            plain += change if i >= start else 0
            own.discard(number)
            if kind == events.ALLOCATED:
                alive[number] = _Temporary(sizes[i], step)
                if not backward:
                    own.add(number)
            elif alive.pop(number, None) is None:
                correction += change
        elif kind == events.BEGIN:
            step = number
            own.clear()
        elif kind == events.BACKWARD:
            step, backward = number, True
            own.clear()
        elif kind == events.END:
            correction -= _take_results(model, number, alive, own, freed)
            own.clear()
    return alive, own, correction, step, backward


def _take_results(
    model: TorchModel, step: int, alive: dict[int, _Temporary], own: set[int], freed: set[int]
) -> int:
    """Takes a call's results off the temporaries; bytes of those that are not among them."""
    missing = 0
    rest = sorted(own, key=lambda number: (number in freed, number))
    for size in _made_sizes(model, step):
        found = next((n for n in rest if alive[n].size == size), None) if size else None
        if found is not None:
            rest.remove(found)
            del alive[found]
        else:
            missing += size
    return missing
