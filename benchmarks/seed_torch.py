"""The systems that train DenseNets: PyTorch's, LuaTorch's, TensorFlow's and Caffe's."""

from __future__ import annotations

from collections.abc import Callable

from growth import SWEEPS, by_technique, exponent, measure
from seed_commands import Goal, Line, Outcome, Workbench

from memcli.units import MIB

_BATCH = 64
# Two step times this close are the same.
_SAME_TIME = 1.03
# CUDA's context and the work space of convolutions, which Torch7's published figures have in them:
# by how much those of other networks (growth 36, 48 and 60: 4008, 5245 and 6508 MB) are above the
# model, on average.
_CONTEXT = "417MiB"


def _densenet_bc(bench: Workbench) -> str:
    """DenseNet-BC with 100 layers and a growth of 12, for 32 x 32 images."""
    model = "densenet-bc-100-12.onnx"
    bench.script("make_network.py", "densenet-bc", "--depth", "100", "--growth", "12", "-o", model)
    return model


def efficient_densenet(bench: Workbench, verify: bool) -> Outcome:
    """PyTorch's checkpointed BatchNorms and Concats; ``auto`` in less memory; two workers."""
    model = _densenet_bc(bench)
    technique = "theirs (efficient-densenet)"
    lines = bench.torch_lines(
        model,
        _BATCH,
        {technique: ["--strategy", "efficient-densenet"], "cheap": ["--strategy", "cheap"]},
        verify=verify,
    )
    theirs = lines[1]
    theirs.published = 1.605 / 2.863
    ladder = {}
    for part in (0.95, 0.85, 0.7, 0.55):
        budget = f"{part * theirs.estimated / MIB:.1f}MiB"
        # The step is timed on the CPU, so the costs are its own, too.
        ladder[f"auto within {part:.0%} of theirs"] = ["--budget", budget, "--cost", "measured"]
    within = bench.torch_lines(model, _BATCH, ladder, verify=verify)[1:]
    outcome = Outcome(
        "PyTorch efficient DenseNet",
        f"DenseNet-BC, 100 layers, growth 12, batch {_BATCH}",
        "2.863 to 1.605 GB (0.561) at 0.165 to 0.207 s (+25%); 0.985 GB on each of several GPUs",
        [*lines, *within],
    )
    for line in (theirs, lines[2]):
        outcome.under(line, 0.561)
    if verify:
        bench.time_steps(model, outcome.lines)
        for line in lines[1:]:
            assert line.step_seconds is not None
            _in_no_more_time(outcome, within, line.technique, line, line.step_seconds)
        assert lines[0].step_seconds is not None
        _in_no_more_time(
            outcome, within, "theirs as published (+25%)", theirs, 1.25 * lines[0].step_seconds
        )
    for workers in (2, 4):
        given = ["--batch", str(_BATCH), "--workers", str(workers)]
        for name, options in (
            ("theirs", ["--strategy", "efficient-densenet"]),
            ("auto", []),
        ):
            out = f"{name}-{workers}.onnx"
            plan = bench.memcli("plan", model, *given, *options, "-o", out)
            line = Line(
                f"{name}, each of {workers} workers",
                plan["memory"]["planned_bytes"],
                again=plan["recompute"]["fraction"],
            )
            if verify:
                run = bench.memcli("verify", out, *given, ok=(0, 1))
                line.measured = max(row["planned"]["measured_bytes"] for row in run["workers"])
                line.bits_equal = run["ok"]
            outcome.lines.append(line)
    outcome.lines[-4].published = 0.985 / 2.863
    return outcome


def _in_no_more_time(
    outcome: Outcome, plans: list[Line], name: str, technique: Line, seconds: float
) -> None:
    """Note the goal that a plan whose step takes no longer needs less memory."""
    fast = [
        line
        for line in plans
        if line.step_seconds is not None and line.step_seconds <= _SAME_TIME * seconds
    ]
    least = min(fast, key=lambda line: line.estimated, default=None)
    found = "none" if least is None else f"{outcome.ratio(least):.3f}"
    text = f"auto in no more time than {name}: {found}, under {outcome.ratio(technique):.3f}"
    met = least is not None and outcome.ratio(least) < outcome.ratio(technique)
    outcome.goals.append(Goal(text, met))


def luatorch(bench: Workbench, verify: bool) -> Outcome:
    """The levels of ``-optMemory`` under Torch7's buffers, and their plans in PyTorch."""
    model = _densenet_bc(bench)
    shown = bench.memcli(
        "inspect", model, "--batch", str(_BATCH), "--memory-model", "all", "--overhead", _CONTEXT
    )
    figures = {entry["name"]: entry for entry in shown["memory_models"]}
    published = (5453, 3746, 2969, 2188, 1655)
    lines = []
    beside = 0
    for level, figure in enumerate(published):
        found = figures[f"torch7-{level}"]
        buffers = sum(found[f"{part}_bytes"] for part in ("output", "gradient", "copy"))
        beside = found["bytes"] - buffers
        line = Line(f"Torch7's buffers, level {level}", buffers)
        line.published = figure / published[0]
        lines.append(line)
    planned = bench.torch_lines(
        model,
        _BATCH,
        {"plan optmemory-4": ["--strategy", "optmemory-4"], "auto": []},
        verify=verify,
    )
    planned[0].technique = "PyTorch, baseline"
    outcome = Outcome(
        "LuaTorch -optMemory 0..4",
        f"DenseNet-BC, 100 layers, growth 12, batch {_BATCH}",
        "5453, 3746, 2969, 2188, 1655 MB at 0.153, 0.153, 0.152, 0.155, 0.175 s",
        [*lines, *planned],
        fixed=beside,
    )
    for line in lines[1:]:
        assert line.published is not None
        off = outcome.ratio(line) / line.published - 1
        outcome.goals.append(
            Goal(
                f"{line.technique}: {off:+.1%} from the published ratio, within 10%",
                abs(off) <= 0.10,
            )
        )
    best, last = planned[-1], lines[-1]
    outcome.goals.append(
        Goal(
            f"auto: {best.estimated / MIB:,.0f} MiB, under level 4's {last.estimated / MIB:,.0f}",
            best.estimated < last.estimated,
        )
    )
    return outcome


def tensorflow(bench: Workbench, verify: bool) -> Outcome:
    """The largest batch in 12 GB: baseline, with layers recomputed whole, under ``auto``."""
    model = "densenet-121-cifar.onnx"
    bench.script(
        "make_network.py",
        "densenet-bc",
        "--images",
        "imagenet",
        "--depth",
        "121",
        "--side",
        "32",
        "--classes",
        "10",
        "-o",
        model,
    )
    lines = []
    batches = {}
    for technique, strategy in (("theirs (recompute-grad)", "recompute-grad"), ("auto", "auto")):
        found = bench.memcli(
            "fit",
            model,
            "--memory",
            "12GB",
            "--reserve",
            "0",
            "--cpu",
            "--strategy",
            strategy,
            "--time-limit",
            "10",
        )
        batches["baseline"] = found["unplanned"]["batch"]
        batches[technique] = found["planned"]["batch"]
    base = batches["baseline"]
    for technique, batch in batches.items():
        # memory for an image, which is what a larger batch comes from
        lines.append(Line(f"{technique}: batch {batch}", 12e9 / batch))
    lines[1].published = 3750 / 6000
    outcome = Outcome(
        "TensorFlow recompute_grad DenseNet",
        "DenseNet-121 for 32 x 32 images, largest batch in 12 GB (MiB: an image)",
        "batch 3750 to 6000 (1.6 times)",
        lines,
    )
    more = batches["auto"] / base
    outcome.goals.append(Goal(f"auto: {more:.2f} times the batch, at least 2.5", more >= 2.5))
    return outcome


def caffe(bench: Workbench, verify: bool) -> Outcome:
    """A sweep over depth, and its exponent; the network of 40 layers."""
    name = "densenet"
    rows = []
    for depth in SWEEPS[name].depths:
        rows += measure(name, depth, None, bench, rows)
    groups = by_technique(name, rows)
    lines = [
        Line(technique, group[0].memory, again=group[0].again)
        for technique, group in groups.items()
    ]
    outcome = Outcome(
        "Caffe shared storage",
        f"DenseNet, {SWEEPS[name].depths[0]} layers, growth 12, batch {SWEEPS[name].batch}",
        "under 2 GB; memory linear in depth instead of quadratic",
        lines,
    )
    for technique in ("Caffe: caffe-dense", "auto"):
        slope = exponent(groups[technique])
        outcome.goals.append(
            Goal(
                f"{technique}: memory grows with depth^{slope:.2f}, at most 1.1 "
                f"(baseline {exponent(groups['baseline']):.2f})",
                slope <= 1.1,
            )
        )
        least = groups[technique][0].memory
        outcome.goals.append(
            Goal(f"{technique}: {least / MIB:,.0f} MiB, under 2048", least < 2048 * MIB)
        )
    return outcome


TORCH_SYSTEMS: dict[str, Callable[[Workbench, bool], Outcome]] = {
    "pytorch-efficient-densenet": efficient_densenet,
    "luatorch-optmemory": luatorch,
    "tensorflow-recompute-grad": tensorflow,
    "caffe-shared-storage": caffe,
}
