"""Tools of a layer, on the official SDK. Imported where first used: it takes a while."""

import logging
from collections.abc import Awaitable, Callable, Sequence
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
    ToolAnnotations,
)
from mcp_types import Tool as Listed

from nestor import __version__
from nestor.telemetry.trace import current_trace_id
from nestor.web import errors, schemas
from nestor.web.edge import Receive, Scope, Send

# It would tell of each request that it began and ended; the access log does.
logging.getLogger("mcp").setLevel(logging.WARNING)

_Run = Callable[[Any, Scope, Any], Awaitable[Any]]
_HERE, _THERE = schemas.REF.format(name=""), "#/$defs/"


class Tool(NamedTuple):
    """One tool of a layer's service."""

    name: str
    about: str
    takes: type
    gives: type
    run: _Run
    """``run(service, scope of the request, arguments)``; returns what JSON holds."""
    asks_models: bool = False
    reads_only: bool = False


class Tools:
    """ASGI: one request of the protocol, answered by the SDK."""

    def __init__(self, layer: str, service: Any, tools: Sequence[Tool]) -> None:
        self._service = service
        self._tools = {tool.name: tool for tool in tools}
        listed = ListToolsResult(tools=[_listed(tool) for tool in tools])

        async def list_tools(_: Any, __: PaginatedRequestParams | None) -> Any:
            return listed

        self._server: Server[Any] = Server(
            f"nestor-{layer}",
            version=__version__,
            title=f"Nestor {layer.upper() if layer == 'aidb' else layer.title()}",
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
            value = await tool.run(self._service, context.request.scope, given)
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


def _listed(tool: Tool) -> Listed:
    return Listed(
        name=tool.name,
        description=tool.about,
        input_schema=_schema(tool.takes),
        output_schema=_schema(tool.gives),
        annotations=ToolAnnotations(
            read_only_hint=tool.reads_only,
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
