"""Dependencies between tasks, and what waiting tasks ask for, in SQL."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import msgspec
from sqlalchemy import Connection, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql import schema, task_rows
from nestor.backends.sql.database import Database
from nestor.backends.sql.outbox import queue
from nestor.backends.sql.rows import time_text
from nestor.errors import InvalidInput
from nestor.model.dependency import Unmet, circle_text, waiting_text
from nestor.model.task import Task, TaskStatus
from nestor.ports.task_queue import EndedBy, Need

Enqueue = Callable[[Connection, str, int], None]
"""``enqueue(connection, task_id, priority)`` inside the caller's transaction."""

PRIORITIES = ("P0", "P1", "P2", "P3")
_GRAPH_LOCK = 0x6E6573746F72_06
"""Who adds dependencies holds it, so that two at once cannot close a circle together."""
_WAITS = '%"waits_for":["%'
"""A task's body that names what it waits for. In a text within it the quotes are escaped;
only a free-form ``context`` could look alike, and whoever is found is read whole."""
_BATCH = 500


class _Needing(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a ``Task`` that admission looks at; the rest is not decoded."""

    class Spec(msgspec.Struct, frozen=True, kw_only=True):
        class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
            memory_bytes: int | None = None

        sandbox: Sandbox = Sandbox()

    task_id: str
    status: TaskStatus
    backend: str
    spec: Spec = Spec()


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
        needed = schema.task.alias("needed")
        edge = schema.task_dependency
        query = (
            select(edge.c.task_id, edge.c.needs, needed.c.status)
            .select_from(edge)
            .join(schema.task, schema.task.c.task_id == edge.c.task_id)
            .outerjoin(needed, needed.c.task_id == edge.c.needs)
            .where(
                schema.task.c.status == TaskStatus.QUEUED.value,
                schema.task.c.body.like(_WAITS),
            )
            .order_by(edge.c.task_id, edge.c.needs)
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
                await connection.run_sync(self._enqueue, task_id, priority)
        return after

    async def position(self, task: Task) -> int:
        """Count the queued tasks that go before this one, itself included."""
        if task.status is not TaskStatus.QUEUED or task.waits_for:
            return 0
        row = schema.task.c
        query = select(func.count()).where(
            row.status == TaskStatus.QUEUED.value,
            or_(
                row.priority < task.priority,
                (row.priority == task.priority)
                & (row.created_at < time_text(task.created_at)),
            ),
            row.task_id != task.task_id,
            row.body.not_like(_WAITS),
        )
        async with self._database.read() as connection:
            return 1 + int(await connection.scalar(query) or 0)

    async def needs(self, task_ids: Sequence[str]) -> list[Need]:
        """Read what these tasks ask for, in the order given."""
        row, found = schema.task.c, dict[str, Need]()
        async with self._database.read() as connection:
            for start in range(0, len(task_ids), _BATCH):
                some = task_ids[start : start + _BATCH]
                bodies = await connection.execute(
                    select(row.body).where(row.task_id.in_(some))
                )
                for body in bodies.scalars():
                    one = msgspec.json.decode(body, type=_Needing)
                    found[one.task_id] = Need(
                        task_id=one.task_id,
                        status=one.status,
                        backend=one.backend,
                        memory_bytes=one.spec.sandbox.memory_bytes,
                    )
        return [found[name] for name in task_ids if name in found]


async def record(database: Database, connection: AsyncConnection, task: Task) -> None:
    """Store what a new task needs, in the transaction that adds it.

    Raises ``InvalidInput`` that spells out the circle which it would close.
    """
    needs = list(dict.fromkeys(task.spec.dependencies))
    if not needs:
        return
    await database.serialise(connection, _GRAPH_LOCK)
    if circle := await _circle(connection, task.task_id, needs):
        raise InvalidInput.at("dependencies", circle_text(circle))
    await connection.execute(
        schema.task_dependency.insert(),
        [{"task_id": task.task_id, "needs": name} for name in needs],
    )


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
    needs = list(dict.fromkeys(task.spec.dependencies))
    statuses: dict[str, str] = {}
    for start in range(0, len(needs), _BATCH):
        rows = await connection.execute(
            select(schema.task.c.task_id, schema.task.c.status).where(
                schema.task.c.task_id.in_(needs[start : start + _BATCH])
            )
        )
        statuses |= {row.task_id: row.status for row in rows}
    found = [_one(name, statuses.get(name)) for name in needs]
    return [one for one in found if one.status is not TaskStatus.VERIFIED]


async def _circle(
    connection: AsyncConnection, task_id: str, needs: Sequence[str]
) -> list[str]:
    """Find the way from what a new task needs back to itself; [] when there is none."""
    edge = schema.task_dependency.c
    known = await connection.scalar(
        select(edge.needs).where(edge.needs == task_id).limit(1)
    )
    if known is None:  # nobody needs it: the usual case
        return []
    reached = (
        select(edge.task_id, edge.needs)
        .where(edge.task_id.in_(list(needs)))
        .cte("reached", recursive=True)
    )
    reached = reached.union(
        select(edge.task_id, edge.needs).where(edge.task_id == reached.c.needs)
    )
    rows = await connection.execute(select(reached.c.task_id, reached.c.needs))
    after: dict[str, list[str]] = {}
    for row in rows:
        after.setdefault(row.task_id, []).append(row.needs)
    return _way(task_id, needs, after)


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
