"""SearchIndex on a Qdrant server: collections ``<alias>-<n>``, and the alias.

Whose index it is follows from the alias alone: two that use one server need two.

Searches name the collection itself and not the alias: between two questions the alias may
lead to vectors of another model. A collection that is gone is looked up again, once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Self, TypeVar

from qdrant_client import AsyncQdrantClient

from nestor.backends.qdrant import points
from nestor.backends.qdrant.points import Bm25Parameters, Made
from nestor.backends.qdrant.server_collection import ServerCollection
from nestor.backends.qdrant.server_requests import TIMEOUT_S, Gone, Requests, connected
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

T = TypeVar("T")
_READY_S, _LOOK_S = 60.0, 0.5
_GONE = "the search index on the Qdrant server is gone"


class QdrantServerIndex:
    """See ``nestor.ports.search_index``. One Nestor writes; others may read."""

    def __init__(
        self,
        client: AsyncQdrantClient,
        *,
        alias: str = "nestor",
        parameters: Bm25Parameters | None = None,
    ) -> None:
        """Asks nothing yet. ``close`` closes the client."""
        self._requests = Requests(client, alias)
        self._parameters = parameters or Bm25Parameters()
        self._weights = points.Weights(self._parameters)
        self._known: ServerCollection | None = None
        self._met = False
        self._looking, self._turn = asyncio.Lock(), asyncio.Lock()

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        api_key: str | None = None,
        alias: str = "nestor",
        parameters: Bm25Parameters | None = None,
    ) -> Self:
        """Use the server at ``url`` (``http(s)://HOST[:PORT]``; port 6333 when not given)."""
        return cls(connected(url, api_key), alias=alias, parameters=parameters)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def stamp(self) -> EmbeddingStamp | None:
        """See SearchIndex.stamp."""
        return (await self._collection()).made.stamp

    async def upsert(self, entries: Sequence[Entry]) -> None:
        """See SearchIndex.upsert."""
        if entries:
            async with self._turn:
                await self._on(lambda collection: collection.upsert(entries))

    async def remove(self, chunk_ids: Sequence[str]) -> None:
        """See SearchIndex.remove."""
        if chunk_ids:
            async with self._turn:
                await self._on(lambda collection: collection.remove(chunk_ids))

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
        words = None if query is None else self._weights.query(query, pairs=pairs)
        dense = None if vector is None else [float(x) for x in vector]

        async def read(collection: ServerCollection) -> Legs:
            if dense is not None:
                points.refuse_query(dense, stamp, collection.made.stamp)
            return await collection.search(limit, words, dense, where)

        return await self._on(read)

    async def vectors(
        self, chunk_ids: Sequence[str], *, stamp: EmbeddingStamp | None = None
    ) -> dict[str, Vectors]:
        """See SearchIndex.vectors."""

        async def read(collection: ServerCollection) -> dict[str, Vectors]:
            if stamp is not None:
                points.refuse_stamp(stamp, collection.made.stamp)
            return await collection.vectors(chunk_ids, dense=stamp is not None)

        return await self._on(read)

    async def entries(
        self, chunk_ids: Sequence[str]
    ) -> dict[str, tuple[Chunk, Document]]:
        """See SearchIndex.entries."""
        records = await self._on(lambda collection: collection.retrieve(chunk_ids))
        found = [points.read_payload(record.payload) for record in records]
        return {chunk.id: (chunk, document) for chunk, document in found}

    async def ids(self, *, after: str | None = None, limit: int = 1000) -> list[str]:
        """See SearchIndex.ids."""
        return await self._on(lambda collection: collection.ids(after, limit))

    async def count(self) -> int:
        """See SearchIndex.count."""
        return await self._on(lambda collection: collection.count())

    async def outdated(self) -> str | None:
        """See SearchIndex.outdated."""
        lengths = await self._on(lambda collection: collection.sample_lengths())
        return points.drifted((await self._collection()).made.avg_len, lengths)

    async def clear(self, stamp: EmbeddingStamp | None) -> None:
        """See SearchIndex.clear."""
        async with self._turn:
            await self._answer_from(await self._begin(stamp, None))

    async def rebuild(self, stamp: EmbeddingStamp | None) -> "ServerRebuild":
        """See SearchIndex.rebuild. Words are weighed by the mean length of this one's chunks."""
        async with self._turn:
            lengths: list[int] = []
            with suppress(IndexDamaged):  # one that is gone tells nothing
                lengths = await self._on(lambda one: one.sample_lengths())
            answers = self._known
            await self._requests.remove_others(answers.name if answers else None)
            return ServerRebuild(
                self._requests,
                await self._begin(stamp, points.settled(lengths)),
                self._take_over,
            )

    async def close(self) -> None:
        """See SearchIndex.close: the connections."""
        await self._requests.client.close()

    async def _collection(self) -> ServerCollection:
        """Return the collection that answers; at first contact one is made if needed."""
        if self._known is not None:
            return self._known
        try:
            async with asyncio.timeout(TIMEOUT_S):  # not for each who waits before
                await self._looking.acquire()
        except TimeoutError as error:
            raise Unavailable("the Qdrant server did not answer in time") from error
        try:
            if self._known is None:
                found = await self._looked_up()
                self._known = self._known or found  # another may answer by now
                self._met = True
            return self._known
        finally:
            self._looking.release()

    async def _looked_up(self) -> ServerCollection:
        if not self._met:
            await self._requests.refuse_older()
        try:
            found = await self._requests.current()
        except Gone:
            found = None
        if found is not None and found[1] and found[1].fits(self._parameters):
            return self._named(found[0], found[1])
        if self._met:
            raise IndexDamaged(_GONE)
        collection = await self._begin(None, None)
        await self._requests.point_at(collection.name)
        return collection

    def _named(self, name: str, made: Made) -> ServerCollection:
        return ServerCollection(self._requests, self._weights, name, made)

    async def _begin(
        self, stamp: EmbeddingStamp | None, avg_len: float | None
    ) -> ServerCollection:
        made = Made(
            bm25=self._parameters,
            stamp=stamp,
            avg_len=self._parameters.avg_len or avg_len,
        )
        return self._named(await self._requests.create(made), made)

    async def _take_over(self, collection: ServerCollection) -> None:
        async with self._turn:
            await self._answer_from(collection)

    async def _answer_from(self, collection: ServerCollection) -> None:
        try:
            await self._requests.point_at(collection.name)
        except BaseException:
            self._known = None  # it may have been done: the alias has to tell
            raise
        self._known, self._met = collection, True

    async def _on(self, action: Callable[[ServerCollection], Awaitable[T]]) -> T:
        """Run on the collection that answers; look it up again when it is gone."""
        for last in (False, True):
            collection = await self._collection()
            try:
                return await action(collection)
            except Gone as error:
                if self._known is collection:
                    self._known = None
                if last:
                    raise IndexDamaged(_GONE) from error
        raise AssertionError


class ServerRebuild:
    """See ``nestor.ports.search_index.Rebuild``."""

    def __init__(
        self,
        requests: Requests,
        collection: ServerCollection,
        take_over: Callable[[ServerCollection], Awaitable[None]],
    ) -> None:
        self._requests = requests
        self._collection: ServerCollection | None = collection
        self._take_over = take_over

    async def upsert(self, entries: Sequence[Entry]) -> None:
        """See Rebuild.upsert."""
        if entries:
            await self._run(self._open().upsert(entries))

    async def remove(self, chunk_ids: Sequence[str]) -> None:
        """See Rebuild.remove."""
        await self._run(self._open().remove(chunk_ids))

    async def swap(self) -> None:
        """See Rebuild.swap. Waits a while for what the server builds in the background."""
        collection, waited = self._open(), 0.0
        while not await self._run(self._requests.is_ready(collection.name)):
            if waited >= _READY_S:
                break  # it answers rightly without, only more slowly
            await asyncio.sleep(_LOOK_S)
            waited += _LOOK_S
        await self._run(self._take_over(collection))
        self._collection = None

    async def discard(self) -> None:
        """See Rebuild.discard. A second call does nothing, one after ``swap`` neither.

        Nor does one after a ``swap`` that failed, where this answers all the same.
        """
        if self._collection is not None:
            name = self._collection.name
            if await self._run(self._requests.answering()) != name:
                await self._run(self._requests.remove(name))
            self._collection = None

    def _open(self) -> ServerCollection:
        if self._collection is None:
            raise Unavailable("this rebuild is over: it was swapped in or thrown away")
        return self._collection

    async def _run(self, question: Awaitable[T]) -> T:
        try:
            return await question
        except Gone as error:
            message = "this rebuild is over: it was thrown away"
            raise Unavailable(message) from error
