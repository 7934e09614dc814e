"""SearchIndex in this process: a Qdrant Edge shard in the data folder.

Writes run one after another in a thread of their own: a search waits for one call of the
engine, not for a batch, and does that in another thread. What is there is said in ``folder``.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self, TypeVar

from nestor.backends.qdrant import points
from nestor.backends.qdrant.folder import IndexFolder
from nestor.backends.qdrant.generations import Generations
from nestor.backends.qdrant.graph import GraphBuilder
from nestor.backends.qdrant.points import Bm25Parameters
from nestor.errors import IndexDamaged, Unavailable
from nestor.model.knowledge import (
    Chunk,
    Document,
    EmbeddingStamp,
    Entry,
    Legs,
    Vectors,
    Where,
)
from nestor.telemetry.logs import get_logger

T = TypeVar("T")
_LOOK_EVERY = 2000
"""So many points are written before anybody asks whether a graph is wanted."""
_GRAPH_PAUSE_S, _GRAPH_PAUSES_S = 60.0, 3600.0
"""After a first failure to build a graph, and after many."""
_log = get_logger(__name__)


class _InWriter(Protocol):
    def __call__(self, action: Callable[[], T], /) -> Awaitable[T]: ...


class QdrantEdgeIndex:
    """See ``nestor.ports.search_index``. One process at a time."""

    def __init__(
        self,
        folder: IndexFolder,
        parameters: Bm25Parameters,
        timer: Callable[[], float],
    ) -> None:
        """Use ``open``."""
        self._folder = folder
        self._all = Generations(folder, parameters)
        self._written = _LOOK_EVERY
        self._graph: asyncio.Task[None] | None = None
        self._builder = GraphBuilder()
        self._timer = timer
        self._no_graph_before = -math.inf
        self._graphs_failed = 0
        self._closed = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="qdrant-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="qdrant-read")

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        parameters: Bm25Parameters | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Take the lock and open the folder at ``path``, made if needed; ``close`` after.

        A damaged folder still opens; its calls raise ``IndexDamaged`` until ``clear``.
        Raises ``Misconfigured`` when another process holds it, or it cannot be made.
        """
        folder = await asyncio.to_thread(IndexFolder.locked, path)
        index = cls(folder, parameters or Bm25Parameters(), timer)
        try:
            with suppress(Unavailable):  # every call tells it again
                await index._write(index._all.begin)
            await index._look_for_graph()
        except BaseException:
            await index.close()
            raise
        return index

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def stamp(self) -> EmbeddingStamp | None:
        """See SearchIndex.stamp."""
        return await self._read(lambda: self._all.current.made.stamp)

    async def upsert(self, entries: Sequence[Entry]) -> None:
        """See SearchIndex.upsert."""
        if entries:
            every = self._all
            await self._write(lambda: every.upsert(every.current, entries))
            self._written += len(entries)
            await self._look_for_graph()

    async def remove(self, chunk_ids: Sequence[str]) -> None:
        """See SearchIndex.remove."""
        if chunk_ids:
            every = self._all
            await self._write(lambda: every.remove(every.current, chunk_ids))

    async def search(
        self,
        *,
        limit: int,
        query: str | None = None,
        vector: Sequence[float] | None = None,
        stamp: EmbeddingStamp | None = None,
        where: Where,
        pairs: bool = False,
    ) -> Legs:
        """See SearchIndex.search. A query of stop words alone finds nothing."""

        def read() -> Legs:
            shard, words = self._all.current, None
            if query is not None:
                words = self._all.weights.query(query, pairs=pairs)
            dense = None
            if vector is not None:
                points.refuse_query(vector, stamp, shard.made.stamp)
                dense = list(map(float, vector))
            return shard.search(limit, words, dense, where)

        return await self._read_now(read)

    async def vectors(
        self, chunk_ids: Sequence[str], *, stamp: EmbeddingStamp | None = None
    ) -> dict[str, Vectors]:
        """See SearchIndex.vectors."""

        def read() -> dict[str, Vectors]:
            shard = self._all.current
            if stamp is not None:
                points.refuse_stamp(stamp, shard.made.stamp)
            return shard.vectors(chunk_ids, dense=stamp is not None)

        return await self._read_now(read)

    async def entries(
        self, chunk_ids: Sequence[str]
    ) -> dict[str, tuple[Chunk, Document]]:
        """See SearchIndex.entries."""

        def read() -> dict[str, tuple[Chunk, Document]]:
            records = self._all.current.retrieve(chunk_ids)
            found = [points.read_payload(record.payload) for record in records]
            return {chunk.id: (chunk, document) for chunk, document in found}

        return await self._read(read)

    async def ids(self, *, after: str | None = None, limit: int = 1000) -> list[str]:
        """See SearchIndex.ids."""
        return await self._read(lambda: self._all.current.ids(after, limit))

    async def count(self) -> int:
        """See SearchIndex.count."""

        def read() -> int:
            return self._all.current.count()

        return await self._read(read)

    async def outdated(self) -> str | None:
        """See SearchIndex.outdated."""

        def read() -> str | None:
            shard = self._all.current
            return points.drifted(shard.made.avg_len, shard.sample_lengths())

        return await self._read(read)

    async def clear(self, stamp: EmbeddingStamp | None) -> None:
        """See SearchIndex.clear."""
        await self._stop_graph()
        every = self._all
        await self._write(lambda: every.swap(every.start(stamp, None)))

    async def rebuild(self, stamp: EmbeddingStamp | None) -> "EdgeRebuild":
        """See SearchIndex.rebuild. Words are weighed by the mean length of this one's chunks."""
        await self._stop_graph()
        every = self._all
        number = await self._write(lambda: every.start(stamp, every.mean_length()))

        async def swapped() -> None:
            self._written = _LOOK_EVERY
            await self._look_for_graph()

        return EdgeRebuild(every, number, self._write, swapped)

    async def close(self) -> None:
        """See SearchIndex.close. A second call does nothing."""
        if self._closed:
            return
        await self._stop_graph()
        self._closed = True
        try:
            # First: who still reads would open the files again.
            await asyncio.to_thread(self._reader.shutdown)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._writer, self._all.end)
        finally:
            self._writer.shutdown()
            self._folder.release()

    async def _write(self, action: Callable[[], T], /) -> T:
        return await self._in(self._writer, action)

    async def _read(self, action: Callable[[], T]) -> T:
        def undisturbed() -> T:
            with self._all.turn:
                return action()

        return await self._in(self._reader, undisturbed)

    async def _read_now(self, action: Callable[[], T]) -> T:
        """Like ``_read``, and without its thread while nobody writes.

        The engine holds the interpreter's lock in each call, so that a thread lets nobody
        else run meanwhile, and the way to it and back takes as long as a small search.
        """
        # Who asks again and again must let others run, the writer's end among them.
        await asyncio.sleep(0)
        if self._closed or not self._all.turn.acquire(blocking=False):
            return await self._read(action)
        try:
            return action()
        finally:
            self._all.turn.release()

    async def _in(self, thread: ThreadPoolExecutor, action: Callable[[], T]) -> T:
        if self._closed:
            raise Unavailable("the search index is closed")
        return await asyncio.get_running_loop().run_in_executor(thread, action)

    async def _look_for_graph(self) -> None:
        """Begin to build a graph in the background when one is worth it."""
        if self._written < _LOOK_EVERY or self._graph is not None:
            return
        if self._timer() < self._no_graph_before:
            return
        self._written = 0
        with suppress(Unavailable):
            if await self._read(lambda: self._all.current.wants_graph):
                self._builder = GraphBuilder()
                self._graph = asyncio.create_task(
                    self._build_graph(self._builder), name="qdrant-graph"
                )

    async def _build_graph(self, builder: GraphBuilder) -> None:
        """Build one; a copy that does not get to answer is removed."""
        try:
            wrong = await self._built(builder)
            if wrong is not None:
                await self._write(self._all.drop_copy)
        finally:
            self._graph = None
        if wrong is None:
            self._graphs_failed = 0
            self._written = _LOOK_EVERY  # many may have come meanwhile
            await self._look_for_graph()
        elif not builder.stopped:
            self._wait_with_graph(wrong)

    async def _built(self, builder: GraphBuilder) -> str | None:
        """Copy, let a child build, bring the copy up to date, let it answer.

        Returns what went wrong.
        """
        try:
            number, copied = await self._write(self._all.copy)
            wrong = await builder.build(copied.folder, copied.dimension)
            if wrong is None:
                await self._write(lambda: self._all.catch_up(number))
        except Exception as error:  # noqa: BLE001 - the edge of a background task
            return str(error) or type(error).__name__
        return wrong

    def _wait_with_graph(self, why: str) -> None:
        """Let some time pass: each attempt copies the whole index."""
        pause = min(_GRAPH_PAUSE_S * 2 ** min(self._graphs_failed, 16), _GRAPH_PAUSES_S)
        self._graphs_failed += 1
        self._no_graph_before = self._timer() + pause
        self._written = _LOOK_EVERY
        _log.warning("index_graph_not_built", error=why, again_in_s=pause)

    async def _stop_graph(self) -> None:
        while (task := self._graph) is not None:
            self._builder.stop()
            await asyncio.wait([task])


class EdgeRebuild:
    """See ``nestor.ports.search_index.Rebuild``."""

    def __init__(
        self,
        every: Generations,
        number: int,
        write: _InWriter,
        swapped: Callable[[], Awaitable[None]],
    ) -> None:
        self._all = every
        self._number = number
        self._write = write
        self._swapped = swapped

    async def upsert(self, entries: Sequence[Entry]) -> None:
        """See Rebuild.upsert."""
        if entries:
            every = self._all
            await self._run(lambda: every.upsert(every.next(self._number), entries))

    async def remove(self, chunk_ids: Sequence[str]) -> None:
        """See Rebuild.remove."""
        every = self._all
        await self._run(lambda: every.remove(every.next(self._number), chunk_ids))

    async def swap(self) -> None:
        """See Rebuild.swap."""
        await self._run(lambda: self._all.swap(self._number))
        await self._swapped()

    async def discard(self) -> None:
        """See Rebuild.discard. A second call does nothing, one after ``swap`` neither."""

        def write() -> None:
            with suppress(Unavailable):
                self._all.next(self._number)
                self._all.forget()

        await self._run(write)

    async def _run(self, action: Callable[[], T]) -> T:
        try:
            return await self._write(action)
        except IndexDamaged as error:  # that would be said of the one that answers
            raise Unavailable(f"the rebuild failed: {error}") from error
