"""What an engine's C++ writes to standard error, caught below Python's own stream."""

from __future__ import annotations

import os

import pytest

from memcli.engines.mxnet.capture import capture_stderr


def test_all_of_a_long_log_is_caught_and_nothing_behind_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = [b"node %d of a graph's memory plan\n" % number for number in range(60_000)]
    with capture_stderr() as captured:
        for line in lines:
            os.write(2, line[:5])
            os.write(2, line[5:])
    os.write(2, b"afterwards\n")
    assert captured.data() == b"".join(lines)
    assert capfd.readouterr().err == "afterwards\n"


def test_standard_error_is_back_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no graph"), capture_stderr() as captured:
        os.write(2, b"caught")
        raise ValueError("no graph")
    os.write(2, b"seen")
    assert captured.data() == b"caught"
    assert capfd.readouterr().err == "seen"


def test_files_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        with capture_stderr():
            pass
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before
