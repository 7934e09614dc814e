"""AIDB over parts that break in ways nobody foresaw: it says so, goes on and ends well."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.aidb_world import NOW, WALRUS, World

from nestor.aidb.finder import SQL_DOWN
from nestor.aidb.watch import Watch
from nestor.errors import Misconfigured, NotFound, Unavailable
from nestor.model.health import Dependency, HealthStatus


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path).open()
    await world.aidb.start()
    yield world
    await world.close()


def overwrite(home: Path) -> None:
    """As a disk that lost its pages: nothing in the file or its log is a database's."""
    for name in ("n.db", "n.db-wal", "n.db-shm"):
        with (home / name).open("r+b") as file:
            file.write(os.urandom(max((home / name).stat().st_size, 4096)))


async def test_a_damaged_database_is_an_outage_the_index_answers_through(
    world: World,
) -> None:
    await world.add("a.md", WALRUS)
    assert await world.sources("walrus")
    overwrite(world.home)

    with pytest.raises(Unavailable, match="restore a backup"):
        await world.aidb.documents.page()
    part = (await world.aidb.dependencies())[0]
    found = await world.ask("walrus ice")

    assert (part.name, part.status) == ("database", HealthStatus.UNHEALTHY)
    assert "damaged" in part.message
    assert found.degraded == [SQL_DOWN]
    assert [item.source for item in found.items] == ["p/a.md#Animals > Walrus"]
    with pytest.raises(Unavailable, match="restore a backup"):
        await world.add("b.md", "An otter.")


async def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("how", ["run", "ask"])
async def test_a_watch_notes_whatever_goes_wrong_and_no_answer_that_is_a_refusal(
    how: str,
) -> None:
    seen = Watch("database", lambda: NOW, required=True, hold_s=0.0)

    async def call(error: Exception) -> None:
        if how == "run":
            await seen.run(_raise(error))
        else:
            await seen.ask(lambda: _raise(error), within_s=5.0)

    for refusal in (NotFound("no such"), NotFound("nor such")):
        with pytest.raises(NotFound):
            await call(refusal)
        assert not seen.failing
    for failure in (Misconfigured("it broke"), OSError("odd"), KeyError("sk-secret")):
        with pytest.raises(type(failure)):
            await call(failure)
        assert seen.failing
        assert seen.failed.is_set()
        part = seen.dependency()
        assert part.status is HealthStatus.UNHEALTHY
        assert part.message
        assert "secret" not in part.message
        await seen.run(asyncio.sleep(0))
        assert not seen.failing


class OddAnswers:
    """A shared cache that fails as no cache says it does."""

    def __init__(self) -> None:
        self.looks = 0

    async def dependencies(self) -> list[Dependency]:
        self.looks += 1
        if self.looks == 2:
            raise RuntimeError("odd")
        return []

    async def get(self, digest: str) -> bytes | None:  # noqa: ARG002 - the port has it
        return None

    async def put(self, digest: str, answer: bytes, *, ttl_s: float) -> None:
        pass

    async def close(self) -> None:
        pass


async def test_an_odd_failure_ends_no_loop_and_stopping_stops_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestor.aidb.service._LOOK_S", 0.01)
    shared = OddAnswers()
    world = await World(tmp_path).open(shared=shared)
    await world.aidb.start()
    async with asyncio.timeout(10):
        while shared.looks < 5:
            await asyncio.sleep(0.01)
    await world.aidb.stop()
    left = {task.get_name() for task in asyncio.all_tasks()}
    assert not {name for name in left if name.startswith("aidb")}
    await world.close()


async def test_a_rebuild_that_failed_oddly_does_not_keep_the_keeper_from_stopping(
    tmp_path: Path,
) -> None:
    world = await World(tmp_path).open()
    await world.aidb.start()

    async def odd(_: object) -> None:
        raise RuntimeError("odd")

    world.index.rebuild = odd  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        await world.aidb.reindex()
    await world.aidb.stop()
    await world.aidb.keeper.stop()
    left = {task.get_name() for task in asyncio.all_tasks()}
    assert not {name for name in left if name.startswith("aidb")}
    await world.close()
