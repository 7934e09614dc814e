"""Durable execution: a workflow of recorded steps that survives the process."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Steps(Protocol):
    """Handed to a workflow. A step is recorded once it returns; executed at least once.

    After a crash the workflow function runs again from its start, and every recorded
    step returns its recorded result without running. So the code between steps must be
    pure: no clock, no random, no environment.
    """

    async def run(
        self, name: str, kind: type[T], action: Callable[[], Awaitable[T]]
    ) -> T:
        """Run ``action`` or return its recorded result. ``kind`` decodes the record (JSON)."""
        ...


Workflow = Callable[[str, Steps], Awaitable[None]]
"""``await workflow(task_id, steps)``."""


class TaskEngine(Protocol):
    """Runs one workflow per task id, each at most once at a time."""

    async def start(self, workflow: Workflow) -> None:
        """Begin taking tasks, those first that a dead process left behind."""
        ...

    async def stop(self) -> None:
        """Take no more; leave running workflows to be recovered at the next start."""
        ...

    def enqueue_in(self, connection: Any, task_id: str, *, priority: int) -> None:
        """Enqueue inside the caller's own SQL transaction (sync SQLAlchemy connection)."""
        ...

    async def running(self) -> list[str]:
        """Return the ids of workflows that this process is executing now."""
        ...
