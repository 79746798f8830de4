"""Archives of ``torch.export.save`` from other hands: read within bounds, and never run."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from memcli.engines.torch.convert.exported_graph import convert_exported  # noqa: E402
from memcli.errors import BadInput  # noqa: E402
from memcli.formats.detect import detect_format  # noqa: E402
from memcli.formats.input_shapes import bind_shapes  # noqa: E402
from memcli.formats.pt2.archive import open_archive, with_member, without_member  # noqa: E402
from memcli.formats.pt2.file import PLAN_MEMBER, Pt2File, parse_pt2  # noqa: E402
from memcli.formats.pt2.nesting import parsed  # noqa: E402
from memcli.formats.trained_file import new_plan  # noqa: E402
from memcli.request import ShapeRequest  # noqa: E402
from tests.exported_programs import inputs, rewritten, saved, with_graph  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    saved(path)
    return path.read_bytes()


def read(data: bytes) -> Pt2File:
    return parse_pt2(data, "net.pt2", "0" * 64)


def converted(data: bytes) -> Any:
    file = read(data)
    return convert_exported(file, shapes=bind_shapes(file, ShapeRequest()).shapes, fake=True)


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_what_is_pickled_in_an_archive_is_never_opened(data: bytes, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    bomb = pickle.dumps(Bomb(ran))
    pickle.loads(bomb).close()  # it does run
    ran.unlink()

    def in_every_pickle(members: dict[str, bytes]) -> None:
        members["data/sample_inputs/model.pt"] = bomb
        members["data/constants/custom_obj_0"] = bomb

    converted(rewritten(data, in_every_pickle))

    def weights(members: dict[str, bytes]) -> None:
        name = next(n for n in members if n.endswith("_weights_config.json"))
        members[name] = members[name].replace(b'"use_pickle": false', b'"use_pickle": true')
        members["data/weights/weight_0"] = bomb

    with pytest.raises(BadInput, match="is pickled, and memcli unpickles nothing"):
        read(rewritten(data, weights))
    assert not ran.exists()


EVIL = "__import__('os').system('touch ran')"


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.__class__.mro",
        "torch.hub.load",
        "_operator.attrgetter",
        "math.__loader__",
        "#namespace:function",
        "torch.ops.mylib.evil.default",
        EVIL,
    ],
)
def test_only_operators_of_pytorch_are_called(data: bytes, target: str) -> None:
    def first(graph: dict[str, Any]) -> None:
        graph["graph_module"]["graph"]["nodes"][1]["target"] = target

    with pytest.raises(BadInput, match=r"not among PyTorch's own operators|no such operator"):
        converted(with_graph(data, first))


def test_no_text_of_a_file_is_evaluated(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def sizes(graph: dict[str, Any]) -> None:
        meta = graph["graph_module"]["graph"]["tensor_values"]["image"]
        meta["sizes"][0] = {"as_expr": {"expr_str": EVIL, "hint": {"as_int": 4}}}

    with pytest.raises(BadInput, match="an expression of symbols"):
        read(with_graph(data, sizes))

    def everywhere(graph: dict[str, Any]) -> None:
        graph["guards_code"] = [EVIL]
        for value in graph["graph_module"]["graph"]["sym_int_values"].values():
            value["as_expr"] = {"expr_str": EVIL, "hint": None}
        for call in graph["graph_module"]["module_call_graph"]:
            if call["signature"]:
                call["signature"]["in_spec"] = f'[1, {{"type": "{EVIL}"}}]'

    converted(with_graph(data, everywhere))
    assert not (tmp_path / "ran").exists()
    assert parsed('[1, {"type": "os.system", "context": "null", "children_spec": []}]') is not None


def bomb() -> bytes:
    """A small archive that says that it unpacks to a gigabyte."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/archive_format", "pt2")
        with file.open("m/models/model.json", "w", force_zip64=True) as member:
            for _ in range(1 << 8):
                member.write(bytes(1 << 20))
    return out.getvalue()


def overlapping(data: bytes) -> bytes:
    """An archive whose directory names one member many times over."""
    archive = open_archive(data, "net.pt2")
    info = max(archive.members.values(), key=lambda i: i.file_size)
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as file:
        for number in range(40):
            other = zipfile.ZipInfo(f"{archive.folder}/extra/{number}")
            other.file_size = other.compress_size = info.file_size
            other.CRC, other.header_offset = info.CRC, info.header_offset
            file.filelist.append(other)
        file._didModify = True  # type: ignore[attr-defined]
    return out.getvalue()


def renamed(name: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        return rewritten(data, lambda members: members.update({name: b"x"}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: bomb(), "unpacks to 256 MiB"),
        (overlapping, "overlap"),
        (renamed("../../etc/passwd"), "impossible name"),
        (renamed("extra/..\\evil"), "impossible name"),
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: b"PK\1\3".join(data.rsplit(b"PK\1\2", 1)), "damaged"),
        (lambda d: rewritten(d, lambda m: m.update({"archive_format": b"x"})), "is not pt2"),
        (lambda d: rewritten(d, lambda m: m.update({"models/b.json": b"{}"})), "holds 2 programs"),
        (lambda d: rewritten(d, lambda m: m.pop("data/weights/weight_0")), "not in the archive"),
        (lambda d: rewritten(d, lambda m: m.update({"data/weights/weight_0": b"x"})), "needs"),
        (lambda d: rewritten(d, lambda m: m.update({"models/model.json": b"[" * 9999})), "JSON"),
        (lambda d: with_graph(d, lambda g: g.update(schema_version={"major": 99})), "schema 99"),
        (lambda d: with_graph(d, lambda g: g.update(graph_module=[])), "a list of 0"),
    ],
)
def test_archives_that_no_pytorch_wrote_are_refused(
    data: bytes, change: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        read(change(data))
    assert caught.value.message.startswith("net.pt2: ") and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda n: n["inputs"][0].update(arg={"as_tensor": {"name": "nothing"}}),
            "reads 'nothing'",
        ),
        (lambda n: n["inputs"][0].update(arg={"as_int": 1, "as_float": 2}), "one field"),
        (lambda n: n["inputs"][0].update(arg={"as_custom_obj": {}}), "does not read"),
        (lambda n: n["inputs"][0].update(name="nothing"), "has no argument"),
        (lambda n: n.update(inputs=n["inputs"][:1]), "refuses"),
        (lambda n: n.update(outputs=[{"as_tensor": {"name": "image"}}]), "is there twice"),
        (lambda n: n["inputs"][3].update(arg={"as_ints": [0, 0]}), "refuses"),
        (lambda n: n["inputs"][3].update(arg={"as_string": "/etc/passwd"}), "no mode"),
    ],
)
def test_nodes_that_cannot_be_are_told_by_their_name(
    data: bytes, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    def change(graph: dict[str, Any]) -> None:
        nodes = graph["graph_module"]["graph"]["nodes"]
        edit(next(n for n in nodes if n["target"] == "torch.ops.aten.conv2d.default"))

    with pytest.raises(BadInput) as caught:
        converted(with_graph(data, change))
    assert "conv2d" in caught.value.message or "image" in caught.value.message
    assert message.replace("refuses", "PyTorch") in caught.value.message


def test_a_plan_is_put_on_and_comes_off_byte_for_byte(data: bytes) -> None:
    file = read(data)
    assert detect_format(data) == "pt2"
    marks = dict.fromkeys(file.node_names, "again")
    plan = new_plan(file, marks, strategy="auto", shapes={"image": [4, 3, 8, 8]}, dtype="float32")
    planned = read(file.planned_bytes(plan))
    assert planned.plan() == plan and planned.graph_sha256() == file.graph_sha256()
    assert planned.unplanned_bytes() == data
    assert read(planned.planned_bytes(plan)).unplanned_bytes() == data  # in its own place
    # another tool has written the archive anew: the plan comes off, bytes are its own
    again = rewritten(planned.archive.data, lambda members: None)
    assert read(again).plan() == plan and read(read(again).unplanned_bytes()).plan() is None

    def other(graph: dict[str, Any]) -> None:
        graph["graph_module"]["graph"]["nodes"].pop()
        graph["graph_module"]["signature"]["output_specs"].pop()

    with pytest.raises(BadInput, match="changed after it was planned"):
        read(with_graph(planned.archive.data, other)).plan()
    archive = open_archive(data, "net.pt2")
    text = with_member(archive, PLAN_MEMBER, b'{"schema": 1}')
    with pytest.raises(BadInput, match=r"memcli\.plan\.json: has no"):
        read(text).carried_plan()
    assert without_member(open_archive(text, "net.pt2"), PLAN_MEMBER) == data
    assert zlib.crc32(data) == zlib.crc32(read(text).unplanned_bytes())


class Detached(torch.nn.Module):
    """Changes what it made where no gradient sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        y.detach()[:, :2].mul_(2.0)
        return y


def test_writing_behind_the_back_of_gradients_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(Detached(), (torch.ones(2, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(BadInput, match="writes without gradients into a tensor that has one"):
        converted((tmp_path / "net.pt2").read_bytes())


def test_writing_in_place_gives_the_bits_of_the_program(data: bytes, tmp_path: Path) -> None:
    file = read(data)
    found = convert_exported(
        file, shapes={"image": [4, 3, 8, 8], "label": [4]}, archive=file.archive, fake=False
    )
    (tmp_path / "net.pt2").write_bytes(data)
    plain = torch.export.load(tmp_path / "net.pt2").module()
    torch.manual_seed(2)
    ours = found.module(*inputs())
    torch.manual_seed(2)
    theirs = plain(*inputs(), scale=2)
    ours[1].backward(), theirs["loss"].backward()
    assert torch.equal(ours[0], theirs["logits"]) and torch.equal(ours[1], theirs["loss"])
    for attribute, name in found.parameters.items():
        one, other = found.module.get_parameter(attribute).grad, plain.get_parameter(name).grad
        assert (one is None and other is None) or torch.equal(one, other), name
    assert set(found.states.values()) == {
        "average",
        *(f"blocks.{i}.1.{n}" for i in range(3) for n in ("running_mean", "running_var")),
        *(f"blocks.{i}.1.num_batches_tracked" for i in range(3)),
    }
    for attribute, name in found.states.items():
        assert torch.equal(found.module.get_buffer(attribute), plain.get_buffer(name)), name
