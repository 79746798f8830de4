"""A comparison as one page that a browser shows without any network: the picture and the table."""

from __future__ import annotations

from html import escape

from memcli.quoting import printable, shown_path
from memcli.reports.compare_report import COLUMNS, cells, comparison_facts
from memcli.results.compared import Comparison

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2328; background: #fff; margin: 2rem auto;
       max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e6e8eb; text-align: left; }
.right { text-align: right; font-variant-numeric: tabular-nums; }
tr.frontier { background: #e8f4ef; }
dt { font-weight: 600; float: left; clear: left; min-width: 7rem; }
dd { margin: 0 0 .2rem 7.5rem; }
"""


def comparison_page(compared: Comparison, svg: bytes) -> bytes:
    """The page, in UTF-8.

    Args:
        compared: what is shown.
        svg: the picture as :func:`memcli.reports.plot.draw` gives it.
    """
    notes: list[str] = []
    base = compared.baseline.pool_bytes
    head = "".join(_cell("th", text, side) for text, side in COLUMNS)
    body = []
    for row in compared.rows:
        shown = zip(cells(row, base, notes), COLUMNS, strict=True)
        mark = ' class="frontier"' if row.on_frontier else ""
        body.append(f"<tr{mark}>{''.join(_cell('td', t, c[1]) for t, c in shown)}</tr>")
    facts = comparison_facts(compared)
    facts.append(("*", "on the frontier: no other row is better in memory and in cost"))
    facts += [(f"[{number}]", text) for number, text in enumerate(notes, 1)]
    listed = "\n".join(f"<dt>{escape(k)}</dt><dd>{escape(printable(v))}</dd>" for k, v in facts)
    name = escape(shown_path(compared.source.name))
    picture = svg.decode("utf-8")
    picture = picture[picture.index("<svg") :]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: memory and recomputation</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{name}: memory and recomputation</h1>
{picture}
<div class="wide">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{chr(10).join(body)}
</tbody>
</table>
</div>
<dl>
{listed}
</dl>
</body>
</html>
""".encode()


def _cell(tag: str, text: str, side: str) -> str:
    mark = ' class="right"' if side == "right" else ""
    return f"<{tag}{mark}>{escape(text)}</{tag}>"
