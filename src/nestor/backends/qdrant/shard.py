"""One Edge shard: opened, used, closed and opened again when it breaks.

The engine holds the interpreter's lock in every call, so that two calls never run at
once, and a long one stops everything else: writes are cut into slices. ``turn`` is held
for one call at a time; a search waits for one slice, never for a whole batch.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import qdrant_edge as qdrant

from nestor.backends.qdrant import points
from nestor.backends.qdrant.folder import holder_of
from nestor.backends.qdrant.points import Condition, Made, Sparse
from nestor.errors import IndexDamaged, Unavailable
from nestor.model.knowledge import Entry, Hit, Legs, Vectors, Where

T = TypeVar("T")
_SLICE = 64
"""Points in one call: a few milliseconds."""
_FLUSH_POINTS, _FLUSH_WRITES = 2000, 32
"""What may stand in the engine's log alone; more would make the next start slow."""
_EF = 128
"""How many candidates a search of the graph follows (recall@10 over 0.99)."""
_ALL_LOOKED_AT = 50_000
"""So many vectors are compared one by one in 10 ms; a graph that is filtered misses some."""
_GRAPH_AT, _GRAPH_AGAIN = 50_000, 20_000
"""So many vectors that no graph has are worth building the first one, or another."""

_EXACT = qdrant.SearchParams(exact=True)


class Shard:
    """The points of one generation. Its writes come from one thread, reads from any.

    ``made``: how its points are made; replaced once, when the mean length settles.
    """

    def __init__(
        self, folder: Path, made: Made, weights: points.Weights, turn: threading.RLock
    ) -> None:
        """Nothing is opened yet. ``turn``: shared by all shards of an index."""
        self.folder = folder
        self.made = made
        self._weights = weights
        self._turn = turn
        self._engine: Any = None
        self._unflushed_points = self._unflushed_writes = 0

    def create(self) -> None:
        """Make the files, empty. Raises ``Unavailable``."""
        try:
            self.folder.mkdir(mode=0o700)
            self._engine = _create(self.folder, self.made)
        except BaseException as error:  # as in call
            self.close()
            message = f"the search index at {self.folder} cannot be made: {error}"
            raise Unavailable(message) from error

    def open(self) -> None:
        """Load what is there. Raises ``IndexDamaged``, and ``Unavailable`` while others have it."""
        with self._turn:
            self._attach()

    def close(self) -> None:
        """Close without waiting for the disk: the engine's log holds what was written."""
        with self._turn:
            engine, self._engine = self._engine, None
            if engine is not None:
                with suppress(BaseException):  # after a panic even closing may panic
                    engine.close()

    def call(self, action: Callable[[Any], T]) -> T:
        """Run on the engine; on failure close it, load it again and try once more."""
        with self._turn:
            for last in (False, True):
                engine = self._attach()
                try:
                    return action(engine)
                except BaseException as error:  # the engine raises bare Exception, and its panics are not even that
                    self.close()
                    if last:
                        message = f"the search index at {self.folder} failed: {error}"
                        raise Unavailable(message) from error
            raise AssertionError

    def upsert(self, entries: Sequence[Entry]) -> None:
        """Write and make durable. Vectors were checked."""
        counts = [self._weights.counts(e.chunk, e.document) for e in entries]
        self._write(
            qdrant.UpdateOperation.upsert_points(
                [
                    _point(entry, found, self._weights, self.made)
                    for entry, found in part
                ]
            )
            for part in _sliced(list(zip(entries, counts, strict=True)))
        )
        self._settle(len(entries))

    def copy_points(self, records: Sequence[Any]) -> None:
        """Write points of another shard as they are."""
        self._write(
            qdrant.UpdateOperation.upsert_points(
                [qdrant.Point(r.id, r.vector, r.payload) for r in part]
            )
            for part in _sliced(records)
        )
        self._settle(len(records))

    def remove(self, chunk_ids: Sequence[str]) -> None:
        """Remove and make durable."""
        if ids := points.known_ids(chunk_ids):
            self._write([qdrant.UpdateOperation.delete_points(list(ids))])
            self._settle(len(ids))

    def flush(self) -> None:
        """Write everything to its own files, and empty the engine's log."""
        self.call(lambda engine: engine.flush())
        self._unflushed_points = self._unflushed_writes = 0

    def search(
        self, limit: int, sparse: Sparse | None, dense: list[float] | None, where: Where
    ) -> Legs:
        """Ask everything with nothing in between. No words find nothing. Raises ``Unavailable``."""
        held = _filter(where)

        by_words = by_dense = None
        if sparse is not None and sparse.indices:
            by_words = qdrant.Query.Nearest(_sparse(sparse), using=points.BM25)
        if dense is not None:
            by_dense = qdrant.Query.Nearest(dense, using=points.DENSE)

        def ask(engine: Any) -> Legs:
            # First, and always: a broken index must not look like an empty answer.
            size = int(engine.info().points_count)
            words: list[Hit] = []
            near: list[Hit] = []
            if by_words is not None and limit >= 1:
                words = _hits(engine, by_words, limit, held, None)
            if by_dense is not None and limit >= 1:
                how = self._how(engine, limit, held)
                near = _hits(engine, by_dense, limit, held, how)
            return Legs(
                bm25=None if sparse is None else words,
                dense=None if dense is None else near,
                bm25_of_dense=_scores(engine, by_words, _only(near, words)),
                # No graph, which may miss some; words are always compared exactly.
                dense_of_bm25=_scores(engine, by_dense, _only(words, near), _EXACT),
                terms=points.terms_of(sparse),
                points=size,
            )

        return self.call(ask)

    def _how(self, engine: Any, limit: int, held: Any) -> Any:
        """Choose between the graph and looking at each vector that the filter lets through.

        Through a filter that most points fail, the engine's graph found a quarter of the
        nearest (100,000 vectors, 10 % pass); looking at each is then as fast.
        """
        if not self.made.in_graph:
            return None
        if held is None:
            return qdrant.SearchParams(hnsw_ef=max(_EF, limit))
        passing = engine.count(qdrant.CountRequest(exact=False, filter=held))
        if passing <= _ALL_LOOKED_AT or passing * 2 < engine.info().points_count:
            return _EXACT
        acorn = qdrant.AcornSearchParams(enable=True, max_selectivity=1.0)
        return qdrant.SearchParams(hnsw_ef=max(_EF, limit), acorn=acorn)

    def retrieve(self, chunk_ids: Sequence[str], *, vectors: bool = False) -> list[Any]:
        """Read points whole; unknown ids are left out."""
        found: list[Any] = []
        for part in _sliced(points.known_ids(chunk_ids)):
            found += self.call(lambda e, part=part: e.retrieve(part, True, vectors))  # type: ignore[misc]
        return found

    def vectors(self, chunk_ids: Sequence[str], *, dense: bool) -> dict[str, Vectors]:
        """Read by what points are found; unknown ids are left out."""
        ids = points.known_ids(chunk_ids)
        names = [points.DENSE, points.BM25] if dense else [points.BM25]
        if not ids:
            self.count()  # as in search
            return {}
        records = self.call(lambda engine: engine.retrieve(ids, False, names))
        # Each look at ``vector`` makes all its numbers anew.
        held = {str(record.id): record.vector for record in records}
        return {
            key: points.vectors_of(one.get(points.DENSE), one.get(points.BM25))
            for key, one in held.items()
        }

    def ids(self, after: str | None, limit: int) -> list[str]:
        """Read ids in order."""
        # The engine begins *at* its offset.
        request = qdrant.ScrollRequest(
            offset=after, limit=limit + 1, with_payload=False, with_vector=False
        )
        records, _ = self.call(lambda engine: engine.scroll(request))
        return [found for r in records if (found := str(r.id)) != after][:limit]

    def count(self) -> int:
        """How many points."""
        return self.call(_count)

    def indexed(self) -> int:
        """How many vectors of both kinds the engine has indexed."""
        return int(self.call(lambda engine: engine.info().indexed_vectors_count))

    @property
    def wants_graph(self) -> bool:
        """Tell whether so many are outside the graph that a new one is worth its time."""
        if self.made.stamp is None:
            return False
        wanted = _GRAPH_AT
        if self.made.in_graph:  # which counts each chunk twice
            wanted = max(_GRAPH_AGAIN, self.made.in_graph // 10)
        # Outside the graph, each sparse vector counts as indexed and no dense one.
        added = self.indexed() - self.made.in_graph
        if added < wanted:
            return False
        dense = qdrant.Filter(must=[qdrant.HasVectorCondition(points.DENSE)])
        held = self.call(lambda engine: _count(engine, dense))
        return held - self.made.in_graph // 2 >= wanted

    def sample_lengths(self) -> list[int]:
        """Lengths of some chunks, taken at random."""
        request = qdrant.QueryRequest(
            query=qdrant.Sample.Random,
            limit=points.SAMPLE,
            with_payload=[points.LENGTH],
        )
        return [
            points.length_in(p.payload) for p in self.call(lambda e: e.query(request))
        ]

    def mean_with(self, entries: Sequence[Entry]) -> float | None:
        """Return the mean length of what is here and of ``entries``; None if too few."""
        here = self.ids(None, points.ENOUGH)
        lengths = [points.length_in(r.payload) for r in self.retrieve(here)]
        for entry in entries:
            counts = self._weights.counts(entry.chunk, entry.document)
            lengths.append(points.length_of(counts))
        return points.settled(lengths)

    def weigh_again(self) -> None:
        """Give every point the weights of the mean length in force."""
        changed = []
        for record in self.retrieve(self.ids(None, points.ENOUGH)):
            counts = self._weights.counts(*points.read_payload(record.payload))
            if counts:
                weighed = self._weights.document(counts, self.made.avg_len)
                vector = {points.BM25: _sparse(weighed)}
                changed.append(qdrant.PointVectors(record.id, vector))
        self._write(
            qdrant.UpdateOperation.update_vectors(list(part))
            for part in _sliced(changed)
        )

    def _write(self, operations: Iterable[Any]) -> None:
        for operation in operations:
            self.call(lambda engine, one=operation: engine.update(one))  # type: ignore[misc]

    def _settle(self, written: int) -> None:
        """Make durable: the engine's log now, all its files now and then.

        A flush stops every thread for a tenth of a second; ``fsync`` of the log stops none.
        """
        self._unflushed_points += written
        self._unflushed_writes += 1
        if (
            self._unflushed_points >= _FLUSH_POINTS
            or self._unflushed_writes >= _FLUSH_WRITES
        ):
            self.flush()
            return
        try:
            for path in (self.folder / "wal", *(self.folder / "wal").iterdir()):
                _sync(path)
        except OSError:
            self.close()
            self.open()  # which says what is wrong
            self.flush()

    def _attach(self) -> Any:
        if self._engine is not None:
            return self._engine
        try:
            self._engine = qdrant.EdgeShard.load(str(self.folder))
        except BaseException as error:  # as in call
            if "WouldBlock" in str(error):  # its log is locked
                holder = holder_of(self.folder / "wal") or "unknown"
                message = (
                    f"the search index at {self.folder} is open in process {holder},"
                    " which is no Nestor that asked for it; end that process"
                )
                raise Unavailable(message) from error
            message = f"the search index at {self.folder} cannot be loaded: {error}"
            raise IndexDamaged(message) from error
        return self._engine


def _count(engine: Any, held: Any = None) -> int:
    return int(engine.count(qdrant.CountRequest(exact=True, filter=held)))


def config_of(dimension: int | None, **more: Any) -> Any:
    """Return what a shard is made with; ``dimension`` None: words only."""
    sparse = qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf)
    dense = {}
    if dimension is not None:
        dense[points.DENSE] = qdrant.EdgeVectorParams(
            dimension,
            qdrant.Distance.Cosine,
            datatype=qdrant.VectorStorageDatatype.Float32,
        )
    return qdrant.EdgeConfig(
        vectors=dense, sparse_vectors={points.BM25: sparse}, **more
    )


def _create(folder: Path, made: Made) -> Any:
    config = config_of(made.stamp.dimension if made.stamp else None)
    engine = qdrant.EdgeShard.create(str(folder), config)
    for field, by_beginning in points.FIELDS.items():
        schema = qdrant.KeywordIndexParams(prefix=by_beginning)
        engine.update(qdrant.UpdateOperation.create_field_index(field, schema))
    engine.flush()
    return engine


def _point(
    entry: Entry, counts: dict[int, int], weights: points.Weights, made: Made
) -> Any:
    vectors: dict[str, Any] = {}
    if counts:
        vectors[points.BM25] = _sparse(weights.document(counts, made.avg_len))
    if entry.vector is not None:
        vectors[points.DENSE] = [float(x) for x in entry.vector]
    payload = points.payload_of(entry, points.length_of(counts))
    return qdrant.Point(entry.chunk.id, vectors, payload)


def _sparse(vector: Sparse) -> Any:
    return qdrant.SparseVector(vector.indices, vector.values)


def _hits(engine: Any, query: Any, limit: int, held: Any, how: Any) -> list[Hit]:
    request = qdrant.QueryRequest(
        limit=limit, query=query, filter=held, params=how, with_payload=False
    )
    return [
        Hit(chunk_id=str(p.id), score=float(p.score)) for p in engine.query(request)
    ]


def _scores(
    engine: Any, query: Any, ids: set[Any], how: Any = None
) -> dict[str, float]:
    """Return what ``query`` says of these points; None says nothing."""
    if not ids or query is None:
        return {}
    held = qdrant.Filter(must=[qdrant.HasIdCondition(ids)])
    hits = _hits(engine, query, len(ids), held, how)
    return {hit.chunk_id: hit.score for hit in hits}


def _only(ours: Sequence[Hit], theirs: Sequence[Hit]) -> set[Any]:
    return {hit.chunk_id for hit in ours} - {hit.chunk_id for hit in theirs}


def _filter(where: Where) -> Any:
    found = [_condition(one) for one in points.conditions(where)]
    return qdrant.Filter(must=found) if found else None


def _condition(one: Condition) -> Any:
    if one.any_of is not None:
        return qdrant.FieldCondition(one.field, match=qdrant.MatchAny(one.any_of))
    return qdrant.FieldCondition(one.field, match=qdrant.MatchPrefix(one.prefix or ""))


def _sliced(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[at : at + _SLICE] for at in range(0, len(items), _SLICE))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
