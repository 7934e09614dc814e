"""Moves committed telemetry from SQL to the event log: nothing lost, nothing twice."""

import asyncio
import logging

from nestor.errors import Unavailable
from nestor.ports.event_log import EventLog
from nestor.ports.task_store import TaskStore

log = logging.getLogger(__name__)


class OutboxRelay:
    """One per data folder. ``nudge`` after a commit; it also looks by itself.

    A process that dies between the append and its note of it leaves an event that is
    both in the log and unsent; so the first round asks the log what it has already seen.
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
        self._first = True

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
        await self.drain()

    async def drain(self) -> int:
        """Send everything that waits; returns how many events."""
        sent = 0
        async with self._turn:
            while events := await self._store.unsent():
                ids = frozenset(event.id for event in events)
                seen = self._log.seen(ids) if self._first else frozenset()
                self._log.append([event for event in events if event.id not in seen])
                await self._store.mark_sent([event.id for event in events])
                sent += len(events)
            self._first = False
        return sent

    async def _loop(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.drain()
            except Unavailable as error:
                log.warning("the event outbox waits: %s", error)
            try:
                async with asyncio.timeout(self._every_s):
                    await self._wake.wait()
            except TimeoutError:
                continue
