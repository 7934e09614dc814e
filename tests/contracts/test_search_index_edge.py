"""What Qdrant Edge adds to the contract: one process, a folder, and no surprises."""

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import qdrant_edge
from tests.contracts.search_indexes import (
    EVERYWHERE,
    STAMP,
    X,
    entry,
    found,
    near,
)

from nestor.backends.qdrant import points
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.qdrant.points import Bm25Parameters, Weights
from nestor.errors import IndexDamaged, InvalidInput, Misconfigured, Unavailable
from nestor.model.knowledge import Entry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "qdrant"


@pytest.fixture
async def index(path: Path) -> AsyncIterator[QdrantEdgeIndex]:
    async with await QdrantEdgeIndex.open(path) as index:
        yield index


def generations(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir())


async def test_what_was_acknowledged_is_there_after_reopening(path: Path) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        await index.clear(STAMP)
        await index.upsert([entry("walrus", vector=X)])
    async with await QdrantEdgeIndex.open(path) as index:
        assert await index.stamp() == STAMP
        assert await found(index, "walrus") == [entry("walrus").chunk.id]
        assert await near(index, X) == [entry("walrus").chunk.id]
        await index.clear(None)
        assert await index.count() == 0
    async with await QdrantEdgeIndex.open(path) as index:
        assert await index.count() == 0
        assert await index.stamp() is None
        assert generations(path) == ["current.json", "generation-3"]


async def test_a_swapped_rebuild_is_there_after_reopening(path: Path) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert([entry("walrus")])
        rebuild = await index.rebuild(STAMP)
        await rebuild.upsert([entry("otter", vector=X)])
        await rebuild.swap()
        unfinished = await index.rebuild(None)
        await unfinished.upsert([entry("lynx")])
    async with await QdrantEdgeIndex.open(path) as index:
        assert await found(index, "walrus otter lynx") == [entry("otter").chunk.id]
        assert generations(path) == ["current.json", "generation-2"]


_SECOND = """
import asyncio, pathlib, sys
from nestor.backends.qdrant.edge import QdrantEdgeIndex

async def go():
    async with await QdrantEdgeIndex.open(pathlib.Path(sys.argv[1])):
        pass

asyncio.run(go())
"""
_RUDE = """
import sys, qdrant_edge
qdrant_edge.EdgeShard.load(sys.argv[1])
"""


async def _run(code: str, argument: Path) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(argument)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_a_second_process_is_told_who_has_it_and_harms_nothing(
    path: Path, index: QdrantEdgeIndex
) -> None:
    await index.upsert([entry("walrus")])

    second = await _run(_SECOND, path)

    assert second.returncode == 1
    assert (
        f"Misconfigured: the search index at {path} is in use by process"
        f" {os.getpid()}; ask that one" in second.stderr
    )
    await index.upsert([entry("otter")])
    assert await index.count() == 2


async def test_on_a_full_disk_the_lock_holds_without_the_name_of_its_holder(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    async with await QdrantEdgeIndex.open(path) as index:
        second = await _run(_SECOND, path)
        assert "is in use by process unknown; ask that one" in second.stderr
        assert await index.count() == 0


async def test_one_that_ignores_the_lock_costs_no_write(
    path: Path, index: QdrantEdgeIndex
) -> None:
    """Its ``load`` fails, but breaks our next flush: the files are opened again."""
    entries = [entry(f"walrus {n}") for n in range(150)]
    for one in entries[:50]:  # enough of them that it was flushed once
        await index.upsert([one])

    rude = await _run(_RUDE, path / "generation-1")
    assert rude.returncode == 1
    assert "WouldBlock" in rude.stderr

    for one in entries[50:]:  # over several flushes
        await index.upsert([one])
    assert await index.count() == 150
    assert set(await found(index, "walrus", limit=200)) == {
        one.chunk.id for one in entries
    }
    await index.close()
    async with await QdrantEdgeIndex.open(path) as again:
        assert await again.count() == 150


async def test_files_that_a_stranger_holds_are_named_with_its_pid(path: Path) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert([entry("walrus")])
    code = f"{_RUDE}print('open', flush=True)\nsys.stdin.read()"
    code = code.replace("qdrant_edge.EdgeShard", "held = qdrant_edge.EdgeShard")
    stranger = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(path / "generation-1")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert stranger.stdout is not None
    assert await stranger.stdout.readline() == b"open\n"
    try:
        async with await QdrantEdgeIndex.open(path) as index:
            with pytest.raises(
                Unavailable, match=f"open in process {stranger.pid}"
            ) as e:
                await index.count()
            assert not isinstance(e.value, IndexDamaged)  # nothing to throw away
            stranger.kill()
            await stranger.wait()
            assert await found(index, "walrus") == [entry("walrus").chunk.id]
    finally:
        if stranger.returncode is None:
            stranger.kill()
        await stranger.communicate()


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
        with pytest.raises(Unavailable, match="closed"):
            await index.upsert([entry("walrus")])


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
    for file in (path / "generation-1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff\x00garbage" * 10)


def _halved(path: Path) -> None:
    for file in (path / "generation-1").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def _broken_pages(path: Path) -> None:
    """The engine panics on this one, which is no ``Exception`` in Python."""
    for file in path.rglob("store/tracker.dat"):
        file.write_bytes(b"\xff\x00garbage" * 10)


def _generation_gone(path: Path) -> None:
    shutil.rmtree(path / "generation-1")


@pytest.mark.parametrize("damage", [_garbage, _halved, _broken_pages, _generation_gone])
async def test_a_damaged_folder_says_so_until_it_is_cleared(
    path: Path, damage: Callable[[Path], None]
) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert([entry(f"walrus {n}") for n in range(600)])
    async with await QdrantEdgeIndex.open(path):
        pass  # now the engine's own log no longer holds the writes
    damage(path)

    async with await QdrantEdgeIndex.open(path) as index:
        for call in (
            lambda: index.search(query="walrus", limit=5, where=EVERYWHERE),
            lambda: index.search(query="the", limit=5, where=EVERYWHERE),
            lambda: index.upsert([entry("otter")]),
            lambda: index.remove([entry("otter").chunk.id]),
            lambda: index.entries([entry("otter").chunk.id]),
            index.ids,
            index.count,
        ):
            with pytest.raises(IndexDamaged):
                await call()
        await index.clear(None)
        await index.upsert([entry("otter")])
        assert await found(index, "walrus otter") == [entry("otter").chunk.id]


async def test_a_damaged_index_can_be_rebuilt_as_well(path: Path) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert([entry("walrus")])
    _generation_gone(path)
    async with await QdrantEdgeIndex.open(path) as index:
        rebuild = await index.rebuild(None)
        await rebuild.upsert([entry("otter")])
        await rebuild.swap()
        assert await found(index, "walrus otter") == [entry("otter").chunk.id]


async def test_a_folder_that_is_a_file_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("garbage")

    async with await QdrantEdgeIndex.open(path) as index:
        assert await index.count() == 0


async def test_an_older_layout_is_refilled_and_removed(path: Path) -> None:
    (path / "shard").mkdir(parents=True)
    (path / "shard" / "edge_config.json").write_text("{}")
    (path / "stamp.json").write_text('{"schema": 1, "bm25": {}}')
    (path / "generation-7").mkdir()
    (path / "mine.txt").write_text("keep me")

    async with await QdrantEdgeIndex.open(path) as index:
        assert await index.count() == 0
        await index.upsert([entry("walrus")])
    assert generations(path) == ["current.json", "generation-1", "mine.txt"]


@pytest.mark.parametrize("text", ["", "\xff", "[]", '{"generation": 1}', "null"])
async def test_a_pointer_that_says_nothing_means_an_empty_index(
    path: Path, text: str
) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert([entry("walrus")])
    (path / "current.json").write_text(text, "latin-1")

    async with await QdrantEdgeIndex.open(path) as index:
        assert await index.count() == 0
        assert generations(path) == ["current.json", "generation-1"]


@pytest.mark.parametrize(
    "other", [Bm25Parameters(avg_len=50.0), Bm25Parameters(b=0.5), 1, -1]
)
async def test_an_index_made_in_another_way_starts_empty(
    path: Path, other: Bm25Parameters | int
) -> None:
    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert([entry("walrus")])
    if isinstance(other, int):  # a later version of Nestor made it, or an earlier one
        pointer = json.loads((path / "current.json").read_text())
        pointer["made"]["schema"] += other
        (path / "current.json").write_text(json.dumps(pointer))

    parameters = other if isinstance(other, Bm25Parameters) else None
    async with await QdrantEdgeIndex.open(path, parameters=parameters) as index:
        assert await index.count() == 0


async def test_a_folder_removed_under_a_running_index_is_damage_not_emptiness(
    path: Path, index: QdrantEdgeIndex
) -> None:
    await index.upsert([entry("walrus")])
    shutil.rmtree(path)

    with pytest.raises(Unavailable):
        await index.upsert([entry("otter")])
    with pytest.raises(IndexDamaged):
        await index.count()

    await index.clear(None)
    await index.upsert([entry("walrus")])
    assert await found(index, "walrus") == [entry("walrus").chunk.id]


async def test_an_id_that_is_no_uuid_is_refused(index: QdrantEdgeIndex) -> None:
    good = entry("walrus")
    bad = Entry(
        chunk=good.chunk.__class__(
            id="walrus-1",
            document_id="d",
            ordinal=0,
            heading="",
            text="x",
            start=0,
            end=1,
        ),
        document=good.document,
    )
    with pytest.raises(InvalidInput, match="'walrus-1' is not a UUID"):
        await index.upsert([bad])


@pytest.mark.parametrize("avg_len", [3.0, 20.0, 400.0])
def test_words_weigh_what_the_engines_own_model_says(avg_len: float) -> None:
    parameters = Bm25Parameters(k=1.4, b=0.6)
    text = "the walrus and the walruses sleep; an otter, a walrus " * 9 + "🦉 ü x1"
    one = entry(text, heading="Ice", path="src/ice.md")
    weights = Weights(parameters)
    counts = weights.counts(one.chunk, one.document)
    made = weights.document(counts, avg_len)

    config = qdrant_edge.Bm25Config(k=1.4, b=0.6, avg_len=avg_len, language="english")
    said = qdrant_edge.Bm25(config).embed_document(f"src/ice.md\nIce\n{text}")

    expected = dict(zip(said.indices, said.values, strict=True))
    weighed = dict(zip(made.indices, made.values, strict=True))
    words = {number: value for number, value in weighed.items() if number < 2**31}
    assert words == pytest.approx(expected)
    assert len(weighed) > len(words)  # pairs, beside them


def test_pairs_pass_over_stop_words_and_are_weighed_like_words() -> None:
    weights = Weights(Bm25Parameters())
    one = entry("Walruses sleep on the ice. Walrus, sleep!", path="src/ice.md")
    counts = weights.counts(one.chunk, one.document)

    asked = weights.query("the walrus sleeps; the ice", pairs=True)
    pairs = [number for number in asked.indices if number > 2**31]

    assert weights.query("the walrus sleeps; the ice").indices == asked.indices[:3]
    assert [counts[number] for number in pairs] == [2, 1]
    assert asked.values == pytest.approx([1.0] * 3 + [0.15 / 0.85] * 2)
    assert points.length_of(counts) == 8
    assert points.terms_of(asked) == 3
    weighed = weights.document(counts, 8.0)
    values = dict(zip(weighed.indices, weighed.values, strict=True))
    assert values[pairs[0]] == pytest.approx(2 * 2.2 / (2 + 1.2))


def test_a_pair_of_metadata_looks_like_no_other() -> None:
    pairs = [("a", "b"), ("a=b", ""), ("", "a=b"), ('a","b', ""), ("a", 'b"')]
    assert len({points.pair(*one) for one in pairs}) == len(pairs)
