"""What people do with tasks over HTTP: end, resume, roll back, fork, answer, grant."""

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import QueryParameter

from nestor.errors import Conflict, InvalidInput
from nestor.model.access import ADMIN
from nestor.model.task import ApprovalKind
from nestor.ports.audit_log import Audited
from nestor.ralph.attempts import Further
from nestor.web.task_view import task_view
from nestor.web.views import AuditTrail, TaskView
from nestor.wiring import Nestor

_STEERS = {"scope": "submit", "raises": (Conflict,)}
"""Of the tasks that the key submitted; an admin's of all."""
_ANSWERS = {"scope": "approve", "raises": (Conflict,)}


class Approve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /tasks/{id}/approve``. There is no default answer."""

    approved: bool
    action: str | None = None
    """Id of the question that is meant; needed where several are open."""
    note: str | None = None


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /tasks/{id}/grant``: one of the three."""

    host: str | None = None
    """``name:port``."""
    path: str | None = None
    """Absolute; seen read-only at the same place."""
    network: str | None = None
    note: str | None = None


class Rollback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /tasks/{id}/rollback``. 0: the base."""

    iteration: int


class Fork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /tasks/{id}/fork``. 0: the base."""

    iteration: int
    task_id: str | None = None
    """Of the new task; the same again is safe."""
    prompt: str | None = None
    """What to do instead; not given: the same."""


@post(
    ["/tasks/{task_id:str}/cancel", "/tasks/{task_id:str}/stop"],
    status_code=202,
    opt=_STEERS,
)
async def cancel(request: Request[Any, Any, Any], task_id: str) -> TaskView:
    """Ask for the end; the status says ``cancelled`` once no process is left."""
    nestor: Nestor = request.app.state.nestor
    cancelled = await nestor.ralph.cancel(task_id, by=request.user)
    return task_view(cancelled, request.user)


@post("/tasks/{task_id:str}/resume", status_code=202, opt=_STEERS)
async def resume(
    request: Request[Any, Any, Any], task_id: str, data: Further
) -> TaskView:
    """Let an ended task go on with its next iteration, from where its tree stood."""
    nestor: Nestor = request.app.state.nestor
    resumed = await nestor.ralph.resume(task_id, data, by=request.user)
    return task_view(resumed, request.user)


@post("/tasks/{task_id:str}/retry", status_code=202, opt=_STEERS)
async def retry(
    request: Request[Any, Any, Any], task_id: str, data: Further
) -> TaskView:
    """Let an ended task begin again from its base; its iterations go on counting."""
    nestor: Nestor = request.app.state.nestor
    retried = await nestor.ralph.retry(task_id, data, by=request.user)
    return task_view(retried, request.user)


@post("/tasks/{task_id:str}/rollback", status_code=202, opt=_STEERS)
async def rollback(
    request: Request[Any, Any, Any], task_id: str, data: Rollback
) -> TaskView:
    """Put tree and branch of an ended or waiting task back to an iteration."""
    nestor: Nestor = request.app.state.nestor
    there = await nestor.ralph.rollback(task_id, data.iteration, by=request.user)
    return task_view(there, request.user)


@post("/tasks/{task_id:str}/fork", status_code=202, opt=_STEERS)
async def fork(request: Request[Any, Any, Any], task_id: str, data: Fork) -> TaskView:
    """Make a new task that starts from an iteration of this one, under the same checks."""
    nestor: Nestor = request.app.state.nestor
    forked = await nestor.ralph.fork(
        task_id, data.iteration, into=data.task_id, prompt=data.prompt, by=request.user
    )
    return task_view(forked, request.user)


@post("/tasks/{task_id:str}/approve", status_code=202, opt=_ANSWERS)
async def approve(
    request: Request[Any, Any, Any], task_id: str, data: Approve
) -> TaskView:
    """Answer what a task asks a person; it may be running meanwhile."""
    nestor: Nestor = request.app.state.nestor
    answered = await nestor.ralph.approve(
        task_id,
        approved=data.approved,
        note=data.note,
        principal=request.user,
        action=data.action,
    )
    return task_view(answered, request.user)


@post("/tasks/{task_id:str}/grant", status_code=202, opt=_ANSWERS)
async def grant(request: Request[Any, Any, Any], task_id: str, data: Grant) -> TaskView:
    """Allow a task's sandbox more than its task file says, from the next iteration on."""
    nestor: Nestor = request.app.state.nestor
    kind, subject = granted(data)
    allowed = await nestor.ralph.grant(
        task_id, kind, subject, note=data.note, principal=request.user
    )
    return task_view(allowed, request.user)


def granted(data: Grant) -> tuple[ApprovalKind, str]:
    """Return what is granted. Raises ``InvalidInput`` unless it is exactly one thing."""
    given = [
        (kind, value)
        for kind in (ApprovalKind.HOST, ApprovalKind.PATH, ApprovalKind.NETWORK)
        if (value := getattr(data, kind)) is not None
    ]
    if len(given) != 1:
        raise InvalidInput.at("host", "give one of host, path, network")
    return given[0]


@get("/audit", opt={"scope": ADMIN})
async def audit(
    request: Request[Any, Any, Any],
    after: Annotated[int, QueryParameter(ge=0)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 200,
) -> AuditTrail:
    """Who decided what about which task, oldest first."""
    nestor: Nestor = request.app.state.nestor
    found = await nestor.audit.entries(after=after, limit=limit)
    more = len(found) == limit
    return {"entries": found, "next": found[-1].seq if more else None}


@get("/audit/verify", opt={"scope": ADMIN})
async def verify(request: Request[Any, Any, Any]) -> Audited:
    """Recompute every digest of the audit log."""
    nestor: Nestor = request.app.state.nestor
    return await nestor.audit.verify()


def handlers() -> list[Any]:
    """Every route of this module."""
    return [
        *(cancel, resume, retry, rollback, fork),
        *(approve, grant, audit, verify),
    ]
