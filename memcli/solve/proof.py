"""The integer program in a process of its own, beside the search.

HiGHS looks at its time limit only now and then, and cannot be stopped from a thread; a process
can, at once. See :mod:`memcli.solve.integer_program_process` for what they say to each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from memcli.solve.base import BestSchedule


class Proof:
    """Raises ``best.lower_extra``, or finds that nothing fits, until the context ends.

    ``steps`` are the stages' ends of the program. A process that cannot be started or fails proves
    nothing, and that is all: the search goes on.
    """

    def __init__(self, best: BestSchedule, steps: list[int], time_limit: float) -> None:
        self.best = best
        self.stages: list[list[int]] | None = None  # of the best solution, when finished
        graph = best.graph
        self._request = {
            "seconds": graph.seconds.tolist(),
            "sizes": graph.sizes.tolist(),
            "reads": [graph.inputs(v).tolist() for v in range(graph.n)],
            "budget": best.budget,
            "most_extra": best.extra if best.fits else None,
            "steps": steps,
            "time_limit": max(0.0, time_limit - best.elapsed),
        }
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Proof:
        # The child finds this very package, however the parent did.
        start = f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})"
        code = f"{start}; from memcli.solve.integer_program_process import main"
        code += f"; main({os.getpid()})"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError:
            return self
        self._thread.start()
        return self

    def wait(self, seconds: float) -> None:
        """Until it has finished, or for at most ``seconds``."""
        if self._process is not None:
            self._thread.join(max(0.0, seconds))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._thread.join()

    def _listen(self) -> None:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            with process.stdin as request:
                json.dump(self._request, request)
            for line in process.stdout:
                self._take(json.loads(line))
        except (OSError, ValueError):
            # It was killed, or died: what it said before stands.
            pass
        finally:
            process.stdout.close()

    def _take(self, said: dict[str, Any]) -> None:
        self.best.lower_extra = max(self.best.lower_extra, said["extra"])
        self.best.infeasible |= said.get("infeasible", False)
        self.stages = said.get("stages", self.stages)
