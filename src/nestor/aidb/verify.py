"""Do SQL, the index and the vectors say the same? Compared by id, not by count."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec

from nestor.aidb.index_keeper import IndexKeeper
from nestor.aidb.watch import Watch
from nestor.model.knowledge import EmbeddingStamp, Hit, Where
from nestor.ports.knowledge_store import KnowledgeCounts, KnowledgeStore
from nestor.ports.search_index import SearchIndex

_PAGE = 1000
_MOST = 1000
_SAMPLE, _AMONG = 50, 100
_ITSELF = 0.9999
"""The cosine of a vector with itself, as an index computes it."""
_Page = Callable[[str | None], Awaitable[list[str]]]


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of ``POST /verify``. ``problems``: sentences for people; none: all agrees."""

    consistent: bool
    documents: int
    chunks: int
    indexed: int
    """Chunks that the search index holds."""
    waiting: int
    """Chunks that are not in the index yet: no fault."""
    without_vector: int | None
    """Chunks that stand in the index by their words alone; None: no embedder."""
    stamp: str | None
    """By what the index's vectors were made."""
    missing: list[str]
    """Ids that SQL calls indexed and the index does not hold (1,000 at most)."""
    extra: list[str]
    """Ids that the index holds and SQL does not know (1,000 at most)."""
    vectors_tried: int
    """Chunks whose own vector was looked for in the index, and there or not there for sure."""
    vectors_lost: list[str]
    """Of these, the ids that were not found by it."""
    problems: list[str]


class Verifier:
    """Compares; changes nothing but for moving into the index what waits for it."""

    def __init__(
        self,
        store: KnowledgeStore,
        index: SearchIndex,
        keeper: IndexKeeper,
        *,
        sql: Watch,
        index_watch: Watch,
    ) -> None:
        self._store = store
        self._index = index
        self._keeper = keeper
        self._sql = sql
        self._seen = index_watch

    async def verify(self, wanted: EmbeddingStamp | None, own: str | None) -> Verified:
        """Compare everything. Raises ``Unavailable`` when SQL or the index is away.

        What differs is looked at again by itself: others write meanwhile. ``own``: the
        canary's chunk, which is compared and not counted, as nobody added it.
        """
        await self._keeper.drain()
        missing, extra = await self._differences()
        if missing or extra:
            await self._keeper.drain()
            missing = await self._still_missing(missing)
            known = await self._sql.run(self._store.chunks(extra))
            held = await self._seen.run(self._index.entries(extra))
            extra = [one for one in extra if one in held and one not in known]
        stamp = await self._seen.run(self._index.stamp())
        tried, lost = await self._own_vectors(stamp)
        counts = await self._sql.run(self._store.counts())
        indexed = await self._seen.run(self._index.count())
        if own is not None:
            held = await self._seen.run(self._index.entries([own]))
            counts, indexed = without_own(counts), indexed - len(held)
        told = {
            f"{len(missing)} chunks are not in the search index": bool(missing),
            f"{len(extra)} chunks in the search index are of no document": bool(extra),
            f"{len(lost)} of {tried} chunks are not found by their own vector": bool(
                lost
            ),
            f"the index has {f'vectors of {stamp.id}' if stamp else 'no vectors'}, while"
            f" those of {wanted.id if wanted else 'none'} are still being made: once every"
            " text has one, the index takes them over by itself": wanted is not None
            and stamp != wanted,
        }
        problems = [text for text, wrong in told.items() if wrong]
        return Verified(
            consistent=not problems,
            documents=counts.documents,
            chunks=counts.chunks,
            indexed=indexed,
            waiting=counts.waiting,
            without_vector=None if wanted is None else counts.without_vector,
            stamp=stamp.id if stamp else None,
            missing=missing,
            extra=extra,
            vectors_tried=tried,
            vectors_lost=lost,
            problems=problems,
        )

    async def _differences(self) -> tuple[list[str], list[str]]:
        """Walk both lists of ids side by side; each is in order."""

        async def sql_page(after: str | None) -> list[str]:
            return await self._sql.run(self._store.ids(after=after, limit=_PAGE))

        async def index_page(after: str | None) -> list[str]:
            return await self._seen.run(self._index.ids(after=after, limit=_PAGE))

        missing: list[str] = []
        extra: list[str] = []
        ours, theirs = _each(sql_page), _each(index_page)
        mine, other = await anext(ours, None), await anext(theirs, None)
        while mine is not None or other is not None:
            if other is None or (mine is not None and mine < other):
                assert mine is not None
                missing.append(mine)
                mine = await anext(ours, None)
            elif mine is None or other < mine:
                extra.append(other)
                other = await anext(theirs, None)
            else:
                mine, other = await anext(ours, None), await anext(theirs, None)
            if len(missing) >= _MOST or len(extra) >= _MOST:
                break
        return missing, extra

    async def _still_missing(self, ids: list[str]) -> list[str]:
        waiting = {
            entry.chunk.id
            for entry in await self._sql.run(self._store.waiting(None, limit=_MOST))
        }
        known = await self._sql.run(self._store.chunks(ids))
        held = await self._seen.run(self._index.entries(ids))
        return [o for o in ids if o in known and o not in held and o not in waiting]

    async def _own_vectors(self, stamp: EmbeddingStamp | None) -> tuple[int, list[str]]:
        """Look for chunks by the vector that SQL has of them, over the whole range."""
        if stamp is None:
            return 0, []
        lost: list[str] = []
        tried = 0
        numbered = await self._sql.run(self._store.each(stamp, limit=1))
        total = (await self._sql.run(self._store.counts())).chunks
        step = max(1, total // _SAMPLE)
        while numbered and tried < _SAMPLE:
            number, entry = numbered[0]
            if entry.vector is not None:
                document = entry.document
                where = Where(projects=[document.project], path_prefix=document.path)
                legs = await self._seen.run(
                    self._index.search(
                        limit=_AMONG, vector=entry.vector, stamp=stamp, where=where
                    )
                )
                found = _found(entry.chunk.id, legs.dense or [])
                tried += found is not None
                if found is False:
                    lost.append(entry.chunk.id)
            numbered = await self._sql.run(
                self._store.each(stamp, after=number + step - 1, limit=1)
            )
        return tried, lost


def _found(chunk_id: str, hits: Sequence[Hit]) -> bool | None:
    """Tell whether a chunk is among the hits of its own vector.

    None: there are so many copies of its text that it may stand behind them.
    """
    if any(hit.chunk_id == chunk_id for hit in hits):
        return True
    hidden = len(hits) >= _AMONG and hits[-1].score >= _ITSELF
    return None if hidden else False


def without_own(counts: KnowledgeCounts) -> KnowledgeCounts:
    """Leave out the canary: a document of one chunk that nobody added.

    Whether it waits for its vector is not known here; that is one chunk, for a moment.
    """
    chunks = counts.chunks - 1
    return msgspec.structs.replace(
        counts,
        documents=counts.documents - 1,
        chunks=chunks,
        without_vector=min(counts.without_vector, chunks),
    )


async def _each(page: _Page) -> AsyncIterator[str]:
    after: str | None = None
    while found := await page(after):
        for one in found:
            yield one
        after = found[-1]
