"""What can go wrong in a way the user can mend, each with its exit status.

Everything that is not one of these is a bug in memcli and may show a traceback.
"""

from __future__ import annotations

# How a message goes on where PyTorch itself does not take an operator's arguments.
REFUSED = "PyTorch refuses it"


class MemcliError(Exception):
    """Base of all errors that end a command with a message and no traceback.

    ``hint`` is the second line: what would mend it.
    """

    exit_status = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def lines(self) -> list[str]:
        """The one or two lines that standard error gets."""
        return [self.message] + ([self.hint] if self.hint else [])


class BadInput(MemcliError):
    """Bad usage or a bad file: exit status 2."""

    exit_status = 2


class AnswerIsNo(MemcliError):
    """The command worked and the answer is no: exit status 1.

    ``nearest``: the nearest answer that was found, with the keys of the object that the command
    prints of an answer under ``--json``; None where there is none.
    """

    exit_status = 1

    def __init__(
        self, message: str, hint: str = "", nearest: dict[str, object] | None = None
    ) -> None:
        super().__init__(message, hint)
        self.nearest = nearest


class EngineFailed(MemcliError):
    """An engine or device is missing, failed or crashed: exit status 3."""

    exit_status = 3
