"""Server-sent events: cut at their ends, bytes unchanged, and looked into where needed."""

import re
from typing import Any

import msgspec

MAX_EVENT_BYTES = 1024 * 1024
"""A longer event is passed on in pieces, and not looked into."""
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n")


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


def carries_data(piece: bytes) -> bool:
    """Tell whether events, or the beginning of one, hold more than comments."""
    return piece.startswith(b"data:") or b"\ndata:" in piece


def is_unreadable(event: bytes) -> bool:
    """Tell whether an event carries something, and it is no JSON."""
    data = b"\n".join(
        line[5:].strip() for line in event.splitlines() if line[:5] == b"data:"
    )
    if not data or data == b"[DONE]":
        return False
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return True
    return False


def is_done(event: bytes) -> bool:
    """Tell whether the event ends the stream."""
    return event.startswith(b"data:") and event[5:].strip() == b"[DONE]"
