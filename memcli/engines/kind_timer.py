"""The part of timing operators that all engines share: what runs in the engine's own process."""

from __future__ import annotations

import gc
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memcli.engines.processes.parent_side import Progress
from memcli.engines.processes.worker import engine_text

_ENOUGH_SECONDS = 0.05  # repeats of one operator end here, once there were a few
_MOST_REPEATS = 50
_USABLE = 0.6  # of the free memory; libraries' buffers and work spaces come on top


class SkippedKind(Exception):
    """A kind of operator that is not run, and why."""


class KindTimer(ABC):
    """Times kinds of operators one after the other, as long as the time lasts.

    ``kinds``: rows with ``number``, ``op`` and ``roofline`` (seconds expected), in the order to
    time them. ``job``: ``limit`` (seconds for all) and ``repeats`` (timed runs of each). ``say``
    is told what is found, in the rows that :mod:`memcli.engines.operator_times` reads: one before
    each start and one for each result, so that nothing is lost where the engine crashes.
    """

    # What an engine raises for an operator that it does not run.
    refusals: tuple[type[Exception], ...] = (Exception,)
    launch: float  # seconds of starting an operator that does nothing

    def __init__(
        self, kinds: Sequence[Mapping[str, Any]], job: Mapping[str, Any], say: Callable[..., None]
    ) -> None:
        self.kinds = kinds
        self.say = say
        self.repeats = max(1, int(job.get("repeats", 5)))
        self.limit = float(job["limit"])
        # measured over expected, by operator
        self._ratios: dict[str, list[float]] = {}

    @abstractmethod
    def time_kind(self, kind: Mapping[str, Any], left: float) -> tuple[float, float]:
        """Seconds of one run within a graph, by the clock and of the processor.

        Args:
            kind: what to run, as the job describes it.
            left: seconds that all of this may take.

        Raises:
            SkippedKind: it is not to be run.
        """

    @abstractmethod
    def free_bytes(self) -> int:
        """Memory of the device that is free now."""

    def reason(self, error: Exception) -> str:
        """Why there is no time, of an error that is among ``refusals``.

        Raises it again where the engine runs nothing any more.
        """
        return engine_text(str(error)) or type(error).__name__

    def check_memory(self, needed: int) -> None:
        """Raises SkippedKind where there is not enough room for ``needed`` bytes."""
        if needed > _USABLE * self.free_bytes():
            raise SkippedKind("memory")

    def run(self, progress: Progress) -> None:
        """Times every kind, or says why not."""
        started = time.monotonic()
        self.say(launch=self.launch)
        for done, kind in enumerate(self.kinds):
            progress(f"timing operators ({done} of {len(self.kinds)})", done / len(self.kinds))
            left = self.limit - (time.monotonic() - started)
            # a warm-up and two runs are the least
            if left <= 0 or 3 * self._expected(kind) > left:
                self.say(number=kind["number"], skipped="time")
                continue
            self.say(start=kind["number"])
            try:
                seconds, work = self.time_kind(kind, left)
            except SkippedKind as why:
                self.say(number=kind["number"], skipped=str(why))
            except MemoryError:
                self.say(number=kind["number"], skipped="memory")
            except self.refusals as error:
                self.say(number=kind["number"], skipped=self.reason(error))
            else:
                self.say(number=kind["number"], seconds=seconds, processor_seconds=work)
                self._ratios.setdefault(kind["op"], []).append(seconds / kind["roofline"])
            gc.collect()  # executors hang in cycles

    def _expected(self, kind: Mapping[str, Any]) -> float:
        """Seconds of one run, going by what was measured so far."""
        known = self._ratios.get(kind["op"]) or [r for rs in self._ratios.values() for r in rs]
        return float(kind["roofline"]) * (statistics.median(known) if known else 1.0)


def timed_runs(
    run: Callable[[], object], wait: Callable[[], object], repeats: int, left: float
) -> tuple[list[float], list[float]]:
    """Seconds of ``repeats`` runs (fewer where slow), clock and processor, after a warm-up.

    ``wait`` returns once the device is done with all that was started.

    Args:
        run: starts one run.
        wait: returns once the device is done with all that was started.
        repeats: runs.
        left: seconds that these runs may take.
    """
    started = time.perf_counter()
    run()
    wait()
    clock, work = [], []
    for count in range(max(repeats, _MOST_REPEATS)):
        before, work_before = time.perf_counter(), time.process_time()
        run()
        wait()
        now, work_now = time.perf_counter(), time.process_time()
        clock.append(now - before)
        work.append(work_now - work_before)
        spent = now - started
        # Very short ones may take more turns than were asked for: they are the noisy ones.
        if (count + 1 >= repeats and spent > _ENOUGH_SECONDS) or spent > 0.5 * left:
            break
    return clock, work


def timing_order(kinds: Sequence[Mapping[str, Any]], kind_of: Sequence[int]) -> list[int]:
    """Kinds in the order to time them: one of each operator first, then by what hangs on them.

    Args:
        kinds: as the job describes them.
        kind_of: the kind of each node, negative where it has none.
    """
    uses = Counter(kind_of)
    share = {k: uses[k] * kind["roofline"] for k, kind in enumerate(kinds)}
    # The cheapest of an operator tells its ratio, even if the time is up right after.
    cheapest: dict[str, int] = {}
    for k, kind in enumerate(kinds):
        least = kinds[cheapest[kind["op"]]]["roofline"] if kind["op"] in cheapest else math.inf
        if kind["roofline"] < least:
            cheapest[kind["op"]] = k
    first = sorted(cheapest.values(), key=lambda k: kinds[k]["roofline"])
    rest = sorted(set(share) - set(first), key=lambda k: -share[k])
    return first + rest
