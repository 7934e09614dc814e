"""What a person does with a task: end it, let it go on, begin again, go back, branch off.

Each call is one commit with its note in the audit log; what comes after the commit (the
branch in the user's repository) is done again by the same call.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from nestor.errors import Conflict, InvalidInput, WorkspaceError
from nestor.model import event as events
from nestor.model.access import Principal
from nestor.model.task import (
    FINAL_STATUSES,
    ApprovalKind,
    Budget,
    Reason,
    Task,
    TaskStatus,
)
from nestor.ports.task_store import AuditNote, TaskChange, TaskStore
from nestor.ports.workspace import Workspaces
from nestor.ralph.access import actor, steered_by
from nestor.ralph.attempts import (
    GOES_ON,
    NOTHING_CARRIED,
    Further,
    at_base,
    at_iteration,
    changed_budget,
    decoded,
    encoded,
    iterations_of,
    refuse_to_go_on,
)
from nestor.ralph.handing import once_free
from nestor.ralph.outbox import OutboxRelay
from nestor.ralph.parts import told_of
from nestor.ralph.records import Carried
from nestor.telemetry.learning_client import LearningClient

_STANDS_ON_LAST = frozenset({TaskStatus.VERIFIED, TaskStatus.JUDGED})
"""Ends that say something of the last iteration's tree, and of no other."""
_PARKED_OR_ENDED = FINAL_STATUSES | {TaskStatus.AWAITING_APPROVAL}
_NOT_DELIVERED = " The branch was not delivered: "
_NOT_MOVED = " Its branch is not moved yet: roll it back again if this stays."


class Control:
    """One per process. Calls on the same task come one after the other."""

    def __init__(
        self,
        *,
        store: TaskStore,
        workspaces: Workspaces,
        relay: OutboxRelay,
        learning: LearningClient,
        clock: Callable[[], datetime],
        budget_changed: Callable[[str], None] = lambda _task_id: None,
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._relay = relay
        self._learning = learning
        self._clock = clock
        self._budget_changed = budget_changed
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def cancel(self, task_id: str, *, by: Principal | None = None) -> Task:
        """Ask for the end. ``cancelled`` shows only once its processes are gone.

        ``by`` None: the operator in person. Any other key ends the tasks it submitted,
        an admin's all (``Forbidden``; ``NotFound`` for one that it may not even see). A
        task that has ended stays as it is (``Conflict``).
        """
        async with self._turn(task_id):
            task = await steered_by(self._store, task_id, by)
            # Who asks again decides nothing new.
            note = [] if task.cancel_requested else [_note("cancel", task_id, by)]
            task = await self._cancelled(task, note)
            if task.status in FINAL_STATUSES and not task.cancel_requested:
                message = f"task {task_id} has ended already: {task.status}"
                raise Conflict(message)
            self._relay.nudge()
            return await self._left_by_parked(task)

    async def _cancelled(self, task: Task, note: list[AuditNote]) -> Task:
        """End a task that waits; of one that runs, note that its end is asked for."""
        detail = "Cancelled before it started."
        if task.iteration:
            detail = f"Cancelled after iteration {task.iteration}, while it waited."
        waiting = TaskChange(
            status=TaskStatus.CANCELLED,
            reason=Reason.CANCELLED,
            ended_at=self._clock(),
            cancel_requested=True,
            waits_for=[],
            detail=detail,
        )
        data = {
            "status": waiting.status,
            "reason": waiting.reason,
            "iterations": task.iteration,
            "success": False,
        }
        ended = told_of(
            self._learning, task, events.TASK_COMPLETED, data, task.attempt - 1
        )
        while True:
            after = await self._store.change(
                task.task_id,
                waiting,
                telemetry=[ended],
                live=[("end", data)],
                unless=FINAL_STATUSES | {TaskStatus.RUNNING},
                audit=note,
            )
            if after.status is not TaskStatus.RUNNING:
                return after
            after = await self._store.change(
                task.task_id,
                TaskChange(cancel_requested=True),
                unless=frozenset(TaskStatus) - {TaskStatus.RUNNING},
                audit=note,
            )
            # It may have begun to wait for a person just now: that ends at once.
            if after.status in FINAL_STATUSES | {TaskStatus.RUNNING}:
                return after

    async def _left_by_parked(self, task: Task) -> Task:
        """Hand over what a task had done that was cancelled while it waited for a person."""
        before = await self._carried(task.task_id)
        if (
            task.status is not TaskStatus.CANCELLED
            or task.branch is not None
            or before is None
        ):
            return task
        await self._workspaces.discard(task.task_id)
        if before.judged == before.prepared.base:
            return task
        try:
            branch = await self._workspaces.deliver(task.task_id, before.judged)
        except WorkspaceError as error:
            if _NOT_DELIVERED in task.detail:
                return task
            detail = f"{task.detail}{_NOT_DELIVERED}{error}"
            return await self._store.change(task.task_id, TaskChange(detail=detail))
        return await self._store.change(task.task_id, TaskChange(branch=branch))

    async def resume(
        self, task_id: str, further: Further, *, by: Principal | None
    ) -> Task:
        """Let an ended task go on with its next iteration, from where its tree stood.

        Raises ``Conflict`` where it stands otherwise, and for a budget that is spent.
        """
        return await self._again("resume", task_id, further, by)

    async def retry(
        self, task_id: str, further: Further, *, by: Principal | None
    ) -> Task:
        """As ``resume``, but from the tree that the task began with."""
        return await self._again("retry", task_id, further, by)

    async def _again(
        self, action: str, task_id: str, further: Further, by: Principal | None
    ) -> Task:
        async with self._turn(task_id):
            task = await steered_by(self._store, task_id, by)
            refuse_to_go_on(task, action)
            iterations = iterations_of(task, further)
            before = await self._carried(task_id)
            done = max(task.iteration, before.n if before else 0)
            if before is None and done:
                raise Conflict(NOTHING_CARRIED.format(task_id))
            fresh = None
            if action == "retry" and before is not None:
                fresh = encoded(at_base(before))
            change = _begun_again(
                task,
                budget=changed_budget(task, further.budget),
                max_iterations=done + iterations,
                fresh=action == "retry",
            )
            attempt, status = task.attempt + 1, change.status
            data = {
                "attempt": attempt,
                "iterations": iterations,
                "budget": msgspec.to_builtins(change.budget),
                "note": further.note,
            }
            told = {"status": status, "action": action, **data}
            after = await once_free(
                lambda: self._store.change(
                    task_id,
                    change,
                    live=[("task", told)],
                    unless=frozenset(TaskStatus) - GOES_ON,
                    enqueue=status is TaskStatus.QUEUED,
                    audit=[_note(action, task_id, by, **data)],
                    carried=fresh,
                )
            )
            if (after.attempt, after.status) != (attempt, status):
                refuse_to_go_on(after, action)
            self._budget_changed(task_id)
            return after

    async def rollback(
        self, task_id: str, iteration: int, *, by: Principal | None
    ) -> Task:
        """Put tree and branch of an ended or parked task back to iteration ``iteration``.

        0 is the base. What was verified at another iteration is not verified any more.
        Raises ``InvalidInput`` for an iteration there is not, ``Conflict`` where the task
        stands otherwise, or its branch cannot be moved: then the same call goes on.
        """
        async with self._turn(task_id):
            task = await steered_by(self._store, task_id, by)
            before = await self._carried(task_id)
            if task.status not in _PARKED_OR_ENDED:
                message = f"task {task_id} is {task.status}: cancel it first"
                raise Conflict(message)
            if before is None:
                raise Conflict(f"task {task_id} has no workspace to roll back yet")
            point = await self.point(task_id, before, iteration)
            change = _rolled_back(task, before, iteration)
            moves = task.branch is not None or (
                task.status in FINAL_STATUSES and point.judged != point.prepared.base
            )
            said = change.detail
            if moves:
                change = msgspec.structs.replace(change, detail=f"{said}{_NOT_MOVED}")
            data = {"iteration": iteration, "was": task.status}
            after = await self._store.change(
                task_id,
                change,
                live=[("task", {"status": change.status, "rolled_back_to": iteration})],
                unless=frozenset(TaskStatus) - {task.status},
                audit=[_note("rollback", task_id, by, **data)],
                carried=encoded(point),
            )
            if after.rolled_back_to != iteration:
                raise Conflict(f"task {task_id} is {after.status} meanwhile")
            if not moves:
                return after
            try:
                branch = await self._workspaces.deliver(task_id, point.judged)
            except WorkspaceError as error:
                message = f"task {task_id} is rolled back, its branch is not: {error}"
                raise Conflict(message) from error
            done = TaskChange(branch=branch, detail=said)
            return await self._store.change(
                task_id, done, unless=frozenset(TaskStatus) - {after.status}
            )

    async def point(self, task_id: str, before: Carried, iteration: int) -> Carried:
        """Return what iteration ``iteration`` left; the count of iterations goes on."""
        if iteration == 0:
            return at_base(before)
        recorded = {one.n: one for one in await self._store.iterations(task_id)}
        found = recorded.get(iteration)
        if found is None:
            last = max(recorded, default=0)
            message = f"task {task_id} has iterations 1 to {last}; 0 is its base"
            raise InvalidInput.at("iteration", message if last else "only 0, its base")
        if found.snapshot is None or found.commit is None:
            raise Conflict(NOTHING_CARRIED.format(task_id))
        try:
            snapshot, _ = await self._workspaces.restore(
                task_id,
                found.snapshot,
                protected=lambda _path: False,
                base=before.prepared.base,
            )
        except WorkspaceError as error:
            raise Conflict(f"iteration {iteration} cannot be read: {error}") from error
        return at_iteration(before, found, agent_tree=snapshot.tree)

    async def _carried(self, task_id: str) -> Carried | None:
        return decoded(await self._store.carried(task_id))

    @asynccontextmanager
    async def _turn(self, task_id: str) -> AsyncIterator[None]:
        lock = self._turns.get(task_id)
        if lock is None:
            lock = self._turns[task_id] = asyncio.Lock()
        async with lock:
            yield


def _begun_again(
    task: Task, *, budget: Budget, max_iterations: int, fresh: bool
) -> TaskChange:
    change = TaskChange(
        status=TaskStatus.QUEUED,
        reason=None,
        ended_at=None,
        detail="",
        cancel_requested=False,
        attempt=task.attempt + 1,
        max_iterations=max_iterations,
        budget=budget,
    )
    if fresh:
        change = msgspec.structs.replace(change, rolled_back_to=None)
    # Who was never let begin is not let begin by being cancelled in between.
    if begins := [one for one in task.asked if one.kind is ApprovalKind.START]:
        change = msgspec.structs.replace(
            change,
            status=TaskStatus.AWAITING_APPROVAL,
            reason=Reason.APPROVAL_PENDING,
            detail=begins[0].what,
        )
    return change


def _rolled_back(task: Task, before: Carried, iteration: int) -> TaskChange:
    change = TaskChange(
        status=task.status,
        rolled_back_to=iteration,
        detail=task.detail.removesuffix(_NOT_MOVED),
    )
    if task.status in _STANDS_ON_LAST and iteration != before.n:
        detail = (
            f"Rolled back to iteration {iteration}: it was {task.status} at iteration"
            f" {before.n}, which it does not stand at any more."
        )
        change = msgspec.structs.replace(
            change,
            status=TaskStatus.CANCELLED,
            reason=Reason.CANCELLED,
            detail=detail,
        )
    return change


def _note(action: str, task_id: str, by: Principal | None, **data: Any) -> AuditNote:
    return AuditNote(action=action, actor=actor(by), task_id=task_id, data=data)
