"""Work of the index in process that goes on beside its searches: batches and graphs."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.contracts.search_indexes import (
    EVERYWHERE,
    STAMP,
    Y,
    entry,
    found,
)

from nestor.backends.qdrant import shard
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.model.knowledge import EmbeddingStamp, Entry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "qdrant"


@pytest.fixture
async def index(path: Path) -> AsyncIterator[QdrantEdgeIndex]:
    async with await QdrantEdgeIndex.open(path) as index:
        yield index


def generations(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir())


async def test_searches_are_answered_while_a_batch_is_written(path: Path) -> None:
    """One call of the engine stops everything else: a batch is many short ones."""
    calls: Counter[str] = Counter()

    def hook(_: object, event: str, called: object) -> None:
        if event == "c_call":
            calls[getattr(called, "__name__", "")] += 1

    threading.setprofile(hook)  # of threads that begin from here on
    try:
        async with await QdrantEdgeIndex.open(path) as index:
            await index.upsert([entry("walrus")])
            entries = [entry(f"otter {n}") for n in range(1500)]
            calls.clear()
            writing = asyncio.create_task(index.upsert(entries))
            answered = 0
            while not writing.done():
                assert entry("walrus").chunk.id in await found(index, "walrus")
                answered += 1
            await writing
            assert calls["update"] >= 20
            assert calls["flush"] <= 1
            assert answered >= 5
    finally:
        threading.setprofile(None)


@pytest.mark.heavy
async def test_a_graph_is_built_beside_and_misses_no_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a threshold of 600 instead of 50,000 vectors, in a real child process."""
    monkeypatch.setattr(shard, "_GRAPH_AT", 600)
    stamp = EmbeddingStamp(model="m", revision="1", dimension=64)

    def one(number: int) -> Entry:
        chance = random.Random(number)
        vector = [chance.gauss() for _ in range(64)]
        return entry(f"walrus w{number}w", project=f"p{number % 9}", vector=vector)

    async with await QdrantEdgeIndex.open(path) as index:
        await index.clear(stamp)
        await index.upsert([one(n) for n in range(2500)])
        task = index._graph
        assert task is not None
        # Written while the child builds: new, replaced and removed ones.
        await index.upsert([one(n) for n in range(2500, 2600)])
        await index.upsert([entry("beaver", key="walrus w7w")])
        await index.remove([one(n).chunk.id for n in range(10, 20)])
        await asyncio.wait([task])

        assert index._all.current.made.in_graph > 0
        assert generations(path) == ["current.json", "generation-3"]
        await _all_there(index, one, stamp)
    async with await QdrantEdgeIndex.open(path) as index:
        assert index._all.current.made.in_graph > 0
        assert index._graph is None  # there is one already
        await _all_there(index, one, stamp)


async def _all_there(
    index: QdrantEdgeIndex, one: Callable[[int], Entry], stamp: EmbeddingStamp
) -> None:
    wanted = {one(n).chunk.id for n in range(2600) if not 10 <= n < 20}
    assert set(await index.ids(limit=5000)) == wanted
    assert await found(index, "beaver") == [one(7).chunk.id]
    assert await found(index, "w7w") == []
    for number in (0, 500, 2499, 2550):
        legs = await index.search(
            query=f"w{number}w",
            vector=one(number).vector,
            stamp=stamp,
            limit=3,
            where=EVERYWHERE,
        )
        assert legs.dense
        assert legs.bm25
        assert legs.dense[0].chunk_id == legs.bm25[0].chunk_id == one(number).chunk.id


@pytest.mark.heavy
async def test_a_graph_that_is_being_built_goes_when_the_index_is_emptied(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_GRAPH_AT", 600)
    async with await QdrantEdgeIndex.open(path) as index:
        await index.clear(STAMP)
        await index.upsert([entry(f"walrus {n}", vector=Y) for n in range(2100)])
        assert index._graph is not None

        await index.clear(STAMP)

        assert index._graph is None
        assert await index.count() == 0
        assert len(generations(path)) == 2
        await index.upsert([entry(f"walrus {n}", vector=Y) for n in range(2100)])
        assert index._graph is not None
    assert len(generations(path)) == 2  # closing ends it as well
