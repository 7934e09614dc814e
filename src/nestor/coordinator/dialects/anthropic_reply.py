"""What a chat answer is as an Anthropic message: its blocks, its end, its usage."""

from collections.abc import Iterator
from typing import Any

import msgspec

from nestor.coordinator.dialects.tool_ids import legal
from nestor.errors import UpstreamError
from nestor.model.task import as_count

_ENDS = {
    "length": "max_tokens",
    "model_length": "max_tokens",
    "max_tokens": "max_tokens",
    "content_filter": "refusal",
}
"""Everything else ends a turn: servers have many words for that."""
_BROKEN = frozenset({"abort", "error"})
_SHOWN = 60


def message_of(chat: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Return the message that says a ``chat.completion``.

    Counts that the server did not give: ``null`` where the shape allows it, else 0.
    Raises ``UpstreamError`` for what has no words here.
    """
    choices = chat.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    said = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(said, dict):
        raise UpstreamError("the model's server answered without a message")
    for name in ("audio", "function_call"):
        if said.get(name):
            message = f"the model answered with {name!r}, which a message cannot say"
            raise UpstreamError(message)
    message_id = message_id_of(chat)
    refusal = text_in(said.get("refusal"))
    text = text_in(said.get("content")) + refusal
    cut = stop_of(choice, request, called=False, refused=False)[0] == "max_tokens"
    calls = [
        _tool_use(call, message_id, number, cut=cut)
        for number, call in enumerate(calls_in(said.get("tool_calls")))
    ]
    content: list[dict[str, Any]] = []
    # An empty line beside calls says nothing, and Anthropic's API refuses it in a history.
    if text.strip() or (text and not calls):
        content.append({"type": "text", "text": text})
    stop, sequence = stop_of(choice, request, called=bool(calls), refused=bool(refusal))
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model_of(chat, request),
        "content": content + calls,
        "stop_reason": stop,
        "stop_sequence": sequence,
        "usage": _whole_usage(chat.get("usage")),
    }


def message_id_of(chat: dict[str, Any]) -> str:
    """Return the answer's id as a message's."""
    found = legal(str(chat.get("id") or "unnamed").removeprefix("chatcmpl-"))
    return found if found.startswith("msg_") else f"msg_{found}"


def model_of(chat: dict[str, Any], request: dict[str, Any]) -> str:
    """Return which model answered, or was asked when the server does not say."""
    return str(chat.get("model") or request.get("model") or "")


def call_id_of(call_id: Any, message_id: str, number: int) -> str:
    """Return the id of a call; made of the answer's where the server gave none."""
    if isinstance(call_id, str) and call_id:
        return legal(call_id)
    return f"toolu_{message_id.removeprefix('msg_')}_{number}"


def choices_in(chunk: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a chunk says of the first answer."""
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and not choice.get("index"):
            yield choice


def delta_of(choice: dict[str, Any]) -> dict[str, Any]:
    """Return what a chunk adds. Raises ``UpstreamError`` for what is no object.

    A piece would be missing: the rest must not look like the whole.
    """
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        raise UpstreamError("the model's server sent a piece that cannot be read")
    return delta


def calls_in(calls: Any) -> Iterator[dict[str, Any]]:
    """Yield the calls of functions. Raises ``UpstreamError`` for calls of another kind."""
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and call.get("type") in (None, "", "function"):
            yield call
        else:
            message = "the model called a tool in a way that a message cannot say"
            raise UpstreamError(message)


def text_in(content: Any) -> str:
    """Return the text of ``content``: a text, or parts of which thoughts are passed over.

    Raises ``UpstreamError`` for parts of another kind.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(str(part.get("text") or ""))
        elif kind == "refusal":
            texts.append(str(part.get("refusal") or ""))
        elif kind not in ("thinking", "reasoning"):
            message = f"the model answered with {str(kind)[:_SHOWN]!r}, not with text"
            raise UpstreamError(message)
    return "".join(texts)


def input_of(arguments: Any, name: str, *, cut: bool = False) -> dict[str, Any]:
    """Return a call's arguments. Raises ``UpstreamError`` unless they are a JSON object.

    ``cut``: the answer ended at its limit of tokens, which explains it.
    """
    if isinstance(arguments, dict):
        return arguments
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, TypeError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    why = "were cut off by max_tokens: ask for more" if cut else "are no JSON object"
    shown = name[:_SHOWN]
    raise UpstreamError(f"the model called {shown!r} with arguments that {why}")


def stop_of(
    choice: dict[str, Any], request: dict[str, Any], *, called: bool, refused: bool
) -> tuple[str, str | None]:
    """Return ``stop_reason`` and ``stop_sequence``.

    Chat does not say which sequence stopped it, but for vLLM (``stop_reason`` beside
    ``finish_reason``). Calls end a turn also where the server says ``stop``, as OpenAI's
    does when a tool was forced. Raises ``UpstreamError`` for an answer that broke off.
    """
    finish = str(choice.get("finish_reason") or "stop")
    if finish in _BROKEN:
        raise UpstreamError(f"the model's server broke its answer off ({finish})")
    if finish in _ENDS:
        return _ENDS[finish], None
    if called:
        return "tool_use", None
    if refused:
        return "refusal", None
    sequence = choice.get("stop_reason")
    if isinstance(sequence, str) and sequence in (request.get("stop_sequences") or ()):
        return "stop_sequence", sequence
    return "end_turn", None


def usage_of(usage: Any) -> dict[str, Any]:
    """Return the counts that a chat ``usage`` gives, by the names of messages.

    ``prompt_tokens`` hold what was read from and written to a cache; ``input_tokens``
    do not.
    """
    found: dict[str, Any] = {}
    usage = usage if isinstance(usage, dict) else {}
    prompt = usage.get("prompt_tokens_details")
    prompt = prompt if isinstance(prompt, dict) else {}
    cached = as_count(prompt.get("cached_tokens"))
    written = as_count(prompt.get("cache_write_tokens"))
    total = as_count(usage.get("prompt_tokens"))
    if total is not None:
        found["input_tokens"] = max(0, total - (cached or 0) - (written or 0))
    if written is not None:
        found["cache_creation_input_tokens"] = written
    if cached is not None:
        found["cache_read_input_tokens"] = cached
    output = as_count(usage.get("completion_tokens"))
    if output is not None:
        found["output_tokens"] = output
    details = usage.get("completion_tokens_details")
    thought = details.get("reasoning_tokens") if isinstance(details, dict) else None
    if as_count(thought) is not None:
        found["output_tokens_details"] = {"thinking_tokens": thought}
    return found


def _whole_usage(usage: Any) -> dict[str, Any]:
    return {
        "input_tokens": 0,
        "cache_creation_input_tokens": None,
        "cache_read_input_tokens": None,
        "output_tokens": 0,
        **usage_of(usage),
    }


def _tool_use(
    call: dict[str, Any], message_id: str, number: int, *, cut: bool
) -> dict[str, Any]:
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise UpstreamError("the model called a tool without naming it")
    return {
        "type": "tool_use",
        "id": call_id_of(call.get("id"), message_id, number),
        "name": name,
        "input": input_of(function.get("arguments"), name, cut=cut),
    }
