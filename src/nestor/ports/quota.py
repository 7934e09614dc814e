"""Requests and tokens a minute. tests/contracts/test_quota.py."""

from typing import Protocol

from nestor.model.health import Dependency

WINDOW_S = 60
"""The minute of ``rpm`` and ``tpm``."""
MAX_COST = 10**15
"""A larger cost is counted as this: such sums are whole numbers wherever they are kept."""


class Quota(Protocol):
    """A moving window of a minute for each name; memory is bounded.

    What is admitted under a name is never more than its limit in any 60 seconds, but for
    one cost that is over the limit by itself, and for what ``correct`` adds. It may be
    counted for up to a second longer. Never raises because of where counts are kept.
    """

    async def admit(self, name: str, *, limit: int, cost: int = 1) -> float | None:
        """Take ``cost`` of ``limit``: None. Else take nothing: seconds until it may fit.

        A cost over the limit fits an empty window: it would never be admitted otherwise.
        More than ``MAX_COST`` counts as that.
        """
        ...

    async def correct(self, name: str, *, by: int, age_s: float = 0.0) -> None:
        """Add what a call took over what it was admitted for (less: negative).

        ``age_s``: how long ago that was. What is no longer in the window is not made less:
        it would be taken from others' calls.
        """
        ...

    async def dependencies(self) -> list[Dependency]:
        """Look at where counts are kept; empty when that is this process."""
        ...

    async def close(self) -> None:
        """Close the connections to where counts are kept."""
        ...
