"""``/mcp``: a layer as tools of the Model Context Protocol (streamable HTTP).

Stateless: each request is answered by itself, with JSON. Nothing outlives a request, so
there is no session to keep, to steal or to end, and GET and DELETE are not served. Host,
Origin and key were checked by the edge.
"""

import asyncio
import importlib
from functools import partial
from typing import Any, Literal, NotRequired, TypedDict, cast

import msgspec
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from nestor.errors import InvalidInput, NotFound
from nestor.web import errors
from nestor.web.edge import Message, Receive, Scope, Send
from nestor.web.errors import Headers, Refused
from nestor.web.gateway import leave_with_the_client, read_body

PATH = "/mcp"
_INVALID_REQUEST, _SERVER_ERROR = -32600, -32000  # of JSON-RPC 2.0
_BAD_REQUEST = 400
_JSON = b"application/json"


class JsonRpc(TypedDict):
    """Body of ``POST /mcp``: one request or notification of the protocol."""

    jsonrpc: Literal["2.0"]
    method: str
    id: NotRequired[str | int]
    params: NotRequired[dict[str, Any]]


class Mcp:
    """ASGI: ``POST /mcp``. The SDK is imported with the first request: it takes a while."""

    def __init__(self, nestor: Any, *, layer: str) -> None:
        self._nestor = nestor
        self._module = f"nestor.web.mcp_{layer}"
        self._tools: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what is raised here is rendered by ``render``."""
        _refuse_other_types(scope)
        body = await read_body(receive)
        # The SDK would take the last of two values under one name, NaN, and for a
        # notification what has an id that is none.
        errors.decode(body, JsonRpc)
        tools = await self._loaded()
        leave_with_the_client(scope)
        unread = True

        async def again() -> Message:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": body}
            return await receive()

        await tools(scope, again, send)  # type: ignore[arg-type]

    async def _loaded(self) -> ASGIApp:
        if self._tools is None:
            try:
                # Half a second of CPU, in which others go on being served.
                found = await asyncio.to_thread(importlib.import_module, self._module)
            except ImportError as error:
                message = f"needs the package {error.name}: pip install 'nestor[mcp]'"
                raise Refused(501, message) from error
            self._tools = found.tools(self._nestor)
        return self._tools

    def render(self, error: Exception, trace_id: str) -> tuple[int, Headers, bytes]:
        """Say an error in JSON-RPC's shape: status, headers, body."""
        told = errors.explain(error, trace_id)
        bad = told.status == _BAD_REQUEST
        data = {
            "status": told.status,
            "errors": [{"field": e.field, "message": e.message} for e in told.fields],
            "trace_id": trace_id,
        }
        body = msgspec.json.encode(
            {
                "jsonrpc": "2.0",
                "id": None,
                "error": {
                    "code": _INVALID_REQUEST if bad else _SERVER_ERROR,
                    "message": told.detail,
                    "data": data,
                },
            }
        )
        return (
            told.status,
            [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                *told.headers,
            ],
            body,
        )


def _refuse_other_types(scope: Scope) -> None:
    """A page may send a form or plain text anywhere unasked, but not JSON."""
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    if [kind.partition(b";")[0].strip().lower() for kind in kinds] != [_JSON]:
        raise InvalidInput.at("content-type", "must be application/json")


def handler(layer: str, *, scope: str | tuple[str, ...]) -> HTTPRouteHandler:
    """Return the route, for a layer whose tools stand in ``web.mcp_<layer>``."""

    @post(
        PATH,
        status_code=200,
        opt={
            "scope": scope,
            "asgi": partial(Mcp, layer=layer),
            "dialect": "mcp",
            "body": JsonRpc,
            "replies": {200: dict[str, Any], 202: None},
            "raises": (NotFound, 406, 501),
        },
    )
    async def mcp(request: Request[Any, Any, Any]) -> ASGIApp:
        """Speak the Model Context Protocol: this layer's calls as tools."""
        served: ASGIApp = cast("Any", Mcp(request.app.state.nestor, layer=layer))
        return served

    return mcp
