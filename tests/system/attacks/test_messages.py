"""Attacks M: messages that two readers would take for different things, on every port.

Each is built around a request that would leave a trace, and another one follows it on
the same connection: neither may be executed, and the connection is closed.
"""

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from tests.system.attacks.attacked import LAYERS, Attacked, Talk, hear

pytestmark = [pytest.mark.heavy, pytest.mark.alone]

SAFE = {400, 405, 411, 413, 414, 421, 431, 501, 505}
Build = Callable[["Bad"], bytes]


class Bad:
    """Builds the malformed messages of one layer."""

    def __init__(self, stack: Attacked, layer: str) -> None:
        self.stack = stack
        self.layer = layer
        self.line, self.body = stack.effect(layer)

    def head(self, *lines: str, end: str = "HTTP/1.1", host: bool = True) -> bytes:
        """A head with these headers and no length of its own."""
        name = "127.0.0.1:PORT" if host else None
        line = f"{self.line} {end}".strip()
        return self.stack.request(self.layer, line, *lines, host=name, close=False)

    def whole(self, *lines: str, end: str = "HTTP/1.1", host: bool = True) -> bytes:
        """The same with the right length, and its body."""
        return self.head(*lines, f"Content-Length: {len(self.body)}", end=end, host=host) + self.body  # fmt: skip

    def chunked(self, *lines: str, chunks: bytes | None = None) -> bytes:
        """The same in chunks; ``chunks``: others than the right ones."""
        right = b"%x\r\n%s\r\n" % (len(self.body), self.body) if self.body else b""
        sent = right + b"0\r\n\r\n" if chunks is None else chunks
        return self.head(*lines, "Transfer-Encoding: chunked") + sent

    def one_chunk(self, size: bytes, *, after: bytes = b"\r\n") -> bytes:
        """In one chunk whose size is written so."""
        sent = size + b"\r\n" + (self.body or b"{}") + after + b"0\r\n\r\n"
        return self.chunked(chunks=sent)

    @property
    def size(self) -> int:
        return len(self.body or b"{}")

    @property
    def smuggled(self) -> bytes:
        return self.stack.smuggled(self.layer)


def _edit(old: bytes, new: bytes) -> Build:
    """A whole request in which some bytes are others."""

    def build(bad: Bad) -> bytes:
        whole = bad.whole("A: b", "Connection: keep-alive")
        assert whole.count(old) >= 1, old
        return whole.replace(old, new, 1)

    return build


MESSAGES: dict[str, Build] = {
    "m1 length and chunked": lambda b: b.head(
        f"Content-Length: {len(b.body)}", "Transfer-Encoding: chunked"
    ) + b"0\r\n\r\n",
    "m1 chunked and length": lambda b: b.chunked("Content-Length: 5"),
    "m1 length 0 and chunked": lambda b: b.head(
        "Content-Length: 0", "Transfer-Encoding: chunked"
    ) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(b.smuggled), b.smuggled),
    "m2 bare LF": lambda b: b.whole().replace(b"\r\n", b"\n"),
    "m2 bare LF after one header": _edit(b"A: b\r\n", b"A: b\n"),
    "m2 bare LF after the request line": _edit(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    "m2 bare LF at the end of the head": lambda b: b.head("A: b")[:-2] + b"\n",
    "m2 bare CR": _edit(b"A: b\r\n", b"A: b\rX-API-Key: x\r\n"),
    "m2 CR CR LF": _edit(b"A: b\r\n", b"A: b\r\r\n"),
    "m3 folded": _edit(b"A: b\r\n", b"A: b\r\n c\r\n"),
    "m3 folded with a tab": _edit(b"A: b\r\n", b"A: b\r\n\tContent-Length: 0\r\n"),
    "m3 folded first": _edit(b"Host:", b" A: b\r\nHost:"),
    "m3 folded length": _edit(b"Content-Length:", b"Content-Length:\r\n "),
    "m4 no host": lambda b: b.whole(host=False),
    "m4 no host in 1.0": lambda b: b.whole(host=False, end="HTTP/1.0"),
    "m4 empty host": _edit(b"Host: 127.0.0.1", b"Host:\r\nB: "),
    "m5 two hosts": lambda b: b.whole("Host: evil.com"),
    "m5 two equal hosts": lambda b: b.whole("Host: 127.0.0.1:PORT"),
    "m5 two hosts in one": lambda b: b.whole("Host: 127.0.0.1:PORT, evil", host=False),
    "m5 three hosts, other case": lambda b: b.whole("HOST: localhost", "hOsT: evil"),
    "m6 70 kB header": lambda b: b.whole("A: " + "b" * 70_000),
    "m6 70 kB name": lambda b: b.whole("A" * 70_000 + ": b"),
    "m6 70 kB in seven": lambda b: b.whole(*[f"A{n}: " + "b" * 10_000 for n in range(7)]),
    "m7 1,000 headers": lambda b: b.whole(*[f"A{n}: b" for n in range(1_000)]),
    "m7 1,000 equal headers": lambda b: b.whole(*["A: b"] * 1_000),
    "m7 1,000 empty headers": lambda b: b.whole(*["A:"] * 1_000),
    "m8 two lengths": lambda b: b.whole("Content-Length: 5"),
    "m8 two equal lengths": lambda b: b.whole(f"Content-Length: {len(b.body)}"),
    "m8 lengths in a list": lambda b: b.head(f"Content-Length: {b.size}, {b.size}"),
    "m8 other lengths in a list": lambda b: b.head("Content-Length: 0, 5"),
    "m8 length with a semicolon": lambda b: b.head("Content-Length: 0;5"),
    **{
        f"m9 m10 length {value!r}": lambda b, value=value: (  # type: ignore[misc]
            b.head(f"Content-Length: {value}") + (b.body or b"{}")
        )
        for value in ("+2", "-1", "-0", "0x10", "2 2", "1_0", "1e1", "2.0", "", " ", "\xb2",
                      "\u0662".encode().decode("latin-1"), "9" * 20, "9" * 400, "2\t2",
                      "18446744073709551616", "18446744073709551618", "NaN", '"2"', "2,", ",2")
    },
    **{
        f"m11 {value!r}": lambda b, value=value: (  # type: ignore[misc]
            b.head(*(f"Transfer-Encoding: {one}" for one in value)) + b"0\r\n\r\n"
        )
        for value in (["xchunked"], ["chunked, identity"], ["identity"], ["gzip, chunked"],
                      ["chunked", "chunked"], ["Chunked", "CHUNKED"], ["chunked, chunked"],
                      ["identity", "chunked"], ["chunked", "identity"], ["chunked "], [" "],
                      ["\x0bchunked"], ["chunked\x00"], ['"chunked"'], ["chunked;a=b"],
                      [",chunked"], ["chunked,"], ["gzip"], ["chunk"], ["chunkedx"], [""])
    },
    "m11 chunked in 1.0": lambda b: b.head("Transfer-Encoding: chunked", end="HTTP/1.0") + b"0\r\n\r\n",
    "m11 TE written with an underscore": lambda b: b.head(
        "Transfer-Encoding: xchunked", "Transfer_Encoding: chunked"
    ) + b"0\r\n\r\n",
    "m12 Host :": _edit(b"Host:", b"Host :"),
    "m12 a space before Host": _edit(b"Host:", b" Host:"),
    "m12 a tab before the colon": _edit(b"Host:", b"Host\t:"),
    "m12 Content-Length :": _edit(b"Content-Length:", b"Content-Length :"),
    "m12 Transfer-Encoding :": lambda b: b.head("Transfer-Encoding : chunked") + b"0\r\n\r\n",
    "m12 a second line with a space": lambda b: b.whole("A : b"),
    "m13 NUL in a value": _edit(b"A: b", b"A: \x00b"),
    "m13 NUL in a name": _edit(b"A: b", b"A\x00: b"),
    "m13 NUL in the target": _edit(b" /", b" /\x00"),
    "m13 CR in a value": _edit(b"A: b", b"A: b\rc"),
    "m13 CR in a name": _edit(b"A: b", b"A\rB: b"),
    "m13 ESC in a value": _edit(b"A: b", b"A: \x1b[31m"),
    "m13 DEL in a value": _edit(b"A: b", b"A: \x7f"),
    "m13 no colon": _edit(b"A: b", b"A b"),
    "m13 only a colon": _edit(b"A: b", b": b"),
    "m13 quotes in a name": _edit(b"A: b", b'"A": b'),
    "m13 a bracket in a name": _edit(b"A: b", b"A[: b"),
    "m13 UTF-8 in a name": _edit(b"A: b", b"\xc3\xa9: b"),
    "m13 space in a name": _edit(b"A: b", b"A C: b"),
    "m14 no version": lambda b: b.head(end=""),
    "m14 HTTP/0.9": lambda b: b.whole(end="HTTP/0.9"),
    "m14 HTTP/1.2": lambda b: b.whole(end="HTTP/1.2"),
    "m14 HTTP/2.0": lambda b: b.whole(end="HTTP/2.0"),
    "m14 HTTP/11.1": lambda b: b.whole(end="HTTP/11.1"),
    "m14 HTTP/1.1x": lambda b: b.whole(end="HTTP/1.1x"),
    "m14 http/1.1": lambda b: b.whole(end="http/1.1"),
    "m14 HTTP/1.1 twice": lambda b: b.whole(end="HTTP/1.1 HTTP/1.1"),
    "m14 ICE/1.0": lambda b: b.whole(end="ICE/1.0"),
    "m14 RTSP/1.0": lambda b: b.whole(end="RTSP/1.0"),
    "m14 the preface of HTTP/2": lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "m14 a TLS hello": lambda _: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(99) + b"\r\n\r\n",
    "m14 a reply": lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "m14 lower-case method": lambda b: b.whole()[:3].lower() + b.whole()[3:],
    "m14 two spaces": lambda b: b.whole().replace(b" /", b"  /", 1),
    "m14 a tab": lambda b: b.whole().replace(b" /", b"\t/", 1),
    "m14 a tab before the version": _edit(b" HTTP/1.1", b"\tHTTP/1.1"),
    "m14 a space after the version": _edit(b"HTTP/1.1\r\n", b"HTTP/1.1 \r\n"),
    "m14 a space before the method": lambda b: b" " + b.whole(),
    "m14 method with a NUL": lambda b: b.whole().replace(b" /", b"\x00 /", 1),
    "m14 vertical tab": lambda b: b.whole().replace(b" /", b"\x0b/", 1),
    "m14 a BOM": lambda b: b"\xef\xbb\xbf" + b.whole(),
    **{
        f"chunk size {size!r}": lambda b, size=size: b.one_chunk(size)  # type: ignore[misc]
        for size in (b"-2", b"0x2", b"+2", b" 2", b"", b"g", b"2g", b"2_", b"2\x00", b"1" * 17,
                     b"10000000000000002", b"\xb2", b"2.")
    },
    "chunk without an end of line": lambda b: b.one_chunk(b"%x" % b.size, after=b""),
    "chunk with other bytes after it": lambda b: b.one_chunk(b"%x" % b.size, after=b"XX"),
    "chunk with LF after it": lambda b: b.one_chunk(b"%x" % b.size, after=b"\n"),
    "chunk shorter than it is": lambda b: b.one_chunk(b"%x" % (b.size - 1)),
    "chunk size ended by LF": lambda b: b.chunked(chunks=b"%x\n%s\r\n0\r\n\r\n" % (b.size, b.body or b"{}")),
    "chunk size ended by CR": lambda b: b.chunked(chunks=b"%x\r%s\r\n0\r\n\r\n" % (b.size, b.body or b"{}")),
    "chunk extension with LF": lambda b: b.one_chunk(b"%x;a\nb" % b.size),
    "chunk extension with CR": lambda b: b.one_chunk(b"%x;a\rb" % b.size),
    "chunk extension with NUL": lambda b: b.one_chunk(b"%x;a\x00b" % b.size),
    "chunk extension of 1 MB": lambda b: b.one_chunk(b"%x;a=" % b.size + b"b" * 1_000_000),
    "100,000 chunk extensions": lambda b: b.one_chunk(b"%x" % b.size + b";a=b" * 100_000),
    "folded trailer": lambda b: b.chunked(chunks=b"0\r\nA: b\r\n c\r\n\r\n"),
    "trailer with bare LF": lambda b: b.chunked(chunks=b"0\r\nA: b\n\r\n"),
    "trailer without a colon": lambda b: b.chunked(chunks=b"0\r\nA b\r\n\r\n"),
    "trailer of 1 MB": lambda b: b.chunked(chunks=b"0\r\nA: " + b"b" * 1_000_000 + b"\r\n\r\n"),
    "10,000 trailers": lambda b: b.chunked(chunks=b"0\r\n" + b"A: b\r\n" * 10_000 + b"\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
def test_m14_the_control_the_requests_that_are_spoiled_have_an_effect(
    stack: Attacked, layer: str
) -> None:
    for build in (Bad.whole, Bad.chunked):
        bad = Bad(stack, layer)
        before, yes = stack.effects(), stack.said_yes()
        talk = stack.say(layer, build(bad) + bad.smuggled)
        # A body that no handler reads and that has no known end closes the connection.
        assert len(talk.statuses) == (2 if build is Bad.whole or bad.body else 1)
        assert talk.statuses[0] in {200, 201, 202, 204}, talk.raw
        said = stack.said_yes() - yes
        assert stack.effects() != before or said[layer, "GET"] >= 1, said


@pytest.mark.parametrize("case", MESSAGES)
def test_m_a_malformed_message_is_refused_and_nothing_after_it_is_done(
    stack: Attacked, case: str
) -> None:
    messages = {layer: Bad(stack, layer) for layer in LAYERS}
    wrong = []
    with stack.unharmed():
        for layer, bad in messages.items():
            sent = MESSAGES[case](bad)
            talk = stack.say(layer, sent + bad.smuggled + bad.smuggled)
            if not (talk.closed and _is_safe(talk, cut=len(sent) > 30_000)):
                wrong.append(f"{layer}: {talk.raw[:900]!r}")
            assert stack.key.encode() not in talk.raw
        assert not wrong, "\n".join(wrong)


def _is_safe(talk: Talk, *, cut: bool) -> bool:
    """``cut``: closed while we were still sending, which may take the answer with it."""
    if not talk.statuses:
        return cut and not talk.raw
    return (
        len(talk.statuses) == 1
        and talk.statuses[0] in SAFE
        and talk.values("connection") == ["close"]
        and talk.values("content-type") == ["application/problem+json"]
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_m14_what_came_before_a_malformed_message_is_answered_and_no_more(
    stack: Attacked, layer: str
) -> None:
    fine = stack.request(layer, "GET /health/live HTTP/1.1", close=False)
    bad = Bad(stack, layer)
    with stack.unharmed(served=True):
        for spoil in ("m1 length and chunked", "m5 two hosts", "m13 no colon"):
            spoiled = MESSAGES[spoil](bad)
            talk = stack.say(layer, fine + fine + spoiled + bad.smuggled)
            assert talk.statuses[:2] == [200, 200]
            assert set(talk.statuses[2:]) <= {400}
            assert len(talk.statuses) <= 3
            assert talk.closed


def test_m_a_chunk_without_an_end_is_waited_for_and_nothing_is_done(
    stack: Attacked,
) -> None:
    # Where the body is read: elsewhere the head alone decided.
    layers = ("ralph", "coordinator")
    bad = {layer: Bad(stack, layer) for layer in layers}
    with stack.unharmed(), ExitStack() as opened:
        socks = {}
        for layer in layers:
            sock = socket.create_connection(("127.0.0.1", stack.ports[layer]))
            socks[layer] = opened.enter_context(sock)
            sent = bad[layer].one_chunk(b"ffffffffffffffff") + bad[layer].smuggled
            sock.sendall(sent)
        for sock in socks.values():
            talk = hear(sock, 30)
            assert talk.status in {400, 408, 413}
            assert talk.closed


@pytest.mark.parametrize("layer", LAYERS)
def test_m_trailers_change_nothing_of_who_asks_and_where(
    stack: Attacked, layer: str
) -> None:
    line, body = stack.effect(layer)
    chunks = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    trailers = (
        f"Authorization: Bearer {stack.key}\r\nX-API-Key: {stack.key}\r\n"
        f"Host: 127.0.0.1:{stack.ports[layer]}\r\nOrigin: http://evil\r\n\r\n"
    ).encode()
    with stack.unharmed():
        for key, host, status in (
            (None, "127.0.0.1:PORT", {401}),
            ("wrong", "127.0.0.1:PORT", {401}),
            ("admin", "evil.com", {421}),
            ("admin", None, {400}),
        ):
            head = stack.request(
                layer, f"{line} HTTP/1.1", "Transfer-Encoding: chunked",
                key=key, host=host, close=False,
            )  # fmt: skip
            talk = stack.say(layer, head + chunks + b"0\r\n" + trailers, wait_s=2)
            assert talk.status in status
        for framing in (b"Content-Length: 0", b"Transfer-Encoding: chunked"):
            spoiled = chunks + b"0\r\n" + framing + b"\r\n\r\n" + stack.smuggled(layer)
            talk = stack.say(layer, head + spoiled, wait_s=2)
            assert set(talk.statuses) == {400}


@pytest.mark.parametrize("layer", LAYERS)
def test_m_empty_lines_before_a_request_do_not_make_two_of_it(
    stack: Attacked, layer: str
) -> None:
    request = stack.request(layer, "GET /health/live HTTP/1.1")
    for empty in (b"\r\n", b"\r\n\r\n", b"\n", b"\r\n" * 50):
        talk = stack.say(layer, empty + request)
        assert talk.status in {200, 400}
        assert talk.closed
    assert stack.say(layer, b"\r\n" * 100_000, wait_s=20).closed


@pytest.mark.parametrize("layer", LAYERS)
def test_m_an_upgrade_hides_no_request(stack: Attacked, layer: str) -> None:
    line, body = stack.effect(layer)
    for protocol in ("websocket", "h2c", "TLS/1.0", "x"):
        upgrade = ("Connection: Upgrade", f"Upgrade: {protocol}")
        with stack.unharmed():
            hidden = stack.request(
                layer, f"{line} HTTP/1.1", *upgrade, body=body or b"{}", close=False
            )
            talk = stack.say(layer, hidden + stack.smuggled(layer))
            assert talk.status == 400
            assert talk.closed
        # Without a body it is a request like any other, and so is what follows.
        plain = stack.request(layer, "GET /health/live HTTP/1.1", *upgrade, close=False)
        follows = stack.request(layer, "GET /health/startup HTTP/1.1")
        assert stack.say(layer, plain + follows).statuses == [200, 200]


@pytest.mark.parametrize("layer", LAYERS)
def test_m15_an_escaped_line_end_breaks_no_line(stack: Attacked, layer: str) -> None:
    evil = "a%0d%0aX-Evil:%20yes%0d%0a%0d%0aHTTP/1.1%20200%20OK"
    line, _ = stack.effect(layer)
    with stack.unharmed():
        for target, *lines in (
            (f"/{evil}",),
            (f"{line.split()[1]}{evil}",),
            (f"/metrics?{evil}={evil}",),
            (f"/tasks?limit={evil}",),
            ("/nothing", f"X-Forwarded-For: {evil}", f"X-Real-IP: {evil}"),
            ("/nothing", f"X-Trace-Id: {evil}", f"traceparent: {evil}", f"Referer: {evil}"),
            ("/nothing", f"User-Agent: {evil}", f"Cookie: a={evil}", f"X-Request-Id: {evil}"),
        ):  # fmt: skip
            for key in ("admin", None, evil):
                talk = stack.ask(layer, f"GET {target}", *lines, key=key)
                assert talk.status in {400, 401, 403, 404}
                assert "x-evil" not in dict(talk.headers)


def test_m15_line_ends_in_what_is_sent_on_reach_no_header_of_the_upstream(
    stack: Attacked,
) -> None:
    evil = "a\r\nX-Evil: yes\r\n\r\n\x1b[31m\u2028"
    asked = len(stack.model.requests)
    ask = {"messages": [{"role": "user", "content": evil}], "model": "local"}
    for line, value in (
        ("POST /route", {"query": evil, "context": []}),
        ("POST /route", {"query": evil, "context": [], "task_id": evil}),
        ("POST /v1/chat/completions", ask),
        ("POST /v1/chat/completions", {**ask, "user": evil}),
        ("POST /v1/chat/completions", {**ask, "model": evil}),
        ("POST /keys", {"name": evil, "scopes": ["read"]}),
        ("POST /keys", {"name": "a", "scopes": [evil]}),
    ):
        talk = stack.ask("coordinator", line, body=json.dumps(value).encode())
        assert talk.status < 500
        assert "x-evil" not in dict(talk.headers)
    sent = stack.model.requests[asked:]
    assert sent, "the control: some of it is sent on"
    for request in sent:
        assert "x-evil" not in request.headers
        assert evil not in str(request.headers)
        assert stack.key not in str(request.headers)
