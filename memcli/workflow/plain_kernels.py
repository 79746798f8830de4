"""A published technique's plan that only oneDNN and cuDNN run, made for MXNet's plain kernels.

Marks may ask for a convolution's copy that nobody reads: MXNet runs it all the same, since the
convolution's gradient waits for it, with the request to write nothing. oneDNN takes as long as for
any other (profiled) and writes to a block of its own; MXNet's own kernel refuses. An identity
behind the convolution that is recomputed as well reads the copy, in its place and in its memory,
and is what a save barrier stands behind.
"""

from __future__ import annotations

from memcli.engines.analysis import analyze
from memcli.errors import BadInput
from memcli.formats.symbol_edits import insert_identities
from memcli.marks import AGAIN
from memcli.planners.base import Found
from memcli.workflow.variants import Variant, carried_over


def on_plain_kernels(variant: Variant, found: Found) -> tuple[Variant, Found]:
    """The plan with an identity behind each convolution whose copy nobody reads.

    As given where there is none, or where identities cannot do it.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    before = variant.analysis
    graph, flags = before.graph, found.plan.recompute
    unread = [v for v in before.model.unread_copies(flags) if graph.op(v) == "Convolution"]
    behind = {int(graph.position[v]): v for v in unread}
    if not behind or any(not 0 <= p < len(graph.file_names) for p in behind):
        return variant, found
    # merged nodes alike, so that they merge again
    merged = {p for p, stays in graph.alias.items() if stays in behind}
    raw, moved = insert_identities(variant.source.raw, behind.keys() | merged, suffix="_read")
    if any(raw["nodes"][moved[p] + 1]["inputs"][:1] != [[moved[p], 0, 0]] for p in behind):
        return variant, found  # nobody reads it but the caller
    request = before.request()
    try:
        after = analyze(raw, request, environment=before.environment)
    except BadInput:
        return variant, found
    now = after.graph.node_of_position()
    if any(moved[p] not in now or moved[p] + 1 not in now for p in behind):
        return variant, found
    plan = carried_over(before, after, moved, found.plan)
    marks = plan.recompute
    for p, v in behind.items():
        # the identity stands right behind; what was kept is kept there
        marks[now[moved[p] + 1]] = flags[v]
        marks[now[moved[p]]] = AGAIN
    if not after.model.on_plain_kernels(marks):
        return variant, found
    cost = after.model.plan_cost(plan)
    rewrites = [*variant.rewrites, f"{len(behind)} identities behind convolutions"]
    return Variant(variant.source.with_content(raw), after, rewrites), Found(plan, cost)
