"""What an Anthropic server answers, said in chat completions: whole, or as it streams.

Thoughts become ``reasoning_content``, as several servers of open models write them.
"""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from nestor.coordinator.dialects.kept import PIECE, Room
from nestor.errors import UpstreamError
from nestor.model.task import as_count

_FINISHES = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "tool_use": "tool_calls",
}
"""Everything else (``end_turn``, ``stop_sequence``) is ``stop``."""
_COUNTS = (
    *("input_tokens", "output_tokens", "output_tokens_details"),
    *("cache_read_input_tokens", "cache_creation_input_tokens"),
)
_SHOWN = 60


def reply_of(
    message: dict[str, Any], *, clock: Callable[[], float] = time.time
) -> dict[str, Any]:
    """Return a message as a ``chat.completion``; without ``usage`` if it has none.

    Raises ``UpstreamError`` for content that chat completions have no words for.
    """
    blocks = message.get("content")
    if not isinstance(blocks, list):
        raise UpstreamError("the model's server answered without content")
    texts, thoughts = [], []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts.append(_text(block, "text"))
        elif kind == "tool_use":
            calls.append(_call(block, block.get("input") or {}))
        elif kind == "thinking":
            thoughts.append(_text(block, "thinking"))
        elif kind != "redacted_thinking":
            raise _no_words("a block", kind)
    said: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    if not calls:
        said["content"] = "".join(texts)
    else:
        said["tool_calls"] = calls
    if any(thoughts):
        said["reasoning_content"] = "".join(thoughts)
    finish = _finish(message.get("stop_reason"))
    found = {
        "id": str(message.get("id") or ""),
        "object": "chat.completion",
        "created": int(clock()),
        "model": str(message.get("model") or ""),
        "choices": [{"index": 0, "message": said, "finish_reason": finish}],
    }
    usage = _usage(message.get("usage"))
    if usage is not None:
        found["usage"] = usage
    return found


class Chunks:
    """Makes chat chunks of the events of one streamed message.

    The last, at ``message_stop``, carries nothing but the usage, as OpenAI's
    ``stream_options.include_usage`` asks for. ``error`` events are the client's business.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._calls: dict[int, _Call] = {}
        self._room = Room()
        self._said = {
            "message_start": self._start,
            "content_block_start": self._block,
            "content_block_delta": self._delta,
            "content_block_stop": self._block_end,
            "message_delta": self._finish,
            "message_stop": self._end,
        }

    def feed(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Take one event; return the chunks that say it.

        Raises ``UpstreamError`` for content that chat completions have no words for.
        """
        say = self._said.get(str(event.get("type")))
        # ``ping``, ``error``, and kinds to come that carry no content say nothing.
        return [] if say is None else say(event)

    def _start(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        message = _object(event.get("message"))
        self._head = {
            "id": str(message.get("id") or ""),
            "object": "chat.completion.chunk",
            "created": int(self._clock()),
            "model": str(message.get("model") or ""),
        }
        self._count(message.get("usage"))
        return [self._chunk({"role": "assistant", "content": ""})]

    def _block(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        block = _object(event.get("content_block"))
        kind = block.get("type")
        if kind == "text":
            text = _text(block, "text")
            return [self._chunk({"content": text})] if text else []
        if kind == "thinking":
            thought = _text(block, "thinking")
            return [self._chunk({"reasoning_content": thought})] if thought else []
        if kind == "tool_use":
            number = len(self._calls)
            whole = _object(block.get("input"))
            self._room.take(PIECE + len(msgspec.json.encode(whole)))
            self._calls[_index(event)] = _Call(number, whole)
            call = {"index": number, **_call(block, "")}
            return [self._chunk({"tool_calls": [call]})]
        if kind == "redacted_thinking":
            return []
        raise _no_words("a block", kind)

    def _delta(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        delta = _object(event.get("delta"))
        kind = delta.get("type")
        if kind == "text_delta":
            said = {"content": _text(delta, "text")}
        elif kind == "input_json_delta":
            call = self._calls.get(_index(event))
            if call is None:
                raise UpstreamError("the model's server sent arguments without a call")
            more = _text(delta, "partial_json")
            call.began = call.began or bool(more)
            said = call.delta(more)
        elif kind == "thinking_delta":
            said = {"reasoning_content": _text(delta, "thinking")}
        elif kind in ("signature_delta", "citations_delta"):
            return []  # marks beside what is passed on
        else:
            raise _no_words("a piece", kind)
        return [self._chunk(said)] if any(said.values()) else []

    def _block_end(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        call = self._calls.get(_index(event))
        if call is None or call.began:
            return []
        # A call without arguments streams none; callers of chat parse what they get.
        arguments = msgspec.json.encode(call.whole).decode()
        return [self._chunk(call.delta(arguments))]

    def _finish(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        self._count(event.get("usage"))
        reason = _object(event.get("delta")).get("stop_reason")
        return [self._chunk({}, _finish(reason))] if reason else []

    def _end(self, _event: dict[str, Any]) -> list[dict[str, Any]]:
        usage = _usage(self._usage)
        return [] if usage is None else [{**self._head, "choices": [], "usage": usage}]

    def _count(self, usage: Any) -> None:
        """Keep what was counted: a later count is the sum so far, not an addition."""
        if isinstance(usage, dict):
            told = ((name, usage.get(name)) for name in _COUNTS)
            known = {name: value for name, value in told if value is not None}
            self._usage.update(known)

    def _chunk(
        self, delta: dict[str, Any], finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._head, "choices": [choice]}


class _Call:
    """A call that streams. ``whole``: arguments that its start gave, on some servers."""

    __slots__ = ("began", "number", "whole")

    def __init__(self, number: int, whole: dict[str, Any]) -> None:
        self.number = number
        self.whole = whole
        self.began = False

    def delta(self, arguments: str) -> dict[str, Any]:
        """Return the delta of more arguments; empty for none."""
        if not arguments:
            return {}
        function = {"arguments": arguments}
        return {"tool_calls": [{"index": self.number, "function": function}]}


def _call(block: dict[str, Any], arguments: Any) -> dict[str, Any]:
    name, call_id = block.get("name"), block.get("id")
    if not isinstance(name, str) or not isinstance(call_id, str):
        raise UpstreamError("the model's server sent a call without its name or id")
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _finish(reason: Any) -> str:
    return _FINISHES.get(str(reason), "stop")


def _usage(usage: Any) -> dict[str, Any] | None:
    """Return the counts in OpenAI's shape, where the prompt holds what was cached.

    None when the server did not count input or output.
    """
    if not isinstance(usage, dict):
        return None
    fresh, output = _number(usage, "input_tokens"), _number(usage, "output_tokens")
    if fresh is None or output is None:
        return None
    read = _number(usage, "cache_read_input_tokens")
    written = _number(usage, "cache_creation_input_tokens")
    prompt = fresh + (read or 0) + (written or 0)
    found: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
    details = {"cached_tokens": read, "cache_write_tokens": written}
    known = {name: count for name, count in details.items() if count is not None}
    if known:
        found["prompt_tokens_details"] = known
    thought = _number(usage.get("output_tokens_details"), "thinking_tokens")
    if thought is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": thought}
    return found


def _index(event: dict[str, Any]) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name) or ""
    if not isinstance(text, str):
        raise UpstreamError(f"the model's server sent {name!r} that is no text")
    return text


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(counts: Any, name: str) -> int | None:
    return as_count(counts.get(name) if isinstance(counts, dict) else None)


def _no_words(what: str, kind: Any) -> UpstreamError:
    shown = str(kind)[:_SHOWN]
    message = (
        f"the model answered with {what} of type {shown!r}, which a chat cannot say"
    )
    return UpstreamError(message)
