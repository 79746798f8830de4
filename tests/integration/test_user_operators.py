"""Graphs with user operators (``Custom``): planned with the user's code, refused without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command, needs_mxnet, only_json

pytestmark = needs_mxnet

OPERATOR = """
import mxnet as mx

class Twice(mx.operator.CustomOp):
    def forward(self, is_train, req, in_data, out_data, aux):
        self.assign(out_data[0], req[0], 2 * in_data[0])

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        self.assign(in_grad[0], req[0], 2 * out_grad[0])

@mx.operator.register("twice")
class TwiceProp(mx.operator.CustomOpProp):
    def __init__(self):
        super().__init__(need_top_grad=True)

    def infer_shape(self, shapes):
        return shapes, [shapes[0]], []

    def create_operator(self, ctx, shapes, dtypes):
        return Twice()

if __name__ == "__main__":
    raise RuntimeError("the main part of a script is not run")
"""

SCRIPT = """
import json, re, sys
from memcli import memonger
from memcli import mxnet as mx
import operators

x = mx.sym.Variable("data")
for i in range(12):
    x = mx.sym.FullyConnected(x, num_hidden=128, name=f"fc{i}")
    x = mx.sym.Activation(x, act_type="tanh", name=f"act{i}")
    if i == 5:
        x = mx.sym.Custom(x, op_type="twice", name="mine")
net = mx.sym.LinearRegressionOutput(x, name="out")
net.save("net.json")
if sys.argv[1:]:
    mx.sym.Variable("other").simple_bind(mx.cpu(), other=(2, 2))
try:
    planned = memonger.search_plan(net, data=(4096, 128))
except Exception as error:
    print(type(error).__name__, error)
    raise SystemExit
costs = [memonger.get_cost(s, data=(4096, 128)) for s in (net, planned)]
bound = [s.simple_bind(mx.cpu(), data=(4096, 128)).debug_str() for s in (net, planned)]
totals = [int(re.search(r"Total (\\d+) MB", text)[1]) for text in bound]
marked = [n["name"] for n in json.loads(planned.tojson())["nodes"]
          if "__force_mirroring__" in n.get("attrs", {})]
print(json.dumps([costs, totals, "mine" in marked]))
"""


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "operators.py").write_text(OPERATOR)
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, "script.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_user_operators_are_planned_where_their_code_is(memcli: Command, tmp_path: Path) -> None:
    ran = script(tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    # memonger finds it in the script's process; the plan is as MXNet says
    lines = ran.stdout.splitlines()
    [(old, new), totals, marked] = json.loads(lines[-1])
    assert [old, new] == totals and new < old and not marked
    assert "_backward" not in ran.stderr  # no word of MXNet's memory plan in the user's log

    shape = ("--shape", "data=64,128", "--time-limit", "1")
    refused = memcli("plan", "net.json", *shape, "-o", "p.json")
    assert refused.returncode == 2
    assert "'mine'" in refused.stderr and "'twice'" in refused.stderr
    assert "--import FILE" in refused.stderr and not (tmp_path / "p.json").exists()
    (tmp_path / "other.py").write_text("import mxnet\n")
    refused = memcli("plan", "net.json", *shape, "--import", "other.py")
    assert refused.returncode == 2 and "registers the user operator 'twice'" in refused.stderr
    (tmp_path / "broken.py").write_text("x = 1\nx = y\n")
    refused = memcli("plan", "net.json", *shape, "--import", "broken.py")
    assert refused.returncode == 2 and "broken.py, line 2: NameError" in refused.stderr
    assert "Traceback" not in refused.stderr

    done = memcli(
        "plan",
        "net.json",
        *shape,
        "--import",
        "operators.py",
        "-o",
        "p.json",
        "--measure",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    told = only_json(done)
    assert told["verify"]["ok"]
    assert told["memory"]["planned_bytes"] < told["memory"]["baseline_bytes"]
    assert "operators.py" not in (tmp_path / "p.json").read_text()  # a file names no code


def test_memonger_says_when_it_comes_too_late(tmp_path: Path) -> None:
    ran = script(tmp_path, "bind first")
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.startswith("BadInput") and "before the process binds" in ran.stdout
