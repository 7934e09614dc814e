"""The meter's first memory, one a process. tests/contracts/test_call_journal.py.

A call is written twice: before the upstream is asked, and when it has ended. What was
begun and never ended is found at the next start, and kept as a call of which nobody
knows the end.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from nestor.model.routing import ModelCall


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """Calls that ended, oldest first, and the place in the journal behind them."""

    journal: str
    """Which journal (its process's id): the holder of leases."""
    position: int
    """Opaque; grows. What ended up to it is in ``calls`` or was handed out before."""
    calls: Sequence[ModelCall]


class CallJournal(Protocol):
    """Append-only, in the hands of the operating system when a method returns.

    ``kill -9`` loses nothing; a power cut may lose the last 200 ms. Where the disk takes
    no more, lines are kept in memory, counted, and tried again.
    """

    @property
    def id(self) -> str:
        """Of this process's journal; never used again by another."""
        ...

    def begin(self, call: ModelCall) -> None:
        """Note a call that is about to be made: what is known of it, charges as reserved.

        Begun again before it ended (another deployment is asked), the last time counts.
        """
        ...

    def end(self, call: ModelCall) -> None:
        """Note the same call as it ended. Once."""
        ...

    def settled(self, *, limit: int = 1000) -> Settled | None:
        """Return calls that ended and are not folded yet; None when there are none.

        The same ones again until ``folded``. Raises ``Unavailable`` when what is only on
        the disk cannot be read.
        """
        ...

    def folded(self, settled: Settled) -> None:
        """They are in SQL: their place may be let go."""
        ...

    def set_aside(self, settled: Settled, why: str) -> None:
        """SQL does not take them: keep them for a person, and let their place go.

        Raises ``Unavailable`` when they cannot be kept; then they are settled still.
        """
        ...

    def abandoned(self) -> Sequence["CallJournal"]:
        """Take over the journals of processes that are gone; their open calls are unsettled.

        Each is taken by one process only; let go of with ``close``: what is folded whole
        is gone then, anything else waits for the next taker. Nothing begins in them. One
        may hold no call, and its process leases all the same.
        """
        ...

    @property
    def waiting(self) -> int:
        """Calls that ended and are not folded."""
        ...

    @property
    def unwritten(self) -> int:
        """Lines that are only in memory, because the disk takes no more."""
        ...

    def close(self, *, keep: bool = False) -> None:
        """Write what is in memory, and let go of the file; with nothing left it is gone.

        ``keep``: not even then, for SQL was not told that this journal is gone
        (``CallLedger.forget``): its next taker tells it.
        """
        ...
