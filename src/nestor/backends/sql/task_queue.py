"""Dependencies between tasks, and what waiting tasks ask for, in SQL."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    and_,
    func,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql import schema, task_rows
from nestor.backends.sql.database import Database
from nestor.backends.sql.outbox import queue
from nestor.backends.sql.rows import time_text
from nestor.errors import InvalidInput
from nestor.model.dependency import Unmet, circle_text, waiting_text
from nestor.model.task import Task, TaskStatus
from nestor.ports.task_queue import EndedBy, Need

Enqueue = Callable[[Connection, str, int, int], None]
"""``enqueue(connection, task_id, priority, attempt)`` inside the caller's transaction."""

PRIORITIES = ("P0", "P1", "P2", "P3")
_GRAPH_LOCK = 0x6E6573746F72_06
"""Who adds dependencies holds it, so that two at once cannot close a circle together."""
_BATCH = 500


class SqlTaskQueue:
    """``ports.task_queue.TaskQueue``."""

    def __init__(
        self,
        database: Database,
        enqueue: Enqueue,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._enqueue = enqueue
        self._now = now

    async def unmet(self, task: Task) -> list[Unmet]:
        """Return the dependencies that are not verified now, in the task's order."""
        async with self._database.read() as connection:
            return await _unmet(connection, task)

    async def waiting(self) -> dict[str, list[Unmet]]:
        """Return every queued task that waits for others, and for which."""
        edge, mine = schema.task_dependency.c, schema.task_place.alias("mine")
        query = (
            _edges(mine)
            .join(schema.task, schema.task.c.task_id == edge.task_id)
            .where(schema.task.c.status == TaskStatus.QUEUED.value, mine.c.waits == 1)
            .order_by(edge.task_id, edge.needs)
        )
        found: dict[str, list[Unmet]] = {}
        async with self._database.read() as connection:
            for row in await connection.execute(query):
                unmet = found.setdefault(row.task_id, [])
                if row.status != TaskStatus.VERIFIED:
                    unmet.append(_one(row.needs, row.status))
        return found

    async def settle(self, task_id: str, ended_by: EndedBy) -> Task | None:
        """Hand over, end, or note what it waits for now: decided under the task's lock."""
        async with self._database.write() as connection:
            before = await task_rows.read(connection, task_id, lock=True)
            if before.status is not TaskStatus.QUEUED or not before.waits_for:
                return None
            unmet = await _unmet(connection, before)
            broken = [one for one in unmet if one.ended]
            if broken:
                ending = ended_by(before, broken)
                after = task_rows.changed(before, ending.change)
                telemetry, live = ending.telemetry, ending.live
            else:
                after = noted(before, unmet)
                telemetry, live = [], [("task", _told(after))]
            if after == before:
                return None
            await task_rows.write(connection, before, after)
            await queue(self._database, connection, telemetry)
            await task_rows.write_live(connection, task_id, live, at=self._now())
            if not unmet:
                priority = PRIORITIES.index(after.priority)
                await connection.run_sync(
                    self._enqueue, task_id, priority, after.attempt
                )
        return after

    async def position(self, task: Task) -> int:
        """Count the queued tasks that go before this one, itself included."""
        if task.status is not TaskStatus.QUEUED or task.waits_for:
            return 0
        row = schema.task.c
        place = schema.task_place.c
        query = (
            select(func.count())
            .join_from(schema.task, schema.task_place, place.task_id == row.task_id)
            .where(
                row.status == TaskStatus.QUEUED.value,
                or_(
                    row.priority < task.priority,
                    (row.priority == task.priority)
                    & (row.created_at < time_text(task.created_at)),
                ),
                row.task_id != task.task_id,
                place.waits == 0,
            )
        )
        async with self._database.read() as connection:
            return 1 + int(await connection.scalar(query) or 0)

    async def needs(self, task_ids: Sequence[str]) -> list[Need]:
        """Read what these tasks ask for, in the order given."""
        found: dict[str, Need] = {}
        async with self._database.read() as connection:
            for start in range(0, len(task_ids), _BATCH):
                some = task_ids[start : start + _BATCH]
                rows = await connection.execute(
                    _needs().where(schema.task.c.task_id.in_(some))
                )
                found |= {row.task_id: _need(row) for row in rows}
        return [found[name] for name in task_ids if name in found]

    async def to_end(self) -> list[Need]:
        """Read the running tasks whose end was asked for."""
        query = _needs().where(
            schema.task.c.status == TaskStatus.RUNNING.value,
            schema.task_place.c.ends == 1,
        )
        async with self._database.read() as connection:
            return [_need(row) for row in await connection.execute(query)]


async def record(
    database: Database, connection: AsyncConnection, task: Task, *, any_owner: bool
) -> None:
    """Store what a new task needs, in the transaction that adds it.

    ``any_owner`` False: tasks of another key are not there for it. Raises ``InvalidInput`` that spells out the circle which it would close.
    """
    needs = list(dict.fromkeys(task.spec.dependencies))
    if not needs:
        return
    await database.serialise(connection, _GRAPH_LOCK)
    await connection.execute(
        schema.task_dependency.insert(),
        [
            {"task_id": task.task_id, "needs": name, "any_owner": int(any_owner)}
            for name in needs
        ],
    )
    if circle := await _circle(connection, task.task_id):
        raise InvalidInput.at("dependencies", circle_text(circle))


async def ready(connection: AsyncConnection, one: Task) -> Task:
    """Say what a task waits for that is to be handed over; nothing in ``waits_for``: go on."""
    if not one.spec.dependencies:
        return one
    return noted(one, await _unmet(connection, one))


def noted(one: Task, unmet: Sequence[Unmet]) -> Task:
    """Return the task as it says what it waits for; what it said of that before is gone."""
    if not unmet and not one.waits_for:
        return one
    return msgspec.structs.replace(
        one, waits_for=[u.task_id for u in unmet], detail=waiting_text(unmet)
    )


async def _unmet(connection: AsyncConnection, task: Task) -> list[Unmet]:
    edge, mine = schema.task_dependency.c, schema.task_place.alias("mine")
    rows = await connection.execute(_edges(mine).where(edge.task_id == task.task_id))
    statuses = {row.needs: row.status for row in rows}
    needs = dict.fromkeys(task.spec.dependencies)
    found = [_one(name, statuses.get(name)) for name in needs]
    return [one for one in found if one.status is not TaskStatus.VERIFIED]


def _edges(mine: FromClause) -> Select[tuple[str, str, str | None]]:
    """Read who needs what, and how that stands; ``status`` None: not there, or not for it."""
    edge, theirs = schema.task_dependency.c, schema.task_place.alias("theirs")
    needed = schema.task.alias("needed")
    return (
        select(edge.task_id, edge.needs, needed.c.status)
        .select_from(schema.task_dependency)
        .join(mine, mine.c.task_id == edge.task_id)
        .outerjoin(
            theirs,
            and_(theirs.c.task_id == edge.needs, _counts(mine, theirs)),
        )
        .outerjoin(needed, needed.c.task_id == theirs.c.task_id)
    )


def _counts(mine: FromClause, theirs: FromClause) -> ColumnElement[bool]:
    """Tell whether what a task needs is there for it at all."""
    own = theirs.c.submitted_by == mine.c.submitted_by
    return or_(schema.task_dependency.c.any_owner == 1, own)


def _needs() -> Select[Any]:
    row, place = schema.task.c, schema.task_place.c
    return select(
        *(row.task_id, row.status, place.backend, place.memory_bytes),
        *(place.attempt, place.ends),
    ).join_from(schema.task, schema.task_place, place.task_id == row.task_id)


def _need(row: Row[Any]) -> Need:
    return Need(
        task_id=row.task_id,
        status=TaskStatus(row.status),
        backend=row.backend,
        memory_bytes=row.memory_bytes,
        attempt=row.attempt,
        cancel_requested=bool(row.ends),
    )


async def _circle(connection: AsyncConnection, task_id: str) -> list[str]:
    """Find the way from a new task back to itself; [] when there is none.

    Over what is there for whoever needs it: the others wait in vain, circle or none.
    """
    edge = schema.task_dependency.c
    known = await connection.scalar(
        select(edge.needs).where(edge.needs == task_id).limit(1)
    )
    if known is None:  # nobody needs it: the usual case
        return []
    mine, theirs = (schema.task_place.alias(name) for name in ("mine", "theirs"))
    edges = (
        select(edge.task_id, edge.needs)
        .join_from(schema.task_dependency, mine, mine.c.task_id == edge.task_id)
        .join(theirs, theirs.c.task_id == edge.needs)
        .where(_counts(mine, theirs))
    )
    reached = edges.where(edge.task_id == task_id).cte("reached", recursive=True)
    reached = reached.union(edges.where(edge.task_id == reached.c.needs))
    rows = await connection.execute(select(reached.c.task_id, reached.c.needs))
    after: dict[str, list[str]] = {}
    for row in rows:
        after.setdefault(row.task_id, []).append(row.needs)
    return _way(task_id, after.pop(task_id, []), after)


def _way(task_id: str, needs: Sequence[str], after: dict[str, list[str]]) -> list[str]:
    """Return the shortest way, breadth first: a chain may be longer than the stack."""
    came_from = dict.fromkeys(needs, task_id)
    todo = list(needs)
    for name in todo:
        for following in after.get(name, ()):
            if following == task_id:
                return [task_id, *_back(name, task_id, came_from), task_id]
            if following not in came_from:
                came_from[following] = name
                todo.append(following)
    return []


def _back(name: str, start: str, came_from: dict[str, str]) -> Iterable[str]:
    way = []
    while name != start:
        way.append(name)
        name = came_from[name]
    return reversed(way)


def _one(task_id: str, status: str | None) -> Unmet:
    return Unmet(task_id=task_id, status=TaskStatus(status) if status else None)


def _told(task: Task) -> dict[str, object]:
    return {
        "status": task.status,
        "waits_for": task.waits_for,
        "detail": task.detail,
    }
