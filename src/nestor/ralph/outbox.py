"""Moves committed telemetry from SQL to the event log: nothing lost, nothing twice."""

import asyncio
from contextlib import suppress

from nestor.errors import Unavailable
from nestor.ports.event_log import EventLog
from nestor.ports.task_store import TaskStore
from nestor.telemetry.logs import get_logger

log = get_logger(__name__)
_BUFFER_POLL_S = 0.2
_STOP_S = 5.0


class OutboxRelay:
    """One per data folder. ``nudge`` after a commit; it also looks by itself.

    Who dies, or is interrupted, between the append and the note of it leaves an event
    that is both in the log and unsent; so the round after that asks the log what it has.
    """

    def __init__(
        self, store: TaskStore, event_log: EventLog, *, every_s: float = 1.0
    ) -> None:
        self._store = store
        self._log = event_log
        self._every_s = every_s
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._unsure = True

    def nudge(self) -> None:
        """Look soon."""
        self._wake.set()

    def start(self) -> None:
        """Begin looking."""
        self._task = asyncio.create_task(self._loop(), name="outbox")

    async def stop(self) -> None:
        """Send what is committed, then end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        # A disk that stays full must not hold up the end: what waits is in SQL.
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self.drain()

    async def drain(self) -> int:
        """Send everything that waits; returns how many events."""
        sent = 0
        async with self._turn:
            while events := await self._store.unsent():
                ids = frozenset(event.id for event in events)
                seen = self._log.seen(ids) if self._unsure else frozenset()
                self._unsure = True
                self._log.append([event for event in events if event.id not in seen])
                written = await self._written(ids)
                await self._store.mark_sent(sorted(written))
                self._unsure = False
                sent += len(written)
        return sent

    async def _written(self, ids: frozenset[str]) -> frozenset[str]:
        """Wait until the log has them on its file; what it had to drop is left out."""
        if not self._log.buffered:
            return ids
        while self._log.buffered:  # noqa: ASYNC110 - a disk sends no event
            await asyncio.sleep(_BUFFER_POLL_S)
        return self._log.seen(ids)

    async def _loop(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.drain()
            except Unavailable as error:
                log.warning("outbox_waits", error=str(error))
            try:
                async with asyncio.timeout(self._every_s):
                    await self._wake.wait()
            except TimeoutError:
                continue
