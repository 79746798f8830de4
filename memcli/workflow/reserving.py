"""Blocks that a plan reserves, put into its graph: from the search's figures to MXNet's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from memcli.engines.analysis import Analysis, analyze
from memcli.errors import BadInput
from memcli.formats.symbol_edits import Reservation, insert_reservation
from memcli.memory.fast_pool import NOTHING
from memcli.memory.in_place_sums import plan_keeps_sums
from memcli.memory.pool_layout import Reservable
from memcli.planners.base import Found
from memcli.rewrites.reserved_blocks import block_dtype, find_carrier
from memcli.workflow.variants import Variant, carried_over


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


def with_reserved_blocks(variant: Variant, found: Found) -> tuple[Variant, Found]:
    """The plan's graph with the blocks that it reserves; as given where it reserves none.

    What MXNet says of that graph is what the plan is judged by from here on. It goes without where
    that takes no more.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    plan, before = found.plan, variant.analysis
    if not len(plan.reserved):
        return variant, found
    graph = before.graph
    carrier = find_carrier(graph, before.inputs)
    bare = replace(plan, reserved=NOTHING)
    without = Found(bare, before.model.plan_cost(bare))
    if carrier is None or plan.reserved[0] < carrier.width:
        return variant, without
    dtype, _ = block_dtype(graph)
    # at a smaller batch than it was searched for at, a block may be too small to be read
    blocks = [elements for elements in plan.reserved.tolist() if elements >= carrier.width]
    wanted = Reservation(carrier.reader, carrier.slot, carrier.axis, carrier.width, blocks, dtype)
    raw, moved = insert_reservation(variant.source.raw, wanted)
    request = before.request()
    name = graph.file_names[carrier.argument]
    if name not in before.inputs:
        # MXNet infers no shape through what waits for the blocks
        shape = next(a["shape"] for a in before.arguments if a["name"] == name)
        request.shapes[name] = list(shape)
    try:
        after = analyze(raw, request, environment=before.environment)
    except BadInput:
        return variant, without
    after.inputs = dict(before.inputs)
    made = carried_over(before, after, moved, bare)
    cost = after.model.plan_cost(made)
    if (
        cost.pool_bytes > without.cost.pool_bytes
        or np.count_nonzero(made.recompute) != np.count_nonzero(plan.recompute)
        or not plan_keeps_sums(after.graph, after.model, made)
    ):
        return variant, without
    rewrites = [*variant.rewrites, f"{len(blocks)} reserved blocks"]
    return Variant(variant.source.with_content(raw), after, rewrites), Found(made, cost)
