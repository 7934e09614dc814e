"""The search indexes that the contract runs on, and what their tests say for short."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from qdrant_client import AsyncQdrantClient
from tests.servers.qdrant_stand_in import qdrant_stand_in

from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.qdrant.server import QdrantServerIndex
from nestor.model.ids import derived_id
from nestor.model.knowledge import (
    Chunk,
    Collection,
    Document,
    EmbeddingStamp,
    Entry,
    Hit,
    Where,
)
from nestor.ports.search_index import SearchIndex

NOW = datetime(2026, 1, 2, tzinfo=UTC)
STAMP = EmbeddingStamp(model="m", revision="1", dimension=3)
OTHER = EmbeddingStamp(model="m", revision="2", dimension=3)
EVERYWHERE = Where()
X, Y, Z = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


KINDS = ("edge", "memory", "http")


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[SearchIndex]:
    """Open one: in process, on qdrant-client's in-memory mode, or over HTTP."""
    if kind == "edge":
        async with await QdrantEdgeIndex.open(folder / "qdrant") as edge:
            yield edge
    elif kind == "memory":
        client = AsyncQdrantClient(location=":memory:")
        async with QdrantServerIndex(client) as memory:
            yield memory
    else:
        async with (
            qdrant_stand_in() as server,
            QdrantServerIndex.connect(server.base_url, api_key="key") as http,
        ):
            yield http


def entry(
    text: str,
    collection: Collection = Collection.CODEBASE_CONTEXT,
    *,
    key: str = "",
    heading: str = "",
    project: str = "p",
    path: str = "x",
    metadata: dict[str, str] | None = None,
    vector: list[float] | None = None,
) -> Entry:
    owner = derived_id("document", key or text)
    chunk = Chunk(
        id=derived_id("chunk", key or text),
        document_id=owner,
        ordinal=3,
        heading=heading,
        text=text,
        start=7,
        end=7 + len(text),
        first_line=2,
        last_line=4,
        page=5,
    )
    document = Document(
        id=owner,
        project=project,
        path=path,
        collection=collection,
        content_hash="ab" * 32,
        size_bytes=len(text),
        chunks=1,
        metadata=metadata or {},
        added_at=NOW,
        media="text/markdown",
    )
    return Entry(chunk=chunk, document=document, vector=vector)


async def found(
    index: SearchIndex, query: str, where: Where = EVERYWHERE, limit: int = 10
) -> list[str]:
    legs = await index.search(query=query, limit=limit, where=where)
    assert legs.dense is None
    assert legs.bm25 is not None
    return ordered(legs.bm25)


async def near(
    index: SearchIndex, vector: list[float], where: Where = EVERYWHERE
) -> list[str]:
    legs = await index.search(vector=vector, stamp=STAMP, limit=10, where=where)
    assert legs.bm25 is None
    assert legs.dense is not None
    return ordered(legs.dense)


def ordered(hits: list[Hit]) -> list[str]:
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    return [hit.chunk_id for hit in hits]
