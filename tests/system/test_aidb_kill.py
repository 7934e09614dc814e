"""``kill -9`` while documents are added: what was acknowledged is found again."""

import asyncio
import random
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nestor.aidb.service import Aidb
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.model.health import HealthStatus
from nestor.model.knowledge import ContextRequest
from nestor.telemetry.learning_client import LearningClient

_ROUNDS = 5
_CHILD = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from tests.system.test_aidb_kill import opened, text
    from nestor.model.knowledge import NewDocument

    async def main(home, first):
        async with opened(home) as aidb:
            number = first
            while True:
                new = NewDocument(project="p", path=f"{number}.md", content=text(number))
                added = await aidb.add(new)
                print(number, added.document.id, flush=True)
                if number % 7 == 6:  # replacing and deleting is interrupted too
                    old = NewDocument(
                        project="p", path=f"{number - 1}.md", content="replaced"
                    )
                    await aidb.add(old)
                    print("replaced", number - 1, flush=True)
                number += 1

    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
    """
)


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
    async with (
        Database.open(f"sqlite:///{home}/n.db") as database,
        await QdrantEdgeIndex.open(home / "qdrant") as index,
    ):
        learning = LearningClient(_Nowhere(), "aidb")
        aidb = Aidb(SqlKnowledgeStore(database), index, learning, retry_s=0.05)
        await aidb.start()
        try:
            yield aidb
        finally:
            await aidb.stop()


async def _run_and_kill(home: Path, first: int, after_s: float) -> list[str]:
    """Return the lines of a child that was killed ``after_s`` after its first line."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CHILD,
        str(home),
        str(first),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert child.stdout is not None
    async with asyncio.timeout(60):
        line = await child.stdout.readline()
    await asyncio.sleep(after_s)
    child.send_signal(signal.SIGKILL)
    rest = await child.stdout.read()
    assert await child.wait() == -signal.SIGKILL
    # A line is whole or was never acknowledged.
    return [one.decode() for one in (line + rest).split(b"\n")[:-1]]


@pytest.mark.heavy
async def test_what_was_acknowledged_before_a_kill_is_found_after_it(
    tmp_path: Path,
) -> None:
    chance = random.Random(7)
    known: dict[int, str] = {}
    replaced: set[int] = set()
    first = 0
    for _ in range(_ROUNDS):
        lines = await _run_and_kill(tmp_path, first, chance.uniform(0.01, 1.0))
        for words in map(str.split, lines):
            if words[0] == "replaced":
                replaced.add(int(words[1]))
            else:
                known[int(words[0])] = words[1]
        assert lines
        first = max(known) + 2  # the one after may have been stored, unacknowledged

        async with opened(tmp_path) as aidb:
            _, index = await aidb.dependencies()
            assert index.status is HealthStatus.HEALTHY, index.message
            await _all_found(aidb, known, replaced)


async def _all_found(aidb: Aidb, known: dict[int, str], replaced: set[int]) -> None:
    await _settled(aidb)
    for number, document_id in known.items():
        assert (await aidb.get(document_id)).path == f"{number}.md"
        query = f"w{number}w"
        context = await aidb.get_context(ContextRequest(query=query, limit=1))
        indexed = await aidb.search(query, limit=1, leg="bm25")
        for result in (context, indexed):
            sources = [item.source for item in result.items]
            if number in replaced:
                assert sources == []
            elif number % 7 != 5:  # that one may be replaced without our knowing
                assert sources == [f"p/{number}.md#Walrus"]


async def _settled(aidb: Aidb) -> None:
    async with asyncio.timeout(20):
        while (counts := await aidb.counts()).waiting or counts.removed:
            await asyncio.sleep(0.02)
