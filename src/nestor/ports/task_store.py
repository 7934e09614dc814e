"""The record of tasks. Its meaning is tests/contracts/test_task_store.py."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

import msgspec

from nestor.model.event import Event
from nestor.model.task import (
    Approval,
    Budget,
    Iteration,
    Reason,
    Spent,
    Task,
    TaskStatus,
)


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """All given fields must match; None matches everything."""

    priority: str | None = None
    phase: int | None = None
    status: TaskStatus | None = None
    ended: bool = False
    """Only tasks in a final status."""


class BackendTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What the tasks of one agent backend came to."""

    ended: int = 0
    verified: int = 0


class TaskTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all tasks, of one moment. Statuses and backends without a task are absent."""

    tasks: int = 0
    by_status: dict[str, int] = {}
    by_backend: dict[str, BackendTotals] = {}
    iterations: int = 0
    cost_usd: Decimal = Decimal(0)
    """Of the tasks whose cost is known."""
    cost_unknown_tasks: int = 0


class TaskChange(msgspec.Struct, frozen=True, kw_only=True):
    """Fields to set on a task; UNSET leaves a field as it is."""

    status: TaskStatus | msgspec.UnsetType = msgspec.UNSET
    reason: Reason | msgspec.UnsetType | None = msgspec.UNSET
    started_at: datetime | msgspec.UnsetType | None = msgspec.UNSET
    ended_at: datetime | msgspec.UnsetType | None = msgspec.UNSET
    iteration: int | msgspec.UnsetType = msgspec.UNSET
    spent: Spent | msgspec.UnsetType = msgspec.UNSET
    workspace: str | msgspec.UnsetType | None = msgspec.UNSET
    branch: str | msgspec.UnsetType | None = msgspec.UNSET
    base: str | msgspec.UnsetType | None = msgspec.UNSET
    approvals: list[Approval] | msgspec.UnsetType = msgspec.UNSET
    output: str | msgspec.UnsetType = msgspec.UNSET
    detail: str | msgspec.UnsetType = msgspec.UNSET
    replayed: bool | msgspec.UnsetType = msgspec.UNSET
    sandboxed: bool | msgspec.UnsetType = msgspec.UNSET
    cancel_requested: bool | msgspec.UnsetType = msgspec.UNSET
    max_iterations: int | msgspec.UnsetType = msgspec.UNSET
    budget: Budget | msgspec.UnsetType = msgspec.UNSET
    attempt: int | msgspec.UnsetType = msgspec.UNSET
    rolled_back_to: int | msgspec.UnsetType | None = msgspec.UNSET
    waits_for: list[str] | msgspec.UnsetType = msgspec.UNSET


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a task's live stream. ``id`` is monotonic per task, from 1.

    ``kind``: ``task``, ``iteration``, ``output``, ``verdict``, ``approval``, ``end``.
    """

    id: int
    kind: str
    at: datetime
    data: dict[str, Any]


class AuditNote(msgspec.Struct, frozen=True, kw_only=True):
    """A decision of a person, or of a key, as the audit log keeps it."""

    action: str
    """``approve``, ``refuse``, ``cancel``, ``resume``, ``retry``, ``rollback``, ``fork``."""
    actor: str
    """The key's id."""
    task_id: str
    data: dict[str, Any] = {}


class TaskStore(Protocol):
    """Tasks, iterations, live events and the outbox of telemetry, in one database.

    One call is one transaction: either all it says is stored, or nothing.
    """

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
        """Store a task with its first events; when ``enqueue``, hand it to the engine.

        ``any_owner`` False: of what it needs only tasks of the same key are there for it.
        All in one commit. Returns the stored task and True; or, for an id stored before
        with the same ``digest``, that task and False, and nothing is written. Raises
        ``Conflict`` for another digest.
        """
        ...

    async def get(self, task_id: str) -> Task:
        """Read one task. Raises ``NotFound``."""
        ...

    async def all(self, which: TaskFilter, *, limit: int = 1000) -> list[Task]:
        """Read tasks, newest first; those over ``limit`` are left out."""
        ...

    async def totals(self) -> TaskTotals:
        """Add up all tasks, however many there are."""
        ...

    async def counts(self) -> dict[str, int]:
        """Count all tasks by status; statuses without a task are absent."""
        ...

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
        """Set fields, write an iteration (replacing the same n), queue telemetry and live events.

        Telemetry whose id is in the outbox already is not queued again. When the task
        stands in one of ``unless``, nothing is written and the task is returned as it is;
        so too when ``seen`` is given and its approvals are others by now, or ``attempt``
        and it is in another one.
        """
        ...

    async def tell(self, task_id: str, kind: str, data: dict[str, Any]) -> None:
        """Append one live event, and nothing else. Raises ``NotFound``."""
        ...

    async def iterations(self, task_id: str) -> list[Iteration]:
        """Read what was recorded, n ascending. Raises ``NotFound``."""
        ...

    async def carried(self, task_id: str) -> str | None:
        """Read what the last iteration left for the next attempt (JSON); None: nothing."""
        ...

    async def live(
        self, task_id: str, *, after: int, limit: int = 500
    ) -> list[TaskEvent]:
        """Read live events with an id greater than ``after``, ascending."""
        ...

    async def unsent(self, *, limit: int = 500) -> list[Event]:
        """Read telemetry that was committed but is not marked sent, oldest first."""
        ...

    async def mark_sent(self, ids: Sequence[str]) -> None:
        """Note that these stand in the event log."""
        ...
