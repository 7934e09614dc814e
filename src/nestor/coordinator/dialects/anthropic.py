"""Anthropic's messages, as callers speak them (``POST /v1/messages``).

What a chat server cannot be told is refused where it carries meaning: documents,
citations, server tools, ``container``, ``mcp_servers``, ``thread``, ``inference_geo``,
kinds of blocks that nobody knows. What only hints is left out and named: betas, cache
marks, ``metadata``, ``service_tier``, ``thinking``, ``output_config.effort``,
``context_management``, thoughts in the history, ``top_k`` (OpenAI refuses it), and every
top-level field that is not known here, for betas add some each month.
"""

import re
from typing import Any

from nestor.coordinator.dialects.anthropic_events import AnthropicEvents
from nestor.coordinator.dialects.anthropic_messages import chat_messages, no_words
from nestor.coordinator.dialects.anthropic_reply import message_of
from nestor.coordinator.dialects.face import Translated
from nestor.coordinator.dialects.left_out import Left, leave, names
from nestor.coordinator.dialects.pointers import refuse_pointers
from nestor.errors import InvalidInput
from nestor.model.routing import BETAS, Dialect

_SAID = frozenset(
    {
        *("max_tokens", "messages", "model", "output_config", "output_format"),
        *("stop_sequences", "stream", "system", "temperature", "tool_choice"),
        *("tools", "top_p"),
    }
)
_ONLY_THERE = frozenset({"container", "inference_geo", "mcp_servers", "thread"})
"""Only a server of Anthropic's can do it."""
_MAX_BETAS = 64
_BETA = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_SCHEMA_NAME = "answer"
"""Chat wants a name for the schema of an answer; messages have none."""
_ROLES = ("user", "assistant", "system")


class Anthropic:
    """The messages dialect: a ``Face``."""

    dialect = Dialect.ANTHROPIC

    def check(self, request: dict[str, Any]) -> None:
        """Refuse what no server should see. Raises ``InvalidInput`` that names the field."""
        refuse_pointers(request)
        for name, kind, says in (
            ("model", str, "must be a text"),
            ("stream", bool, "must be true or false"),
            ("stop_sequences", list, "must be a list of texts"),
            ("system", str | list, "must be a text or a list of text blocks"),
            ("temperature", int | float, "must be a number"),
            ("thinking", dict, "must be an object"),
            ("tool_choice", dict, "must be an object"),
            ("tools", list, "must be a list"),
            ("top_p", int | float, "must be a number"),
        ):
            value = request.get(name)
            if value is not None and not isinstance(value, kind):
                raise InvalidInput.at(name, says)
        if request.get("model") is None:
            raise InvalidInput.at("model", "a model is required")
        _check_betas(request.get(BETAS))
        _check_limit(request.get("max_tokens"))
        _check_messages(request.get("messages"))

    def to_chat(self, request: dict[str, Any]) -> Translated:
        """Say a request that passed ``check`` in chat completions.

        Raises ``InvalidInput`` for what cannot be said.
        """
        left: Left = {}
        for name, value in request.items():
            if value is None or name in _SAID:
                continue
            if name in _ONLY_THERE and value != []:
                raise no_words(name, name)
            left[name] = None
        if request["max_tokens"] == 0:
            message = "0 only fills Anthropic's cache; a chat server writes at least 1"
            raise InvalidInput.at("max_tokens", message)
        body = {"model": request["model"], "messages": chat_messages(request, left)}
        for name in ("max_tokens", "temperature", "top_p", "stream"):
            if request.get(name) is not None:
                body[name] = request[name]
        if request.get("stream"):
            body["stream_options"] = {"include_usage": True}
        if request.get("stop_sequences"):
            body["stop"] = request["stop_sequences"]
        tools = request.get("tools") or []
        if tools:
            body["tools"] = [_tool(tool, i, left) for i, tool in enumerate(tools)]
        body.update(_tool_choice(request.get("tool_choice"), left, bool(tools)))
        body.update(_format(request, left))
        return Translated(body=body, left_out=names(left))

    def reply(self, chat: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        """Say a ``chat.completion`` as a message.

        What a model thought is not passed on (``reasoning_content``): a thinking block
        needs its maker's signature, and a caller would send it back. Raises
        ``UpstreamError`` for an answer without words here.
        """
        return message_of(chat, request)

    def events(self, request: dict[str, Any]) -> AnthropicEvents:
        """Begin the events of one streamed answer."""
        return AnthropicEvents(request)


def _check_betas(betas: Any) -> None:
    # They go on in a header: nothing may stand in it that means something there.
    if betas is None:
        return
    known = isinstance(betas, list) and len(betas) <= _MAX_BETAS
    if not known or not all(isinstance(b, str) and _BETA.fullmatch(b) for b in betas):
        raise InvalidInput.at(BETAS, "names of betas, separated by commas")


def _check_limit(limit: Any) -> None:
    # 0 is legal: it fills Anthropic's cache and writes nothing.
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise InvalidInput.at("max_tokens", "a positive whole number is required")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        message = "a list with at least one message is required"
        raise InvalidInput.at("messages", message)
    for number, message in enumerate(messages):
        at = f"messages.{number}"
        if not isinstance(message, dict):
            raise InvalidInput.at(at, "must be an object")
        if message.get("role") not in _ROLES:
            raise InvalidInput.at(f"{at}.role", f"must be one of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str | list):
            says = "must be a text or a list of blocks"
            raise InvalidInput.at(f"{at}.content", says)


def _tool(tool: Any, number: int, left: Left) -> dict[str, Any]:
    at = f"tools.{number}"
    if not isinstance(tool, dict):
        raise InvalidInput.at(at, "must be an object")
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise no_words(f"{at}.type", str(kind))
    callers = tool.get("allowed_callers")
    if isinstance(callers, list) and "direct" not in callers:
        raise no_words(f"{at}.allowed_callers", "a tool that the model may not call")
    if not isinstance(tool.get("name"), str):
        raise InvalidInput.at(f"{at}.name", "must be a text")
    if not isinstance(tool.get("input_schema"), dict):
        raise InvalidInput.at(f"{at}.input_schema", "must be an object")
    known = {"type", "name", "description", "input_schema", "strict"}
    leave(tool, known, "tools", left)
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _tool_choice(
    choice: dict[str, Any] | None, left: Left, tools: bool
) -> dict[str, Any]:
    if choice is None:
        return {}
    kind = choice.get("type")
    known = {"type", "name", "disable_parallel_tool_use"}
    leave(choice, known, "tool_choice", left)
    said: Any = {"auto": "auto", "any": "required", "none": "none"}.get(str(kind))
    if kind == "tool":
        if not isinstance(choice.get("name"), str):
            raise InvalidInput.at("tool_choice.name", "must be a text")
        said = {"type": "function", "function": {"name": choice["name"]}}
    if said is None:
        message = "must be one of auto, any, tool, none"
        raise InvalidInput.at("tool_choice.type", message)
    if not tools:
        if kind in ("any", "tool"):
            raise InvalidInput.at("tool_choice", "asks for a tool, but there are none")
        return {}
    found = {"tool_choice": said}
    if choice.get("disable_parallel_tool_use") is True and kind != "none":
        found["parallel_tool_calls"] = False
    return found


def _format(request: dict[str, Any], left: Left) -> dict[str, Any]:
    """Say which schema the answer has to follow; the effort is a hint."""
    config = request.get("output_config")
    if config is None:
        config = {}
    if not isinstance(config, dict):
        raise InvalidInput.at("output_config", "must be an object")
    leave(config, {"format"}, "output_config", left)
    at, wanted = "output_config.format", config.get("format")
    if wanted is None:
        at, wanted = "output_format", request.get("output_format")
    if wanted is None:
        return {}
    if not isinstance(wanted, dict) or not isinstance(wanted.get("schema"), dict):
        raise InvalidInput.at(at, "must be an object with a schema")
    if wanted.get("type") != "json_schema":
        raise no_words(f"{at}.type", str(wanted.get("type")))
    schema = {"name": _SCHEMA_NAME, "schema": wanted["schema"], "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
