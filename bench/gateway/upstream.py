"""A scripted stand-in for an OpenAI-compatible server: no model answers here.

    python -m bench.gateway.upstream [--gap-ms 1]

One process for every system that is measured; the first part of the path says which one
asks (``/nestor/v1/chat/completions``). Prints its port. ``GET /counts`` and
``GET /records/SYSTEM`` say what it saw. A raw protocol, so that it costs little beside
what is measured.
"""

import argparse
import asyncio
from collections import defaultdict
from typing import Any

import httptools
import msgspec
import uvloop
from bench.gateway import traffic

_KEY = f"Bearer {traffic.UPSTREAM_KEY}".encode()
_JSON_HEAD = (
    b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_REASONS = {200: b"OK", 401: b"Unauthorized", 404: b"Not Found", 422: b"No Mark"}
_CREATED = 1_700_000_000
FAULTY_EVENTS = 12
"""Events of a stream before it is cut."""


class Asked(msgspec.Struct):
    """What is looked at of a request; the rest must be JSON all the same."""

    model: str
    messages: list[msgspec.Raw]
    stream: bool = False


class Seen:
    """What one system brought here, by serial number."""

    def __init__(self) -> None:
        self.requests = 0
        self.streams = 0
        self.body_bytes = 0
        self.answered: list[int] = []
        """The whole answer, usage included, was written."""
        self.cut_by_caller: list[int] = []
        """The other side hung up before."""
        self.faults: dict[str, list[int]] = defaultdict(list)
        self.failed_once: set[int] = set()

    def counts(self) -> dict[str, int]:
        """Return the numbers alone."""
        return {
            "requests": self.requests,
            "streams": self.streams,
            "body_bytes": self.body_bytes,
            "answered": len(self.answered),
            "input_tokens": sum(self.answered),
            "output_tokens": sum(map(traffic.answer_tokens, self.answered)),
            "cut_by_caller": len(self.cut_by_caller),
            "faults": sum(map(len, self.faults.values())),
        }

    def records(self) -> dict[str, Any]:
        """Return the serial numbers."""
        return {
            "answered": self.answered,
            "cut_by_caller": self.cut_by_caller,
            "faults": self.faults,
        }


def _whole(serial: int) -> bytes:
    return _WHOLE % (serial, serial, traffic.answer_tokens(serial), _total(serial))


def _total(serial: int) -> int:
    return serial + traffic.answer_tokens(serial)


_USAGE = (
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0}}'
)
_WHOLE = (
    b'{"id":"chatcmpl-%08d","object":"chat.completion","created":1700000000,'
    b'"model":"stand-in-1","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":'
    + msgspec.json.encode(traffic.ANSWER).replace(b"%", b"%%")
    + b',"refusal":null},"logprobs":null,"finish_reason":"stop"}],'
    + _USAGE
    + b',"system_fingerprint":"fp_stand_in"}'
)


def _event(choices: list[dict[str, Any]]) -> bytes:
    body = {
        "id": "chatcmpl-@",
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": traffic.UPSTREAM_MODEL,
        "system_fingerprint": "fp_stand_in",
        "choices": choices,
    }
    text = msgspec.json.encode(body).replace(b"%", b"%%").replace(b"@", b"%08d")
    return b"data: " + text + b"\n\n"


def _choice(delta: dict[str, str], finish: str | None = None) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]


_LAST = _event([]).replace(b'"choices":[]', b'"choices":[],' + _USAGE)
_EVENTS = [
    _event(_choice({"role": "assistant", "content": ""})),
    *(_event(_choice({"content": traffic.piece(n)})) for n in range(traffic.PIECES)),
    _event(_choice({}, "stop")),
]


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


class Connection(asyncio.Protocol):
    """One connection of a system; one request after the other."""

    def __init__(self, upstream: "Upstream") -> None:
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._body: list[bytes] = []
        self._url = b""
        self._key = b""
        self._timer: asyncio.TimerHandle | None = None
        self._streaming: tuple[Seen, int] | None = None
        self._sent = 0
        self._last = 0

    # asyncio
    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._streaming is not None:
            seen, serial = self._streaming
            seen.cut_by_caller.append(serial)
            self._streaming = None

    # httptools
    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self._key = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        url, key, body = self._url, self._key, b"".join(self._body)
        self._url, self._key = b"", b""
        self._body.clear()
        if url == b"/counts":
            self._say(200, msgspec.json.encode(self._upstream.counts()))
        elif url.startswith(b"/records/"):
            seen = self._upstream.seen[url[9:].decode()]
            self._say(200, msgspec.json.encode(seen.records()))
        elif not url.endswith(b"/chat/completions"):
            self._say(404, b'{"error":{"message":"no such path"}}')
        elif key != _KEY:
            self._say(401, b'{"error":{"message":"not the key of the upstream"}}')
        else:
            self._answer(self._upstream.seen[url.split(b"/")[1].decode()], body)

    def _answer(self, seen: Seen, body: bytes) -> None:
        asked = msgspec.json.decode(body, type=Asked)
        mark = traffic.MARK.search(asked.messages[-1])
        if mark is None:
            self._say(422, b'{"error":{"message":"no mark in the last message"}}')
            return
        serial, fault = int(mark[1]), mark[2].decode()
        seen.requests += 1
        seen.streams += asked.stream
        seen.body_bytes += len(body)
        # A retry of the same request is answered.
        if fault and serial not in seen.failed_once:
            seen.failed_once.add(serial)
            seen.faults[fault].append(serial)
            self._fail(fault, serial, stream=asked.stream)
            return
        if asked.stream:
            self._stream(seen, serial, len(_EVENTS))
            return
        seen.answered.append(serial)
        self._say(200, _whole(serial))

    def _fail(self, fault: str, serial: int, *, stream: bool) -> None:
        """``error`` and ``busy``: a status; ``drop``: no answer; ``cut``: half of one."""
        if fault in {"error", "busy"}:
            status = 500 if fault == "error" else 503
            self._say(status, b'{"error":{"message":"as asked for","type":"server"}}')
        elif fault == "drop":
            self._transport.close()
        elif stream:
            self._stream(None, serial, FAULTY_EVENTS)
        else:
            body = _whole(serial)
            head = _JSON_HEAD % (200, b"OK", len(body))
            self._transport.write(head + body[: len(body) // 2])
            self._transport.close()

    def _say(self, status: int, body: bytes) -> None:
        head = _JSON_HEAD % (status, _REASONS.get(status, b"Error"), len(body))
        self._transport.write(head + body)

    def _stream(self, seen: Seen | None, serial: int, last: int) -> None:
        self._streaming = None if seen is None else (seen, serial)
        self._sent, self._last = 0, last
        self._transport.write(_STREAM_HEAD + _chunk(_EVENTS[0] % serial))
        self._next(serial)

    def _next(self, serial: int) -> None:
        self._timer = self._loop.call_later(self._upstream.gap_s, self._piece, serial)

    def _piece(self, serial: int) -> None:
        self._timer = None
        if self._transport.is_closing():
            return
        self._sent += 1
        if self._sent < self._last:
            self._transport.write(_chunk(_EVENTS[self._sent] % serial))
            self._next(serial)
            return
        if self._streaming is None:  # cut: without usage, without an end
            self._transport.close()
            return
        seen, _ = self._streaming
        self._streaming = None
        tokens = traffic.answer_tokens(serial)
        usage = _chunk(_LAST % (serial, serial, tokens, _total(serial)))
        seen.answered.append(serial)
        self._transport.write(usage + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


class Upstream:
    """What all connections share."""

    def __init__(self, gap_s: float) -> None:
        self.gap_s = gap_s
        self.seen: dict[str, Seen] = defaultdict(Seen)

    def counts(self) -> dict[str, dict[str, int]]:
        return {system: seen.counts() for system, seen in self.seen.items()}


async def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gap-ms", type=float, default=1.0)
    upstream = Upstream(parser.parse_args().gap_ms / 1000)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(upstream), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
