"""The process that solves an integer program for :class:`memcli.solve.proof.Proof`.

The request comes on standard input as one JSON object; standard output has a line of JSON for each
better bound, and a last one with what was found; what a library prints goes to standard error.
Imports little, so that it starts soon.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from memcli.graph.cost_graph import CostGraph
from memcli.parent_process import die_with_parent
from memcli.solve.integer_program import ScheduleProgram


def main(parent: int) -> None:
    """The process, started by ``parent``: a request from standard input, bounds to standard output.

    It ends with the thread that started it.
    """
    die_with_parent(parent)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    n = len(asked["seconds"])
    graph = CostGraph.build(list(range(n)), asked["seconds"], asked["sizes"], asked["reads"])
    most = float("inf") if asked["most_extra"] is None else asked["most_extra"]
    program = ScheduleProgram(graph, asked["budget"], most, asked["steps"])
    said = 0.0

    def say(extra: float) -> None:
        nonlocal said
        if extra > said:
            said = extra
            print(json.dumps({"extra": extra}), file=answers)

    bound = program.solve(asked["time_limit"], say)
    result: dict[str, Any] = {"extra": bound.extra, "infeasible": bound.infeasible}
    if bound.stages is not None and bound.finished:
        result["stages"] = bound.stages
    print(json.dumps(result), file=answers)
