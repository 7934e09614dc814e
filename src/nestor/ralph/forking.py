"""A new task that goes on from an iteration of another, under the same checks."""

import hashlib
from collections.abc import Callable
from datetime import datetime

import msgspec

from nestor.errors import Conflict, InvalidInput
from nestor.model import event as events
from nestor.model.access import Principal
from nestor.model.ids import new_id
from nestor.model.task import (
    Approval,
    ApprovalKind,
    ForkPoint,
    Reason,
    Task,
    TaskSpec,
    TaskStatus,
)
from nestor.ports.task_store import AuditNote, TaskStore
from nestor.ralph.access import actor, known, refuse_hidden, steered_by
from nestor.ralph.approving import bound
from nestor.ralph.attempts import decoded, encoded, started_anew
from nestor.ralph.control import Control
from nestor.ralph.outbox import OutboxRelay
from nestor.ralph.parts import told_of
from nestor.ralph.sealing import Sealing, seal
from nestor.telemetry.learning_client import LearningClient

_NEEDED = "the task it is forked from needed a person's approval"


class Forking:
    """One per process."""

    def __init__(
        self,
        *,
        store: TaskStore,
        control: Control,
        relay: OutboxRelay,
        learning: LearningClient,
        sealing: Sealing,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._control = control
        self._relay = relay
        self._learning = learning
        self._sealing = sealing
        self._clock = clock

    async def fork(
        self,
        task_id: str,
        iteration: int,
        *,
        into: str | None = None,
        prompt: str | None = None,
        by: Principal,
    ) -> Task:
        """Store a new task that starts from iteration ``iteration`` of ``task_id``; 0: its base.

        Its workspace is made when it is prepared. The same ``into`` and the same body
        again: the task that is there. Grants are not taken over: they are bound to the
        task they were given to. Raises as ``submit`` does, and ``Conflict``.
        """
        if into == task_id:
            raise InvalidInput.at("task_id", "is the id of the task that is forked")
        source = await steered_by(self._store, task_id, by)
        there = None if into is None else await known(self._store, into)
        if there is not None:
            refuse_hidden(there, by)
        before = decoded(await self._store.carried(task_id))
        if before is None:
            raise Conflict(f"task {task_id} has no workspace to fork yet")
        point = await self._control.point(task_id, before, iteration)
        spec = _spec(source, into or new_id(), prompt)
        sealed, _ = seal(spec, by, self._sealing, now=self._clock())
        task = msgspec.structs.replace(
            _asking(sealed, source),
            name=source.name,
            base=point.prepared.base,
            workspace=source.workspace,
            forked_from=ForkPoint(task_id=task_id, iteration=iteration),
        )
        digest = _digest(task_id, iteration, prompt)
        task = bound(task, digest, at=self._clock())
        questions = [{"what": q.what, "approval_id": q.id} for q in task.approvals]
        stored, created = await self._store.add(
            task,
            digest=digest,
            enqueue=task.status is TaskStatus.QUEUED,
            telemetry=[
                told_of(self._learning, task, events.APPROVAL_REQUESTED, data)
                for data in questions
            ],
            live=[("approval", data) for data in questions],
            audit=[
                AuditNote(
                    action="fork",
                    actor=actor(by),
                    task_id=task.task_id,
                    data={"from": task_id, "iteration": iteration},
                )
            ],
            carried=encoded(started_anew(point)),
        )
        if not created:
            refuse_hidden(stored, by)
        self._relay.nudge()
        return stored


def _digest(task_id: str, iteration: int, prompt: str | None) -> str:
    body = msgspec.json.encode(["fork", task_id, iteration, prompt])
    return hashlib.sha256(body).hexdigest()


def _spec(source: Task, into: str, prompt: str | None) -> TaskSpec:
    # What it waited for is done: the tree that it goes on from has it.
    spec = msgspec.structs.replace(source.spec, task_id=into, dependencies=[])
    if prompt is None:
        return spec
    return msgspec.structs.replace(spec, prompt=prompt, task=None, description=None)


def _asking(task: Task, source: Task) -> Task:
    """Let it ask for what its source had to ask for, whoever forks it."""
    asked = any(one.kind is ApprovalKind.START for one in source.approvals)
    if task.approvals or not asked:
        return task
    return msgspec.structs.replace(
        task,
        status=TaskStatus.AWAITING_APPROVAL,
        reason=Reason.APPROVAL_PENDING,
        detail=_NEEDED,
        approvals=[Approval(id="start", what=_NEEDED)],
    )
