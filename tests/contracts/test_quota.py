"""What ``ports.quota.Quota`` promises, in this process and on a real Redis."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import Rounds
from tests.servers import redis_server
from tests.servers.redis_server import RedisServer

from nestor.backends.redis.connection import (
    MAX_CONNECTIONS,
    RECOVERY_S,
    RedisConnection,
)
from nestor.backends.redis.quota import KEY_PREFIX, RedisQuota
from nestor.model.health import Dependency, HealthStatus
from nestor.ports.quota import WINDOW_S, Quota
from nestor.resilience.quota import MovingQuota

Make = Callable[[], Quota]


class Clock:
    seconds = 5000.25

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path / "redis") as server:
        yield server


def on(server: RedisServer) -> RedisQuota:
    return RedisQuota(RedisConnection(server.url, user="quotas"), local=MovingQuota())


@pytest.fixture(params=["process", "redis", "redis, from another process"])
async def quota(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Quota]:
    """An empty one. The third counts in Redis alone: nothing of it was admitted here."""
    made: Quota = MovingQuota()
    if request.param != "process":
        server = request.getfixturevalue("redis")
        server.ask("FLUSHALL")
        made = on(server)
    if request.param == "redis, from another process":
        made = Alternating(on(server), on(server))
    yield made
    await made.close()


class Alternating:
    """Two processes that take turns; each would refuse too little by itself."""

    def __init__(self, *quotas: Quota) -> None:
        self._quotas = list(quotas)

    def _next(self) -> Quota:
        self._quotas.append(self._quotas.pop(0))
        return self._quotas[0]

    async def admit(self, name: str, *, limit: int, cost: int = 1) -> float | None:
        return await self._next().admit(name, limit=limit, cost=cost)

    async def correct(self, name: str, *, by: int, age_s: float = 0.0) -> None:
        # Who admitted a call corrects it.
        await self._quotas[0].correct(name, by=by, age_s=age_s)

    async def dependencies(self) -> list[Dependency]:
        return []

    async def close(self) -> None:
        for quota in self._quotas:
            await quota.close()


async def admitted(quota: Quota, times: int, limit: int = 60, name: str = "a") -> int:
    said = [await quota.admit(name, limit=limit) for _ in range(times)]
    return said.count(None)


async def until_shared(quota: Quota, within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while (await quota.dependencies())[0].status is not HealthStatus.HEALTHY:
            await asyncio.sleep(0.05)


async def test_the_limit_is_exact_one_after_the_other_and_at_once(
    quota: Quota,
) -> None:
    said = [await quota.admit("a", limit=60) for _ in range(100)]
    assert said[:60] == [None] * 60
    waits = [wait for wait in said if wait is not None]
    assert len(waits) == 40
    assert all(WINDOW_S - 10 < wait <= WINDOW_S + 1 for wait in waits)
    said = await asyncio.gather(*(quota.admit("b", limit=60) for _ in range(100)))
    assert said.count(None) == 60


async def test_costs_add_up_to_the_limit_and_what_is_refused_takes_nothing(
    quota: Quota,
) -> None:
    assert await quota.admit("t", limit=1000, cost=600) is None
    for _ in range(5):
        assert await quota.admit("t", limit=1000, cost=401) is not None
    assert await quota.admit("t", limit=1000, cost=400) is None
    assert await quota.admit("t", limit=1000, cost=1) is not None
    assert await quota.admit("t", limit=1001, cost=1) is None


async def test_each_name_has_a_window_of_its_own(quota: Quota) -> None:
    for name in ("key:1:rpm", "key:1:tpm", "deployment local ü", "x" * 300):
        assert await admitted(quota, 5, 3, name) == 3


async def test_a_cost_over_the_limit_fits_an_empty_window(quota: Quota) -> None:
    assert await quota.admit("t", limit=10, cost=50) is None
    wait_s = await quota.admit("t", limit=10, cost=1)
    assert wait_s is not None
    assert wait_s > WINDOW_S - 10
    assert await quota.admit("t", limit=10, cost=50) is not None
    assert await quota.admit("u", limit=10, cost=1) is None
    assert await quota.admit("u", limit=10, cost=50) is not None


async def test_what_a_call_took_is_corrected_up_and_down(quota: Quota) -> None:
    assert await quota.admit("t", limit=1000, cost=900) is None
    await quota.correct("t", by=-800)
    # Of two processes each has seen half of the calls only; what both saw decides.
    assert await quota.admit("t", limit=1000, cost=850) is None
    await quota.correct("t", by=40)
    assert await quota.admit("t", limit=1000, cost=11) is not None
    assert await quota.admit("t", limit=1000, cost=10) is None
    await quota.correct("t", by=500)
    assert await quota.admit("t", limit=1000, cost=1) is not None
    await quota.correct("t", by=-500)
    assert await quota.admit("t", limit=1000, cost=1) is not None


async def test_what_left_the_window_is_not_taken_from_other_calls(
    quota: Quota,
) -> None:
    assert await quota.admit("t", limit=1000, cost=1000) is None
    await quota.correct("t", by=-900, age_s=WINDOW_S)
    assert await quota.admit("t", limit=1000, cost=1) is not None


async def test_a_correction_never_gives_more_than_the_limit(quota: Quota) -> None:
    await quota.correct("t", by=-500)
    assert await quota.admit("t", limit=100, cost=60) is None
    await quota.correct("t", by=-500)
    assert await quota.admit("t", limit=100, cost=100) is None
    assert await quota.admit("t", limit=100, cost=1) is not None
    await quota.correct("t", by=0)


async def test_it_tells_where_counts_are_kept(quota: Quota) -> None:
    for one in await quota.dependencies():
        assert one.status is HealthStatus.HEALTHY


# In this process.


def most_in_any_minute(taken: list[tuple[float, int]]) -> int:
    most = 0
    for start, _ in taken:
        inside = [cost for at, cost in taken if start <= at < start + WINDOW_S]
        most = max(most, sum(inside))
    return most


async def test_never_more_than_the_limit_in_any_minute(counted: Rounds) -> None:
    for _, chance in counted("quota-any-minute", 30, 3000):
        clock = Clock()
        clock.seconds = chance.random() * 1000
        quota = MovingQuota(clock=clock)
        limit = chance.randint(5, 50)
        taken: list[list[float]] = []
        for _ in range(300):
            clock.seconds += chance.choice([0, 0.1, 1, 5, 30]) * chance.random()
            cost = chance.randint(1, limit)
            wait_s = await quota.admit("a", limit=limit, cost=cost)
            if wait_s is None:
                taken.append([clock.seconds, cost])
            else:
                assert 0 < wait_s <= WINDOW_S + 1
                if chance.random() < 0.2:
                    clock.seconds += wait_s
                    assert await quota.admit("a", limit=limit, cost=cost) is None
                    taken.append([clock.seconds, cost])
            if chance.random() < 0.3 and taken:
                # A call turned out smaller: the truth is made smaller, too.
                call = chance.choice(taken[-5:])
                less = chance.randint(0, int(call[1]))
                age_s = clock.seconds - call[0]
                await quota.correct("a", by=-less, age_s=age_s)
                call[1] -= less
        truth = [(at, int(cost)) for at, cost in taken]
        assert most_in_any_minute(truth) <= limit


async def test_the_window_moves_and_waits_are_true() -> None:
    clock = Clock()
    quota = MovingQuota(clock=clock)
    for cost in (3, 4, 3):
        assert await quota.admit("a", limit=10, cost=cost) is None
        clock.seconds += 10
    # 60 s after the second in which the first, and the second, came.
    for cost, until in ((3, 5061.0), (4, 5071.0), (8, 5081.0), (10, 5081.0)):
        wait_s = await quota.admit("a", limit=10, cost=cost)
        assert wait_s == until - clock.seconds
    clock.seconds = 5060.99
    assert await quota.admit("a", limit=10, cost=3) is not None
    clock.seconds = 5061.0
    assert await quota.admit("a", limit=10, cost=3) is None
    assert await quota.admit("a", limit=10, cost=1) is not None


async def test_memory_is_bounded_whatever_is_asked(seed: int) -> None:
    clock = Clock()
    quota = MovingQuota(max_names=50, clock=clock)
    chance = random.Random(seed)
    for number in range(2000):
        clock.seconds += 0.01
        await quota.admit(f"n{number}", limit=5)
        await quota.correct(f"n{chance.randint(0, number)}", by=1)
    assert quota.names <= 50
    # Who comes now shares one window: nobody gets a new one by changing his name.
    assert await quota.admit("another", limit=5) is not None
    for _ in range(100_000):
        clock.seconds += 0.001
        await quota.admit("n0", limit=10**9)
    assert len(quota._own["n0"].seconds) <= WINDOW_S + 2
    clock.seconds += WINDOW_S + 2
    for _ in range(3):
        await quota.admit("n0", limit=5)
    assert quota.names == 1
    assert await quota.admit("another", limit=5) is None


# On Redis.


async def test_two_processes_share_requests_and_tokens(redis: RedisServer) -> None:
    redis.ask("FLUSHALL")
    one, two = on(redis), on(redis)
    said = []
    for _ in range(20):
        asked = [quota.admit("z", limit=500, cost=7) for quota in (one, two, one)]
        said += await asyncio.gather(*asked)
    assert said.count(None) == 60
    said = [await two.admit("z", limit=500, cost=1) for _ in range(200)]
    assert said.count(None) == 80
    for quota in (one, two):
        await quota.close()


async def test_keys_in_redis_end_with_their_window(redis: RedisServer) -> None:
    redis.ask("FLUSHALL")
    quota = on(redis)
    await quota.admit("z", limit=5)
    await quota.correct("y", by=5)
    for name in "zy":
        left = int(redis.ask("TTL", KEY_PREFIX + name).removeprefix(":"))
        assert WINDOW_S < left <= WINDOW_S + 2
    await quota.close()


async def test_old_seconds_and_those_of_a_clock_set_back_are_mended(
    redis: RedisServer,
) -> None:
    redis.ask("FLUSHALL")
    now = int(time.time())
    key = KEY_PREFIX + "z"
    redis.ask("HSET", key, str(now - WINDOW_S - 2), "100", str(now + 4000), "8")
    quota = on(redis)
    wait_s = await quota.admit("z", limit=10, cost=3)
    assert wait_s is not None
    assert wait_s <= WINDOW_S + 1
    assert await quota.admit("z", limit=10, cost=2) is None
    assert await quota.admit("z", limit=10, cost=1) is not None
    await quota.close()


async def test_what_is_full_here_is_not_asked_of_redis(own_redis: RedisServer) -> None:
    quota = on(own_redis)
    assert await admitted(quota, 3, 3) == 3

    def calls() -> int:
        said = own_redis.ask("INFO", "stats")
        line = next(x for x in said.split("\r\n") if x.startswith("total_commands"))
        return int(line.partition(":")[2])

    before = calls()
    assert await admitted(quota, 500, 3) == 0
    assert calls() - before < 10
    await quota.close()


async def test_without_redis_this_process_counts_and_goes_on_where_it_was(
    own_redis: RedisServer,
) -> None:
    quota = on(own_redis)
    assert await admitted(quota, 40) == 40
    own_redis.stop()
    assert await admitted(quota, 40) == 20
    await quota.correct("a", by=-5)
    assert await admitted(quota, 40) == 5
    (seen,) = await quota.dependencies()
    assert seen.status is HealthStatus.DEGRADED
    assert "this process alone" in seen.message
    assert not seen.required
    own_redis.start()
    await until_shared(quota)
    # Redis forgot, its script included; what was admitted here meanwhile still counts.
    assert await admitted(quota, 40) == 0
    assert await admitted(quota, 80, 60, "b") == 60
    other = on(own_redis)
    assert await admitted(other, 5, 60, "b") == 0
    await quota.close()
    await other.close()


async def test_a_restart_of_redis_costs_nobody_an_error(own_redis: RedisServer) -> None:
    quota = on(own_redis)
    assert await admitted(quota, 10) == 10
    own_redis.stop()
    own_redis.start()
    assert await admitted(quota, 60) == 50
    await until_shared(quota)
    await quota.close()


async def test_a_redis_that_hangs_holds_up_a_few_requests_and_shortly(
    own_redis: RedisServer,
) -> None:
    quota = on(own_redis)
    assert await quota.admit("a", limit=60) is None
    own_redis.ask("CLIENT", "PAUSE", "4000", "ALL")
    began = time.monotonic()
    assert await admitted(quota, 59) == 59
    for _ in range(20):
        await quota.correct("a", by=1)
    # 79 waits of 0.2 s would be 16 s; three are made until the breaker opens.
    assert time.monotonic() - began < RECOVERY_S
    (seen,) = await quota.dependencies()
    assert "did not answer within 0.2 s" in seen.message
    await until_shared(quota)
    # A late answer to a question that was given up must not answer another.
    assert await admitted(quota, 70, 60, "c") == 60
    assert await admitted(quota, 70, 60, "d") == 60
    await quota.close()


async def test_a_redis_that_was_never_there_is_found_when_it_comes(
    own_redis: RedisServer,
) -> None:
    own_redis.stop()
    quota = on(own_redis)
    (seen,) = await quota.dependencies()
    assert seen.status is HealthStatus.DEGRADED
    assert await admitted(quota, 10, 5) == 5
    own_redis.start()
    await until_shared(quota)
    await quota.close()


async def test_a_wrong_password_is_named_and_not_told(redis: RedisServer) -> None:
    wrong = "canary-wrong-password-7171"
    url = redis.url.replace(redis_server.PASSWORD, wrong)
    quota = RedisQuota(RedisConnection(url, user="quotas"), local=MovingQuota())
    assert await admitted(quota, 5, 3) == 3
    (seen,) = await quota.dependencies()
    assert "refuses the name or password in NESTOR_REDIS_URL" in seen.message
    assert wrong not in repr(seen)
    await quota.close()


async def test_connections_are_few_and_closed_at_the_end(
    own_redis: RedisServer,
) -> None:
    quota = on(own_redis)
    await asyncio.gather(*(quota.admit(str(n), limit=5) for n in range(200)))
    assert 1 <= own_redis.clients() <= MAX_CONNECTIONS
    await quota.close()
    async with asyncio.timeout(5):
        while own_redis.clients():
            await asyncio.sleep(0.02)
