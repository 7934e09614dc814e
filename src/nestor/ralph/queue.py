"""Tasks that wait for other tasks: handed over when these are verified, or ended.

What a task waits for stands in the database alone, so a process that dies between the
end of one task and the start of the next loses nothing: whoever looks next goes on.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from nestor.errors import Conflict, NotFound, Unavailable
from nestor.model import event as events
from nestor.model.dependency import Unmet, failed_text
from nestor.model.ids import derived_id
from nestor.model.task import FINAL_STATUSES, Reason, Task, TaskStatus
from nestor.ports.task_queue import Ending, TaskQueue
from nestor.ports.task_store import TaskChange
from nestor.ralph.outbox import OutboxRelay
from nestor.telemetry import metrics
from nestor.telemetry.learning_client import LearningClient
from nestor.telemetry.logs import get_logger

log = get_logger(__name__)
SWEEP_S = 1.0
"""A task goes on at most so long after the last it waited for, also when the nudge is lost."""
_REST = 20
"""Sweeps rest that many times as long as they took: they use a twentieth of one core."""


class DependencyQueue:
    """One per process. Several may look at the same tables: each decision is one commit."""

    def __init__(
        self,
        queue: TaskQueue,
        relay: OutboxRelay,
        learning: LearningClient,
        *,
        clock: Callable[[], datetime],
        every_s: float = SWEEP_S,
    ) -> None:
        self._queue = queue
        self._relay = relay
        self._learning = learning
        self._clock = clock
        self._every_s = every_s
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._seen: dict[str, list[Unmet]] = {}

    def nudge(self) -> None:
        """Look soon: a task has ended."""
        self._wake.set()

    def start(self) -> None:
        """Begin looking."""
        if self._task is None:
            self._task = asyncio.create_task(self._loop(), name="dependencies")

    async def stop(self) -> None:
        """Stop looking; what waits goes on waiting."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def unmet(self, task: Task) -> list[str]:
        """Return the ids of what ``task`` needs and what is not verified now."""
        return [one.task_id for one in await self._queue.unmet(task)]

    async def position(self, task: Task) -> int:
        """Return its place among the tasks that could start; 0 when it could not."""
        return await self._queue.position(task)

    async def sweep(self) -> int:
        """Look once at all that wait; returns how many went on or ended.

        A task that ends here is seen by those that wait for it in the same call.
        """
        moved = 0
        while True:
            waiting = await self._queue.waiting()
            changed = [
                name
                for name, unmet in waiting.items()
                # Of the others nothing is to be said that was not said before.
                if _decides(unmet) or self._seen.get(name) != unmet
            ]
            self._seen = waiting
            ended = 0
            for name in changed:
                after = await self._settle(name)
                if after is not None:
                    over = after.status in FINAL_STATUSES
                    moved += over or not after.waits_for
                    ended += over
            if not ended:
                return moved

    async def _settle(self, task_id: str) -> Task | None:
        try:
            after = await self._queue.settle(task_id, self._ended_by)
        except NotFound:
            return None
        except Conflict:
            # Its attempt of before is about to end: the next sweep hands it over.
            return None
        if after is not None and after.status in FINAL_STATUSES:
            self._relay.nudge()
            reason = str(after.reason)
            metrics.TASKS_ENDED.labels(status=after.status, reason=reason).inc()
        return after

    def _ended_by(self, task: Task, broken: Sequence[Unmet]) -> Ending:
        detail = failed_text(task.task_id, broken)
        data = {
            "status": TaskStatus.FAILED,
            "reason": Reason.DEPENDENCY_FAILED,
            "iterations": task.iteration,
            "success": False,
        }
        told = self._learning.event(
            events.TASK_COMPLETED,
            data,
            task_id=task.task_id,
            # As ``parts.event_of``: an attempt ends once.
            event_id=derived_id(task.task_id, task.attempt - 1, events.TASK_COMPLETED),
            trace_id=task.trace_id,
        )
        return Ending(
            change=TaskChange(
                status=TaskStatus.FAILED,
                reason=Reason.DEPENDENCY_FAILED,
                ended_at=self._clock(),
                detail=detail,
            ),
            telemetry=[told],
            live=[("end", {**data, "detail": detail})],
        )

    async def _loop(self) -> None:
        while True:
            self._wake.clear()
            began = time.monotonic()
            try:
                await self.sweep()
            except Unavailable as error:
                self._seen = {}  # what was seen may not have been settled
                log.warning("dependencies_wait", error=str(error))
            except Exception:
                # The edge of a task that nobody awaits; without it nothing would go on.
                self._seen = {}
                log.exception("dependencies_broke")
            took_s = time.monotonic() - began
            try:
                async with asyncio.timeout(max(self._every_s, took_s * _REST)):
                    await self._wake.wait()
            except TimeoutError:
                continue


def _decides(unmet: Sequence[Unmet]) -> bool:
    return not unmet or any(one.ended for one in unmet)
