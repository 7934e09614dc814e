"""Chat completions, said to a server that speaks Anthropic's messages.

What it cannot be told is refused where it carries meaning (``n`` over 1, ``logprobs``,
``audio``, penalties, grammars, a temperature over 1 …). What only hints is left out and
named: ``user``, ``store``, ``metadata``, ``seed``, ``reasoning_effort``,
``service_tier``, ``prompt_cache_key`` and every name that is not known here.
"""

from collections.abc import Callable
from typing import Any

from nestor.coordinator.dialects.anthropic_chunks import Chunks, reply_of
from nestor.coordinator.dialects.face import Translated
from nestor.coordinator.dialects.left_out import Left, leave, names
from nestor.coordinator.dialects.to_anthropic_messages import conversation, no_words
from nestor.errors import InvalidInput
from nestor.model.routing import DEFAULT_MAX_TOKENS

__all__ = ["Chunks", "reply_of", "request_of"]

_SAID = frozenset(
    {
        *("max_completion_tokens", "max_tokens", "messages", "model"),
        *("parallel_tool_calls", "response_format", "stop", "stream"),
        *("stream_options", "temperature", "tool_choice", "tools", "top_k", "top_p"),
    }
)
_MEANS: dict[str, Callable[[Any], bool]] = {
    "audio": bool,
    "frequency_penalty": bool,
    "function_call": lambda value: value not in ("auto", "none"),
    "functions": bool,
    "grammar": bool,
    "guided_choice": bool,
    "guided_grammar": bool,
    "guided_json": bool,
    "guided_regex": bool,
    "json_schema": bool,
    "logit_bias": bool,
    "logprobs": bool,
    "modalities": lambda value: value != ["text"],
    "moderation": bool,
    "n": lambda value: value != 1,
    "presence_penalty": bool,
    "structured_outputs": bool,
    "top_logprobs": bool,
    "web_search_options": lambda _value: True,
}
"""Names without an equal, and when a value of theirs asks for something.

``grammar`` and those after are extensions of llama.cpp and vLLM.
"""


def request_of(
    chat: dict[str, Any], *, max_tokens: int | None = DEFAULT_MAX_TOKENS
) -> Translated:
    """Return a chat request as a messages request.

    ``max_tokens`` is the limit where the request has none; None: whoever sends it
    says one. Raises ``InvalidInput`` that
    names the field which cannot be said.
    """
    left: Left = {}
    for name, value in chat.items():
        if value is None or name in _SAID:
            continue
        means = _MEANS.get(name)
        if means is None:
            left[name] = None
        elif means(value):
            raise no_words(name, f"{name!r}")
    system, messages = conversation(chat.get("messages"), left)
    body: dict[str, Any] = {"model": chat.get("model")}
    limit = _limit(chat, max_tokens)
    if limit is not None:
        body["max_tokens"] = limit
    if system:
        body["system"] = system
    body["messages"] = messages
    for name in ("top_p", "top_k", "stream"):
        if chat.get(name) is not None:
            body[name] = chat[name]
    body.update(_temperature(chat.get("temperature")))
    stop = chat.get("stop")
    if stop:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    body.update(_tools(chat, left))
    body.update(_format(chat.get("response_format"), left))
    return Translated(body=body, left_out=names(left))


def _limit(chat: dict[str, Any], absent: int | None) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        limit = chat.get(name)
        if limit is None:
            continue
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise InvalidInput.at(name, "must be a positive whole number")
        return limit
    return absent


def _temperature(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        message = f"{str(value)[:20]} is not in 0 to 1, the range of Anthropic's models"
        raise InvalidInput.at("temperature", message)
    return {"temperature": value}


def _tools(chat: dict[str, Any], left: Left) -> dict[str, Any]:
    tools = chat.get("tools") or []
    if not isinstance(tools, list):
        raise InvalidInput.at("tools", "must be a list")
    choice = _choice(chat.get("tool_choice"))
    if not tools:
        if choice is not None and choice["type"] in ("any", "tool"):
            raise InvalidInput.at("tool_choice", "asks for a tool, but there are none")
        return {}
    found: dict[str, Any] = {"tools": [_tool(t, i, left) for i, t in enumerate(tools)]}
    if chat.get("parallel_tool_calls") is False:
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    if choice is not None:
        found["tool_choice"] = choice
    return found


def _tool(tool: Any, number: int, left: Left) -> dict[str, Any]:
    at = f"tools.{number}"
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") not in (None, "function"):
        raise no_words(at, "a tool that is no function")
    if not isinstance(function.get("name"), str):
        raise InvalidInput.at(f"{at}.function.name", "must be a text")
    schema = function.get("parameters")
    if not isinstance(schema, dict | None):
        raise InvalidInput.at(f"{at}.function.parameters", "must be an object")
    leave(tool, {"type", "function"}, "tools", left)
    known = {"name", "description", "parameters", "strict"}
    leave(function, known, "tools.function", left)
    # A schema of anything but an object is none there; an empty one means any object.
    found = {"name": function["name"], "input_schema": {"type": "object"}}
    found["input_schema"].update(schema or {})
    for name in ("description", "strict"):
        if function.get(name) is not None:
            found[name] = function[name]
    return found


def _choice(choice: Any) -> dict[str, Any] | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        kind = {"auto": "auto", "none": "none", "required": "any"}.get(choice)
        if kind is None:
            message = "must be auto, none, required, or name a function"
            raise InvalidInput.at("tool_choice", message)
        return {"type": kind}
    function = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise no_words("tool_choice", "a choice of anything but one function")
    return {"type": "tool", "name": function["name"]}


def _format(wanted: Any, left: Left) -> dict[str, Any]:
    """Say which schema the answer has to follow. JSON without a schema has no equal."""
    if wanted is None:
        return {}
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        message = "Anthropic's models follow a schema: ask for 'json_schema' with one"
        raise InvalidInput.at("response_format.type", message)
    if kind != "json_schema":
        raise no_words("response_format", f"{kind!r}")
    said = wanted.get("json_schema")
    if not isinstance(said, dict) or not isinstance(said.get("schema"), dict):
        at = "response_format.json_schema.schema"
        raise InvalidInput.at(at, "an object is required")
    # The name and ``strict`` say nothing more there: a schema is always kept to.
    known = {"name", "schema", "strict"}
    leave(said, known, "response_format.json_schema", left)
    schema = {"type": "json_schema", "schema": said["schema"]}
    return {"output_config": {"format": schema}}
