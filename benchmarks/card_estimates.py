"""Estimated memory against the counts of PyTorch's own CUDA allocator, model by model.

    python benchmarks/card_estimates.py FILE.onnx ... [--precision float32 bfloat16]
        [--budget none 60%] [--time-limit 20] [--log rows.json] [--events]

Runs on a card, or on the simulated card of ``tests/simulated_card``, which counts the same and
computes nothing; the table says which. Each model is recorded without data, planned, and trained
two steps from gradients that are None; compared are ``requested_bytes.all.peak``,
``allocated_bytes.all.peak`` and ``reserved_bytes.all.peak`` of the second step with what the model
of the memory says, and the budget with what the planned step takes. ``--events`` shows where the
allocations of the step first differ from the estimated ones. Status 1: one differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_HEAD = "| {:34} | {:8} | {:6} | {:>14} | {:>8} | {:>8} | {:>8} | {} |"


def measured(module: Any, inputs: list[Any], loss: Any, autocast: Any) -> dict[str, Any]:
    """The second step's peaks over what is there before it, in bytes, and its allocations."""
    import torch

    from memcli.engines.torch.tracking import training_step

    counts: dict[str, Any] = {}
    for number in range(2):
        module.zero_grad(set_to_none=True)
        if number:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.memory._record_memory_history(context=None, clear_history=True)
            before = torch.cuda.memory_stats()
        outputs = training_step(module, inputs, loss, casting=autocast)
        del outputs
    after = torch.cuda.memory_stats()
    for kind in ("requested_bytes", "allocated_bytes"):
        counts[kind] = after[f"{kind}.all.peak"] - before[f"{kind}.all.current"]
    counts["reserved_bytes"] = after["reserved_bytes.all.peak"]
    counts["before"] = before["requested_bytes.all.current"]
    snapshot = torch.cuda.memory._snapshot()
    counts["events"] = [
        [event["action"], event["addr"], event["size"]] for event in snapshot["device_traces"][0]
    ]
    torch.cuda.memory._record_memory_history(enabled=None)
    gradients = {
        p.grad.untyped_storage().data_ptr() for p in module.parameters() if p.grad is not None
    }
    counts["live_bytes"] = live_peak(counts["events"], gradients)
    return counts


def live_peak(events: list[list[Any]], gradients: set[int]) -> int:
    """The most that is allocated at once without what lies at some addresses at the end, in bytes.

    As the allocator counts blocks: in whole multiples of 512 bytes.
    """
    stays = {address: number for number, (act, address, _) in enumerate(events) if act == "alloc"}
    skipped = {stays[address] for address in gradients if address in stays}
    here: dict[int, int] = {}
    now = high = 0
    for number, (act, address, size) in enumerate(events):
        if act == "alloc" and number not in skipped:
            here[address] = _rounded(size)
            now += here[address]
        elif act == "free_requested":
            now -= here.pop(address, 0)
        high = max(high, now)
    return high


def one(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every precision and budget of one model, in this process."""
    import torch

    from memcli.engines.torch.build import converted, loss_for, values_for
    from memcli.engines.torch.cards import card_here
    from memcli.engines.torch.executor import PlannedModule
    from memcli.engines.torch.memory.plan_model import TorchPlanModel
    from memcli.engines.torch.record import job_of
    from memcli.engines.torch.runs import named_marks
    from memcli.engines.torch.search_space import TorchSpace
    from memcli.engines.torch.trace import trace
    from memcli.formats.input_shapes import bind_shapes
    from memcli.formats.model_file import read_model
    from memcli.request import ShapeRequest
    from memcli.search.base import Search, Settings
    from memcli.search.registry import STRATEGIES

    (path,) = options.files
    request = ShapeRequest(batch=options.batch)
    file = read_model(str(path), request)
    bound = bind_shapes(file, request)
    leaves = file.leaves()
    roles = {name: leaf.role for name, leaf in leaves.items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(file, bound.shapes, roles, Path(folder) / "model")
        job["seed"] = 0
        for precision in options.precision:
            autocast: Any = contextlib.nullcontext
            kind = None
            if precision != "float32":
                kind = getattr(torch, precision)
                autocast = lambda kind=kind: torch.autocast("cuda", kind)  # noqa: E731
            with torch._subclasses.fake_tensor.FakeTensorMode():
                fake = converted(job, fake=True)
                given = [torch.empty(i.shape, dtype=i.dtype) for i in fake.inputs]
            named = {} if kind is None else {"autocast": kind}
            model = TorchPlanModel(
                trace(fake.module, given, loss_for(fake), device="cuda", card=card_here(), **named)
            )
            for budget in options.budget:
                flags = model.none()
                limit = None
                if budget != "none":
                    baseline = model.evaluate(flags).pool_bytes
                    limit = int(baseline * float(budget.rstrip("%")) / 100)
                    search = Search(
                        TorchSpace(model), Settings(budget=limit, time_limit=options.time_limit)
                    )
                    STRATEGIES["auto"].run(search)
                    flags = search.answer().plan.recompute
                cost = model.exact.evaluate(flags)
                device = model.exact.device_memory(flags)
                found = converted(job, fake=False)
                module = PlannedModule(found.module, named_marks(model, flags)).to("cuda")
                inputs = [value.to("cuda") for value in values_for(found, job)]
                counts = measured(module, inputs, loss_for(found), autocast)
                row = {
                    "model": path.stem,
                    "precision": precision,
                    "budget": budget,
                    "device": torch.cuda.get_device_name(),
                    "limit": limit,
                    "estimated": {
                        "requested_bytes": device.requested_peak,
                        "allocated_bytes": device.allocated_peak,
                        "reserved_bytes": device.reserved_peak,
                        "live_bytes": cost.live_peak_bytes,
                    },
                    "measured": {k: v for k, v in counts.items() if k != "events"},
                }
                if options.events:
                    row["events"] = differences(model, flags, counts["events"])
                rows.append(row)
                del module, inputs, found, counts
                torch.cuda.empty_cache()
    return rows


def separately(
    path: Path, precision: str, budget: str, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The row of one model, precision and budget, from a process of its own."""
    command = [sys.executable, __file__, "--one", str(path)]
    command += ["--precision", precision, "--budget", budget]
    command += ["--time-limit", str(options.time_limit)]
    command += ["--batch", str(options.batch)] if options.batch else []
    command += ["--events"] if options.events else []
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = (done.stderr.strip() or "died").splitlines()[-1][:150]
        found = [{"model": path.stem, "precision": precision, "budget": budget, "said": said}]
    return found


def differences(model: Any, flags: Any, real: list[list[Any]]) -> list[str]:
    """Where the sizes of the step's allocations differ from the estimated ones."""
    ours = model.exact.allocations(flags)
    theirs: list[tuple[int, int]] = []
    at: dict[int, tuple[int, int]] = {}
    count = 0
    for action, address, size in real:
        if action == "alloc":
            at[address] = count, size
            theirs.append((count, size))
            count += 1
        elif action == "free_requested" and address in at:
            number, size = at.pop(address)
            theirs.append((number, -size))
    sizes = [_rounded(size) for _, size, _ in ours if size > 0]
    real_sizes = [_rounded(size) for _, size in theirs if size > 0]
    lines = [f"{len(sizes)} allocations estimated, {len(real_sizes)} measured"]
    for position, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if (mine[0], _rounded(mine[1])) != (other[0], _rounded(other[1])):
            lines.append(
                f"first at {position}, {mine[2]}: "
                f"{[row[:2] for row in ours[max(0, position - 4) : position + 8]]} estimated, "
                f"{theirs[max(0, position - 4) : position + 8]} measured"
            )
            break
    more, less = Counter(real_sizes), Counter(sizes)
    lines += [f"measured only: {dict(more - less)}"] if more - less else []
    lines += [f"estimated only: {dict(less - more)}"] if less - more else []
    return lines


def _rounded(size: int) -> int:
    return -(-size // 512) * 512


def shown(row: dict[str, Any]) -> str:
    """A row of the table: bytes by which the estimate is off."""
    if "said" in row:
        return f"| {row['model']:34.34} | {row['said']} |"
    off = {
        kind: row["measured"][kind] - row["estimated"][kind]
        for kind in ("requested_bytes", "allocated_bytes", "reserved_bytes")
    }
    share = off["requested_bytes"] / max(1, row["measured"]["requested_bytes"])
    return _HEAD.format(
        row["model"][:34],
        row["precision"][:8],
        row["budget"],
        row["measured"]["requested_bytes"],
        *(off[kind] for kind in off),
        f"{share:+.3%}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--precision", nargs="+", default=["float32"])
    parser.add_argument("--budget", nargs="+", default=["none"])
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--time-limit", type=float, default=20.0)
    parser.add_argument("--events", action="store_true")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        rows = one(options)
        print("\n" + json.dumps(rows), flush=True)
        sys.stdout.flush()
        os._exit(0)
    print(
        _HEAD.format(
            "model", "type", "budget", "requested", "off", "alloc.", "reserved", "requested off"
        )
    )
    log: list[dict[str, Any]] = []
    exact: dict[str, bool] = {}
    for path in options.files:
        # each in a process of its own: what an earlier one leaves in the allocator would count
        rows = [
            row
            for precision in options.precision
            for budget in options.budget
            for row in separately(path, precision, budget, options)
        ]
        for row in rows:
            print(shown(row), flush=True)
            for line in row.get("events", [])[:40]:
                print("    " + line[:600])
            if "said" in row:
                continue
            ok = all(
                row["measured"][k] == row["estimated"][k]
                for k in ("requested_bytes", "allocated_bytes", "reserved_bytes")
            )
            exact[path.stem] = exact.get(path.stem, True) and ok
        log += rows
        if options.log:
            options.log.write_text(json.dumps(log, indent=1))
    planned = [r for r in log if r.get("limit")]
    within = [r for r in planned if r["estimated"]["live_bytes"] <= r["limit"]]
    kept = [r for r in within if r["measured"]["live_bytes"] <= r["limit"]]
    print(f"{sum(exact.values())} of {len(exact)} models: 0 bytes off")
    print(f"{sum('said' in r for r in log)} did not run")
    print(f"{len(kept)} of {len(within)} plans take at most their budget")
    print(f"{len(planned) - len(within)} searches found no plan within it")
    return 0 if all(exact.values()) and len(kept) == len(within) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.exit(130)
