"""What Redis refuses, and who asks it: on a real server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.servers import redis_server
from tests.servers.redis_server import RedisServer

from nestor.backends.redis.answer_cache import RedisAnswers
from nestor.backends.redis.connection import FAILURES, RedisConnection
from nestor.backends.redis.quota import KEY_PREFIX, RedisQuota
from nestor.errors import Unavailable
from nestor.model.health import HealthStatus
from nestor.ports.quota import MAX_COST, Quota
from nestor.resilience.answer_cache import MemoryAnswers
from nestor.resilience.circuit_breaker import BreakerState
from nestor.resilience.quota import MovingQuota
from nestor.settings import Settings
from nestor.telemetry import metrics
from nestor.wiring.models import _shared
from nestor.wiring.stack import _proxy_limiter


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path / "redis") as server:
        yield server


@pytest.mark.parametrize("kind", ["process", "redis"])
async def test_a_cost_without_end_is_counted_as_the_largest(
    kind: str, redis: RedisServer
) -> None:
    connection = RedisConnection(redis.url, user="quotas")
    quota: Quota = MovingQuota()
    if kind == "redis":
        quota = RedisQuota(connection, local=MovingQuota())
    for at, cost in enumerate((10**17, 2**63 - 1, 10**40)):
        name = f"tpm:{at}"
        assert await quota.admit(name, limit=1000, cost=cost) is None
        if kind == "redis":
            assert redis.ask("HVALS", KEY_PREFIX + name).endswith(f"\r\n{MAX_COST}")
        assert await quota.admit(name, limit=1000, cost=1) is not None
        # So what was not used is given back to the last.
        await quota.correct(name, by=-cost)
        assert await quota.admit(name, limit=1000, cost=1000) is None
        await quota.correct(name, by=cost)
        assert await quota.admit(name, limit=MAX_COST, cost=1) is not None
        if kind == "redis":
            held = redis.ask("HVALS", f"{KEY_PREFIX}{name}")
            assert str(MAX_COST + 1000) in held
    assert connection._failure is None
    await quota.close()
    await connection.close()


async def test_what_redis_refuses_opens_no_breaker(redis: RedisServer) -> None:
    connection = RedisConnection(redis.url, user="quotas")
    redis.ask("SET", KEY_PREFIX + "odd", "no hash")
    quota = RedisQuota(connection, local=MovingQuota())
    for _ in range(2 * FAILURES):
        with pytest.raises(Unavailable, match="refuses"):
            await connection.ask(lambda: connection.client.hincrby("a", "b", 2**70))
    assert connection._failure is not None
    assert connection._failure.startswith("Redis refuses what it is asked (")
    # Whose counts cannot be kept there has them here, and nobody else is kept from Redis.
    said = [await quota.admit("odd", limit=3) for _ in range(2 * FAILURES)]
    assert said.count(None) == 3
    assert connection._breaker.state is BreakerState.CLOSED
    assert await quota.admit("even", limit=3) is None
    assert redis.ask("HLEN", KEY_PREFIX + "even") == ":1"
    (seen,) = await quota.dependencies()
    assert seen.status is HealthStatus.HEALTHY
    await quota.close()


async def test_a_redis_that_is_away_opens_it_all_the_same(redis: RedisServer) -> None:
    connection = RedisConnection(redis.url, user="quotas")
    redis.stop()
    for _ in range(FAILURES):
        with pytest.raises(Unavailable, match="does not answer"):
            await connection.ask(lambda: connection.client.get("a"))
    assert connection._breaker.state is BreakerState.OPEN
    await connection.close()


async def test_each_user_of_redis_is_seen_by_itself(
    redis: RedisServer, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path / "home", redis_url=SecretStr(redis.url))
    quota, answers = _shared(settings)
    limiter = _proxy_limiter(settings)

    def states() -> dict[str, float]:
        found = {}
        for metric in metrics.REGISTRY.collect():
            if metric.name == "nestor_breaker_state":
                for sample in metric.samples:
                    name = sample.labels["name"]
                    if name.startswith("redis"):
                        found[name] = sample.value
        return found

    names = {"redis quotas", "redis answers", "redis rate limits"}
    before = states()
    assert {name: before[name] for name in names} == dict.fromkeys(names, 0)
    redis.stop()
    async with asyncio.timeout(20):
        for _ in range(FAILURES):
            await quota.admit("a", limit=100)
    after = states()
    assert [after[name] for name in sorted(names)] == [0, 2, 0]
    for one in (quota, answers, limiter):
        await one.close()


async def test_an_answer_that_redis_refuses_is_kept_here(redis: RedisServer) -> None:
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    connection = RedisConnection(redis.url, user="answers")
    answers = RedisAnswers(connection, local=MemoryAnswers())
    for number in range(2 * FAILURES):
        await answers.put(f"d{number}", b"said", ttl_s=60)
        assert await answers.get(f"d{number}") == b"said"
    assert connection._breaker.state is BreakerState.CLOSED
    assert "refuses" in (connection._failure or "")
    await answers.close()
