import asyncio
import gzip
import io
from contextlib import suppress

import pytest
from structlog.testing import capture_logs
from tests.faces.shell import ADMIN_KEY, Served, SmallNestor, served, status_of

from nestor.telemetry.trace import traceparent
from nestor.web import edge
from nestor.web.edge import MAX_BODY_BYTES
from nestor.web.wire import LINGER_BYTES

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")


def request(line: str, *headers: str) -> bytes:
    key = f"Authorization: Bearer {ADMIN_KEY}"
    return "\r\n".join([line, *headers, key, "Connection: close", "", ""]).encode(
        "latin-1"
    )


# Host ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "localhost.evil.com", "127.0.0.1.nip.io", "[::1]:99", "0.0.0.0", "127.0.0.2",
        "localhost:1", "localhost:PORT0", "user@localhost", "localhost/", "localhost.", "",
        "localhost:PORT:PORT", "[::1", "foo.localhost", "localhost, evil.com", "\xe9",
    ],
)  # fmt: skip
async def test_b1_another_host_is_421(shell: Served, host: str) -> None:
    name = host.replace("PORT", str(shell.port))
    answer = await shell.raw(request("DELETE /things/1 HTTP/1.1", f"Host: {name}"))
    assert status_of(answer) == 421, answer
    assert shell.nestor.done == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:PORT", "localhost:PORT", "LOCALHOST", "localhost", "[::1]:PORT", "nestor.localhost:PORT"],
)  # fmt: skip
async def test_our_own_names_are_served(shell: Served, host: str) -> None:
    name = host.replace("PORT", str(shell.port))
    answer = await shell.raw(request("GET /things HTTP/1.1", f"Host: {name}"))
    assert status_of(answer) == 200, answer


async def test_m4_m5_exactly_one_host(shell: Served) -> None:
    host = f"Host: localhost:{shell.port}"
    for headers in ((), (host, host), (host, "Host: evil.com")):
        answer = await shell.raw(request("DELETE /things/1 HTTP/1.1", *headers))
        assert status_of(answer) == 400, answer
    assert status_of(await shell.raw(request("GET /things HTTP/1.0"))) == 400
    assert shell.nestor.done == []


async def test_a_host_that_the_operator_listed_is_served(nestor: SmallNestor) -> None:
    nestor.settings.allowed_hosts = ["Nestor.Example", "proxy.example:8443"]
    async with served(nestor) as shell:
        for host, status in {
            "nestor.example": 200,
            f"nestor.example:{shell.port}": 200,
            "nestor.example:1": 421,
            "proxy.example:8443": 200,
            "proxy.example": 421,
            "sub.nestor.example": 421,
        }.items():
            answer = await shell.raw(request("GET /things HTTP/1.1", f"Host: {host}"))
            assert status_of(answer) == status, host
        for origin, status in {
            "https://proxy.example:8443": 200,
            "https://localhost": 403,
            "https://evil.example": 403,
        }.items():
            answer = await shell.raw(
                shell.head("GET /things HTTP/1.1", f"Origin: {origin}")
            )
            assert status_of(answer) == status, origin


# Origin --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil", "null", "http://localhost.evil", "http://localhost", "http://localhost:1",
        "http://127.0.0.1.nip.io:PORT", "file://", "localhost:PORT", "http://u@localhost:PORT",
        "https://localhost:PORT", "http://localhost:PORT, http://evil", "chrome-extension://x", "",
    ],
)  # fmt: skip
async def test_b2_b3_another_origin_is_403_on_every_method(
    shell: Served, origin: str
) -> None:
    line = "Origin: " + origin.replace("PORT", str(shell.port))
    for method in METHODS:
        answer = await shell.raw(shell.head(f"{method} /things/1 HTTP/1.1", line))
        assert status_of(answer) == 403, (method, answer)
        assert b"access-control-allow" not in answer.lower()
    for path in ("/health/live", "/nothing"):
        answer = await shell.raw(shell.head(f"GET {path} HTTP/1.1", line, key=None))
        assert status_of(answer) == 403
    assert shell.nestor.done == []


async def test_our_own_origin_is_served_and_two_are_not(shell: Served) -> None:
    own = f"Origin: http://localhost:{shell.port}"
    answer = await shell.raw(shell.head("GET /things HTTP/1.1", own))
    assert status_of(answer) == 200
    assert b"access-control-allow" not in answer.lower()
    assert (
        status_of(await shell.raw(shell.head("GET /things HTTP/1.1", own, own))) == 403
    )


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "anything"])
async def test_b4_a_request_from_another_site_is_403(shell: Served, site: str) -> None:
    for method in METHODS:
        line = f"Sec-Fetch-Site: {site}"
        answer = await shell.raw(shell.head(f"{method} /things/1 HTTP/1.1", line))
        assert status_of(answer) == 403
    assert shell.nestor.done == []


async def test_b4_a_form_of_another_page_carries_no_key(shell: Served) -> None:
    for kind in (
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/form-data",
    ):
        reply = await shell.call(
            "POST",
            "/things",
            key=None,
            data=b'{"name":"a"}',
            headers={"Content-Type": kind},
        )
        assert reply.status == 401
    assert shell.nestor.done == []


async def test_b7_a_websocket_handshake_is_only_a_request(shell: Served) -> None:
    lines = (
        "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )  # fmt: skip
    answer = await shell.raw(shell.head("GET /things HTTP/1.1", *lines))
    assert status_of(answer) == 200
    foreign = shell.head("GET /things HTTP/1.1", *lines, "Origin: http://evil")
    assert status_of(await shell.raw(foreign)) == 403


async def test_b8_get_with_a_body_changes_nothing(shell: Served) -> None:
    for path in ("/things", "/slow", "/things/1"):
        await shell.call("GET", path, data=b'{"name":"a"}')
    assert shell.nestor.done == []


# Keys in the URL -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    ["api_key=K", "key=K", "token=K", "access_token=K", "a=1&key=K", "a=1;key=K", "API_KEY=K",
     "%6bey=K", "key", "+key=K"],
)  # fmt: skip
async def test_a2_a_key_in_the_url_is_refused_and_not_repeated(
    shell: Served, query: str
) -> None:
    line = f"GET /things?{query.replace('=K', '=' + ADMIN_KEY)} HTTP/1.1"
    with capture_logs() as logs:
        for key in (None, ADMIN_KEY):
            answer = await shell.raw(shell.head(line, key=key))
            assert status_of(answer) == 400
            assert ADMIN_KEY.encode() not in answer
    assert ADMIN_KEY not in str(logs) + str(await shell.access_lines(2))


# Bodies --------------------------------------------------------------------------------


async def test_l5_a_body_that_says_it_is_too_long_is_413_at_once(shell: Served) -> None:
    for length in (MAX_BODY_BYTES + 1, 10 * 1024**3):
        head = shell.head("POST /things HTTP/1.1", f"Content-Length: {length}")
        answer = await shell.raw(head)
        assert status_of(answer) == 413
        assert b"connection: close" in answer.lower()


async def test_l5_a_chunked_body_without_an_end_is_413(shell: Served) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", shell.port)
    head = request(
        "POST /things HTTP/1.1",
        f"Host: localhost:{shell.port}",
        "Transfer-Encoding: chunked",
    )
    writer.write(head.replace(b"Connection: close\r\n", b""))
    told = asyncio.create_task(reader.readuntil(b"\r\n"))
    sent = 0
    with suppress(ConnectionError):
        async with asyncio.timeout(10):
            while sent < 4 * LINGER_BYTES:
                writer.write(chunk)
                await writer.drain()
                sent += len(chunk)
                await asyncio.sleep(0)
    writer.close()
    assert status_of(await told) == 413
    assert sent < 2 * LINGER_BYTES
    assert shell.nestor.done == []


async def test_a_chunked_body_over_the_limit_is_answered_413(shell: Served) -> None:
    body = b"%x\r\n" % (MAX_BODY_BYTES + 1) + b"x" * (MAX_BODY_BYTES + 1)
    head = shell.head("POST /things HTTP/1.1", "Transfer-Encoding: chunked")
    answer = await shell.raw(head, body)
    assert status_of(answer) == 413
    assert b"application/problem+json" in answer


async def test_a_body_of_exactly_the_limit_is_read(shell: Served) -> None:
    filler = MAX_BODY_BYTES - len(b'{"name":""}')
    body = b'{"name":"' + b"x" * filler + b'"}'
    assert (await shell.call("POST", "/things", data=io.BytesIO(body))).status == 201
    over = await shell.call("POST", "/things", data=io.BytesIO(body + b" "))
    assert over.status == 413


async def test_documents_may_be_32_mib_and_nothing_else_may(shell: Served) -> None:
    size = 32 << 20
    body = io.BytesIO(b"x" * size)
    assert (await shell.call("POST", "/documents", data=body)).json == {"bytes": size}
    head = shell.head("POST /documents HTTP/1.1", f"Content-Length: {size + 1}")
    assert status_of(await shell.raw(head)) == 413


async def test_a_body_shorter_than_it_says_never_reaches_the_service(
    shell: Served,
) -> None:
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection("127.0.0.1", shell.port)
        head = shell.head("POST /things HTTP/1.1", "Content-Length: 100")
        writer.write(head + b'{"name":"a"}')
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()
        assert (await shell.call("GET", "/things")).status == 200
    assert shell.nestor.done == []
    # The caller left: that is no fault of ours, and no stack trace in the log.
    assert [line["status"] for line in await shell.access_lines(2)] == [400, 200]
    assert not [line for line in logs if line["event"] == "unexpected_error"]


async def test_a_body_longer_than_it_says_is_another_request(shell: Served) -> None:
    head = shell.head("POST /things HTTP/1.1", "Content-Length: 12").replace(
        b"Connection: close\r\n", b""
    )
    second = request("DELETE /things/1 HTTP/1.1", "Host: evil")
    answer = await shell.raw(head + b'{"name":"a"}' + second)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 421" in answer
    assert [thing.name for thing in shell.nestor.done] == ["a"]


async def test_l5_a_compressed_body_is_415(shell: Served) -> None:
    body = gzip.compress(b'{"name":"a"}')
    for coding in ("gzip", "br", "deflate, gzip"):
        reply = await shell.call(
            "POST", "/documents", data=body, headers={"Content-Encoding": coding}
        )
        assert reply.status == 415


async def test_a_client_that_waits_for_100_is_told_no_before_it_sends(
    shell: Served,
) -> None:
    lines = ("Expect: 100-continue", "Content-Length: 100")
    answer = await shell.raw(shell.head("POST /things HTTP/1.1", *lines, key=None))
    assert answer.startswith(b"HTTP/1.1 401")


# Targets and heads ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET http://169.254.169.254/things HTTP/1.1", 400),
        ("GET http://localhost/things HTTP/1.1", 400),
        ("GET //evil/things HTTP/1.1", 404),
        ("GET /a/../things HTTP/1.1", 404),
        ("GET /a/%2e%2e/things HTTP/1.1", 404),
        ("GET /a/..%2fthings HTTP/1.1", 404),
        ("GET /a%5cthings HTTP/1.1", 404),
        ("GET /a\\things HTTP/1.1", 404),
        ("GET /./things HTTP/1.1", 404),
        ("GET /things/%c0%ae%c0%ae HTTP/1.1", 404),
        ("GET /things%00 HTTP/1.1", 404),
        ("GET /things%0d%0aX:1 HTTP/1.1", 404),
        ("TRACE /things HTTP/1.1", 405),
        ("PROPFIND /things HTTP/1.1", 405),
        ("CONNECT localhost:443 HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1", 400),
        ("BREW /things HTTP/1.1", 400),
        ("GET /things?" + "a" * 20_000 + " HTTP/1.1", 414),
        ("GET /" + "a" * 9_000 + " HTTP/1.1", 414),
    ],
)
async def test_p11_p12_odd_request_lines_are_refused(
    shell: Served, line: str, status: int
) -> None:
    answer = await shell.raw(shell.head(line))
    assert status_of(answer) == status, answer
    assert b"x-trace-id" in answer.lower()
    assert b"application/problem+json" in answer
    assert shell.nestor.done == []


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 1", "Content-Length: 2"),
        ("Content-Length: +2",),
        ("Content-Length: -1",),
        ("Content-Length: 99999999999999999999999",),
        ("Transfer-Encoding: xchunked",),
        ("Host : localhost",),
        ("A: b\x00c",),
        ("A: b\r\n folded",),
        ("A: b\nB: c",),
    ],
)
async def test_m_a_malformed_message_is_400_and_the_next_is_not_executed(
    shell: Served, lines: tuple[str, ...]
) -> None:
    first = shell.head("POST /things HTTP/1.1", *lines).replace(
        b"Connection: close\r\n", b""
    )
    then = shell.head("DELETE /things/1 HTTP/1.1")
    answer = await shell.raw(first + b"0\r\n\r\n" + then)
    assert status_of(answer) == 400, answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"x-content-type-options: nosniff" in answer
    assert shell.nestor.done == []


async def test_m11_what_needs_no_body_is_not_done_either(shell: Served) -> None:
    head = shell.head("DELETE /things/1 HTTP/1.1", "Transfer-Encoding: xchunked")
    assert status_of(await shell.raw(head)) == 400
    await asyncio.sleep(0.05)
    assert shell.nestor.done == []


async def test_p11_trace_is_refused_before_anybody_asks_for_a_key(
    shell: Served,
) -> None:
    answer = await shell.raw(shell.head("TRACE /things HTTP/1.1", key=None))
    assert status_of(answer) == 405


async def test_m6_m7_a_head_is_bounded(shell: Served) -> None:
    many = [f"A{n}: b" for n in range(200)]
    assert status_of(await shell.raw(shell.head("GET /things HTTP/1.1", *many))) == 431
    long = shell.head("GET /things HTTP/1.1", "A: " + "b" * 40_000)
    assert status_of(await shell.raw(long)) == 431
    fine = shell.head("GET /things HTTP/1.1", *many[:60])
    assert status_of(await shell.raw(fine)) == 200


async def test_a_head_that_does_not_end_is_cut(shell: Served) -> None:
    start = f"GET /things HTTP/1.1\r\nHost: localhost:{shell.port}\r\nA: ".encode()
    answer = await shell.raw(start, *[b"b" * 8_000] * 6)
    assert status_of(answer) == 431


async def test_a_trailer_adds_nothing_to_the_headers(shell: Served) -> None:
    head = shell.head("POST /things HTTP/1.1", "Transfer-Encoding: chunked")
    body = b'c\r\n{"name":"a"}\r\n0\r\nX-API-Key: other\r\nHost: evil\r\n\r\n'
    assert status_of(await shell.raw(head + body)) == 201


# Replies -------------------------------------------------------------------------------


async def test_b6_every_reply_carries_the_same_protection(shell: Served) -> None:
    heads = [
        shell.head("GET /things HTTP/1.1"),
        shell.head("GET /things HTTP/1.1", key=None),
        shell.head("GET /nothing HTTP/1.1"),
        shell.head("GET /boom HTTP/1.1"),
        shell.head("GET /docs HTTP/1.1"),
        shell.head("GET /metrics HTTP/1.1"),
        shell.head("GET /things HTTP/1.1", "Origin: http://evil"),
        request("GET / HTTP/1.1", "Host: evil"),
        b"nonsense\r\n\r\n",
    ]
    for head in heads:
        lines = (await shell.raw(head)).partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
        for line in (
            b"x-content-type-options: nosniff",
            b"cache-control: no-store",
            b"referrer-policy: no-referrer",
            b"x-frame-options: deny",
            b"content-security-policy: default-src 'none'; frame-ancestors 'none'",
        ):
            assert lines.count(line) == 1, (head, line)
        assert sum(line.startswith(b"x-trace-id: ") for line in lines) == 1
        assert not any(line.startswith(b"server:") for line in lines)


async def test_a_trace_is_taken_up_and_a_malformed_one_replaced(shell: Served) -> None:
    given = "ab" * 16
    reply = await shell.call(
        "GET", "/things", headers={"traceparent": traceparent(given)}
    )
    assert reply.headers["X-Trace-Id"] == given
    for bad in ("00-" + "0" * 32 + "-" + "1" * 16 + "-01", "x", given):
        reply = await shell.call("GET", "/things", headers={"traceparent": bad})
        assert len(reply.headers["X-Trace-Id"]) == 32
        assert reply.headers["X-Trace-Id"] != given


async def test_each_request_leaves_one_line_without_its_query(shell: Served) -> None:
    await shell.call("GET", "/things?limit=3&status=s3cr3t")
    await shell.raw(shell.head("GET /nothing%20here%1bx?a=s3cr3t HTTP/1.1"))
    lines = await shell.access_lines(2)
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/things", 200),
        ("/nothing%20here%1bx", 404),
    ]
    assert lines[0]["key_id"] == "admin"
    assert {line["client"] for line in lines} == {"127.0.0.1"}
    assert "s3cr3t" not in str(lines)


async def test_a_key_store_that_is_down_is_no_open_door(shell: Served) -> None:
    shell.nestor.keys.down = True
    assert (await shell.call("DELETE", "/things/1", key="x")).status == 503
    assert shell.nestor.done == []


async def test_too_many_at_once_are_told_to_come_back(nestor: SmallNestor) -> None:
    async with served(nestor) as shell:
        calls = [
            asyncio.create_task(shell.call("POST", "/slow"))
            for _ in range(edge.MAX_IN_FLIGHT + 1)
        ]
        async with asyncio.timeout(60):
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        replies = [task.result() for task in done]
        assert {reply.status for reply in replies} == {503}
        assert replies[0].headers["Retry-After"] == "1"
        nestor.hold.set()
        statuses = [reply.status for reply in await asyncio.gather(*calls)]
        assert statuses.count(201) == edge.MAX_IN_FLIGHT


async def test_a_malformed_second_request_lets_the_first_be_answered(
    shell: Served,
) -> None:
    first = shell.head("POST /slow HTTP/1.1").replace(b"Connection: close\r\n", b"")
    raw = asyncio.create_task(shell.raw(first + b"nonsense\r\n\r\n"))
    while "slow began" not in shell.nestor.done:
        await asyncio.sleep(0.01)
    shell.nestor.hold.set()
    answer = await raw
    assert status_of(answer) == 201
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_a_body_that_breaks_off_in_nonsense_is_400(shell: Served) -> None:
    head = shell.head("POST /things HTTP/1.1", "Transfer-Encoding: chunked")
    answer = await shell.raw(head + b"c\r\n", b'{"name":"a"}\r\nzz\r\n')
    assert status_of(answer) == 400
    assert shell.nestor.done == []
