"""Tasks that wait: for other tasks, and for their turn. tests/contracts/test_task_queue.py."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from nestor.model.dependency import Unmet
from nestor.model.event import Event
from nestor.model.task import Task, TaskStatus
from nestor.ports.task_store import TaskChange


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a task ends whose dependency did: the change, and what is told with it."""

    change: TaskChange
    telemetry: list[Event] = []
    live: list[tuple[str, dict[str, Any]]] = []


EndedBy = Callable[[Task, Sequence[Unmet]], Ending]
"""``ended_by(task, broken)``; pure, because it runs inside a transaction."""


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a task asks of this machine before it starts."""

    task_id: str
    status: TaskStatus
    backend: str
    memory_bytes: int | None = None
    """As its task file says; None: it does not."""
    attempt: int = 1
    cancel_requested: bool = False


class TaskQueue(Protocol):
    """The waiting side of ``TaskStore``, over the same tables. One call, one transaction."""

    async def unmet(self, task: Task) -> list[Unmet]:
        """Return the dependencies of ``task`` that are not verified now, in its order."""
        ...

    async def waiting(self) -> dict[str, list[Unmet]]:
        """Return every queued task that waits for others, and for which."""
        ...

    async def settle(self, task_id: str, ended_by: EndedBy) -> Task | None:
        """Hand a task to the engine once all it needs is verified; end it when one ended.

        Looks again in its own transaction, so that of several callers one decides; else
        only notes what it waits for now. Returns the task as it stands after a change,
        None when nothing changed, also when it does not wait (any more).
        """
        ...

    async def position(self, task: Task) -> int:
        """Count the queued tasks that go before this one, itself included.

        Those that wait for others are not counted; 0 when it is one of them, or not queued.
        """
        ...

    async def needs(self, task_ids: Sequence[str]) -> list[Need]:
        """Read what these tasks ask for, in the order given; unknown ones are left out."""
        ...

    async def to_end(self) -> list[Need]:
        """Read the running tasks whose end was asked for."""
        ...
