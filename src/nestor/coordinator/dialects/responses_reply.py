"""What a chat answer is as a Response: its items, its end, its usage."""

from collections.abc import Callable
from typing import Any

import msgspec

from nestor.coordinator.dialects.anthropic_reply import model_of, text_in
from nestor.coordinator.dialects.openai import choice_of
from nestor.coordinator.dialects.responses_tools import Toolbox, unwrapped
from nestor.errors import UpstreamError
from nestor.model.task import as_count

_CUT = {
    "length": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "model_length": "max_output_tokens",
    "content_filter": "content_filter",
}
_BROKEN = frozenset({"abort", "error"})
_THOUGHTS = ("reasoning_content", "reasoning")
"""What a model thought, as servers of open models name it."""


def frame(
    chat: dict[str, Any],
    request: dict[str, Any],
    *,
    now: float,
    new_id: Callable[[], str],
) -> dict[str, Any]:
    """Return a response of which nothing is said yet.

    It repeats the request's fields as callers' types want them. Those that were left out
    are as if they had not been given. ``now``: seconds since 1970, where the server does
    not say.
    """
    given = chat.get("id")
    name = given if isinstance(given, str) and given else new_id()
    created = chat.get("created")
    text = request.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    parallel = request.get("parallel_tool_calls")
    return {
        "id": f"resp_{name.removeprefix('chatcmpl-')}",
        "object": "response",
        "created_at": created if isinstance(created, int) else int(now),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "metadata": request.get("metadata") or {},
        "model": model_of(chat, request),
        "output": [],
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": request.get("temperature"),
        "text": {"format": form or {"type": "text"}},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": request.get("tools") or [],
        "top_p": request.get("top_p"),
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }


def item_id(response: dict[str, Any], kind: str, place: int) -> str:
    """Return the id of an item: unique among all answers, as the answer's own is."""
    return f"{kind}_{response['id'].removeprefix('resp_')}_{place}"


def finish(
    response: dict[str, Any],
    output: list[dict[str, Any]],
    reason: str | None,
    usage: Any,
) -> dict[str, Any]:
    """Complete a response. Raises ``UpstreamError`` when the server broke its answer off."""
    if reason in _BROKEN:
        raise UpstreamError(f"the model's server broke its answer off ({reason})")
    cut = _CUT.get(reason or "")
    return response | {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": cut} if cut else None,
        "output": output,
        "usage": usage_of(usage),
    }


def usage_of(usage: Any) -> dict[str, Any] | None:
    """Return the counts; None when the server did not give them.

    The shape has no word for details that are not known: callers' types want a number,
    and agents read the answer as broken without one, so those are 0. Meters do not read
    this.
    """
    given = usage if isinstance(usage, dict) else {}
    read = as_count(given.get("prompt_tokens"))
    written = as_count(given.get("completion_tokens"))
    if read is None or written is None:
        return None
    prompt = given.get("prompt_tokens_details")
    answer = given.get("completion_tokens_details")
    return {
        "input_tokens": read,
        "input_tokens_details": {
            "cached_tokens": _count(prompt, "cached_tokens"),
            "cache_write_tokens": _count(prompt, "cache_write_tokens"),
        },
        "output_tokens": written,
        "output_tokens_details": {
            "reasoning_tokens": _count(answer, "reasoning_tokens")
        },
        "total_tokens": read + written,
    }


def _count(details: Any, name: str) -> int:
    return as_count(details.get(name) if isinstance(details, dict) else None) or 0


def thoughts_in(said: dict[str, Any]) -> str:
    """Return what a message or delta holds of the model's thoughts."""
    found = (said.get(name) for name in _THOUGHTS)
    return next((text for text in found if isinstance(text, str) and text), "")


def reasoning(name: str, text: str, status: str) -> dict[str, Any]:
    """Return the item of thoughts."""
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {
        "id": name,
        "type": "reasoning",
        "status": status,
        "summary": [],
        "content": content,
    }


def part(kind: str, text: str) -> dict[str, Any]:
    """Return a part of a message: ``output_text`` or ``refusal``."""
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def message(name: str, parts: list[dict[str, Any]], status: str) -> dict[str, Any]:
    """Return the item of a message."""
    return {
        "id": name,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": parts,
    }


def call(
    response: dict[str, Any],
    place: int,
    called: dict[str, Any],
    toolbox: Toolbox,
    status: str,
) -> dict[str, Any]:
    """Return the item of a call: ``called`` has ``id``, ``name`` and ``arguments``."""
    tool = toolbox.find(called["name"])
    kind = "ctc" if tool.custom else "fc"
    name = item_id(response, kind, place)
    item = {
        "id": name,
        "type": "custom_tool_call" if tool.custom else "function_call",
        "status": status,
        "call_id": called["id"] or name.replace(kind, "call", 1),
        "name": tool.name,
    }
    if tool.namespace is not None:
        item["namespace"] = tool.namespace
    if tool.custom:
        # Only a whole object can be opened.
        done = status != "in_progress"
        item["input"] = unwrapped(called["arguments"]) if done else ""
    else:
        item["arguments"] = called["arguments"]
    return item


def calls_in(calls: Any) -> list[dict[str, Any]]:
    """Return the pieces of calls. Raises ``UpstreamError`` for calls of no function."""
    found = []
    for one in calls if isinstance(calls, list) else ():
        if not isinstance(one, dict) or one.get("type") not in (None, "", "function"):
            kind = str(one.get("type") if isinstance(one, dict) else one)[:60]
            raise UpstreamError(f"the model called a tool of an unknown kind: {kind!r}")
        found.append(one)
    return found


def output_of(
    chat: dict[str, Any], request: dict[str, Any], response: dict[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the items of a whole answer, and why it ended.

    Raises ``UpstreamError`` for an answer without words here.
    """
    said, reason = choice_of(chat)
    refuse_unknown(said)
    calls = calls_in(said.get("tool_calls"))
    last = "incomplete" if reason in _CUT else "completed"
    output: list[dict[str, Any]] = []
    if thoughts := thoughts_in(said):
        output.append(reasoning(item_id(response, "rs", 0), thoughts, "completed"))
    texts = (("output_text", said.get("content")), ("refusal", said.get("refusal")))
    parts = [part(kind, text) for kind, given in texts if (text := text_in(given))]
    if parts:
        name = item_id(response, "msg", len(output))
        output.append(message(name, parts, "completed" if calls else last))
    toolbox = Toolbox(request, {})
    for one in calls:
        called = {"id": one.get("id"), **named(one)}
        status = last if one is calls[-1] else "completed"
        output.append(call(response, len(output), called, toolbox, status))
    return output, reason


def named(one: dict[str, Any]) -> dict[str, Any]:
    """Return name and arguments of a call. Raises ``UpstreamError`` without a name."""
    function = one.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise UpstreamError("the model called a tool without naming it")
    return {"name": name, "arguments": arguments_in(function)}


def arguments_in(function: dict[str, Any]) -> str:
    """Return (a piece of) the arguments; some servers send them as an object."""
    given = function.get("arguments")
    if isinstance(given, str) or given is None:
        return given or ""
    return msgspec.json.encode(given).decode()


def refuse_unknown(said: dict[str, Any]) -> None:
    """Raise ``UpstreamError`` for what a message or delta holds and a response cannot."""
    for name in ("audio", "function_call"):
        if said.get(name):
            raise UpstreamError(
                f"the model answered with {name!r}, which a response cannot say"
            )


def is_cut(reason: str | None) -> bool:
    """Tell whether an answer ended before its end."""
    return reason in _CUT
