"""KnowledgeStore in SQL: documents, their chunks, and full-text search over them."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import (
    Select,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql import full_text
from nestor.backends.sql.database import Database
from nestor.backends.sql.schema import chunk, chunk_removed, counter, document
from nestor.errors import NotFound
from nestor.model.knowledge import Chunk, Collection, Document, Hit
from nestor.ports.knowledge_store import KnowledgeCounts

_VERSION = "knowledge_version"
_BATCH = 500
"""Ids in one ``IN`` list: SQLite caps the number of bound values of a statement."""
_DOCUMENT = (
    document.c.id,
    document.c.project,
    document.c.path,
    document.c.collection,
    document.c.content_hash,
    document.c.size_bytes,
    document.c.metadata,
    document.c.added_at,
)
_CHUNK = (
    chunk.c.id,
    chunk.c.document_id,
    chunk.c.ordinal,
    chunk.c.heading,
    chunk.c.text,
    chunk.c.start,
    chunk.c.end,
)


class SqlKnowledgeStore:
    """See ``nestor.ports.knowledge_store``. Every change is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self, document_: Document, content: str, chunks: Sequence[Chunk]
    ) -> list[str]:
        """See KnowledgeStore.put. A chunk that stays the same keeps its place."""
        async with self._database.write() as connection:
            replaced = await connection.execute(
                select(document.c.id, document.c.collection).where(
                    or_(
                        document.c.id == document_.id,
                        (document.c.project == document_.project)
                        & (document.c.path == document_.path),
                    )
                )
            )
            owners = {row.id: row.collection for row in replaced}
            before = await _texts(connection, list(owners))
            if owners.get(document_.id) != document_.collection:
                before = dict.fromkeys(before)  # the index files it under the old name
            for other in owners.keys() - {document_.id}:
                await connection.execute(
                    delete(chunk).where(chunk.c.document_id == other)
                )
                await connection.execute(delete(document).where(document.c.id == other))
                before = dict.fromkeys(before)
            await _write_document(
                connection, document_, content, known=document_.id in owners
            )
            gone = await _write_chunks(connection, document_.id, before, chunks)
            await _note_removed(connection, gone, back=[one.id for one in chunks])
            await _bump(connection)
        return gone

    async def find(self, project: str, path: str) -> Document | None:
        """See KnowledgeStore.find."""
        query = _documents().where(
            document.c.project == project, document.c.path == path
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        return _document(row) if row else None

    async def get(self, document_id: str) -> Document:
        """See KnowledgeStore.get."""
        async with self._database.read() as connection:
            row = (
                await connection.execute(
                    _documents().where(document.c.id == document_id)
                )
            ).first()
        if row is None:
            raise NotFound(f"document {document_id}")
        return _document(row)

    async def all(self, *, limit: int = 1000) -> list[Document]:
        """See KnowledgeStore.all."""
        query = _documents().order_by(document.c.project, document.c.path).limit(limit)
        async with self._database.read() as connection:
            return [_document(row) for row in await connection.execute(query)]

    async def delete(self, document_id: str) -> list[str]:
        """See KnowledgeStore.delete."""
        async with self._database.write() as connection:
            gone = list(await _texts(connection, [document_id]))
            await connection.execute(
                delete(chunk).where(chunk.c.document_id == document_id)
            )
            deleted = await connection.execute(
                delete(document).where(document.c.id == document_id)
            )
            if not deleted.rowcount:
                raise NotFound(f"document {document_id}")
            await _note_removed(connection, gone, back=[])
            await _bump(connection)
        return gone

    async def chunks(self, ids: Sequence[str]) -> dict[str, tuple[Chunk, Document]]:
        """See KnowledgeStore.chunks."""
        found: dict[str, tuple[Chunk, Document]] = {}
        async with self._database.read() as connection:
            for batch in _batches(ids):
                rows = await connection.execute(_pairs().where(chunk.c.id.in_(batch)))
                found |= {row[0]: _pair(row) for row in rows}
        return found

    async def unindexed(self, *, limit: int = 500) -> list[tuple[Chunk, Document]]:
        """See KnowledgeStore.unindexed."""
        query = _pairs().where(chunk.c.indexed == 0).order_by(chunk.c.seq).limit(limit)
        async with self._database.read() as connection:
            return [_pair(row) for row in await connection.execute(query)]

    async def mark_indexed(self, ids: Sequence[str]) -> None:
        """See KnowledgeStore.mark_indexed."""
        async with self._database.write() as connection:
            for batch in _batches(ids):
                await connection.execute(
                    update(chunk).where(chunk.c.id.in_(batch)).values(indexed=1)
                )

    async def removed(self, *, limit: int = 500) -> list[str]:
        """See KnowledgeStore.removed."""
        query = select(chunk_removed.c.id).order_by(chunk_removed.c.id).limit(limit)
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def forget_removed(self, ids: Sequence[str]) -> None:
        """See KnowledgeStore.forget_removed."""
        async with self._database.write() as connection:
            for batch in _batches(ids):
                await connection.execute(
                    delete(chunk_removed).where(chunk_removed.c.id.in_(batch))
                )

    async def reset_index(self) -> int:
        """See KnowledgeStore.reset_index."""
        async with self._database.write() as connection:
            await connection.execute(update(chunk).values(indexed=0))
            counted = await connection.execute(select(func.count()).select_from(chunk))
            return int(counted.scalar_one())

    async def search(
        self, query: str, *, limit: int, collections: Sequence[Collection] | None = None
    ) -> list[Hit]:
        """See KnowledgeStore.search. Any of the words may match; rare ones weigh more."""
        found = full_text.matches(query, sqlite=self._database.is_sqlite)
        if found is None:
            return []
        if collections is not None:
            found = found.where(
                document.c.collection.in_([str(c) for c in collections])
            )
        async with self._database.read() as connection:
            rows = await connection.execute(
                found.order_by(literal_column("score").desc(), chunk.c.seq).limit(limit)
            )
            return [Hit(chunk_id=row[0], score=float(row[1])) for row in rows]

    async def counts(self) -> KnowledgeCounts:
        """See KnowledgeStore.counts."""
        waiting = select(func.count()).select_from(chunk).where(chunk.c.indexed == 0)
        query = select(
            select(func.count()).select_from(document).scalar_subquery(),
            select(func.count()).select_from(chunk).scalar_subquery(),
            waiting.scalar_subquery(),
            select(func.count()).select_from(chunk_removed).scalar_subquery(),
        )
        async with self._database.read() as connection:
            documents, chunks, wait, removed = (await connection.execute(query)).one()
        return KnowledgeCounts(
            documents=documents, chunks=chunks, waiting=wait, removed=removed
        )

    async def version(self) -> int:
        """See KnowledgeStore.version."""
        query = select(counter.c.value).where(counter.c.name == _VERSION)
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar() or 0)


async def _texts(
    connection: AsyncConnection, owners: Sequence[str]
) -> dict[str, tuple[str, str] | None]:
    """Read id → (heading, text) of the chunks of these documents."""
    rows = await connection.execute(
        select(chunk.c.id, chunk.c.heading, chunk.c.text).where(
            chunk.c.document_id.in_(owners)
        )
    )
    return {row[0]: (row[1], row[2]) for row in rows}


async def _write_document(
    connection: AsyncConnection, new: Document, content: str, *, known: bool
) -> None:
    values: dict[str, Any] = {
        "project": new.project,
        "path": new.path,
        "collection": str(new.collection),
        "content_hash": new.content_hash,
        "size_bytes": new.size_bytes,
        "content": content,
        "metadata": msgspec.json.encode(new.metadata).decode(),
        "added_at": new.added_at.isoformat(),
    }
    if known:
        statement = update(document).where(document.c.id == new.id).values(**values)
        await connection.execute(statement)
    else:
        await connection.execute(insert(document).values(id=new.id, **values))


async def _write_chunks(
    connection: AsyncConnection,
    owner: str,
    before: dict[str, tuple[str, str] | None],
    chunks: Sequence[Chunk],
) -> list[str]:
    """Bring the chunks of ``owner`` to ``chunks``; returns the ids that are gone."""
    now = {one.id: one for one in chunks}
    gone = [known for known in before if known not in now]
    stays = [one for one in chunks if before.get(one.id) == (one.heading, one.text)]
    kept = {one.id for one in stays}
    stale = [known for known in before if known not in kept]
    for batch in _batches(stale):
        await connection.execute(delete(chunk).where(chunk.c.id.in_(batch)))
    if stays:
        moved = update(chunk).where(chunk.c.id == bindparam("key"))
        await connection.execute(
            moved.values(
                ordinal=bindparam("at"), start=bindparam("first"), end=bindparam("last")
            ),
            [
                {"key": c.id, "at": c.ordinal, "first": c.start, "last": c.end}
                for c in stays
            ],
        )
    fresh = [
        {**msgspec.structs.asdict(one), "document_id": owner, "indexed": 0}
        for one in chunks
        if one.id not in kept
    ]
    if fresh:
        await connection.execute(insert(chunk), fresh)
    return gone


async def _note_removed(
    connection: AsyncConnection, gone: Sequence[str], *, back: Sequence[str]
) -> None:
    """Remember what the index must drop; what has come back must stay in it."""
    for batch in _batches([*gone, *back]):
        await connection.execute(
            delete(chunk_removed).where(chunk_removed.c.id.in_(batch))
        )
    if gone:
        await connection.execute(insert(chunk_removed), [{"id": one} for one in gone])


async def _bump(connection: AsyncConnection) -> None:
    await connection.execute(
        text(
            "INSERT INTO counter (name, value) VALUES (:name, 1)"
            " ON CONFLICT (name) DO UPDATE SET value = counter.value + 1"
        ),
        {"name": _VERSION},
    )


def _documents() -> Select[Any]:
    pieces = (
        select(func.count())
        .select_from(chunk)
        .where(chunk.c.document_id == document.c.id)
        .correlate(document)
        .scalar_subquery()
    )
    return select(*_DOCUMENT, pieces.label("chunks"))


def _pairs() -> Select[Any]:
    pieces = chunk.alias("sibling")
    number = (
        select(func.count())
        .select_from(pieces)
        .where(pieces.c.document_id == document.c.id)
        .correlate(document)
        .scalar_subquery()
    )
    return select(*_CHUNK, *_DOCUMENT, number.label("chunks")).join(
        document, document.c.id == chunk.c.document_id
    )


def _pair(row: Any) -> tuple[Chunk, Document]:
    return (
        Chunk(
            id=row[0],
            document_id=row[1],
            ordinal=row[2],
            heading=row[3],
            text=row[4],
            start=row[5],
            end=row[6],
        ),
        _document(row[len(_CHUNK) :]),
    )


def _document(row: Any) -> Document:
    return Document(
        id=row[0],
        project=row[1],
        path=row[2],
        collection=Collection(row[3]),
        content_hash=row[4],
        size_bytes=row[5],
        metadata=msgspec.json.decode(row[6], type=dict[str, str]),
        added_at=datetime.fromisoformat(row[7]),
        chunks=row[8],
    )


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), _BATCH):
        yield ids[first : first + _BATCH]
