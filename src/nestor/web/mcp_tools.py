"""The Coordinator's tools, on the official SDK. Imported by ``web.mcp`` where first used."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from nestor import __version__
from nestor.model.access import SERVICE, Principal
from nestor.model.interaction import (
    Augmented,
    AugmentRequest,
    Feedback,
    NewFeedback,
    NewInteraction,
    Tracked,
)
from nestor.model.routing import RouteRequest, RouteResult
from nestor.telemetry.trace import current_trace_id
from nestor.web import errors, schemas
from nestor.web.auth import charge_to
from nestor.web.coordinator import route_view
from nestor.web.edge import Receive, Scope, Send
from nestor.web.gateway import caller_of

# It would tell of each request that it began and ended; the access log does.
logging.getLogger("mcp").setLevel(logging.WARNING)

_Run = Callable[[Any, Scope, Any], Awaitable[Any]]
_HERE, _THERE = schemas.REF.format(name=""), "#/$defs/"


class _Tool(NamedTuple):
    name: str
    about: str
    takes: type
    gives: type
    run: _Run
    """``run(coordinator, scope of the request, arguments)``; returns what JSON holds."""
    asks_models: bool = False


async def _route(coordinator: Any, scope: Scope, given: RouteRequest) -> Any:
    charge_to(given.task_id, scope["user"])
    return route_view(await coordinator.route(given, caller=caller_of(scope)))


async def _augment(coordinator: Any, scope: Scope, given: AugmentRequest) -> Any:
    user: Principal = scope["user"]
    return await coordinator.interactions.augment(given, key_id=user.key_id)


async def _track(coordinator: Any, scope: Scope, given: NewInteraction) -> Any:
    user: Principal = scope["user"]
    charge_to(given.task_id, user)
    return await coordinator.interactions.track(given, key_id=user.key_id)


async def _update(coordinator: Any, scope: Scope, given: NewFeedback) -> Any:
    user: Principal = scope["user"]
    return await coordinator.interactions.feedback(
        given, key_id=user.key_id, source=user.name, of_all=user.may(SERVICE)
    )


_TOOLS = (
    _Tool(
        "route_query",
        "Answer a query by the local or remote model that should, with context from the"
        " knowledge base. Says which model answered, why, and what it cost.",
        RouteRequest,
        RouteResult,
        _route,
        asks_models=True,
    ),
    _Tool(
        "augment_query",
        "Return a query with what the knowledge base knows about it, as a prompt for a"
        " model of your own. Asks no model.",
        AugmentRequest,
        Augmented,
        _augment,
    ),
    _Tool(
        "track_interaction",
        "Keep a question and an answer that was given elsewhere. Returns the"
        " interaction_id that update_outcome takes.",
        NewInteraction,
        Tracked,
        _track,
    ),
    _Tool(
        "update_outcome",
        "Say how an answer turned out: outcome (success, partial, failure), user_feedback"
        " (-1 to 1), or both. Do not call it when you do not know.",
        NewFeedback,
        Feedback,
        _update,
    ),
)


class Tools:
    """ASGI: one request of the protocol, answered by the SDK."""

    def __init__(self, nestor: Any) -> None:
        self._coordinator = nestor.coordinator
        self._tools = {tool.name: tool for tool in _TOOLS}
        listed = ListToolsResult(tools=[_listed(tool) for tool in _TOOLS])

        async def list_tools(_: Any, __: PaginatedRequestParams | None) -> Any:
            return listed

        self._server: Server[Any] = Server(
            "nestor-coordinator",
            version=__version__,
            title="Nestor Coordinator",
            on_list_tools=list_tools,
            on_call_tool=self._call,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Its tasks end with it."""
        sessions = StreamableHTTPSessionManager(
            self._server, json_response=True, stateless=True
        )
        async with sessions.run():
            await sessions.handle_request(scope, receive, send)

    async def _call(self, context: Any, params: CallToolRequestParams) -> Any:
        tool = self._tools.get(params.name)
        if tool is None:
            known = ", ".join(self._tools)
            message = f"name: there is no such tool; known: {known}"
            raise MCPError(INVALID_PARAMS, message)
        try:
            given = _read(params.arguments or {}, tool.takes)
            value = await tool.run(self._coordinator, context.request.scope, given)
        except Exception as error:  # noqa: BLE001 - the edge: the SDK would tell its text
            return _refusal(error)
        found = msgspec.to_builtins(value)
        text = msgspec.json.encode(found).decode()
        return CallToolResult(
            content=[TextContent(type="text", text=text)], structured_content=found
        )


def _read(arguments: dict[str, Any], of: type) -> Any:
    """Raises ``InvalidInput`` that names the field."""
    try:
        return msgspec.convert(arguments, of)
    except msgspec.ValidationError as error:
        raise errors.explain_validation(str(error)) from None


def _refusal(error: Exception) -> CallToolResult:
    """Say an error so that whoever called can do better: with the fields it is about."""
    trace_id = current_trace_id()
    told = errors.explain(error, trace_id)
    fields = [{"field": one.field, "message": one.message} for one in told.fields]
    problem = {"status": told.status, "errors": fields, "trace_id": trace_id}
    text = TextContent(type="text", text=told.detail)
    return CallToolResult(content=[text], structured_content=problem, is_error=True)


def _listed(tool: _Tool) -> Tool:
    return Tool(
        name=tool.name,
        description=tool.about,
        input_schema=_schema(tool.takes),
        output_schema=_schema(tool.gives),
        annotations=ToolAnnotations(
            read_only_hint=False,
            destructive_hint=False,
            open_world_hint=tool.asks_models,
        ),
    )


def _schema(of: type) -> dict[str, Any]:
    """Return the JSON Schema of a type, with an object at its root, as the protocol wants."""
    found, parts = schemas.of([of])
    root = found[of]["$ref"].removeprefix(_HERE)
    whole = {**parts.pop(root), "$defs": parts}
    text = msgspec.json.encode(whole).replace(_HERE.encode(), _THERE.encode())
    schema: dict[str, Any] = msgspec.json.decode(text)
    return schema
