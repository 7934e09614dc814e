"""What the stages of the loop work with, and what they share.

A stage may run again after a crash, so each begins by ending what an earlier attempt may
have left running, and writes under ids that are derived from task, iteration and type.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from nestor.errors import Unavailable
from nestor.model import event as events
from nestor.model.ids import derived_id
from nestor.model.task import Reason, Task, TaskStatus
from nestor.ports.agent import AgentBackend
from nestor.ports.key_store import KeyStore
from nestor.ports.knowledge_base import KnowledgeBase
from nestor.ports.router import Router
from nestor.ports.sandbox import Sandbox
from nestor.ports.task_store import TaskStore
from nestor.ports.workspace import Workspaces
from nestor.ralph.environment import Environments
from nestor.ralph.outbox import OutboxRelay
from nestor.ralph.records import End
from nestor.ralph.verification import Verifier
from nestor.telemetry import metrics
from nestor.telemetry.learning_client import LearningClient

T = TypeVar("T")
_CANCEL_POLL_S = 0.5
CANCELLED = End(status=TaskStatus.CANCELLED, reason=Reason.CANCELLED)


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the stages work with."""

    store: TaskStore
    workspaces: Workspaces
    sandbox: Sandbox
    environments: Environments
    verifier: Verifier
    router: Router
    knowledge: KnowledgeBase
    keys: KeyStore
    backends: Mapping[str, AgentBackend]
    learning: LearningClient
    relay: OutboxRelay
    agent_timeout_s: float
    model_base_url: str
    approval_wait_s: float = 120.0
    """How long an agent that asks a person waits for the answer."""
    clock: Callable[[], datetime]
    judge_model: str | None = None
    """What the Coordinator is asked for to judge criteria in prose; None: nobody judges."""


async def say(p: Parts, task: Task, n: int, step: str) -> None:
    """Tell whoever watches which step begins."""
    await p.store.tell(task.task_id, "iteration", {"n": n, "step": step})


async def until_cancelled(
    p: Parts, task: Task, work: Coroutine[Any, Any, T]
) -> T | None:
    """Await ``work``; None when somebody cancelled the task first and it is gone.

    Of a task that is cancelled already nothing of it begins.
    """
    try:
        asked = await _asked_to_end(p, task.task_id)
    except BaseException:
        work.close()
        raise
    if asked:
        work.close()
        return None
    running = asyncio.ensure_future(work)
    watch = asyncio.create_task(_cancel_requested(p, task.task_id))
    try:
        await asyncio.wait({running, watch}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        watch.result()  # a watch that broke is no request to cancel
        running.cancel()
        await asyncio.wait({running})
        # Only who was cancelled is gone; an error, or an end of its own, is told.
        return None if running.cancelled() else running.result()
    finally:
        for part in (running, watch):
            part.cancel()
        await asyncio.gather(running, watch, return_exceptions=True)


async def _cancel_requested(p: Parts, task_id: str) -> None:
    # The request may come through another process, so the store is asked again.
    while True:
        await asyncio.sleep(_CANCEL_POLL_S)
        if await _asked_to_end(p, task_id):
            return


async def _asked_to_end(p: Parts, task_id: str) -> bool:
    try:
        return (await p.store.get(task_id)).cancel_requested
    except Unavailable:  # unknown is not "cancelled"
        return False


def event_of(
    p: Parts, task: Task, kind: str, data: dict[str, Any], n: int = 0
) -> events.Event:
    """Make the event of a durable transition: a repeat of it has the same id."""
    return told_of(p.learning, task, kind, data, n)


def told_of(
    learning: LearningClient,
    task: Task,
    kind: str,
    data: dict[str, Any],
    n: int = 0,
    *more: str,
) -> events.Event:
    """Make an event whose id is of the task, ``n``, the kind and whatever tells it apart."""
    return learning.event(
        kind,
        data,
        task_id=task.task_id,
        event_id=derived_id(task.task_id, n, kind, *more),
        trace_id=task.trace_id,
    )


def failed(reason: Reason, detail: str) -> End:
    """Say that the task cannot run, and why."""
    return End(status=TaskStatus.FAILED, reason=reason, detail=detail)


def plain(value: msgspec.Struct) -> dict[str, Any]:
    """Turn a value into what JSON can hold."""
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain


async def count_tasks(store: TaskStore) -> dict[str, int]:
    """Count tasks by status, for the caller and for the metric."""
    counts = await store.counts()
    for status in TaskStatus:
        metrics.TASKS.labels(status=status).set(counts.get(status, 0))
    return counts
