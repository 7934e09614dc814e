"""What Nestor reads and writes itself of DBOS's table of workflows.

A workflow belongs to one attempt at a task and is named after both. All calls are
synchronous, on a connection of the caller's.
"""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from nestor.errors import Conflict

_WAITING = ("ENQUEUED", "DELAYED")
_COLUMNS = (
    *("workflow_uuid", "status", "recovery_attempts", "queue_name", "priority"),
    *("created_at", "application_version", "executor_id"),
)


def workflow_id(task_id: str, attempt: int) -> str:
    """Name the workflow of an attempt."""
    return f"{task_id}:{attempt}"  # a task id has no colon


def task_id_of(workflow_id: str) -> str:
    """Return whose workflow it is."""
    return workflow_id.rpartition(":")[0]


def attempt_of(workflow_id: str) -> int:
    """Return which attempt it was enqueued for."""
    return int(workflow_id.rpartition(":")[2])


class WorkflowRows:
    """``schema``: where DBOS keeps its tables; None: it has none. ``version``: ours."""

    def __init__(self, schema: str | None, *, queue: str, version: str) -> None:
        self._queue = queue
        self._version = version
        self._status = sa.table(
            "workflow_status", *map(sa.column, _COLUMNS), schema=schema
        )
        self._steps = sa.table(
            "operation_outputs", sa.column("workflow_uuid"), schema=schema
        )

    def waiting(self, connection: sa.Connection, start: int, count: int) -> list[str]:
        """Read a page of the ids of workflows that wait, in the order they are taken."""
        row, mine = self._status.c, self._version
        query = (
            sa.select(row.workflow_uuid)
            .where(row.queue_name == self._queue, row.status == "ENQUEUED")
            .where(sa.func.coalesce(row.application_version, mine) == mine)
            .order_by(row.priority.asc(), row.created_at.asc())
            .limit(count)
            .offset(start)
        )
        return list(connection.scalars(query))

    def enqueued(self, connection: sa.Connection, names: Iterable[str]) -> set[str]:
        """Return those of ``names`` that wait in the queue: no process holds them."""
        row = self._status.c
        query = sa.select(row.workflow_uuid).where(
            row.workflow_uuid.in_(list(names)), row.status.in_(_WAITING)
        )
        return set(connection.scalars(query))

    def make_room(self, connection: sa.Connection, task_id: str, attempt: int) -> bool:
        """Take earlier attempts out of the queue; False: this one is in it already.

        Nobody holds those, and their end was told: begun again, they would be in the way.
        Raises ``Conflict`` while one is running, or when this one ran before.
        """
        row, mine = self._status.c, workflow_id(task_id, attempt)
        names = [workflow_id(task_id, number) for number in range(1, attempt + 1)]
        # Before the look: whoever takes one meanwhile is seen as running by it.
        self._cancel(connection, row.workflow_uuid.in_(names[:-1]))
        found = connection.execute(
            sa.select(row.workflow_uuid, row.status).where(row.workflow_uuid.in_(names))
        )
        statuses: dict[str, str] = dict(found.all())
        if "PENDING" in statuses.values():
            raise Conflict(f"task {task_id} is still running; try again when it ended")
        now = statuses.get(mine)
        if now is not None and now not in _WAITING:
            raise Conflict(f"attempt {attempt} at task {task_id} has ended already")
        return now is None

    def begun(self, connection: sa.Connection, name: str) -> int:
        """Read how often it was taken from the queue; written before it runs."""
        row = self._status.c
        query = sa.select(row.recovery_attempts).where(row.workflow_uuid == name)
        return int(connection.scalar(query) or 0)

    def uncount(self, connection: sa.Connection, names: Iterable[str]) -> None:
        """Let what an orderly stop cut short not count as a recovery."""
        row = self._status.c
        connection.execute(
            sa.update(self._status)
            .where(row.workflow_uuid.in_(list(names)), row.status == "PENDING")
            .values(recovery_attempts=row.recovery_attempts - 1)
        )

    def take_over(self, connection: sa.Connection, executor_id: str) -> list[str]:
        """Make those ours that another version left and that have no record yet.

        Returns the ids of the others: what they recorded may not fit our workflow. Those
        that another process holds are not looked at.
        """
        row = self._status.c
        theirs = sa.and_(
            row.application_version != self._version,
            row.queue_name == self._queue,
            sa.or_(
                row.status.in_(_WAITING),
                sa.and_(row.status == "PENDING", row.executor_id == executor_id),
            ),
        )
        steps = self._steps.c.workflow_uuid
        fresh = ~sa.exists().where(steps == row.workflow_uuid)
        connection.execute(
            sa.update(self._status)
            .where(theirs, fresh)
            .values(application_version=self._version)
        )
        return list(connection.scalars(sa.select(row.workflow_uuid).where(theirs)))

    def end(self, connection: sa.Connection, name: str) -> None:
        """Note that a workflow which nobody holds is not begun again."""
        row = self._status.c
        connection.execute(
            sa.update(self._status)
            .where(row.workflow_uuid == name)
            .where(row.application_version != self._version)
            .values(status="CANCELLED", queue_name=None)
        )

    def _cancel(self, connection: sa.Connection, which: Any) -> None:
        connection.execute(
            sa.update(self._status)
            .where(which, self._status.c.status.in_(_WAITING))
            .values(status="CANCELLED", queue_name=None)
        )
