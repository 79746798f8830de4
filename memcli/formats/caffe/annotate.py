"""Plans in net definitions: comment lines, which Caffe passes over, put in and taken out again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from memcli.errors import BadInput
from memcli.formats.node_plan import NodePlan
from memcli.units import format_size

_MARKS = {"kept": "kept", "again": "recomputed once", "each": "recomputed at each need"}
_NOTE = "# memcli: "
_RECORD = "# memcli.plan "
# A mark of the byte order may stand before the first line.
_START = r"(?:^|(?<=\ufeff))[ \t]*# memcli"
_OURS = re.compile(_START + r"(?:: |\.plan )[^\n]*(?:\n|\Z)", re.MULTILINE)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_CARRIED = re.compile(_START + r"\.plan ([^\n]*)", re.MULTILINE)


def carried_plan(text: str, where: str) -> NodePlan | None:
    """The plan in a definition's comments; None without one.

    Raises:
        BadInput: it cannot be understood; the message begins with ``where``.
    """
    parts = [part.strip() for part in _CARRIED.findall(text)]
    return NodePlan.from_text("".join(parts), f"{where}: its plan") if parts else None


def without_plan(text: str) -> str:
    """The definition without the lines that a plan put in."""
    return _OURS.sub("", text)


def with_plan(
    text: str,
    plan: NodePlan,
    lines: Sequence[int],
    owners: Mapping[int, Sequence[str]],
    joined: Mapping[int, str],
) -> str:
    """The definition with the plan at its head, and a line before each layer on what it keeps.

    Everything else stays as it is, byte for byte.

    Args:
        text: the definition, without a plan.
        plan: the plan.
        lines: of the layer blocks, from 1.
        owners: {layer block: names and operators of its nodes}, as ``name:operator``.
        joined: {layer block: the layer that its own became a part of}.

    Raises:
        BadInput: the text has a line that looks like one of memcli's.
    """
    if _OURS.search(text):
        raise BadInput("its comments look like a plan of memcli", "plan the original anew")
    end = "\r\n" if "\r\n" in text else "\n"
    notes = {block: _summary(nodes, plan.marks) for block, nodes in owners.items()}
    notes |= {block: f"part of {name}" for block, name in joined.items()}
    before: dict[int, list[str]] = {}
    for block, note in sorted(notes.items()):
        if 0 <= block < len(lines):
            before.setdefault(lines[block], []).append(note)
    bom = "\ufeff" if text.startswith("\ufeff") else ""
    made = [bom, *(line + end for line in _head(plan))]
    for number, line in enumerate(_LINE.findall(text.removeprefix(bom)), start=1):
        indent = line[: len(line) - len(line.lstrip(" \t"))]
        made += [f"{indent}{_NOTE}{note}{end}" for note in before.get(number, [])]
        made.append(line)
    return "".join(made)


def _head(plan: NodePlan) -> list[str]:
    """What the plan is, for people, and the record."""
    device = "CUDA" if plan.device == "cuda" else "the CPU"
    planned, baseline = (plan.memory.get(f"{k}_bytes") for k in ("planned", "baseline"))
    lines = [
        f"{_NOTE}planned by memcli {plan.memcli_version} ({plan.strategy}) for PyTorch on {device}"
    ]
    if planned and baseline:
        again = plan.recompute.get("fraction", 0)
        lines.append(
            f"{_NOTE}{format_size(planned)} in place of {format_size(baseline)}, "
            f"{again:.0%} of a forward pass recomputed"
        )
    shapes = "; ".join(f"{n} {','.join(map(str, s))}" for n, s in plan.shapes.items())
    lines.append(f"{_NOTE}planned for {shapes}")
    lines.append(
        f"{_NOTE}comments to Caffe, which recomputes nothing; memcli verify and "
        "memcli.torch.load run the plan"
    )
    return lines + [f"{_RECORD}{line}" for line in _record_lines(plan)]


def _record_lines(plan: NodePlan) -> list[str]:
    """The record's JSON cut between its parts: blanks at the ends of lines mean nothing."""
    values = json.loads(plan.to_text())
    nodes = values.pop("nodes")

    def text(value: object) -> str:
        return json.dumps(value, separators=(",", ":"), sort_keys=True)

    fields = [f"{text(key)}:{text(value)}" for key, value in sorted(values.items())]
    rows = [f"{text(row)}," for row in nodes]
    if rows:
        rows[-1] = rows[-1][:-1]
    return ["{", *(f"{field}," for field in fields), '"nodes":[', *rows, "]}"]


def _summary(nodes: Sequence[str], marks: Mapping[str, str]) -> str:
    """What a layer keeps, by operator where it has several nodes."""
    by_mark: dict[str, list[str]] = {}
    for node in nodes:
        name, _, operator = node.rpartition(":")
        mark = marks.get(name, "kept").removesuffix("+inside")
        by_mark.setdefault(_MARKS[mark], []).append(operator)
    if len(by_mark) == 1:
        return next(iter(by_mark))
    parts = []
    for mark, operators in by_mark.items():
        counts = {op: operators.count(op) for op in operators}
        listed = ", ".join(f"{n} {op}" if n > 1 else op for op, n in counts.items())
        parts.append(f"{mark}: {listed}")
    return "; ".join(parts)
