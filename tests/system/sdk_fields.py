"""What became of each field of a request on its way to an upstream.

``unaccounted`` compares what an SDK sent with what the upstream received, leaf by leaf:
a value is there in some place, or under its name in the other dialect, or the reply names
it in ``x-nestor-left-out``. ``told`` says in neutral words what an upstream was told.
"""

import json
from collections.abc import Iterator
from typing import Any

from tests.servers.scripted_model import Recorded
from tests.system.sdk_stack import Exchange

Leaf = tuple[str, frozenset[str], Any]
"""Its path without indices; that of each kind of block that it is in; its value."""

_RENAMED = {
    "max_tokens": {"max_completion_tokens", "max_output_tokens"},
    "max_completion_tokens": {"max_tokens"},
    "max_output_tokens": {"max_tokens"},
}
"""Numbers whose name differs between dialects; texts are found wherever they are."""
_SAME_MEANING = {
    ("any", "required"),
    ("enabled", "auto"),
    ("function", "tool"),
    ("json_object", "json_object"),
}
_REVERSED = {
    "parallel_tool_calls": "disable_parallel_tool_use",
    "disable_parallel_tool_use": "parallel_tool_calls",
}
_USUAL_THERE = {("parallel_tool_calls", True), ("disable_parallel_tool_use", False)}
"""What goes without saying in the other dialect."""
_ALWAYS_STRICT = {"response_format.json_schema.strict", "text.format.strict"}
"""Anthropic's servers follow the schema of an answer in any case."""
_SHAPE = {"type", "role"}
"""How a value is put, not what it says; ``told`` looks at that."""
_GIVEN_BY_US = {
    *("input.id", "input.status", "messages.tool_calls.index"),
}
"""What an answer's own items carry when they are sent back: nobody asks for it."""
_DONE_HERE = {"model", "stream", "stream_options.include_usage"}
"""A model's name is translated, a stream and its usage are made where they are wanted:
other tests look at that."""
_LONG_ENOUGH = 6
"""Texts of at least so many characters may stand inside another (``data:`` URLs)."""


def unaccounted(exchange: Exchange) -> list[str]:
    """Return what an exchange lost silently: paths, and what differs in passing on."""
    upstream = exchange.upstream
    assert upstream is not None
    if _dialect(exchange.path) == _dialect(upstream.path):
        return _not_passed_on(exchange.sent, upstream.body)
    received = list(_leaves(upstream.body))
    texts = [value for _, _, value in received if isinstance(value, str)]
    named = {_plain(name) for name in exchange.left_out}
    lost = []
    for path, kinds, value in _leaves(exchange.sent):
        name = path.rpartition(".")[2]
        if path in _DONE_HERE | _GIVEN_BY_US or _is_named(path, kinds, named):
            continue
        if name in _SHAPE and not path.startswith("tool_choice"):
            continue
        if path in _ALWAYS_STRICT and value and upstream.dialect == "anthropic":
            continue
        if not _is_said(name, value, received, texts):
            lost.append(f"{path}={value!r}")
    return lost


def _not_passed_on(sent: dict[str, Any], body: dict[str, Any]) -> list[str]:
    """Between the same dialects all is passed on; usage is always asked for."""
    expected = {**sent, "model": body["model"]}
    if not expected.get("stream"):
        expected.pop("stream", None)
        expected.pop("stream_options", None)
    elif "max_tokens" not in sent or "stream_options" in body:
        asked = expected.get("stream_options") or {}
        expected["stream_options"] = {**asked, "include_usage": True}
    names = {*expected, *body}
    return sorted(n for n in names if expected.get(n) != body.get(n))


def _dialect(path: str) -> str:
    return path.removeprefix("/v1/")


def _plain(name: str) -> str:
    return name.replace(".*", "")


def _is_named(path: str, kinds: frozenset[str], named: set[str]) -> bool:
    """Tell whether it, or what it is in, is named as left out."""
    return bool(kinds & named) or any(
        path == name or path.startswith(f"{name}.") for name in named
    )


def _is_said(name: str, value: Any, received: list[Leaf], texts: list[str]) -> bool:
    if isinstance(value, str):
        if value in texts or any((value, text) in _SAME_MEANING for text in texts):
            return True
        if any((text, value) in _SAME_MEANING for text in texts):
            return True
        return len(value) >= _LONG_ENOUGH and any(value in text for text in texts)
    if name == "is_error":
        return any(text.startswith("[tool error]") for text in texts)
    wanted = {(other, type(value), value) for other in _RENAMED.get(name, ())}
    wanted.add((name, type(value), value))
    if name in _REVERSED:
        wanted.add((_REVERSED[name], bool, not value))
    found = {
        (path.rpartition(".")[2], type(other), other)
        for path, _, other in received
        if not isinstance(other, list | dict)
    }
    return not wanted.isdisjoint(found) or (name, value) in _USUAL_THERE


def _leaves(
    value: Any, path: str = "", kinds: frozenset[str] = frozenset()
) -> Iterator[Leaf]:
    """Yield what stands in a JSON value, also in JSON that stands in a text."""
    if isinstance(value, dict):
        kinds |= {f"{path}.{value['type']}"} if "type" in value else set()
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}".lstrip("."), kinds)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path, kinds)
    elif isinstance(value, str) and value.startswith("{"):
        try:
            yield from _leaves(json.loads(value), path, kinds)
        except ValueError:
            yield path, kinds, value
    elif isinstance(value, str) and value.startswith("data:"):
        for part in value.removeprefix("data:").split(";base64,", 1):
            yield path, kinds, part
    elif value is not None and value != "":
        yield path, kinds, value


Told = tuple[Any, ...]


def told(recorded: Recorded) -> list[Told]:
    """Say what an upstream was told, in words that are the same for both dialects.

    Calls are known by their place, since ids may differ between dialects.
    """
    asked: Any = recorded.body
    body: list[Told] = []
    numbers: dict[str, int] = {}
    if isinstance(asked.get("system"), str):
        body.append(("system", asked["system"]))
    elif "system" in asked:
        body += [("system", block["text"]) for block in asked["system"]]
    for message in asked["messages"]:
        role, content = message["role"], message.get("content")
        if role == "tool":
            body.append(("result", numbers[message["tool_call_id"]], content))
            continue
        parts = (
            [{"type": "text", "text": content}] if isinstance(content, str) else content
        )
        for part in parts or ():
            if part == {"type": "text", "text": ""}:
                continue  # OpenAI's SDK sends it beside calls
            body += _part(role, part, numbers)
        for call in message.get("tool_calls") or ():
            numbers[call["id"]] = len(numbers)
            function = call["function"]
            arguments = json.loads(function["arguments"])
            body.append(("call", function["name"], arguments))
    return body


def _part(role: str, part: dict[str, Any], numbers: dict[str, int]) -> Iterator[Told]:
    match part["type"]:
        case "text":
            yield role, part["text"]
        case "image_url":
            head, _, data = part["image_url"]["url"].partition(";base64,")
            yield "image", head.removeprefix("data:"), data
        case "image":
            source = part["source"]
            yield "image", source["media_type"], source["data"]
        case "tool_use":
            numbers[part["id"]] = len(numbers)
            yield "call", part["name"], part["input"]
        case "tool_result":
            content = part["content"]
            if isinstance(content, list):
                content = "".join(block["text"] for block in content)
            yield "result", numbers[part["tool_use_id"]], content
        case other:
            raise AssertionError(f"a block of the kind {other!r}")


def tools_told(recorded: Recorded) -> list[Told]:
    """Return name, description and schema of each tool that an upstream was told of."""
    found = []
    for tool in recorded.body.get("tools") or ():
        said = tool.get("function") or tool
        schema = said.get("parameters") or said.get("input_schema")
        found.append((said["name"], said["description"], schema))
    return found
