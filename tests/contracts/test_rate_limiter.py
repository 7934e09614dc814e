"""What ``ports.rate_limiter.RateLimiter`` promises, in this process and on a real Redis."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.servers import redis_server
from tests.servers.redis_server import RedisServer

from nestor.backends.redis.connection import (
    MAX_CONNECTIONS,
    RECOVERY_S,
    RedisConnection,
)
from nestor.backends.redis.rate_limiter import RedisWindow
from nestor.errors import Misconfigured
from nestor.model.health import HealthStatus
from nestor.ports.rate_limiter import RateLimiter
from nestor.resilience.rate_limit import MovingWindow
from nestor.settings import Settings
from nestor.wiring import refuse_what_cannot_run

Make = Callable[[int, int], RateLimiter]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path / "redis") as server:
        yield server


@pytest.fixture(params=["process", "redis"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """``make(limit, window_s)``; on Redis under a name of this test's own."""
    made: list[RateLimiter] = []

    def one(limit: int, window_s: int) -> RateLimiter:
        local = MovingWindow(limit, window_s)
        limiter: RateLimiter = local
        if request.param == "redis":
            url = request.getfixturevalue("redis").url
            limiter = RedisWindow(
                RedisConnection(url, user="rate limits"),
                limit,
                window_s,
                local=local,
                name=str(tmp_path).replace("/", "-"),
            )
        made.append(limiter)
        return limiter

    yield one
    for limiter in made:
        await limiter.close()


def on(server: RedisServer, limit: int = 60, window_s: int = 60) -> RedisWindow:
    return at(server.url, limit, window_s)


def at(url: str, limit: int, window_s: int) -> RedisWindow:
    connection = RedisConnection(url, user="rate limits")
    return RedisWindow(connection, limit, window_s, local=MovingWindow(limit, window_s))


async def admitted(limiter: RateLimiter, times: int, client: str = "a") -> int:
    said = [await limiter.admit(client) for _ in range(times)]
    return said.count(None)


async def until_shared(limiter: RateLimiter, within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while (await limiter.dependencies())[0].status is not HealthStatus.HEALTHY:
            await asyncio.sleep(0.05)


async def test_the_limit_is_exact_for_one_after_the_other(make: Make) -> None:
    limiter = make(60, 60)
    said = [await limiter.admit("a") for _ in range(100)]
    assert said[:60] == [None] * 60
    waits = [wait for wait in said[60:] if wait is not None]
    assert len(waits) == 40
    assert all(50 < wait <= 60 for wait in waits)


async def test_l1_the_limit_is_exact_for_a_hundred_at_once(make: Make) -> None:
    limiter = make(60, 60)
    said = await asyncio.gather(*(limiter.admit("a") for _ in range(100)))
    assert said.count(None) == 60


async def test_each_client_has_a_window_of_its_own(make: Make) -> None:
    limiter = make(3, 60)
    assert await admitted(limiter, 5, "a") == 3
    assert await admitted(limiter, 5, "2001:db8::/64") == 3
    assert await admitted(limiter, 5, "a") == 0


async def test_what_is_refused_does_not_count_and_the_window_moves(make: Make) -> None:
    limiter = make(2, 2)
    assert await limiter.admit("a") is None
    await asyncio.sleep(1)
    assert await limiter.admit("a") is None
    wait_s = await limiter.admit("a")
    assert wait_s is not None
    assert 0 < wait_s <= 1
    assert await admitted(limiter, 20) == 0
    # Only the first is a window old now; the refused ones were never counted.
    await asyncio.sleep(wait_s + 0.05)
    assert await admitted(limiter, 20) == 1


async def test_it_tells_where_counts_are_kept(make: Make) -> None:
    limiter = make(3, 60)
    if isinstance(limiter, RedisWindow):
        await until_shared(limiter)
    for one in await limiter.dependencies():
        assert one.status is HealthStatus.HEALTHY
        assert one.last_observed is not None


async def test_two_processes_share_one_window(redis: RedisServer) -> None:
    one, two = on(redis), on(redis)
    said: list[float | None] = []
    for _ in range(10):
        asked = [limiter.admit("z") for limiter in (one, two) for _ in range(5)]
        said += await asyncio.gather(*asked)
    assert said.count(None) == 60
    for limiter in (one, two):
        await limiter.close()


async def test_keys_in_redis_end_with_their_window(own_redis: RedisServer) -> None:
    limiter = on(own_redis, 3, 1)
    await admitted(limiter, 5)
    assert own_redis.ask("DBSIZE") == ":1"
    await asyncio.sleep(2.1)
    assert own_redis.ask("DBSIZE") == ":0"
    await limiter.close()


async def test_who_spent_his_window_here_is_not_asked_of_redis(
    own_redis: RedisServer,
) -> None:
    limiter = on(own_redis, 3)
    await admitted(limiter, 3)

    def calls() -> int:
        said = own_redis.ask("INFO", "stats")
        line = next(x for x in said.split("\r\n") if x.startswith("total_commands"))
        return int(line.partition(":")[2])

    before = calls()
    assert await admitted(limiter, 500) == 0
    assert calls() - before < 10
    await limiter.close()


async def test_without_redis_this_process_counts_and_goes_on_where_it_was(
    own_redis: RedisServer,
) -> None:
    limiter = on(own_redis)
    assert await admitted(limiter, 40) == 40
    own_redis.stop()
    assert await admitted(limiter, 40) == 20
    (seen,) = await limiter.dependencies()
    assert seen.status is HealthStatus.DEGRADED
    assert "this process alone" in seen.message
    assert seen.last_observed is not None
    assert not seen.required
    own_redis.start()
    await until_shared(limiter)
    # Redis forgot; what was admitted here meanwhile still counts.
    assert await admitted(limiter, 40) == 0
    assert await admitted(limiter, 80, "b") == 60
    other = on(own_redis)
    assert await admitted(other, 5, "b") == 0
    await limiter.close()
    await other.close()


async def test_a_restart_of_redis_costs_nobody_an_error(own_redis: RedisServer) -> None:
    limiter = on(own_redis)
    assert await admitted(limiter, 10) == 10
    own_redis.stop()
    own_redis.start()
    assert await admitted(limiter, 60) == 50
    await until_shared(limiter)
    await limiter.close()


async def test_a_redis_that_hangs_holds_up_a_few_requests_and_shortly(
    own_redis: RedisServer,
) -> None:
    limiter = on(own_redis)
    assert await limiter.admit("a") is None
    own_redis.ask("CLIENT", "PAUSE", "4000", "ALL")
    began = time.monotonic()
    assert await admitted(limiter, 59) == 59
    took_s = time.monotonic() - began
    # 59 waits of 0.2 s would be 12 s; three are made until the breaker opens.
    assert took_s < RECOVERY_S
    (seen,) = await limiter.dependencies()
    assert "did not answer within 0.2 s" in seen.message
    await until_shared(limiter)
    # A late answer to a question that was given up must not answer another.
    assert await admitted(limiter, 70, "c") == 60
    assert await admitted(limiter, 70, "d") == 60
    await limiter.close()


async def test_a_redis_that_was_never_there_is_found_when_it_comes(
    own_redis: RedisServer,
) -> None:
    own_redis.stop()
    limiter = on(own_redis, 5)
    (seen,) = await limiter.dependencies()
    assert seen.status is HealthStatus.DEGRADED
    assert await admitted(limiter, 10) == 5
    own_redis.start()
    await until_shared(limiter)
    await limiter.close()


async def test_what_answers_but_is_no_redis_is_told(redis: RedisServer) -> None:
    async def garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"$abc\r\nHTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(garbage, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"redis://:{redis_server.PASSWORD}@127.0.0.1:{port}"
    limiter = at(url, 3, 60)
    assert await admitted(limiter, 5) == 3
    (seen,) = await limiter.dependencies()
    assert seen.status is HealthStatus.DEGRADED
    assert redis_server.PASSWORD not in repr(seen)
    await limiter.close()
    server.close()


async def test_a_wrong_password_is_named_and_not_told(redis: RedisServer) -> None:
    wrong = "canary-wrong-password-7171"
    url = redis.url.replace(redis_server.PASSWORD, wrong)
    limiter = at(url, 3, 60)
    assert await admitted(limiter, 5) == 3
    (seen,) = await limiter.dependencies()
    assert "refuses the name or password in NESTOR_REDIS_URL" in seen.message
    assert wrong not in repr(seen)
    await limiter.close()


async def test_connections_are_few_and_closed_at_the_end(
    own_redis: RedisServer,
) -> None:
    limiter = on(own_redis)
    await asyncio.gather(*(limiter.admit(str(n)) for n in range(200)))
    assert 1 <= own_redis.clients() <= MAX_CONNECTIONS
    await limiter.close()
    async with asyncio.timeout(5):
        while own_redis.clients():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("package", ["redis.asyncio", "limits"])
def test_without_the_packages_the_start_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in ("connection", "rate_limiter"):
        monkeypatch.delitem(sys.modules, f"nestor.backends.redis.{name}")
    monkeypatch.setitem(sys.modules, package, None)
    home = tmp_path / "home"
    with pytest.raises(Misconfigured, match="NESTOR_REDIS_URL: needs the package"):
        refuse_what_cannot_run(
            Settings(home=home, redis_url=SecretStr("redis://127.0.0.1"))
        )
    # Who does not set it needs none of them.
    refuse_what_cannot_run(Settings(home=home))
