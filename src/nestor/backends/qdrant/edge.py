"""SearchIndex in this process: BM25 as sparse vectors in a Qdrant Edge shard.

The folder holds ``shard/`` (the engine's files) and ``stamp.json`` (what it was made
with; another stamp means: start empty). One process at a time: beside the folder,
``<name>.lock`` is held from before the first load until ``close``, because a second
``load`` of the same files breaks the first one's next flush.
"""

import asyncio
import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
import qdrant_edge as qdrant

from nestor.errors import IndexDamaged, Misconfigured, Unavailable
from nestor.model.knowledge import Chunk, Collection, Document, Hit

T = TypeVar("T")
_VECTOR = "bm25"
_SCHEMA = 1
"""Raise it when points are made differently: an older index is then refilled."""


class Bm25Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of BM25; part of the stamp. ``avg_len`` is in words without stop words."""

    k: float = 1.2
    b: float = 0.75
    avg_len: float = 100.0
    language: str = "english"


class _Stamp(msgspec.Struct, frozen=True, kw_only=True):
    schema: int
    bm25: Bm25Parameters


class QdrantEdgeIndex:
    """See ``nestor.ports.search_index``. Calls run one after another in one thread."""

    def __init__(self, path: Path, lock: int, parameters: Bm25Parameters) -> None:
        self._path = path
        self._lock: int | None = lock
        self._stamp = _Stamp(schema=_SCHEMA, bm25=parameters)
        self._model = qdrant.Bm25(
            qdrant.Bm25Config(
                k=parameters.k,
                b=parameters.b,
                avg_len=parameters.avg_len,
                language=parameters.language,
            )
        )
        self._shard: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="qdrant-edge")

    @classmethod
    async def open(
        cls, path: Path, *, parameters: Bm25Parameters | None = None
    ) -> Self:
        """Take the lock and open the folder at ``path``, made if needed; ``close`` after.

        A damaged folder still opens; its calls raise ``IndexDamaged`` until ``clear``.
        Raises ``Misconfigured`` when another process holds it, or it cannot be made.
        """
        lock = await asyncio.to_thread(_take_lock, path)
        index = cls(path, lock, parameters or Bm25Parameters())
        try:
            with suppress(Unavailable):  # every call tells it again
                await index._in_thread(index._begin)
        except BaseException:
            await index.close()
            raise
        return index

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def upsert(self, chunks: Sequence[tuple[Chunk, Document]]) -> None:
        """See SearchIndex.upsert. Flushed before it returns."""
        if not chunks:
            return

        def write() -> None:
            points = [self._point(chunk, document) for chunk, document in chunks]
            operation = qdrant.UpdateOperation.upsert_points(points)
            self._call(lambda shard: _write(shard, operation))

        await self._in_thread(write)

    async def remove(self, chunk_ids: Sequence[str]) -> None:
        """See SearchIndex.remove. Flushed before it returns."""
        if not chunk_ids:
            return
        operation = qdrant.UpdateOperation.delete_points(list(chunk_ids))
        await self._in_thread(
            lambda: self._call(lambda shard: _write(shard, operation))
        )

    async def search(
        self, query: str, *, limit: int, collections: Sequence[Collection] | None = None
    ) -> list[Hit]:
        """See SearchIndex.search. A query of stop words alone finds nothing."""

        def read() -> list[Hit]:
            vector = self._model.embed_query(_encodable(query))
            if not vector.indices:
                self._call(_count)  # a broken index must not look like an empty answer
                return []
            request = qdrant.QueryRequest(
                limit=limit,
                query=qdrant.Query.Nearest(vector, using=_VECTOR),
                filter=_filter(collections),
                with_payload=False,
            )
            return [
                Hit(chunk_id=str(point.id), score=float(point.score))
                for point in self._call(lambda shard: shard.query(request))
            ]

        return await self._in_thread(read)

    async def count(self) -> int:
        """See SearchIndex.count."""
        return await self._in_thread(lambda: self._call(_count))

    async def clear(self) -> None:
        """See SearchIndex.clear."""
        await self._in_thread(self._reset)

    async def close(self) -> None:
        """See SearchIndex.close. A second call does nothing."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._detach)
        finally:
            self._thread.shutdown()
            os.close(lock)  # which releases it

    async def _in_thread(self, action: Callable[[], T]) -> T:
        if self._lock is None:
            raise Unavailable("the search index is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)

    def _point(self, chunk: Chunk, document: Document) -> Any:
        words = f"{document.path}\n{chunk.heading}\n{chunk.text}"
        return qdrant.Point(
            chunk.id,
            {_VECTOR: self._model.embed_document(_encodable(words))},
            {
                "chunk_id": chunk.id,
                "document_id": document.id,
                "collection": str(document.collection),
            },
        )

    def _call(self, action: Callable[[Any], T]) -> T:
        """Run on the shard; on failure close it, load it again and try once more."""
        for last in (False, True):
            shard = self._attach()
            try:
                return action(shard)
            except BaseException as error:  # the engine raises bare Exception, and its panics are not even that
                self._detach()
                if last:
                    message = f"the search index at {self._path} failed: {error}"
                    raise Unavailable(message) from error
        raise AssertionError

    def _begin(self) -> None:
        """Load what is there; start empty where nothing usable is."""
        if self._read_stamp() == self._stamp:
            self._attach()
        else:
            self._reset()

    def _attach(self) -> Any:
        if self._shard is not None:
            return self._shard
        if self._read_stamp() != self._stamp:
            raise IndexDamaged(f"the search index at {self._path} is gone or foreign")
        try:
            self._shard = qdrant.EdgeShard.load(str(self._path / "shard"))
        except BaseException as error:  # as in _call
            message = f"the search index at {self._path} cannot be loaded: {error}"
            raise IndexDamaged(message) from error
        return self._shard

    def _detach(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            with suppress(BaseException):  # after a panic even closing may panic
                shard.close()

    def _reset(self) -> None:
        """Start empty. The stamp goes first and comes last: half a reset is done again."""
        self._detach()
        try:
            if self._path.exists() and not self._path.is_dir():
                self._path.unlink()
            self._stamp_path.unlink(missing_ok=True)
            if (shard := self._path / "shard").exists():
                shutil.rmtree(shard)
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._shard = _create(shard)
            _write_durably(self._stamp_path, msgspec.json.encode(self._stamp))
        except BaseException as error:  # as in _call
            self._detach()
            message = f"the search index at {self._path} cannot be made: {error}"
            raise Unavailable(message) from error

    @property
    def _stamp_path(self) -> Path:
        return self._path / "stamp.json"

    def _read_stamp(self) -> _Stamp | None:
        try:
            return msgspec.json.decode(self._stamp_path.read_bytes(), type=_Stamp)
        except (OSError, msgspec.DecodeError):
            return None


def _create(shard: Path) -> Any:
    shard.mkdir(mode=0o700)
    sparse = qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf)
    made = qdrant.EdgeShard.create(
        str(shard), qdrant.EdgeConfig(sparse_vectors={_VECTOR: sparse})
    )
    keyword = qdrant.PayloadSchemaType.Keyword
    made.update(qdrant.UpdateOperation.create_field_index("collection", keyword))
    made.flush()
    return made


def _write(shard: Any, operation: Any) -> None:
    shard.update(operation)
    shard.flush()


def _count(shard: Any) -> int:
    return int(shard.count(qdrant.CountRequest(exact=True)))


def _filter(collections: Sequence[Collection] | None) -> Any:
    if collections is None:
        return None
    wanted = qdrant.MatchAny([str(one) for one in collections])
    return qdrant.Filter(must=[qdrant.FieldCondition("collection", match=wanted)])


def _encodable(text: str) -> str:
    """Replace lone surrogates: the engine takes UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _take_lock(path: Path) -> int:
    """Lock ``<path>.lock`` and write our process id into it."""
    lock = path.with_name(path.name + ".lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(lock, flags, 0o600)
    except OSError as error:
        message = f"the search index at {path} cannot be opened: {error.strerror}"
        raise Misconfigured(message) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
        os.close(handle)
        message = (
            f"the search index at {path} is in use by process {holder or 'unknown'}; "
            "stop it, or give this one another data folder"
        )
        raise Misconfigured(message) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
