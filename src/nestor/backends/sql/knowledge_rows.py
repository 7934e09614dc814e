"""Rows of documents and chunks: how they are read, and how a document is written."""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    Select,
    and_,
    func,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql.schema import (
    chunk,
    chunk_place,
    document,
    embedding,
)
from nestor.model.knowledge import (
    Chunk,
    Collection,
    Document,
    EmbeddingStamp,
    Entry,
    embedded_text,
)

T = TypeVar("T")
WAITS, BY_WORDS, WITH_VECTOR, VECTOR_KNOWN = 0, 1, 2, 3
"""``chunk_place.indexed``: not in the index; there by its words; there with its vector; there by
its words while a vector of its text is known."""
BATCH = 500
"""Values in one ``IN`` list: SQLite caps the number of bound values of a statement."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_DOCUMENT = (
    document.c.id,
    document.c.project,
    document.c.path,
    document.c.collection,
    document.c.content_hash,
    document.c.size_bytes,
    document.c.metadata,
    document.c.added_at,
    document.c.media,
)
PLACE = ("ordinal", "start", "end", "first_line", "last_line", "page")
_CHUNK = (
    chunk.c.id,
    chunk.c.document_id,
    chunk.c.heading,
    chunk.c.text,
    *(chunk.c[name] for name in PLACE),
)
SAID = ("project", "path", "collection", "metadata", "media")
"""What the index holds of a document, and a search or a citation may show."""


def text_of(given: str) -> str:
    """Return a text as both databases hold it, character for character as long.

    NUL and lone surrogates become U+FFFD.
    """
    try:
        given.encode()
    except UnicodeEncodeError:
        return _NO_TEXT.sub("\ufffd", given)
    return given.replace("\0", "\ufffd") if "\0" in given else given


def metadata_of(given: Mapping[str, str]) -> dict[str, str]:
    """Return metadata as both databases hold it."""
    return {text_of(name): text_of(value) for name, value in given.items()}


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut into what one statement takes."""
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]


def documents() -> Select[Any]:
    """Select what ``document_of`` reads."""
    pieces = (
        select(func.count())
        .select_from(chunk)
        .where(chunk.c.document_id == document.c.id)
        .correlate(document)
        .scalar_subquery()
    )
    return select(*_DOCUMENT, pieces.label("chunks"))


def document_of(row: Any) -> Document:
    """Read a row of ``documents``."""
    return Document(
        id=row[0],
        project=row[1],
        path=row[2],
        collection=Collection(row[3]),
        content_hash=row[4],
        size_bytes=row[5],
        metadata=msgspec.json.decode(row[6], type=dict[str, str]),
        added_at=datetime.fromisoformat(row[7]),
        media=row[8],
        chunks=row[9],
    )


async def documents_by_id(
    connection: AsyncConnection, ids: Iterable[str]
) -> dict[str, Document]:
    """Read each once: a large one counts its chunks, and they all name it."""
    found: dict[str, Document] = {}
    for batch in batches(list(dict.fromkeys(ids))):
        rows = await connection.execute(documents().where(document.c.id.in_(batch)))
        found |= {row[0]: document_of(row) for row in rows}
    return found


def chunks() -> Select[Any]:
    """Select what ``chunk_of`` reads."""
    return select(*_CHUNK)


def chunk_of(row: Any) -> Chunk:
    """Read a row of ``chunks``."""
    return Chunk(
        id=row[0],
        document_id=row[1],
        heading=row[2],
        text=row[3],
        ordinal=row[4],
        start=row[5],
        end=row[6],
        first_line=row[7],
        last_line=row[8],
        page=row[9],
    )


def entries(stamp: EmbeddingStamp | None) -> Select[Any]:
    """Select what ``entries_of`` reads: chunks, their numbers, vectors of ``stamp``."""
    if stamp is None:
        return select(*_CHUNK, chunk.c.seq)
    of_stamp = and_(embedding.c.digest == chunk.c.digest, embedding.c.stamp == stamp.id)
    return select(*_CHUNK, chunk.c.seq, embedding.c.vector).outerjoin(
        embedding, of_stamp
    )


async def entries_of(
    connection: AsyncConnection, rows: Sequence[Any]
) -> list[tuple[int, Entry]]:
    """Read rows of ``entries``, with their documents, in the same snapshot."""
    owners = await documents_by_id(connection, (row[1] for row in rows))
    seq = len(_CHUNK)
    return [
        (
            row[seq],
            Entry(
                chunk=chunk_of(row),
                document=owners[row[1]],
                vector=vector_of(row[seq + 1]) if len(row) > seq + 1 else None,
            ),
        )
        for row in rows
    ]


def vector_of(data: bytes | None) -> list[float] | None:
    """Read float32, little-endian."""
    if data is None:
        return None
    numbers = array("f", data)
    if _BIG_ENDIAN:
        numbers.byteswap()
    return numbers.tolist()


def vector_data(vector: Sequence[float]) -> bytes:
    """Write float32, little-endian."""
    numbers = array("f", vector)
    if _BIG_ENDIAN:
        numbers.byteswap()
    return numbers.tobytes()


_BIG_ENDIAN = array("H", [1]).tobytes() == b"\0\1"


def digest_of(one: Chunk) -> str:
    """Return the SHA-256 in hex of what a chunk's vector is made of."""
    return hashlib.sha256(embedded_text(one).encode()).hexdigest()


async def set_indexed(
    connection: AsyncConnection, ids: Sequence[str], state: Any
) -> None:
    """Note where chunks stand; ``state``: a number, or an expression of the row."""
    for batch in batches(ids):
        numbers = select(chunk.c.seq).where(chunk.c.id.in_(batch))
        await connection.execute(
            update(chunk_place)
            .where(chunk_place.c.seq.in_(numbers))
            .values(indexed=state)
        )
