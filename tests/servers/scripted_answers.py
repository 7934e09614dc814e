"""What a scripted model says, in the words of each dialect."""

import json
import re
from typing import Any, Literal

import msgspec

from nestor.model.task import Usage


class Rule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One answer, and when to give it. The first rule whose conditions all hold answers.

    ``when``: must occur in the newest messages (those after the last assistant message)
    or in what is to be embedded; ``re:…`` is a regular expression. ``anywhere``: the
    same, over the whole conversation. ``nth``: the n-th request of this server, from 1.
    ``times``: at most so many answers.
    """

    when: str | None = None
    anywhere: str | None = None
    nth: int | None = None
    times: int | None = None
    model: str | None = None

    reply: str = ""
    reasoning: str = ""
    """Comes before the reply: ``reasoning_content``, or a block of thinking."""
    tool_calls: list[dict[str, Any]] = []
    """``{"name": …, "arguments": {…}}``, or OpenAI's own shape."""
    finish: str | None = None
    """OpenAI's finish reason; None: ``stop``, or ``tool_calls`` where there are some."""
    vectors: list[list[float]] | None = None
    """Embeddings; None: a short one for each input."""
    usage: dict[str, Any] | None = msgspec.field(
        default_factory=lambda: {"prompt_tokens": 11, "completion_tokens": 7}
    )
    """OpenAI's, or Anthropic's (``input_tokens`` …); each dialect says it in its own
    words. None: the server reports no usage, as some do."""
    usage_in: Literal["last", "with_finish", "each", "first", "after_done"] = "last"
    """Which chunk of a stream it stands in; ``last`` is what the dialects do."""
    status: int = 200
    headers: dict[str, str] = {}
    delay_s: float = 0.0
    """Before the first byte."""
    chunk_delay_s: float = 0.0
    cut_after_chunks: int | None = None
    """The connection breaks after so many SSE events (the first one has no text)."""
    error_after_chunks: int | None = None
    """An error event comes after so many, and nothing after it."""
    raw: str | None = None
    """Sent instead of everything above, as the body."""


_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
OVERLOADED = "the scripted model is overloaded"


def billed(rule: Rule, *, embedding: bool = False) -> Usage | None:
    """Return what the provider's bill would say; None where the script does not know."""
    if rule.usage is None:
        return None
    said = anthropic_usage(rule)
    cached = said.get("cache_read_input_tokens")
    written = said.get("cache_creation_input_tokens")
    details = rule.usage.get("completion_tokens_details") or {}
    return Usage(
        input_tokens=said["input_tokens"] + (cached or 0) + (written or 0),
        output_tokens=0 if embedding else said["output_tokens"],
        cached_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=details.get("reasoning_tokens"),
    )


def finish_of(rule: Rule) -> str:
    return rule.finish or ("tool_calls" if rule.tool_calls else "stop")


def words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def calls_of(rule: Rule, number: int) -> list[dict[str, Any]]:
    """Return the tool calls in OpenAI's shape; ``number`` keeps their ids apart."""
    calls = []
    for index, call in enumerate(rule.tool_calls):
        if "function" in call:
            calls.append(call)
            continue
        arguments = json.dumps(call.get("arguments", {}))
        function = {"name": call["name"], "arguments": arguments}
        identity = f"call_{number}_{index}"
        calls.append({"id": identity, "type": "function", "function": function})
    return calls


# OpenAI


def completion(rule: Rule, envelope: dict[str, Any], number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": rule.reply or None}
    if rule.reasoning:
        message["reasoning_content"] = rule.reasoning
    if rule.tool_calls:
        message["tool_calls"] = calls_of(rule, number)
    done = {
        **envelope,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_of(rule)}],
    }
    if rule.usage is not None:
        done["usage"] = openai_usage(rule)
    return done


def chunks(
    rule: Rule, envelope: dict[str, Any], number: int, *, asked_usage: bool
) -> list[bytes]:
    """Return the events of a streamed answer."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": part} for part in words(rule.reasoning)]
    deltas += [{"content": part} for part in words(rule.reply)]
    for index, call in enumerate(calls_of(rule, number)):
        function = call["function"]
        head = {**call, "function": {**function, "arguments": ""}}
        deltas.append({"tool_calls": [{"index": index, **head}]})
        tail = {"index": index, "function": {"arguments": function["arguments"]}}
        deltas.append({"tool_calls": [tail]})
    head = {**envelope, "object": "chat.completion.chunk"}
    events = [
        {**head, "choices": [_choice(delta, None)], "usage": None} for delta in deltas
    ]
    events.append({**head, "choices": [_choice({}, finish_of(rule))]})
    extra = {**head, "choices": [], "usage": openai_usage(rule)}
    if rule.usage is not None:
        match rule.usage_in:
            case "with_finish":
                events[-1]["usage"] = openai_usage(rule)
            case "first":
                events[0]["usage"] = openai_usage(rule)
            case "each":
                for written, event in enumerate(events[:-1]):
                    event["usage"] = openai_usage(rule, at_most=written)
                events[-1]["usage"] = openai_usage(rule)
            case "last" if asked_usage:
                events.append(extra)
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    lines.append(b"data: [DONE]\n\n")
    if rule.usage is not None and rule.usage_in == "after_done":
        lines.append(b"data: " + json.dumps(extra).encode() + b"\n\n")
    return lines


def embeddings(rule: Rule, body: dict[str, Any], model: str) -> dict[str, Any]:
    given = body.get("input")
    several = isinstance(given, list) and given and not isinstance(given[0], int)
    count = len(given) if several and isinstance(given, list) else 1
    vectors = rule.vectors or [[float(n), 0.5, -0.25] for n in range(count)]
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    reply: dict[str, Any] = {"object": "list", "data": data, "model": model}
    if rule.usage is not None:
        tokens = rule.usage.get("prompt_tokens", 0)
        reply["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return reply


def openai_usage(rule: Rule, *, at_most: int | None = None) -> dict[str, Any]:
    usage = rule.usage or {}
    if "input_tokens" in usage:
        read = usage.get("cache_read_input_tokens")
        parts = usage["input_tokens"], read, usage.get("cache_creation_input_tokens")
        usage = {
            "prompt_tokens": sum(part or 0 for part in parts),
            "completion_tokens": usage.get("output_tokens", 0),
            **(
                {}
                if read is None
                else {"prompt_tokens_details": {"cached_tokens": read}}
            ),
        }
    if at_most is not None:
        written = min(at_most, usage.get("completion_tokens", 0))
        usage = {**usage, "completion_tokens": written}
    total = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
    return {**usage, "total_tokens": total}


def _choice(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


# Anthropic


def message(rule: Rule, identity: str, model: str, number: int) -> dict[str, Any]:
    whole = _empty_message(identity, model)
    whole["content"] = _blocks(rule, number)
    whole["stop_reason"] = _STOP.get(finish_of(rule), finish_of(rule))
    if rule.usage is not None:
        whole["usage"] = anthropic_usage(rule)
    return whole


def message_events(rule: Rule, identity: str, model: str, number: int) -> list[bytes]:
    """Return the events of a streamed answer."""
    start = _empty_message(identity, model)
    delta: dict[str, Any] = {
        "type": "message_delta",
        "delta": {
            "stop_reason": _STOP.get(finish_of(rule), finish_of(rule)),
            "stop_sequence": None,
        },
    }
    if rule.usage is not None:
        usage = anthropic_usage(rule)
        start["usage"] = {**usage, "output_tokens": min(1, usage["output_tokens"])}
        delta["usage"] = {"output_tokens": usage["output_tokens"]}
        if rule.usage_in == "first":
            start["usage"] = usage
            del delta["usage"]
        elif rule.usage_in == "with_finish":
            start["usage"] = {"input_tokens": 0, "output_tokens": 0}
            delta["usage"] = usage
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(_blocks(rule, number)):
        events += _block_events(index, block)
        if index == 0:
            events.insert(2, {"type": "ping"})
    events += [delta, {"type": "message_stop"}]
    return [anthropic_event(event) for event in events]


def anthropic_event(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def anthropic_error(status: int, text: str) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": text}}


def anthropic_usage(rule: Rule) -> dict[str, Any]:
    usage = rule.usage or {}
    if "input_tokens" in usage:
        return {"output_tokens": 0, **usage}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    said = {
        "input_tokens": usage.get("prompt_tokens", 0) - (cached or 0),
        "output_tokens": usage.get("completion_tokens", 0),
    }
    return said if cached is None else {**said, "cache_read_input_tokens": cached}


def _empty_message(identity: str, model: str) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _blocks(rule: Rule, number: int) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if rule.reasoning:
        signed = {"thinking": rule.reasoning, "signature": "c2lnbmVk"}
        blocks.append({"type": "thinking", **signed})
    if rule.reply or not rule.tool_calls:
        blocks.append({"type": "text", "text": rule.reply})
    for call in calls_of(rule, number):
        arguments = json.loads(call["function"]["arguments"] or "{}")
        identity = call["id"].replace("call_", "toolu_", 1)
        named = {"id": identity, "name": call["function"]["name"], "input": arguments}
        blocks.append({"type": "tool_use", **named})
    return blocks


def _block_events(index: int, block: dict[str, Any]) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]]
    empty: dict[str, Any]
    match block["type"]:
        case "text":
            empty = {"type": "text", "text": ""}
            deltas = [
                {"type": "text_delta", "text": word} for word in words(block["text"])
            ]
        case "thinking":
            empty = {"type": "thinking", "thinking": "", "signature": ""}
            parts = words(block["thinking"])
            deltas = [{"type": "thinking_delta", "thinking": word} for word in parts]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            deltas.append(signed)
        case _:
            empty = {**block, "input": {}}
            text = json.dumps(block["input"])
            parts = ["", text[: len(text) // 2], text[len(text) // 2 :]]
            deltas = [{"type": "input_json_delta", "partial_json": p} for p in parts]
    return [
        {"type": "content_block_start", "index": index, "content_block": empty},
        *({"type": "content_block_delta", "index": index, "delta": d} for d in deltas),
        {"type": "content_block_stop", "index": index},
    ]
