"""Which version of the knowledge base an answer must be of, without asking SQL each time."""

import asyncio
import time
from collections.abc import Awaitable, Callable

RECHECK_S = 0.1
"""What another process wrote is seen after so long at the latest."""


class Freshness:
    """Remembers the store's version for 100 ms, and not past a write of this process.

    Whoever writes calls ``changed`` before he tells that it is done. A query that begins
    after that reads the version anew, so it sees the write; a reading that was under way
    while something changed is made again. Only processes that share the database without
    sharing this object (none does by default: one owns the index) may lag, by ``RECHECK_S``.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[int]],
        *,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._timer = timer
        self._epoch = 0
        self._known: int | None = None
        self._until = 0.0
        self._reading: tuple[int, asyncio.Task[int]] | None = None

    def changed(self) -> None:
        """Tell that this process wrote something."""
        self._epoch += 1
        self._known = None

    def known(self) -> int | None:
        """Return the version where it need not be asked for."""
        if self._known is not None and self._timer() < self._until:
            return self._known
        return None

    async def version(self) -> int:
        """Return the version. Raises what reading it raises."""
        while True:
            if (known := self.known()) is not None:
                return known
            epoch = self._epoch
            if self._reading is None or self._reading[0] != epoch:
                task = asyncio.create_task(self._read_now(epoch))
                task.add_done_callback(lambda t: t.cancelled() or t.exception())
                self._reading = epoch, task
            found = await asyncio.shield(self._reading[1])
            if epoch == self._epoch:
                return found

    async def _read_now(self, epoch: int) -> int:
        asked = self._timer()
        try:
            found = await self._read()
        finally:
            if self._reading is not None and self._reading[0] == epoch:
                self._reading = None
        if epoch == self._epoch:
            self._known, self._until = found, asked + RECHECK_S
        return found
