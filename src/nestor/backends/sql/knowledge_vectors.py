"""Vectors in SQL, by the digest of the text they were made of and the stamp of the model."""

import math
from collections.abc import Mapping, Sequence
from operator import mul

from sqlalchemy import and_, case, delete, exists, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_rows import (
    BY_WORDS,
    VECTOR_KNOWN,
    batches,
    vector_data,
)
from nestor.backends.sql.rows import insert
from nestor.backends.sql.schema import chunk, chunk_place, embedding
from nestor.errors import InvalidInput
from nestor.model.knowledge import Chunk, EmbeddingStamp, embedded_text

KNOWN = exists(
    select(1)
    .select_from(chunk)
    .join(embedding, embedding.c.digest == chunk.c.digest)
    .where(chunk.c.seq == chunk_place.c.seq)
    .correlate(chunk_place)
)
"""A vector of the text of a row of ``chunk_place`` is known, of whatever stamp."""
STANDS_BY_WORDS = case((KNOWN, VECTOR_KNOWN), else_=literal(BY_WORDS))


async def without(
    connection: AsyncConnection, stamp: EmbeddingStamp, *, floor: str, limit: int
) -> list[tuple[str, str]]:
    """Read (digest, text) of what has no vector of ``stamp``, by digest from ``floor`` on."""
    lacks = ~exists().where(
        embedding.c.digest == chunk.c.digest, embedding.c.stamp == stamp.id
    )
    query = (
        select(chunk.c.digest, chunk.c.heading, chunk.c.text)
        .where(lacks)
        .order_by(chunk.c.digest)
        .limit(limit)
    )
    found: dict[str, str] = {}
    page = query.where(chunk.c.digest >= floor)
    # No GROUP BY: it would read them all. A text that stands often fills a page.
    while len(found) < limit:
        rows = (await connection.execute(page)).all()
        for digest, heading, text in rows:
            if len(found) < limit:
                found.setdefault(digest, _text(heading, text))
        if len(rows) < limit:
            break
        page = query.where(chunk.c.digest > rows[-1].digest)
    return list(found.items())


def _text(heading: str, text: str) -> str:
    piece = Chunk(
        id="", document_id="", ordinal=0, heading=heading, text=text, start=0, end=0
    )
    return embedded_text(piece)


def checked(
    stamp: EmbeddingStamp, vectors: Mapping[str, Sequence[float]]
) -> list[dict[str, object]]:
    """Return rows to write. Raises ``InvalidInput`` for what is no vector of ``stamp``."""
    rows: list[dict[str, object]] = []
    for digest, vector in vectors.items():
        if len(vector) != stamp.dimension:
            raise InvalidInput.at(
                "vectors",
                f"a vector of {len(vector)} numbers is none of {stamp.id},"
                f" which has {stamp.dimension}",
            )
        length = sum(map(mul, vector, vector))  # much faster than by a generator
        if not math.isfinite(length) or length == 0:
            raise InvalidInput.at("vectors", "a vector of length 0, or of no number")
        rows.append(
            {"digest": digest, "stamp": stamp.id, "vector": vector_data(vector)}
        )
    return rows


async def put(
    database: Database, connection: AsyncConnection, rows: Sequence[dict[str, object]]
) -> None:
    """Write vectors, and let the chunks they belong to be noticed by the index's keeper."""
    statement = insert(database, embedding)
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[embedding.c.digest, embedding.c.stamp],
            set_={"vector": statement.excluded.vector},
        ),
        list(rows),
    )
    for batch in batches([row["digest"] for row in rows]):
        numbers = select(chunk.c.seq).where(chunk.c.digest.in_(batch))
        await connection.execute(
            update(chunk_place)
            .where(chunk_place.c.seq.in_(numbers), chunk_place.c.indexed == BY_WORDS)
            .values(indexed=VECTOR_KNOWN)
        )


async def drop(connection: AsyncConnection, keep: EmbeddingStamp | None) -> int:
    """Forget vectors of other stamps, and those of texts that are gone; returns how many."""
    gone = ~exists().where(chunk.c.digest == embedding.c.digest)
    other = (
        embedding.c.stamp.is_not(None) if keep is None else embedding.c.stamp != keep.id
    )
    dropped = await connection.execute(delete(embedding).where(or_(gone, other)))
    await connection.execute(
        update(chunk_place)
        .where(and_(chunk_place.c.indexed == VECTOR_KNOWN, ~KNOWN))
        .values(indexed=BY_WORDS)
    )
    return int(dropped.rowcount)
