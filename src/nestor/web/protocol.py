"""The wire in front of ``web.edge``: what only the HTTP parser sees.

uvicorn hands an application a parsed path; the request-target as it was sent, the size of
the head and what a malformed message is answered with live here. Receive deadlines belong
here too: this class sees each byte come in.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from nestor.model.ids import new_trace_id
from nestor.web.errors import Refused, render
from nestor.web.headers import SECURITY_HEADERS

MAX_HEAD_BYTES = 32 << 10
MAX_HEADERS = 100
MAX_CONNECTIONS = 1_024
"""Open at one time on one port; more are closed without an answer."""

TARGET = "nestor.target"
"""Key in ``scope["extensions"]``: ``{"raw": the request-target, byte for byte}``."""


class EdgeProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with a bounded head and problem replies."""

    _in_head = True
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Turn a connection away when too many are open."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a head that does not end is cut at ``MAX_HEAD_BYTES``."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        too_long = self._in_head and self._head_bytes > MAX_HEAD_BYTES
        if too_long and not self.transport.is_closing():
            self._refuse(Refused(431, f"the head is over {MAX_HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        """Pass on the target as it was sent, then start the application."""
        self._in_head = False
        size = len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers)
        self.scope["extensions"] = {
            TARGET: {
                "raw": self.url,
                "head_too_large": len(self.headers) > MAX_HEADERS
                or size > MAX_HEAD_BYTES,
            }
        }
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take headers of the head only: a trailer must not add to what was checked."""
        if self._in_head:
            super().on_header(name, value)

    def on_message_complete(self) -> None:
        """The next byte belongs to another head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not read."""
        self._refuse(Refused(400, msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing here speaks another protocol; the request was answered as HTTP/1.1."""

    def _refuse(self, error: Refused) -> None:
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy and self._in_head:
            # An earlier request is being served: it gets its answer, and nothing follows.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        trace_id = new_trace_id()
        status, headers, body = render(error, trace_id)
        # A reply that has begun must not get this one mixed into it.
        if not busy or not self.cycle.response_started:
            lines = [STATUS_LINE[status]]
            sent: list[tuple[bytes, bytes]] = [
                *self.server_state.default_headers,
                *headers,
                *SECURITY_HEADERS,
                (b"x-trace-id", trace_id.encode()),
                (b"connection", b"close"),
            ]
            lines += [name + b": " + value + b"\r\n" for name, value in sent]
            self.transport.write(b"".join([*lines, b"\r\n", body]))
        if busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def target_of(scope: Any) -> dict[str, Any]:
    """Return what the protocol noted; from the parsed parts under another server."""
    noted = (scope.get("extensions") or {}).get(TARGET)
    if noted is not None:
        return dict(noted)
    query = scope["query_string"]
    raw = scope["raw_path"] + (b"?" + query if query else b"")
    return {"raw": raw, "head_too_large": False}
