"""Tasks, iterations, live events and the telemetry outbox in SQL."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql import schema
from nestor.backends.sql.database import Database
from nestor.backends.sql.outbox import queue
from nestor.backends.sql.rows import encode, insert, time_text
from nestor.errors import Conflict, NotFound
from nestor.model.event import Event
from nestor.model.task import FINAL_STATUSES, Iteration, Spent, Task, TaskStatus
from nestor.ports.task_store import (
    BackendTotals,
    TaskChange,
    TaskEvent,
    TaskFilter,
    TaskTotals,
)

Enqueue = Callable[[Connection, str, int], None]
"""``enqueue(connection, task_id, priority)`` inside the caller's transaction."""

_BATCH = 500
_PRIORITIES = ("P0", "P1", "P2", "P3")


class _Counted(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a ``Task`` that is added up; the rest is not decoded."""

    status: TaskStatus
    backend: str
    iteration: int = 0
    spent: Spent = Spent()


class SqlTaskStore:
    """``ports.task_store.TaskStore``. ``enqueue`` None: this process hands nothing over."""

    def __init__(
        self,
        database: Database,
        enqueue: Enqueue | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._enqueue = enqueue
        self._now = now

    async def add(
        self,
        task: Task,
        *,
        digest: str,
        enqueue: bool,
        telemetry: Sequence[Event] = (),
        live: Sequence[tuple[str, dict[str, Any]]] = (),
    ) -> tuple[Task, bool]:
        """Store a task, its first events and its place in the queue: all or nothing.

        Raises ``Conflict`` when the id is taken by another digest.
        """
        async with self._database.write() as connection:
            added = await connection.execute(
                insert(self._database, schema.task)
                .values(digest=digest, **_columns(task))
                .on_conflict_do_nothing()
                .returning(schema.task.c.task_id)
            )
            if added.first() is None:
                row = (
                    await connection.execute(
                        select(schema.task.c.digest, schema.task.c.body).where(
                            schema.task.c.task_id == task.task_id
                        )
                    )
                ).one()
                if row.digest != digest:
                    raise Conflict(
                        f"task_id: {task.task_id} was submitted before with another body"
                    )
                return _task(row.body), False
            await queue(self._database, connection, telemetry)
            await self._write_live(connection, task.task_id, live)
            if enqueue:
                await self._hand_over(connection, task)
        return task, True

    async def get(self, task_id: str) -> Task:
        """Read one task. Raises ``NotFound``."""
        async with self._database.read() as connection:
            return await _read(connection, task_id)

    async def all(self, which: TaskFilter, *, limit: int = 1000) -> list[Task]:
        """Read tasks, newest first; those over ``limit`` are left out."""
        query = select(schema.task.c.body).order_by(
            schema.task.c.created_at.desc(), schema.task.c.task_id.desc()
        )
        if which.ended:
            query = query.where(schema.task.c.status.in_(sorted(FINAL_STATUSES)))
        for column, wanted in (
            (schema.task.c.priority, which.priority),
            (schema.task.c.phase, which.phase),
            (schema.task.c.status, which.status),
        ):
            if wanted is not None:
                query = query.where(column == wanted)
        async with self._database.read() as connection:
            rows = await connection.execute(query.limit(limit))
            return [_task(body) for body in rows.scalars()]

    async def counts(self) -> dict[str, int]:
        """Count all tasks by status; statuses without a task are absent."""
        query = select(schema.task.c.status, func.count()).group_by(
            schema.task.c.status
        )
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return dict(rows.all())

    async def totals(self) -> TaskTotals:
        """Add up all tasks, however many there are, as they stand at one moment."""
        query = (
            select(schema.task.c.task_id, schema.task.c.body)
            .order_by(schema.task.c.task_id)
            .limit(_BATCH)
        )
        sums, last = _Sums(), ""
        async with self._database.read() as connection:
            while True:
                page = await connection.execute(
                    query.where(schema.task.c.task_id > last)
                )
                rows = page.all()
                for row in rows:
                    sums.add(msgspec.json.decode(row.body, type=_Counted))
                if len(rows) < _BATCH:
                    return sums.totals()
                last = rows[-1].task_id

    async def change(
        self,
        task_id: str,
        change: TaskChange,
        *,
        iteration: Iteration | None = None,
        telemetry: Sequence[Event] = (),
        live: Sequence[tuple[str, dict[str, Any]]] = (),
        unless: frozenset[TaskStatus] = frozenset(),
        enqueue: bool = False,
    ) -> Task:
        """Set fields, write an iteration, queue telemetry and live events: all or nothing."""
        async with self._database.write() as connection:
            before = await _read(connection, task_id, lock=True)
            if before.status in unless:
                return before
            after = _changed(before, change)
            if after != before:
                await connection.execute(
                    update(schema.task)
                    .where(schema.task.c.task_id == task_id)
                    .values(**_columns(after))
                )
            if iteration is not None:
                await self._write_iteration(connection, task_id, iteration)
            await queue(self._database, connection, telemetry)
            await self._write_live(connection, task_id, live)
            if enqueue:
                await self._hand_over(connection, after)
        return after

    async def iterations(self, task_id: str) -> list[Iteration]:
        """Read what was recorded, n ascending. Raises ``NotFound``."""
        query = (
            select(schema.iteration.c.body)
            .where(schema.iteration.c.task_id == task_id)
            .order_by(schema.iteration.c.n)
        )
        async with self._database.read() as connection:
            await _read(connection, task_id)
            rows = await connection.execute(query)
            return [
                msgspec.json.decode(body, type=Iteration) for body in rows.scalars()
            ]

    async def live(
        self, task_id: str, *, after: int, limit: int = 500
    ) -> list[TaskEvent]:
        """Read live events with an id greater than ``after``, ascending."""
        query = (
            select(schema.task_event)
            .where(
                schema.task_event.c.task_id == task_id, schema.task_event.c.id > after
            )
            .order_by(schema.task_event.c.id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [
                TaskEvent(
                    id=row.id,
                    kind=row.kind,
                    at=datetime.fromisoformat(row.at),
                    data=msgspec.json.decode(row.data),
                )
                for row in rows
            ]

    async def unsent(self, *, limit: int = 500) -> list[Event]:
        """Read telemetry that was committed but is not marked sent, oldest first."""
        query = (
            select(schema.event_outbox.c.event)
            .where(schema.event_outbox.c.sent_at.is_(None))
            .order_by(schema.event_outbox.c.seq)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [msgspec.json.decode(body, type=Event) for body in rows.scalars()]

    async def mark_sent(self, ids: Sequence[str]) -> None:
        """Note that these stand in the event log."""
        at = time_text(self._now())
        async with self._database.write() as connection:
            for start in range(0, len(ids), _BATCH):
                await connection.execute(
                    update(schema.event_outbox)
                    .where(schema.event_outbox.c.id.in_(ids[start : start + _BATCH]))
                    .where(schema.event_outbox.c.sent_at.is_(None))
                    .values(sent_at=at)
                )

    async def _hand_over(self, connection: AsyncConnection, one: Task) -> None:
        if self._enqueue is None:
            raise RuntimeError("this task store was made without an engine")
        priority = _PRIORITIES.index(one.priority)
        await connection.run_sync(self._enqueue, one.task_id, priority)

    async def _write_iteration(
        self, connection: AsyncConnection, task_id: str, one: Iteration
    ) -> None:
        body = encode(one)
        await connection.execute(
            insert(self._database, schema.iteration)
            .values(task_id=task_id, n=one.n, body=body)
            .on_conflict_do_update(index_elements=["task_id", "n"], set_={"body": body})
        )

    async def _write_live(
        self,
        connection: AsyncConnection,
        task_id: str,
        live: Sequence[tuple[str, dict[str, Any]]],
    ) -> None:
        if not live:
            return
        # The task's row is locked, so nobody else counts on from the same number.
        last = await connection.scalar(
            select(func.max(schema.task_event.c.id)).where(
                schema.task_event.c.task_id == task_id
            )
        )
        at = time_text(self._now())
        await connection.execute(
            schema.task_event.insert(),
            [
                {
                    "task_id": task_id,
                    "id": n,
                    "kind": kind,
                    "at": at,
                    "data": encode(data),
                }
                for n, (kind, data) in enumerate(live, (last or 0) + 1)
            ],
        )


class _Sums:
    """Adds tasks up."""

    def __init__(self) -> None:
        self._tasks = self._iterations = self._unknown = 0
        self._by_status: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._verified: Counter[str] = Counter()
        self._backends: set[str] = set()
        self._cost = Decimal(0)

    def add(self, one: _Counted) -> None:
        self._tasks += 1
        self._iterations += one.iteration
        self._by_status[one.status] += 1
        self._backends.add(one.backend)
        self._ended[one.backend] += one.status in FINAL_STATUSES
        self._verified[one.backend] += one.status is TaskStatus.VERIFIED
        if one.spent.usd is None:
            self._unknown += 1
        else:
            self._cost += one.spent.usd

    def totals(self) -> TaskTotals:
        return TaskTotals(
            tasks=self._tasks,
            by_status=dict(self._by_status),
            by_backend={
                name: BackendTotals(
                    ended=self._ended[name], verified=self._verified[name]
                )
                for name in sorted(self._backends)
            },
            iterations=self._iterations,
            cost_usd=self._cost,
            cost_unknown_tasks=self._unknown,
        )


async def _read(
    connection: AsyncConnection, task_id: str, *, lock: bool = False
) -> Task:
    query = select(schema.task.c.body).where(schema.task.c.task_id == task_id)
    body = await connection.scalar(query.with_for_update() if lock else query)
    if body is None:
        raise NotFound.at("task_id", f"there is no task {task_id}")
    return _task(body)


def _task(body: str) -> Task:
    return msgspec.json.decode(body, type=Task)


def _columns(one: Task) -> dict[str, Any]:
    return {
        "task_id": one.task_id,
        "status": one.status.value,
        "priority": one.priority,
        "phase": one.phase,
        "created_at": time_text(one.created_at),
        "body": encode(one),
    }


def _changed(before: Task, change: TaskChange) -> Task:
    given = {
        name: value
        for name in change.__struct_fields__
        if (value := getattr(change, name)) is not msgspec.UNSET
    }
    return msgspec.structs.replace(before, **given)
