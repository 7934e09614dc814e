"""What ``model`` may be, listed and looked up in the shape of whose SDK asks.

Errors have one shape that both SDKs read: OpenAI's shows nothing of a problem's words.
"""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from nestor.coordinator.dialects.errors import ID_HEADERS, error_body
from nestor.errors import FieldError, InvalidInput, NotFound
from nestor.model.routing import Dialect
from nestor.telemetry.trace import current_trace_id
from nestor.web import errors
from nestor.web.errors import Headers
from nestor.web.views import AnthropicModel, AnthropicModels, Model, Models

_MAX_LIMIT = 1000
_BOTH = (Dialect.OPENAI, Dialect.ANTHROPIC)


def handlers() -> list[HTTPRouteHandler]:
    """Return these routes."""
    return [models, model]


def render(error: Exception, trace_id: str) -> tuple[int, Headers, bytes]:
    """Say an error as both SDKs understand it: status, headers, body."""
    told = errors.explain(error, trace_id)
    field = told.fields[0] if told.fields else FieldError("", "")
    openai, body = (
        error_body(
            dialect,
            told.status,
            told.detail,
            field=field.field or None,
            trace_id=trace_id,
        )
        for dialect in _BOTH
    )
    body["error"] = {**openai["error"], **body["error"]}
    raw = msgspec.json.encode(body)
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(raw)),
        *((ID_HEADERS[of].encode(), trace_id.encode()) for of in _BOTH),
        *told.headers,
    ]
    return told.status, headers, raw


@get(
    "/v1/models",
    opt={
        "scope": "model",
        "replies": {200: (Models, AnthropicModels)},
        "dialect": _BOTH,
        "render": render,
    },
    sync_to_thread=False,
)
def models(
    request: Request[Any, Any, Any],
    limit: Annotated[int | None, QueryParameter(ge=1, le=_MAX_LIMIT)] = None,
    after_id: str | None = None,
    before_id: str | None = None,
) -> Models | AnthropicModels:
    """List what ``model`` may be, in the shape of whose SDK asks.

    ``limit``, ``after_id`` and ``before_id`` turn pages as Anthropic's SDK does; without
    them all are listed.
    """
    names: list[str] = request.app.state.nestor.coordinator.models()
    page, more = _page(names, limit, after_id, before_id)
    if not _is_anthropic(request):
        return {"object": "list", "data": [_openai(request, name) for name in page]}
    return {
        "data": [_anthropic(name) for name in page],
        "has_more": more,
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


@get(
    "/v1/models/{name:str}",
    opt={
        "scope": "model",
        "replies": {200: (Model, AnthropicModel)},
        "raises": (NotFound,),
        "dialect": _BOTH,
    },
    sync_to_thread=False,
)
def model(request: Request[Any, Any, Any], name: str) -> Response[Any]:
    """Look up one of what ``model`` may be, in the shape of whose SDK asks."""
    if name not in request.app.state.nestor.coordinator.models():
        missing = NotFound.at("model", f"no model is called {name!r}")
        status, headers, body = render(missing, current_trace_id())
        said = {n.decode(): v.decode() for n, v in headers}
        kind = said.pop("content-type")
        return Response(body, status_code=status, headers=said, media_type=kind)
    if _is_anthropic(request):
        return Response(_anthropic(name))
    return Response(_openai(request, name))


def _is_anthropic(request: Request[Any, Any, Any]) -> bool:
    return "anthropic-version" in request.headers


def _page(
    names: list[str], limit: int | None, after: str | None, before: str | None
) -> tuple[list[str], bool]:
    """Return the names asked for, and whether there are more in that direction."""
    first, end = 0, len(names)
    if after is not None:
        first = _place(names, "after_id", after) + 1
    if before is not None:
        end = _place(names, "before_id", before)
    found = names[first:end]
    if limit is None or len(found) <= limit:
        return found, False
    back = before is not None and after is None
    return (found[-limit:] if back else found[:limit]), True


def _place(names: list[str], field: str, name: str) -> int:
    if name not in names:
        raise InvalidInput.at(field, "no model is called that")
    return names.index(name)


def _openai(request: Request[Any, Any, Any], name: str) -> Model:
    shown: Model = {"id": name, "object": "model", "created": 0, "owned_by": "nestor"}
    window: int | None = request.app.state.nestor.coordinator.window(name)
    if window is not None:
        shown["context_window"] = window
    return shown


def _anthropic(name: str) -> AnthropicModel:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
    }
