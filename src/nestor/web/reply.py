"""How a reply is written on the wire.

uvicorn checks each header with two regular expressions and writes head and body apart;
with the ten headers that a reply of ours carries this cost as much as the rest of the
gate. Here all headers are looked at together, and those that never change are one block.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

BLOCK = "nestor.block"
"""Key of ``http.response.start``: header lines as bytes, written as they are."""

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BREAKS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_MANY_NAMES = 256
_NO_BODY = frozenset({204, 304})
_log = logging.getLogger("uvicorn.error")


class Cycle(RequestResponseCycle):
    """One request and its reply, as uvicorn has it, with a faster writer.

    The head of a reply whose length is known waits for the beginning of its body: both
    are one write then. Raises ``RuntimeError`` for headers that would break the message.
    """

    _known_names: set[bytes] = set()  # noqa: RUF012 - shared on purpose: names repeat

    def __init__(self, protocol: Any, *, keep_alive: bool) -> None:
        super().__init__(
            scope=protocol.scope,
            transport=protocol.transport,
            flow=protocol.flow,
            logger=_log,
            access_logger=_log,
            access_log=False,
            default_headers=protocol.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=protocol.expect_100_continue,
            keep_alive=keep_alive,
            on_response=protocol.on_response_complete,
        )
        self._head = b""
        self._gone: Callable[[], object] | None = None

    def when_gone(self, tell: Callable[[], object]) -> None:
        """Call ``tell`` when the client leaves before it has the whole reply."""
        if self.disconnected:
            tell()
        self._gone = tell

    def lose(self) -> None:
        """The client is gone."""
        self.disconnected = True
        self.message_event.set()
        if self._gone is not None and not self.response_complete:
            self._gone()

    async def send(self, message: Any) -> None:
        """Write one message of the application (ASGI)."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"http.response.start expected, not {kind}")
            self._start(message)
        elif self.response_complete or kind != "http.response.body":
            raise RuntimeError(f"{kind} is not expected here")
        else:
            self._body(message.get("body", b""), message.get("more_body", False))

    def _start(self, message: Any) -> None:
        status: int = message["status"]
        lines = [STATUS_LINE[status]]
        names, values = [], []
        for name, value in (*self.default_headers, *message.get("headers", ())):
            if name in _OURS and not self._mind(name, value):
                continue
            names.append(name)
            values.append(value)
            lines += (name, b": ", value, b"\r\n")
        self._check(names, values)
        lines.append(message.get(BLOCK, b""))
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if (
            self.chunked_encoding is None
            and self.scope["method"] != "HEAD"
            and status not in _NO_BODY
        ):
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        self.response_started = True
        self.waiting_for_100_continue = False
        head = b"".join(lines)
        if self.chunked_encoding:
            self.transport.write(head)
        else:
            self._head = head

    def _mind(self, name: bytes, value: bytes) -> bool:
        """Take note of what decides how the body is written; False: not to be sent."""
        if name == b"content-length":
            self.expected_content_length = int(value)
            self.chunked_encoding = False
        elif name == b"transfer-encoding":
            self.expected_content_length = 0
            self.chunked_encoding = True
        else:
            self.keep_alive = self.keep_alive and b"close" not in value.lower()
            return False
        return True

    def _check(self, names: list[bytes], values: list[bytes]) -> None:
        if _BREAKS.search(b"\t".join(values)):
            raise RuntimeError("a reply header's value holds a control character")
        known = self._known_names
        for name in names:
            if name not in known:
                if not _NAME.fullmatch(name) or name != name.lower():
                    raise RuntimeError("a reply header has an invalid name")
                if len(known) < _MANY_NAMES:
                    known.add(name)

    def _body(self, body: bytes, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            body, self.expected_content_length = b"", 0
        if self.chunked_encoding:
            parts = [b"%x\r\n" % len(body), body, b"\r\n"] if body else []
            if not more:
                parts.append(b"0\r\n\r\n")
            body = b"".join(parts)
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the body is longer than its Content-Length")
            if self._head:
                body, self._head = self._head + body, b""
        if body:
            self.transport.write(body)
        if not more:
            self._end()

    def _end(self) -> None:
        if self.expected_content_length:
            raise RuntimeError("the body is shorter than its Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


_OURS = frozenset({b"content-length", b"transfer-encoding", b"connection"})
