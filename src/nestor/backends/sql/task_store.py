"""Tasks, iterations, live events and the telemetry outbox in SQL."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql import schema
from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import encode, insert, time_text
from nestor.errors import Conflict, NotFound
from nestor.model.event import Event
from nestor.model.task import Iteration, Task, TaskStatus
from nestor.ports.task_store import TaskChange, TaskEvent, TaskFilter

Enqueue = Callable[[Connection, str, int], None]
"""``enqueue(connection, task_id, priority)`` inside the caller's transaction."""

_BATCH = 500
_PRIORITIES = ("P0", "P1", "P2", "P3")


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
    ) -> tuple[Task, bool]:
        """Store a task and hand it to the engine in one commit. Raises ``Conflict``."""
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
            if enqueue:
                await self._hand_over(connection, task)
        return task, True

    async def get(self, task_id: str) -> Task:
        """Read one task. Raises ``NotFound``."""
        async with self._database.read() as connection:
            return await _read(connection, task_id)

    async def all(self, which: TaskFilter, *, limit: int = 1000) -> list[Task]:
        """Read tasks, oldest first."""
        query = select(schema.task.c.body).order_by(
            schema.task.c.created_at, schema.task.c.task_id
        )
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
            if telemetry:
                await connection.execute(
                    insert(self._database, schema.event_outbox).on_conflict_do_nothing(
                        index_elements=["id"]
                    ),
                    [{"id": one.id, "event": encode(one)} for one in telemetry],
                )
            if live:
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
