"""What the tables of the systems before memcli are made of: the command line, run and read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
EXAMPLES = _HERE.parent / "examples"


@dataclass
class Line:
    """A network under one technique. ``estimated`` and ``measured`` in bytes, of feature maps and
    their gradients; ``again`` the FLOPs that are recomputed, as a part of one forward pass."""

    technique: str
    estimated: float
    measured: float | None = None
    again: float | None = None
    step_seconds: float | None = None
    bits_equal: bool | None = None
    published: float | None = None  # the original's own ratio for this technique


@dataclass
class Goal:
    """What memcli must show, with its figure in words, and whether it does."""

    text: str
    met: bool


@dataclass
class Outcome:
    """One system's block. ``lines[0]`` is the baseline; ratios are to its memory plus
    ``fixed`` bytes that no technique changes, where the published figure has them in it."""

    system: str
    network: str
    published: str
    lines: list[Line]
    goals: list[Goal] = field(default_factory=list)
    fixed: float = 0.0

    def ratio(self, line: Line) -> float:
        """Of a line's memory to that of the baseline: measured where both were."""
        base = self.lines[0]
        if line.measured is not None and base.measured is not None:
            return (line.measured + self.fixed) / (base.measured + self.fixed)
        return (line.estimated + self.fixed) / (base.estimated + self.fixed)

    def under(self, line: Line, most: float) -> None:
        """Note the goal that a line's ratio is under ``most``."""
        ratio = self.ratio(line)
        self.goals.append(Goal(f"{line.technique}: ratio {ratio:.3f}, under {most}", ratio < most))


@dataclass
class Workbench:
    """Runs commands in a folder of its own, and says which."""

    folder: Path
    say: Any
    shown: list[str] = field(default_factory=list)

    def script(self, name: str, *options: str) -> None:
        """One of the scripts in ``examples``."""
        self._run([sys.executable, str(EXAMPLES / name), *options])

    def memcli(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """The JSON object of a memcli command.

        Raises:
            SystemExit: the command failed; its own words are printed.
        """
        said = self._run([sys.executable, "-m", "memcli", *arguments, "--json"], ok)
        answer: dict[str, Any] = json.loads(said)
        return answer

    def _run(self, command: list[str], ok: tuple[int, ...] = (0,)) -> str:
        words = ["memcli" if word == "memcli" else Path(word).name for word in command[1:]]
        self.say(" ".join(word for word in words if word not in ("-m", "--json")))
        # plan notes its file as the newest plan; that is of no interest to the user
        environment = {**os.environ, "XDG_STATE_HOME": str(self.folder / "state")}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, text=True, capture_output=True
        )
        if done.returncode not in ok:
            raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr}")
        return done.stdout

    def torch_lines(
        self, model: str, batch: int, techniques: dict[str, list[str]], *, verify: bool
    ) -> list[Line]:
        """The ONNX file without a plan and under each technique's options.

        With ``verify`` a real step of each is trained on the CPU; without, only estimates.
        """
        lines: list[Line] = []
        for technique, options in techniques.items():
            out = f"{Path(model).stem}-{len(self.shown)}.onnx"
            self.shown.append(out)
            given = ["--batch", str(batch)]
            plan = self.memcli("plan", model, *given, *options, "-o", out, "--force")
            memory = plan["memory"]
            line = Line(technique, memory["planned_bytes"], again=plan["recompute"]["fraction"])
            base = Line("baseline", memory["baseline_bytes"])
            if verify:
                run = self.memcli("verify", out, *given, ok=(0, 1))
                line.measured = run["planned"]["measured_bytes"]
                line.bits_equal = run["ok"]
                base.measured = run["baseline"]["measured_bytes"]
            if not lines:
                lines.append(base)
            lines.append(line)
        return lines

    def time_steps(self, model: str, lines: list[Line]) -> None:
        """Step times of the file and of all that was planned from it, as ``lines`` have them.

        In turns in one process: ``step_seconds`` is the plan's ratio times the baseline's median.
        """
        command = [sys.executable, str(_HERE / "step_times.py"), model, *self.shown, "--json"]
        rows = json.loads(self._run(command))["rows"]
        for line, row in zip(lines, rows, strict=True):
            line.step_seconds = rows[0]["seconds"] * row["ratio"]
