"""One model at any batch: recorded by its engine at each, and seen to be the same network."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from memcli.engines.mxnet.record import Analysis
from memcli.engines.torch.record import TorchAnalysis
from memcli.errors import BadInput
from memcli.request import Progress

A = TypeVar("A", bound=Analysis | TorchAnalysis)


class BatchSeries(ABC, Generic[A]):
    """Analyses of a model by batch; each batch is asked for once.

    ``first``: the model as it comes, which is at batch ``given``. ``refused``: batches that the
    engine cannot train, and why.
    """

    engine: str  # as users know it

    def __init__(
        self, path: str, given: int, first: A, on_progress: Progress | None = None
    ) -> None:
        self.path = path
        self.given = given
        self.first = first
        self.on_progress = on_progress
        self.refused: dict[int, str] = {}
        self.analyses: dict[int, A] = {given: first}

    @abstractmethod
    def analyzed(self, batch: int) -> A:
        """The model at a batch.

        Raises:
            BadInput: the engine refuses it.
            EngineFailed: the engine crashed.
        """

    @abstractmethod
    def hint(self, problem: str) -> str:
        """What would mend that the batch cannot be changed, for the user to read."""

    def too_large(self, batch: int) -> str:
        """Why a batch is out of the question, told without asking the engine; '' if it is not."""
        return ""

    def problem(self, analysis: A, batch: int) -> str:
        """Why what the engine made of the batch is not the network that was given, or ''."""
        return ""

    def is_limit(self, problem: str) -> bool:
        """Whether a batch was refused for its size alone, so that smaller ones may work."""
        return False

    def cheap(self) -> list[int]:
        """Batches that cost nothing to look at."""
        return [*self.analyses, *self.refused]

    def at(self, batch: int) -> A | None:
        """The model at a batch; None where the engine refuses it, with the reason in ``refused``.

        Raises:
            EngineFailed: the engine crashed.
        """
        if batch in self.analyses:
            return self.analyses[batch]
        if batch in self.refused:
            return None
        problem = self.too_large(batch)
        if not problem:
            if self.on_progress:
                self.on_progress(f"batch {batch:,}", None)
            try:
                analysis = self.analyzed(batch)
                problem = self.problem(analysis, batch)
            except BadInput as error:
                problem = error.message.removeprefix(f"{os.path.basename(self.path)}: ")
        if problem:
            self.refused[batch] = problem
            return None
        self.analyses[batch] = analysis
        return analysis

    def check_first_change(self) -> None:
        """Twice the batch must work, or half of it where size alone forbids that.

        Raises:
            BadInput: the batch is built into the model.
        """
        old = self.given
        if self.at(2 * old) is not None:
            return
        problem = self.refused[2 * old]
        if self.is_limit(problem) and old > 1 and self.at(old // 2) is not None:
            return
        raise BadInput(
            f"{self.path}: its batch cannot be changed from {old} to {2 * old}: {problem}",
            self.hint(problem),
        )
