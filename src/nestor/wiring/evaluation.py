"""Measures retrieval on a judged collection, by AIDB itself in a folder of its own."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import msgspec

from nestor.aidb import evaluation
from nestor.aidb.evaluation import Quality
from nestor.aidb.service import Aidb
from nestor.backends.documents.children import DocumentChildren
from nestor.backends.embeddings import minilm
from nestor.backends.files.event_log import FileEventLog
from nestor.backends.files.judged_collection import JudgedCollection, JudgedDocument
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.errors import InvalidInput, Unavailable
from nestor.model.health import HealthStatus
from nestor.model.knowledge import NewDocument
from nestor.ports.embedder import Embedder
from nestor.ports.knowledge_store import KnowledgeStore
from nestor.settings import Settings
from nestor.telemetry.learning_client import LearningClient
from nestor.wiring.knowledge import open_embedder

BM25, DENSE, FUSED = "bm25", "dense", "fused"
PROJECT = "collection"
NO_EMBEDDER = (
    "there is no embedder, so nothing was searched by meaning; run: nestor models add"
    " minilm, or set NESTOR_EMBEDDINGS_MODEL"
)
_BATCH = 100
_PAGE = 1000
_LOOK_S, _STALLED_S, _SURE_S = 0.2, 180.0, 3.0
_TRIES, _PAUSE_S = 8, 1.0


class Say(Protocol):
    """Told how far a step is: its name, how much is done, of how much (None: unknown)."""

    def __call__(self, step: str, done: int, of: int | None, /) -> None:
        """Take the news."""
        ...


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What ``nestor bench retrieval`` prints."""

    collection: str
    legs: dict[str, Quality | None]
    """By words, by vectors, and both as AIDB answers. None: ``missing`` says why."""
    missing: str | None
    embedder: str | None
    """The stamp of its vectors."""
    documents: int
    documents_left_out: int
    """Refused by AIDB, so never found; ``refused`` is the first reason."""
    refused: str | None
    chunks: int
    chunks_without_vector: int | None
    queries: int
    """Judged ones that were asked."""
    queries_left_out: int
    """Judged ones that the file of queries lacks."""
    seconds: dict[str, float]
    """On the clock, by step: ``ingest``, ``embed`` (what it took longer), ``search``."""


@asynccontextmanager
async def embedder_for(
    settings: Settings, named: str | None
) -> AsyncIterator[Embedder | None]:
    """Open ``named`` (``minilm``, or a model's folder), else what the settings name.

    Where nothing is named, minilm if it was built. Raises ``Misconfigured``.
    """
    chosen = named
    if named is None and settings.embeddings_model is None:
        built = minilm.is_built(minilm.minilm_folder(settings.home))
        chosen = minilm.NAME if built else None
    if chosen is not None:
        told = {"embeddings_model": chosen, "embeddings_base_url": None}
        settings = settings.model_copy(update=told)
    async with AsyncExitStack() as stack:
        yield await open_embedder(stack, settings)


async def measure(
    collection: JudgedCollection,
    embedder: Embedder | None,
    *,
    limit: int | None = None,
    say: Say,
) -> Report:
    """Remember every document in a scratch folder, then ask every judged query.

    The index is filled once more before it is asked, as ``nestor kb reindex`` does.
    ``limit``: only so many queries. Nothing that touches the ranking can be set. Raises
    ``InvalidInput`` for a collection that cannot be read, ``Unavailable`` when a part of
    AIDB does not work, so that no number is of less than all of it.
    """
    if embedder is not None:
        await embedder.stamp()  # now, rather than after all documents are stored
    with TemporaryDirectory(prefix="nestor-bench-") as folder:
        async with _opened(Path(folder), embedder) as (aidb, store):
            run = _Run(collection, aidb, store, say)
            began = time.monotonic()
            await run.ingest()
            stored = time.monotonic()
            without_vector = await run.settle(embedder is not None)
            ready = time.monotonic()
            legs, asked = await run.search(limit, embedder is not None)
            ended = time.monotonic()
            stamp = aidb.keeper.stamp
    return Report(
        collection=collection.name,
        legs=legs,
        missing=NO_EMBEDDER if embedder is None else None,
        embedder=stamp.id if embedder is not None and stamp is not None else None,
        documents=len(run.ids),
        documents_left_out=run.left_out,
        refused=run.refused,
        chunks=len(run.owner),
        chunks_without_vector=without_vector,
        queries=asked,
        queries_left_out=collection.left_out,
        seconds={
            "ingest": round(stored - began, 2),
            "embed": round(ready - stored, 2),
            "search": round(ended - ready, 2),
        },
    )


@asynccontextmanager
async def _opened(
    home: Path, embedder: Embedder | None
) -> AsyncIterator[tuple[Aidb, KnowledgeStore]]:
    """Open AIDB as one process has it: SQLite and Edge. No canary: it would be found."""
    log = FileEventLog(home / "telemetry")
    try:
        async with (
            Database.open(f"sqlite:///{home / 'nestor.db'}") as database,
            await QdrantEdgeIndex.open(home / "qdrant") as index,
            DocumentChildren() as reader,
        ):
            store = SqlKnowledgeStore(database)
            aidb = Aidb(
                store,
                index,
                LearningClient(log, "aidb"),
                reader=reader,
                embedder=embedder,
                canary_s=0,
            )
            await aidb.start()
            try:
                yield aidb, store
            finally:
                await aidb.stop()
    finally:
        log.close()


class _Run:
    """One collection inside one AIDB."""

    def __init__(
        self,
        collection: JudgedCollection,
        aidb: Aidb,
        store: KnowledgeStore,
        say: Say,
    ) -> None:
        self._collection = collection
        self._aidb = aidb
        self._store = store
        self._say = say
        self._same: dict[str, str] = {}
        """Texts of documents that have the id of a query."""
        self.ids: dict[str, str] = {}
        """Path of a document → its id in the collection."""
        self.owner: dict[str, str] = {}
        """Chunk → its document's id in the collection."""
        self.left_out = 0
        self.refused: str | None = None

    async def ingest(self) -> None:
        for batch in _batches(self._collection.documents()):
            new = [self._new(document) for document in batch]
            try:
                await self._aidb.add_all(new)
            except InvalidInput:
                for one in new:
                    await self._add(one)
            self._say("documents", len(self.ids), None)

    async def _add(self, new: NewDocument) -> None:
        try:
            await self._aidb.add(new)
        except InvalidInput as error:
            self.left_out += 1
            self.refused = self.refused or str(error)

    def _new(self, document: JudgedDocument) -> NewDocument:
        # A document of a collection has no name that says anything: words of a path are
        # searched, and a number in a query must not find the document of that number.
        path = hashlib.sha256(document.id.encode(errors="replace")).hexdigest()[:24]
        self.ids[path] = document.id
        text = document.whole.replace("\0", " ").encode(errors="replace").decode()
        if document.id in self._collection.queries:
            self._same[document.id] = _plain(text)
        return NewDocument(project=PROJECT, path=path, content=text)

    async def settle(self, embeds: bool) -> int | None:
        """Wait until everything is in the index; return how many chunks got no vector."""
        keeper = self._aidb.keeper
        last, since = None, time.monotonic()
        while True:
            counts = await self._store.counts()
            without = counts.without_vector if embeds else 0
            ready = not embeds or (
                keeper.embedded and keeper.stamp == keeper.wanted is not None
            )
            now = counts.waiting, without, ready
            if now != last:
                last, since = now, time.monotonic()
            quiet = time.monotonic() - since
            if not counts.waiting and ready and (not without or quiet > _SURE_S):
                break
            if quiet > _STALLED_S:
                raise Unavailable(await self._why())
            self._say("vectors", counts.chunks - without, counts.chunks)
            await asyncio.sleep(_LOOK_S)
        # As ``nestor kb reindex``: words are weighed by the mean length of all chunks now.
        # An index that was only ever added to uses that of its first 256 or more.
        await self._aidb.reindex()
        await self._read_owners()
        return without if embeds else None

    async def _read_owners(self) -> None:
        after = 0
        while found := await self._store.each(None, after=after, limit=_PAGE):
            after = found[-1][0]
            for _, entry in found:
                self.owner[entry.chunk.id] = self.ids[entry.document.path]

    async def _why(self) -> str:
        """Say which part stands still."""
        parts = await self._aidb.dependencies()
        wrong = [
            f"{part.name}: {part.message}"
            for part in parts
            if part.status is not HealthStatus.HEALTHY
        ]
        told = "; ".join(wrong) or "no part says why"
        return f"nothing has moved for {_STALLED_S:g} s ({told})"

    async def search(
        self, limit: int | None, embeds: bool
    ) -> tuple[dict[str, Quality | None], int]:
        """Ask every way, and judge what came."""
        queries = dict(islice(self._collection.queries.items(), limit))
        judged = {key: self._collection.judged[key] for key in queries}
        found: dict[str, dict[str, list[str]]] = {BM25: {}}
        if embeds:
            found |= {DENSE: {}, FUSED: {}}
        for number, (key, text) in enumerate(queries.items()):
            self._say("queries", number, len(queries))
            for leg, rankings in found.items():
                rankings[key] = await self._ranking(leg, key, text)
        legs: dict[str, Quality | None] = dict.fromkeys((BM25, DENSE, FUSED))
        legs |= {leg: evaluation.quality(found[leg], judged) for leg in found}
        return legs, len(queries)

    async def _ranking(self, leg: str, key: str, text: str) -> list[str]:
        """Return documents, best first; a document that is the query itself is no answer."""
        clean = text.replace("\0", " ").encode(errors="replace").decode().strip()
        if not clean:
            return []
        own = key if self._is_query(key, clean) else None
        wanted = most = evaluation.RECALL_AT
        while True:
            hits = await self._hits(leg, clean, most)
            ranking = evaluation.documents_of(hits, self.owner, without=own)
            if len(ranking) >= wanted or len(hits) < most or leg == FUSED:
                return ranking
            most *= 2  # several were pieces of one document

    def _is_query(self, key: str, text: str) -> bool:
        """Tell a document that asks (as in ArguAna) from one that has a number by chance."""
        there, asked = self._same.get(key, ""), _plain(text)
        return bool(there and asked) and (there in asked or asked in there)

    async def _hits(self, leg: str, text: str, most: int) -> list[str]:
        degraded: Sequence[str] = ()
        for _ in range(_TRIES):
            try:
                found = await self._aidb.hits(text, limit=most, leg=leg)
            except Unavailable as error:  # too slow for once: the machine is busy
                degraded = [str(error)]
            else:
                if not found.degraded:
                    return [hit.chunk_id for hit in found.hits]
                degraded = found.degraded
            await asyncio.sleep(_PAUSE_S)
        raise Unavailable(f"searching ({leg}) did not work: {'; '.join(degraded)}")


def _batches(documents: Iterator[JudgedDocument]) -> Iterator[list[JudgedDocument]]:
    while batch := list(islice(documents, _BATCH)):
        yield batch


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()
