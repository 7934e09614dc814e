"""One AIDB over its real parts: SQLite, Qdrant Edge and the reader are what they are."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nestor.aidb.service import Aidb
from nestor.backends.documents.children import DocumentChildren
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.errors import Unavailable
from nestor.model.event import Event
from nestor.model.knowledge import ContextRequest, ContextResult, Document, NewDocument
from nestor.telemetry.learning_client import LearningClient

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WALRUS = "# Animals\n\n## Walrus\n\nThe walrus sleeps on ice and eats clams.\n"


def sections(count: int) -> str:
    return "\n\n".join(
        f"## Part {n}\n\nThe walrus w{n} sleeps. " + "Ice and clams. " * 20
        for n in range(count)
    )


class Events:
    """An event log that can be read back."""

    def __init__(self) -> None:
        self.all: list[Event] = []

    def append(self, events: Sequence[Event]) -> None:
        self.all += events

    @property
    def buffered(self) -> int:
        return 0

    def seen(self, ids: frozenset[str]) -> frozenset[str]:
        return ids & {event.id for event in self.all}

    def close(self) -> None:
        pass

    def of(self, event_type: str) -> list[Event]:
        return [event for event in self.all if event.event_type == event_type]


class Switched:
    """The real part behind a switch that cuts it off, as an outage does."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self.down = False
        self.calls: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)

        async def switched(*args: Any, **named: Any) -> Any:
            self.calls[name] += 1
            await self.gate.wait()
            if self.down:
                raise Unavailable(f"the {name} is switched off")
            return await method(*args, **named)

        return switched

    @property
    def searches(self) -> int:
        return self.calls["search"]


class World:
    """One AIDB and what it stands on."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.events = Events()
        self._stack = AsyncExitStack()

    async def open(self, **how: Any) -> "World":
        """``how``: what ``Aidb`` takes; ``database``: another than a file here."""
        url = how.pop("database", f"sqlite:///{self.home}/n.db")
        database = await self._stack.enter_async_context(Database.open(url))
        self.store = SqlKnowledgeStore(database)
        index = await self._stack.enter_async_context(
            await QdrantEdgeIndex.open(self.home / "qdrant")
        )
        self.index = Switched(index)
        reader = await self._stack.enter_async_context(DocumentChildren())
        if how.get("embedder") is not None:
            self._stack.push_async_callback(how["embedder"].close)
        learning = LearningClient(self.events, "aidb", clock=lambda: NOW)
        self.aidb = Aidb(
            self.store,
            self.index,
            learning,
            reader=reader,
            clock=lambda: NOW,
            retry_s=0.02,
            **{"canary_s": 0.0, **how},
        )
        self._stack.push_async_callback(self.aidb.stop)
        return self

    async def close(self) -> None:
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    async def add(self, path: str, content: str, **how: Any) -> Document:
        new = NewDocument(project="p", path=path, content=content, **how)
        return (await self.aidb.add(new)).document

    async def ask(self, query: str, **how: Any) -> ContextResult:
        return await self.aidb.get_context(ContextRequest(query=query, **how))

    async def back(self) -> None:
        """Switch the index on again, and wait until queries ask it again."""
        self.index.down = False
        await asyncio.sleep(0.05)

    async def sources(self, query: str, **how: Any) -> list[str]:
        return [item.source for item in (await self.ask(query, **how)).items]

    async def embedded(self) -> None:
        """Wait until the index is of the embedder's stamp and every chunk has its vector."""
        keeper = self.aidb.keeper
        async with asyncio.timeout(30):
            while True:
                counts = await self.store.counts()
                if (
                    keeper.wanted is not None
                    and keeper.stamp == keeper.wanted
                    and not (counts.waiting or counts.removed or counts.without_vector)
                ):
                    return
                await asyncio.sleep(0.02)

    async def healed(self) -> None:
        """Wait until SQL and index agree and nothing is degraded."""
        async with asyncio.timeout(20):
            while True:
                counts = await self.store.counts()
                degraded = (await self.ask("walrus")).degraded
                if not counts.waiting and not counts.removed and not degraded:
                    break
                await asyncio.sleep(0.01)
        assert await self.index.count() == counts.chunks
