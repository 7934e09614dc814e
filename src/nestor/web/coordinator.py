"""The Coordinator over HTTP: route a query, call models in any dialect, keys."""

from decimal import Decimal
from typing import Annotated, Any, cast

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from litestar.types import ASGIApp

from nestor.errors import (
    BudgetExceeded,
    NotFound,
    RateLimited,
    TooLarge,
    UpstreamError,
)
from nestor.model.access import ApiKey, KeyLimits
from nestor.model.routing import Dialect, RouteRequest, RouteResult
from nestor.ports.budget_store import Spent
from nestor.web import interactions, mcp, models
from nestor.web.auth import charge_to
from nestor.web.gateway import (
    CACHE,
    ITERATION,
    LAST_ITERATION,
    TAGS,
    ModelCalls,
    caller_of,
)
from nestor.web.views import (
    Chat,
    CoordinatorStats,
    EmbeddingsRequest,
    KeyList,
    KeyView,
    MadeKey,
    MessagesRequest,
    ResponsesRequest,
)
from nestor.wiring import Nestor

_OF_MODELS = (BudgetExceeded, RateLimited, UpstreamError)
_ROUTED = (
    "x-nestor-route",
    "x-nestor-model",
    "x-nestor-interaction-id",
    "x-nestor-confidence",
    "x-nestor-cost-usd",
    "x-nestor-replayed",
)


_OF_CALLS = (
    "x-nestor-overhead-ms",
    "x-nestor-fallback-from",
    "x-nestor-left-out",
    "x-nestor-cached",
)
_EVENTS = "text/event-stream"
_STEER = {
    ITERATION.decode(): {
        "type": "integer",
        "minimum": 1,
        "maximum": LAST_ITERATION,
    },
    CACHE.decode(): {"type": "string", "enum": ["true", "false"]},
    TAGS.decode(): {
        "type": "string",
        "pattern": "^[a-z0-9_-]{1,64}(,[a-z0-9_-]{1,64}){0,15}$",
    },
}


def _model_call(
    dialect: Dialect, body: Any, *, embeddings: bool = False
) -> dict[str, Any]:
    """Return what is said of a path of the gateway; ``web.gateway`` serves it."""
    media = ["application/json"] if embeddings else ["application/json", _EVENTS]
    return {
        "scope": "model",
        "asgi": lambda nestor: ModelCalls(nestor, dialect, embeddings=embeddings),
        "dialect": dialect,
        "body": body,
        "replies": {200: dict[str, Any]},
        "media": media,
        "raises": (NotFound, TooLarge, *_OF_MODELS),
        "reply_headers": (*_ROUTED, *_OF_CALLS),
        "request_headers": _STEER,
        # SDKs add ``beta=true``; nothing is read from it.
        "query": "any",
    }


def _served(request: Request[Any, Any, Any]) -> ASGIApp:
    opt = request.scope["route_handler"].opt
    served: ASGIApp = opt["asgi"](_parts(request))
    return served


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /keys``."""

    name: str
    scopes: list[str]
    limits: KeyLimits | None = None


def handlers() -> list[HTTPRouteHandler]:
    """Return this layer's routes."""
    return [
        *(route, chat_completions, messages, responses, embeddings),
        *models.handlers(),
        *(stats, keys, create_key, revoke_key),
        *interactions.handlers(),
        mcp.handler("coordinator", scope="model"),
    ]


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
    caller = caller_of(cast("Any", request.scope))
    result = await _parts(request).coordinator.route(data, caller=caller)
    return Response(route_view(result), headers=_route_headers(result))


@post("/v1/chat/completions", opt=_model_call(Dialect.OPENAI, Chat))
async def chat_completions(request: Request[Any, Any, Any]) -> ASGIApp:
    """Answer in OpenAI's shape, streamed or not.

    ``model`` may be auto, local, remote, or the name of a deployment or of a model.
    """
    return _served(request)


@post("/v1/messages", opt=_model_call(Dialect.ANTHROPIC, MessagesRequest))
async def messages(request: Request[Any, Any, Any]) -> ASGIApp:
    """Answer in Anthropic's shape, streamed or not; ``model`` as for chat completions."""
    return _served(request)


@post("/v1/responses", opt=_model_call(Dialect.RESPONSES, ResponsesRequest))
async def responses(request: Request[Any, Any, Any]) -> ASGIApp:
    """Answer in the shape of OpenAI's Responses; nothing is stored between two calls."""
    return _served(request)


@post(
    "/v1/embeddings",
    opt=_model_call(Dialect.OPENAI, EmbeddingsRequest, embeddings=True),
)
async def embeddings(request: Request[Any, Any, Any]) -> ASGIApp:
    """Answer with embeddings, in OpenAI's shape."""
    return _served(request)


@get("/stats", opt={"scope": "read"})
async def stats(request: Request[Any, Any, Any]) -> CoordinatorStats:
    """Routes, spend by model, breaker states; calibration null while there is none."""
    found = await _parts(request).coordinator.stats()
    calls = [
        {name: _plain(value) for name, value in row.items()} for row in found["calls"]
    ]
    spent = await interactions.spend_stats(_parts(request))
    view: CoordinatorStats = {**found, "calls": calls, "spend": spent}  # type: ignore[typeddict-item]
    return view


@get("/keys", opt={"scope": "admin"})
async def keys(
    request: Request[Any, Any, Any],
    every: Annotated[bool, QueryParameter(name="all")] = False,
) -> KeyList:
    """List the keys, never their secrets.

    Revoked keys of a task's iterations are many and of no more use: only with ``all``.
    """
    parts = _parts(request)
    listed = [key for key in await parts.keys.all() if every or not _is_over(key)]
    accounts = [f"key:{key.id}" for key in listed if key.limits is not None]
    spent = await parts.budgets.all_spent(accounts)
    return {"keys": [_key_view(key, spent.get(f"key:{key.id}")) for key in listed]}


def _is_over(key: ApiKey) -> bool:
    of_a_task = any(scope.startswith("task:") for scope in key.scopes)
    return of_a_task and key.revoked_at is not None


def _key_view(key: ApiKey, spent: Spent | None) -> KeyView:
    seen = None
    if spent is not None:
        seen = {"usd": f"{spent.usd:f}", "tokens": spent.tokens}
    return cast("KeyView", {**msgspec.to_builtins(key), "spent": seen})


@post("/keys", status_code=201, opt={"scope": "admin"})
async def create_key(request: Request[Any, Any, Any], data: NewKey) -> MadeKey:
    """Make a key; its secret is in this reply and nowhere else."""
    key, secret = await _parts(request).keys.create(data.name, data.scopes, data.limits)
    return cast("MadeKey", {**msgspec.to_builtins(key), "key": secret})


@delete("/keys/{key_id:str}", status_code=204, opt={"scope": "admin"})
async def revoke_key(request: Request[Any, Any, Any], key_id: str) -> None:
    """Refuse this key from now on."""
    await _parts(request).keys.revoke(key_id)


def route_view(result: RouteResult) -> dict[str, Any]:
    """Return a reply as JSON holds it."""
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
