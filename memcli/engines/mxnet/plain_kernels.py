"""A published technique's plan that only oneDNN and cuDNN run, made for MXNet's plain kernels.

See :mod:`memcli.engines.mxnet.rewrites.convolution_identities`.
"""

from __future__ import annotations

from memcli.engines.mxnet.forms import Form, carried_over
from memcli.engines.mxnet.record import analyze
from memcli.engines.mxnet.rewrites.convolution_identities import unused_convolutions
from memcli.engines.mxnet.rewrites.registry import CONVOLUTION_IDENTITIES
from memcli.errors import BadInput
from memcli.graph.cost import Found
from memcli.marks import AGAIN


def on_plain_kernels(form: Form, found: Found) -> tuple[Form, Found]:
    """The plan with identities that consume its otherwise unused recomputed convolutions.

    As given where there is none, or where identities cannot do it.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    before = form.analysis
    wanted = CONVOLUTION_IDENTITIES.find_for_plan(form.source.raw, before, found.plan)
    if wanted is None:
        return form, found
    behind = unused_convolutions(before, found.plan)
    raw, moved = CONVOLUTION_IDENTITIES.apply(form.source.raw, wanted)
    if any(raw["nodes"][moved[p] + 1]["inputs"][:1] != [[moved[p], 0, 0]] for p in behind):
        return form, found  # nobody reads it but the caller
    request = before.request()
    try:
        after = analyze(raw, request, environment=before.environment)
    except BadInput:
        return form, found
    now = after.graph.node_of_position()
    if any(moved[p] not in now or moved[p] + 1 not in now for p in behind):
        return form, found
    plan = carried_over(before, after, moved, found.plan)
    marks = plan.recompute
    for p, v in behind.items():
        # the identity stands right behind; what was kept is kept there
        marks[now[moved[p] + 1]] = found.plan.recompute[v]
        marks[now[moved[p]]] = AGAIN
    if not after.model.on_plain_kernels(marks):
        return form, found
    cost = after.model.plan_cost(plan)
    rewrites = [*form.rewrites, CONVOLUTION_IDENTITIES.describe(list(behind))]
    return Form(form.source.with_content(raw), after, rewrites), Found(plan, cost)
