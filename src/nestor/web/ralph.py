"""Ralph over HTTP: submit tasks, look at them, follow them live, stop them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import Provide
from litestar.params import QueryParameter
from litestar.response import Stream

from nestor.errors import Conflict, InvalidInput
from nestor.model.task import FINAL_STATUSES, Task, TaskSpec, TaskStatus
from nestor.ports.task_store import TaskFilter, TaskTotals
from nestor.ralph.sealing import MAX_PHASE, PRIORITIES
from nestor.ralph.service import Submitted
from nestor.web import mcp, steering
from nestor.web.task_view import money, task_view
from nestor.web.views import (
    Accepted,
    Iterations,
    Results,
    ResultView,
    Status,
    TaskList,
    TaskView,
)
from nestor.wiring import Nestor

_KEEP_ALIVE_S = 15.0
_LIVE_POLL_S = 0.1
_MAX_DIGITS = 15


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks a view shows, and how many at most: the newest."""

    which: TaskFilter
    limit: int


async def listing(
    priority: Annotated[
        str | None, QueryParameter(schema_extra={"enum": list(PRIORITIES)})
    ] = None,
    phase: Annotated[
        int | None, QueryParameter(schema_extra={"minimum": 0, "maximum": MAX_PHASE})
    ] = None,
    of: Annotated[
        str | None,
        QueryParameter(name="status", schema_extra={"enum": list(TaskStatus)}),
    ] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 200,
) -> Listing:
    """Read the query of every view that lists tasks. Raises ``InvalidInput``."""
    if priority is not None and priority not in PRIORITIES:
        known = ", ".join(PRIORITIES)
        raise InvalidInput.at("priority", f"{priority!r} is not one of: {known}")
    if phase is not None and not 0 <= phase <= MAX_PHASE:
        raise InvalidInput.at("phase", f"use 0 to {MAX_PHASE}")
    if of is not None and of not in set(TaskStatus):
        known = ", ".join(TaskStatus)
        raise InvalidInput.at("status", f"{of!r} is not one of: {known}")
    wanted = TaskStatus(of) if of else None
    which = TaskFilter(priority=priority, phase=phase, status=wanted)
    return Listing(which=which, limit=limit)


_LISTING = {"shown": Provide(listing)}


async def seen(request: Request[Any, Any, Any], task_id: str) -> Task:
    """Read the task that the path names, if this key may see it. Raises ``NotFound``."""
    nestor: Nestor = request.app.state.nestor
    return await nestor.ralph.get(task_id, by=request.user)


_ONE = {"scope": ("read", "submit", "approve")}
"""Of one task: a key that only submits sees its own; for others there is no such task."""
_SEEN = {"task": Provide(seen)}


@post(
    ["/submit", "/tasks"],
    status_code=202,
    opt={
        "scope": "submit",
        "replies": {200: Accepted, 202: Accepted},
        "raises": (Conflict,),
    },
)
async def submit(request: Request[Any, Any, Any], data: TaskSpec) -> Response[Accepted]:
    """Submit a task: 202; the same id with the same body again: 200 and the old task."""
    nestor: Nestor = request.app.state.nestor
    done = await nestor.ralph.submit(data, request.user)
    return Response(accepted(done), status_code=202 if done.created else 200)


def accepted(done: Submitted) -> Accepted:
    """Shape what became of a submit for clients."""
    return {
        "task_id": done.task.task_id,
        "status": done.task.status,
        "position": done.position,
        "waits_for": done.task.waits_for,
        "detail": done.task.detail,
        "url": f"/tasks/{done.task.task_id}",
    }


@get("/status", opt={"scope": "read"}, dependencies=_LISTING)
async def status(request: Request[Any, Any, Any], shown: Listing) -> Status:
    """The newest tasks, counts of all by status, and what works on them."""
    nestor: Nestor = request.app.state.nestor
    return {
        **await _tasks(request, shown),
        "counts": await nestor.ralph.counts(),
        "workers": await nestor.ralph.workers(),
    }


@get("/results", opt={"scope": "read"}, dependencies=_LISTING)
async def results(request: Request[Any, Any, Any], shown: Listing) -> Results:
    """How ended tasks ended, newest first; ``truncated``: there are older ones."""
    nestor: Nestor = request.app.state.nestor
    which = msgspec.structs.replace(shown.which, ended=True)
    ended, truncated = await nestor.ralph.newest(which, limit=shown.limit)
    return {
        "results": [await result_view(nestor, task) for task in ended],
        "truncated": truncated,
    }


async def result_view(nestor: Nestor, task: Task) -> ResultView:
    """Shape what a task came to for clients."""
    iterations = await nestor.ralph.iterations(task.task_id)
    last = iterations[-1] if iterations else None
    seconds = None
    if task.started_at and task.ended_at:
        seconds = round((task.ended_at - task.started_at).total_seconds(), 3)
    return {
        "task_id": task.task_id,
        "status": task.status,
        "success": task.success,
        "reason": task.reason,
        "detail": task.detail,
        "iterations": len(iterations),
        "verdicts": [msgspec.to_builtins(v) for v in last.verdicts] if last else [],
        "judgements": [msgspec.to_builtins(j) for j in last.judgements] if last else [],
        "judge_model": last.judge_model if last else None,
        "checks_digest": task.checks_digest,
        "output": task.output,
        "diff_stat": msgspec.to_builtins(last.diff_stat) if last else None,
        "cost_usd": None if task.spent.usd is None else money(task.spent.usd),
        "tokens": task.spent.tokens,
        "duration_s": seconds,
        "branch": task.branch,
        "protected": task.spec.protected,
        "guard_only": task.spec.guard_only,
        "replayed": task.replayed,
        "sandboxed": task.sandboxed,
    }


@get("/tasks", opt={"scope": "read"}, dependencies=_LISTING)
async def tasks(request: Request[Any, Any, Any], shown: Listing) -> TaskList:
    """The newest tasks, newest first; ``truncated``: there are older ones."""
    return await _tasks(request, shown)


async def _tasks(request: Request[Any, Any, Any], shown: Listing) -> TaskList:
    nestor: Nestor = request.app.state.nestor
    found, truncated = await nestor.ralph.newest(shown.which, limit=shown.limit)
    waits = await nestor.ralph.waits(found)
    return {
        "tasks": [
            task_view(task, request.user, waits.get(task.task_id)) for task in found
        ],
        "truncated": truncated,
    }


@get("/tasks/{task_id:str}", opt=_ONE, dependencies=_SEEN)
async def task(request: Request[Any, Any, Any], task: Task) -> TaskView:
    """One task."""
    nestor: Nestor = request.app.state.nestor
    waits = await nestor.ralph.waits([task])
    return task_view(task, request.user, waits.get(task.task_id))


@get("/tasks/{task_id:str}/iterations", opt=_ONE, dependencies=_SEEN)
async def iterations(request: Request[Any, Any, Any], task: Task) -> Iterations:
    """What was recorded of each iteration, oldest first."""
    nestor: Nestor = request.app.state.nestor
    found = await nestor.ralph.iterations(task.task_id)
    calls = await nestor.ledger.calls(task.task_id)
    base = await nestor.ralph.base_verdicts(task.task_id)
    return {
        "base": [msgspec.to_builtins(verdict) for verdict in base],
        "iterations": [msgspec.to_builtins(iteration) for iteration in found],
        "model_calls": [msgspec.to_builtins(call) for call in calls],
    }


@get(
    "/tasks/{task_id:str}/diff",
    opt={**_ONE, "media": ["text/plain"]},
    dependencies=_SEEN,
)
async def diff(
    request: Request[Any, Any, Any],
    task: Task,
    iteration: Annotated[int | None, QueryParameter(ge=1, le=10_000)] = None,
) -> Response[str]:
    """The newest snapshot (or that of ``iteration``) against the base, as a unified diff."""
    nestor: Nestor = request.app.state.nestor
    text = await nestor.ralph.diff(task.task_id, iteration=iteration)
    return Response(text, media_type="text/plain")


@get(
    "/tasks/{task_id:str}/events",
    opt={
        **_ONE,
        "replies": {200: str},
        "media": ["text/event-stream"],
        "request_headers": {
            "Last-Event-ID": {"type": "string", "pattern": r"^[0-9]{1,15}$"}
        },
    },
    dependencies=_SEEN,
)
async def events(request: Request[Any, Any, Any], task: Task) -> Stream:
    """Live, as Server-Sent Events; ``Last-Event-ID`` resumes after that one."""
    nestor: Nestor = request.app.state.nestor
    after = _last_event(request.headers.get("last-event-id", "0"))
    return Stream(
        lambda: _follow(nestor, task.task_id, after), media_type="text/event-stream"
    )


def _last_event(text: str) -> int:
    # Counted first: digits without end take time to read.
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise InvalidInput.at("Last-Event-ID", "must be the number of an event")
    return int(text)


async def _follow(nestor: Nestor, task_id: str, after: int) -> AsyncIterator[bytes]:
    quiet = _KEEP_ALIVE_S
    yield b": connected\n\n"
    while True:
        found = await nestor.ralph.live(task_id, after=after)
        for event in found:
            after = event.id
            data = msgspec.json.encode({"at": event.at, **event.data}).decode()
            yield f"id: {event.id}\nevent: {event.kind}\ndata: {data}\n\n".encode()
        quiet = 0.0 if found else quiet + _LIVE_POLL_S
        if quiet >= _KEEP_ALIVE_S or any(event.kind == "end" for event in found):
            # An ``end`` is the last one unless another attempt was begun after it. Who
            # has read it already, or resumes after it, waits for nothing.
            if await _over(nestor, task_id, after):
                return
            quiet = 0.0
            yield b": keep-alive\n\n"
        await asyncio.sleep(_LIVE_POLL_S)


async def _over(nestor: Nestor, task_id: str, after: int) -> bool:
    """Tell whether a task has ended and all it had to say was read."""
    task = await nestor.ralph.get(task_id)
    return task.status in FINAL_STATUSES and not (
        await nestor.ralph.live(task_id, after=after)
    )


@get("/stats", opt={"scope": "read", "replies": {200: TaskTotals}})
async def stats(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Totals over all tasks that this store knows."""
    nestor: Nestor = request.app.state.nestor
    totals = await nestor.ralph.totals()
    return {
        **msgspec.to_builtins(totals),
        "cost_usd": money(totals.cost_usd),
    }


def handlers() -> list[Any]:
    """Everything this layer answers besides health and metrics."""
    return [
        submit,
        status,
        results,
        tasks,
        task,
        iterations,
        diff,
        events,
        *steering.handlers(),
        mcp.handler("ralph", scope=("submit", "read", "approve")),
        stats,
    ]
