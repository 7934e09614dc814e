"""How many requests the proxy lets in, of whom."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.faces.proxied import KEYED, LIVE, OPEN, dashboard_over
from tests.faces.shell import Served, SmallNestor, status_of
from tests.servers import bad_upstream
from tests.servers.bad_upstream import Upstream

from nestor.resilience.rate_limit import MovingWindow
from nestor.web.client_address import ClientAddresses


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with bad_upstream.running() as server:
        yield server


async def test_l1_a_hundred_at_once_are_sixty_and_forty(
    nestor: SmallNestor, upstream: Upstream
) -> None:
    async with dashboard_over(
        nestor, upstream.port, limiter=MovingWindow(60, 60)
    ) as dash:
        answers = await asyncio.gather(
            *(dash.call("GET", LIVE, key=None) for _ in range(100))
        )
        refused = [answer for answer in answers if answer.status == 429]
        assert sorted(answer.status for answer in answers) == [200] * 60 + [429] * 40
        for answer in refused:
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json["type"] == "urn:nestor:problem:rate-limited"
        assert len(upstream.calls) == 60
        # One window for all that is open; who has a key has one of his own.
        for target in OPEN:
            assert (await dash.call("GET", target)).status == 429
        keyed = [await dash.call("GET", KEYED[n % 2]) for n in range(61)]
        assert [reply.status for reply in keyed].count(429) == 1
        assert keyed[-1].status == 429
        # The layer's own health is not behind it.
        assert (await dash.call("GET", "/health/live", key=None)).status == 200


async def test_what_was_refused_does_not_count(
    nestor: SmallNestor, upstream: Upstream
) -> None:
    async with dashboard_over(
        nestor, upstream.port, limiter=MovingWindow(3, 60)
    ) as dash:
        for _ in range(5):
            assert (await dash.call("GET", "/aidb/metrics", key=None)).status == 401
            assert (await dash.call("GET", "/aidb/etc", key=None)).status == 403
            assert (await dash.call("POST", LIVE)).status == 405
        statuses = [(await dash.call("GET", LIVE)).status for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]


class Told(MovingWindow):
    async def admit(self, client: str) -> float | None:
        return None if client == "" else 41.2


async def test_retry_after_is_whole_seconds_rounded_up(
    nestor: SmallNestor, upstream: Upstream
) -> None:
    async with dashboard_over(nestor, upstream.port, limiter=Told(1, 60)) as dash:
        answer = await dash.call("GET", LIVE)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "42")
    assert upstream.calls == []


async def asked_as(dash: Served, *headers: str) -> int:
    return status_of(
        await dash.raw(dash.head(f"GET {LIVE} HTTP/1.1", *headers, key=None))
    )


async def test_l2_a_client_cannot_name_itself_differently_each_time(
    nestor: SmallNestor, upstream: Upstream
) -> None:
    async with dashboard_over(
        nestor, upstream.port, limiter=MovingWindow(60, 60)
    ) as dash:
        statuses = [
            await asked_as(
                dash,
                f"X-Forwarded-For: 198.51.{n // 250}.{n % 250}",
                f"X-Real-IP: 198.51.{n // 250}.{n % 250}",
                f"Forwarded: for=198.51.{n // 250}.{n % 250}",
            )
            for n in range(1000)
        ]
        assert statuses == [200] * 60 + [429] * 940


async def test_l2_behind_a_known_proxy_the_rightmost_stranger_counts(
    nestor: SmallNestor, upstream: Upstream
) -> None:
    trusted = ["127.0.0.1", "10.0.0.0/8"]
    async with dashboard_over(
        nestor, upstream.port, limiter=MovingWindow(3, 60), trusted=trusted
    ) as dash:
        said = [
            await asked_as(dash, f"X-Forwarded-For: 192.0.2.{n}, 203.0.113.7, 10.1.1.1")
            for n in range(6)
        ]
        assert said == [200] * 3 + [429] * 3
        assert await asked_as(dash, "X-Forwarded-For: 203.0.113.8") == 200
        # The same client by another spelling, and in two headers.
        assert await asked_as(dash, "X-Forwarded-For: ::ffff:203.0.113.7") == 429
        assert (
            await asked_as(
                dash, "X-Forwarded-For: 192.0.2.9", "X-Forwarded-For: 203.0.113.7"
            )
            == 429
        )
        # Other headers are nobody's word, a proxy's neither.
        for n in range(3):
            await asked_as(dash, f"X-Real-IP: 192.0.2.{n}", "X-Forwarded-For: junk")
        assert await asked_as(dash, "X-Real-IP: 192.0.2.99") == 429


async def test_l3_clients_behind_a_known_proxy_are_counted_within_bounds(
    nestor: SmallNestor, upstream: Upstream
) -> None:
    limiter = MovingWindow(60, 60, max_clients=50)
    trusted = ["127.0.0.1"]
    async with dashboard_over(
        nestor, upstream.port, limiter=limiter, trusted=trusted
    ) as dash:
        said = [
            await asked_as(dash, f"X-Forwarded-For: 2001:db8:{n:x}::1")
            for n in range(300)
        ]
    assert limiter.clients == 50
    assert said.count(200) == 50 + 60


CLIENTS = {
    "peer": (["203.0.113.9"], [], "203.0.113.9"),
    "peer, nobody trusted": (["203.0.113.9"], [b"192.0.2.1"], "203.0.113.9"),
    "peer in IPv6": (["2001:db8:1:2:3:4:5:6"], [], "2001:db8:1:2::/64"),
    "its neighbour": (["2001:db8:1:2:ffff::"], [], "2001:db8:1:2::/64"),
    "mapped peer": (["::ffff:203.0.113.9"], [], "203.0.113.9"),
    "peer with a zone": (["fe80::1%eth0"], [], "fe80::/64"),
    "no peer": ([], [b"192.0.2.1"], "unknown"),
    "trusted": (["10.0.0.1"], [b"192.0.2.1"], "192.0.2.1"),
    "trusted, mapped": (["::ffff:10.0.0.1"], [b"192.0.2.1"], "192.0.2.1"),
    "trusted, right-most": (["10.0.0.1"], [b"192.0.2.1, 192.0.2.2"], "192.0.2.2"),
    "two headers": (["10.0.0.1"], [b"192.0.2.1", b"192.0.2.2"], "192.0.2.2"),
    "chain": (["10.0.0.1"], [b"192.0.2.1,10.0.0.9,\t10.0.0.8 "], "192.0.2.1"),
    "all trusted": (["10.0.0.1"], [b"10.0.0.7, 10.0.0.8"], "10.0.0.1"),
    "nothing said": (["10.0.0.1"], [], "10.0.0.1"),
    "empty": (["10.0.0.1"], [b""], "10.0.0.1"),
    "junk": (["10.0.0.1"], [b"junk"], "10.0.0.1"),
    "junk nearer": (["10.0.0.1"], [b"192.0.2.1, junk, 10.0.0.8"], "10.0.0.1"),
    "junk farther": (["10.0.0.1"], [b"junk, 192.0.2.1"], "192.0.2.1"),
    "trailing comma": (["10.0.0.1"], [b"192.0.2.1,"], "10.0.0.1"),
    "with a port": (["10.0.0.1"], [b"192.0.2.1:80"], "10.0.0.1"),
    "with a zone": (["10.0.0.1"], [b"fe80::1%x"], "10.0.0.1"),
    "octal": (["10.0.0.1"], [b"0300.0.2.1"], "10.0.0.1"),
    "high bytes": (["10.0.0.1"], [b"\xff\xfe"], "10.0.0.1"),
    "IPv6 behind": (["10.0.0.1"], [b"2001:db8::5"], "2001:db8::/64"),
    "trusted in IPv6": (["fd00::1"], [b"192.0.2.1"], "192.0.2.1"),
}


@pytest.mark.parametrize("case", CLIENTS)
def test_which_client_a_request_counts_for(case: str) -> None:
    peer, said, counted = CLIENTS[case]
    clients = ClientAddresses(["10.0.0.0/8", "fd00::1"])
    scope = {
        "client": (peer[0], 1234) if peer else None,
        "headers": [
            (b"x-real-ip", b"198.51.100.1"),
            (b"forwarded", b"for=198.51.100.1"),
            *((b"x-forwarded-for", value) for value in said),
        ],
    }
    if case == "peer, nobody trusted":
        clients = ClientAddresses()
    assert clients.client_of(scope) == counted
