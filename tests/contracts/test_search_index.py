"""What every SearchIndex promises, and what Qdrant Edge adds: one process, no surprises."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nestor.backends.qdrant.edge import Bm25Parameters, QdrantEdgeIndex
from nestor.errors import IndexDamaged, Misconfigured, Unavailable
from nestor.model.ids import derived_id
from nestor.model.knowledge import Chunk, Collection, Document

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "qdrant"


@pytest.fixture
async def index(path: Path) -> AsyncIterator[QdrantEdgeIndex]:
    async with await QdrantEdgeIndex.open(path) as index:
        yield index


def pair(
    text: str,
    collection: Collection = Collection.CODEBASE_CONTEXT,
    *,
    key: str = "",
    heading: str = "",
) -> tuple[Chunk, Document]:
    owner = derived_id("document", key or text)
    chunk = Chunk(
        id=derived_id("chunk", key or text),
        document_id=owner,
        ordinal=0,
        heading=heading,
        text=text,
        start=0,
        end=len(text),
    )
    return chunk, Document(
        id=owner,
        project="p",
        path="x",
        collection=collection,
        content_hash="",
        size_bytes=len(text),
        chunks=1,
        metadata={},
        added_at=NOW,
    )


async def ids(index: QdrantEdgeIndex, query: str, **how: object) -> list[str]:
    hits = await index.search(query, limit=10, **how)  # type: ignore[arg-type]
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    return [hit.chunk_id for hit in hits]


async def test_the_best_match_comes_first_across_word_forms(
    index: QdrantEdgeIndex,
) -> None:
    one = pair("walruses are sleeping on the ice")
    two = pair("the otter sleeps while the walrus eats and the walrus swims")
    await index.upsert([one, two, pair("nothing of interest")])

    assert await ids(index, "sleeping walrus ice") == [one[0].id, two[0].id]
    assert await ids(index, "giraffe") == []
    assert await ids(index, "the and of") == []


async def test_headings_are_searched(index: QdrantEdgeIndex) -> None:
    one = pair("use apt", heading="Install > Linux")
    await index.upsert([one, pair("use brew", heading="Install > Mac")])

    assert await ids(index, "linux") == [one[0].id]


async def test_collections_filter(index: QdrantEdgeIndex) -> None:
    one, two = pair("walrus one"), pair("walrus two", Collection.ERROR_SOLUTIONS)
    await index.upsert([one, two])

    wanted = [Collection.ERROR_SOLUTIONS, Collection.SKILLS_PATTERNS]
    assert await ids(index, "walrus", collections=wanted) == [two[0].id]
    assert await ids(index, "walrus", collections=[]) == []


async def test_an_upsert_replaces_and_a_removal_forgets(index: QdrantEdgeIndex) -> None:
    await index.upsert([pair("walrus", key="k")])
    await index.upsert([pair("otter", key="k")])
    assert await index.count() == 1
    assert await ids(index, "walrus") == []

    await index.remove([pair("otter", key="k")[0].id, derived_id("unknown")])

    assert await index.count() == 0
    assert await ids(index, "otter") == []
    await index.upsert([])
    await index.remove([])


@pytest.mark.parametrize("query", ["", "\0", "\ud800", '"NEAR(', "x" * 8000, "ü 🦉"])
async def test_any_text_is_a_valid_query(index: QdrantEdgeIndex, query: str) -> None:
    await index.upsert([pair("walrus")])

    assert await ids(index, query) == []


async def test_what_was_acknowledged_is_there_after_reopening(path: Path) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert([pair("walrus")])
    async with await QdrantEdgeIndex.open(path) as index:
        assert await ids(index, "walrus") == [pair("walrus")[0].id]
        await index.clear()
        assert await index.count() == 0
    async with await QdrantEdgeIndex.open(path) as index:
        assert await index.count() == 0


async def test_a_second_process_is_refused_and_harms_nothing(
    path: Path, index: QdrantEdgeIndex
) -> None:
    await index.upsert([pair("walrus")])
    code = (
        "import asyncio, sys, pathlib\n"
        "from nestor.backends.qdrant.edge import QdrantEdgeIndex\n"
        "async def go():\n"
        "    async with await QdrantEdgeIndex.open(pathlib.Path(sys.argv[1])): pass\n"
        "asyncio.run(go())\n"
    )

    second = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert second.returncode == 1
    assert (
        f"Misconfigured: the search index at {path} is in use by process {os.getpid()}"
        in second.stderr
    )
    await index.upsert([pair("otter")])
    assert await index.count() == 2


async def test_closing_lets_go_of_the_lock(path: Path) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        with pytest.raises(Misconfigured, match=str(os.getpid())):
            async with await QdrantEdgeIndex.open(path):
                pass
        await index.close()
        await index.close()
        async with await QdrantEdgeIndex.open(path) as other:
            assert await other.count() == 0
        with pytest.raises(Unavailable, match="closed"):
            await index.count()


async def test_a_lock_that_is_a_link_is_refused(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    target = tmp_path / "precious"
    target.write_text("text")
    path.with_name("qdrant.lock").symlink_to(target)

    with pytest.raises(Misconfigured):
        async with await QdrantEdgeIndex.open(path):
            pass

    assert target.read_text() == "text"


def _garbage(path: Path) -> None:
    for file in (path / "shard").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff\x00garbage" * 10)


def _halved(path: Path) -> None:
    for file in (path / "shard").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def _broken_pages(path: Path) -> None:
    """The engine panics on this one, which is no ``Exception`` in Python."""
    for file in path.rglob("store/tracker.dat"):
        file.write_bytes(b"\xff\x00garbage" * 10)


@pytest.mark.parametrize("damage", [_garbage, _halved, _broken_pages])
async def test_a_damaged_folder_says_so_until_it_is_cleared(
    path: Path, damage: Callable[[Path], None]
) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert([pair(f"walrus {n}") for n in range(600)])
    async with await QdrantEdgeIndex.open(path):
        pass  # now the engine's own log no longer holds the writes
    damage(path)

    async with await QdrantEdgeIndex.open(path) as index:
        for call in (
            lambda: index.search("walrus", limit=5),
            lambda: index.search("the", limit=5),
            lambda: index.upsert([pair("otter")]),
            index.count,
        ):
            with pytest.raises(IndexDamaged):
                await call()
        await index.clear()
        await index.upsert([pair("otter")])
        assert await ids(index, "walrus otter") == [pair("otter")[0].id]


async def test_a_folder_that_is_a_file_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("garbage")

    async with await QdrantEdgeIndex.open(path) as index:
        assert await index.count() == 0


async def test_an_index_made_with_other_parameters_starts_empty(path: Path) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert([pair("walrus")])

    other = Bm25Parameters(avg_len=50.0)
    async with await QdrantEdgeIndex.open(path, parameters=other) as index:
        assert await index.count() == 0


async def test_a_folder_removed_under_a_running_index_is_damage_not_emptiness(
    path: Path, index: QdrantEdgeIndex
) -> None:
    await index.upsert([pair("walrus")])
    shutil.rmtree(path)

    with pytest.raises(Unavailable):
        await index.upsert([pair("otter")])
    with pytest.raises(IndexDamaged):
        await index.count()

    await index.clear()
    await index.upsert([pair("walrus")])
    assert await ids(index, "walrus") == [pair("walrus")[0].id]
