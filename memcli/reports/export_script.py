"""The script of ``memcli export``: what to wrap, and the code that wraps it, in one file."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from pathlib import Path

from memcli.quoting import printable
from memcli.reports import emitted
from memcli.reports.tables import percent
from memcli.results.exported import Exported, WrappedGroup
from memcli.units import format_size
from memcli.version import __version__

_PLAN = re.compile(r"^# <plan>\n.*?^# </plan>\n", re.MULTILINE | re.DOTALL)
_WITH = {
    "torch": "torch.utils.checkpoint",
    "tensorflow": "tf.recompute_grad",
    "jax": "jax.checkpoint",
}
_WHAT = {"torch": "module", "tensorflow": "layer", "jax": "scope"}
_USE = {
    "torch": """    from {module} import recompute
    model = recompute(model)          # then train it as before""",
    "tensorflow": """    from {module} import recompute
    training = recompute(model)       # the same layers and weights
    training.compile(...); training.fit(...); model.save(...)""",
    "jax": """    from {module} import recompute
    step = jax.jit(jax.value_and_grad(recompute(loss)))

Operations are told by their scopes: jax.named_scope, modules of Flax, layers of Keras.""",
}
_WHOLE = (
    "What goes into a group and comes out of it stays, what is between is dropped, and all of it "
    "is recomputed, once, when the backward pass comes to it."
)
_DIFFERS = {
    "torch": "The plan itself is finer: memcli.torch.apply(planned file, model) follows it "
    f"operator by operator. {_WHOLE} What SAVED names stays all the same. BatchNorm's statistics "
    "are updated once: the code below sees to it, plain torch.utils.checkpoint does not.",
    "tensorflow": f"The plan itself is finer, operator by operator. {_WHOLE} BatchNorm's "
    "statistics are updated once, and Dropout draws the same masks: the code below sees to it, "
    "plain tf.recompute_grad does not.",
    "jax": f"The plan itself is finer, operator by operator. {_WHOLE}",
}
_MOST = 1 << 16


def export_script(exported: Exported, module: str = "recompute_plan") -> str:
    """The script's text.

    Args:
        exported: the groups.
        module: the name under which it will be imported.
    """
    name = f"recompute_{exported.target}.py"
    source = (Path(emitted.__path__[0]) / name).read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    rest = "".join(lines[tree.body[0].end_lineno or 1 :])
    rest = _PLAN.sub(lambda _: _constants(exported), rest)
    return f'"""{header(exported, module)}"""\n{rest}'


def header(exported: Exported, module: str) -> str:
    """What the script says of itself."""
    e = exported
    count = len(e.groups)
    what = _WHAT[e.target]
    shapes = "; ".join(f"{_safe(n)} {','.join(map(str, s))}" for n, s in e.analysis.inputs.items())
    rows = "\n".join(
        f"    {label:<12}{format_size(c.live_peak_bytes):>14}   "
        f"{percent(e.fraction(c)):>6} {percent(e.time_fraction(c)):>6}"
        for label, c in (("as it is", e.baseline), ("this file", e.cost), ("the plan", e.planned))
    )
    written = (
        f"Written by memcli {__version__} from the plan in {_safe(e.source.name)}: {count} "
        f"group{'s' if count != 1 else ''} of {what}s recomputed in the backward pass."
    )
    figures = (
        f"Memory of a training step at {shapes or 'the shapes of the plan'} ({e.analysis.dtype}), "
        f"feature maps and their gradients, as PyTorch on {e.plan.device} takes it, and what is "
        "recomputed, in parts of a forward pass's FLOPs and of its time by the roofline:"
    )
    return "\n\n".join(
        [
            f"Recomputation by {_WITH[e.target]} for {_safe(e.plan.original_name)}.",
            _filled(written),
            _USE[e.target].format(module=module),
            _filled(figures),
            rows,
            _filled(_DIFFERS[e.target]) + "\n",
        ]
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, 99, break_on_hyphens=False, break_long_words=False)


def _safe(text: str) -> str:
    """Text of the user's that cannot end the docstring, or hide in it."""
    return printable(text[:200]).replace("\\", "\\\\").replace('"', "'")


def _constants(exported: Exported) -> str:
    lines = [f"# {_WHAT[exported.target].capitalize()}s that are recomputed together."]
    lines.append("GROUPS: list[tuple[str, ...]] = [")
    for group in exported.groups:
        lines += _entry(group)
    lines.append("]")
    if exported.target == "torch":
        lines.append("# What stays all the same: {first module of a group: {kind: its calls}}.")
        lines.append("SAVED: dict[str, dict[str, tuple[int, ...]]] = {")
        for group in exported.groups:
            if group.saved:
                calls = ", ".join(f"{_literal(k)}: {_tuple(v)}" for k, v in group.saved.items())
                lines.append(f"    {_literal(group.scopes[0])}: {{{calls}}},")
        lines.append("}")
    else:
        lines.append("# What every group makes for itself, rather than hold on to it.")
        lines += ["REPEATED: tuple[str, ...] = (", *_wrapped(exported.repeated, "    "), ")"]
    return "\n".join(lines) + "\n"


def _entry(group: WrappedGroup) -> list[str]:
    said = f"    # {group.operators} operators, {format_size(group.dropped_bytes)} not kept"
    names = _wrapped(group.scopes, "        ")
    if len(names) == 1 and len(names[0]) < 96:
        comma = "," if len(group.scopes) == 1 else ""
        return [said, f"    ({names[0].strip().removesuffix(',')}{comma}),"]
    return [said, "    (", *names, "    ),"]


def _wrapped(names: list[str], indent: str) -> list[str]:
    """Names as Python strings, a hundred columns at most."""
    lines: list[str] = []
    line = indent
    for name in names:
        text = f"{_literal(name)},"
        if line != indent and len(line) + len(text) + 1 > 100:
            lines.append(line)
            line = indent
        line += text if line == indent else f" {text}"
    return [*lines, line] if line != indent else lines


def _literal(name: str) -> str:
    """A name as a Python string: JSON's escapes are Python's, too."""
    return json.dumps(name[:_MOST])


def _tuple(numbers: list[int]) -> str:
    return f"({', '.join(map(str, numbers))},)"
