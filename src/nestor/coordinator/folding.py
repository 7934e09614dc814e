"""Calls of one journal into SQL, batch after batch, past those that SQL does not take."""

import asyncio
from typing import Final

from nestor.errors import Unavailable
from nestor.ports.call_journal import CallJournal, Settled
from nestor.ports.call_ledger import CallLedger

BATCH: Final = 1000
"""Calls a transaction, at most."""


class Folding:
    """One pass through a journal: ``settled``, ``fold`` it, and again until None."""

    def __init__(self, ledger: CallLedger, journal: CallJournal) -> None:
        self._ledger = ledger
        self._journal = journal
        self._limit = BATCH
        self.aside = 0
        """Calls that were set aside."""

    def settled(self) -> Settled | None:
        """Return what is folded next."""
        return self._journal.settled(limit=self._limit)

    async def fold(self, settled: Settled) -> int | None:
        """Fold it; return how many were new. None: it was not taken, and fewer are next.

        Halved again and again a batch comes to the one call that SQL does not take: that
        one is set aside, if SQL takes any at all. Raises ``Unavailable``.
        """
        try:
            new = await self._ledger.fold(settled)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - what one call can do is not known
            if len(settled.calls) > 1:
                self._limit = len(settled.calls) // 2
            else:
                await self._set_aside(settled, error)
            return None
        self._limit = min(BATCH, 2 * self._limit)
        return new

    async def _set_aside(self, settled: Settled, error: Exception) -> None:
        # Its first line: what follows holds the statement, and all of the call.
        first = str(error).partition("\n")[0]
        why = f"{type(error).__name__}: {first[:200]}"
        try:
            await self._ledger.rehearse()
        except Exception as cause:
            message = f"the database takes no calls: {why}"
            raise Unavailable(message) from cause
        await asyncio.to_thread(self._journal.set_aside, settled, why)
        self.aside += len(settled.calls)


def was_told(settled: Settled, folded_to: int) -> bool:
    """Tell whether the events of what an earlier taker folded are written for sure.

    It went on to the next batch only when those of the one before were; which calls were
    in its last one nobody knows, but how many at most.
    """
    return settled.position <= folded_to - BATCH
