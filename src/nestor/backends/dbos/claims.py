"""Lets DBOS take those workflows alone that a gate chose, from one queue for all.

A queue for each backend would cost a read of the database each, ten times a second, and
none of DBOS's limits knows of memory.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from dbos import DBOS

from nestor.backends.dbos.workflow_rows import task_id_of, workflow_id
from nestor.ports.task_engine import Gate

_PAGE = 100
_GATE_S = 30.0
"""How long one poll waits for the gate; then the next one asks again."""
_REST = 10
"""After a look that let nobody in, the next one comes this many times its length later."""
SPARE = 4
"""So many may be ended at once while all workers are busy: DBOS is told of more workers."""
_ENDING_S = 1.0
"""While no worker is free: how often those are looked for that only have to end."""

T = TypeVar("T")


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
        self._ending_not_before_s = 0.0

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
        most = min(queue._worker_concurrency, self._workers)  # noqa: SLF001
        if running < most:
            chosen = self._choose(most - running)
        else:
            chosen = self._ending() if most > 0 else []
        if not chosen:
            return [], None
        self._chosen, claimed = chosen, list[str]()
        try:
            claimed, why = self._claim(queue, *arguments, **named)
            return claimed, why
        finally:
            for name in set(chosen) - set(claimed):
                self._loop.call_soon_threadsafe(self._gate.left, task_id_of(name))

    def _choose(self, room: int) -> list[str]:
        """Ask the gate; never about an empty queue, so an idle one costs a read alone."""
        began = time.monotonic()
        if began < self._not_before_s:
            return []
        first = self._engine.waiting(0, _PAGE)
        if not first:
            return []
        names: dict[str, str] = {}
        chosen = self._asked(
            self._gate.choose(self._pages(first, names), room, self._engine.executing())
        )
        if chosen is None:
            return []
        if not chosen:
            now = time.monotonic()
            self._not_before_s = now + _REST * (now - began)
        return [names[task_id] for task_id in chosen]

    def _ending(self) -> list[str]:
        now = time.monotonic()
        if now < self._ending_not_before_s:
            return []
        self._ending_not_before_s = now + _ENDING_S
        found = self._asked(self._gate.ending(self._engine.executing()))
        return [workflow_id(*one) for one in found or ()]

    def _asked(self, question: Coroutine[Any, Any, T]) -> T | None:
        """Let the gate's loop answer; None: not in time."""
        asking = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return asking.result(_GATE_S)
        except TimeoutError:
            asking.cancel()
            return None

    async def _pages(
        self, page: list[str], names: dict[str, str]
    ) -> AsyncIterator[Sequence[str]]:
        start = 0
        while page:
            start += len(page)
            names.update({task_id_of(name): name for name in page})
            yield [task_id_of(name) for name in page]
            if len(page) < _PAGE:
                return
            page = await asyncio.to_thread(self._engine.waiting, start, _PAGE)
