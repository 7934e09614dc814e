"""Questions to a person and their answers: what exactly was asked, and what holds."""

import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from nestor.errors import Conflict, Forbidden, InvalidInput
from nestor.model import event as events
from nestor.model.access import ADMIN, Principal
from nestor.model.task import (
    FINAL_STATUSES,
    GRANTS,
    Approval,
    ApprovalKind,
    Network,
    Reason,
    Task,
    TaskStatus,
)
from nestor.ports.task_store import AuditNote, TaskChange, TaskStore
from nestor.ralph.access import actor, seen_by
from nestor.ralph.handing import once_free
from nestor.ralph.outbox import OutboxRelay
from nestor.ralph.parts import told_of
from nestor.telemetry.learning_client import LearningClient

_HOST = re.compile(r"(?=[^:]*[a-z])[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?:[0-9]{1,5}")
_MAX_PORT = 65_535
_TRIES = 20
_OVER = frozenset({TaskStatus.VERIFIED, TaskStatus.REJECTED})
"""Nothing that a sandbox could be granted matters to these."""


def digest_of(task_id: str, kind: str, subject: str) -> str:
    """Return the SHA-256 that binds an answer to this task, kind and subject alone."""
    bound = msgspec.json.encode([task_id, str(kind), subject])
    return hashlib.sha256(bound).hexdigest()


def holds(task_id: str, one: Approval) -> bool:
    """Tell whether a question is about what its digest says, and of this task."""
    return one.digest == digest_of(task_id, one.kind, one.subject)


def is_host(text: str) -> bool:
    """Tell whether a host is named as it is stored: ``name:port``, in small letters.

    By its name: an address alone is none.
    """
    if not _HOST.fullmatch(text):
        return False
    return 0 < _port(text) <= _MAX_PORT and str(_port(text)) == text.rpartition(":")[2]


def granted(task: Task, kind: ApprovalKind) -> list[str]:
    """Return what a person allowed of a kind, each once, in the order of asking."""
    found = [
        one.subject
        for one in task.grants
        if one.kind is kind and holds(task.task_id, one)
    ]
    return list(dict.fromkeys(found))


def bound(task: Task, subject: str, *, at: datetime) -> Task:
    """Bind the questions of a task that is about to be stored to what was submitted."""
    if not task.approvals:
        return task
    approvals = [
        msgspec.structs.replace(
            one,
            subject=one.subject or subject,
            digest=digest_of(task.task_id, one.kind, one.subject or subject),
            asked_at=one.asked_at or at,
        )
        for one in task.approvals
    ]
    return msgspec.structs.replace(task, approvals=approvals)


def blocking(task: Task) -> list[Approval]:
    """Return the open questions without whose answers a parked task cannot go on."""
    return [one for one in task.asked if one.kind not in GRANTS]


def open_questions(task: Task) -> list[Approval]:
    """Return what may be answered now: of an ended task only what holds for what follows."""
    if task.status in _OVER:
        return []
    if task.status in FINAL_STATUSES:
        return [one for one in task.asked if one.kind in GRANTS]
    return task.asked


class Approving:
    """One per process; several may answer at once: one of them does, the others are told."""

    def __init__(
        self,
        *,
        store: TaskStore,
        relay: OutboxRelay,
        learning: LearningClient,
        refuses_mount: Callable[[Path], str | None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._relay = relay
        self._learning = learning
        self._refuses_mount = refuses_mount
        self._clock = clock

    async def approve(
        self,
        task_id: str,
        *,
        approved: bool,
        note: str | None,
        principal: Principal,
        action: str | None = None,
    ) -> Task:
        """Answer an open question of a task; ``action``: its id, needed where several are open.

        The key that submitted never approves, an admin's excepted. Raises ``Conflict`` when
        nothing is open, when another question is, or when somebody else answered meanwhile.
        """
        for _ in range(_TRIES):
            task = await seen_by(self._store, task_id, principal)
            _refuse_submitter(task, principal)
            question = _question(task, action)
            answer = msgspec.structs.replace(
                question,
                approved=approved,
                decided_by=principal.key_id,
                decided_at=self._clock(),
                note=note,
            )
            answers = [answer if one is question else one for one in task.approvals]
            after = await self._answer(task, answer, answers, principal)
            if after is not None:
                return after
            # Another question was added or answered: this one is looked for again.
        raise Conflict(f"task {task_id} is answered by others all the time; try again")

    async def grant(
        self,
        task_id: str,
        kind: ApprovalKind,
        subject: str,
        *,
        note: str | None,
        principal: Principal,
    ) -> Task:
        """Allow what was not asked for, as a question made and answered at once.

        It holds from the next iteration to the end of the task. An open question for the
        same is answered by it. Raises ``InvalidInput`` for what is no such thing.
        """
        subject = self._subject(kind, subject)
        digest = digest_of(task_id, kind, subject)
        for _ in range(_TRIES):
            task = await seen_by(self._store, task_id, principal)
            _refuse_over(task)
            _refuse_submitter(task, principal)
            same = [one for one in task.approvals if one.digest == digest]
            if any(one.approved for one in same):
                return task
            now = self._clock()
            open_ = [one for one in same if one.approved is None]
            # Its id says what it is about, and how often that was asked before.
            fresh = Approval(
                id=f"{kind}-{digest[:12]}" + (f"-{len(same)}" if same else ""),
                what=f"{principal.key_id} allows {kind} {subject}",
                kind=kind,
                subject=subject,
                digest=digest,
                iteration=task.iteration,
                asked_at=now,
            )
            answer = msgspec.structs.replace(
                open_[0] if open_ else fresh,
                approved=True,
                decided_by=principal.key_id,
                decided_at=now,
                note=note,
            )
            answers = [answer if one in open_[:1] else one for one in task.approvals]
            if not open_:
                answers.append(answer)
            after = await self._answer(
                task, answer, answers, principal, asked=bool(open_)
            )
            if after is not None:
                return after
        raise Conflict(f"task {task_id} is answered by others all the time; try again")

    async def _answer(
        self,
        task: Task,
        answer: Approval,
        answers: Sequence[Approval],
        principal: Principal,
        *,
        asked: bool = True,
    ) -> Task | None:
        """Store an answer and what follows from it; None: the task has moved on."""
        change = _follows(task, answer, answers, at=self._clock(), asked=asked)
        enqueue = change.status is TaskStatus.QUEUED
        data = {
            "approved": answer.approved,
            "by": principal.key_id,
            "note": answer.note,
            "approval_id": answer.id,
            "kind": answer.kind,
            "subject": answer.subject,
        }
        more = [] if answer.kind is ApprovalKind.START else [answer.id]
        decided = told_of(self._learning, task, events.APPROVAL_DECIDED, data, 0, *more)
        live: list[tuple[str, dict[str, Any]]] = [("approval", data)]
        if change.status is TaskStatus.REJECTED:
            live.append(("end", _end(change)))
        elif enqueue:
            live.append(("task", {"status": change.status, "reason": None}))
        action = "grant" if not asked else "approve" if answer.approved else "refuse"
        note = AuditNote(
            action=action,
            actor=actor(principal),
            task_id=task.task_id,
            data={**data, "digest": answer.digest},
        )
        after = await once_free(
            lambda: self._store.change(
                task.task_id,
                change,
                telemetry=[decided],
                live=live,
                unless=frozenset(TaskStatus) - {task.status},
                seen=task.approvals,
                enqueue=enqueue,
                audit=[note],
            )
        )
        if answer not in after.approvals:
            return None
        self._relay.nudge()
        return after

    def _subject(self, kind: ApprovalKind, subject: str) -> str:
        """Return the one way to write a subject. Raises ``InvalidInput``."""
        if kind not in GRANTS:
            raise InvalidInput.at("kind", f"{kind} cannot be granted ahead")
        if kind is ApprovalKind.HOST:
            host = subject.strip().lower()
            if not _HOST.fullmatch(host) or not 0 < _port(host) <= _MAX_PORT:
                raise InvalidInput.at("host", "use name:port, e.g. pypi.org:443")
            return f"{host.partition(':')[0]}:{_port(host)}"
        if kind is ApprovalKind.NETWORK:
            if subject not in set(Network):
                known = ", ".join(Network)
                raise InvalidInput.at("network", f"use one of: {known}")
            return subject
        path = Path(subject)
        if not path.is_absolute() or ".." in path.parts or "\0" in subject:
            raise InvalidInput.at("path", "must be an absolute path without ..")
        if why := self._refuses_mount(path):
            raise InvalidInput.at("path", why)
        return str(path)


def _refuse_over(task: Task) -> None:
    if task.status in _OVER:
        raise Conflict(f"nothing can be granted to task {task.task_id}: {task.status}")


def _refuse_submitter(task: Task, principal: Principal) -> None:
    if task.submitted_by == principal.key_id and not principal.may(ADMIN):
        raise Forbidden("the key that submitted a task cannot approve it")


def _question(task: Task, action: str | None) -> Approval:
    """Find the open question that is meant. Raises ``Conflict``."""
    name, asked = task.task_id, open_questions(task)
    if not asked:
        raise Conflict(f"task {name} does not wait for approval: it is {task.status}")
    ids = ", ".join(repr(one.id) for one in asked)
    if action is None:
        if len(asked) > 1:
            raise Conflict(
                f"task {name} asks several things; name one as action: {ids}"
            )
        found = asked[0]
    else:
        matching = [one for one in asked if one.id == action]
        if not matching:
            message = f"task {name} does not wait for {action!r}, but {ids}"
            raise Conflict(message)
        found = matching[0]
    # Questions of before they had a digest began a task, and nothing else.
    before_digests = found.kind is ApprovalKind.START and not found.digest
    if not (before_digests or holds(name, found)):
        raise Conflict(f"question {found.id!r} of task {name} is not what was asked")
    return found


def _follows(
    task: Task,
    answer: Approval,
    answers: Sequence[Approval],
    *,
    at: datetime,
    asked: bool,
) -> TaskChange:
    """Return what an answer changes: a pure function, so that a repeat is the same."""
    change = TaskChange(approvals=list(answers))
    if task.status is not TaskStatus.AWAITING_APPROVAL or not asked:
        return change
    if answer.kind is ApprovalKind.START:
        if not answer.approved:
            return msgspec.structs.replace(
                change,
                status=TaskStatus.REJECTED,
                reason=Reason.REJECTED,
                ended_at=at,
                detail="A person refused it.",
            )
        return msgspec.structs.replace(
            change, status=TaskStatus.QUEUED, reason=None, detail=""
        )
    left = msgspec.structs.replace(task, approvals=list(answers))
    if blocking(left):
        detail = "; ".join(one.what for one in left.asked)
        return msgspec.structs.replace(change, detail=detail)
    return msgspec.structs.replace(
        change,
        status=TaskStatus.QUEUED,
        reason=None,
        detail="",
        attempt=task.attempt + 1,
    )


def _port(host: str) -> int:
    return int(host.rpartition(":")[2])


def _end(change: TaskChange) -> dict[str, Any]:
    return {
        "status": change.status,
        "reason": change.reason,
        "iterations": 0,
        "success": False,
    }
