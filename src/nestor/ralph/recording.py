"""Stages decide and finish: what happened is stored and told, each in one commit."""

import asyncio
import re
from datetime import datetime
from decimal import Decimal

import msgspec

from nestor.errors import Unavailable, WorkspaceError
from nestor.model import event as events
from nestor.model.task import (
    FINAL_STATUSES,
    Iteration,
    Outcome,
    Reason,
    Spent,
    Task,
    TaskStatus,
)
from nestor.ports.task_engine import OtherVersion, RecoveryLimit
from nestor.ports.task_store import TaskChange
from nestor.ports.workspace import Snapshot
from nestor.ralph.decision import Decision
from nestor.ralph.parts import CANCELLED, Parts, count_tasks, event_of, plain
from nestor.ralph.records import (
    AgentRun,
    Carried,
    Checked,
    Context,
    Decided,
    End,
    Guidance,
)
from nestor.ralph.turns import Turns
from nestor.telemetry import metrics
from nestor.telemetry.redact import redact

_SHOWN = 300
_TELLING = re.compile(
    r"error|exception|fail|fatal|cannot|denied|refused|not found|no such|did not",
    re.IGNORECASE,
)
"""A line of an agent's output that says what went wrong."""
_OTHER_VERSION = (
    "Another version of Nestor began it, whose records this one cannot follow. Go on from"
    " its last iteration: nestor resume {0}; where that is refused, submit it again,"
    " under another id (--id)."
)


class TurnRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All records of one iteration."""

    n: int
    context: Context
    guidance: Guidance
    agent: AgentRun
    snapshot: Snapshot
    checked: Checked
    decision: Decision


async def record(p: Parts, task: Task, turn: TurnRecord, turns: Turns) -> Decided:
    """Store the iteration with its decision and tell the learning layer, in one commit."""
    now, n = p.clock(), turn.n
    done = turns.turns[-1]
    iteration = _iteration(turn, outcome=done.outcome, begun=turns.begun, at=now)
    passed = turn.decision.status is TaskStatus.VERIFIED
    told = [
        event_of(
            p,
            task,
            events.TASK_ITERATION,
            {
                "iteration": n,
                "input": task.description,
                "output": turn.agent.summary or turn.agent.output_tail,
                "success": passed,
                "outcome": done.outcome,
                "refused": turn.agent.refused,
            },
            n,
        )
    ]
    failing = [v.check for v in turns.failing]
    if turn.agent.claims_done and turn.decision.blocked:
        data = {"iteration": n, "failing": failing}
        told.append(event_of(p, task, events.EXIT_BLOCKED, data, n))
    stored = await p.store.change(
        task.task_id,
        TaskChange(
            iteration=n,
            spent=turns.spent,
            replayed=turn.checked.total.replayed,
            rolled_back_to=None,
        ),
        iteration=iteration,
        telemetry=told,
        carried=msgspec.json.encode(turns.carried).decode(),
        live=[
            *(("verdict", {"n": n, **plain(v)}) for v in turn.checked.verdicts),
            ("iteration", {"step": "decide", **plain(iteration)}),
        ],
    )
    metrics.ITERATIONS.labels(outcome=done.outcome).inc()
    p.relay.nudge()
    if stored.cancel_requested:  # who asks before the end is decided, decides it
        return Decided(at=now, end=CANCELLED)
    decision = turn.decision
    if decision.status is None or decision.reason is None:
        end = await _park(p, stored) if turn.agent.unanswered else None
        return Decided(at=now, end=end)
    return Decided(at=now, end=End(status=decision.status, reason=decision.reason))


async def _park(p: Parts, task: Task) -> End | None:
    """Leave the task to a person while one is asked; None: it was answered, and goes on.

    Who answers from here on starts the next attempt, so nobody may answer in between.
    """
    while task.asked:
        end = End(
            status=TaskStatus.AWAITING_APPROVAL,
            reason=Reason.APPROVAL_PENDING,
            detail="; ".join(question.what for question in task.asked),
        )
        data = {"status": end.status, "reason": end.reason, "detail": end.detail}
        after = await p.store.change(
            task.task_id,
            TaskChange(status=end.status, reason=end.reason, detail=end.detail),
            live=[("task", data)],
            unless=FINAL_STATUSES,
            seen=task.approvals,
        )
        if after.cancel_requested:
            return CANCELLED
        if after.approvals == task.approvals:
            return end
        task = after
    return None


async def finish(p: Parts, task: Task, end: End, turns: Turns | None) -> End:
    """Hand the work over, then say how the task ended: once. ``turns`` None: no workspace.

    Nothing when another attempt has the task by now, and with it the workspace.
    """
    now = await p.store.get(task.task_id)
    if now.attempt != task.attempt:
        return end
    if end.status is TaskStatus.AWAITING_APPROVAL:
        # No process, no key and no worker is held while a person is waited for.
        await p.keys.revoke_scope(f"task:{task.task_id}")
        await count_tasks(p.store)
        return end
    if now.status in FINAL_STATUSES:
        # Said before a crash, or cancelled before it began: since then a person may have
        # moved the branch.
        await _let_go(p, task)
        return end
    if end.status is TaskStatus.CANCELLED:
        await _end_processes(p, task)
    branch, detail = None, end.detail or _explain(end, turns)
    if not end.detail and end.reason is Reason.REPEATED_ERROR:
        detail += await _last_error(p, task)
    if turns is not None and turns.judged != turns.prepared.base:
        try:
            branch = await p.workspaces.deliver(task.task_id, turns.judged)
        except WorkspaceError as error:
            detail = f"{detail} The branch was not delivered: {error}".strip()
    await _end(
        p,
        task,
        msgspec.structs.replace(end, detail=detail),
        branch=branch,
        seconds=turns.spent.seconds if turns else 0.0,
    )
    return end


async def _last_error(p: Parts, task: Task) -> str:
    """Return, as a sentence, the line that tells how the agent failed; "" without one."""
    iterations = await p.store.iterations(task.task_id)
    said = iterations[-1].output_tail if iterations else ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return ""
    # Many begin with a greeting, or with "exit code 1".
    line = next(filter(_TELLING.search, lines), lines[-1])
    shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
    return f" The last time: {shown}"


async def _end_processes(p: Parts, task: Task) -> None:
    """End what a step of a process that died may have left, where none came after it."""
    runs = p.workspaces.folder(task.task_id) / "runs"
    places = await asyncio.to_thread(lambda: sorted(runs.glob("*")))
    for place in places:
        await p.sandbox.kill(place)


async def give_up(p: Parts, task_id: str, error: Exception) -> None:
    """End a task that the engine cannot bring to its end; called for any such error.

    What its iterations came to is handed over.
    """
    task = await p.store.get(task_id)
    reason = Reason.BACKEND_UNAVAILABLE
    if isinstance(error, RecoveryLimit):
        reason = Reason.RECOVERY_LIMIT
    cause = error.__cause__ or error
    detail = f"Nestor could not go on with it: {type(cause).__name__}: {cause}"
    if isinstance(error, OtherVersion):
        if task.status is TaskStatus.AWAITING_APPROVAL:
            return  # nothing of it is left to do: the answer begins a further attempt
        detail = _OTHER_VERSION.format(task_id)
    branch = None
    try:
        branch = await _rescued(p, task)
    except Unavailable:
        raise  # asked again
    except Exception as fault:  # noqa: BLE001 - perhaps what brought it here: it ends all the same
        detail = f"{detail} The branch was not delivered: {fault}"
    end = End(status=TaskStatus.FAILED, reason=reason, detail=redact(detail))
    await _end(p, task, end, branch=branch, seconds=task.spent.seconds)


async def _rescued(p: Parts, task: Task) -> str | None:
    """Deliver what the last recorded iteration left; None: nothing, or it was done."""
    raw = await p.store.carried(task.task_id)
    if raw is None or task.status in FINAL_STATUSES:
        return None
    carried = msgspec.json.decode(raw, type=Carried)
    if carried.n == 0 or carried.judged == carried.prepared.base:
        return None
    return await p.workspaces.deliver(task.task_id, carried.judged)


async def _end(
    p: Parts, task: Task, end: End, *, branch: str | None, seconds: float
) -> None:
    await p.keys.revoke_scope(f"task:{task.task_id}")
    iterations = await p.store.iterations(task.task_id)
    # Calls of an iteration that was cut short are in no record of the loop.
    meter = await p.router.meter(task.task_id)
    data = {
        "status": end.status,
        "reason": end.reason,
        "iterations": len(iterations),
        "success": end.status is TaskStatus.VERIFIED,
    }
    stored = await p.store.change(
        task.task_id,
        TaskChange(
            status=end.status,
            reason=end.reason,
            ended_at=p.clock(),
            branch=branch,
            detail=end.detail,
            output=iterations[-1].output_tail if iterations else "",
            spent=Spent(usd=meter.cost_usd, tokens=meter.usage.total, seconds=seconds),
            replayed=meter.replayed,
        ),
        telemetry=[event_of(p, task, events.TASK_COMPLETED, data, task.attempt - 1)],
        live=[("end", data)],
        unless=FINAL_STATUSES,
        attempt=task.attempt,
    )
    if stored.attempt != task.attempt:
        return
    p.relay.nudge()
    metrics.TASKS_ENDED.labels(status=stored.status, reason=str(stored.reason)).inc()
    await count_tasks(p.store)
    await p.workspaces.discard(task.task_id)


async def _let_go(p: Parts, task: Task) -> None:
    await p.keys.revoke_scope(f"task:{task.task_id}")
    await p.workspaces.discard(task.task_id)


def _iteration(
    turn: TurnRecord, *, outcome: Outcome, begun: datetime, at: datetime
) -> Iteration:
    meter, agent = turn.checked.iteration, turn.agent
    judged = turn.checked.judged or turn.snapshot
    return Iteration(
        n=turn.n,
        started_at=begun,
        ended_at=at,
        context_items=[
            {"id": i.id, "kind": i.kind, "source": i.source, "score": i.score}
            for i in turn.context.items
        ],
        route=turn.guidance.route,
        model=turn.guidance.model,
        guidance=turn.guidance.text,
        outcome=outcome,
        exit_code=agent.exit_code,
        claimed_done=agent.claims_done,
        diff_stat=judged.diff_stat,
        tree=judged.tree,
        commit=judged.commit,
        snapshot=turn.snapshot.commit,
        verdicts=turn.checked.verdicts,
        judgements=turn.checked.judgements,
        judge_model=turn.checked.judge_model,
        usage=meter.usage,
        cost_usd=meter.cost_usd if meter.calls else Decimal(0),
        blocked_reason=turn.decision.blocked,
        # What it says of itself, and where it failed also what it printed.
        output_tail="\n".join(
            part
            for part in (agent.summary, agent.output_tail if agent.failure else "")
            if part
        )
        or agent.output_tail,
        notes=[
            *turn.context.degraded,
            *([f"guidance: {turn.guidance.error}"] if turn.guidance.error else []),
            *(
                [f"judge: {turn.checked.judge_error}"]
                if turn.checked.judge_error
                else []
            ),
        ],
        left_out=turn.snapshot.left_out,
        protected_restored=turn.checked.restored,
        refused=turn.agent.refused,
    )


_EXPLAIN = {
    Reason.CHECKS_PASSED: "Every check passes on a fresh checkout of the result.",
    Reason.NO_CHECKS: "The agent says it is done; no check was given that could tell.",
    Reason.CHECKS_NOT_DISCRIMINATING: "The checks pass, but none of them failed before, "
    "so they say nothing about this work. Give a check that fails until it is done.",
    Reason.JUDGE_PASSED: "A judge model finds every criterion met and quotes what shows "
    "it. No check proves that, so it does not count as verified.",
    Reason.MAX_ITERATIONS: "The iterations granted are used up and the checks still fail.",
    Reason.BUDGET_USD: "The money granted is spent, or a price is unknown.",
    Reason.BUDGET_TOKENS: "The tokens granted are spent.",
    Reason.BUDGET_SECONDS: "The time granted is used up.",
    Reason.STALLED: "The last iterations got no further.",
    Reason.REPEATED_ERROR: "The agent failed twice in the same way.",
    Reason.CANCELLED: "Cancelled; no process of the task is left.",
}


def _explain(end: End, turns: Turns | None) -> str:
    text = _EXPLAIN.get(end.reason, "")
    if turns is not None and turns.judge_error and end.status is TaskStatus.UNVERIFIED:
        text += f" It was not judged: {turns.judge_error}."
    if turns is not None and turns.restored and end.status is not TaskStatus.VERIFIED:
        named = ", ".join(turns.restored[:5])
        text += (
            f" The agent changed protected files, which does not count: {named}. If they "
            "are the work, say in the task what is protected instead (protected: [...])."
        )
    return text.strip()
