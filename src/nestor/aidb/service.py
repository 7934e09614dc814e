"""AIDB: remembers texts and finds context in them."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from nestor.aidb import assemble, fusion
from nestor.aidb.cache import ContextCache, cache_key
from nestor.aidb.canary import Canary
from nestor.aidb.documents import Documents
from nestor.aidb.embedding_worker import EmbeddingWorker
from nestor.aidb.extract import answer_by_extraction
from nestor.aidb.finder import INDEX_REFILLING, LEGS, REDIS_DOWN, Finder, Found
from nestor.aidb.freshness import Freshness
from nestor.aidb.index_keeper import IndexKeeper
from nestor.aidb.skills import Skills
from nestor.aidb.verify import Verified, Verifier, without_own
from nestor.aidb.watch import HOLD_S, Watch
from nestor.errors import InvalidInput, Unavailable
from nestor.model.event import CONTEXT_RETRIEVED
from nestor.model.health import Dependency
from nestor.model.ids import derived_id
from nestor.model.knowledge import (
    Added,
    ContextItem,
    ContextRequest,
    ContextResult,
    NewDocument,
    Where,
)
from nestor.ports.answer_cache import AnswerCache
from nestor.ports.document_reader import DocumentReader
from nestor.ports.embedder import Embedder
from nestor.ports.knowledge_store import KnowledgeCounts, KnowledgeStore
from nestor.ports.search_index import SearchIndex
from nestor.telemetry import metrics
from nestor.telemetry.learning_client import LearningClient
from nestor.telemetry.logs import get_logger

MAX_QUERY = 8_000
"""Characters of a query that are searched for; the rest is cut off."""
MAX_LIMIT = 50
CANARY_S = 300.0
_LOOK_S = 0.5
_log = get_logger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class Aidb:
    """The knowledge base: ``ports.KnowledgeBase``, and everything that fills it.

    SQL is the truth. The index answers first; what waits for it is found by full-text
    search in SQL, as is everything while it does not answer. While SQL does not answer,
    the index does. ``degraded`` of an answer names each part that was missing. Methods
    raise ``Unavailable`` when nothing that could serve them answers.
    """

    def __init__(
        self,
        store: KnowledgeStore,
        index: SearchIndex,
        learning: LearningClient,
        *,
        reader: DocumentReader,
        embedder: Embedder | None = None,
        shared: AnswerCache | None = None,
        space: str = "",
        cache_size: int = 1024,
        clock: Callable[[], datetime] = _now,
        retry_s: float = 0.5,
        canary_s: float = CANARY_S,
    ) -> None:
        """``shared``: a cache of several processes; ``space`` tells this base from others in it.

        ``canary_s`` 0: nothing of its own is written and looked for. What is handed in
        stays its opener's to close.
        """
        self._store = store
        self._learning = learning
        self._space = space
        self._cache = ContextCache(cache_size, shared=shared)
        hold_s = min(retry_s, HOLD_S)
        self._sql = Watch("database", clock, required=True, hold_s=hold_s)
        self._seen = Watch("index", clock, required=False, hold_s=hold_s)
        self._embedding = Watch("embedder", clock, required=False, hold_s=hold_s)
        self._fresh = Freshness(lambda: self._sql.run(store.version()))
        self.keeper = IndexKeeper(
            store,
            index,
            sql=self._sql,
            index_watch=self._seen,
            changed=self._fresh.changed,
            retry_s=retry_s,
        )
        self._worker = None
        if embedder is not None:
            self._worker = EmbeddingWorker(
                store,
                embedder,
                self.keeper,
                sql=self._sql,
                watch=self._embedding,
                retry_s=retry_s,
            )
        self._finder = Finder(
            store,
            index,
            embedder,
            keeper=self.keeper,
            fresh=self._fresh,
            sql=self._sql,
            index_watch=self._seen,
            embedder_watch=self._embedding,
        )
        self.documents = Documents(
            store, reader, learning, sql=self._sql, written=self._written, clock=clock
        )
        self.skills = Skills(store, sql=self._sql, written=self._written, clock=clock)
        self.canary = Canary(
            store,
            self._finder,
            sql=self._sql,
            written=self._written,
            clock=clock,
            every_s=canary_s,
        )
        self._verifier = Verifier(
            store, index, self.keeper, sql=self._sql, index_watch=self._seen
        )
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look whether the index fits SQL, and keep it so until ``stop``."""
        await self.keeper.start()
        with suppress(Unavailable):  # noted by the watch
            await self.skills.reconcile()
            await self.canary.find_own()
        if self._worker is not None:
            await asyncio.to_thread(fusion.load)
            self._worker.start()
        await self._cache.look()
        self.canary.start()
        self._looking = asyncio.create_task(self._look(), name="aidb-look")

    async def stop(self) -> None:
        """End the background work. Store and index stay open: their opener closes them."""
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        await self.canary.stop()
        if self._worker is not None:
            await self._worker.stop()
        await self.keeper.stop()

    async def get_context(self, request: ContextRequest) -> ContextResult:
        """Return the best items that say different things, within the budget.

        Raises ``InvalidInput`` (``query``, ``limit``, ``token_budget``). Logs one
        ``context_retrieved`` event a call; its id follows from task and iteration where
        both are given, so that a repeated call tells the same thing.
        """
        wanted = _checked(request)
        version = await self._finder.version()
        # Without a version nothing is kept, nor found; who asks at once still shares.
        key = cache_key(wanted, -1 if version is None else version, self._whose())
        result, cached = await self._cache.get(key, lambda: self._find(wanted, version))
        degraded = result.degraded
        if self._cache.shared_is_away:
            degraded = [*degraded, REDIS_DOWN]
        result = msgspec.structs.replace(result, cached=cached, degraded=degraded)
        self._tell(wanted, result)
        return result

    async def search(
        self,
        query: str,
        *,
        limit: int = 10,
        where: Where | None = None,
        leg: str = "fused",
    ) -> ContextResult:
        """Return raw hits: no diversity, no budget, no cache, no event.

        ``leg``: ``bm25`` or ``dense`` (the index alone, by words or by vectors),
        ``fulltext`` (SQL alone), each ``Unavailable`` when it does not answer; or
        ``fused``, as ``get_context`` searches.
        """
        wanted = _checked(ContextRequest(query=query, limit=limit))
        where = where or Where()
        # One may be of the canary.
        found = await self.hits(wanted.query, limit=limit + 1, where=where, leg=leg)
        hits = found.hits[: limit + 1]
        texts = await self._finder.texts(hits, found)
        items = assemble.items(hits, texts, where)
        return ContextResult(items=items[:limit], degraded=found.degraded)

    async def hits(
        self, query: str, *, limit: int, where: Where | None = None, leg: str = "fused"
    ) -> Found:
        """Return which chunks a search finds, without their texts and without a bound.

        ``leg`` as in ``search``. At least ``limit`` where there are so many.
        """
        if leg not in LEGS:
            raise InvalidInput.at("leg", f"not one of {', '.join(LEGS)}")
        text = _checked(ContextRequest(query=query)).query
        where = where or Where()
        if leg == "fused":
            version = await self._finder.version()
            return await self._finder.find(text, limit, where, version=version)
        hits = await self._finder.leg(leg, text, limit, where)
        return Found(hits, [], complete=True)

    def extract(self, query: str, items: Sequence[ContextItem]) -> str:
        """Answer by quoting ``items`` with marks and sources; needs no model."""
        return answer_by_extraction(query, items)

    async def add(self, new: NewDocument) -> Added:
        """See ``Documents.add``."""
        return await self.documents.add(new)

    async def add_all(self, items: Sequence[NewDocument]) -> list[Added]:
        """See ``Documents.add_all``."""
        return await self.documents.add_all(items)

    async def delete(self, document_id: str) -> None:
        """See ``Documents.delete``."""
        await self.documents.delete(document_id)

    async def counts(self) -> KnowledgeCounts:
        """Count documents, chunks, and what waits for the index; the canary is not counted."""
        counts = await self._sql.run(self._store.counts())
        if self.canary.chunk is not None:
            counts = without_own(counts)
        metrics.KB_CHUNKS.labels(state="pending").set(counts.waiting)
        metrics.KB_CHUNKS.labels(state="indexed").set(counts.chunks - counts.waiting)
        return counts

    async def reindex(self) -> int:
        """Fill a new index from SQL while the old one answers; returns how many chunks it got."""
        filled = await self.keeper.rebuild()
        return filled - (self.canary.chunk is not None)

    async def verify(self) -> Verified:
        """Compare SQL, the index and the vectors; the canary is not counted."""
        own = self.canary.chunk
        return await self._verifier.verify(self.keeper.wanted, own.id if own else None)

    async def dependencies(self) -> list[Dependency]:
        """Report what was last seen of each part; asks none."""
        note = INDEX_REFILLING if self.keeper.healing else ""
        found = [self._sql.dependency(), self._seen.dependency(note)]
        if self._worker is not None:
            wanted, stamp = self.keeper.wanted, self.keeper.stamp
            other = wanted is not None and stamp != wanted
            note = "vectors are still being made by the model now set" if other else ""
            found.append(self._embedding.dependency(note))
        return [*found, *self._cache.dependencies(), *self.canary.dependencies()]

    async def _written(self) -> None:
        self._fresh.changed()
        await self.keeper.settle()
        if self._worker is not None:
            self._worker.wake()

    def _whose(self) -> str:
        """Which base, whose vectors: answers of another are none of these."""
        stamp = self.keeper.stamp
        chunk = self.canary.chunk
        vectors = stamp.id if self._worker is not None and stamp is not None else ""
        return f"{self._space}|{chunk.id if chunk else ''}|{vectors}"

    async def _find(
        self, wanted: ContextRequest, version: int | None
    ) -> tuple[ContextResult, bool]:
        where = Where(
            collections=wanted.collections,
            projects=wanted.projects,
            path_prefix=wanted.path_prefix,
            metadata=wanted.metadata,
        )
        found = await self._finder.find(
            wanted.query, 4 * wanted.limit + 20, where, version=version
        )
        hits = found.hits[: 4 * wanted.limit + 20]
        candidates = assemble.items(hits, await self._finder.texts(hits, found), where)
        only_learned = assemble.only_learned(wanted.collections)
        learned = wanted.limit if only_learned else assemble.MAX_LEARNED
        chosen = assemble.diverse(candidates, wanted.limit, learned=learned)
        items = assemble.within(chosen, wanted.token_budget)
        keep = found.complete and version is not None
        return ContextResult(items=items, degraded=found.degraded), keep

    def _tell(self, wanted: ContextRequest, result: ContextResult) -> None:
        metrics.CONTEXT_REQUESTS.labels(
            cached=metrics.flag(result.cached),
            degraded=metrics.flag(bool(result.degraded)),
        ).inc()
        for line in result.degraded:
            metrics.KB_DEGRADED.labels(part=line.partition(":")[0]).inc()
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

    async def _look(self) -> None:
        """Ask the shared cache now and then whether it is there."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._cache.look()
            except Exception:  # noqa: BLE001 - the edge of a background task: it must outlive a bug
                _log.exception("cache_look_failed")


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
