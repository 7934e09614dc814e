"""``kill -9`` while documents are added: what was acknowledged is found, once, by each leg."""

import asyncio
import random
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.servers.tiny_bert import make_tiny_folder

from nestor.aidb.service import Aidb
from nestor.backends.documents.children import DocumentChildren
from nestor.backends.embeddings.onnx_embedder import OnnxEmbedder
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.model.knowledge import ContextRequest
from nestor.telemetry.learning_client import LearningClient

ROOT = Path(__file__).parents[2]
_CHILD = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from tests.system.test_kb_kill import opened, text
    from nestor.model.knowledge import NewDocument

    def new(number, content):
        return NewDocument(project="p", path=f"{number}.md", content=content)

    async def main(home, first):
        async with opened(home) as aidb:
            number = first
            while True:
                batch = [new(n, text(n)) for n in range(number, number + number % 3 + 1)]
                for added in await aidb.add_all(batch):
                    print("added", added.document.path, added.document.id, flush=True)
                number += len(batch)
                if number % 4 == 0:  # replacing and deleting is interrupted too
                    print("replacing", number - 1, flush=True)
                    await aidb.add(new(number - 1, "Nothing of interest."))
                    print("replaced", number - 1, flush=True)
                if number % 6 == 0:
                    found = await aidb.documents.page()
                    gone = next(d for d in found[0] if d.path == f"{number - 1}.md")
                    print("deleting", number - 1, flush=True)
                    await aidb.delete(gone.id)
                    print("deleted", number - 1, flush=True)
                if number % 40 == 0:
                    await aidb.reindex()

    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
    """
)
Rounds = Callable[[str, int, int], Iterator[tuple[int, random.Random]]]


class _Nowhere:
    def append(self, events: object) -> None: ...

    @property
    def buffered(self) -> int:
        return 0

    def seen(self, ids: frozenset[str]) -> frozenset[str]:
        return ids - ids

    def close(self) -> None: ...


def text(number: int) -> str:
    return f"# Walrus\n\nThe walrus number w{number}w sleeps on the ice.\n"


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Aidb]:
    """AIDB as the stack makes it: SQLite, Edge, the reader's children, vectors."""
    embedder = OnnxEmbedder(home / "model", threads=1)
    async with (
        Database.open(f"sqlite:///{home}/n.db") as database,
        await QdrantEdgeIndex.open(home / "qdrant") as index,
        DocumentChildren(most=1) as reader,
    ):
        aidb = Aidb(
            SqlKnowledgeStore(database),
            index,
            LearningClient(_Nowhere(), "aidb"),
            reader=reader,
            embedder=embedder,
            retry_s=0.05,
            canary_s=0,
        )
        await aidb.start()
        try:
            yield aidb
        finally:
            await aidb.stop()
            await embedder.close()


class Told:
    """What the killed processes said was done, and what they had begun."""

    def __init__(self) -> None:
        self.there: dict[int, str] = {}
        self.doubtful: set[int] = set()
        self.gone: set[int] = set()
        self.next = 0

    def note(self, line: str) -> None:
        what, name, *more = line.split()
        number = int(name.removesuffix(".md"))
        self.next = max(self.next, number + 4)  # a batch may be stored, untold
        if what == "added":
            self.there[number] = more[0]
        elif what in {"replacing", "deleting"}:
            self.doubtful.add(number)
        else:
            self.doubtful.discard(number)
            self.gone.add(number)


async def _run_and_kill(home: Path, first: int, after_s: float) -> list[str]:
    """Return the lines of a child that was killed ``after_s`` after its first line."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CHILD,
        str(home),
        str(first),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )
    assert child.stdout is not None
    async with asyncio.timeout(300):
        line = await child.stdout.readline()
    await asyncio.sleep(after_s)
    child.send_signal(signal.SIGKILL)
    rest = await child.stdout.read()
    assert await child.wait() == -signal.SIGKILL
    # A line is whole or was never acknowledged.
    return [one.decode() for one in (line + rest).split(b"\n")[:-1]]


@pytest.mark.heavy
@pytest.mark.timeout(7_200)
async def test_what_was_acknowledged_before_a_kill_is_found_once_after_it(
    tmp_path: Path, counted: Rounds
) -> None:
    make_tiny_folder(tmp_path / "model")
    told = Told()
    for _, chance in counted("kb_kill", 3, 100):
        lines = await _run_and_kill(tmp_path, told.next, chance.uniform(0.01, 1.5))
        assert lines
        before = set(told.there)
        for line in lines:
            told.note(line)
        async with opened(tmp_path) as aidb:
            await _settled(aidb)
            report = await aidb.verify()
            assert report.problems == []
            assert report.indexed == report.chunks
            fresh = set(told.there) - before
            old = chance.sample(sorted(before), min(20, len(before)))
            await _found(aidb, told, sorted(fresh | set(old)))


async def _found(aidb: Aidb, told: Told, numbers: list[int]) -> None:
    found, _ = await aidb.documents.page(limit=100_000)
    names = [one.path for one in found]
    assert len(names) == len(set(names)), "a document is there twice"
    for number in numbers:
        if number in told.doubtful:
            continue
        query, source = f"w{number}w", f"p/{number}.md#Walrus"
        hits = await aidb.search(query, limit=10, leg="bm25")
        expected = [] if number in told.gone else [source]
        assert [item.source for item in hits.items] == expected
        if expected:
            assert f"{number}.md" in names
            asked = ContextRequest(query=query, limit=10, path_prefix=f"{number}.md")
            context = await aidb.get_context(asked)
            assert [item.source for item in context.items] == expected


async def _settled(aidb: Aidb) -> None:
    """Wait until everything stands in the index, with its vector."""
    async with asyncio.timeout(300):
        while True:
            counts = await aidb.counts()
            waits = counts.waiting or counts.removed or counts.without_vector
            if not waits and aidb.keeper.stamp == aidb.keeper.wanted:
                return
            await asyncio.sleep(0.05)
