"""Verifies a planned MXNet symbol in PyTorch: on cards that MXNet's build has no code for."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from memcli.engines.live_memory import available_bytes
from memcli.engines.mxnet.planning import read_symbol, shape_notes
from memcli.engines.mxnet.record import Analysis, analyze
from memcli.engines.mxnet.rewrites.reserved_blocks import without_reservation
from memcli.engines.mxnet.step_size import batch_of, needed_bytes
from memcli.engines.mxnet.verifying import check_comparable, find_original
from memcli.engines.torch.record import record
from memcli.engines.torch.runs import compare_runs, named_marks, run_of, stages_of, train
from memcli.engines.verification import fit_batch, scaled_notes, shapes_to_verify
from memcli.formats.detect import Model
from memcli.formats.symbol.edits import INSERTED_KEY
from memcli.formats.symbol.file import SymbolFile
from memcli.graph.training import Flags
from memcli.marks import AGAIN, KEPT
from memcli.request import Progress, ShapeRequest
from memcli.results.verified import BASELINE, PLANNED, Verified

# Part of the free memory that a step may take.
_USABLE = 0.7


def torch_marks(file: SymbolFile, steps: list[dict[str, Any]]) -> Flags:
    """What PyTorch keeps and drops where MXNet runs the file's marks.

    A marked node is dropped and recomputed. Behind a save barrier, an identity that memcli put in
    and that is not marked, MXNet keeps what the node made: so does PyTorch.
    """
    marked = file.marked()
    kept = set()
    for position, node in enumerate(file.nodes):
        if INSERTED_KEY in node.attrs and node.op == "_copy" and position not in marked:
            kept.add(int(node.inputs[0][0]))
    return np.array(
        [
            AGAIN if (p := step.get("position", -1)) in marked and p not in kept else KEPT
            for step in steps
        ],
        np.uint8,
    )


def verify_symbol_in_torch(
    planned_model: Model,
    *,
    original: Model | None = None,
    gpu: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    request: ShapeRequest | None = None,
    why: str = "",
    on_progress: Progress | None = None,
) -> Verified:
    """Train a step of an MXNet symbol and of its plan in PyTorch, and compare.

    MXNet is asked for shapes, on the CPU. Estimates are PyTorch's for the tensors that the plan
    keeps there, not the pool of MXNet that the plan was made for.

    Args:
        planned_model: its path, or what was read.
        original: the baseline's path; None: it is taken from the planned file.
        gpu: number of the card, None for the CPU.
        seed: of random numbers.
        steps: as in ``torch_runs.train``.
        request: shapes in place of the plan's.
        why: why PyTorch runs it.
        on_progress: told what is going on.

    Raises:
        BadInput: no plan, no original, shapes unknown, operators that are not converted.
        EngineFailed: an engine or the device is missing, or a step crashed.
    """
    planned = read_symbol(planned_model)
    plan_record = planned.plan()
    source, where = find_original(planned, plan_record, original)
    # what is reserved is of MXNet's pool
    planned = planned.with_content(without_reservation(planned.raw, planned.path))

    def analysis_of(file: SymbolFile, shapes: ShapeRequest) -> Analysis:
        return analyze(file.raw, shapes, on_progress=on_progress)

    analysis = analysis_of(planned, shapes_to_verify(plan_record, request))
    notes = shape_notes(analysis)
    if why:
        notes.append(f"PyTorch runs this MXNet graph: {why}")
    notes.append("estimates are of PyTorch under the plan's marks, not of MXNet's pool")
    scaled = None
    if gpu is None:
        free = int(available_bytes() * _USABLE)
        analysis, scaled = fit_batch(
            analysis,
            batch_of(analysis),
            free,
            needed_bytes,
            lambda shapes: analysis_of(planned, shapes),
        )
    notes += scaled_notes(scaled)
    base = analysis_of(source, analysis.request())
    check_comparable(base, analysis, where)
    device = "cpu" if gpu is None else f"gpu:{gpu}"
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        workdir = Path(folder)
        jobs, models, results = [], [], []
        for name, file, facts in ((BASELINE, source, base), (PLANNED, planned, analysis)):
            job = _job(file, facts, workdir / name)
            model, recorded, _ = record(
                {**job, "device": "cpu" if gpu is None else "cuda"}, workdir, on_progress
            )
            jobs.append(job)
            models.append(model)
        flags = torch_marks(planned, recorded)
        marks = named_marks(models[1], flags)
        for name, job, given in zip((BASELINE, PLANNED), jobs, ({}, marks), strict=True):
            results += train(name, job, given, workdir, [device], seed, steps, on_progress)
        first, second = results
        compared = compare_runs(first, second, workdir, where, notes)
    return Verified(
        planned_path=planned.path,
        original=where,
        device=second["device"],
        shapes=analysis.inputs,
        baseline=run_of(models[0], models[0].none(), first),
        planned=run_of(models[1], flags, second),
        outputs=compared["outputs"],
        gradients=compared["gradients"],
        states=compared["states"],
        stages=stages_of(models[1], flags, second["trace"]),
        method=second["method"],
        scaled=scaled,
        notes=notes,
        seed=seed,
        engine="torch",
    )


def _job(file: SymbolFile, analysis: Analysis, base: Path) -> dict[str, Any]:
    """What a PyTorch job needs of a symbol; its files begin with ``base``."""
    symbol, facts = base.with_suffix(".json"), base.with_suffix(".analysis")
    symbol.write_text(json.dumps(file.raw))
    facts.write_bytes(pickle.dumps(analysis))
    return {"symbol": str(symbol), "analysis": str(facts), "name": file.name}
