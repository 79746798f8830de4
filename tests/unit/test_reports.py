"""Every table as it is printed at 80 columns, whole, from records that are made up."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable

import numpy as np
from rich.console import Console

from memcli.formats.symbol.record import PlanRecord
from memcli.graph.cost_graph import CostGraph
from memcli.reports import inspect_report
from memcli.reports.doctor_report import doctor_json, engine_works, next_step, print_checks
from memcli.reports.inspect_json import inspect_json
from memcli.reports.inspect_report import print_inspected
from memcli.reports.plan_report import stage_table
from memcli.reports.solve_report import print_solved, solve_json
from memcli.reports.tables import clip, facts
from memcli.reports.verify_report import print_verified, verify_json
from memcli.results.inspected import (
    Figures,
    Inspected,
    LargeTensor,
    NamedTensor,
    NodeRow,
    OperatorKind,
    PlanFacts,
)
from memcli.results.live_peak import PeakParts
from memcli.results.solved import Solved
from memcli.results.stage import Stage
from memcli.results.verified import Compared, Run, StageMeasured, Verified

MIB = 1 << 20
LONG = "stage4_unit23_bottleneck_with_a_very_long_name_indeed/branch2/convolution_3x3_weight"


def rendered(show: Callable[[Console], None], width: int = 80) -> list[str]:
    """Lines of a report, blanks at their ends left off; none may be wider than ``width``."""
    out = io.StringIO()
    show(Console(file=out, width=width, highlight=False, color_system=None))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines), default=0) <= width
    return [line.rstrip() for line in lines]


def expect(show: Callable[[Console], None], wanted: str) -> None:
    """The report is exactly ``wanted``, but for empty lines at its beginning and end."""
    lines = rendered(show)
    assert "\n".join(lines).strip("\n") == wanted.strip("\n")


def stage(index: int, first: str = "conv", last: str = "relu") -> Stage:
    return Stage(
        index,
        f"{first}{index}",
        f"{last}{index}",
        3 + index,
        index * MIB,
        (10 + index) * MIB,
        (100 - index) * MIB,
        1.5e9 * index,
        (5 + index) * MIB,
        (70 - index) * MIB,
    )


def record() -> PlanRecord:
    return PlanRecord(
        strategy="auto",
        shapes={"data": [2, 3, 224, 224], "softmax_label": [2]},
        dtype="float32",
        environment={"NNVM_EXEC_MATCH_RANGE": "4"},
        original_name="net-symbol.json",
        original_sha256="0123456789abcdef" * 4,
        n_nodes=12,
        memory={
            "baseline_bytes": 100 * MIB,
            "planned_bytes": 40 * MIB,
            "live_peak_bytes": 36 * MIB,
            "lower_bound_bytes": 10 * MIB,
        },
        recompute={"flops": 9e8, "forward_flops": 1e9, "fraction": 0.9},
        memcli_version="0.1.0",
    )


def inspected(*, planned: bool = True) -> Inspected:
    """A made-up network of two stages."""
    baseline = Figures(
        pool_bytes=100 * MIB,
        live_peak_bytes=90 * MIB,
        kept_bytes=80 * MIB,
        recompute_flops=0.0,
        peak_at="pool_backward",
        peak_in="backward",
        split=PeakParts(88 * MIB, 2 * MIB, 0),
        by_operator={
            "Convolution": PeakParts(60 * MIB, 2 * MIB, 0),
            "BatchNorm": PeakParts(28 * MIB),
        },
        by_stage=[PeakParts(50 * MIB, 0, 0), PeakParts(38 * MIB, 2 * MIB, 0)],
    )
    under_plan = Figures(
        pool_bytes=40 * MIB,
        live_peak_bytes=36 * MIB,
        kept_bytes=8 * MIB,
        recompute_flops=9e8,
        peak_at="relu1_backward",
        peak_in="backward",
        split=PeakParts(8 * MIB, 12 * MIB, 16 * MIB),
        by_operator={
            "BatchNorm": PeakParts(0, 12 * MIB, 16 * MIB),
            "Convolution": PeakParts(8 * MIB),
        },
        by_stage=[PeakParts(8 * MIB, 12 * MIB, 16 * MIB), PeakParts()],
    )
    kept = 8 * MIB if planned else None
    return Inspected(
        path="planned.json" if planned else "net-symbol.json",
        sha256="fedcba9876543210" * 4,
        nodes=12,
        operators=5,
        dtype="float32",
        inputs=[
            NamedTensor("data", [2, 3, 224, 224], "float32", "input", assumed=not planned),
            NamedTensor("softmax_label", [2], "float32", "label"),
        ],
        outputs=[NamedTensor("softmax", [2, 1000], "float32", "output")],
        loss_added=not planned,
        kinds=[
            OperatorKind("Convolution", 3, 9.5e8, 60 * MIB, 60 * MIB, kept, 2),
            OperatorKind("BatchNorm", 2, 5e7, 28 * MIB, 20 * MIB, 0 if planned else None, 2),
        ],
        forward_flops=1e9,
        baseline=baseline,
        planned=under_plan if planned else None,
        plan=PlanFacts("auto", {"NNVM_EXEC_MATCH_RANGE": "4"}, 4, 4, record()) if planned else None,
        lower_bound=10 * MIB,
        parameter_bytes=97 * MIB,
        state_bytes=MIB // 5,
        stages=[stage(0), stage(1)],
        largest=[
            LargeTensor(LONG, "Convolution", (2, 64, 112, 112), 4, 6422528, "recomputed"),
            LargeTensor("bn0[1]", "_backward_BatchNorm", (64,), 4, 256, "gradient"),
        ],
        stage_marks={"True": 16},
        listed=[
            NodeRow(3, LONG, "Convolution", (2, 64, 112, 112), 6422528, "recomputed"),
            NodeRow(4, "[/b]odd\x1b[31m", "SoftmaxOutput", (2, 1000), 8000, ""),
            NodeRow(5, "lost", "Activation", None, None, "unused"),
        ],
        notes=[],
    )


def test_stages() -> None:
    expect(
        lambda console: stage_table(console, [stage(0), stage(1, LONG, "[/b]")]),
        """
Stages (MiB; live: most alive while it runs; pool: at its end; FLOPs:
recomputed)

 #  from                  to     ops  kept  live fwd  live bwd   pool  FLOPs
 ───────────────────────────────────────────────────────────────────────────
 0  conv0                 relu0    3   0.0       5.0      70.0  100.0      0
 1  stage4_uni~3_weight1  [/b]1    4   1.0       6.0      69.0   99.0  1.5 G
""",
    )


def test_many_stages_are_folded() -> None:
    expect(
        lambda console: stage_table(console, [stage(i) for i in range(40)]),
        """
Stages (MiB; live: most alive while it runs; pool: at its end;
FLOPs: recomputed)

   #  from     to      ops  kept  live fwd  live bwd   pool   FLOPs
 ──────────────────────────────────────────────────────────────────
   0  conv0    relu0     3   0.0       5.0      70.0  100.0       0
   1  conv1    relu1     4   1.0       6.0      69.0   99.0   1.5 G
   2  conv2    relu2     5   2.0       7.0      68.0   98.0   3.0 G
   3  conv3    relu3     6   3.0       8.0      67.0   97.0   4.5 G
   4  conv4    relu4     7   4.0       9.0      66.0   96.0   6.0 G
   5  conv5    relu5     8   5.0      10.0      65.0   95.0   7.5 G
   6  conv6    relu6     9   6.0      11.0      64.0   94.0   9.0 G
   7  conv7    relu7    10   7.0      12.0      63.0   93.0  10.5 G
   8  conv8    relu8    11   8.0      13.0      62.0   92.0  12.0 G
   9  conv9    relu9    12   9.0      14.0      61.0   91.0  13.5 G
  10  conv10   relu10   13  10.0      15.0      60.0   90.0  15.0 G
  11  conv11   relu11   14  11.0      16.0      59.0   89.0  16.5 G
 ...  17 more  ...     ...   ...       ...       ...    ...     ...
  29  conv29   relu29   32  29.0      34.0      41.0   71.0  43.5 G
  30  conv30   relu30   33  30.0      35.0      40.0   70.0  45.0 G
  31  conv31   relu31   34  31.0      36.0      39.0   69.0  46.5 G
  32  conv32   relu32   35  32.0      37.0      38.0   68.0  48.0 G
  33  conv33   relu33   36  33.0      38.0      37.0   67.0  49.5 G
  34  conv34   relu34   37  34.0      39.0      36.0   66.0  51.0 G
  35  conv35   relu35   38  35.0      40.0      35.0   65.0  52.5 G
  36  conv36   relu36   39  36.0      41.0      34.0   64.0  54.0 G
  37  conv37   relu37   40  37.0      42.0      33.0   63.0  55.5 G
  38  conv38   relu38   41  38.0      43.0      32.0   62.0  57.0 G
  39  conv39   relu39   42  39.0      44.0      31.0   61.0  58.5 G
""",
    )


def test_no_stages_no_table() -> None:
    assert rendered(lambda console: stage_table(console, [])) == []


def verified() -> Verified:
    stages = [
        StageMeasured(0, "conv0", "relu0", 4, 10 * MIB, 11 * MIB, 90 * MIB, 91 * MIB),
        StageMeasured(1, LONG, LONG, 5, 20 * MIB, None, 80 * MIB, None),
    ]
    return Verified(
        planned_path="planned.json",
        original="net-symbol.json (its SHA-256 matches)",
        device="cpu",
        shapes={"data": [2, 3, 224, 224]},
        baseline=Run(100 * MIB, 101 * MIB, 1.25, 3 * MIB),
        planned=Run(40 * MIB, 39 * MIB, 1.5, 3 * MIB),
        outputs=Compared(1, 1),
        gradients=Compared(161, 160, 2.5e-7, 1e-3, ["conv0_weight"]),
        states=Compared(0, 0),
        stages=stages,
        method="the process's own memory",
        scaled=None,
        notes=[],
        seed=0,
    )


def test_verified() -> None:
    expect(
        lambda console: print_verified(console, verified()),
        """
Memory by stage of the planned graph, MiB (est: model; meas: really allocated)

 #  from            to              fwd est  fwd meas  bwd est  bwd meas   over
 ──────────────────────────────────────────────────────────────────────────────
 0  conv0           relu0              10.0      11.0     90.0      91.0  +1.1%
 1  stage4_~weight  stage4_~weight     20.0         -     80.0         -      -

Whole step: feature maps and their gradients, MiB

 graph     estimated  measured   over  workspace    step
 ───────────────────────────────────────────────────────
 baseline      100.0     101.0  +1.0%        3.0  1.25 s
 planned        40.0      39.0  -2.5%        3.0  1.50 s

outputs    1 of 1 equal to the bit
gradients  160 of 161 equal to the bit; largest difference 2.5e-07
           (conv0_weight)
states     none to compare
bits       DIFFERENT in gradients
memory     as estimated: planned -2.5%, baseline +1.0% (up to +5% is)
device     cpu; memory by the process's own memory
original   net-symbol.json (its SHA-256 matches)
""",
    )


def test_verify_json_has_no_infinity() -> None:
    record = verified()
    record.gradients.max_abs_diff = float("inf")
    text = json.dumps(verify_json(record), allow_nan=False)
    assert json.loads(text)["gradients"]["max_abs_diff"] == "inf"
    assert not json.loads(text)["ok"]


def test_inspected_plan() -> None:
    expect(
        lambda console: print_inspected(console, inspected(), full=True),
        """
model        planned.json: MXNet symbol, 12 nodes, of which 5 operators
SHA-256      fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210
dtype        float32
parameters   97.0 MiB; their gradients 97.0 MiB; states 0.2 MiB: not in the
             memory below
forward      1.0 GFLOP
stage marks  16 nodes carry mirror_stage, 1 value
plan         auto, by memcli 0.1.0: 4 nodes marked, 4 operators recomputed
original     net-symbol.json, SHA-256 0123456789abcdef...
made for     data 2,3,224,224; softmax_label 2 (float32)
its figures  baseline 100.0 MiB, planned 40.0 MiB, live peak 36.0 MiB, lower
             bound 10.0 MiB, recomputed 90%
environment  NNVM_EXEC_MATCH_RANGE=4 (run with it to get the planned memory)
Inputs and outputs

         name           shape        type
 ──────────────────────────────────────────────
 input   data           2,3,224,224  float32
 label   softmax_label  2            float32
 output  softmax        2,1000       float32

Operators (MiB; kept: read by the backward; planned: under the
plan)

 operator     count    FLOPs  outputs  kept  planned  recomputed
 ───────────────────────────────────────────────────────────────
 Convolution      3  950.0 M     60.0  60.0      8.0           2
 BatchNorm        2   50.0 M     28.0  20.0      0.0           2


 memory of a training step, MiB          baseline  planned  part
 ───────────────────────────────────────────────────────────────
 allocated by MXNet (the pool)              100.0     40.0   40%
 live peak                                   90.0     36.0   40%
   feature maps                              88.0      8.0
   gradients                                  2.0     12.0
   recomputed copies                          0.0     16.0
 kept for the backward pass                  80.0      8.0   10%
 lower bound of every plan                   10.0     10.0
 recomputed, FLOPs (part: of a forward)         0  900.0 M   90%

baseline peak at  pool_backward (backward)
planned peak at   relu1_backward (backward)
At the live peak by operator, MiB (gradients: by what they go back
through)

 operator     feature maps  gradients  recomputed  total  baseline
 ─────────────────────────────────────────────────────────────────
 BatchNorm             0.0       12.0        16.0   28.0      28.0
 Convolution           8.0        0.0         0.0    8.0      62.0

At the live peak by stage, MiB

 #  up to  feature maps  gradients  recomputed  total  baseline
 ──────────────────────────────────────────────────────────────
 0  relu0           8.0       12.0        16.0   36.0      50.0
 1  relu1           0.0        0.0         0.0    0.0      40.0

Stages (MiB; live: most alive while it runs; pool: at its end;
FLOPs: recomputed)

 #  from   to     ops  kept  live fwd  live bwd   pool  FLOPs
 ────────────────────────────────────────────────────────────
 0  conv0  relu0    3   0.0       5.0      70.0  100.0      0
 1  conv1  relu1    4   1.0       6.0      69.0   99.0  1.5 G

Largest tensors (B: bytes of an element)

 tensor                   operator             shape         B  MiB
 ──────────────────────────────────────────────────────────────────────────────
 stage4_unit~_3x3_weight  Convolution          2,64,112,112  4  6.1  recomputed
 bn0[1]                   _backward_BatchNorm  64            4  0.0  gradient
""",
    )


def test_inspected_without_a_plan() -> None:
    expect(
        lambda console: print_inspected(console, inspected(planned=False), full=True),
        """
model        net-symbol.json: MXNet symbol, 12 nodes, of which 5 operators
SHA-256      fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210
dtype        float32
parameters   97.0 MiB; their gradients 97.0 MiB; states 0.2 MiB: not in the
             memory below
forward      1.0 GFLOP
loss         none in the graph; seen under the sum of its outputs
stage marks  16 nodes carry mirror_stage, 1 value
plan         none: nothing is recomputed
Inputs and outputs

         name           shape        type
 ────────────────────────────────────────────────────
 input   data           2,3,224,224  float32  assumed
 label   softmax_label  2            float32
 output  softmax        2,1000       float32

Operators (MiB; kept: of the outputs, what
the backward pass reads)

 operator     count    FLOPs  outputs  kept
 ──────────────────────────────────────────
 Convolution      3  950.0 M     60.0  60.0
 BatchNorm        2   50.0 M     28.0  20.0


 memory of a training step, MiB  baseline
 ────────────────────────────────────────
 allocated by MXNet (the pool)      100.0
 live peak                           90.0
   feature maps                      88.0
   gradients                          2.0
 kept for the backward pass          80.0
 lower bound of every plan           10.0

live peak at  pool_backward (backward)
At the live peak by operator, MiB (gradients:
by what they go back through)

 operator     feature maps  gradients  total
 ───────────────────────────────────────────
 Convolution          60.0        2.0   62.0
 BatchNorm            28.0        0.0   28.0

At the live peak by stage, MiB

 #  up to  feature maps  gradients  total
 ────────────────────────────────────────
 0  relu0          50.0        0.0   50.0
 1  relu1          38.0        2.0   40.0

Stages (MiB; live: most alive while it runs; pool: at its end;
FLOPs: recomputed)

 #  from   to     ops  kept  live fwd  live bwd   pool  FLOPs
 ────────────────────────────────────────────────────────────
 0  conv0  relu0    3   0.0       5.0      70.0  100.0      0
 1  conv1  relu1    4   1.0       6.0      69.0   99.0  1.5 G

Largest tensors (B: bytes of an element)

 tensor                   operator             shape         B  MiB
 ──────────────────────────────────────────────────────────────────────────────
 stage4_unit~_3x3_weight  Convolution          2,64,112,112  4  6.1  recomputed
 bn0[1]                   _backward_BatchNorm  64            4  0.0  gradient
""",
    )


def test_listed_nodes_have_their_whole_names() -> None:
    expect(
        lambda console: inspect_report.node_table(console, inspected().listed),
        """
Operators of the file

 #  name                       op             output           size
 ──────────────────────────────────────────────────────────────────────────────
 3  stage4_unit23_bottleneck_  Convolution    2,64,112,112  6.1 MiB  recomputed
    with_a_very_long_name_ind
    eed/branch2/convolution_3
    x3_weight
 4  [/b]odd\\x1b[31m            SoftmaxOutput  2,1000        7.8 KiB
 5  lost                       Activation     -                   -  unused
""",
    )


def test_many_inputs_and_stages_are_folded() -> None:
    report = inspected()
    report.inputs = [NamedTensor(f"t{i}_data", [64, 50], "float32", "input") for i in range(35)]
    report.stages = [stage(i) for i in range(30)]
    for figures in (report.baseline, report.planned):
        assert figures is not None
        figures.by_stage = [PeakParts(i * MIB) for i in range(30)]

    def show(console: Console) -> None:
        inspect_report.tensor_table(console, report)
        inspect_report.live_stage_table(console, report)

    expect(
        show,
        """
Inputs and outputs

         name      shape   type
 ──────────────────────────────────────
 input   t0_data   64,50   float32
 input   t1_data   64,50   float32
 input   t2_data   64,50   float32
 ...     30 more   ...     ...      ...
 input   t33_data  64,50   float32
 input   t34_data  64,50   float32
 output  softmax   2,1000  float32

At the live peak by stage, MiB

   #  up to   feature maps  gradients  recomputed  total  baseline
 ─────────────────────────────────────────────────────────────────
   0  relu0            0.0        0.0         0.0    0.0       0.0
   1  relu1            1.0        0.0         0.0    1.0       1.0
   2  relu2            2.0        0.0         0.0    2.0       2.0
   3  relu3            3.0        0.0         0.0    3.0       3.0
   4  relu4            4.0        0.0         0.0    4.0       4.0
   5  relu5            5.0        0.0         0.0    5.0       5.0
   6  relu6            6.0        0.0         0.0    6.0       6.0
   7  relu7            7.0        0.0         0.0    7.0       7.0
   8  relu8            8.0        0.0         0.0    8.0       8.0
   9  relu9            9.0        0.0         0.0    9.0       9.0
  10  relu10          10.0        0.0         0.0   10.0      10.0
  11  relu11          11.0        0.0         0.0   11.0      11.0
 ...  7 more           ...        ...         ...    ...       ...
  19  relu19          19.0        0.0         0.0   19.0      19.0
  20  relu20          20.0        0.0         0.0   20.0      20.0
  21  relu21          21.0        0.0         0.0   21.0      21.0
  22  relu22          22.0        0.0         0.0   22.0      22.0
  23  relu23          23.0        0.0         0.0   23.0      23.0
  24  relu24          24.0        0.0         0.0   24.0      24.0
  25  relu25          25.0        0.0         0.0   25.0      25.0
  26  relu26          26.0        0.0         0.0   26.0      26.0
  27  relu27          27.0        0.0         0.0   27.0      27.0
  28  relu28          28.0        0.0         0.0   28.0      28.0
  29  relu29          29.0        0.0         0.0   29.0      29.0
""",
    )


def test_what_comes_next() -> None:
    report = inspected(planned=False)
    assert inspect_report.next_step(report) == "next: memcli plan net-symbol.json -o planned.json"
    report.path = "my net.json"
    assert inspect_report.next_step(report) == "next: memcli plan 'my net.json' -o planned.json"
    assert inspect_report.next_step(inspected()) == "next: memcli verify planned.json"
    foreign = inspected()
    foreign.plan = PlanFacts("marks of the file", {}, 4, 3, None)
    assert inspect_report.next_step(foreign) == (
        "next: memcli verify planned.json, or a better plan: memcli plan planned.json "
        "-o planned.json"
    )


def test_inspect_json() -> None:
    found = json.loads(json.dumps(inspect_json(inspected()), allow_nan=False))
    assert found["schema"] == 1
    assert found["shapes"] == {"data": [2, 3, 224, 224], "softmax_label": [2]}
    assert found["memory"]["planned_bytes"] == 40 * MIB
    assert found["memory"]["baseline_bytes"] == 100 * MIB
    assert found["memory"]["live_peak_bytes"] == 36 * MIB
    assert found["plan"]["original"] == {
        "name": "net-symbol.json",
        "sha256": record().original_sha256,
    }
    peak = found["live_peak"]["planned"]
    assert peak["bytes"] == sum(s["bytes"] for s in peak["stages"]) == 36 * MIB
    assert peak["bytes"] == sum(s["bytes"] for s in peak["operators"])
    assert found["recompute"]["fraction"] == 0.9
    assert "nodes" not in found
    listed = inspect_json(inspected(), nodes=True)["nodes"]
    assert [row["index"] for row in listed] == [3, 4, 5]
    bare = inspect_json(inspected(planned=False))
    assert bare["plan"] is None and bare["memory"]["planned_bytes"] is None
    assert bare["assumed_shapes"] == ["data"] and bare["loss_added"]


@dataclasses.dataclass
class Check:
    """As memcli.engines.doctor has it."""

    name: str
    ok: bool | None
    detail: str
    mend: str


CHECKS = [
    Check("python", True, "3.11.9", ""),
    Check("mxnet", True, "1.9.1 trains on the CPU", ""),
    Check("gpu", None, "no NVIDIA card", "nothing to do: everything runs on the CPU"),
    Check(
        "torch",
        None,
        "not installed",
        "pip install 'memcli[torch]' into the environment that memcli runs in, which is the one "
        "whose Python is named above",
    ),
]


def test_checks() -> None:
    expect(
        lambda console: print_checks(console, CHECKS),
        """
ok  python  3.11.9
ok  mxnet   1.9.1 trains on the CPU
--  gpu     no NVIDIA card
      nothing to do: everything runs on the CPU
--  torch   not installed
      pip install 'memcli[torch]' into the environment that memcli runs in,
      which is the one whose Python is named above
""",
    )
    assert engine_works(CHECKS)
    assert doctor_json(CHECKS)["ok"] is True
    assert next_step(CHECKS).endswith("next: memcli plan MODEL -o planned.json")


def test_checks_without_an_engine() -> None:
    broken = [dataclasses.replace(CHECKS[1], ok=False, detail="gone", mend="pip install mxnet")]
    expect(
        lambda console: print_checks(console, broken),
        """
no  mxnet  gone
      pip install mxnet
""",
    )
    assert not engine_works(broken)
    assert not engine_works([])
    assert not engine_works([Check("gpu", True, "one card", "")])
    assert "next: mend" in next_step(broken)


def test_facts_continue_under_their_beginning() -> None:
    pairs = [("short", "a line"), ("longer label", "words " * 20), ("odd", "[/b] a\nb")]
    expect(
        lambda console: facts(console, pairs),
        """
short         a line
longer label  words words words words words words words words words words words
              words words words words words words words words words
odd           [/b] a\\nb
""",
    )


def test_names_are_cut_in_the_middle() -> None:
    assert clip("convolution0", 12) == "convolution0"
    assert clip("convolution_10", 9) == "conv~n_10"
    assert len(clip(LONG, 13)) == 13
    assert clip("a\x1b[31m", 20) == "a\\x1b[31m"


def solved(*, proven: bool = True) -> Solved:
    """A made-up schedule: three values, the first computed again before the last."""
    graph = CostGraph.build(
        ["conv", "[/b]", LONG], [2.0, 1.0, 1.0], [3 * MIB, 2 * MIB, MIB], [[], [0], [0, 1]]
    )
    return Solved(
        path="costs.json",
        graph=graph,
        budget=6 * MIB if proven else None,
        schedule=np.array([0, 1, 0, 2]),
        memory=np.array([3, 5, 5, 6]) * MIB,
        peak=6 * MIB,
        plain_peak=8 * MIB,
        peak_bound=6 * MIB,
        extra=2.0,
        lower_extra=2.0 if proven else 1.0,
        proven=proven,
        found_by="greedy",
        found_after=0.01,
        seconds=1.25,
    )


def test_the_whole_report_of_solve() -> None:
    expect(
        lambda c: print_solved(c, solved()),
        """
Recomputed

 step  node  just before                  size  extra time
 ─────────────────────────────────────────────────────────
    2  conv  stage4_unit2~_3x3_weight  3.0 MiB     50.000%

graph       3 nodes, 3 reads
plain peak  8.0 MiB
budget      6.0 MiB
peak        6.0 MiB = 75.0% of plain
extra time  50.000% for 1 recomputations
optimality  proven: no schedule takes less
search      1.2 s; found after 0.01 s (greedy)
""",
    )


def test_solve_says_what_is_not_proven() -> None:
    lines = rendered(lambda c: print_solved(c, solved(proven=False)))
    assert "optimality  not proven; no schedule takes less than 25.000%" in lines
    assert "budget      none: the least peak" in lines
    result = solve_json(solved(proven=False))
    assert result["schedule"] == ["conv", "[/b]", "conv", LONG]
    assert result["overhead_percent"] == 50
    assert result["lower_bound_percent"] == 25
    assert result["recomputations"] == 1
