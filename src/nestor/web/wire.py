"""What the connections of one port share, and what they tell the edge.

Nothing is timed by request: a few times a second ``Wire.sweep`` asks each connection whom
it waits for, and counts the seconds that it waits for its client.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

MAX_CONNECTIONS = 2_048
"""Open at one time on one port; one more closes the one that has idled longest."""
HELD_BYTES = 16 << 10
"""Read, but not yet looked at, on the average of all connections that a port may have."""


MAX_TARGET_BYTES = 8 << 10
"""Longer targets are refused by the edge, unseen."""
LINGER_S = 2.0
LINGER_BYTES = 64 << 20
"""How much of a refused body is thrown away before the connection is closed."""
MAX_LINGERING = 256
"""Connections that do so at one time; any more are closed at once."""

TARGET = "nestor.target"
"""Key in ``scope["extensions"]``: ``{"raw": the request-target, byte for byte}``."""
CYCLE = "nestor.cycle"
"""Key in ``scope["extensions"]``: the ``reply.Cycle`` of the request."""
REFUSED = "nestor.refused"
"""Key in a scope: status and trace id of the reply that was written in the edge's place."""

Address = tuple[str, int]
NoteRefusal = Callable[[str, bytes, int, Address | None, str], None]
"""Is told method ("" when unknown), path, status, client and trace id of what no layer saw."""


class _Connection(Protocol):
    transport: asyncio.Transport

    def check_deadlines(self, step_s: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long a client may keep its connection waiting; up to two sweeps come on top."""

    head_s: float = 5.0
    """For a whole head: from its first byte, on a new connection from the start."""
    body_idle_s: float = 5.0
    """Without one more byte of a body."""
    body_bytes_per_s: float = 1024.0
    """A body's least average, looked at once ``body_idle_s`` have passed."""
    write_idle_s: float = 8.0
    """Without taking any of a reply that waits."""
    keep_alive_s: float = 20.0
    """Between two requests."""
    sweep_s: float = 0.5


class Wire(ServerState):
    """What the connections of one port share."""

    def __init__(
        self,
        deadlines: Deadlines | None = None,
        *,
        max_connections: int = MAX_CONNECTIONS,
        note_refusal: NoteRefusal | None = None,
    ) -> None:
        super().__init__()
        self.note_refusal = note_refusal
        self.deadlines = deadlines or Deadlines()
        self.waiting: dict[_Connection, None] = {}
        """Connections that no request is being served on; the longest so is the first."""
        self.held_bytes = 0
        self._max_connections = max_connections

    @property
    def holds_too_much(self) -> bool:
        """Too much of what clients sent waits for its turn."""
        return self.held_bytes > self._max_connections * HELD_BYTES

    def sweep(self, elapsed_s: float) -> None:
        """Close what has kept us waiting too long, ``elapsed_s`` after the last sweep."""
        # When this process was held up, what clients sent meanwhile is still to be read.
        step_s = min(elapsed_s, 2 * self.deadlines.sweep_s)
        for connection in list(self.connections):
            cast("_Connection", connection).check_deadlines(step_s)

    def make_room(self) -> None:
        """Close the connection that has idled longest when there is one too many."""
        if len(self.connections) > self._max_connections and self.waiting:
            oldest = next(iter(self.waiting))
            del self.waiting[oldest]
            oldest.transport.abort()


class Room:
    """So many at one time, and no more."""

    def __init__(self, places: int) -> None:
        self._free = places

    def enter(self) -> bool:
        """Take a place, to be given back with ``leave``; False: there is none."""
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    def leave(self) -> None:
        """Give a place back."""
        self._free += 1


class Lingering:
    """Hears refused clients out.

    Closing on a client that is busy sending resets the connection, and the reply that
    says why is lost with it (RFC 9112, 9.6).
    """

    def __init__(self) -> None:
        self._room = Room(MAX_LINGERING)

    async def linger(self, receive: Callable[[], Awaitable[Any]]) -> None:
        """Throw away some of what is still being sent; nothing when there is no room."""
        if not self._room.enter():
            return
        thrown = 0
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while thrown < LINGER_BYTES:
                        message = await receive()
                        thrown += len(message.get("body", b""))
                        if not message.get("more_body", False):
                            break
        finally:
            self._room.leave()


class Turn(Enum):
    """Who has to do something next on a connection."""

    OURS = auto()
    HEAD = auto()
    BODY = auto()
    REPLY = auto()
    """The client has to take what was written to it."""
    IDLE = auto()


class Flow(FlowControl):
    """uvicorn's, but an application cannot resume a reading that the protocol stopped."""

    held = False

    def resume_reading(self) -> None:
        """Let input come again, unless it is held."""
        if self.read_paused and not self.held:
            super().resume_reading()

    def hold(self) -> None:
        """Let no input come until ``held`` is taken back."""
        self.held = True
        self.pause_reading()


def target_of(scope: Any) -> Mapping[str, Any]:
    """Return what the protocol noted; from the parsed parts under another server."""
    noted = (scope.get("extensions") or {}).get(TARGET)
    if noted is not None:
        known: Mapping[str, Any] = noted
        return known
    query = scope["query_string"]
    raw = scope["raw_path"] + (b"?" + query if query else b"")
    return {"raw": raw, "head_too_large": False, "malformed": False}
