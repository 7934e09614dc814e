"""One collection on a Qdrant server: its points, and how words are weighed in it."""

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from qdrant_client import models

from nestor.backends.qdrant import points
from nestor.backends.qdrant.points import Made, Sparse
from nestor.backends.qdrant.server_requests import Requests, condition
from nestor.errors import Unavailable
from nestor.model.knowledge import Entry, Hit, Legs, Vectors, Where

T = TypeVar("T")
_SLICE = 100
"""Points in one request: some MB at most, within the time limit."""
_EF = 128
_BM25_OF_DENSE, _DENSE_OF_BM25 = "bm25 of dense", "dense of bm25"


class ServerCollection:
    """Every call raises ``Unavailable``, and ``Gone`` when the collection does not exist.

    ``made``: how its points are made; replaced once, when the mean length settles.
    """

    def __init__(
        self, requests: Requests, weights: points.Weights, name: str, made: Made
    ) -> None:
        self.name = name
        self.made = made
        self._requests = requests
        self._client = requests.client
        self._weights = weights

    async def upsert(self, entries: Sequence[Entry]) -> None:
        """Write; the server has it on its disk then. Raises ``InvalidInput``."""
        points.refuse_entries(entries, self.made.stamp)
        if self.made.avg_len is None:
            await self._settle(entries)
        for part in _sliced(entries):
            made = [self._point(entry) for entry in part]
            await self._requests.ask(
                self._client.upsert(self.name, points=made, wait=True)
            )

    async def remove(self, chunk_ids: Sequence[str]) -> None:
        """Remove; unknown ids are fine."""
        for part in _sliced(points.known_ids(chunk_ids)):
            selector = models.PointIdsList(points=list(part))
            await self._requests.ask(
                self._client.delete(self.name, points_selector=selector, wait=True)
            )

    async def search(
        self, limit: int, words: Sparse | None, dense: list[float] | None, where: Where
    ) -> Legs:
        """Ask everything in one request, and how many points there are beside it.

        No words find nothing.
        """
        held = points.conditions(where)
        asked: dict[str, models.QueryRequest] = {}
        if limit >= 1 and all(one.any_of != [] for one in held):
            asked = _questions(words, dense, limit, held)
        size, found = await asyncio.gather(self.count(), self._ask_legs(asked))
        bm25 = None if words is None else found.get(points.BM25, [])
        near = None if dense is None else found.get(points.DENSE, [])
        return Legs(
            bm25=bm25,
            dense=near,
            bm25_of_dense=_without(found.get(_BM25_OF_DENSE), bm25),
            dense_of_bm25=_without(found.get(_DENSE_OF_BM25), near),
            terms=points.terms_of(words),
            points=size,
        )

    async def vectors(
        self, chunk_ids: Sequence[str], *, dense: bool
    ) -> dict[str, Vectors]:
        """Read by what points are found; unknown ids are left out."""
        ids = points.known_ids(chunk_ids)
        names = [points.DENSE, points.BM25] if dense else [points.BM25]
        if not ids:
            await self.count()  # what is gone must not look like an empty answer
        found: dict[str, Vectors] = {}
        for part in _sliced(ids):
            records = await self._requests.ask(
                self._client.retrieve(
                    self.name, ids=list(part), with_payload=False, with_vectors=names
                )
            )
            for record in records:
                held: Any = record.vector or {}
                found[str(record.id)] = points.vectors_of(
                    held.get(points.DENSE), held.get(points.BM25)
                )
        return found

    async def retrieve(self, chunk_ids: Sequence[str]) -> list[models.Record]:
        """Read points with their payloads; unknown ids are left out."""
        found: list[models.Record] = []
        for part in _sliced(points.known_ids(chunk_ids)):
            found += await self._requests.ask(
                self._client.retrieve(self.name, ids=list(part), with_payload=True)
            )
        return found

    async def ids(self, after: str | None, limit: int) -> list[str]:
        """Read ids in order."""
        # The server begins *at* its offset.
        records, _ = await self._requests.ask(
            self._client.scroll(
                self.name, limit=limit + 1, offset=after, with_payload=False
            )
        )
        return [found for r in records if (found := str(r.id)) != after][:limit]

    async def count(self) -> int:
        """How many points."""
        question = self._client.count(self.name, exact=True)
        return int((await self._requests.ask(question)).count)

    async def sample_lengths(self) -> list[int]:
        """Lengths of some chunks, taken at random."""
        found = await self._requests.ask(
            self._client.query_points(
                self.name,
                query=models.SampleQuery(sample=models.Sample.RANDOM),
                limit=points.SAMPLE,
                with_payload=[points.LENGTH],
            )
        )
        return [points.length_in(p.payload) for p in found.points]

    async def _settle(self, entries: Sequence[Entry]) -> None:
        """Fix the mean length as soon as there are enough chunks to know it."""
        here = await self.retrieve(await self.ids(None, points.ENOUGH))
        lengths = [points.length_in(record.payload) for record in here]
        for entry in entries:
            counts = self._weights.counts(entry.chunk, entry.document)
            lengths.append(points.length_of(counts))
        if (mean := points.settled(lengths)) is None:
            return
        made = msgspec.structs.replace(self.made, avg_len=mean)
        await self._requests.write_down(self.name, made)
        self.made = made
        changed = []
        for record in here:
            counts = self._weights.counts(*points.read_payload(record.payload))
            if counts:
                weighed: Any = _sparse(self._weights.document(counts, mean))
                vector = {points.BM25: weighed}
                changed.append(models.PointVectors(id=record.id, vector=vector))
        for part in _sliced(changed):
            await self._requests.ask(
                self._client.update_vectors(self.name, points=part)
            )

    def _point(self, entry: Entry) -> models.PointStruct:
        counts = self._weights.counts(entry.chunk, entry.document)
        vectors: dict[str, Any] = {}
        if counts:
            weighed = self._weights.document(counts, self.made.avg_len)
            vectors[points.BM25] = _sparse(weighed)
        if entry.vector is not None:
            vectors[points.DENSE] = [float(x) for x in entry.vector]
        payload = points.payload_of(entry, points.length_of(counts))
        return models.PointStruct(id=entry.chunk.id, vector=vectors, payload=payload)

    async def _ask_legs(
        self, asked: dict[str, models.QueryRequest]
    ) -> dict[str, list[Hit]]:
        if not asked:
            return {}
        replies = await self._requests.ask(
            self._client.query_batch_points(self.name, requests=list(asked.values()))
        )
        if len(replies) != len(asked):
            raise Unavailable("the Qdrant server answered other questions than asked")
        return {
            leg: [Hit(chunk_id=str(p.id), score=float(p.score)) for p in reply.points]
            for leg, reply in zip(asked, replies, strict=True)
        }


def _questions(
    words: Sparse | None,
    dense: list[float] | None,
    limit: int,
    held: Sequence[points.Condition],
) -> dict[str, models.QueryRequest]:
    """Return both legs, and what each says of the other's hits.

    The server finds those again for it: dearer for the server than being told their ids,
    but in the same request, so that nothing changes in between.
    """
    legs: dict[str, dict[str, Any]] = {}
    if words is not None and words.indices:
        legs[points.BM25] = {"query": _sparse(words), "using": points.BM25}
    if dense is not None:
        # Without ACORN, a graph that is filtered misses some of the nearest.
        acorn = models.AcornSearchParams(enable=True) if held else None
        how = models.SearchParams(hnsw_ef=max(_EF, limit), acorn=acorn)
        legs[points.DENSE] = {"query": dense, "using": points.DENSE, "params": how}
    whose = condition(held)
    asked = {
        leg: models.QueryRequest(**what, limit=limit, filter=whose, with_payload=False)
        for leg, what in legs.items()
    }
    if len(legs) > 1:
        for name, leg, other in (
            (_BM25_OF_DENSE, points.BM25, points.DENSE),
            (_DENSE_OF_BM25, points.DENSE, points.BM25),
        ):
            asked[name] = models.QueryRequest(
                query=legs[leg]["query"],
                using=leg,
                limit=limit,
                prefetch=models.Prefetch(**legs[other], limit=limit, filter=whose),
                with_payload=False,
            )
    return asked


def _without(
    found: Sequence[Hit] | None, known: Sequence[Hit] | None
) -> dict[str, float]:
    """Return the scores of those that ``known`` has not."""
    ours = {hit.chunk_id for hit in known or []}
    return {h.chunk_id: h.score for h in found or [] if h.chunk_id not in ours}


def _sparse(vector: Sparse) -> models.SparseVector:
    return models.SparseVector(indices=vector.indices, values=vector.values)


def _sliced(items: Sequence[T]) -> list[list[T]]:
    return [list(items[at : at + _SLICE]) for at in range(0, len(items), _SLICE)]
