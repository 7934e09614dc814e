"""The tools of a Responses request, as functions of a chat, and their names back again.

Chat servers know functions only. A custom tool, which takes text, becomes a function with
one text parameter; a namespace's tools become functions with joined names.
"""

import hashlib
from typing import Any

import msgspec

from nestor.errors import InvalidInput

_LONGEST_NAME = 64
_INPUT = "input"
_SAID = frozenset({"type", "name", "description", "parameters", "strict", "format"})
_MENDS = {
    "web_search": ' (codex: web_search = "disabled")',
    "web_search_preview": ' (codex: web_search = "disabled")',
    "image_generation": " (codex: image_generation = false in [features])",
    "mcp": "; connect the MCP server to the agent itself",
}


class Tool(msgspec.Struct, frozen=True):
    """A tool as the caller declared it."""

    name: str
    namespace: str | None = None
    custom: bool = False


class Toolbox:
    """The tools of one request. Raises ``InvalidInput`` for what no chat server has."""

    def __init__(self, request: dict[str, Any], left_out: dict[str, None]) -> None:
        self._left_out = left_out
        self._tools: dict[str, Tool] = {}
        self.functions: dict[str, dict[str, Any]] = {}
        """By the name that the chat server sees, as it is told."""
        for number, tool in enumerate(request.get("tools") or ()):
            self._take(f"tools.{number}", tool, None)

    def find(self, name: str) -> Tool:
        """Return the caller's tool that a model called; an unknown name is a function's."""
        return self._tools.get(name) or Tool(name)

    def choice(self, wanted: Any) -> Any:
        """Say ``tool_choice``; of ``allowed_tools`` only those stay."""
        if wanted in ("none", "auto", "required"):
            return wanted
        kind = wanted.get("type") if isinstance(wanted, dict) else None
        if kind == "allowed_tools":
            return self._allow(wanted)
        if kind not in ("function", "custom"):
            message = "must be none, auto, required, or name a function or custom tool"
            raise InvalidInput.at("tool_choice", message)
        name = self._known("tool_choice", wanted)
        return {"type": "function", "function": {"name": name}}

    def _allow(self, wanted: dict[str, Any]) -> str:
        named, mode = wanted.get("tools"), wanted.get("mode", "auto")
        if not isinstance(named, list) or mode not in ("auto", "required"):
            message = (
                "allowed_tools: mode (auto, required) and tools (a list) are needed"
            )
            raise InvalidInput.at("tool_choice", message)
        kept = [
            self._known(f"tool_choice.tools.{number}", one)
            for number, one in enumerate(named)
        ]
        self.functions = {name: self.functions[name] for name in kept}
        return str(mode)

    def _known(self, field: str, tool: Any) -> str:
        name = tool.get("name") if isinstance(tool, dict) else None
        space = tool.get("namespace") if isinstance(tool, dict) else None
        found = chat_name(space, name) if isinstance(name, str) else ""
        if found not in self.functions:
            raise InvalidInput.at(f"{field}.name", "no function or custom tool has it")
        return found

    def _take(self, field: str, tool: Any, namespace: str | None) -> None:
        if not isinstance(tool, dict):
            raise InvalidInput.at(field, "must be an object")
        kind = tool.get("type")
        if kind == "namespace" and namespace is None:
            self._open(field, tool)
            return
        if kind not in ("function", "custom"):
            message = (
                f"{str(kind)[:_LONGEST_NAME]!r} runs at OpenAI, not at a model's server: "
                "leave it out or offer it as a function"
            )
            mend = _MENDS.get(str(kind), "")
            raise InvalidInput.at(f"{field}.type", message + mend)
        name = tool.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidInput.at(f"{field}.name", "must be a text")
        self._add(field, Tool(name, namespace, kind == "custom"), tool)

    def _open(self, field: str, space: dict[str, Any]) -> None:
        name, inside = space.get("name"), space.get("tools")
        if not isinstance(name, str) or not isinstance(inside, list):
            message = "a namespace needs a name (a text) and tools (a list)"
            raise InvalidInput.at(field, message)
        for number, tool in enumerate(inside):
            self._take(f"{field}.tools.{number}", tool, name)
        if space.get("description"):
            self._left_out["tools.*.namespace.description"] = None

    def _add(self, field: str, tool: Tool, said: dict[str, Any]) -> None:
        name = chat_name(tool.namespace, tool.name)
        if name in self._tools:
            raise InvalidInput.at(f"{field}.name", "another tool has this name")
        self._tools[name] = tool
        self.functions[name] = {
            "type": "function",
            "function": self._custom(name, said)
            if tool.custom
            else _function(name, said),
        }
        for other, value in said.items():
            if other not in _SAID and value not in (None, False):
                self._left_out[f"tools.*.{other}"] = None

    def _custom(self, name: str, said: dict[str, Any]) -> dict[str, Any]:
        about = said.get("description") or ""
        form = said.get("format")
        if isinstance(form, dict) and isinstance(form.get("definition"), str):
            # Nobody holds the model to a grammar here; it is told.
            self._left_out["tools.*.format"] = None
            syntax = form.get("syntax") or "a"
            about += (
                f"\n\n`{_INPUT}` follows this {syntax} grammar:\n{form['definition']}"
            )
        text = {"type": "string", "description": "The tool's input, as plain text."}
        return {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {_INPUT: text},
                "required": [_INPUT],
                "additionalProperties": False,
            },
        }


def _function(name: str, said: dict[str, Any]) -> dict[str, Any]:
    parameters = said.get("parameters")
    function: dict[str, Any] = {"name": name}
    if said.get("description") is not None:
        function["description"] = said["description"]
    function["parameters"] = (
        {"type": "object", "properties": {}} if parameters is None else parameters
    )
    if said.get("strict") is not None:
        function["strict"] = said["strict"]
    return function


def chat_name(namespace: str | None, name: str) -> str:
    """Return the name under which a chat server knows a tool; 64 characters at most.

    Without a namespace that is the tool's own.
    """
    if not isinstance(namespace, str) or not namespace:
        return name
    joined = f"{namespace}__{name}"
    if len(joined) <= _LONGEST_NAME:
        return joined
    digest = hashlib.sha256(joined.encode()).hexdigest()[:8]
    return f"{joined[: _LONGEST_NAME - 9]}_{digest}"


def wrapped(text: str) -> str:
    """Return the arguments of the function that stands for a custom tool."""
    return msgspec.json.encode({_INPUT: text}).decode()


def unwrapped(arguments: str) -> str:
    """Return a custom tool's input. A model that wrote plain text meant just that."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    inside = value.get(_INPUT) if isinstance(value, dict) else None
    return inside if isinstance(inside, str) else arguments
