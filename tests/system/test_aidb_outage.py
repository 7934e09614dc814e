"""PostgreSQL and Redis are stopped and started under queries that never end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from tests.servers import postgres, redis_server
from tests.servers.postgres import Postgres
from tests.servers.redis_server import RedisServer
from tests.system.child import Child

from nestor.aidb.finder import REDIS_DOWN, SQL_DOWN
from nestor.cli.client import Stack

WITHIN_S = 5.0
PACE_S = 0.02


class Load:
    """Asks for context all the time, each time something else but now and then the same."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        self.statuses: set[int] = set()
        self.degraded: list[str] = []
        self.sources: list[str] = []
        self.asked = 0

    async def run(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            while True:
                query = f"walrus {self.asked if self.asked % 3 else 'ice'}"
                body = {"query": query, "limit": 3}
                async with session.post(self._url + "/context", json=body) as reply:
                    told = await reply.json()
                    self.statuses.add(reply.status)
                    self.degraded = told.get("degraded", ["no answer"])
                    self.sources = [item["source"] for item in told.get("items", [])]
                self.asked += 1
                await asyncio.sleep(PACE_S)

    async def until(self, holds: Callable[[], bool], within_s: float) -> None:
        """Wait until it holds, and goes on to hold for some answers."""
        began = since = time.monotonic()
        in_a_row = seen = 0
        while in_a_row < 5:
            if self.asked > seen:
                seen = self.asked
                in_a_row = in_a_row + 1 if holds() else 0
            if in_a_row == 0:
                since = time.monotonic()
            assert since - began < within_s, (self.degraded, self.sources)
            await asyncio.sleep(PACE_S / 2)


@asynccontextmanager
async def loaded(home: Path, **settings: str) -> AsyncIterator[tuple[Load, Stack]]:
    """``nestor up`` with one document, and questions to it all the time."""
    with Child(home, **settings) as child:
        stack = await asyncio.to_thread(child.start)
        new = {"project": "p", "path": "a.md", "content": "# W\n\nA walrus on ice.\n"}
        await asyncio.to_thread(stack.call, "aidb", "POST", "/documents", body=new)
        load = Load(stack.url("aidb"), (home / "api-key").read_text().strip())
        task = asyncio.create_task(load.run())
        try:
            await load.until(lambda: load.degraded == [], WITHIN_S)
            yield load, stack
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def ready(stack: Stack) -> int:
    """Return the status of AIDB's ``/health/ready``."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(stack.url("aidb") + "/health/ready") as reply,
    ):
        return reply.status


@pytest.fixture
def server() -> Iterator[Postgres]:
    with postgres.running() as running:
        yield running


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path / "redis") as running:
        yield running


@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_postgresql_goes_and_comes_back_under_load(
    tmp_path: Path, server: Postgres, how: str
) -> None:
    url = server.url(server.database())
    go, back = (server.stop, server.start)
    if how == "frozen":
        go, back = (server.freeze, server.thaw)
    async with loaded(tmp_path / "home", database_url=url) as (load, stack):
        for _ in range(2):
            assert await ready(stack) == 200
            await asyncio.to_thread(go)
            await load.until(lambda: load.degraded == [SQL_DOWN], WITHIN_S)
            assert load.sources == ["p/a.md#W"]
            assert await ready(stack) == 503
            await asyncio.to_thread(back)
            await load.until(lambda: load.degraded == [], WITHIN_S)
            assert load.sources == ["p/a.md#W"]
        assert load.statuses == {200}
        assert await ready(stack) == 200


@pytest.mark.heavy
@pytest.mark.timeout(300)
async def test_redis_goes_and_comes_back_under_load(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with loaded(tmp_path / "home", redis_url=redis.url) as (load, stack):
        for _ in range(2):
            await asyncio.to_thread(redis.stop)
            await load.until(lambda: load.degraded == [REDIS_DOWN], WITHIN_S)
            assert load.sources == ["p/a.md#W"]
            assert await ready(stack) == 200
            await asyncio.to_thread(redis.start)
            await load.until(lambda: load.degraded == [], WITHIN_S)
        assert load.statuses == {200}
