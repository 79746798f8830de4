"""The systems that plan MXNet symbols: the 150-line planner and the paper that it came with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from original_search import in_process
from seed_commands import Goal, Line, Outcome, Workbench

from memcli.units import MIB


@dataclass(frozen=True)
class MxnetSystem:
    """A network of the classic planner; ``script`` with ``options`` builds it."""

    system: str
    network: str
    batch: int
    script: str
    options: tuple[str, ...]
    published: str
    published_ratio: float | None
    most_ratio: float | None = None
    most_bytes: float | None = None
    image: bool = True  # one input 'data' of 3 x 224 x 224; else the file has its shapes

    def __call__(self, bench: Workbench, verify: bool) -> Outcome:
        """Both plans of the network, each written, and bound by MXNet in a fresh process."""
        model = bench.folder / "model.json"
        bench.script(self.script, *self.options, "-o", model.name)
        shapes = {"data": [self.batch, 3, 224, 224]} if self.image else {}
        lines: list[Line] = []
        for technique, options in (
            ("the classic search (memonger)", ["memonger", "--environment", "default"]),
            ("auto", ["auto"]),
        ):
            out = bench.folder / f"planned-{len(lines)}.json"
            given = ["--shape", f"data={self.batch},3,224,224"] if self.image else []
            plan = bench.memcli("plan", model.name, *given, "--strategy", *options, "-o", out.name)
            memory = plan["memory"]
            if not lines:
                total = in_process(bench.folder, "bind", {"model": str(model), "shapes": shapes})
                lines.append(Line("baseline", memory["baseline_bytes"], total["mb"] * MIB))
            total = in_process(
                bench.folder, "bind", {"model": str(out), "shapes": shapes}, plan["environment"]
            )
            lines.append(
                Line(
                    technique,
                    memory["planned_bytes"],
                    total["mb"] * MIB,
                    again=plan["recompute"]["fraction"],
                )
            )
        lines[1].published = self.published_ratio
        outcome = Outcome(self.system, self.network, self.published, lines)
        best = lines[-1]
        if self.most_ratio is not None:
            outcome.under(best, self.most_ratio)
        if self.most_bytes is not None:
            assert best.measured is not None
            outcome.goals.append(
                Goal(
                    f"auto: {best.measured / MIB:,.0f} MB, under {self.most_bytes / MIB:,.0f}",
                    best.measured < self.most_bytes,
                )
            )
        return outcome


MXNET_SYSTEMS: dict[str, Callable[[Workbench, bool], Outcome]] = {
    "mxnet-resnet-50": MxnetSystem(
        "MXNet planner",
        "ResNet-50, batch 200",
        200,
        "make_resnet.py",
        ("--units", "3", "4", "6", "3"),
        "30537 to 14466 MB, and 15896 to 7530 (batches not told: 200 and 104 by their size)",
        14466 / 30537,
        most_ratio=0.25,
    ),
    "mxnet-densenet-201": MxnetSystem(
        "MXNet planner, DenseNet variant",
        "DenseNet-201, batch 700",
        700,
        "make_densenet.py",
        ("--depth", "201"),
        "125202 to 35470 MB, and 26084 to 7389 (batches not told: 700 and 146 by their size)",
        35470 / 125202,
        most_ratio=0.15,
    ),
    "mxnet-mobilenet-v2": MxnetSystem(
        "MXNet planner",
        "MobileNetV2 1.0, batch 64",
        64,
        "make_mobilenet_v2.py",
        (),
        "announced, never published",
        None,
        most_ratio=0.30,
    ),
    "mxnet-lstm": MxnetSystem(
        "MXNet planner",
        "LSTM 4 x 1024, 1000 steps, batch 64",
        64,
        "make_lstm.py",
        ("--layers", "4", "--hidden", "1024", "--steps", "1000", "--batch", "64"),
        "more than 4 times less (arXiv 1604.06174, section 5.3)",
        0.25,
        most_ratio=0.15,
        image=False,
    ),
    # The paper does not say how its 1000 layers are divided into stages; this division is one that
    # takes the 48 GB that it published (see sizes.py of the networks).
    "paper-resnet-1000": MxnetSystem(
        "arXiv 1604.06174",
        "ResNet of 1000 layers, batch 32",
        32,
        "make_network.py",
        ("resnet", "--depth", "1000", "--classic"),
        "48 to 7 GB",
        7 / 48,
        most_bytes=5e9,
    ),
}
