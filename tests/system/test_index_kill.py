"""``kill -9`` under the search index in process: what was acknowledged is there, whole."""

import asyncio
import signal
import sys
import textwrap
from pathlib import Path

import pytest
from tests.conftest import ROOT, Rounds
from tests.contracts.search_indexes import entry

from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.model.knowledge import EmbeddingStamp, Entry, Where

STAMP = EmbeddingStamp(model="m", revision="1", dimension=3)
_BATCH = 7
_PIECES = 45
_UPSERTS = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from nestor.backends.qdrant.edge import QdrantEdgeIndex
    from tests.system.test_index_kill import STAMP, batch

    async def main(path, number):
        async with await QdrantEdgeIndex.open(path) as index:
            if await index.stamp() != STAMP:
                await index.clear(STAMP)
            while True:
                await index.upsert(batch(number))
                if number % 5 == 4:
                    await index.remove([one.chunk.id for one in batch(number - 1)])
                print(number, flush=True)
                number += 1

    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
    """
)
_REBUILDS = textwrap.dedent(
    """
    import asyncio, os, signal, sys
    from pathlib import Path
    from nestor.backends.qdrant.edge import QdrantEdgeIndex
    from tests.system.test_index_kill import generation

    steps, last = 0, 0
    STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}

    def hook(event, arguments):
        global steps
        if last and event in STEPS and "qdrant" in str(arguments[0]):
            steps += 1
            if steps == last:
                os.kill(os.getpid(), signal.SIGKILL)

    async def main(path, number, stop):
        global last
        async with await QdrantEdgeIndex.open(path) as index:
            sys.addaudithook(hook)
            last = max(0, stop)
            while True:
                rebuild = await index.rebuild(None)
                pieces = generation(number)
                for at in range(0, len(pieces), 15):
                    await rebuild.upsert(pieces[at : at + 15])
                    if at == -15 * stop:
                        os.kill(os.getpid(), signal.SIGKILL)
                await rebuild.swap()
                print(number, steps, flush=True)
                number += 1

    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
    """
)


def batch(number: int) -> list[Entry]:
    """Some have a vector, as it is while they are made."""
    return [
        entry(
            f"walrus w{number}x{at}w",
            vector=[1.0, float(number % 9), float(at)] if at % 2 else None,
        )
        for at in range(_BATCH)
    ]


def generation(number: int) -> list[Entry]:
    return [entry(f"walrus g{number}g p{at}p", key=f"{at}") for at in range(_PIECES)]


async def _killed(code: str, *arguments: object, after_s: float | None) -> list[str]:
    """Return the whole lines of a child that was killed; None: it kills itself."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )
    assert child.stdout is not None
    line = b""
    async with asyncio.timeout(60):
        if after_s is not None:
            line = await child.stdout.readline()
            await asyncio.sleep(after_s)
            child.send_signal(signal.SIGKILL)
        rest = await child.stdout.read()
        assert await child.wait() == -signal.SIGKILL
    # A line is whole or was never acknowledged.
    return [one.decode() for one in (line + rest).split(b"\n")[:-1]]


@pytest.mark.heavy
async def test_no_acknowledged_chunk_is_lost_or_there_twice(
    tmp_path: Path, counted: Rounds
) -> None:
    """One folder lives through all rounds."""
    path, known = tmp_path / "qdrant", 0
    for _, chance in counted("index-kill-upsert", 3, 100):
        lines = await _killed(_UPSERTS, path, known, after_s=chance.uniform(0.0, 0.6))
        assert [int(one) for one in lines] == list(range(known, known + len(lines)))
        known += len(lines)
        async with await QdrantEdgeIndex.open(path) as index:
            ids = await index.ids(limit=1_000_000)
            assert len(ids) == len(set(ids)) == await index.count()
            wanted, maybe = _expected(known)
            assert wanted <= set(ids) <= wanted | maybe
            assert set(await index.entries(sorted(wanted))) == wanted
            assert await index.stamp() == STAMP
            await _found(index, known)


def _expected(known: int) -> tuple[set[str], set[str]]:
    """Which must be there, and which may: those of the batch that was never acknowledged."""
    gone = {n - 1 for n in range(known) if n % 5 == 4}
    maybe = {one.chunk.id for one in batch(known)}
    if known % 5 == 4:
        maybe |= {one.chunk.id for one in batch(known - 1)}
        gone.add(known - 1)
    kept = (n for n in range(known) if n not in gone)
    return {one.chunk.id for n in kept for one in batch(n)}, maybe


async def _found(index: QdrantEdgeIndex, known: int) -> None:
    for number in range(max(0, known - 12), known):
        there = number % 5 != 3 or number + 1 >= known
        if number + 1 == known and known % 5 == 4:
            continue  # it may have been removed
        legs = await index.search(query=f"w{number}x1w", limit=9, where=Where())
        found = [hit.chunk_id for hit in legs.bm25 or []]
        assert found == ([batch(number)[1].chunk.id] if there else []), number


@pytest.mark.heavy
async def test_a_rebuild_that_is_killed_leaves_the_old_one_or_the_new_one_whole(
    tmp_path: Path, counted: Rounds
) -> None:
    """At every step of ours (files opened, made, renamed, removed) and in between."""
    path = tmp_path / "qdrant"
    async with await QdrantEdgeIndex.open(path) as index:
        await index.upsert(generation(0))
    lines = await _killed(_REBUILDS, path, 1, 1_000_000, after_s=1.0)
    last = await _whole(path, len(lines))
    steps = int(lines[0].split()[1])
    assert steps > 20
    for number, chance in counted("index-kill-rebuild", 6, 120):
        stop: int = chance.randint(1, steps)
        after_s: float | None = None
        if number % 3 == 1:
            stop = -chance.randint(1, 2)  # after so many pieces more than the first
        elif number % 3 == 2:
            stop, after_s = 1_000_000, chance.uniform(0.0, 1.0)
        lines = await _killed(_REBUILDS, path, last + 1, stop, after_s=after_s)
        last = await _whole(path, last + len(lines))


async def _whole(path: Path, acknowledged: int) -> int:
    """Return which generation is there, all of it and nothing else."""
    async with await QdrantEdgeIndex.open(path) as index:
        assert await index.count() == _PIECES
        ids = [one.chunk.id for one in generation(0)]
        texts = {chunk.text for chunk, _ in (await index.entries(ids)).values()}
        number = next(
            n
            for n in (acknowledged, acknowledged + 1)
            if texts == {one.chunk.text for one in generation(n)}
        )
        legs = await index.search(query=f"g{number}g", limit=99, where=Where())
        assert len(legs.bm25 or []) == _PIECES
        left = sorted(one.name for one in path.iterdir())
        assert len(left) == 2, left
        return number
