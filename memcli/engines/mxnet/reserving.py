"""Blocks that a plan reserves, put into its graph: from the search's figures to MXNet's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from memcli.engines.mxnet.forms import Form, carried_over
from memcli.engines.mxnet.memory.in_place_sums import plan_keeps_sums
from memcli.engines.mxnet.memory.pool_kernel import NOTHING
from memcli.engines.mxnet.memory.pool_layout import Reservable
from memcli.engines.mxnet.record import Analysis, analyze
from memcli.engines.mxnet.rewrites.registry import RESERVED_BLOCKS
from memcli.engines.mxnet.rewrites.reserved_blocks import block_dtype, find_carrier
from memcli.errors import BadInput
from memcli.graph.cost import Found


def allow_reservation(analysis: Analysis) -> None:
    """Let plans of a graph reserve blocks, where it has an argument that is suited."""
    carrier = find_carrier(analysis.graph, analysis.inputs)
    if carrier is not None:
        _, item = block_dtype(analysis.graph)
        analysis.model.reservable = Reservable(
            carrier.before,
            item,
            least=carrier.width,
            copied=carrier.size,
            extra=2 * 4 * carrier.width,  # two slices at a time
        )


def with_reserved_blocks(form: Form, found: Found) -> tuple[Form, Found]:
    """The plan's graph with the blocks that it reserves; as given where it reserves none.

    What MXNet says of that graph is what the plan is judged by from here on. It goes without where
    that takes no more.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    plan, before = found.plan, form.analysis
    if not len(plan.reserved):
        return form, found
    bare = replace(plan, reserved=NOTHING)
    without = Found(bare, before.model.plan_cost(bare))
    wanted = RESERVED_BLOCKS.find_for_plan(form.source.raw, before, plan)
    if wanted is None:
        return form, without
    raw, moved = RESERVED_BLOCKS.apply(form.source.raw, wanted)
    request = before.request()
    name = before.graph.file_names[wanted.argument_of(form.source.raw)]
    if name not in before.inputs:
        # MXNet infers no shape through what waits for the blocks
        shape = next(a["shape"] for a in before.arguments if a["name"] == name)
        request.shapes[name] = list(shape)
    try:
        after = analyze(raw, request, environment=before.environment)
    except BadInput:
        return form, without
    after.inputs = dict(before.inputs)
    made = carried_over(before, after, moved, bare)
    cost = after.model.plan_cost(made)
    if (
        cost.pool_bytes > without.cost.pool_bytes
        or np.count_nonzero(made.recompute) != np.count_nonzero(plan.recompute)
        or not plan_keeps_sums(after.graph, after.model, made)
    ):
        return form, without
    rewrites = [*form.rewrites, RESERVED_BLOCKS.describe(wanted)]
    return Form(form.source.with_content(raw), after, rewrites), Found(made, cost)
