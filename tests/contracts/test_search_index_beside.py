"""Work of the index in process that goes on beside its searches: batches and graphs."""

import asyncio
import os
import random
import shutil
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

from nestor.backends.qdrant import edge, shard
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.qdrant.graph import GraphBuilder
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


@pytest.mark.heavy
@pytest.mark.parametrize("what", ["copy", "child", "catch up"])
async def test_a_graph_that_cannot_be_built_leaves_nothing_and_is_tried_again_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(shard, "_GRAPH_AT", 10)
    monkeypatch.setattr(edge, "_LOOK_EVERY", 20)
    build, begun, now = GraphBuilder.build, Counter[str](), 0.0

    async def wrong(builder: GraphBuilder, copied: Path, dimension: int) -> str | None:
        begun["builds"] += 1
        if what == "catch up":
            shutil.rmtree(copied)
            return None
        building = asyncio.create_task(build(builder, copied, dimension))
        while builder._process is None:
            await asyncio.sleep(0.01)
        builder._process.kill()  # as the kernel does where memory is short
        return await building

    monkeypatch.setattr(GraphBuilder, "build", wrong)
    async with await QdrantEdgeIndex.open(path, timer=lambda: now) as index:
        await index.clear(STAMP)
        here = path / generations(path)[-1]
        if what == "copy":
            (here / "late").symlink_to("nowhere")  # all but this one can be copied
        for number in range(0, 200, 20):
            await index.upsert(
                [entry(f"walrus {n}", vector=Y) for n in range(number, number + 20)]
            )
            while index._graph is not None:
                await asyncio.sleep(0.01)

        assert generations(path) == ["current.json", here.name]
        assert not index._all._changed, "nobody will read what is noted"
        assert begun["builds"] == (0 if what == "copy" else 1)
        assert await index.count() == 200

        monkeypatch.setattr(GraphBuilder, "build", build)
        (here / "late").unlink(missing_ok=True)
        now += 3600.0
        await index.upsert([entry(f"walrus {n}", vector=Y) for n in range(200, 220)])
        while index._graph is not None:
            await asyncio.sleep(0.01)
        assert index._all.current.folder != here
        assert await index.count() == 220
    assert len(generations(path)) == 2


async def test_a_new_generation_that_is_named_is_not_thrown_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses the last word only: the pointer already names the new one."""
    fsync, synced = os.fsync, Counter[str]()

    def refusing(handle: int) -> None:
        fsync(handle)
        here = str(Path(f"/proc/self/fd/{handle}").readlink())
        synced[here] += 1
        if here == str(path) and synced[here] == 2:
            raise OSError(5, "Input/output error")

    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert([entry("walrus")])
        rebuild = await index.rebuild(None)
        await rebuild.upsert([entry("otter")])
        monkeypatch.setattr(os, "fsync", refusing)
        await rebuild.swap()
        await rebuild.discard()
        monkeypatch.undo()
        assert synced[str(path)] == 2
        assert await found(index, "walrus otter") == [entry("otter").chunk.id]
        await index.upsert([entry("lynx")])
    async with await QdrantEdgeIndex.open(path) as index:
        assert await index.count() == 2
