"""``nestor mcp``: a layer's tools for an editor that speaks over stdin and stdout.

Each line is one message of the Model Context Protocol. It is handed to ``/mcp`` of the
running stack with the key of this data folder, and the answer is written back: AIDB and
the Coordinator stay where they run, however many editors there are.
"""

import base64
import json
import sys
from enum import StrEnum
from typing import IO, Annotated, Any

import typer

from nestor.cli.client import Stack
from nestor.errors import NestorError

_EPILOG = """Examples:

  nestor mcp aidb

In the configuration of an editor:

  {"mcpServers": {"nestor": {"command": "nestor", "args": ["mcp", "aidb"]}}}"""
_MAX_LINE = 32 * 1024 * 1024
_TIMEOUT_S = 600.0
_SERVER_ERROR, _PARSE_ERROR = -32000, -32700  # of JSON-RPC 2.0
_VERSION_META = "io.modelcontextprotocol/protocolVersion"
_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""What a proxy may read of a message stands in its headers as well."""


class Layer(StrEnum):
    """Layers that have tools."""

    AIDB = "aidb"
    COORDINATOR = "coordinator"


def add_to(app: typer.Typer) -> None:
    """Register the command of this module."""
    app.command(epilog=_EPILOG)(mcp)


def mcp(layer: Annotated[Layer, typer.Argument(help="Whose tools.")]) -> None:
    """Serve a layer's tools to an editor over stdin and stdout; the stack must run."""
    Bridge(layer.value, sys.stdin.buffer, sys.stdout.buffer).run()


class Bridge:
    """Carries messages until the input ends; a stack that is away is an answer, no end."""

    def __init__(self, layer: str, taken: IO[bytes], given: IO[bytes]) -> None:
        self._layer = layer
        self._in = taken
        self._out = given
        self._version: str | None = None

    def run(self) -> None:
        """Serve one message after the other."""
        while line := self._in.readline(_MAX_LINE):
            if line.strip():
                self._one(line)

    def _one(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            self._say(_error(None, _PARSE_ERROR, "not a line of JSON"))
            return
        if not isinstance(message, dict):
            self._say(_error(None, _PARSE_ERROR, "not one message"))
            return
        asked = message.get("id")
        try:
            # Looked up each time: the stack may have been started again, on other ports.
            reply = Stack.find().call(
                self._layer,
                "POST",
                "/mcp",
                raw_body=line,
                headers=self._headers(message),
                timeout_s=_TIMEOUT_S,
            )
        except NestorError as error:
            if asked is not None:
                self._say(_error(asked, _SERVER_ERROR, str(error)))
            return
        if isinstance(reply, dict):
            if message.get("method") == "initialize":
                self._version = _agreed(reply)
            self._say(reply)

    def _headers(self, message: dict[str, Any]) -> dict[str, str]:
        found = {
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
        }
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        meta = params.get("_meta")
        version = meta.get(_VERSION_META) if isinstance(meta, dict) else None
        method = message.get("method")
        if isinstance(version, str) and isinstance(method, str):
            found["MCP-Protocol-Version"] = _word(version)
            found["Mcp-Method"] = _word(method)
            name = params.get(_NAMED.get(method, ""))
            if isinstance(name, str):
                found["Mcp-Name"] = _word(name)
        elif self._version is not None:
            found["MCP-Protocol-Version"] = _word(self._version)
        return found

    def _say(self, message: Any) -> None:
        self._out.write(json.dumps(message, ensure_ascii=True).encode() + b"\n")
        self._out.flush()


def _agreed(reply: dict[str, Any]) -> str | None:
    result = reply.get("result")
    version = result.get("protocolVersion") if isinstance(result, dict) else None
    return version if isinstance(version, str) else None


def _word(value: str) -> str:
    """Write a value so that a header can carry it, as the protocol says."""
    if value.isascii() and value.isprintable() and value.strip() == value:
        return value
    coded = base64.b64encode(value.encode(errors="replace")).decode()
    return f"=?base64?{coded}?="


def _error(asked: Any, code: int, message: str) -> dict[str, Any]:
    error = {"code": code, "message": message}
    return {"jsonrpc": "2.0", "id": asked, "error": error}
