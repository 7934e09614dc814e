"""Answers given again: how long, how many, whose, and never of before a write."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.servers import redis_server
from tests.servers.redis_server import RedisServer
from tests.unit.aidb_world import WALRUS, World

from nestor.aidb.cache import ContextCache
from nestor.aidb.finder import REDIS_DOWN
from nestor.aidb.freshness import Freshness
from nestor.backends.redis.answer_cache import RedisAnswers
from nestor.backends.redis.connection import RedisConnection
from nestor.model.health import HealthStatus
from nestor.model.knowledge import ContextItem, ContextResult
from nestor.resilience.answer_cache import MemoryAnswers


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def result(text: str = "x") -> ContextResult:
    item = ContextItem(id="1", kind="document", text=text, source="s", score=1.0)
    return ContextResult(items=[item])


async def test_an_answer_is_kept_for_an_hour_and_no_longer() -> None:
    clock, made = Clock(), 0

    async def make() -> tuple[ContextResult, bool]:
        nonlocal made
        made += 1
        return result(), True

    cache = ContextCache(10, timer=clock)
    assert not (await cache.get("k", make))[1]
    clock.now = 3599.0
    assert (await cache.get("k", make))[1]
    clock.now = 3600.0
    assert not (await cache.get("k", make))[1]
    assert made == 2


async def test_answers_take_bounded_room() -> None:
    async def make() -> tuple[ContextResult, bool]:
        return result("x" * 10_000), True

    cache = ContextCache(1000, max_bytes=100_000)
    for number in range(20):
        await cache.get(str(number), make)
    kept = [(await cache.get(str(n), make))[1] for n in range(19, 15, -1)]
    assert kept == [True] * 4
    assert not (await cache.get("0", make))[1]


async def test_a_version_is_asked_for_once_in_100_ms_and_after_each_write() -> None:
    clock, version, asked = Clock(), 1, 0

    async def read() -> int:
        nonlocal asked
        asked += 1
        return version

    fresh = Freshness(read, timer=clock)
    assert [await fresh.version() for _ in range(5)] == [1] * 5
    assert asked == 1
    version = 2
    assert await fresh.version() == 1, "another process may lag by 100 ms"
    clock.now = 0.1
    assert await fresh.version() == 2
    version = 3
    fresh.changed()
    assert await fresh.version() == 3
    assert asked == 3


async def test_a_reading_from_before_a_write_is_not_remembered_after_it() -> None:
    versions = [1, 2]
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def read() -> int:
        found = versions[0]
        begun.set()
        await go_on.wait()
        return found

    fresh = Freshness(read, timer=Clock())
    early = asyncio.create_task(fresh.version())
    await begun.wait()
    versions.pop(0)
    fresh.changed()
    go_on.set()
    assert await early == 2
    assert await fresh.version() == 2


async def test_hits_cost_no_question_to_sql(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.add("a.md", WALRUS)
    await world.ask("walrus")
    asked = 0
    version = world.store.version

    async def counted() -> int:
        nonlocal asked
        asked += 1
        return await version()

    world.aidb._fresh._read = counted
    for _ in range(50):
        assert (await world.ask("walrus")).cached
    assert asked <= 10
    await world.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def two(tmp_path: Path, redis: RedisServer) -> AsyncIterator[list[World]]:
    """Two stacks with knowledge of their own, at one Redis; the second is of the same base."""
    worlds: list[World] = []
    for space in ("one", "one", "other"):
        home = tmp_path / f"{len(worlds)}"
        home.mkdir()
        shared = RedisAnswers(
            RedisConnection(redis.url, user="answers"), local=MemoryAnswers(0)
        )
        world = await World(home).open(shared=shared, space=space)
        world._stack.push_async_callback(shared.close)
        await world.aidb.start()
        await world.add("a.md", WALRUS)
        worlds.append(world)
    yield worlds
    for world in worlds:
        await world.close()


async def test_what_one_process_found_another_gives_but_of_its_own_base_only(
    two: list[World],
) -> None:
    first, same, other = two
    for world in two:  # both databases have seen the same number of writes
        async with asyncio.timeout(10):
            while await world.store.version() != await first.store.version():
                await asyncio.sleep(0.01)
    assert not (await first.ask("walrus")).cached
    assert (await same.ask("walrus")).cached
    assert same.index.searches == 0
    assert not (await other.ask("walrus")).cached

    await same.add("b.md", "Another walrus.\n")
    assert len((await same.ask("walrus")).items) == 2


async def test_without_redis_answers_go_on_and_say_so(
    two: list[World], redis: RedisServer
) -> None:
    world = two[0]
    await world.ask("walrus")
    redis.stop()
    async with asyncio.timeout(5):
        while (await world.ask("walrus")).degraded != [REDIS_DOWN]:
            await asyncio.sleep(0.05)
    part = (await world.aidb.dependencies())[-1]
    assert (part.name, part.status) == ("redis", HealthStatus.DEGRADED)
    assert (await world.ask("ice clams")).items

    redis.start()
    async with asyncio.timeout(5):
        while (await world.ask("walrus")).degraded:
            await asyncio.sleep(0.05)
    part = (await world.aidb.dependencies())[-1]
    assert part.status is HealthStatus.HEALTHY
