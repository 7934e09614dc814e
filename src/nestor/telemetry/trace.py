"""One trace id through all layers: a context variable, carried by W3C ``traceparent``."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token

from nestor.model.ids import new_span_id, new_trace_id

_current: ContextVar[str] = ContextVar("nestor_trace_id", default="")
_PARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def current_trace_id() -> str:
    """Return the trace id of this task of the event loop; a new one where none is set."""
    if not _current.get():
        _current.set(new_trace_id())
    return _current.get()


def known_trace_id() -> str | None:
    """Return the trace id in force; None where there is none (and makes none)."""
    return _current.get() or None


@contextmanager
def trace(trace_id: str | None = None) -> Iterator[str]:
    """Run a block under a trace id (a new one when not given)."""
    token = _current.set(trace_id or new_trace_id())
    try:
        yield _current.get()
    finally:
        _current.reset(token)


def enter(trace_id: str) -> Token[str]:
    """Set the trace id; ``leave`` takes the token. ``trace`` for where each µs counts."""
    return _current.set(trace_id)


def leave(token: Token[str]) -> None:
    """Set back what ``enter`` set."""
    _current.reset(token)


def traceparent(trace_id: str | None = None) -> str:
    """Render the header for a call to another process."""
    return f"00-{trace_id or current_trace_id()}-{new_span_id()}-01"


def parse_traceparent(value: str) -> str | None:
    """Return the trace id of a header; None when it is malformed or all zero."""
    match = _PARENT.fullmatch(value.strip())
    return match[1] if match and int(match[1], 16) and int(match[2], 16) else None
