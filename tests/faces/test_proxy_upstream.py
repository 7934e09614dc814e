"""What the proxy makes of an AIDB that is slow, broken, gone, or somebody else."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.faces.proxied import LIVE, dashboard_over
from tests.faces.shell import Served, SmallNestor
from tests.servers import bad_upstream
from tests.servers.bad_upstream import HEALTHY, Call, Script, Upstream, reply, says

from nestor.web.health import resident_bytes

MIB = 1024 * 1024


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with bad_upstream.running() as server:
        yield server


@pytest.fixture
async def dash(nestor: SmallNestor, upstream: Upstream) -> AsyncIterator[Served]:
    async with dashboard_over(nestor, upstream.port) as shell:
        yield shell


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


async def endless(call: Call) -> None:
    await call.send(UNTIL_CLOSED)
    for _ in range(1 << 20):
        await call.send(b"x" * 65_536)


async def endless_chunks(call: Call) -> None:
    await call.send(CHUNKED)
    for _ in range(1 << 20):
        await call.send(b"10000\r\n" + b"x" * 65_536 + b"\r\n")


async def endless_headers(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\n")
    for n in range(1 << 24):
        await call.send(f"X-{n}: {'y' * 4000}\r\n".encode())


async def endless_header(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    for _ in range(1 << 24):
        await call.send(b"y" * 65_536)


async def reset(call: Call) -> None:
    call.reset()
    raise ConnectionAbortedError


def _kind(kind: str | None, *more: str) -> Script:
    return says(reply(HEALTHY, *more, kind=kind))


BAD: dict[str, Script] = {
    "too large, and says so": says(reply(b"x" * (MIB + 1))),
    "huge, and says so": says(
        UNTIL_CLOSED[:-2] + b"Content-Length: 99999999999\r\n\r\n"
    ),
    "too large, in chunks": says(
        CHUNKED + b"100001\r\n" + b"x" * (MIB + 1) + b"\r\n0\r\n\r\n"
    ),
    "endless": endless,
    "endless in chunks": endless_chunks,
    "endless headers": endless_headers,
    "endless header": endless_header,
    "many headers": says(reply(HEALTHY, *[f"X-{n}: 1" for n in range(1000)])),
    "html": _kind("text/html"),
    "no type": _kind(None),
    "two types": _kind("application/json", "Content-Type: text/html"),
    "type with a script in it": _kind('application/json; a="<script>"'),
    "type like ours": _kind("application/jsonp"),
    "problem": _kind("application/problem+json"),
    "compressed": _kind("application/json", "Content-Encoding: gzip"),
    "301": says(reply(status="301 Moved", kind="application/json")),
    "302": says(reply(HEALTHY, "Location: http://127.0.0.1:1/x", status="302 Found")),
    "307": says(reply(HEALTHY, "Location: /metrics", status="307 Temporary Redirect")),
    "401": says(reply(HEALTHY, "WWW-Authenticate: Basic", status="401 Unauthorized")),
    "404": says(reply(status="404 Not Found")),
    "500": says(reply(status="500 Internal Server Error")),
    "204": says(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "101": says(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    ),
    "garbage": says(b"\x00\xff\x16\x03\x01 not http at all\r\n\r\n", closes=True),
    "garbage chunks": says(CHUNKED + b"zz\r\nabc\r\n"),
    "two lengths": says(reply(HEALTHY, "Content-Length: 1")),
    "nothing": says(b"", closes=True),
    "cut head": says(b"HTTP/1.1 200 OK\r\nContent-Ty", closes=True),
    "cut body": says(reply(HEALTHY)[:-5], closes=True),
    "cut chunks": says(CHUNKED + b"10\r\nabc", closes=True),
    "reset": reset,
}


@pytest.mark.parametrize("case", BAD)
async def test_m17_a_reply_that_is_not_one_of_aidbs_is_502(
    dash: Served, upstream: Upstream, case: str
) -> None:
    upstream.script = BAD[case]
    before = resident_bytes() or 0
    answer = await dash.call("GET", LIVE, key=None)
    assert answer.status == 502, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["type"] == "urn:nestor:problem:upstream-error"
    assert "AIDB" in answer.json["detail"]
    assert b"script" not in answer.body
    assert not {"Set-Cookie", "Location", "WWW-Authenticate"} & set(answer.headers)
    assert (resident_bytes() or 0) - before < 32 * MIB
    # A connection that ends without a word is tried once more; nothing else is asked.
    assert {call.line for call in upstream.calls} == {b"GET /health/live HTTP/1.1"}
    assert len(upstream.calls) <= 2
    # The pool is not spoilt by it.
    upstream.script = says(reply())
    assert (await dash.call("GET", LIVE, key=None)).body == HEALTHY
    async with asyncio.timeout(5):
        while upstream.connections > 1:
            await asyncio.sleep(0.01)


async def test_a_hint_before_the_answer_is_not_the_answer(
    dash: Served, upstream: Upstream
) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </evil>; rel=preload\r\n\r\n"
    upstream.script = says(hint + reply())
    answer = await dash.call("GET", LIVE)
    assert (answer.status, answer.body) == (200, HEALTHY)
    assert "Link" not in answer.headers


async def hangs(call: Call) -> None:
    await call.hang()


async def hangs_in_head(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\nContent-")
    await call.hang()


async def drips_head(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\n")
    for n in range(10_000):
        await call.send(f"X-{n}".encode())
        await asyncio.sleep(0.05)


async def drips_body(call: Call) -> None:
    await call.send(UNTIL_CLOSED)
    for _ in range(10_000):
        await call.send(b" ")
        await asyncio.sleep(0.05)


async def endless_hints(call: Call) -> None:
    for _ in range(10_000):
        await call.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await asyncio.sleep(0.01)


SLOW: dict[str, Script] = {
    "silent": hangs,
    "half a head": hangs_in_head,
    "head in drips": drips_head,
    "body in drips": drips_body,
    "hints for ever": endless_hints,
}


@pytest.mark.parametrize("case", SLOW)
async def test_m17_an_upstream_that_is_too_slow_is_504(
    nestor: SmallNestor, upstream: Upstream, case: str
) -> None:
    upstream.script = SLOW[case]
    async with dashboard_over(nestor, upstream.port, timeout_s=0.5) as dash:
        async with asyncio.timeout(10):
            answer = await dash.call("GET", LIVE, key=None)
        assert answer.status == 504
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json["type"] == "urn:nestor:problem:upstream-timeout"
        assert "did not answer within 0.5 s" in answer.json["detail"]
        async with asyncio.timeout(5):
            while upstream.connections:
                await asyncio.sleep(0.01)


async def test_the_time_it_has_is_two_seconds(dash: Served, upstream: Upstream) -> None:
    upstream.script = hangs
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await dash.call("GET", LIVE, key=None)).status == 504
    assert 1 < loop.time() - began < 6


async def test_an_upstream_that_is_not_there_is_502_and_says_so(
    nestor: SmallNestor,
) -> None:
    async with dashboard_over(nestor, 1) as dash:
        answer = await dash.call("GET", LIVE, key=None)
        assert answer.status == 502
        assert "cannot be reached" in answer.json["detail"]
        assert b"127.0.0.1" not in answer.body


async def test_metrics_may_be_larger_than_health(
    dash: Served, upstream: Upstream
) -> None:
    upstream.script = says(reply(b"x" * (3 * MIB), kind="text/plain; version=0.0.4"))
    assert len((await dash.call("GET", "/aidb/metrics")).body) == 3 * MIB
    assert (await dash.call("GET", "/aidb/health/detailed")).status == 502
    upstream.script = says(reply(b"x" * (4 * MIB + 1), kind="text/plain"))
    assert (await dash.call("GET", "/aidb/metrics")).status == 502


async def test_the_pool_has_ten_connections_and_no_proxy_of_the_environment(
    nestor: SmallNestor, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def slowly(call: Call) -> None:
        await asyncio.sleep(0.05)
        await call.send(reply())

    upstream.script = slowly
    async with dashboard_over(nestor, upstream.port) as dash:
        answers = await asyncio.gather(*(dash.call("GET", LIVE) for _ in range(50)))
        assert {answer.status for answer in answers} == {200}
        assert 2 <= upstream.most_connections <= 10
    async with asyncio.timeout(5):
        while upstream.connections:
            await asyncio.sleep(0.01)
