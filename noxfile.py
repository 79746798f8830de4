"""What a developer runs, and CI with the same names: ``nox -s lint types layers docs tests``.

Every session runs in the environment that ``nox`` itself was installed into, which holds memcli
and its extra ``test``: the checks see the versions that the tests ran with, and nothing is
installed twice.
"""

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "layers", "docs"]


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and its format, over all Python files."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The type check of the package."""
    session.run("mypy")


@nox.session
def layers(session: nox.Session) -> None:
    """Which room may know which: the contracts in pyproject.toml."""
    session.run("lint-imports", "--no-logo")


@nox.session
def docs(session: nox.Session) -> None:
    """Links, anchors and commands in the documents."""
    session.run("pytest", "tests/unit/test_docs.py")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests on two processes; arguments behind ``--`` replace that."""
    session.run("pytest", *(session.posargs or ["-n", "2", "--dist", "worksteal"]))
