"""Ralph as the faces see it: submit, look, cancel, approve, and run what is queued."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from nestor.errors import Conflict, Forbidden, NotFound, Unavailable
from nestor.model import event as events
from nestor.model.access import ADMIN, Principal
from nestor.model.health import Dependency, HealthStatus
from nestor.model.ids import derived_id
from nestor.model.task import (
    FINAL_STATUSES,
    Approval,
    Iteration,
    Reason,
    Task,
    TaskSpec,
    TaskStatus,
)
from nestor.ports.sandbox import Sandbox
from nestor.ports.task_engine import TaskEngine
from nestor.ports.task_store import (
    TaskChange,
    TaskEvent,
    TaskFilter,
    TaskStore,
    TaskTotals,
)
from nestor.ports.workspace import Workspaces
from nestor.ralph.isolation import Isolation
from nestor.ralph.loop import TaskLoop
from nestor.ralph.outbox import OutboxRelay
from nestor.ralph.parts import count_tasks
from nestor.ralph.sealing import Sealing, followed, seal
from nestor.telemetry.learning_client import LearningClient


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """The stored task; ``created`` False: the same one was submitted before."""

    task: Task
    created: bool
    position: int
    """Tasks that wait, this one included; 0 when it does not wait."""


def may_see(task: Task, reader: Principal) -> bool:
    """Tell whether a task is there for this key: its own, or all for some scopes.

    Who approves must see what it is about, and what became of it: of tasks that ask.
    """
    return (
        task.submitted_by == reader.key_id
        or reader.may("read")
        or (reader.may("approve") and bool(task.approvals))
    )


class Ralph:
    """The task service. ``start`` begins running tasks; without it, it only stores them."""

    def __init__(
        self,
        *,
        store: TaskStore,
        engine: TaskEngine,
        loop: TaskLoop,
        workspaces: Workspaces,
        sandbox: Sandbox,
        relay: OutboxRelay,
        learning: LearningClient,
        sealing: Sealing,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._engine = engine
        self._loop = loop
        self._workspaces = workspaces
        self._sandbox = sandbox
        self._relay = relay
        self._learning = learning
        self._sealing = sealing
        self._clock = clock
        self._isolation = Isolation(sandbox, clock=clock)
        self._working_since: datetime | None = None

    async def start(self) -> None:
        """Send what telemetry waits, then take tasks; those a dead process left come first."""
        self._relay.start()
        await self._engine.start(self._loop.run)
        self._working_since = self._clock()

    async def stop(self) -> None:
        """Take no more tasks; running ones go on at the next start."""
        self._working_since = None
        await self._engine.stop()
        await self._relay.stop()

    async def submit(self, spec: TaskSpec, principal: Principal) -> Submitted:
        """Seal and store a task and queue it, or ask for its approval, in one commit.

        Raises ``InvalidInput`` naming each wrong field, ``Conflict`` when the id is taken
        by another body or by a task that this key may not see, ``Forbidden`` for a
        repository outside the roots of this key.
        """
        task, digest = seal(spec, principal, self._sealing, now=self._clock())
        known = await self._known(task.task_id)
        if known is not None:
            _refuse_hidden(known, principal)
        else:
            # Only for a new task: a repeat must give the old one, whatever became of its
            # repository.
            inside = None if principal.may(ADMIN) else self._sealing.workspace_roots
            await self._workspaces.inspect(task.spec, inside=inside)
            task = msgspec.structs.replace(task, spec=followed(task.spec))
        questions = [{"what": q.what, "approval_id": q.id} for q in task.approvals]
        stored, created = await self._store.add(
            task,
            digest=digest,
            enqueue=task.status is TaskStatus.QUEUED,
            telemetry=[
                self._event(task, events.APPROVAL_REQUESTED, data) for data in questions
            ],
            live=[("approval", data) for data in questions],
        )
        if created:
            self._relay.nudge()
        else:
            _refuse_hidden(stored, principal)
        counts = await count_tasks(self._store)
        waiting = stored.status is TaskStatus.QUEUED
        position = counts.get(TaskStatus.QUEUED, 0) if waiting else 0
        return Submitted(task=stored, created=created, position=position)

    async def _known(self, task_id: str) -> Task | None:
        try:
            return await self._store.get(task_id)
        except NotFound:
            return None

    async def approve(
        self,
        task_id: str,
        *,
        approved: bool,
        note: str | None,
        principal: Principal,
        action: str | None = None,
    ) -> Task:
        """Answer the question a task waits with; ``action``: the id of that question.

        The key that submitted never approves, an admin's excepted. Raises ``Conflict``
        when the task does not wait, waits with another question, or was answered by
        somebody else meanwhile.
        """
        task = await self.get(task_id, by=principal)
        if task.status is not TaskStatus.AWAITING_APPROVAL:
            message = f"task {task_id} does not wait for approval: it is {task.status}"
            raise Conflict(message)
        if task.submitted_by == principal.key_id and not principal.may(ADMIN):
            raise Forbidden("the key that submitted a task cannot approve it")
        question = task.approvals[0]
        if action is not None and action != question.id:
            message = (
                f"task {task_id} does not wait for {action!r}, but {question.id!r}"
            )
            raise Conflict(message)
        now = self._clock()
        answer = Approval(
            id=question.id,
            what=question.what,
            approved=approved,
            decided_by=principal.key_id,
            decided_at=now,
            note=note,
        )
        data = {"approved": approved, "by": principal.key_id, "note": note}
        refused = TaskChange(
            status=TaskStatus.REJECTED,
            reason=Reason.REJECTED,
            ended_at=now,
            approvals=[answer],
            detail="A person refused it.",
        )
        allowed = TaskChange(
            status=TaskStatus.QUEUED, reason=None, approvals=[answer], detail=""
        )
        changed = await self._store.change(
            task_id,
            allowed if approved else refused,
            telemetry=[self._event(task, events.APPROVAL_DECIDED, data)],
            live=[("approval", data)] + ([] if approved else [("end", _end(refused))]),
            unless=frozenset(TaskStatus) - {TaskStatus.AWAITING_APPROVAL},
            enqueue=approved,
        )
        if changed.approvals != [answer]:
            message = f"task {task_id} was answered meanwhile: it is {changed.status}"
            raise Conflict(message)
        self._relay.nudge()
        return changed

    async def cancel(self, task_id: str, *, by: Principal | None = None) -> Task:
        """Ask for the end. ``cancelled`` shows only once its processes are gone.

        ``by`` None: the operator in person. Any other key ends the tasks it submitted,
        an admin's all (``Forbidden``; ``NotFound`` for one that it may not even see). A
        task that has ended stays as it is (``Conflict``).
        """
        waiting = TaskChange(
            status=TaskStatus.CANCELLED,
            reason=Reason.CANCELLED,
            ended_at=self._clock(),
            cancel_requested=True,
            detail="Cancelled before it started.",
        )
        task = await self.get(task_id, by=by)
        if by is not None and task.submitted_by != by.key_id and not by.may(ADMIN):
            raise Forbidden(
                "only the key that submitted a task, or an admin's, ends it"
            )
        data = _end(waiting)
        task = await self._store.change(
            task_id,
            waiting,
            telemetry=[self._event(task, events.TASK_COMPLETED, data)],
            live=[("end", data)],
            unless=FINAL_STATUSES | {TaskStatus.RUNNING},
        )
        if task.status is TaskStatus.RUNNING:
            task = await self._store.change(
                task_id, TaskChange(cancel_requested=True), unless=FINAL_STATUSES
            )
        if task.status in FINAL_STATUSES and not task.cancel_requested:
            message = f"task {task_id} has ended already: {task.status}"
            raise Conflict(message)
        self._relay.nudge()
        return task

    async def get(self, task_id: str, *, by: Principal | None = None) -> Task:
        """Read one task. ``by`` None: the operator in person, or ourselves.

        Raises ``NotFound``, in the same words for a task that this key may not see.
        """
        task = await self._known(task_id)
        if task is None or not (by is None or may_see(task, by)):
            raise NotFound.at("task_id", f"there is no task {task_id}")
        return task

    async def newest(self, which: TaskFilter, *, limit: int) -> tuple[list[Task], bool]:
        """Read the newest tasks, newest first, and tell whether there are older ones."""
        found = await self._store.all(which, limit=limit + 1)
        return found[:limit], len(found) > limit

    async def totals(self) -> TaskTotals:
        """Add up all tasks."""
        return await self._store.totals()

    async def counts(self) -> dict[str, int]:
        """Count tasks by status."""
        return await count_tasks(self._store)

    async def iterations(self, task_id: str) -> list[Iteration]:
        """Read the iterations of a task."""
        return await self._store.iterations(task_id)

    async def live(self, task_id: str, *, after: int) -> list[TaskEvent]:
        """Read live events newer than ``after``."""
        return await self._store.live(task_id, after=after)

    async def diff(self, task_id: str) -> str:
        """Unified diff of the newest snapshot against the base; "" before the first."""
        task = await self._store.get(task_id)
        commits = [i.commit for i in await self._store.iterations(task_id) if i.commit]
        if not commits or task.base is None:
            return ""
        return await self._workspaces.diff(task_id, commits[-1], task.base)

    async def workers(self) -> list[dict[str, Any]]:
        """What this process is working on now; empty when it does not work."""
        if self._working_since is None:
            return []
        running = await self._engine.running()
        return [
            {
                "since": self._working_since,
                "sandbox": self._sandbox.name,
                "running": running,
            }
        ]

    async def dependencies(self) -> list[Dependency]:
        """Look at what tasks need, now."""
        now = self._clock()
        try:
            await self._store.counts()
            database = HealthStatus.HEALTHY, "answers"
        except Unavailable as error:
            database = HealthStatus.UNHEALTHY, str(error)
        working = self._working_since is not None
        return [
            Dependency(
                name="database",
                status=database[0],
                message=database[1],
                last_observed=now,
                required=True,
            ),
            Dependency(
                name="task engine",
                status=HealthStatus.HEALTHY if working else HealthStatus.UNHEALTHY,
                message="takes tasks" if working else "does not take tasks",
                last_observed=now,
                required=True,
            ),
            await self._isolation.dependency(),
        ]

    def _event(self, task: Task, kind: str, data: dict[str, Any]) -> events.Event:
        return self._learning.event(
            kind,
            data,
            task_id=task.task_id,
            event_id=derived_id(task.task_id, 0, kind),
            trace_id=task.trace_id,
        )


def _refuse_hidden(task: Task, principal: Principal) -> None:
    """Say the same of every task that this key may not see, whatever it holds."""
    if not may_see(task, principal):
        raise Conflict(f"task_id: {task.task_id} is taken; use another")


def _end(change: TaskChange) -> dict[str, Any]:
    return {
        "status": change.status,
        "reason": change.reason,
        "iterations": 0,
        "success": False,
    }
