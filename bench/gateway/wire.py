"""One kept-alive connection of the load generator, and what it checks of an answer."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httptools
import msgspec
from bench.gateway import traffic


class Usage(msgspec.Struct):
    """Tokens, as OpenAI's servers say them."""

    prompt_tokens: int
    completion_tokens: int


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None


class Reply(msgspec.Struct):
    """A whole answer, or one event of a stream."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_reply = msgspec.json.Decoder(Reply)


def fault_of_usage(usage: Usage | None, serial: int) -> str:
    """Say what is wrong with the tokens that were told; empty: nothing."""
    right = Usage(serial, traffic.answer_tokens(serial))
    return "" if usage == right else f"usage is {usage}, not {right}"


def fault_of_whole(body: bytes, serial: int) -> str:
    """Say what is wrong with a whole answer; empty: nothing."""
    try:
        reply = _reply.decode(body)
    except msgspec.DecodeError as error:
        return f"no answer: {error}"
    message = reply.choices[0].message if reply.choices else None
    if message is None or message.content != traffic.ANSWER:
        return "another text"
    return fault_of_usage(reply.usage, serial)


def fault_of_stream(body: bytes, serial: int) -> str:
    """Say what is wrong with the events of a stream; empty: nothing."""
    *events, last, after = [b"", *body.split(b"\n\n")]
    if last != b"data: [DONE]" or after:
        return "the last event is not [DONE]"
    texts, usage = [], None
    for event in events:
        if not event.startswith(b"data: "):
            continue  # a comment
        try:
            reply = _reply.decode(event[6:])
        except msgspec.DecodeError as error:
            return f"no event: {error}"
        if reply.error is not None:
            return "an event of an error"
        usage = reply.usage or usage
        delta = reply.choices[0].delta if reply.choices else None
        if delta is not None and delta.content:
            texts.append(delta.content)
    if len(texts) != traffic.PIECES or "".join(texts) != traffic.STREAMED:
        return f"another text, in {len(texts)} pieces of {traffic.PIECES}"
    return fault_of_usage(usage, serial)


class Answered(msgspec.Struct):
    """How one request ended, as its client saw it. Seconds."""

    serial: int
    status: int
    body: bytes
    whole: bool
    """False: the connection ended before the answer did."""
    first_s: float
    seconds: float


class Connection(asyncio.Protocol):
    """Sends one request after the other; ``done`` is told how each ended."""

    def __init__(self, done: Callable[["Connection", Answered], None]) -> None:
        self._done = done
        self._parser: Any = None
        self._transport: Any = None
        self._serial: int | None = None
        self._parts: list[bytes] = []
        self._began = self._first = 0.0
        self._leave_after: int | None = None
        self.closed = False

    def send(self, head: bytes, body: bytes, serial: int, leave: int | None) -> None:
        """Send one request; with ``leave``, hang up after that many reads of its answer."""
        self._serial, self._leave_after = serial, leave
        self._parts.clear()
        self._parser = httptools.HttpResponseParser(self)
        self._began, self._first = time.perf_counter(), 0.0
        self._transport.write(
            b"%bcontent-length: %d\r\n\r\n" % (head, len(body)) + body
        )
        if leave == 0:
            self.hang_up()

    def hang_up(self) -> None:
        """Leave at once."""
        self._transport.abort()

    # asyncio
    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._leave_after is not None:
            self._leave_after -= 1
            if self._leave_after <= 0:
                self.hang_up()
                return
        if not self._first:
            self._first = time.perf_counter()
        if self._parser is not None:
            self._parser.feed_data(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.closed = True
        if self._serial is not None:
            self._end(whole=False)

    # httptools
    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._end(whole=True)

    def _end(self, *, whole: bool) -> None:
        serial, self._serial = self._serial, None
        assert serial is not None
        now = time.perf_counter()
        status = self._parser.get_status_code() if self._first else 0
        first = (self._first or now) - self._began
        body = b"".join(self._parts)
        answered = Answered(serial, status, body, whole, first, now - self._began)
        self._done(self, answered)


def head_of(port: int, path: str, key: str) -> bytes:
    """Return the head of a request, without its length."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
        "user-agent: bench\r\n"
    ).encode()
