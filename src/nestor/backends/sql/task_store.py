"""Tasks, iterations, live events and the telemetry outbox in SQL."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql import schema, task_queue, task_rows
from nestor.backends.sql.audit_log import note
from nestor.backends.sql.database import Database
from nestor.backends.sql.outbox import queue
from nestor.backends.sql.rows import encode, insert, time_text
from nestor.errors import Conflict
from nestor.model.event import Event
from nestor.model.task import (
    FINAL_STATUSES,
    Approval,
    Iteration,
    Spent,
    Task,
    TaskStatus,
)
from nestor.ports.task_store import (
    AuditNote,
    BackendTotals,
    TaskChange,
    TaskEvent,
    TaskFilter,
    TaskTotals,
)

_BATCH = 500


class _Counted(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a ``Task`` that is added up; the rest is not decoded."""

    status: TaskStatus
    backend: str
    iteration: int = 0
    spent: Spent = Spent()


class SqlTaskStore:
    """``ports.task_store.TaskStore``. ``enqueue`` None: this process hands nothing over.

    ``ended`` is called after each commit that ends a task.
    """

    def __init__(
        self,
        database: Database,
        enqueue: task_queue.Enqueue | None = None,
        *,
        ended: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._enqueue = enqueue
        self._ended = ended
        self._now = now

    async def add(
        self,
        task: Task,
        *,
        digest: str,
        enqueue: bool,
        telemetry: Sequence[Event] = (),
        live: Sequence[tuple[str, dict[str, Any]]] = (),
        audit: Sequence[AuditNote] = (),
        carried: str | None = None,
        any_owner: bool = True,
    ) -> tuple[Task, bool]:
        """Store a task, its first events and its place in the queue: all or nothing.

        Raises ``Conflict`` when the id is taken by another digest.
        """
        async with self._database.write() as connection:
            added = await connection.execute(
                insert(self._database, schema.task)
                .values(digest=digest, **task_rows.columns(task))
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
                return task_rows.decode(row.body), False
            await connection.execute(
                schema.task_place.insert().values(**task_rows.place(task))
            )
            await task_queue.record(
                self._database, connection, task, any_owner=any_owner
            )
            await queue(self._database, connection, telemetry)
            await task_rows.write_live(connection, task.task_id, live, at=self._now())
            await self._write_carried(connection, task.task_id, carried)
            await note(self._database, connection, audit, at=self._now())
            if enqueue:
                task = await self._hand_over(connection, task)
        return task, True

    async def get(self, task_id: str) -> Task:
        """Read one task. Raises ``NotFound``."""
        async with self._database.read() as connection:
            return await task_rows.read(connection, task_id)

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
            return [task_rows.decode(body) for body in rows.scalars()]

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
        seen: Sequence[Approval] | None = None,
        attempt: int | None = None,
        enqueue: bool = False,
        audit: Sequence[AuditNote] = (),
        carried: str | None = None,
    ) -> Task:
        """Set fields, write an iteration, queue telemetry and live events: all or nothing."""
        async with self._database.write() as connection:
            before = await task_rows.read(connection, task_id, lock=True)
            if before.status in unless:
                return before
            if seen is not None and before.approvals != list(seen):
                return before
            if attempt is not None and before.attempt != attempt:
                return before
            after = task_rows.changed(before, change)
            await task_rows.write(connection, before, after)
            if iteration is not None:
                await self._write_iteration(connection, task_id, iteration)
            await queue(self._database, connection, telemetry)
            await task_rows.write_live(connection, task_id, live, at=self._now())
            await self._write_carried(connection, task_id, carried)
            await note(self._database, connection, audit, at=self._now())
            if enqueue:
                after = await self._hand_over(connection, after)
        if after.status in FINAL_STATUSES and before.status not in FINAL_STATUSES:
            self._ended()
        return after

    async def tell(self, task_id: str, kind: str, data: dict[str, Any]) -> None:
        """Append one live event. Raises ``NotFound``."""
        async with self._database.write() as connection:
            if not self._database.is_sqlite:  # which has one writer anyway
                await task_rows.lock(connection, task_id)
            await task_rows.append_live(connection, task_id, kind, data, at=self._now())

    async def carried(self, task_id: str) -> str | None:
        """Read what the last iteration left for the next attempt; None: nothing."""
        query = select(schema.task_carried.c.body).where(
            schema.task_carried.c.task_id == task_id
        )
        async with self._database.read() as connection:
            found: str | None = await connection.scalar(query)
            return found

    async def iterations(self, task_id: str) -> list[Iteration]:
        """Read what was recorded, n ascending. Raises ``NotFound``."""
        query = (
            select(schema.iteration.c.body)
            .where(schema.iteration.c.task_id == task_id)
            .order_by(schema.iteration.c.n)
        )
        async with self._database.read() as connection:
            await task_rows.read(connection, task_id)
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

    async def _hand_over(self, connection: AsyncConnection, one: Task) -> Task:
        """Give it to the engine, or say what it waits for."""
        if self._enqueue is None:
            raise RuntimeError("this task store was made without an engine")
        after = await task_queue.ready(connection, one)
        await task_rows.write(connection, one, after)
        if not after.waits_for:
            priority = task_queue.PRIORITIES.index(one.priority)
            await connection.run_sync(self._enqueue, one.task_id, priority, one.attempt)
        return after

    async def _write_iteration(
        self, connection: AsyncConnection, task_id: str, one: Iteration
    ) -> None:
        body = encode(one)
        await connection.execute(
            insert(self._database, schema.iteration)
            .values(task_id=task_id, n=one.n, body=body)
            .on_conflict_do_update(index_elements=["task_id", "n"], set_={"body": body})
        )

    async def _write_carried(
        self, connection: AsyncConnection, task_id: str, body: str | None
    ) -> None:
        if body is None:
            return
        await connection.execute(
            insert(self._database, schema.task_carried)
            .values(task_id=task_id, body=body)
            .on_conflict_do_update(index_elements=["task_id"], set_={"body": body})
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
