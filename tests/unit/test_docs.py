"""The documents: links and anchors lead somewhere, commands exist, the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import memcli
from memcli.cli.main import COMMANDS
from tests.conftest import ROOT

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """Those that a Markdown file's headings have on a web page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in _LINK.findall(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path if not file else path.parent / file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_shows_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for command in COMMANDS:
        assert f"memcli {command}" in text


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_examples_exist(path: Path) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    called = re.findall(r"^(?:\$ )?memcli ([a-z]+)", "\n".join(blocks), re.M)
    assert set(called) <= set(COMMANDS)


def test_every_python_function_is_told_of() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for name in memcli.__all__:
        assert f"memcli.{name}(" in text or name == "__version__"
