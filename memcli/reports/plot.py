"""Memory against recomputation as a picture, with the frontier drawn: SVG, PNG or a page."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from memcli.errors import BadInput, EngineFailed
from memcli.quoting import shown_path
from memcli.reports.model_facts import COST_WORDS
from memcli.reports.tables import clip
from memcli.results.compared import Comparison, Row
from memcli.units import MIB

ENDINGS = ("svg", "png", "html")

_SIZE = (9.0, 5.6)  # inches
_PNG_DPI = 150
_LABEL_WIDTH = 26  # characters of a label's line
_COLOURS = {"frontier": "#0b6e4f", "other": "#8a8f98", "baseline": "#b3261e", "text": "#1f2328"}


@dataclass
class Point:
    """Rows that are drawn at one place. ``x`` in MiB, ``y`` in percent of a forward pass."""

    x: float
    y: float
    label: str
    on_frontier: bool


def plot_kind(path: str) -> str:
    """``svg``, ``png`` or ``html``: what the ending of ``path`` asks for.

    Raises:
        BadInput: another ending.
    """
    kind = PurePath(path).suffix.lower().lstrip(".")
    if kind not in ENDINGS:
        raise BadInput(
            f"--plot {shown_path(path)}: the ending says which kind of file to write",
            "end it in .svg, .png or .html",
        )
    return kind


def require_matplotlib() -> None:
    """Raises EngineFailed where matplotlib, which draws, cannot be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise EngineFailed(
            f"--plot needs matplotlib, which cannot be imported: {error}",
            "pip install 'memcli[plot]'",
        ) from None


def points(rows: Sequence[Row]) -> list[Point]:
    """One point for all rows with the same figures, by memory; what does not fit is left out."""
    places: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        if row.feasible and row.planned_bytes is not None and row.time_fraction is not None:
            place = (row.planned_bytes / MIB, 100 * row.time_fraction)
            places.setdefault(place, []).append(row)
    return [
        Point(x, y, label_of(same), any(row.on_frontier for row in same))
        for (x, y), same in sorted(places.items())
    ]


def label_of(rows: Sequence[Row]) -> str:
    """Names of the rows at one point: strategies, then budgets, in short lines."""
    words = [row.strategy for row in rows if row.budget is None]
    within: dict[str, list[str]] = {}
    for row in rows:
        if row.budget is not None:
            within.setdefault(row.strategy, []).append(row.budget)
    for strategy, budgets in within.items():
        first, *rest = budgets
        words += [f"{strategy} ≤{first}", *(f"≤{budget}" for budget in rest)]
    lines = [""]
    for number, word in enumerate(words):
        word += "," if number + 1 < len(words) else ""
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _LABEL_WIDTH:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def draw(compared: Comparison, kind: str) -> bytes:
    """The picture as an SVG or PNG file; the same figures give the same bytes.

    Needs no display.

    Args:
        compared: what is shown.
        kind: ``svg`` or ``png``.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": "memcli", "svg.fonttype": "path", "font.size": 9.0}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_SIZE, dpi=100)
        FigureCanvasAgg(figure)
        _compose(figure, compared)
        out = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
        figure.savefig(out, format=kind, dpi=_PNG_DPI, metadata=metadata)
    return out.getvalue()


def _compose(figure: Any, compared: Comparison) -> None:
    axes = figure.add_axes((0.085, 0.185, 0.885, 0.67))
    found = points(compared.rows)
    base = compared.baseline.pool_bytes / MIB
    right = 1.08 * max([base, *(p.x for p in found)])
    top = 1.18 * max([10.0, *(p.y for p in found)])
    axes.set_xlim(0, right)
    axes.set_ylim(-0.06 * top, top)
    axes.set_xlabel("memory for feature maps and their gradients (MiB)")
    axes.set_ylabel(f"recomputation (% of a forward pass's {COST_WORDS[compared.cost_of]})")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.grid(True, color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if base:
        share = axes.secondary_xaxis(
            "top", functions=(lambda x: 100 * x / base, lambda part: part * base / 100)
        )
        share.set_xlabel("% of the baseline")
        share.spines["top"].set_visible(False)
    name = shown_path(compared.source.name)
    inputs = list(compared.analysis.inputs.items())
    fed = "; ".join(f"{n} {','.join(map(str, s))}" for n, s in inputs[:2])
    fed += f"; and {len(inputs) - 2} more" if len(inputs) > 2 else ""
    figure.text(0.085, 0.955, clip(name, 60), fontsize=11, weight="bold", parse_math=False)
    figure.text(0.97, 0.955, clip(fed, 60), ha="right", color=_COLOURS["other"], parse_math=False)

    bound = compared.lower_bound / MIB
    axes.axvline(
        bound,
        color=_COLOURS["other"],
        linestyle=":",
        linewidth=1.2,
        label="lower bound of every plan",
    )
    axes.axvline(base, color=_COLOURS["baseline"], linestyle="--", linewidth=1.0, zorder=1)
    best = [p for p in found if p.on_frontier]
    if best:
        axes.step(
            [*(p.x for p in best), right],
            [*(p.y for p in best), best[-1].y],
            where="post",
            color=_COLOURS["frontier"],
            linewidth=1.6,
            zorder=2,
            label="frontier",
        )
    for group, on_frontier, colour, label in (
        (best, True, _COLOURS["frontier"], "on the frontier"),
        ([p for p in found if not p.on_frontier], False, "white", "another row is better"),
    ):
        if group:
            axes.plot(
                [p.x for p in group],
                [p.y for p in group],
                linestyle="none",
                marker="o",
                markersize=6.5,
                markerfacecolor=colour,
                zorder=4,
                label=label,
                markeredgecolor=_COLOURS["frontier" if on_frontier else "other"],
            )
    axes.plot(
        [base],
        [0],
        linestyle="none",
        marker="D",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor=_COLOURS["baseline"],
        markeredgewidth=1.4,
        zorder=5,
        label="baseline",
    )
    labelled = [(p.x, p.y, p.label) for p in found]
    if not any(p.x == base and p.y == 0 for p in found):
        labelled.append((base, 0.0, "baseline"))
    corners = _step_corners([(p.x, p.y) for p in best] + [(right, p.y) for p in best[-1:]])
    lines = [corners, [(base, -top), (base, top)], [(bound, -top), (bound, top)]]
    _place_labels(figure, axes, labelled, lines, (base, 0.0))
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="lower center",
        ncols=5,
        frameon=False,
        bbox_to_anchor=(0.5, 0.005),
    )


def _place_labels(
    figure: Any,
    axes: Any,
    labelled: Sequence[tuple[float, float, str]],
    lines: Sequence[Sequence[tuple[float, float]]],
    baseline: tuple[float, float],
) -> None:
    """Put each label at the nearest free place around its point, with a line to it where far.

    A place is free where the label's box is within the axes and touches no other label, no point
    and none of ``lines``, whose pieces are upright or level. Where none is free, the one that
    touches least is taken.
    """
    from matplotlib.transforms import Bbox

    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    spots = [axes.transData.transform((x, y)) for x, y, _ in labelled]
    # a marker is 10 pixels wide, that of the baseline graph 17
    halves = [5 if (x, y) != baseline else 9 for x, y, _ in labelled]
    taken = [
        Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half)
        for (x, y), half in zip(spots, halves, strict=True)
    ]
    for line in lines:
        path = [axes.transData.transform(corner) for corner in line]
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            low, high = (min(x0, x1) - 1, min(y0, y1) - 1), (max(x0, x1) + 1, max(y0, y1) + 1)
            taken.append(Bbox([low, high]))
    leaders: list[tuple[Any, Any]] = []
    for (x, y, text), spot in zip(labelled, spots, strict=True):
        note = axes.annotate(
            text,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=_COLOURS["text"],
            ha="center",
            va="center",
            parse_math=False,
            zorder=6,
            linespacing=1.1,
        )
        size = note.get_window_extent(renderer)
        width, height = size.width + 4, size.height + 3
        best: tuple[float, float, float, float, Any] | None = None
        for distance, angle in _places():
            dx = math.cos(angle) * (distance * scale + width / 2)
            dy = math.sin(angle) * (distance * scale + height / 2)
            centre = (spot[0] + dx, spot[1] + dy)
            box = Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)
            cost = _outside(box, frame) + sum(_shared(box, other) for other in taken)
            if distance > 12:
                crossed = sum(_crosses(spot, centre, a, b) for a, b in leaders)
                cost += 200 * crossed
                cost += sum(20 for other in taken[: len(spots)] if _hits(spot, centre, other))
            if best is None or cost < best[0] - 1e-9:
                best = (cost, dx / scale, dy / scale, distance, box)
            if cost == 0:
                break
        assert best is not None
        note.xyann = (best[1], best[2])
        taken.append(best[4])
        if best[3] > 12:
            end = ((best[4].x0 + best[4].x1) / 2, (best[4].y0 + best[4].y1) / 2)
            leaders.append((spot, end))
            _leader(axes, note, x, y)


def _leader(axes: Any, note: Any, x: float, y: float) -> None:
    """A thin line from a point to its label."""
    axes.annotate(
        "",
        (x, y),
        xytext=note.xyann,
        textcoords="offset points",
        zorder=3,
        arrowprops={
            "arrowstyle": "-",
            "color": _COLOURS["other"],
            "linewidth": 0.7,
            "shrinkA": 6,
            "shrinkB": 4,
        },
    )


def _places() -> list[tuple[float, float]]:
    """Distances (points) and angles around a point, the nearest and most usual first."""
    angles = [45, 135, 315, 225, 90, 270, 0, 180, 22, 158, 338, 202, 67, 113, 293, 247]
    return [
        (distance, math.radians(angle))
        for distance in (4, 8, 14, 22, 32, 44, 58, 74, 92, 112)
        for angle in angles
    ]


def _step_corners(path: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    corners: list[tuple[float, float]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(path):
        corners += [(x0, y0), (x1, y0), (x1, y1)]
    return corners


def _shared(one: Any, other: Any) -> float:
    """The area that two boxes share, in square pixels."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0


def _outside(box: Any, frame: Any) -> float:
    """How much of a box is not within the frame, in square pixels, many times over."""
    return 10.0 * max(0.0, box.width * box.height - _shared(box, frame) - 1e-6)


def _hits(start: Any, end: Any, box: Any) -> bool:
    """Whether a line touches a box that its start is not in."""
    if box.x0 <= start[0] <= box.x1 and box.y0 <= start[1] <= box.y1:
        return False
    steps = 24
    return any(
        box.x0 <= start[0] + (end[0] - start[0]) * t / steps <= box.x1
        and box.y0 <= start[1] + (end[1] - start[1]) * t / steps <= box.y1
        for t in range(steps + 1)
    )


def _crosses(a: Any, b: Any, c: Any, d: Any) -> bool:
    """Whether the lines ab and cd cross."""

    def side(p: Any, q: Any, r: Any) -> float:
        return float((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
