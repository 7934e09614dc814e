"""OpenAI's chat-completions format: server-sent events, usage, error bodies."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from nestor.model.task import Usage

MAX_EVENT_BYTES = 1024 * 1024
"""A longer event is passed on in pieces, and not looked into."""
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n")
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_SAYS_SOMETHING = ("content", "tool_calls", "reasoning_content", "reasoning", "refusal")


class EventSplitter:
    """Cuts a stream of bytes at the ends of its events; changes no byte."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes as they came; return the events that are complete now."""
        searched_from = max(0, len(self._held) - 3)
        self._held += chunk
        events: list[bytes] = []
        start = 0
        for match in _BOUNDARY.finditer(self._held, searched_from):
            events.append(bytes(self._held[start : match.end()]))
            start = match.end()
        del self._held[:start]
        if len(self._held) > MAX_EVENT_BYTES:
            events.append(bytes(self._held))
            self._held.clear()
        return events

    def rest(self) -> bytes:
        """Return what came after the last complete event."""
        return bytes(self._held)


def data_of(event: bytes) -> dict[str, Any] | None:
    """Return the JSON object an event carries; None for comments, ``[DONE]`` and the rest."""
    lines = [line[5:].strip() for line in event.splitlines() if line[:5] == b"data:"]
    if not lines or lines[0] == b"[DONE]":
        return None
    try:
        value = msgspec.json.decode(b"\n".join(lines))
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_done(event: bytes) -> bool:
    """Tell whether the event ends the stream."""
    return event.startswith(b"data:") and event[5:].strip() == b"[DONE]"


def finishes(event: bytes) -> bool:
    """Tell whether the event names a finish reason (a cheap look at the bytes)."""
    return _FINISHED.search(event) is not None


def says_something(data: Mapping[str, Any]) -> bool:
    """Tell whether a chunk carries a token, as opposed to a role or a keep-alive."""
    for choice in _dicts(data.get("choices")):
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(delta.get(key) for key in _SAYS_SOMETHING):
            return True
        if choice.get("finish_reason") or choice.get("text"):
            return True
    return False


def is_usage_only(data: Mapping[str, Any]) -> bool:
    """Tell whether a chunk is the extra one that ``stream_options.include_usage`` asks for."""
    return data.get("choices") == [] and isinstance(data.get("usage"), dict)


def usage_of(body: Mapping[str, Any]) -> Usage:
    """Read ``usage`` of a reply or chunk; what is not a count stays None."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(cached),
    )


def error_text(error: object) -> str:
    """Return the sentence in an error body or error event, in any of the usual shapes."""
    if isinstance(error, Mapping):
        inner = error.get("error", error)
        if isinstance(inner, Mapping):
            inner = inner.get("message") or inner.get("detail") or ""
        return str(inner)
    return str(error)


def _count(value: object) -> int | None:
    known = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if known and isinstance(value, int) else None


def _dicts(value: object) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []
