"""How a task and its live events stand in their tables; for every store that writes them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql import schema
from nestor.backends.sql.rows import encode, time_text
from nestor.errors import NotFound
from nestor.model.task import Task
from nestor.ports.task_store import TaskChange


async def read(
    connection: AsyncConnection, task_id: str, *, lock: bool = False
) -> Task:
    """Read one task; ``lock``: until the transaction ends. Raises ``NotFound``."""
    query = select(schema.task.c.body).where(schema.task.c.task_id == task_id)
    body = await connection.scalar(query.with_for_update() if lock else query)
    if body is None:
        raise NotFound.at("task_id", f"there is no task {task_id}")
    return decode(body)


async def write(connection: AsyncConnection, before: Task, after: Task) -> None:
    """Store what changed; nothing when nothing did. The row is there and locked."""
    if after != before:
        await connection.execute(
            update(schema.task)
            .where(schema.task.c.task_id == before.task_id)
            .values(**columns(after))
        )
    if (now := place(after)) != place(before):
        await connection.execute(
            update(schema.task_place)
            .where(schema.task_place.c.task_id == before.task_id)
            .values(**now)
        )


async def write_live(
    connection: AsyncConnection,
    task_id: str,
    live: Sequence[tuple[str, dict[str, Any]]],
    *,
    at: datetime,
) -> None:
    """Append live events. The task's row is locked, or was made in this transaction."""
    if not live:
        return
    # Because of that lock nobody else counts on from the same number.
    last = await connection.scalar(
        select(func.max(schema.task_event.c.id)).where(
            schema.task_event.c.task_id == task_id
        )
    )
    written = time_text(at)
    await connection.execute(
        schema.task_event.insert(),
        [
            {
                "task_id": task_id,
                "id": n,
                "kind": kind,
                "at": written,
                "data": encode(data),
            }
            for n, (kind, data) in enumerate(live, (last or 0) + 1)
        ],
    )


async def lock(connection: AsyncConnection, task_id: str) -> None:
    """Hold a task's row until the transaction ends, if there is one."""
    await connection.execute(
        select(schema.task.c.task_id)
        .where(schema.task.c.task_id == task_id)
        .with_for_update()
    )


async def append_live(
    connection: AsyncConnection,
    task_id: str,
    kind: str,
    data: dict[str, Any],
    *,
    at: datetime,
) -> None:
    """Append one live event, in one statement. The row is locked. Raises ``NotFound``."""
    last = (
        select(func.max(schema.task_event.c.id))
        .where(schema.task_event.c.task_id == task_id)
        .scalar_subquery()
    )
    row = select(
        schema.task.c.task_id,
        func.coalesce(last, 0) + 1,
        literal(kind),
        literal(time_text(at)),
        literal(encode(data)),
    ).where(schema.task.c.task_id == task_id)
    done = await connection.execute(
        schema.task_event.insert()
        .from_select(["task_id", "id", "kind", "at", "data"], row)
        .returning(schema.task_event.c.id)
    )
    if done.first() is None:
        raise NotFound.at("task_id", f"there is no task {task_id}")


def decode(body: str) -> Task:
    """Read a task as it is stored."""
    return msgspec.json.decode(body, type=Task)


def columns(one: Task) -> dict[str, Any]:
    """Return a task as the columns of its row."""
    return {
        "task_id": one.task_id,
        "status": one.status.value,
        "priority": one.priority,
        "phase": one.phase,
        "created_at": time_text(one.created_at),
        "body": encode(one),
    }


def place(one: Task) -> dict[str, Any]:
    """Return what the queue looks at of a task, as the columns of its second row."""
    return {
        "task_id": one.task_id,
        "submitted_by": one.submitted_by,
        "backend": one.backend,
        "memory_bytes": one.spec.sandbox.memory_bytes,
        "attempt": one.attempt,
        "waits": int(bool(one.waits_for)),
        "ends": int(one.cancel_requested),
    }


def changed(before: Task, change: TaskChange) -> Task:
    """Return the task with the fields that ``change`` sets."""
    given = {
        name: value
        for name in change.__struct_fields__
        if (value := getattr(change, name)) is not msgspec.UNSET
    }
    return msgspec.structs.replace(before, **given)
