"""How the steps of planning an MXNet symbol share the time limit.

What MXNet is asked cannot be interrupted, so it is asked only where there is time for it: for other
forms of the network before the search, for the blocks that a plan reserves behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from memcli.time_limit import search_end, seconds_left

# Forms are analyzed until the search has this part of the limit left.
_SEARCH = 0.5
# A later analysis takes this part of the first one, which loads MXNet as well.
_AGAIN = 0.6
# For the table of stages, a bound, and writing the file; seconds, and as a part of an analysis.
_REST, _REST_PART = 0.4, 0.2


@dataclass(frozen=True)
class TimeShares:
    """Without a deadline there is time for everything.

    ``deadline``: by ``time.monotonic()``. ``limit``: seconds from the command's start to it.
    ``analysis``: seconds that analyzing the graph as it is took.
    """

    deadline: float | None = None
    limit: float = 0.0
    analysis: float = 0.0

    def for_form(self) -> bool:
        """Whether there is time to analyze another form of the network."""
        if self.deadline is None:
            return True
        return seconds_left(self.deadline) - self.analysis > _SEARCH * self.limit

    def for_reserving(self) -> bool:
        """Whether there is time for a search, and then to ask MXNet about the plan's graph."""
        if self.deadline is None:
            return True
        return seconds_left(self.deadline) > 4 * self._again + self._rest

    def search_ends(self, *, reserving: bool) -> float | None:
        """When the search is to end, so that there is time for what comes behind it."""
        # identities for plain kernels, and the blocks
        return search_end(self.deadline, self._rest + (2 * self._again if reserving else 0.0))

    @property
    def _again(self) -> float:
        return _AGAIN * self.analysis

    @property
    def _rest(self) -> float:
        return min(_REST + _REST_PART * self.analysis, 0.2 * self.limit)


UNLIMITED = TimeShares()
