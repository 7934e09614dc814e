"""Keeps the search index in step with SQL, and mends it without being asked."""

import asyncio
from contextlib import suppress

from nestor.aidb.watch import Watch
from nestor.errors import IndexDamaged, Unavailable
from nestor.ports.knowledge_store import KnowledgeStore
from nestor.ports.search_index import SearchIndex
from nestor.telemetry.logs import get_logger

_BATCH = 500
_LONGEST_WAIT_S = 30.0
_log = get_logger(__name__)


class IndexKeeper:
    """Moves waiting chunks from SQL into the index and removed ids out of it.

    Delivery: at least once; upserts and removals are idempotent. All writes to the
    index happen under one lock, removals before additions, so that a chunk that went
    and came back ends up inside. The index then holds at least what SQL calls indexed,
    and at most that plus what is waiting or removed; where a count denies this, the
    index has lost or gained something by itself and is filled again.
    """

    def __init__(
        self,
        store: KnowledgeStore,
        index: SearchIndex,
        *,
        sql: Watch,
        index_watch: Watch,
        retry_s: float,
    ) -> None:
        self._store = store
        self._index = index
        self._sql = sql
        self._seen = index_watch
        self._retry_s = retry_s
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._damaged = False
        self.healing = False
        """The index is being refilled: what it answers is true but not all."""

    async def start(self) -> None:
        """Compare the index with SQL, then go on in the background until ``stop``."""
        with suppress(Unavailable):  # noted by the watch; the background tries again
            await self._compare()
        self._task = asyncio.create_task(self._keep(), name="aidb-index-keeper")

    async def stop(self) -> None:
        """End the background work; what is not done is done after the next start."""
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None

    def failed(self, error: Unavailable) -> None:
        """Tell that a search failed, so that mending begins now."""
        if isinstance(error, IndexDamaged):
            self._damaged = self.healing = True
        self._wake.set()

    async def settle(self) -> None:
        """Bring what was just written into the index if that is possible now.

        Never raises: what cannot be moved waits in SQL, where searches find it.
        """
        if self.healing:
            self._wake.set()
            return
        try:
            await self.drain()
        except Unavailable as error:
            self.failed(error)

    async def drain(self) -> int:
        """Move everything that waits; returns how many chunks were added."""
        added = 0
        while True:
            async with self._turn:
                gone = await self._sql.run(self._store.removed(limit=_BATCH))
                if gone:
                    await self._seen.run(self._index.remove(gone))
                    await self._sql.run(self._store.forget_removed(gone))
                    continue
                waiting = await self._sql.run(self._store.unindexed(limit=_BATCH))
                if not waiting:
                    return added
                await self._seen.run(self._index.upsert(waiting))
                ids = [chunk.id for chunk, _ in waiting]
                await self._sql.run(self._store.mark_indexed(ids))
                added += len(ids)

    async def rebuild(self) -> int:
        """Empty the index and fill it from SQL; returns how many chunks it got.

        In SQL every chunk is marked as waiting first: a crash in between repeats work,
        and meanwhile full-text search in SQL finds what the index does not.
        """
        self.healing = True
        async with self._turn:
            await self._sql.run(self._store.reset_index())
            await self._seen.run(self._index.clear())
            self._damaged = False
        added = await self.drain()
        self.healing = False
        return added

    async def _compare(self) -> None:
        async with self._turn:
            sql = await self._sql.run(self._store.counts())
            try:
                held = await self._seen.run(self._index.count())
            except IndexDamaged as error:
                self.failed(error)
                raise
        indexed = sql.chunks - sql.waiting
        if not indexed <= held <= sql.chunks + sql.removed:
            _log.warning("index_differs", indexed=indexed, held=held)
            self._damaged = self.healing = True

    async def _keep(self) -> None:
        failures = 0
        while True:
            try:
                if not self._damaged:
                    await self._compare()
                if self._damaged:
                    await self.rebuild()
                else:
                    await self.drain()
                    self.healing = False
                failures = 0
            except Unavailable as error:
                failures += 1
                _log.warning("index_behind", error=str(error), failures=failures)
                if isinstance(error, IndexDamaged) and not self._damaged:
                    self.failed(error)
            except Exception:  # noqa: BLE001 - the edge of a background task: it must outlive a bug
                failures += 1
                _log.exception("index_keeper_failed")
            if failures:  # a steady pace, however often searches fail meanwhile
                pause = self._retry_s * 2 ** min(failures - 1, 16)
                await asyncio.sleep(min(pause, _LONGEST_WAIT_S))
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LONGEST_WAIT_S):
                        await self._wake.wait()
            self._wake.clear()
