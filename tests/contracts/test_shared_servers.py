"""Two installations that use one Qdrant server: each keeps its own index there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.servers.qdrant_stand_in import QdrantStandIn, qdrant_stand_in
from tests.unit.aidb_world import WALRUS, Events

from nestor.aidb.service import Aidb
from nestor.backends.sql.database import Database
from nestor.backends.sql.identity import identity_of
from nestor.model.knowledge import NewDocument
from nestor.settings import Settings
from nestor.wiring.knowledge import aidb_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
]


@pytest.fixture
async def qdrant() -> AsyncIterator[QdrantStandIn]:
    async with qdrant_stand_in() as qdrant:
        yield qdrant


@asynccontextmanager
async def started(home: Path, qdrant: QdrantStandIn) -> AsyncIterator[Aidb]:
    """As ``nestor up`` starts it."""
    home.mkdir(exist_ok=True)
    settings = Settings(home=home, qdrant_url=qdrant.base_url)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.open(settings.database))
        aidb, _ = await aidb_of(stack, settings, database, Events())
        yield aidb


async def found(aidb: Aidb, query: str) -> list[str]:
    return [one.source for one in (await aidb.search(query, leg="bm25")).items]


async def test_a_second_installation_leaves_the_first_ones_index_alone(
    qdrant: QdrantStandIn, tmp_path: Path
) -> None:
    async with started(tmp_path / "a", qdrant) as first:
        await first.add(NewDocument(project="p", path="a.md", content=WALRUS))
        async with started(tmp_path / "b", qdrant) as second:
            await second.add(NewDocument(project="q", path="b.md", content="An otter."))
            await second.reindex()

            assert await found(first, "walrus otter") == ["p/a.md#Animals > Walrus"]
            assert await found(second, "walrus otter") == ["q/b.md"]
            for one in (first, second):
                assert (await one.verify()).problems == []
        await first.reindex()
    async with started(tmp_path / "b", qdrant) as second:
        assert await found(second, "walrus otter") == ["q/b.md"]
        assert (await second.counts()).waiting == 0


async def test_a_restart_answers_from_the_index_it_had(
    qdrant: QdrantStandIn, tmp_path: Path
) -> None:
    async with started(tmp_path / "a", qdrant) as first:
        await first.add(NewDocument(project="p", path="a.md", content=WALRUS))
    qdrant.requests.clear()
    async with started(tmp_path / "a", qdrant) as again:
        assert await found(again, "walrus") == ["p/a.md#Animals > Walrus"]
    assert not [r for r in qdrant.requests if r.method == "PUT"], "it was filled anew"


async def test_all_who_use_a_database_are_one_installation(database_url: str) -> None:
    async with (
        Database.open(database_url) as one,
        Database.open(database_url) as other,
    ):
        made = await asyncio.gather(*(identity_of(d) for d in [one, other] * 4))
        assert len(set(made)) == 1
        assert len(made[0]) == 16
        assert await identity_of(other) == made[0]
