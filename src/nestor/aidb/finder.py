"""Asks whatever can answer a query, and says what could not."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from nestor.aidb import assemble
from nestor.aidb.freshness import Freshness
from nestor.aidb.index_keeper import IndexKeeper
from nestor.aidb.ranking import rank
from nestor.aidb.watch import Watch
from nestor.errors import InvalidInput, OtherVectors, Unavailable
from nestor.model.knowledge import Chunk, Document, Hit, Legs, Where
from nestor.ports.embedder import Embedder
from nestor.ports.knowledge_store import KnowledgeStore
from nestor.ports.search_index import SearchIndex

T = TypeVar("T")
WAIT_S = 3.0
"""The longest that a query waits for one part before it does without."""
INDEX_DOWN = "index: full-text search in SQL used"
INDEX_REFILLING = "index: being refilled; full-text search in SQL used as well"
EMBEDDER_DOWN = "embedder: searched by words only"
VECTORS_OTHER = "vectors: still being made by the model now set; searched by words only"
SQL_DOWN = "database: texts of the search index used, the newest may be missing"
REDIS_DOWN = "redis: answers are not shared between processes"
LEGS = ("fused", "bm25", "dense", "fulltext")


class Found(msgspec.Struct):
    """Hits, best first; what was missing; whether the same question may be answered so again."""

    hits: list[Hit]
    degraded: list[str]
    complete: bool


class _Vector(NamedTuple):
    numbers: list[float] | None
    degraded: str | None


class Finder:
    """Both legs of the index in one call; SQL for what waits, or for everything.

    A query is embedded once. No part is waited for longer than ``WAIT_S``, nor at all by
    most queries while it has just failed.
    """

    def __init__(
        self,
        store: KnowledgeStore,
        index: SearchIndex,
        embedder: Embedder | None,
        *,
        keeper: IndexKeeper,
        fresh: Freshness,
        sql: Watch,
        index_watch: Watch,
        embedder_watch: Watch,
    ) -> None:
        self._store = store
        self._index = index
        self._embedder = embedder
        self._keeper = keeper
        self._fresh = fresh
        self._sql = sql
        self._seen = index_watch
        self._embedding = embedder_watch

    async def version(self) -> int | None:
        """Return the store's version; None while SQL does not answer."""
        if (known := self._fresh.known()) is not None:
            return known
        try:
            return await self._sql.ask(self._fresh.version, within_s=WAIT_S)
        except Unavailable:
            return None

    async def find(
        self, query: str, limit: int, where: Where, *, version: int | None
    ) -> Found:
        """Search every way there is. Raises ``Unavailable`` when none answers.

        What waits is looked up before the index is asked: what has left the queue by
        then stands in the index.
        """
        waiting = await self._waiting(version)
        vector = await self._vector(query)
        degraded = [vector.degraded] if vector.degraded else []
        try:
            hits, degraded = await self._ranked(query, limit, where, vector, degraded)
        except Unavailable:
            hits = await self._full_text(query, limit, where)
            return Found(hits, [INDEX_DOWN], complete=False)
        if self._keeper.healing:
            degraded.append(INDEX_REFILLING)
        if waiting is None:
            degraded.append(SQL_DOWN)
        elif waiting or self._keeper.healing:
            try:
                more = await self._full_text(query, limit, where)
                hits = assemble.join(hits, more)
            except Unavailable:
                degraded.append(SQL_DOWN)
        return Found(hits, degraded, complete=not (waiting or degraded))

    async def leg(self, leg: str, query: str, limit: int, where: Where) -> list[Hit]:
        """Search one way alone. Raises ``Unavailable`` when that one does not answer."""
        if leg == "fulltext":
            return await self._full_text(query, limit, where)
        if leg == "bm25":
            legs = await self._search(limit, where, query=query)
            return legs.bm25 or []
        if self._embedder is None:
            message = (
                "there are no vectors, as no embedder is set: set NESTOR_EMBEDDINGS_MODEL"
                " (nestor models add minilm needs no server), or search with bm25"
            )
            raise InvalidInput.at("leg", message)
        vector = await self._vector(query)
        if vector.degraded is not None:
            why = vector.degraded.partition(";")[0]
            if vector.degraded == EMBEDDER_DOWN:
                why = "embedder: it does not answer"
            raise Unavailable(f"{why}; try again soon, or search with bm25")
        legs = await self._search(limit, where, vector=vector.numbers)
        return legs.dense or []

    async def texts(
        self, hits: Sequence[Hit], found: Found | None = None
    ) -> Mapping[str, tuple[Chunk, Document]]:
        """Read what was hit: of SQL, or else of the index. Raises ``Unavailable``."""
        ids = [hit.chunk_id for hit in hits]
        try:
            return await self._sql.ask(lambda: self._store.chunks(ids), within_s=WAIT_S)
        except Unavailable:
            told = await self._seen.ask(
                lambda: self._index.entries(ids), within_s=WAIT_S
            )
        if found is not None:
            found.complete = False
            if SQL_DOWN not in found.degraded:
                found.degraded.append(SQL_DOWN)
        return told

    async def _waiting(self, version: int | None) -> bool | None:
        """Tell whether SQL knows of more than the index; None: it does not answer."""
        if version is None:
            return None
        if version == self._keeper.settled:
            return False
        try:
            return bool(
                await self._sql.ask(
                    lambda: self._store.waiting(None, limit=1), within_s=WAIT_S
                )
            )
        except Unavailable:
            return None

    async def _vector(self, query: str) -> _Vector:
        if self._embedder is None:
            return _Vector(None, None)
        keeper, embedder = self._keeper, self._embedder
        if keeper.wanted is None:  # it has not said yet what it makes
            return _Vector(None, EMBEDDER_DOWN)
        if keeper.stamp != keeper.wanted:
            return _Vector(None, VECTORS_OTHER)
        try:
            (numbers,) = await self._embedding.ask(
                lambda: embedder.embed([query], query=True), within_s=WAIT_S
            )
        except Unavailable:
            return _Vector(None, EMBEDDER_DOWN)
        return _Vector(numbers, None)

    async def _ranked(
        self,
        query: str,
        limit: int,
        where: Where,
        vector: _Vector,
        degraded: list[str],
    ) -> tuple[list[Hit], list[str]]:
        def ask(by: list[float] | None) -> Awaitable[list[Hit]]:
            stamp = self._keeper.wanted if by is not None else None
            return rank(
                self._index, query, vector=by, stamp=stamp, limit=limit, where=where
            )

        try:
            hits = await self._asked(lambda: ask(vector.numbers))
        except OtherVectors:
            self._keeper.wake()
            degraded = [VECTORS_OTHER]
            hits = await self._asked(lambda: ask(None))
        return hits, degraded

    async def _search(
        self,
        limit: int,
        where: Where,
        *,
        query: str | None = None,
        vector: list[float] | None = None,
    ) -> Legs:
        stamp = self._keeper.wanted if vector is not None else None
        return await self._asked(
            lambda: self._index.search(
                limit=limit, query=query, vector=vector, stamp=stamp, where=where
            )
        )

    async def _asked(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask the index, with all of ``WAIT_S`` for one question."""

        async def ask() -> T | OtherVectors:
            try:
                return await question()
            except OtherVectors as error:
                return error  # an answer, too: the index is there

        try:
            told = await self._seen.ask(ask, within_s=WAIT_S)
        except Unavailable as error:
            self._keeper.failed(error)
            raise
        if isinstance(told, OtherVectors):
            raise told
        return told

    async def _full_text(self, query: str, limit: int, where: Where) -> list[Hit]:
        return await self._sql.ask(
            lambda: self._store.search(query, limit=limit, where=where),
            within_s=WAIT_S,
        )
