"""A proxy that harms what a model server answers, in ways that a seed decides.

It stands between a client and a ``ScriptedModel``: a real HTTP/1.1 server on loopback. It
reads the server's whole answer first and then hands it on as the fault says, so where an
answer breaks is exact and the same for a seed. ``given`` tells what each request met.

In a test::

    async with ScriptedModel(rules) as model, FaultProxy(model, seed=7) as proxy:
        ...  # proxy.base_url, proxy.given
"""

import asyncio
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from tests.servers.scripted_model import ScriptedModel


class Kind(StrEnum):
    """What is done to an answer."""

    NONE = "none"
    DELAY = "delay"
    """All of it comes late."""
    CUT = "cut"
    """The connection is reset after some bytes."""
    END = "end"
    """The connection is closed after some bytes, as if that were all."""
    SILENT_END = "silent_end"
    """The same, and no framing tells that it was not: the length is that of the connection."""
    HANG_UP = "hang_up"
    """The server answers, and the connection is closed without a byte of it."""
    HALF_OPEN = "half_open"
    """Nothing more comes after some bytes; the connection stays."""
    GARBAGE = "garbage"
    """An event that is no JSON stands between two others; a whole answer is no JSON."""
    SPOILT = "spoilt"
    """An event is no JSON any more; in a whole answer one byte is no text."""
    BAD_FRAMING = "bad_framing"
    """In the place of a chunk's size stands something else."""
    ODD_USAGE = "odd_usage"
    """The counts come with the second event, and the pieces end anywhere."""
    BUSY = "busy"
    """429 with Retry-After; the server is not asked."""
    BROKEN = "broken"
    """500; the server is not asked."""
    DRIP = "drip"
    """A few bytes at a time."""


HARMLESS = frozenset({Kind.NONE, Kind.DELAY, Kind.ODD_USAGE, Kind.DRIP})
"""Whoever waits gets the whole answer."""
STOPS = frozenset(
    {Kind.CUT, Kind.END, Kind.SILENT_END, Kind.HALF_OPEN, Kind.BAD_FRAMING}
)
"""Only the first bytes of an answer are handed on."""
_TOKENS = re.compile(rb'"usage"\s*:\s*\{')
_NONSENSE = b'data: {"choices": [{"delta": {"content": \xff\xfe\n\n'
_PIECE, _PIECES = 7, 60
_READ_S = 0.03
"""In so long whoever listens has read what was sent."""


@dataclass(kw_only=True)
class Given:
    """What one request met. ``at``: bytes of the body before it happens."""

    kind: Kind
    at: int = 0
    asked: bool = False
    """The server was asked, and bills it."""
    odd_usage: bool = False
    """The counts of a stream came with its second event."""
    was_read: bool = True
    """What was sent could be read before the connection broke; else nobody knows."""
    request: bytes = field(default=b"", compare=False, repr=False)
    sent: bytearray = field(default_factory=bytearray, compare=False, repr=False)
    """Of the body, without framing."""
    whole: bool = field(default=False, compare=False)
    """All of it was sent, and its end."""


class FaultProxy:
    """Listens between ``__aenter__`` and ``__aexit__``.

    ``plan``: the faults of the first requests, in order; those after draw from ``kinds``.
    ``delay_s`` bounds a late answer, ``retry_after_s`` is what a busy one asks for.
    Shares of 1: ``odd``, streams whose counts come early beside another fault; ``at_ends``,
    streams that stop between two events; ``read``, connections that break only after what
    was sent can have been read.
    """

    def __init__(
        self,
        model: ScriptedModel,
        *,
        seed: object = 0,
        plan: Sequence[Kind] = (),
        kinds: Sequence[Kind] = tuple(Kind),
        delay_s: float = 0.2,
        retry_after_s: float = 1,
        odd: float = 0.0,
        at_ends: float = 0.0,
        read: float = 1.0,
    ) -> None:
        self.given: list[Given] = []
        self._model = model
        self._random = random.Random(str(seed))
        self._plan = list(plan)
        self._kinds = list(kinds)
        self._delay_s = delay_s
        self._retry_after_s = retry_after_s
        self._odd, self._at_ends, self._read = odd, at_ends, read
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def base_url(self) -> str:
        """Stands in for the model's."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def anthropic_url(self) -> str:
        """Stands in for the model's."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test ends
        finally:
            self._open.discard(task)
            with suppress(RuntimeError):
                writer.transport.abort()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Serve one request; tell whether the connection is still of use."""
        request = await _message(reader)
        if not request:
            return False
        given = Given(kind=self._next(), request=request)
        self.given.append(given)
        if given.kind in {Kind.BUSY, Kind.BROKEN}:
            writer.write(self._refusal(given.kind))
            await writer.drain()
            return True
        given.asked = True
        head, body = await self._ask(request)
        if given.kind is Kind.HANG_UP:
            return False
        streamed = b"text/event-stream" in head.lower()
        draw = self._random
        if streamed and (given.kind is Kind.ODD_USAGE or draw.random() < self._odd):
            moved = _usage_moved(body)
            given.odd_usage, body = moved != body, moved
        if given.kind in {Kind.GARBAGE, Kind.SPOILT} and not streamed:
            at = draw.randrange(len(body))
            spoilt = body[:at] + b"\xff" + body[at + 1 :]
            body = spoilt if given.kind is Kind.SPOILT else b"<html>" + body
        elif given.kind in {Kind.GARBAGE, Kind.SPOILT}:
            keeps = given.kind is Kind.GARBAGE
            body = _garbled(body, draw.randrange(len(body)), keeps=keeps)
        given.at = draw.randrange(len(body)) if body else 0
        if streamed and draw.random() < self._at_ends:
            given.at = draw.choice(_ends(body))
        given.was_read = draw.random() < self._read
        return await self._answer(given, head, body, writer)

    def _next(self) -> Kind:
        return self._plan.pop(0) if self._plan else self._random.choice(self._kinds)

    def _refusal(self, kind: Kind) -> bytes:
        text = b'{"error": {"message": "the proxy refuses", "type": "scripted"}}'
        status = b"500 Broken"
        if kind is Kind.BUSY:
            status = b"429 Busy\r\nRetry-After: %g" % self._retry_after_s
        return (
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (status, len(text), text)
        )

    async def _ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Put it to the model; return status and headers, and the body without framing."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._model.port)
        try:
            first, rest = request.split(b"\r\n", 1)
            writer.write(first + b"\r\nConnection: close\r\n" + rest)
            await writer.drain()
            raw = await reader.read()
        finally:
            writer.close()
        head, _, body = raw.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            body = _without_chunks(body)
        lines = [
            line
            for line in head.split(b"\r\n")
            if line.partition(b":")[0].lower()
            not in {b"transfer-encoding", b"content-length", b"connection"}
        ]
        return b"\r\n".join(lines), body

    async def _answer(
        self, given: Given, head: bytes, body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        kind = given.kind
        if kind is Kind.DELAY:
            await asyncio.sleep(self._random.uniform(0, self._delay_s))
        framed = kind is not Kind.SILENT_END
        framing = b"Transfer-Encoding: chunked" if framed else b"Connection: close"
        writer.write(head + b"\r\n" + framing + b"\r\n\r\n")
        small = given.odd_usage or kind is Kind.DRIP
        for piece in self._pieces(body[: given.at] if kind in STOPS else body, small):
            given.sent += piece
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if framed else piece)
            await writer.drain()
            # What is written at once may be read at once.
            await asyncio.sleep(0.0005 if kind is Kind.DRIP else 0)
        if kind not in STOPS:
            given.whole = True
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return True
        if kind is Kind.HALF_OPEN:
            await asyncio.sleep(3600)
        if given.was_read:
            await asyncio.sleep(_READ_S)
        if kind is Kind.CUT:
            writer.transport.abort()
            return False
        if kind is Kind.BAD_FRAMING:
            writer.write(b"zz\r\nnonsense\r\n")
        await writer.drain()
        writer.close()
        return False

    def _pieces(self, body: bytes, small: bool) -> list[bytes]:
        pieces, start = [], 0
        most = max(_PIECE, 2 * len(body) // _PIECES) if small else 2048
        while start < len(body):
            size = self._random.randint(1, most)
            pieces.append(body[start : start + size])
            start += size
        return pieces


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Read one request with a known length; nothing at the end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = re.search(rb"(?i)content-length:\s*(\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


def _without_chunks(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.partition(b";")[0] or b"0", 16)
        if not length:
            break
        found, body = found + body[:length], body[length + 2 :]
    return found


def _events(body: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in body.split(b"\n\n") if event.strip()]


def _ends(body: bytes) -> list[int]:
    """Return where each event ends."""
    ends, seen = [], 0
    for event in _events(body):
        seen += len(event)
        ends.append(seen)
    return ends


def _garbled(body: bytes, at: int, *, keeps: bool) -> bytes:
    """Put an event without sense in front (or in the place) of the one that holds ``at``."""
    found, seen = b"", 0
    for event in _events(body):
        here = seen <= at < seen + len(event)
        found += _NONSENSE if here else b""
        found += event if keeps or not here else b""
        seen += len(event)
    return found


def _usage_moved(body: bytes) -> bytes:
    """Put the last event with counts behind the first event, where it stands alone."""
    events = _events(body)
    counts = [n for n, event in enumerate(events) if _TOKENS.search(event)]
    if not counts or b'"choices": []' not in events[counts[-1]]:
        return body
    moved = events.pop(counts[-1])
    return b"".join([*events[:1], moved, *events[1:]])
