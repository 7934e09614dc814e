"""AIDB's health and metrics through the dashboard, over raw sockets; the upstream is real."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.faces.proxied import KEYED, LIVE, OPEN, dashboard_over
from tests.faces.shell import ADMIN_KEY, SERVICE_KEY, Served, SmallNestor, status_of
from tests.servers import bad_upstream
from tests.servers.bad_upstream import HEALTHY, Upstream, reply, says

from nestor.web import proxy


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with bad_upstream.running() as server:
        yield server


@pytest.fixture
async def dash(nestor: SmallNestor, upstream: Upstream) -> AsyncIterator[Served]:
    async with dashboard_over(nestor, upstream.port) as shell:
        yield shell


@pytest.fixture
def started() -> list[str]:
    """Every program that this process starts during a test, however short it lives."""
    _STARTED.clear()
    return _STARTED


_STARTED: list[str] = []
_STARTS = {"subprocess.Popen", "os.posix_spawn", "os.spawn", "os.system", "os.exec"}
_STARTS |= {"os.fork", "os.forkpty"}


def _write_down(event: str, _: object) -> None:
    if event in _STARTS:
        _STARTED.append(event)


sys.addaudithook(_write_down)


def children() -> list[str]:
    """Pids of what this process has started."""
    tasks = Path("/proc/self/task").iterdir()
    return sorted(pid for t in tasks for pid in (t / "children").read_text().split())


def body_of(raw: bytes) -> bytes:
    return raw.partition(b"\r\n\r\n")[2]


async def test_the_five_addresses_are_passed_on_and_nothing_is_added(
    dash: Served, upstream: Upstream, started: list[str]
) -> None:
    for target in OPEN + KEYED:
        answer = await dash.call("GET", target)
        assert (answer.status, answer.body) == (200, HEALTHY)
        assert answer.headers["Content-Type"] == "application/json"
    lines = [call.line for call in upstream.calls]
    assert lines == [
        f"GET {target.removeprefix('/aidb')} HTTP/1.1".encode()
        for target in OPEN + KEYED
    ]
    assert upstream.most_connections == 1
    assert started == []


async def test_live_ready_and_startup_are_open_and_the_others_want_a_key(
    dash: Served, upstream: Upstream, nestor: SmallNestor
) -> None:
    for target in OPEN:
        assert (await dash.call("GET", target, key=None)).status == 200
    asked = len(upstream.calls)
    for target in KEYED:
        assert (await dash.call("GET", target, key=None)).status == 401
        assert (await dash.call("GET", target, key="of-nobody")).status == 401
    _, submit = await nestor.keys.create("submit", ["submit"])
    _, metrics = await nestor.keys.create("metrics", ["metrics"])
    _, read = await nestor.keys.create("read", ["read"])
    for target in KEYED:
        assert (await dash.call("GET", target, key=submit)).status == 403
    assert (await dash.call("GET", "/aidb/metrics", key=read)).status == 403
    assert len(upstream.calls) == asked
    assert (await dash.call("GET", "/aidb/metrics", key=metrics)).status == 200
    assert (await dash.call("GET", "/aidb/health/detailed", key=metrics)).status == 200
    assert (await dash.call("GET", "/aidb/health/detailed", key=read)).status == 200


async def test_a_session_of_the_page_reads_what_wants_a_key(
    dash: Served, upstream: Upstream, nestor: SmallNestor
) -> None:
    link = await nestor.sessions.make_link()
    _, secret = await nestor.sessions.redeem(link.token)
    for target in KEYED:
        head = [
            f"GET {target} HTTP/1.1",
            f"Host: nestor.localhost:{dash.port}",
            f"Cookie: nestor_session={secret}",
            "Connection: close",
        ]
        raw = await dash.raw(("\r\n".join(head) + "\r\n\r\n").encode())
        assert status_of(raw) == 200
    assert all(secret.encode() not in call.head for call in upstream.calls)


REFUSED = {
    "p1": ["/aidb/../../etc/passwd", "/aidb/..", "/aidb/health/../metrics"],
    "p2": ["/aidb/%2e%2e/%2e%2e/etc/passwd", "/aidb/health/%2e%2e/metrics"],
    "p3": ["/aidb/..%2f..%2f", "/aidb/..%2F..%2Fetc/passwd", "/aidb%2fhealth%2flive"],
    "p4": ["/aidb/%252e%252e%252f", "/aidb/%252e%252e/health/live"],
    "p5": ["/aidb/..%5c", "/aidb/..\\", "/aidb\\health\\live", "/aidb/health\\live"],
    "p6": ["/aidb/%c0%ae%c0%ae/", "/aidb/%u002e%u002e/", "/aidb/%ef%bc%8e/"],
    "p7": [
        "/aidb//health/live",
        "/aidb/./health/live",
        "/aidb/health/live/",
        "/aidb/health/live;a=b",
        "/aidb;a=b/health/live",
    ],
    "p8": ["/aidb/health/live%00.html", "/aidb/health/live%00", "/aidb/health/live%20"],
    "p9": [
        "/aidb/health;rm%20-rf%20/",
        "/aidb/health/live;id",
        "/aidb/$(id)",
        "/aidb/`id`",
        "/aidb/health/live|id",
        "/aidb/health/live&&id",
    ],
    "p10": ["/aidb/hea/aidb/lth/live", "/aidb/aidb/health/live", "/aidb//aidb/metrics"],
    "other spellings": [
        "/aidb",
        "/aidb/",
        "/aidbx",
        "/aidb.example/",
        "/aidb/health",
        "/aidb/health/LIVE",
        "/aidb/health/liv%65",
        "/%61idb/health/live",
        "/%61%69%64%62/metrics",
        "/aidb/health/live?",
        "/aidb/health/live?a=b",
        "/aidb/health/live?/../../metrics",
        "/aidb/health/live#a",
        "/aidb/documents",
        "/aidb/schema/openapi.json",
    ],
}


@pytest.mark.parametrize("key", [None, ADMIN_KEY], ids=["stranger", "admin"])
@pytest.mark.parametrize("case", REFUSED)
async def test_p_everything_else_below_it_is_403_and_asks_nobody(
    dash: Served, upstream: Upstream, started: list[str], case: str, key: str | None
) -> None:
    before = children()
    for target in REFUSED[case]:
        raw = await dash.raw(dash.head(f"GET {target} HTTP/1.1", key=key))
        assert status_of(raw) == 403, target
        told = msgspec.json.decode(body_of(raw))
        assert told["detail"] == "only AIDB's health and metrics are passed on here"
    assert upstream.calls == []
    assert children() == before
    assert started == []


@pytest.mark.parametrize("key", [None, ADMIN_KEY], ids=["stranger", "admin"])
async def test_p11_other_forms_and_other_hosts_ask_nobody(
    dash: Served, upstream: Upstream, started: list[str], key: str | None
) -> None:
    before = children()
    for line, statuses in {
        "GET http://169.254.169.254/ HTTP/1.1": {400},
        f"GET http://127.0.0.1:{dash.port}/aidb/health/live HTTP/1.1": {400},
        "GET //evil/x HTTP/1.1": {404},
        "GET //evil/aidb/health/live HTTP/1.1": {404},
        "GET aidb/health/live HTTP/1.1": {400},
        "GET /x/../aidb/health/live HTTP/1.1": {404},
        "GET /AIDB/health/live HTTP/1.1": {403, 404},
        "CONNECT evil:443 HTTP/1.1": {400, 405},
        "CONNECT /aidb/health/live HTTP/1.1": {400, 405},
        "TRACE /aidb/health/live HTTP/1.1": {405},
        "TRACK /aidb/health/live HTTP/1.1": {400, 405},
    }.items():
        raw = await dash.raw(dash.head(line, key=key))
        assert status_of(raw) in statuses, line
        assert b"169.254" not in body_of(raw)
        assert b"evil" not in body_of(raw)
    assert upstream.calls == []
    assert children() == before
    assert started == []


async def test_p12_a_target_of_20_kb_is_414(dash: Served, upstream: Upstream) -> None:
    raw = await dash.raw(dash.head(f"GET /aidb/{'a' * 20_000} HTTP/1.1"))
    assert status_of(raw) == 414
    assert upstream.calls == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "HEAD"])
async def test_other_methods_are_not_served(
    dash: Served, upstream: Upstream, method: str
) -> None:
    for target in OPEN + KEYED:
        answer = await dash.call(method, target)
        assert answer.status == 405
        assert "GET" in answer.headers["Allow"]
    assert upstream.calls == []


async def test_m15_line_ends_reach_neither_the_upstream_nor_the_log(
    dash: Served, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    for line, *more in (
        ["GET /aidb/health/live\r\nInjected: 1 HTTP/1.1"],
        ["GET /aidb/health/live%0d%0aInjected:%201 HTTP/1.1"],
        ["GET /aidb/health/live?a=%0d%0aInjected:%201 HTTP/1.1"],
        ["GET /aidb/health/live HTTP/1.1", "traceparent: " + trace + "\rInjected: 1"],
        ["GET /aidb/health/live HTTP/1.1", "traceparent: " + trace + "\n Injected: 1"],
        ["GET /aidb/health/live HTTP/1.1", "X-Forwarded-For: 1.2.3.4%0d%0aInjected: 1"],
    ):
        await dash.raw(dash.head(line, *more))
    assert all(b"njected" not in call.head for call in upstream.calls)
    said = capsys.readouterr()
    assert not [
        x for x in (said.out + said.err).splitlines() if x.startswith("Injected")
    ]


async def test_m16_nothing_of_the_callers_request_goes_on(
    dash: Served, upstream: Upstream
) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    for target in (LIVE, "/aidb/metrics"):
        raw = await dash.raw(
            dash.head(
                f"GET {target} HTTP/1.1",
                "Connection: X-Real-Key, Authorization, Host",
                "Cookie: session=canary",
                "X-Real-Key: canary",
                "X-Forwarded-For: 10.9.9.9",
                "X-Forwarded-Host: canary",
                "Forwarded: for=10.9.9.9",
                "Proxy-Authorization: Basic Y2FuYXJ5",
                "Keep-Alive: timeout=99",
                "TE: trailers",
                "User-Agent: canary",
                "Accept: canary/x",
                "Accept-Encoding: gzip, br",
                "If-None-Match: canary",
                "Range: bytes=0-1",
                f"traceparent: {trace}",
            )
        )
        assert status_of(raw) == 200
    live, metrics = upstream.calls
    ours = {b"host", b"accept-encoding", b"traceparent"}
    assert live.names == ours
    assert metrics.names == ours | {b"authorization"}
    assert f"Authorization: Bearer {SERVICE_KEY}".encode() in metrics.head
    for call in upstream.calls:
        assert ADMIN_KEY.encode() not in call.head
        assert b"canary" not in call.head
        assert f"Host: 127.0.0.1:{upstream.port}".encode() in call.head
        assert b"Accept-Encoding: identity" in call.head
        # One trace through both layers, as a new step of it.
        assert b"traceparent: 00-" + b"a" * 32 in call.head
        assert b"b" * 16 not in call.head


async def test_m16_only_status_type_and_body_come_back(
    dash: Served, upstream: Upstream
) -> None:
    upstream.script = says(
        reply(
            HEALTHY,
            "Set-Cookie: nestor_session=stolen",
            "Location: http://169.254.169.254/",
            "Server: secret/1.0",
            "X-Powered-By: secret",
            "X-Trace-Id: forged",
            "Access-Control-Allow-Origin: *",
            "Cache-Control: public, max-age=999",
            "Content-Security-Policy: default-src *",
            "Link: </x>; rel=preload",
            "Refresh: 0; url=http://169.254.169.254/",
        )
    )
    raw = await dash.raw(dash.head(f"GET {LIVE} HTTP/1.1"))
    assert status_of(raw) == 200
    assert body_of(raw) == HEALTHY
    head = raw.partition(b"\r\n\r\n")[0].lower()
    for word in (b"set-cookie", b"location", b"server:", b"secret", b"forged"):
        assert word not in head
    for word in (b"allow-origin", b"max-age", b"default-src *", b"link:", b"refresh:"):
        assert word not in head
    assert b"cache-control: no-store" in head


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("application/json", LIVE),
        ("application/json; charset=utf-8", LIVE),
        ("text/plain; version=1.0.0; charset=utf-8", "/aidb/metrics"),
        (
            "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
            "/aidb/metrics",
        ),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", "/aidb/metrics"),
    ],
)
async def test_the_content_type_is_kept_as_it_was(
    dash: Served, upstream: Upstream, kind: str, target: str
) -> None:
    upstream.script = says(reply(b"up 1\n", kind=kind))
    answer = await dash.call("GET", target)
    assert answer.headers["Content-Type"] == kind
    assert answer.body == b"up 1\n"


async def test_a_503_of_ready_is_passed_on_with_its_body(
    dash: Served, upstream: Upstream
) -> None:
    said = b'{"status":"unhealthy","check_type":"ready"}'
    upstream.script = says(reply(said, status="503 Service Unavailable"))
    answer = await dash.call("GET", "/aidb/health/ready", key=None)
    assert (answer.status, answer.body) == (503, said)
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("bound", "asked"),
    [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::", "[::1]")],
)
def test_what_listens_everywhere_is_asked_on_loopback(bound: str, asked: str) -> None:
    assert str(proxy.Aidb((bound, 8091), "key")._base) == f"http://{asked}:8091"
