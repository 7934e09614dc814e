"""One line a request, written in batches: a line by itself costs more than the request.

A line is on the stream at most ``FLUSH_S`` after its request ended, or when the process
ends in order; ``kill -9`` loses that much of this log (what must not be lost is in the
event log). Lines carry their own time, so they may stand after younger lines of others.
"""

import asyncio
import atexit
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from nestor.telemetry import logs
from nestor.telemetry.redact import redact

FLUSH_S = 0.25
MAX_WAITING = 256
MAX_PATH_BYTES = 200


class Answered(NamedTuple):
    """A request that has been answered.

    ``path``: as it was sent, without the query; empty when that was not read. ``took_s``:
    None when nobody measured. ``client``: address and port of the peer.
    """

    at: float
    layer: str
    method: str
    path: bytes
    status: int
    took_s: float | None
    key_id: str | None
    trace_id: str
    client: Sequence[Any] | None


class AccessLog:
    """Not safe under threads: it belongs to the loop that serves."""

    def __init__(
        self, write: Callable[[Sequence[msgspec.Struct]], None] = logs.write_lines
    ) -> None:
        self._write = write
        self._waiting: list[Answered] = []
        self._timer: asyncio.TimerHandle | None = None
        atexit.register(self.flush)

    def note(
        self,
        layer: str,
        method: str,
        path: bytes,
        status: int,
        took_s: float | None,
        key_id: str | None,
        trace_id: str,
        client: Sequence[Any] | None,
    ) -> None:
        """Remember a request that was just answered."""
        waiting = self._waiting
        waiting.append(
            Answered(
                time.time(),
                layer,
                method,
                path,
                status,
                took_s,
                key_id,
                trace_id,
                client,
            )
        )
        if len(waiting) >= MAX_WAITING:
            self.flush()
        elif len(waiting) == 1:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._write(_lines(waiting))


class _Line(msgspec.Struct, gc=False):
    """What stands in the log, in this order."""

    timestamp: str
    level: str
    logger: str
    event: str
    layer: str
    method: str
    path: str
    status: int
    duration_ms: float | None
    client: str | None
    key_id: str | None
    trace_id: str


def _lines(waiting: list[Answered]) -> list[_Line]:
    paths = [
        line.path[:MAX_PATH_BYTES].decode("ascii", "backslashreplace")
        for line in waiting
    ]
    return [
        _Line(
            datetime.fromtimestamp(line.at, UTC).isoformat(),
            "info",
            "nestor.access",
            "request",
            line.layer,
            line.method,
            path,
            line.status,
            None if line.took_s is None else round(line.took_s * 1000, 2),
            line.client[0] if line.client else None,
            line.key_id,
            line.trace_id,
        )
        for line, path in zip(waiting, _redacted(paths), strict=True)
    ]


def _redacted(paths: list[str]) -> list[str]:
    """Redact all at once: looking for thirty hints in each would cost the most here."""
    text = "\n".join(paths)
    cleaned = redact(text)
    if cleaned == text:
        return paths
    return [redact(path) for path in paths]
