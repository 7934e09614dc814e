"""The Coordinator over HTTP: route a query, OpenAI's chat completions, keys."""

import asyncio
from collections.abc import Awaitable
from decimal import Decimal
from typing import Annotated, Any, TypeVar, cast

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.background_tasks import BackgroundTask
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from litestar.response import Stream

from nestor.coordinator.chat import ChatStream
from nestor.errors import (
    BudgetExceeded,
    InvalidInput,
    NotFound,
    RateLimited,
    UpstreamError,
)
from nestor.model.access import ApiKey, Principal
from nestor.model.routing import RouteRequest, RouteResult
from nestor.web.auth import charge_to
from nestor.web.views import Chat, CoordinatorStats, KeyList, MadeKey, Models
from nestor.wiring import Nestor

T = TypeVar("T")
_LAST_ITERATION, _MAX_DIGITS = 10_000, 15
_OF_MODELS = (BudgetExceeded, RateLimited, UpstreamError)
_ROUTED = (
    "x-nestor-route",
    "x-nestor-model",
    "x-nestor-interaction-id",
    "x-nestor-confidence",
    "x-nestor-cost-usd",
    "x-nestor-replayed",
)


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /keys``."""

    name: str
    scopes: list[str]


def handlers() -> list[HTTPRouteHandler]:
    """Return this layer's routes."""
    return [route, chat, models, stats, keys, create_key, revoke_key]


def _parts(request: Request[Any, Any, Any]) -> Nestor:
    nestor: Nestor = request.app.state.nestor
    return nestor


@post(
    "/route",
    status_code=200,
    opt={
        "scope": "model",
        "replies": {200: RouteResult},
        "raises": _OF_MODELS,
        "reply_headers": _ROUTED,
    },
)
async def route(
    request: Request[Any, Any, Any], data: RouteRequest
) -> Response[dict[str, Any]]:
    """Answer a query by the model that should, with context from the knowledge base."""
    charge_to(data.task_id, request.user)
    result = await _parts(request).coordinator.route(data)
    return Response(_route_view(result), headers=_route_headers(result))


@post(
    "/v1/chat/completions",
    status_code=200,
    opt={
        "scope": "model",
        "body": Chat,
        "replies": {200: dict[str, Any]},
        "media": ["application/json", "text/event-stream"],
        "raises": (NotFound, *_OF_MODELS),
        "reply_headers": (*_ROUTED, "x-nestor-overhead-ms", "x-nestor-fallback-from"),
        "request_headers": {
            "x-nestor-iteration": {
                "type": "integer",
                "minimum": 1,
                "maximum": _LAST_ITERATION,
            }
        },
    },
)
async def chat(
    request: Request[Any, Any, Any], data: dict[str, Any]
) -> Response[Any] | Stream:
    """Answer in OpenAI's shape, streamed or not; ``model`` may be auto, local or remote.

    A task's key names its task; the sandbox's forwarder says which iteration it is.
    """
    principal: Principal = request.user
    iteration = _iteration(request)
    asked = _parts(request).coordinator.chat(
        data,
        principal=principal,
        task_id=principal.task_id,
        iteration=iteration if principal.task_id else None,
    )
    done = await _unless_left(request, asked)
    if isinstance(done, ChatStream):
        return Stream(
            done,
            media_type="text/event-stream",
            headers=done.headers,
            # Runs however the stream ended, also when the client left in the middle.
            background=BackgroundTask(done.aclose),
        )
    return Response(done.body, headers=done.headers)


@get("/v1/models", opt={"scope": "model"})
async def models(request: Request[Any, Any, Any]) -> Models:
    """List what ``model`` may be, in OpenAI's shape."""
    return {"object": "list", "data": _parts(request).coordinator.models()}


@get("/stats", opt={"scope": "read"})
async def stats(request: Request[Any, Any, Any]) -> CoordinatorStats:
    """Routes, spend by model, breaker states; calibration null while there is none."""
    found = await _parts(request).coordinator.stats()
    calls = [
        {name: _plain(value) for name, value in row.items()} for row in found["calls"]
    ]
    view: CoordinatorStats = {**found, "calls": calls}  # type: ignore[typeddict-item]
    return view


@get("/keys", opt={"scope": "admin"})
async def keys(
    request: Request[Any, Any, Any],
    every: Annotated[bool, QueryParameter(name="all")] = False,
) -> KeyList:
    """List the keys, never their secrets.

    Revoked keys of a task's iterations are many and of no more use: only with ``all``.
    """
    found = await _parts(request).keys.all()
    return {"keys": [key for key in found if every or not _spent(key)]}


def _spent(key: ApiKey) -> bool:
    of_a_task = any(scope.startswith("task:") for scope in key.scopes)
    return of_a_task and key.revoked_at is not None


@post("/keys", status_code=201, opt={"scope": "admin"})
async def create_key(request: Request[Any, Any, Any], data: NewKey) -> MadeKey:
    """Make a key; its secret is in this reply and nowhere else."""
    key, secret = await _parts(request).keys.create(data.name, data.scopes)
    return cast("MadeKey", {**msgspec.to_builtins(key), "key": secret})


@delete("/keys/{key_id:str}", status_code=204, opt={"scope": "admin"})
async def revoke_key(request: Request[Any, Any, Any], key_id: str) -> None:
    """Refuse this key from now on."""
    await _parts(request).keys.revoke(key_id)


async def _unless_left(request: Request[Any, Any, Any], work: Awaitable[T]) -> T:
    """Await ``work``; give it up when the client goes, so that the upstream stops too."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise InvalidInput("the client left before there was an answer")
        return working.result()
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
            # Its end includes settling the call.
            await asyncio.wait({working})


async def _left(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _iteration(request: Request[Any, Any, Any]) -> int | None:
    given = request.headers.get("x-nestor-iteration")
    if given is None:
        return None
    # Counted first: Python refuses to read digits without end.
    short = given.isascii() and given.isdigit() and len(given) <= _MAX_DIGITS
    if not (short and 0 < int(given) <= _LAST_ITERATION):
        raise InvalidInput.at("x-nestor-iteration", "must be a number from 1")
    return int(given)


def _route_view(result: RouteResult) -> dict[str, Any]:
    view: dict[str, Any] = msgspec.to_builtins(result)
    return {**view, "cost_usd": _plain(result.cost_usd)}


def _route_headers(result: RouteResult) -> dict[str, str]:
    headers = {
        "x-nestor-route": result.route,
        "x-nestor-interaction-id": result.interaction_id,
    }
    if result.model is not None:
        headers["x-nestor-model"] = result.model.encode("ascii", "replace").decode()
    if result.confidence is not None:
        headers["x-nestor-confidence"] = f"{result.confidence:.4f}"
    if result.cost_usd is not None:
        headers["x-nestor-cost-usd"] = f"{result.cost_usd:f}"
    if result.replayed:
        headers["x-nestor-replayed"] = "true"
    return headers


def _plain(value: Any) -> Any:
    """Money as decimal text without an exponent."""
    return f"{value:f}" if isinstance(value, Decimal) else value
