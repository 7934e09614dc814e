"""Questions from inside a sandbox to a person: asked once, waited for, answered for exactly that.

A question is stored as an open ``Approval`` of the task; whoever may approve answers it
there, in any process. The same question of a task is asked once: a repeat gets the answer
that was given, but for a command, which is allowed for one run alone.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from nestor.model import event as events
from nestor.model.ids import derived_id
from nestor.model.task import (
    FINAL_STATUSES,
    Approval,
    ApprovalKind,
    Network,
    Task,
)
from nestor.ports.sandbox import Answer, Ask
from nestor.ports.task_store import TaskChange
from nestor.ralph.approving import digest_of, holds, is_host
from nestor.ralph.parts import Parts
from nestor.telemetry.redact import redact

MAX_OPEN = 20
"""Questions of one task that nobody has answered."""
MAX_WAITS = 10
"""One run waits for people at most this many times ``Parts.approval_wait_s``."""
_POLL_S = 0.5
_SUBJECT_BYTES = 8 * 1024
_SHOWN_CHARS = 300
_TRIES = 50
_SENTENCES = {
    ApprovalKind.COMMAND: "run this command once: {}",
    ApprovalKind.PATH: "see {} of this machine, read-only",
    ApprovalKind.HOST: "reach {} over HTTPS",
    ApprovalKind.NETWORK: "work with network {}",
}

Change = Callable[[Task], tuple[list[Approval], list[Approval]] | None]
"""From the task as it is: all its approvals as they shall be, and those of them that are
asked with that; None: nothing is to be changed."""


class Asking:
    """``SandboxRun.ask`` of one run of an agent. ``waited_s``: for people, all in all."""

    def __init__(self, p: Parts, task: Task, n: int) -> None:
        self._p = p
        self._task_id = task.task_id
        self._n = n
        self._turn = asyncio.Lock()
        self.waited_s = 0.0
        self.unanswered = False
        """Whether nobody answered the last question in time."""

    @property
    def may_wait_s(self) -> float:
        """What the waiting of one run comes to at most."""
        return MAX_WAITS * self._p.approval_wait_s

    async def __call__(self, ask: Ask) -> Answer:
        """Put one question and wait for its answer; see ``Answer``."""
        fault = fault_of(ask)
        if fault is not None:
            return Answer(approved=False, note=fault)
        async with self._turn:
            begun = time.monotonic()
            try:
                answer = await self._ask(ask)
                self.unanswered = answer.approved is None
                return answer
            finally:
                self.waited_s += time.monotonic() - begun

    async def _ask(self, ask: Ask) -> Answer:
        limit_s = min(self._p.approval_wait_s, self.may_wait_s - self.waited_s)
        deadline = time.monotonic() + limit_s
        task = await put(self._p, self._task_id, self._n, [ask])
        if _standing(task, ask) is None:
            note = f"{MAX_OPEN} questions of this task wait for an answer already"
            return Answer(approved=False, note=note)
        while True:
            found = _standing(task, ask)
            if found is None or found.approved is not None:
                break
            if time.monotonic() >= deadline:
                return Answer(approved=None)
            await asyncio.sleep(_POLL_S)
            task = await self._p.store.get(self._task_id)
        if found is None:  # another run of the task has used it up meanwhile
            return Answer(approved=None)
        if not found.approved:
            return Answer(approved=False, note=found.note or "")
        if found.kind is ApprovalKind.COMMAND and not await self._use_up(found):
            return Answer(approved=None)
        return Answer(approved=True, note=found.note or "")

    async def _use_up(self, question: Approval) -> bool:
        """Note that the command is let through; False when it was before."""
        used = msgspec.structs.replace(question, used_at=self._p.clock())

        def change(task: Task) -> tuple[list[Approval], list[Approval]] | None:
            if question not in task.approvals:
                return None
            return [used if a == question else a for a in task.approvals], []

        task = await _change(self._p, self._task_id, change)
        return used in task.approvals


async def put(p: Parts, task_id: str, n: int, asks: Sequence[Ask]) -> Task:
    """Store those of ``asks`` that are not asked yet, each with its event; returns the task.

    All in one commit. Those beyond ``MAX_OPEN`` open ones are left out.
    """

    def change(task: Task) -> tuple[list[Approval], list[Approval]] | None:
        room = MAX_OPEN - len(task.asked)
        fresh: dict[str, Approval] = {}
        for ask in asks:
            if fault_of(ask) is None and _standing(task, ask) is None:
                question = _question(p, task, n, ask)
                fresh.setdefault(question.id, question)
        new = list(fresh.values())[: max(room, 0)]
        return ([*task.approvals, *new], new) if new else None

    return await _change(p, task_id, change)


def fault_of(ask: Ask) -> str | None:  # noqa: PLR0911 - one reason a line
    """Say why nobody is asked this; None: it can be asked."""
    try:
        size = len(ask.subject.encode())
    except UnicodeEncodeError:
        return "the question is not text"
    if size > _SUBJECT_BYTES:
        return f"a question has at most {_SUBJECT_BYTES} bytes"
    if not ask.subject.strip() or "\0" in ask.subject:
        return "the question is empty"
    if ask.kind == ApprovalKind.COMMAND:
        return None
    if ask.kind == ApprovalKind.HOST:
        return None if is_host(ask.subject) else "a host is asked for as name:port"
    if ask.kind == ApprovalKind.PATH:
        known = ask.subject.startswith("/") and ".." not in ask.subject.split("/")
        return None if known else "a path is asked for from its root, without .."
    if ask.kind == ApprovalKind.NETWORK:
        known = ask.subject in {Network.FULL, Network.COORDINATOR}
        return None if known else "there is no such network mode"
    return f"nobody is asked for {ask.kind[:40]!r}"


def grants_of(task: Task) -> list[Approval]:
    """Return the grants of a task that are for exactly what they say, and this task."""
    return [a for a in task.grants if holds(task.task_id, a)]


def decided(task: Task) -> list[Approval]:
    """Return what people have answered and an agent should know of, oldest first."""
    return [
        a
        for a in task.approvals
        if a.approved is not None
        and a.used_at is None
        and a.kind is not ApprovalKind.START
        and holds(task.task_id, a)
    ]


def _standing(task: Task, ask: Ask) -> Approval | None:
    """Find this very question, unless its answer is used up."""
    digest = digest_of(task.task_id, ask.kind, ask.subject)
    for question in task.approvals:
        if (
            question.digest == digest
            and question.kind == ask.kind
            and question.subject == ask.subject
            and question.used_at is None
        ):
            return question
    return None


def _question(p: Parts, task: Task, n: int, ask: Ask) -> Approval:
    kind = ApprovalKind(ask.kind)
    digest = digest_of(task.task_id, kind, ask.subject)
    used = sum(a.digest == digest for a in task.approvals)
    why = _in_a_line(ask.why)
    because = f" ({why})" if why else ""
    shown = _SENTENCES[kind].format(_in_a_line(ask.subject))
    return Approval(
        # Derived, so that a repeat of the step that asks is the same question.
        id=derived_id(task.task_id, kind, ask.subject, used),
        # The reason first: what is asked for may be long, and is the asker's to word.
        what=f"May it{because} {shown}",
        kind=kind,
        subject=ask.subject,
        digest=digest,
        iteration=n,
        asked_at=p.clock(),
    )


def _in_a_line(text: str) -> str:
    """Return a text as one line that says where others began and how much is left out."""
    lines = [" ".join(line.split()) for line in redact(text).strip().splitlines()]
    line = " ⏎ ".join(lines)
    if len(line) <= _SHOWN_CHARS:
        return line
    return f"{line[:_SHOWN_CHARS]}… ({len(line) - _SHOWN_CHARS} more characters)"


async def _change(p: Parts, task_id: str, change: Change) -> Task:
    """Change the approvals of a task, whoever else changes them at the same time."""
    for _ in range(_TRIES):
        task = await p.store.get(task_id)
        wanted = change(task)
        if wanted is None or task.status in FINAL_STATUSES:
            return task
        approvals, asked = wanted
        told = [(q, {**_told(q), "iteration": q.iteration}) for q in asked]
        stored = await p.store.change(
            task_id,
            TaskChange(approvals=approvals),
            seen=task.approvals,
            unless=FINAL_STATUSES,
            telemetry=[
                p.learning.event(
                    events.APPROVAL_REQUESTED,
                    data,
                    task_id=task_id,
                    event_id=derived_id(task_id, q.id, events.APPROVAL_REQUESTED),
                    trace_id=task.trace_id,
                )
                for q, data in told
            ],
            live=[("approval", data) for _, data in told],
        )
        if stored.approvals == approvals:
            p.relay.nudge()
            return stored
    return await p.store.get(task_id)


def _told(question: Approval) -> dict[str, str]:
    return {
        "approval_id": question.id,
        "what": question.what,
        "kind": question.kind,
        "subject": question.subject,
    }
