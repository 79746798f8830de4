"""MXNet in the user's own process: imported in any order, and training what memcli planned.

Every scenario is a script of its own in a process of its own, as a user would write it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, ROOT, Command, needs_mxnet, only_json

pytestmark = needs_mxnet

NET = """
import mxnet as mx
x = mx.sym.Variable("data")
for i in range(8):
    x = mx.sym.Convolution(x, kernel=(3, 3), pad=(1, 1), num_filter=8, name=f"conv{i}")
    x = mx.sym.BatchNorm(x, fix_gamma=False, name=f"bn{i}")
    x = mx.sym.Activation(x, act_type="relu", name=f"relu{i}")
x = mx.sym.FullyConnected(x, num_hidden=2, name="fc")
net = mx.sym.SoftmaxOutput(x, name="softmax")
"""

FIT = """
import sys
import mxnet as mx
import numpy as np

def trained(path):
    net = mx.sym.load(path)
    draw = np.random.RandomState(0)
    y = draw.randint(0, 2, 64).astype(np.float32)
    x = draw.normal(0, 1, (64, 3, 16, 16)).astype(np.float32) + (y - 0.5)[:, None, None, None]
    data = mx.io.NDArrayIter(x, y, batch_size=8, label_name="softmax_label")
    module = mx.mod.Module(net)
    mx.random.seed(0)
    np.random.seed(0)
    # fit reads BatchNorm's statistics at the end of an epoch, and does not wait for the backward
    # pass, in which they are written: MXNet's engine does not know that it writes them
    module.fit(data, num_epoch=4, initializer=mx.init.Xavier(), optimizer="sgd",
               optimizer_params={"learning_rate": 0.05, "momentum": 0.9},
               batch_end_callback=lambda _: mx.nd.waitall())
    score = dict(module.score(data, "acc"))["accuracy"]
    arguments, states = module.get_params()
    return score, {n: v.asnumpy() for n, v in {**arguments, **states}.items()}

first, plain = trained("net.json")
second, planned = trained("planned.json")
assert set(plain) == set(planned)
print(first, second, all(plain[n].tobytes() == planned[n].tobytes() for n in plain))
"""

CLASSIC = """
import sys
import mxnet as mx
import numpy as np
from memcli import memonger

def residual():
    x = mx.sym.Variable(name="data")
    for i in range(12):
        y = mx.sym.Convolution(data=x, kernel=(3, 3), pad=(1, 1), num_filter=32)
        y = mx.sym.LeakyReLU(data=mx.sym.BatchNorm(data=y, fix_gamma=True), act_type="leaky")
        x = y + x if i else y
        x._set_attr(mirror_stage="True")
    flat = mx.symbol.Flatten(data=mx.symbol.Pooling(data=x, kernel=(8, 8), pool_type="avg"))
    net = mx.symbol.FullyConnected(data=flat, num_hidden=10, name="fc1")
    return mx.symbol.SoftmaxOutput(data=net, name="softmax"), {"data": (16, 3, 32, 32)}

def recurrent(steps=24, hidden=64, batch=32):
    c, h = mx.sym.Variable("init_c"), mx.sym.Variable("init_h")
    weights = [mx.sym.Variable(n) for n in ("i2h_weight", "i2h_bias", "h2h_weight", "h2h_bias")]
    losses = []
    shapes = {"init_c": (batch, hidden), "init_h": (batch, hidden)}
    for t in range(steps):
        with mx.AttrScope(ctx_group="layer0"):
            gates = mx.sym.FullyConnected(
                data=mx.sym.Variable("t%d_data" % t), weight=weights[0], bias=weights[1],
                num_hidden=4 * hidden,
            ) + mx.sym.FullyConnected(
                data=h, weight=weights[2], bias=weights[3], num_hidden=4 * hidden
            )
            part = mx.sym.SliceChannel(gates, num_outputs=4)
            kept = mx.sym.Activation(part[2], act_type="sigmoid") * c
            added = mx.sym.Activation(part[1], act_type="tanh")
            c = kept + mx.sym.Activation(part[0], act_type="sigmoid") * added
            h = mx.sym.Activation(part[3], act_type="sigmoid")
            h = h * mx.sym.Activation(c, act_type="tanh")
            c._set_attr(mirror_stage=str(t))
            h._set_attr(mirror_stage=str(t))
        scores = mx.sym.FullyConnected(data=h, num_hidden=8, name="t%d_cls" % t)
        label = mx.sym.Variable("t%d_label" % t)
        losses.append(mx.sym.softmax_cross_entropy(scores, label, name="t%d_sm" % t))
        shapes["t%d_data" % t], shapes["t%d_label" % t] = (batch, 20), (batch,)
    return mx.sym.Group(losses + [mx.sym.BlockGrad(c), mx.sym.BlockGrad(h)]), shapes

for made in (residual, recurrent):
    net, shapes = made()
    planned = memonger.search_plan(net, **shapes)
    old, new = memonger.get_cost(net, **shapes), memonger.get_cost(planned, **shapes)
    assert planned.list_arguments() == net.list_arguments()
    print("costs", old, new)
"""


BUCKETS = """
import random, sys
import memcli
import mxnet as mx
import numpy as np

def generated(steps):
    words, label = mx.sym.Variable("data"), mx.sym.Variable("softmax_label")
    embedded = mx.sym.Embedding(words, input_dim=20, output_dim=16, name="embed")
    outputs, _ = mx.rnn.LSTMCell(32, prefix="lstm_").unroll(
        steps, inputs=embedded, merge_outputs=True)
    flat = mx.sym.Reshape(outputs, shape=(-1, 32))
    scores = mx.sym.FullyConnected(flat, num_hidden=20, name="scores")
    return mx.sym.SoftmaxOutput(scores, mx.sym.Reshape(label, shape=(-1,)), name="softmax")

def trained(name):
    draw = np.random.RandomState(1)
    sentences = [list(draw.randint(1, 20, draw.choice([3, 7]))) for _ in range(64)]
    random.seed(0)
    np.random.seed(0)
    mx.random.seed(0)
    data = mx.rnn.BucketSentenceIter(sentences, 8, buckets=[4, 8], invalid_label=0)
    module = mx.mod.BucketingModule(
        lambda key: (mx.sym.load(name % key), ("data",), ("softmax_label",)),
        default_bucket_key=data.default_bucket_key)
    module.fit(data, num_epoch=1, eval_metric=mx.metric.Perplexity(0), optimizer="sgd")
    return {n: v.asnumpy() for n, v in module.get_params()[0].items()}

if sys.argv[1:] == ["make"]:
    for steps in (4, 8):
        generated(steps).save("bucket%d.json" % steps)
else:
    plain, planned = trained("bucket%d.json"), trained("planned%d.json")
    print(set(plain) == set(planned),
          all(plain[n].tobytes() == planned[n].tobytes() for n in plain))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip would fill it: the package, and the line that runs at Python's start."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "memcli", source / "memcli", ignore=shutil.ignore_patterns("*.pyc"))
    code = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
    built = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site-packages")
    return folder / "site-packages"


def run_script(
    text: str, folder: Path, *arguments: str, site: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A user's script. With ``site`` memcli is that of this site-packages, whose startup line runs;
    without, memcli is that of the checkout, and no startup line runs."""
    script = folder / "script.py"
    script.write_text(text)
    start = f"import site; site.addsitedir({str(site)!r})\n" if site else ""
    code = f"{start}import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(site or ROOT),
            "OMP_WAIT_POLICY": "PASSIVE",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(
    "lines",
    [
        "from memcli import memonger\nimport mxnet as mx",
        "from memcli import mxnet as mx",
        "import memcli.errors\nimport mxnet.gluon\nimport mxnet as mx",
    ],
)
def test_mxnet_imports_behind_memcli(lines: str, tmp_path: Path) -> None:
    ran = run_script(f"{lines}\nprint(float(mx.nd.ones(3).sum().asscalar()))", tmp_path)
    assert ran.stdout.strip() == "3.0", ran.stderr[-2000:]
    assert ran.stderr == ""  # no word of what MXNet's sources are deprecated for


def test_mxnet_imports_alone_where_memcli_is_installed(installed: Path, tmp_path: Path) -> None:
    text = "import mxnet as mx, sys\nprint('memcli.memonger' in sys.modules, mx.nd.ones(2).size)"
    ran = run_script(text, tmp_path, site=installed)
    assert ran.stdout.strip() == "False 2", ran.stderr[-2000:]
    # and numpy itself stays as it is for everyone else
    text = "import mxnet, numpy\nprint(hasattr(numpy, 'bool') and numpy.bool is bool)"
    assert run_script(text, tmp_path, site=installed).stdout.strip() == "False"


def test_the_start_of_python_loads_next_to_nothing(installed: Path, tmp_path: Path) -> None:
    text = (
        "import importlib.util, sys\n"
        "asked = importlib.util.find_spec('mxnet').name\n"
        "print(asked, sorted(m for m in sys.modules if m.split('.')[0] in "
        "('memcli', 'mxnet', 'numpy', 'click')))"
    )
    ran = run_script(text, tmp_path, site=installed)
    assert ran.stdout.strip() == "mxnet ['memcli', 'memcli.mxnet_import', 'memcli.version']", (
        ran.stderr
    )
    text = (
        "import sys\n"
        "print([f for f in sys.meta_path if getattr(f, '__module__', '').startswith('memcli.')])"
    )
    ran = run_script(text, tmp_path, site=installed, MEMCLI_MXNET_IMPORT="0")
    assert ran.stdout.strip() == "[]", ran.stderr


def test_running_leaves_an_installed_package_as_it_was(installed: Path, tmp_path: Path) -> None:
    """Or uninstalling leaves folders behind, which hide the next installation."""
    before = {path for path in installed.rglob("*") if path.suffix != ".pyc"}
    text = (
        "from memcli.cli.main import work\n"
        f"work(['plan', {str(EXAMPLES / 'lstm-symbol.json')!r}, '--strategy', 'none'])"
    )
    cache = {"XDG_CACHE_HOME": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    ran = run_script(text, tmp_path, site=installed, PYTHONDONTWRITEBYTECODE="1", **cache)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert {path for path in installed.rglob("*") if path.suffix != ".pyc"} == before
    assert list((tmp_path / "memcli" / "kernels").rglob("*.nbi"))


def test_a_planned_file_trains_with_module_as_the_original_does(
    memcli: Command, tmp_path: Path
) -> None:
    made = run_script(f"import memcli\n{NET}\nnet.save('net.json')", tmp_path)
    assert made.returncode == 0, made.stderr[-2000:]
    done = memcli(
        "plan",
        "net.json",
        "--shape",
        "data=8,3,16,16",
        "-o",
        "planned.json",
        "--time-limit",
        "2",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    planned = only_json(done)
    assert planned["memory"]["planned_bytes"] < planned["memory"]["baseline_bytes"] / 2
    environment = {"MXNET_MKLDNN_ENABLED": "0", **planned["environment"]}
    ran = run_script(f"import memcli\n{FIT}", tmp_path, **environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    first, second, equal = ran.stdout.split()
    assert float(first) > 0.7 and first == second and equal == "True"


def test_scripts_of_the_classic_planner_run_with_one_import_changed(
    installed: Path, tmp_path: Path
) -> None:
    ran = run_script(CLASSIC, tmp_path, site=installed)
    assert ran.returncode == 0, ran.stderr[-2000:]
    costs = [line.split()[1:] for line in ran.stdout.splitlines() if line.startswith("costs")]
    assert len(costs) == 2
    for old, new in costs:
        assert 0 < 2 * int(new) < int(old), json.dumps(costs)


@pytest.mark.slow
def test_buckets_train_each_under_a_plan_of_its_own(memcli: Command, tmp_path: Path) -> None:
    made = run_script(BUCKETS, tmp_path, "make")
    assert made.returncode == 0, made.stderr[-2000:]
    for steps in (4, 8):
        done = memcli(
            "plan",
            f"bucket{steps}.json",
            "--shape",
            f"data=8,{steps}",
            "--shape",
            f"softmax_label=8,{steps}",
            "--environment",
            "default",
            "--time-limit",
            "1",
            "-o",
            f"planned{steps}.json",
            "--json",
        )
        assert done.returncode == 0, done.stderr
        told = only_json(done)
        # one process has one environment, and trains all buckets
        assert told["environment"] == {}
        assert told["memory"]["planned_bytes"] < told["memory"]["baseline_bytes"]
    ran = run_script(BUCKETS, tmp_path)
    assert ran.stdout.split()[-2:] == ["True", "True"], ran.stderr[-2000:]


def test_a_graph_of_several_devices_is_said_to_be_planned_for_one(
    memcli: Command, tmp_path: Path
) -> None:
    layers = "\n".join(
        f"with mx.AttrScope(ctx_group='dev{k // 4}'):\n"
        f"    x = mx.sym.FullyConnected(x, num_hidden=64, name='fc{k}')\n"
        "    x = mx.sym.Activation(x, act_type='tanh')"
        for k in range(8)
    )
    text = f"import memcli, mxnet as mx\nx = mx.sym.Variable('data')\n{layers}\n"
    made = run_script(text + "mx.sym.SoftmaxOutput(x, name='softmax').save('net.json')", tmp_path)
    assert made.returncode == 0, made.stderr[-2000:]
    done = memcli("plan", "net.json", "--shape", "data=32,64", "--strategy", "cheap", "--json")
    assert done.returncode == 0, done.stderr
    [note] = [n for n in only_json(done)["notes"] if "ctx_group" in n]
    assert "'dev0', 'dev1'" in note and "one device" in note and "group2ctx" in note
