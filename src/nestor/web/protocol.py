"""The wire in front of ``web.edge``: what only the HTTP parser sees.

uvicorn hands an application a parsed path; the request-target as it was sent, the size of
the head, what a malformed message is answered with, and how long a client may take live
here.
"""

import asyncio
import re
from collections import deque
from typing import Any, cast
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, parse_url
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from nestor.model.ids import new_trace_id
from nestor.web import wire
from nestor.web.errors import Refused, render
from nestor.web.headers import SECURITY_HEADERS
from nestor.web.reply import Cycle
from nestor.web.wire import MAX_TARGET_BYTES, TARGET, Deadlines, Flow, Turn, Wire

MAX_HEAD_BYTES = 32 << 10
"""Of a head; of the trailers; of what stands between two pieces of a chunked body."""
MAX_HEADERS = 100
MAX_PIPELINED = 16
"""Requests read ahead on one connection while an earlier one is answered."""
PIECE_BYTES = 4 << 10
"""What is parsed at once of a head or of a chunked body."""
FRAMING_PER_BYTE = 8
"""Bytes of chunk sizes and line ends that one byte of a body may cost (one in a chunk: 5)."""

NOT_HTTP = "this is not a well-formed HTTP request"
_EMPTY_LINE = b"\r\n\r\n"

_LINE = re.compile(rb"(?:\r\n)*[A-Z-]+ [^ \t]+ HTTP/1\.[01]\r\n")
_LINE_BYTES = 4 * PIECE_BYTES
"""So much of a head is kept to look at its first line; longer targets are refused."""


class EdgeProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with bounds on size and time, and problem replies.

    Input is parsed in pieces of which none goes on behind the end of a message: a client
    that sends many requests at once has few of them waiting here as objects. A request
    starts when all that had arrived with it was well-formed.
    """

    wire: Wire
    flow: Flow
    cycle: Cycle
    pipeline: deque[tuple[Cycle, Any]]  # type: ignore[assignment] # made here
    _in_head = True
    _headed: Any = None  # the scope of the last message whose head was complete
    _head_bytes = 0
    _line = b""  # the beginning of the head, as sent
    _length: int | None = None  # of the body; -1: chunked
    _body_bytes = 0  # as sent, with the framing
    _tail = b""  # of the last piece: an empty line may come in parts
    _payload_bytes = 0
    _framing_bytes = 0  # since the last byte of payload
    _serving: Cycle | None = None
    _deaf = False
    _held = b""
    _held_at = 0
    # What the last sweep saw, and for how long it has been so.
    _turn: tuple[Turn, Any] = (Turn.OURS, None)
    _moved: Any = None
    _waited_s = 0.0
    _quiet_s = 0.0
    _resumed = 0

    # Connection ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; when it is one too many, the one idle longest must go."""
        super().connection_made(transport)
        state = self.server_state
        # Under another server than ours nothing sweeps, and nothing is shared.
        self.wire = state if isinstance(state, Wire) else Wire()
        self.flow = Flow(transport)
        self.wire.waiting[self] = None
        self.wire.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and what it still had to say."""
        self.wire.waiting.pop(self, None)
        self.wire.held_bytes -= len(self._held)
        self._held, self._deaf = b"", True
        if self._serving is not None:  # uvicorn tells the request that came last only
            self._serving.lose()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The client took of its reply: the next of its requests may be served."""
        super().resume_writing()
        self._resumed += 1
        if not self.transport.is_closing():
            self._go_on()

    # Input -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless enough is waiting already."""
        if self._held:
            data = self._held[self._held_at :] + data
            self._release()
            self._hold(data, 0)
        elif self._deaf:
            return
        elif (
            self._in_head
            and not self._head_bytes
            and len(data) <= PIECE_BYTES
            and data.find(_EMPTY_LINE) == len(data) - 4
            and not self._must_wait()
        ):
            self._feed_head(data)
        else:
            self._feed(data, 0)

    def _feed_head(self, data: bytes) -> None:
        """Take one whole head and nothing else: what most requests are."""
        self._line, self._head_bytes, self._tail = data, len(data), b""
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade:
            self._check_upgrade()
        except HttpParserError:
            self._refuse(Refused(400, NOT_HTTP))
        self._start_next()

    def _feed(self, data: bytes, at: int) -> None:
        size = len(data)
        while at < size and not self._deaf:
            if self._in_head and self._must_wait():
                self._hold(data, at)
                break
            end = self._end_of_piece(data, at)
            piece = data if end - at == size else memoryview(data)[at:end]
            try:
                self._parse(piece, end - at)
            except HttpParserUpgrade as upgrade:
                # We stay with HTTP/1.1: what follows is one more request.
                end = at + upgrade.args[0]
                self._check_upgrade()
            except HttpParserError:
                self._refuse(Refused(400, NOT_HTTP))
            whole = data.endswith(_EMPTY_LINE, at, end)
            self._tail = (
                b"" if whole else (self._tail + data[max(at, end - 3) : end])[-3:]
            )
            at = end
        self._start_next()

    def _end_of_piece(self, data: bytes, at: int) -> int:
        if not self._in_head:
            if self._length is None:
                self._length = _length_of(self.headers)
            if self._length >= 0:
                return min(at + self._length - self._payload_bytes, len(data))
        # A head ends in an empty line, and so does a chunked body.
        end = at + PIECE_BYTES
        if self._tail:
            joined = self._tail + data[at : at + 3]
            if (found := joined.find(_EMPTY_LINE)) >= 0:
                return at + found + 4 - len(self._tail)
        found = data.find(_EMPTY_LINE, at, end)
        return found + 4 if found >= 0 else min(end, len(data))

    def _parse(self, piece: bytes | memoryview, size: int) -> None:
        if self._in_head:
            if not self._head_bytes:
                self._line = bytes(piece)
            elif self._head_bytes < _LINE_BYTES:
                self._line += piece
            self._head_bytes += size
            self.parser.feed_data(piece)
            if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
                message = f"the head is over {MAX_HEAD_BYTES} bytes"
                self._refuse(Refused(431, message))
            return
        payload = self._payload_bytes
        self._body_bytes += size
        self.parser.feed_data(piece)
        if self._in_head or self._length != -1:
            return
        moved = self._payload_bytes > payload
        self._framing_bytes = 0 if moved else self._framing_bytes + size
        framing = self._body_bytes - self._payload_bytes
        allowed = MAX_HEAD_BYTES + FRAMING_PER_BYTE * self._payload_bytes
        if self._framing_bytes > MAX_HEAD_BYTES or framing > allowed:
            message = f"trailers or chunk extensions are over {MAX_HEAD_BYTES} bytes"
            self._refuse(Refused(431, message))

    def _check_upgrade(self) -> None:
        # The parser takes the body of such a request for what follows it.
        if _length_of(self.headers):
            self._in_head = False
            message = "a request with a body cannot ask for another protocol (Upgrade)"
            self._refuse(Refused(400, message))

    def _must_wait(self) -> bool:
        return len(self.pipeline) >= MAX_PIPELINED or self.flow.write_paused

    def _hold(self, data: bytes, at: int) -> None:
        self._held, self._held_at = data, at
        self.wire.held_bytes += len(data)
        self.flow.hold()
        if self.wire.holds_too_much:
            self.transport.abort()

    def _release(self) -> None:
        self.wire.held_bytes -= len(self._held)
        self._held = b""
        self.flow.held = False
        self.flow.resume_reading()

    # What the parser found -------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take headers of the head only: a trailer must not add to what was checked."""
        if self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Pass on the target as it was sent, and put the request in the queue."""
        scope: Any = self.scope
        version = self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        target = parse_url(self.url)
        path = target.path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"], scope["query_string"] = target.path, target.query or b""
        earlier = self.cycle
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        self.cycle = cycle = Cycle(self, keep_alive=keep_alive)
        scope["extensions"] = {
            TARGET: {
                "raw": self.url,
                "head_too_large": len(self.headers) > MAX_HEADERS
                or self._head_bytes > MAX_HEAD_BYTES,
                "malformed": self._is_malformed(),
            },
            wire.CYCLE: cycle,
        }
        self._in_head, self._headed = False, self.scope
        self._length = None
        self._body_bytes = self._payload_bytes = self._framing_bytes = 0
        if earlier is not None and not earlier.response_complete:
            self.flow.pause_reading()
        # Not started yet: what came with it may show that the message is malformed.
        self.pipeline.appendleft((cycle, self.app))

    def _is_malformed(self) -> bool:
        """Tell of what the parser takes and others read differently, or not at all."""
        # Several spaces, HTTP/0.9, HTTP/2.0, RTSP/1.0.
        if len(self.url) <= MAX_TARGET_BYTES and not _LINE.match(self._line):
            return True
        # To a reader of HTTP/1.0 the chunks are the next request (RFC 9112, 6.1).
        return self.scope["http_version"] == "1.0" and any(
            name == b"transfer-encoding" for name, _ in self.headers
        )

    def on_body(self, body: bytes) -> None:
        """Count what is not framing."""
        self._payload_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next byte belongs to another head."""
        self._in_head, self._head_bytes = True, 0
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    # One request after the other -------------------------------------------------------

    def _start_next(self) -> None:
        # Nor while its client leaves replies untaken: it would hold a place in the
        # application until the client moves.
        if self._serving is None and self.pipeline and not self.flow.write_paused:
            if self.transport.is_closing():
                return
            self._serving, app = self.pipeline.pop()
            self.wire.waiting.pop(self, None)
            self._start_asgi_task(self._serving, app)

    def _go_on(self) -> None:
        self._start_next()
        if self._held and not self._must_wait():
            data, at = self._held, self._held_at
            self._release()
            self._feed(data, at)

    def on_response_complete(self) -> None:
        """Serve what is next; idle connections are found by the sweep, without a timer."""
        self.server_state.total_requests += 1
        self._serving = None
        self.wire.waiting[self] = None
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline or self._held:
                self._go_on()

    # Replies of our own ----------------------------------------------------------------

    def _refuse(self, error: Refused) -> None:
        """Answer the message that is being received, and read nothing more."""
        self._deaf = True
        self.flow.hold()
        broken = None if self._in_head else self.cycle
        if self.pipeline and self.pipeline[0][0] is broken:
            self.pipeline.popleft()
        earlier = self.pipeline[0][0] if self.pipeline else self._serving
        if earlier is not None and earlier is not broken:
            # Those before it get their answers, and nothing follows the last.
            earlier.keep_alive = False
            return
        # A reply that has begun must not get this one mixed into it, nor be followed by it.
        if broken is None or not broken.response_started:
            self._write_problem(error)
        if broken is not None and not broken.response_complete:
            broken.lose()
        self.transport.close()

    def _write_problem(self, error: Refused) -> None:
        trace_id = new_trace_id()
        status, headers, body = render(error, trace_id)
        sent: list[tuple[bytes, bytes]] = [
            *self.server_state.default_headers,
            *headers,
            *SECURITY_HEADERS,
            (b"x-trace-id", trace_id.encode()),
            (b"connection", b"close"),
        ]
        lines = [name + b": " + value + b"\r\n" for name, value in sent]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        if self._serving is not None:  # the edge notes it, once
            cast("dict[str, Any]", self._serving.scope)[wire.REFUSED] = status, trace_id
        elif self.wire.note_refusal is not None:
            method, path = self._asked()
            self.wire.note_refusal(method, path, status, self.client, trace_id)

    def _asked(self) -> tuple[str, bytes]:
        """Return method and path of the message that is being received, where known."""
        # Nothing of the next one was read, or nothing that names a target.
        if (self._in_head and self.scope is self._headed) or not self.url:
            return "", b""
        method = self.parser.get_method().decode("ascii")
        # Another form than a path may hold a password, or the name of another host.
        path = self.url if self.url.startswith(b"/") else b""
        return method, path.partition(b"?")[0].partition(b"#")[0]

    # Time ------------------------------------------------------------------------------

    def check_deadlines(self, step_s: float) -> None:
        """Count ``step_s`` seconds more; close when the client took too many of them."""
        unsent = self.transport.get_write_buffer_size()
        turn = (Turn.REPLY if unsent else self._whose_turn(), self.cycle)
        moved = (unsent, self._resumed) if unsent else self._body_bytes
        if turn != self._turn:
            self._turn, self._moved = turn, moved
            self._waited_s = self._quiet_s = 0.0
            return
        self._waited_s += step_s
        self._quiet_s = self._quiet_s + step_s if moved == self._moved else 0.0
        self._moved = moved
        self._cut_late(turn[0], self.wire.deadlines)

    def _cut_late(self, turn: Turn, allowed: Deadlines) -> None:
        waited_s, quiet_s = self._waited_s, self._quiet_s
        if turn is Turn.REPLY and quiet_s >= allowed.write_idle_s:
            self.transport.abort()
        elif turn is Turn.IDLE and waited_s >= allowed.keep_alive_s:
            self.transport.close()
        elif turn is Turn.HEAD and waited_s >= allowed.head_s:
            if self.scope is not self._headed:
                message = f"the head was not complete after {allowed.head_s:g} s"
                self._refuse(Refused(408, message))
            else:
                self.transport.close()
        elif turn is Turn.BODY and (
            quiet_s >= allowed.body_idle_s
            or (
                waited_s >= allowed.body_idle_s
                and self._body_bytes < waited_s * allowed.body_bytes_per_s
            )
        ):
            self._refuse(Refused(408, "the body came too slowly, or not at all"))

    def _whose_turn(self) -> Turn:
        served = self._serving
        if self.transport.is_closing():
            return Turn.OURS
        if served is not None:
            ours = (
                self._in_head
                or served is not self.cycle
                or served.response_started
                or served.waiting_for_100_continue
                or self.flow.read_paused
            )
            return Turn.OURS if ours else Turn.BODY
        if self.pipeline or self._held:
            return Turn.OURS
        if not self._in_head:
            return Turn.BODY
        begun = self.cycle is None or self.scope is not self._headed
        return Turn.HEAD if begun else Turn.IDLE


def _length_of(headers: list[tuple[bytes, bytes]]) -> int:
    """Return the announced length of a body; -1 when it comes in chunks."""
    length = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return -1
        if name == b"content-length":
            length = int(value)  # the parser lets digits through only
    return length
