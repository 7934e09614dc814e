"""KnowledgeStore in SQL: documents, their chunks and vectors, and full-text search."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import delete, func, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql import (
    full_text,
    knowledge_vectors,
    knowledge_writes,
    skill_rows,
)
from nestor.backends.sql import knowledge_rows as rows_
from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_rows import (
    BY_WORDS,
    VECTOR_KNOWN,
    WAITS,
    WITH_VECTOR,
    batches,
    chunk_of,
    document_of,
)
from nestor.backends.sql.schema import (
    chunk,
    chunk_place,
    chunk_removed,
    counter,
    document,
    embedding,
)
from nestor.errors import NotFound
from nestor.model.knowledge import (
    Chunk,
    Document,
    EmbeddingStamp,
    Entry,
    Hit,
    Skill,
    Where,
)
from nestor.ports.knowledge_store import KnowledgeCounts

_VERSION = "knowledge_version"
_TEXTS = "knowledge_texts"
"""Grows when texts without a vector may have come: with every text, and lost vectors."""
_LOCK = 0x6B6E6F77
"""Any number: PostgreSQL's lock for "the knowledge base is being changed"."""
_END = "g"
"""Above every digest, which is hex."""


class _Done(NamedTuple):
    """Below the digest ``floor`` every text had a vector, as of ``texts``."""

    texts: int
    floor: str


class SqlKnowledgeStore:
    """See ``nestor.ports.knowledge_store``. Every change is one transaction, one at a time.

    NUL and lone surrogates in a text are kept as U+FFFD: no database holds both.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._done: dict[str, _Done] = {}

    async def put(
        self, document_: Document, content: str, chunks: Sequence[Chunk]
    ) -> list[str]:
        """See KnowledgeStore.put. A chunk that stays the same keeps its place."""
        return await self.put_all([(document_, content, chunks)])

    async def put_all(
        self, items: Sequence[tuple[Document, str, Sequence[Chunk]]]
    ) -> list[str]:
        """See KnowledgeStore.put_all."""
        if not items:
            return []
        async with self._database.write() as connection:
            await self._database.serialise(connection, _LOCK)
            gone = await knowledge_writes.write(connection, items)
            await _bump(connection, _VERSION, _TEXTS)
        return gone

    async def find(self, project: str, path: str) -> Document | None:
        """See KnowledgeStore.find."""
        query = rows_.documents().where(
            document.c.project == rows_.text_of(project),
            document.c.path == rows_.text_of(path),
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        return document_of(row) if row else None

    async def get(self, document_id: str) -> Document:
        """See KnowledgeStore.get."""
        query = rows_.documents().where(document.c.id == document_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound(f"document {document_id}")
        return document_of(row)

    async def get_all(self, ids: Sequence[str]) -> dict[str, Document]:
        """See KnowledgeStore.get_all."""
        async with self._database.read() as connection:
            return await rows_.documents_by_id(connection, ids)

    async def content(self, document_id: str) -> str:
        """See KnowledgeStore.content."""
        query = select(document.c.content).where(document.c.id == document_id)
        async with self._database.read() as connection:
            found = await connection.scalar(query)
        if found is None:
            raise NotFound(f"document {document_id}")
        return str(found)

    async def all(
        self,
        *,
        project: str | None = None,
        after: tuple[str, str] | None = None,
        limit: int = 1000,
    ) -> list[Document]:
        """See KnowledgeStore.all."""
        name = (document.c.project, document.c.path)
        query = rows_.documents().order_by(*name)
        if project is not None:
            query = query.where(document.c.project == rows_.text_of(project))
        if after is not None:
            query = query.where(tuple_(*name) > tuple_(*map(rows_.text_of, after)))
        async with self._database.read() as connection:
            return [
                document_of(row) for row in await connection.execute(query.limit(limit))
            ]

    async def hashes(self, project: str) -> dict[str, tuple[str, str]]:
        """See KnowledgeStore.hashes."""
        query = select(document.c.path, document.c.id, document.c.content_hash).where(
            document.c.project == project
        )
        async with self._database.read() as connection:
            return {row[0]: (row[1], row[2]) for row in await connection.execute(query)}

    async def delete(self, document_id: str) -> list[str]:
        """See KnowledgeStore.delete."""
        pieces = select(chunk.c.id).where(chunk.c.document_id == document_id)
        async with self._database.write() as connection:
            await self._database.serialise(connection, _LOCK)
            gone = list((await connection.execute(pieces)).scalars())
            if not await knowledge_writes.forget(connection, [document_id]):
                raise NotFound(f"document {document_id}")
            await knowledge_writes.note_removed(connection, gone)
            await _bump(connection, _VERSION)
        return gone

    async def chunks(self, ids: Sequence[str]) -> dict[str, tuple[Chunk, Document]]:
        """See KnowledgeStore.chunks."""
        found: list[Chunk] = []
        async with self._database.read() as connection:
            for batch in batches(ids):
                rows = await connection.execute(
                    rows_.chunks().where(chunk.c.id.in_(batch))
                )
                found += [chunk_of(row) for row in rows]
            owners = await rows_.documents_by_id(
                connection, (one.document_id for one in found)
            )
        return {one.id: (one, owners[one.document_id]) for one in found}

    async def waiting(
        self, stamp: EmbeddingStamp | None, *, limit: int = 500
    ) -> list[Entry]:
        """See KnowledgeStore.waiting. What the index lacks whole comes first."""
        place = chunk_place.c
        query = rows_.entries(stamp).join(chunk_place, place.seq == chunk.c.seq)
        query = query.order_by(place.seq)
        async with self._database.read() as connection:
            rows = list(
                await connection.execute(
                    query.where(place.indexed == WAITS).limit(limit)
                )
            )
            if stamp is not None and len(rows) < limit:
                rows += await connection.execute(
                    query.where(
                        place.indexed == VECTOR_KNOWN, embedding.c.vector.is_not(None)
                    ).limit(limit - len(rows))
                )
            return [entry for _, entry in await rows_.entries_of(connection, rows)]

    async def mark_indexed(self, entries: Sequence[Entry]) -> None:
        """See KnowledgeStore.mark_indexed. What was replaced meanwhile goes on waiting."""
        if not entries:
            return
        async with self._database.write() as connection:
            await self._database.serialise(connection, _LOCK)
            now = await rows_.documents_by_id(
                connection, (entry.chunk.document_id for entry in entries)
            )
            same = [one for one in entries if now.get(one.document.id) == one.document]
            for with_vector, state in (
                (True, WITH_VECTOR),
                (False, knowledge_vectors.STANDS_BY_WORDS),
            ):
                ids = [
                    e.chunk.id for e in same if (e.vector is not None) == with_vector
                ]
                await rows_.set_indexed(connection, ids, state)
            await _bump(connection, _VERSION)

    async def each(
        self, stamp: EmbeddingStamp | None, *, after: int = 0, limit: int = 500
    ) -> list[tuple[int, Entry]]:
        """See KnowledgeStore.each."""
        query = rows_.entries(stamp).where(chunk.c.seq > after).order_by(chunk.c.seq)
        async with self._database.read() as connection:
            rows = list(await connection.execute(query.limit(limit)))
            return await rows_.entries_of(connection, rows)

    async def ids(self, *, after: str | None = None, limit: int = 1000) -> list[str]:
        """See KnowledgeStore.ids."""
        query = select(chunk.c.id).order_by(chunk.c.id).limit(limit)
        if after is not None:
            query = query.where(chunk.c.id > after)
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def removed(self, *, limit: int = 500) -> list[str]:
        """See KnowledgeStore.removed."""
        query = select(chunk_removed.c.id).order_by(chunk_removed.c.id).limit(limit)
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def forget_removed(self, ids: Sequence[str]) -> None:
        """See KnowledgeStore.forget_removed."""
        async with self._database.write() as connection:
            await self._database.serialise(connection, _LOCK)
            for batch in batches(ids):
                await connection.execute(
                    delete(chunk_removed).where(chunk_removed.c.id.in_(batch))
                )

    async def reset_index(self) -> int:
        """See KnowledgeStore.reset_index."""
        async with self._database.write() as connection:
            await self._database.serialise(connection, _LOCK)
            done = await connection.execute(update(chunk_place).values(indexed=WAITS))
            await _bump(connection, _VERSION)
            return int(done.rowcount)

    async def unembedded(
        self, stamp: EmbeddingStamp, *, limit: int = 64
    ) -> list[tuple[str, str]]:
        """See KnowledgeStore.unembedded.

        Remembers how far everything has a vector, so that the next call begins there.
        """
        async with self._database.read() as connection:
            texts = await _count(connection, _TEXTS)
            done = self._done.get(stamp.id)
            floor = done.floor if done is not None and done.texts == texts else ""
            found = await knowledge_vectors.without(
                connection, stamp, floor=floor, limit=limit
            )
        self._done[stamp.id] = _Done(texts, found[0][0] if found else _END)
        return found

    async def put_vectors(
        self, stamp: EmbeddingStamp, vectors: Mapping[str, Sequence[float]]
    ) -> None:
        """See KnowledgeStore.put_vectors. Nothing is written when one is refused."""
        rows = knowledge_vectors.checked(stamp, vectors)
        if rows:
            async with self._database.write() as connection:
                await self._database.serialise(connection, _LOCK)
                await knowledge_vectors.put(self._database, connection, rows)

    async def drop_vectors(self, keep: EmbeddingStamp | None) -> int:
        """See KnowledgeStore.drop_vectors."""
        async with self._database.write() as connection:
            await self._database.serialise(connection, _LOCK)
            dropped = await knowledge_vectors.drop(connection, keep)
            await _bump(connection, _TEXTS)
        return dropped

    async def search(self, query: str, *, limit: int, where: Where) -> list[Hit]:
        """See KnowledgeStore.search. Any of the words may match; rare ones weigh more."""
        found = full_text.matches(query, where, sqlite=self._database.is_sqlite)
        if found is None:
            return []
        async with self._database.read() as connection:
            if not self._database.is_sqlite:
                # Of a word it knows nothing of the planner may read every text instead.
                await connection.execute(text("SET LOCAL enable_seqscan = off"))
            rows = await connection.execute(found.limit(limit))
            return [Hit(chunk_id=row[0], score=float(row[1])) for row in rows]

    async def counts(self) -> KnowledgeCounts:
        """See KnowledgeStore.counts."""
        chunks = select(func.count()).select_from(chunk_place)
        standing = chunk_place.c.indexed.in_((BY_WORDS, VECTOR_KNOWN))
        query = select(
            select(func.count()).select_from(document).scalar_subquery(),
            chunks.scalar_subquery(),
            chunks.where(chunk_place.c.indexed == WAITS).scalar_subquery(),
            select(func.count()).select_from(chunk_removed).scalar_subquery(),
            chunks.where(standing).scalar_subquery(),
        )
        async with self._database.read() as connection:
            found = (await connection.execute(query)).one()
        return KnowledgeCounts(
            documents=found[0],
            chunks=found[1],
            waiting=found[2],
            removed=found[3],
            without_vector=found[4],
        )

    async def version(self) -> int:
        """See KnowledgeStore.version."""
        async with self._database.read() as connection:
            return await _count(connection, _VERSION)

    async def put_skill(self, skill: Skill) -> bool:
        """See KnowledgeStore.put_skill."""
        async with self._database.write() as connection:
            await self._database.serialise(connection, _LOCK)
            changed = await skill_rows.put(self._database, connection, skill)
            if changed:
                await _bump(connection, _VERSION)
        return changed

    async def replace_skill(self, old: Skill, new: Skill) -> bool:
        """See KnowledgeStore.replace_skill."""
        async with self._database.write() as connection:
            await self._database.serialise(connection, _LOCK)
            done = await skill_rows.replace(connection, old, new)
            if done:
                await _bump(connection, _VERSION)
        return done

    async def skill(self, skill_id: str) -> Skill:
        """See KnowledgeStore.skill."""
        async with self._database.read() as connection:
            return await skill_rows.read(connection, skill_id)

    async def skills(
        self, *, limit: int = 1000, after: Skill | None = None
    ) -> list[Skill]:
        """See KnowledgeStore.skills."""
        async with self._database.read() as connection:
            return await skill_rows.newest(connection, limit, after)


async def _bump(connection: AsyncConnection, *names: str) -> None:
    rows = ", ".join(f"('{name}', 1)" for name in names)
    await connection.execute(
        text(
            f"INSERT INTO counter (name, value) VALUES {rows}"  # noqa: S608 - constants
            " ON CONFLICT (name) DO UPDATE SET value = counter.value + 1"
        )
    )


async def _count(connection: AsyncConnection, name: str) -> int:
    return int(
        await connection.scalar(select(counter.c.value).where(counter.c.name == name))
        or 0
    )
