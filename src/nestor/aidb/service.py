"""AIDB: remembers texts and finds context in them."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from nestor.aidb import assemble, ingest
from nestor.aidb.cache import ContextCache, cache_key
from nestor.aidb.extract import answer_by_extraction
from nestor.aidb.index_keeper import IndexKeeper
from nestor.aidb.watch import Watch
from nestor.errors import InvalidInput, Unavailable
from nestor.model.event import CONTEXT_RETRIEVED, DOCUMENT_ADDED
from nestor.model.health import Dependency
from nestor.model.ids import derived_id
from nestor.model.knowledge import (
    Added,
    Collection,
    ContextItem,
    ContextRequest,
    ContextResult,
    Document,
    Hit,
    NewDocument,
)
from nestor.ports.knowledge_store import KnowledgeCounts, KnowledgeStore
from nestor.ports.search_index import SearchIndex
from nestor.telemetry import metrics
from nestor.telemetry.learning_client import LearningClient

MAX_QUERY = 8_000
"""Characters of a query that are searched for; the rest is cut off."""
MAX_LIMIT = 50
_IN_THREAD = 64 * 1024
"""Texts longer than this (characters) are cut into chunks beside the event loop."""
LEGS = ("fused", "bm25", "fulltext")
INDEX_DOWN = "index: full-text search in SQL used"
INDEX_REFILLING = "index: being refilled; full-text search in SQL used as well"


def _now() -> datetime:
    return datetime.now(UTC)


class Aidb:
    """The knowledge base: ``ports.KnowledgeBase``, and everything that fills it.

    SQL is the truth. The index answers first; what waits for it is found by full-text
    search in SQL, as is everything while it does not answer. Methods raise
    ``Unavailable`` when SQL does not answer.
    """

    def __init__(
        self,
        store: KnowledgeStore,
        index: SearchIndex,
        learning: LearningClient,
        *,
        cache_size: int = 1024,
        clock: Callable[[], datetime] = _now,
        retry_s: float = 0.5,
    ) -> None:
        self._store = store
        self._index = index
        self._learning = learning
        self._clock = clock
        self._cache = ContextCache(cache_size)
        self._sql = Watch("database", clock, required=True)
        self._seen = Watch("index", clock, required=False)
        self._keeper = IndexKeeper(
            store, index, sql=self._sql, index_watch=self._seen, retry_s=retry_s
        )

    async def start(self) -> None:
        """Look whether the index fits SQL, and keep it so until ``stop``."""
        await self._keeper.start()

    async def stop(self) -> None:
        """End the background work. Store and index stay open: their opener closes them."""
        await self._keeper.stop()

    async def get_context(self, request: ContextRequest) -> ContextResult:
        """Return the best items that say different things, within the budget.

        Raises ``InvalidInput`` (``query``, ``limit``, ``token_budget``). Logs one
        ``context_retrieved`` event a call; its id follows from task and iteration where
        both are given, so that a repeated call tells the same thing.
        """
        wanted = _checked(request)
        version = await self._sql.run(self._store.version())
        result, cached = await self._cache.get(
            cache_key(wanted, version), lambda: self._find(wanted)
        )
        result = msgspec.structs.replace(result, cached=cached)
        self._tell(wanted, result)
        return result

    async def search(
        self,
        query: str,
        *,
        limit: int = 10,
        collections: Sequence[Collection] | None = None,
        leg: str = "fused",
    ) -> ContextResult:
        """Return raw hits: no diversity, no budget, no cache, no event.

        ``leg``: ``bm25`` (the index alone, ``Unavailable`` when it is down),
        ``fulltext`` (SQL alone), or ``fused``, as ``get_context`` searches.
        """
        if leg not in LEGS:
            raise InvalidInput.at("leg", f"not one of {', '.join(LEGS)}")
        shelves = None if collections is None else list(collections)
        wanted = _checked(ContextRequest(query=query, limit=limit, collections=shelves))
        degraded: list[str] = []
        if leg == "bm25":
            hits = await self._indexed(wanted, limit)
        elif leg == "fulltext":
            hits = await self._full_text(wanted, limit)
        else:
            hits, degraded, _ = await self._hits(wanted, limit)
        items = await self._items(hits, wanted.collections)
        return ContextResult(items=items[:limit], degraded=degraded)

    def extract(self, query: str, items: Sequence[ContextItem]) -> str:
        """Answer by quoting ``items`` with marks and sources; needs no model."""
        return answer_by_extraction(query, items)

    async def add(self, new: NewDocument) -> Added:
        """Remember a text, replacing what stood at its project and path.

        Durable when it returns, and found by the next ``get_context``. The same content,
        collection and metadata again changes nothing. Raises ``InvalidInput``, or
        ``TooLarge`` over 32 MiB.
        """
        ingest.check(new)
        return await self._add(new)

    async def add_all(self, items: Sequence[NewDocument]) -> list[Added]:
        """Remember several. All are checked before the first is stored."""
        ingest.check_all(items)
        return [await self._add(new) for new in items]

    async def delete(self, document_id: str) -> None:
        """Forget a document. Raises ``NotFound``."""
        await self._sql.run(self._store.delete(document_id))
        await self._keeper.settle()

    async def get(self, document_id: str) -> Document:
        """Read a document. Raises ``NotFound``."""
        return await self._sql.run(self._store.get(document_id))

    async def all(self, *, limit: int = 1000) -> list[Document]:
        """Read documents by project and path."""
        return await self._sql.run(self._store.all(limit=limit))

    async def counts(self) -> KnowledgeCounts:
        """Count documents, chunks, and what waits for the index."""
        counts = await self._sql.run(self._store.counts())
        metrics.KB_CHUNKS.labels(state="pending").set(counts.waiting)
        metrics.KB_CHUNKS.labels(state="indexed").set(counts.chunks - counts.waiting)
        return counts

    async def reindex(self) -> int:
        """Empty the index and fill it from SQL; returns how many chunks it got."""
        return await self._keeper.rebuild()

    async def dependencies(self) -> list[Dependency]:
        """Report what was last seen of the database and the index; asks neither."""
        note = INDEX_REFILLING if self._keeper.healing else ""
        return [self._sql.dependency(), self._seen.dependency(note)]

    async def _add(self, new: NewDocument) -> Added:
        known = await self._sql.run(self._store.find(new.project, new.path))
        if known is not None and _same(known, new):
            return Added(document=known, unchanged=True)
        if len(new.content) > _IN_THREAD:
            prepared = await asyncio.to_thread(ingest.prepare, new, self._clock())
        else:
            prepared = ingest.prepare(new, self._clock())
        document, chunks = prepared
        await self._sql.run(self._store.put(document, new.content, chunks))
        await self._keeper.settle()
        self._learning.log_event(
            DOCUMENT_ADDED,
            {
                "document_id": document.id,
                "project": document.project,
                "path": document.path,
                "collection": str(document.collection),
                "chunks": document.chunks,
            },
        )
        return Added(document=document, unchanged=False)

    async def _find(self, wanted: ContextRequest) -> tuple[ContextResult, bool]:
        hits, degraded, complete = await self._hits(wanted, 4 * wanted.limit + 20)
        candidates = await self._items(hits, wanted.collections)
        items = assemble.within(
            assemble.diverse(candidates, wanted.limit), wanted.token_budget
        )
        result = ContextResult(items=items, degraded=degraded)
        return result, complete and not degraded

    async def _hits(
        self, wanted: ContextRequest, limit: int
    ) -> tuple[list[Hit], list[str], bool]:
        """Search; also says what was missing, and whether the index alone answered.

        What waits is looked up before the index is asked: what has left the queue by
        then stands in the index.
        """
        waiting = bool(await self._sql.run(self._store.unindexed(limit=1)))
        try:
            indexed = await self._indexed(wanted, limit)
        except Unavailable as error:
            self._keeper.failed(error)
            return await self._full_text(wanted, limit), [INDEX_DOWN], False
        degraded = [INDEX_REFILLING] if self._keeper.healing else []
        if not waiting and not degraded:
            return indexed, degraded, True
        hits = assemble.fuse(indexed, await self._full_text(wanted, limit))
        return hits, degraded, False

    async def _indexed(self, wanted: ContextRequest, limit: int) -> list[Hit]:
        return await self._seen.run(
            self._index.search(
                wanted.query, limit=limit, collections=wanted.collections
            )
        )

    async def _full_text(self, wanted: ContextRequest, limit: int) -> list[Hit]:
        return await self._sql.run(
            self._store.search(
                wanted.query, limit=limit, collections=wanted.collections
            )
        )

    async def _items(
        self, hits: Sequence[Hit], collections: Sequence[Collection] | None
    ) -> list[ContextItem]:
        found = await self._sql.run(self._store.chunks([hit.chunk_id for hit in hits]))
        return assemble.items(hits, found, collections)

    def _tell(self, wanted: ContextRequest, result: ContextResult) -> None:
        metrics.CONTEXT_REQUESTS.labels(
            cached=metrics.flag(result.cached),
            degraded=metrics.flag(bool(result.degraded)),
        ).inc()
        event_id = None
        if wanted.task_id is not None and wanted.iteration is not None:
            event_id = derived_id(wanted.task_id, wanted.iteration, CONTEXT_RETRIEVED)
        self._learning.log_event(
            CONTEXT_RETRIEVED,
            {
                "query": wanted.query,
                "results_count": len(result.items),
                "sources": [item.source for item in result.items],
                "cached": result.cached,
                "degraded": result.degraded,
            },
            task_id=wanted.task_id,
            event_id=event_id,
        )


def _same(known: Document, new: NewDocument) -> bool:
    return (
        known.content_hash == ingest.content_hash(new.content)
        and known.collection == new.collection
        and known.metadata == new.metadata
    )


def _checked(request: ContextRequest) -> ContextRequest:
    """Refuse what cannot be served; bound the query and make it plain UTF-8 text."""
    query = request.query[:MAX_QUERY].encode("utf-8", "replace").decode()
    query = query.replace("\0", " ").strip()
    if not query:
        raise InvalidInput.at("query", "must not be empty")
    if not 1 <= request.limit <= MAX_LIMIT:
        raise InvalidInput.at("limit", f"must be 1 to {MAX_LIMIT}")
    if request.token_budget is not None and request.token_budget < 1:
        raise InvalidInput.at("token_budget", "must be at least 1")
    return msgspec.structs.replace(request, query=query)
