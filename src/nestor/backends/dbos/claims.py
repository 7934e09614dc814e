"""Lets DBOS take those workflows alone that a gate chose, from one queue for all.

A queue for each backend would cost a read of the database each, ten times a second, and
none of DBOS's limits knows of memory.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from dbos import DBOS

from nestor.ports.task_engine import Gate

_PAGE = 500
_GATE_S = 30.0
"""How long one poll waits for the gate; then the next one asks again."""
_REST = 10
"""After a look that let nobody in, the next one comes this many times its length later."""


class Waiting(Protocol):
    """What is asked of the engine."""

    def waiting(self, start: int, count: int) -> list[str]:
        """Read a page of the ids of workflows that wait, in the order they are taken."""
        ...

    def executing(self) -> list[str]:
        """Return the ids of tasks that run here."""
        ...


class GatedClaims:
    """Stands between DBOS's queue thread and its claim. Made where the gate's loop runs."""

    def __init__(
        self, gate: Gate, engine: Waiting, dbos: DBOS, queue: str, *, workers: int
    ) -> None:
        self._gate = gate
        self._engine = engine
        self._database: Any = dbos._sys_db  # noqa: SLF001 - dbos is pinned
        self._claim = self._database.start_queued_workflows
        self._queue = queue
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._chosen: list[str] = []
        self._not_before_s = 0.0

    def take_over(self) -> None:
        """From now on every claim of our queue goes through the gate."""
        self._database._claim_gate = self._only_chosen  # noqa: SLF001 - made for subclasses
        self._database.start_queued_workflows = self._claim_chosen

    def _only_chosen(self, queue_name: str, _partition: str | None) -> list[Any]:
        if queue_name != self._queue:
            return []
        row = self._database.tables.workflow_status.c
        return [row.workflow_uuid.in_(self._chosen)]

    def _claim_chosen(self, queue: Any, *arguments: Any, **named: Any) -> Any:
        """``SystemDatabase.start_queued_workflows``, in the thread of this one queue."""
        if queue.name != self._queue:
            return self._claim(queue, *arguments, **named)
        running = int(arguments[3])  # with those that DBOS has taken a moment ago
        # After ``drain`` the limit is 0, and this poll may have begun before it.
        room = min(queue._worker_concurrency, self._workers) - running  # noqa: SLF001
        chosen = self._choose(room)
        if not chosen:
            return [], None
        self._chosen, claimed = chosen, list[str]()
        try:
            claimed, why = self._claim(queue, *arguments, **named)
            return claimed, why
        finally:
            for name in set(chosen) - set(claimed):
                self._loop.call_soon_threadsafe(self._gate.left, _task_id(name))

    def _choose(self, room: int) -> list[str]:
        """Ask the gate; never about an empty queue, so an idle one costs a read alone."""
        began = time.monotonic()
        if room <= 0 or began < self._not_before_s:
            return []
        first = self._engine.waiting(0, _PAGE)
        if not first:
            return []
        names: dict[str, str] = {}
        looking = self._gate.choose(
            self._pages(first, names), room, self._engine.executing()
        )
        asking = asyncio.run_coroutine_threadsafe(looking, self._loop)
        try:
            chosen = asking.result(_GATE_S)
        except TimeoutError:
            asking.cancel()
            return []
        if not chosen:
            now = time.monotonic()
            self._not_before_s = now + _REST * (now - began)
        return [names[task_id] for task_id in chosen]

    async def _pages(
        self, page: list[str], names: dict[str, str]
    ) -> AsyncIterator[Sequence[str]]:
        start = 0
        while page:
            start += len(page)
            names.update({_task_id(name): name for name in page})
            yield [_task_id(name) for name in page]
            if len(page) < _PAGE:
                return
            page = await asyncio.to_thread(self._engine.waiting, start, _PAGE)


def _task_id(workflow_id: str) -> str:
    return workflow_id.rpartition(":")[0]
