"""Keeps the search index in step with SQL, and mends it without being asked."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from nestor.aidb.watch import Watch
from nestor.errors import IndexDamaged, OtherVectors, Unavailable
from nestor.model.knowledge import EmbeddingStamp, Entry
from nestor.ports.knowledge_store import KnowledgeStore
from nestor.ports.search_index import Rebuild, SearchIndex
from nestor.telemetry.logs import get_logger

_BATCH = 500
_LOOK_S, _COMPARE_S, _TIDY_S = 2.0, 30.0, 600.0
LONGEST_WAIT_S = 2.0
"""Between two attempts at what fails: what comes back is used soon after."""
_log = get_logger(__name__)


class IndexKeeper:
    """Moves waiting chunks from SQL into the index and removed ids out of it.

    Delivery: at least once; upserts and removals are idempotent. All writes to the index
    happen under one lock, removals before additions, so that a chunk that went and came
    back ends up inside. The index then holds at least what SQL calls indexed, and at most
    that plus what is waiting or removed; where a count denies this, the index has lost or
    gained something by itself and is filled again.

    A rebuild fills a second index beside the one that answers; what is written meanwhile
    goes into both. It begins by itself when the embedder's stamp is not the index's, once
    every text has its vector.
    """

    def __init__(
        self,
        store: KnowledgeStore,
        index: SearchIndex,
        *,
        sql: Watch,
        index_watch: Watch,
        changed: Callable[[], None],
        retry_s: float,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """``changed`` is called after each write that moves the store's version."""
        self._store = store
        self._index = index
        self._sql = sql
        self._seen = index_watch
        self._changed = changed
        self._retry_s = retry_s
        self._timer = timer
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._rebuilding: asyncio.Task[int] | None = None
        self._beside: tuple[Rebuild, EmbeddingStamp | None] | None = None
        self._damaged = False
        self._compared_at: float | None = None
        self._tidied_at = timer()
        self._left = False
        self.healing = False
        """The index is being refilled: what it answers is true but not all."""
        self.stamp: EmbeddingStamp | None = None
        """By what the index's vectors were made, when it was asked last."""
        self.wanted: EmbeddingStamp | None = None
        """What the embedder makes; None: there is none, or it has not said yet."""
        self.embedded = False
        """Every text had a vector of ``wanted`` when the embedding worker looked last."""
        self.settled: int | None = None
        """The store's version at which the index held everything."""

    async def start(self) -> None:
        """Compare the index with SQL, then go on in the background until ``stop``."""
        with suppress(Unavailable):  # noted by the watch; the background tries again
            await self._compare()
        self._task = asyncio.create_task(self._keep(), name="aidb-index-keeper")

    async def stop(self) -> None:
        """End the background work; what is not done is done after the next start."""
        for task in (self._task, self._rebuilding):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    task.exception()  # a rebuild's was told to who asked for it
        self._task = self._rebuilding = None

    def want(self, stamp: EmbeddingStamp, *, embedded: bool) -> None:
        """Tell what the embedder makes, and whether every text has such a vector."""
        news = (stamp, embedded) != (self.wanted, self.embedded)
        self.wanted, self.embedded = stamp, embedded
        if news:
            self._wake.set()

    def wake(self) -> None:
        """Tell that something may wait."""
        self._wake.set()

    def failed(self, error: Unavailable) -> None:
        """Tell that a search failed, so that mending begins now."""
        if isinstance(error, IndexDamaged):
            self._damaged = self.healing = True
        self._wake.set()

    async def settle(self) -> None:
        """Bring what was just written into the index if that is possible now.

        Never raises: what cannot be moved waits in SQL, where searches find it. Returns
        while vectors go on coming: only what waited before is waited for.
        """
        self._left = True
        if self.healing or self._seen.failing:
            self._wake.set()
            return
        try:
            moved = await self._move()
            while moved == _BATCH:
                moved = await self._move()
            if moved:
                await self._move()  # most often nothing: then it is known to be settled
        except Unavailable as error:
            self.failed(error)

    async def drain(self) -> int:
        """Move everything that waits; returns how many chunks were added."""
        added = 0
        while moved := await self._move():
            added += moved
        return added

    async def _move(self) -> int:
        """Move the first ``_BATCH`` that wait; returns how many. 0: nothing waits."""
        async with self._turn:
            version = await self._sql.run(self._store.version())
            while gone := await self._sql.run(self._store.removed(limit=_BATCH)):
                await self._remove(gone)
            entries = await self._sql.run(self._store.waiting(self.stamp, limit=_BATCH))
            if entries:
                await self._upsert(entries)
            else:
                self.settled = version
            return len(entries)

    async def rebuild(self) -> int:
        """Fill a second index from SQL while this one answers; returns how many chunks it got.

        Who asks while that is under way waits for the same one.
        """
        if self._rebuilding is None or self._rebuilding.done():
            self._rebuilding = asyncio.create_task(
                self._rebuild(), name="aidb-index-rebuild"
            )
        return await asyncio.shield(self._rebuilding)

    async def _remove(self, gone: Sequence[str]) -> None:
        await self._seen.run(self._index.remove(gone))
        if self._beside is not None:
            await self._seen.run(self._beside[0].remove(gone))
        await self._sql.run(self._store.forget_removed(gone))

    async def _upsert(self, entries: Sequence[Entry]) -> None:
        try:
            await self._seen.run(self._index.upsert(entries))
        except Unavailable:
            self._compared_at = None  # it may be another index by the time it is back
            raise
        if self._beside is not None:
            rebuild, stamp = self._beside
            if stamp != self.stamp:
                entries_there = await self._sql.run(
                    self._store.waiting(stamp, limit=2 * _BATCH)
                )
                await self._seen.run(rebuild.upsert(entries_there))
            else:
                await self._seen.run(rebuild.upsert(entries))
        await self._sql.run(self._store.mark_indexed(entries))
        self._changed()

    async def _rebuild(self) -> int:
        stamp = self.wanted or self.stamp
        async with self._turn:
            rebuild = await self._seen.run(self._index.rebuild(stamp))
            self._beside = rebuild, stamp
        added, after = 0, 0
        lacking: list[Entry] = []
        last: list[Entry] = []
        try:
            while True:
                async with (
                    self._turn
                ):  # what is read must not be removed before it is written
                    found = await self._sql.run(
                        self._store.each(stamp, after=after, limit=_BATCH)
                    )
                    if not found:
                        await self._swap(rebuild, stamp, lacking, last)
                        return added
                    after = found[-1][0]
                    last = [entry for _, entry in found]
                    await self._seen.run(rebuild.upsert(last))
                    added += len(last)
                    if stamp != self.stamp:
                        lacking += [one for one in last if one.vector is None]
        finally:
            if self._beside is not None:
                self._beside = None
                with suppress(Unavailable):  # the next one throws it away, too
                    await rebuild.discard()

    async def _swap(
        self,
        rebuild: Rebuild,
        stamp: EmbeddingStamp | None,
        lacking: Sequence[Entry],
        last: Sequence[Entry],
    ) -> None:
        # Noted first: killed in between, the old index is given some vectors again.
        await self._mark(lacking)
        await self._seen.run(rebuild.swap())
        self._beside = None
        self.stamp = stamp
        # So that no answer of the old index is taken for one of this version.
        await self._mark(last)
        self._wake.set()

    async def _mark(self, entries: Sequence[Entry]) -> None:
        for first in range(0, len(entries), _BATCH):
            part = entries[first : first + _BATCH]
            await self._sql.run(self._store.mark_indexed(part))
        self._changed()

    async def _heal(self) -> None:
        """Empty a damaged index and fill it from SQL.

        In SQL every chunk is marked as waiting first: a crash in between repeats work,
        and meanwhile full-text search in SQL finds what the index does not.
        """
        self.healing = True
        stamp = self.wanted or self.stamp
        async with self._turn:
            await self._sql.run(self._store.reset_index())
            self._changed()
            await self._seen.run(self._index.clear(stamp))
            self.stamp = stamp
            self._damaged = False
        await self.drain()
        self.healing = False

    async def _compare(self) -> None:
        async with self._turn:
            sql = await self._sql.run(self._store.counts())
            try:
                self.stamp = await self._seen.run(self._index.stamp())
                held = await self._seen.run(self._index.count())
            except IndexDamaged as error:
                self.failed(error)
                raise
        indexed = sql.chunks - sql.waiting
        if not indexed <= held <= sql.chunks + sql.removed:
            _log.warning("index_differs", indexed=indexed, held=held)
            self._damaged = self.healing = True
        self._compared_at = self._timer()

    async def _step(self) -> None:
        now = self._timer()
        if self._damaged:
            await self._heal()
            return
        if self._compared_at is None or now - self._compared_at > _COMPARE_S:
            await self._compare()
        else:  # so that health and degraded parts are news, asked or not
            self.stamp = await self._seen.run(self._index.stamp())
            await self._seen.run(self._index.count())
        if self._damaged:
            await self._heal()
            return
        await self.drain()
        self.healing = False
        if self.wanted is not None and self.stamp != self.wanted and self.embedded:
            _log.info("index_rebuilt", stamp=self.wanted.id)
            await self.rebuild()
            await self._sql.run(self._store.drop_vectors(self.wanted))
        elif now - self._tidied_at > _TIDY_S and self._left:
            self._tidied_at, self._left = now, False
            await self._tidy()

    async def _tidy(self) -> None:
        """After writes: forget vectors of texts that are gone; weigh words anew if needed."""
        if self.wanted is not None and self.stamp == self.wanted:
            await self._sql.run(self._store.drop_vectors(self.wanted))
        why = await self._seen.run(self._index.outdated())
        if why is not None:
            _log.info("index_rebuilt", why=why)
            await self.rebuild()

    async def _keep(self) -> None:
        failures = 0
        while True:
            try:
                await self._step()
                failures = 0
            except OtherVectors:
                self._compared_at = None
                failures += 1
            except Unavailable as error:
                failures += 1
                if failures == 1:
                    _log.warning("index_behind", error=str(error))
                if isinstance(error, IndexDamaged) and not self._damaged:
                    self.failed(error)
            except Exception:  # noqa: BLE001 - the edge of a background task: it must outlive a bug
                failures += 1
                _log.exception("index_keeper_failed")
            if failures:  # a steady pace, however often searches fail meanwhile
                pause = self._retry_s * 2 ** min(failures - 1, 16)
                await asyncio.sleep(min(pause, LONGEST_WAIT_S))
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._wake.wait()
            self._wake.clear()
