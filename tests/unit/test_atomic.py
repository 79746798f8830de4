"""Files appear whole or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.errors import BadInput
from memcli.formats.atomic import write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(max_examples=40, deadline=None)
@given(first=st.binary(max_size=2000), second=st.binary(max_size=2000))
def test_what_is_written_is_what_is_there(first: bytes, second: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.json"
        write_atomically(path, first, overwrite=False)
        assert path.read_bytes() == first
        with pytest.raises(BadInput, match="exists already"):
            write_atomically(path, second, overwrite=False)
        assert path.read_bytes() == first
        write_atomically(path, second, overwrite=True)
        assert path.read_bytes() == second
        assert names(Path(folder)) == ["out.json"]


def test_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"x", overwrite=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_atomically(path, b"new", overwrite=True)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("step", ["fsync", "replace", "link"])
def test_nothing_is_left_behind_by_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str
) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"old")

    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else BadInput
    for path, overwrite in ((old, True), (tmp_path / "new", False)):
        if step in ("fsync", "replace" if overwrite else "link"):
            with pytest.raises(expected):
                write_atomically(path, b"new", overwrite=overwrite)
    monkeypatch.undo()
    assert old.read_bytes() == b"old"
    assert names(tmp_path) == ["old"]


def test_a_full_disk_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        write_atomically(tmp_path / "x", b"1", overwrite=True)


def test_without_hard_links_the_name_is_still_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_atomically(tmp_path / "x", b"1", overwrite=False)
    with pytest.raises(BadInput, match="exists already"):
        write_atomically(tmp_path / "x", b"2", overwrite=False)
    assert (tmp_path / "x").read_bytes() == b"1"
    assert names(tmp_path) == ["x"]


def test_a_file_that_comes_up_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    real = os.fsync

    def someone_else_is_faster(descriptor: int) -> None:
        real(descriptor)
        path.write_bytes(b"theirs")

    monkeypatch.setattr(os, "fsync", someone_else_is_faster)
    with pytest.raises(BadInput, match="exists already"):
        write_atomically(path, b"ours", overwrite=False)
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["x"]


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to("real")
    write_atomically(link, b"new", overwrite=True)
    assert link.is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    dangling = tmp_path / "dangling"
    dangling.symlink_to("later")
    with pytest.raises(BadInput, match="exists already"):
        write_atomically(dangling, b"x", overwrite=False)
    write_atomically(dangling, b"x", overwrite=True)
    assert (tmp_path / "later").read_bytes() == b"x"


def test_what_cannot_be_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for path, overwrite, words in (
        (tmp_path, True, "is a folder"),
        (tmp_path, False, "is a folder"),
        (tmp_path / "nowhere" / "x", False, "there is no folder"),
        (tmp_path / "file" / "x", False, "is not a folder"),
        (tmp_path / "pipe", True, "not a regular file"),
        (Path("/dev/null"), True, "not a regular file"),
        (Path("/dev/null"), False, "exists already"),
        (Path(""), True, "empty or a folder"),
        (tmp_path / ("x" * 300), True, "cannot be written"),
        (tmp_path / "a\0b", True, "cannot be written"),
    ):
        with pytest.raises(BadInput) as caught:
            write_atomically(path, b"x", overwrite=overwrite)
        assert words in caught.value.message
        assert all("\n" not in line for line in caught.value.lines())
    assert Path("/dev/null").is_char_device()


def test_no_permission_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser may write anywhere, so the refusal is made up.
    def denied(*_args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(BadInput, match="Permission denied") as caught:
        write_atomically(tmp_path / "x", b"x", overwrite=True)
    assert "-o" in caught.value.hint
