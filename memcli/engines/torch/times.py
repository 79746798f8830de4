"""The process that times a graph's functions in PyTorch, one by one, as recomputations run them.

Each kind of step is run as the executor runs it again: the function that stands for it then,
without gradients, or as if they were asked for where it needs that to take the same kernels. It is
the forward pass alone, on tensors of the shapes, strides and types that the graph has. What the
function makes is allocated at every run, and let go, as in training; so it is the median of the
runs that counts. The executor's own bookkeeping is no part of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memcli.engines.kind_timer import KindTimer, SkippedKind, timed_runs, timing_order
from memcli.engines.live_memory import available_bytes
from memcli.engines.operator_times import NAMES
from memcli.engines.processes.parent_side import Progress
from memcli.engines.processes.worker import worker_main
from memcli.engines.torch.build import converted, described
from memcli.engines.torch.kinds import StepKind, kinds_of_steps, values_like
from memcli.engines.torch.recompute import capturing
from memcli.engines.torch.step import device_of

_BURST_SECONDS = 200e-6  # short functions are run several times between two looks at the clock
_MOST_BURST = 64


def handle(job: dict[str, Any], workdir: Path, progress: Progress) -> dict[str, Any]:
    """Times what the job asks for.

    The job has what :func:`memcli.engines.torch.build.converted` needs, ``device`` (``cpu`` or
    ``gpu:N``), ``steps`` ({step: [seconds expected, bytes at its peak]}; others make nothing, so
    nothing is ever run again for them), ``done`` (numbers of kinds not to time), ``limit``,
    ``repeats``, and ``log``: see :mod:`memcli.engines.operator_times`. The first row of the log is
    ``{"kinds": [{"number", "op", "roofline"}], "kind_of": {step: number}}``.

    Raises:
        BadInput: operators that are not supported.
        EngineFailed: no such card.
    """
    device = device_of(str(job.get("device", "cpu")), "--cost roofline needs none")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    progress("converting for PyTorch", None)
    with FakeTensorMode():
        found = converted(job, fake=True)
        inputs = [torch.empty(i.shape, dtype=i.dtype) for i in found.inputs]
        steps = kinds_of_steps(found.module, inputs)
    operators = {row["step"]: row["op"] for row in described(found)}
    kinds, rows, kind_of = _grouped(steps, operators, job["steps"])
    done = set(job.get("done", ()))
    numbers = [kind_of[step.step.name] for step in steps]
    order = [rows[k] for k in timing_order(rows, numbers) if k not in done]
    with Path(job["log"]).open("a") as log:

        def say(**row: Any) -> None:
            log.write(json.dumps(row) + "\n")
            log.flush()

        say(kinds=rows, kind_of=kind_of)
        with torch.no_grad():
            _Timer(kinds, order, device, job, say).run(progress)
    return {}


def _grouped(
    steps: list[StepKind], operators: Mapping[str, str], expected: Mapping[str, list[float]]
) -> tuple[list[StepKind], list[dict[str, Any]], dict[str, int]]:
    """The kinds, what is said of each, and the kind of each step by name."""
    kinds: list[StepKind] = []
    rows: list[dict[str, Any]] = []
    number_of: dict[str, int] = {}
    kind_of = {}
    for step in steps:
        name = step.step.name
        if name not in expected:
            kind_of[name] = NAMES
            continue
        number = number_of.setdefault(step.key, len(kinds))
        kind_of[name] = number
        if number == len(kinds):
            kinds.append(step)
            seconds, working = expected[name]
            op = operators.get(name) or name
            rows.append({"number": number, "op": op, "roofline": seconds, "bytes": working})
    return kinds, rows, kind_of


class _Timer(KindTimer):
    """Times kinds of steps on one device."""

    def __init__(
        self,
        steps: list[StepKind],
        order: list[dict[str, Any]],
        device: torch.device,
        job: Mapping[str, Any],
        say: Callable[..., None],
    ) -> None:
        super().__init__(order, job, say)
        self.steps = steps
        self.device = device
        self.wait: Callable[[], object] = lambda: None
        if device.type == "cuda":
            self.wait = torch.cuda.synchronize
        self.generator = torch.Generator().manual_seed(int(job.get("seed", 0)))
        one = torch.ones(1, device=device)
        self.launch = self._median(lambda: torch.neg(one), 1.0)[0]

    def time_kind(self, kind: Mapping[str, Any], left: float) -> tuple[float, float]:
        """Seconds of one run, the median of several."""
        found = self.steps[kind["number"]]
        if found.values is None:
            raise SkippedKind("cannot be run alone")
        self.check_memory(found.input_bytes + int(kind["bytes"]))
        values = values_like(found, self.device, self.generator)
        args, kwargs = found.step.arguments(values)
        again = found.step.again

        def run() -> None:
            with capturing([]) if found.step.with_gradients else contextlib.nullcontext():
                again(*args, **kwargs)

        return self._median(run, left)

    def free_bytes(self) -> int:
        """Of the machine, or of the card."""
        if self.device.type == "cpu":
            return available_bytes()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def reason(self, error: Exception) -> str:
        """As an engine says it; a card that an assertion stopped runs nothing any more."""
        self.wait()
        if isinstance(error, torch.OutOfMemoryError) or re.search(
            r"out of memory|can't allocate memory", str(error)
        ):
            return "memory"
        return super().reason(error)

    def _median(self, run: Callable[[], object], left: float) -> tuple[float, float]:
        """By the clock, and of the processor."""
        run()
        self.wait()
        before = time.perf_counter()
        run()
        self.wait()
        once = time.perf_counter() - before
        count = max(1, min(_MOST_BURST, int(_BURST_SECONDS / max(once, 1e-7))))

        def burst() -> None:
            for _ in range(count):
                run()

        clock, work = timed_runs(burst, self.wait, self.repeats, left - 2 * once)
        return statistics.median(clock) / count, statistics.median(work) / count


if __name__ == "__main__":
    worker_main(handle)
