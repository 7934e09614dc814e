"""Stage prepare: a clone, its environment, and the checks on the base."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from nestor.errors import SandboxError, WorkspaceError
from nestor.model import event as events
from nestor.model.task import FINAL_STATUSES, Reason, Spent, Task, TaskStatus
from nestor.ports import workspace
from nestor.ports.task_store import TaskChange
from nestor.ralph.parts import (
    CANCELLED,
    Parts,
    count_tasks,
    event_of,
    failed,
    plain,
    say,
    until_cancelled,
)
from nestor.ralph.protection import protected
from nestor.ralph.records import Begun, Carried, End, Prepared
from nestor.ralph.sealing import moved
from nestor.ralph.verification import Subject
from nestor.telemetry import metrics
from nestor.telemetry.trace import trace

NOT_PREPARED = failed(Reason.WORKSPACE_ERROR, "Its workspace was not prepared.")


async def prepare(p: Parts, task: Task) -> Begun:
    """Clone, environment, and the checks on the base, before any model is asked.

    A further attempt goes on from what the one before left.
    """
    now = p.clock()
    started = await p.store.change(
        task.task_id,
        TaskChange(
            status=TaskStatus.RUNNING,
            started_at=task.started_at or now,
            sandboxed=p.sandbox.name != "none",
        ),
        telemetry=[
            event_of(p, task, events.TASK_STARTED, _started(task), task.attempt - 1)
        ],
        live=[("task", {"status": TaskStatus.RUNNING, "step": "prepare", "n": 1})],
        unless=FINAL_STATUSES,
        attempt=task.attempt,
    )
    if started.attempt != task.attempt:
        return Begun(at=now, over=True)
    p.relay.nudge()
    await count_tasks(p.store)
    if started.started_at == now:
        metrics.QUEUE_WAIT.observe(max((now - task.created_at).total_seconds(), 0.0))
    if started.status in FINAL_STATUSES:
        return Begun(at=now, end=_ended(started))
    with trace(task.trace_id):
        result = await until_cancelled(p, task, _prepare(p, task, now))
    return result or Begun(at=now, end=CANCELLED)


async def _prepare(p: Parts, task: Task, now: datetime) -> Begun:
    backend = p.backends[task.backend]
    if why := backend.unavailable():
        return Begun(at=now, end=failed(Reason.BACKEND_UNAVAILABLE, why))
    if backend.needs_model and not p.router.has_models():
        why = (
            f"backend {task.backend} needs a model and none is configured: "
            "set NESTOR_LOCAL_MODEL or NESTOR_REMOTE_MODEL"
        )
        return Begun(at=now, end=failed(Reason.BACKEND_UNAVAILABLE, why))
    if why := moved(task.spec):
        return Begun(at=now, end=failed(Reason.WORKSPACE_ERROR, why))
    try:
        carried = await _carried(p, task)
    except WorkspaceError as error:
        return Begun(at=now, end=failed(Reason.WORKSPACE_ERROR, str(error)))
    except SandboxError as error:
        return Begun(at=now, end=failed(Reason.BACKEND_UNAVAILABLE, str(error)))
    return Begun(at=now, carried=carried)


async def _carried(p: Parts, task: Task) -> Carried:
    """Return where this attempt goes on; the first one: at the base, which is checked."""
    before = await p.store.carried(task.task_id)
    if before is None:
        return await _first(p, task)
    carried = msgspec.json.decode(before, type=Carried)
    if (source := task.forked_from) is not None:
        await p.workspaces.fork(source.task_id, carried.commit, into=task.task_id)
    else:
        await _clone(p, task)
    await p.workspaces.reset(task.task_id, carried.commit)
    setup = await p.environments.ready(
        task.task_id,
        task.spec,
        base=carried.prepared.base,
        tree_id=carried.prepared.base_tree,
        submitter=task.submitted_by,
    )
    prepared = msgspec.structs.replace(carried.prepared, setup=setup)
    return msgspec.structs.replace(carried, prepared=prepared)


async def _clone(p: Parts, task: Task) -> workspace.Prepared:
    # It was let in by what stood there at submit; what is copied is what stands there now.
    bound_to = task.bound_to
    inside = None if bound_to is None else [Path(root) for root in bound_to]
    return await p.workspaces.prepare(task.task_id, task.spec, inside=inside)


async def _first(p: Parts, task: Task) -> Carried:
    begun = time.monotonic()
    clone = await _clone(p, task)
    setup = await p.environments.ready(
        task.task_id,
        task.spec,
        base=clone.base,
        tree_id=clone.tree,
        submitter=task.submitted_by,
    )
    base_files = await p.workspaces.files(task.task_id, clone.base)
    subject = Subject(
        task_id=task.task_id,
        spec=task.spec,
        commit=clone.base,
        is_protected=protected(task.spec, base_files),
        phase="base",
        label="base",
        setup=setup,
    )
    base = await p.verifier.run(subject)
    prepared = Prepared(
        base=clone.base,
        base_tree=clone.tree,
        repo=clone.repo,
        setup=setup,
        base_verdicts=base.verdicts,
        base_reports=base.reports,
        duration_s=time.monotonic() - begun,
    )
    carried = Carried(
        n=0,
        prepared=prepared,
        commit=clone.base,
        agent_tree=clone.tree,
        judged=clone.base,
        spent=Spent(seconds=prepared.duration_s),
    )
    await p.store.change(
        task.task_id,
        TaskChange(base=clone.base, workspace=clone.repo),
        live=[("verdict", {"n": 0, **plain(v)}) for v in base.verdicts],
        carried=msgspec.json.encode(carried).decode(),
    )
    return carried


async def prepare_again(p: Parts, task: Task, n: int) -> Begun:
    """Look, before a further iteration, whether somebody cancelled meanwhile."""
    now = p.clock()
    await say(p, task, n, "prepare")
    current = await p.store.get(task.task_id)
    end = CANCELLED if current.cancel_requested else None
    return Begun(at=now, end=end)


def _started(task: Task) -> dict[str, Any]:
    return {
        "description": task.description,
        "backend": task.backend,
        "checks_digest": task.checks_digest,
    }


def _ended(task: Task) -> End:
    return End(
        status=task.status, reason=task.reason or Reason.CANCELLED, detail=task.detail
    )
