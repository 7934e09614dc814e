"""Durable execution: a workflow of recorded steps that survives the process."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Steps(Protocol):
    """Handed to a workflow. A step is recorded once it returns; executed at least once.

    After a crash the workflow function runs again from its start, and every recorded
    step returns its recorded result without running. So the code between steps must be
    pure: no clock, no random, no environment.
    """

    attempt: int
    """What the workflow was enqueued for: when the task's is another by now, it is over."""

    async def run(
        self, name: str, kind: type[T], action: Callable[[], Awaitable[T]]
    ) -> T:
        """Run ``action`` or return its recorded result. ``kind`` decodes the record (JSON).

        While ``action`` raises ``Unavailable`` it is run again; any other exception is
        recorded as ``StepFailed``.
        """
        ...


Workflow = Callable[[str, Steps], Awaitable[None]]
"""``await workflow(task_id, steps)``."""


class StepFailed(Exception):  # noqa: N818 - names say what happened
    """A step raised. Recorded like a result: a replay raises it again without running.

    The first time ``__cause__`` is the exception itself. Expected errors belong into the
    step's value instead.
    """


class RecoveryLimit(Exception):  # noqa: N818
    """The process died under this workflow so often that it is not begun again."""


class OtherVersion(Exception):  # noqa: N818
    """Another version of Nestor began this workflow, and this one cannot read its records."""


FailureHook = Callable[[str, Exception], Awaitable[None]]
"""``await on_failure(task_id, error)``: a workflow raised, or hit ``RecoveryLimit``; or one
was left by an ``OtherVersion``.

Called at least once, before the engine notes the end; again while it raises
``Unavailable``.
"""


class Gate(Protocol):
    """Says which waiting tasks may start now, besides the engine's count of workers."""

    async def choose(
        self, pages: AsyncIterator[Sequence[str]], room: int, running: Sequence[str]
    ) -> list[str]:
        """Let in at most ``room`` of the waiting ids, which come in the queue's order."""
        ...

    async def ending(self, running: Sequence[str]) -> list[tuple[str, int]]:
        """Return task and attempt of those that only have to end, which needs no worker.

        Without ``running``. One that is not in the queue is not begun by that.
        """
        ...

    def left(self, task_id: str) -> None:
        """Hear that one who was let in has ended, or was taken by another process."""
        ...


class TaskEngine(Protocol):
    """Runs one workflow per task id, each at most once at a time."""

    async def start(self, workflow: Workflow) -> None:
        """Begin taking tasks, those first that a dead process left behind."""
        ...

    async def drain(self, limit_s: float) -> list[str]:
        """Take no more; let running steps end, for ``limit_s`` at most.

        A workflow stops where its step ends, to be recovered at the next start, which
        does not count as a recovery. Returns the ids of those that still run, which
        ``stop`` ends.
        """
        ...

    async def stop(self) -> None:
        """Take no more; leave running workflows to be recovered at the next start."""
        ...

    def enqueue_in(
        self, connection: Any, task_id: str, *, priority: int, attempt: int = 1
    ) -> None:
        """Enqueue inside the caller's own SQL transaction (sync SQLAlchemy connection).

        An attempt that waits in the queue already stays there once; an earlier one is
        taken out of it, also where a dead process had begun it. Raises ``Conflict`` while
        a workflow of the task is running, and for an attempt that ran before.
        """
        ...

    async def running(self) -> list[str]:
        """Return the ids of workflows that this process is executing now."""
        ...

    async def held_by_nobody(self, attempts: Mapping[str, int]) -> set[str]:
        """Return those of these tasks (with their attempt) whose workflow is in the queue."""
        ...
