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
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql.rows import encode
from nestor.backends.sql.schema import (
    chunk,
    chunk_place,
    chunk_removed,
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
_PLACE = ("ordinal", "start", "end", "first_line", "last_line", "page")
_CHUNK = (
    chunk.c.id,
    chunk.c.document_id,
    chunk.c.heading,
    chunk.c.text,
    *(chunk.c[name] for name in _PLACE),
)
_SAID = ("project", "path", "collection", "metadata", "media")
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


async def write(
    connection: AsyncConnection, new: Document, content: str, given: Sequence[Chunk]
) -> list[str]:
    """Store or replace a document with its chunks; returns ids of chunks that are gone.

    A chunk keeps its place in the index where nothing has changed that the index holds.
    """
    same_name = and_(
        document.c.project == text_of(new.project),
        document.c.path == text_of(new.path),
    )
    found = await connection.execute(
        documents().where((document.c.id == new.id) | same_name)
    )
    owners = {row[0]: document_of(row) for row in found}
    values = _document_values(new, content)
    before = await _placed(connection, list(owners))
    kept = dict(before)
    known = owners.get(new.id)
    if known is None or any(getattr(known, n) != getattr(new, n) for n in _SAID):
        kept.clear()
    for other in owners.keys() - {new.id}:
        await forget(connection, other)
        kept.clear()
    if known is None:
        await connection.execute(insert(document).values(id=new.id, **values))
    else:
        await connection.execute(
            update(document).where(document.c.id == new.id).values(**values)
        )
    gone = await _write_chunks(connection, new.id, before, kept, given)
    await note_removed(connection, gone, back=[one.id for one in given])
    return gone


async def forget(connection: AsyncConnection, document_id: str) -> bool:
    """Delete a document and its chunks; False where there is none."""
    await connection.execute(delete(chunk).where(chunk.c.document_id == document_id))
    done = await connection.execute(
        delete(document).where(document.c.id == document_id)
    )
    return bool(done.rowcount)


async def note_removed(
    connection: AsyncConnection, gone: Sequence[str], *, back: Sequence[str] = ()
) -> None:
    """Remember what the index must drop; what has come back must stay in it."""
    for batch in batches([*gone, *back]):
        await connection.execute(
            delete(chunk_removed).where(chunk_removed.c.id.in_(batch))
        )
    if gone:
        await connection.execute(insert(chunk_removed), [{"id": one} for one in gone])


def _document_values(new: Document, content: str) -> dict[str, Any]:
    return {
        "project": text_of(new.project),
        "path": text_of(new.path),
        "collection": str(new.collection),
        "content_hash": new.content_hash,
        "size_bytes": new.size_bytes,
        "content": text_of(content),
        "metadata": encode(metadata_of(new.metadata)),
        "added_at": new.added_at.isoformat(),
        "media": new.media,
    }


async def _placed(
    connection: AsyncConnection, owners: Sequence[str]
) -> dict[str, tuple[Any, ...]]:
    """Read id → digest and place of the chunks of these documents."""
    if not owners:
        return {}
    columns = (chunk.c.id, chunk.c.digest, *(chunk.c[name] for name in _PLACE))
    rows = await connection.execute(
        select(*columns).where(chunk.c.document_id.in_(owners))
    )
    return {row[0]: tuple(row[1:]) for row in rows}


async def _write_chunks(
    connection: AsyncConnection,
    owner: str,
    before: Mapping[str, tuple[Any, ...]],
    kept: Mapping[str, tuple[Any, ...]],
    given: Sequence[Chunk],
) -> list[str]:
    """Bring the chunks of ``owner`` to ``given``; returns the ids that are gone.

    ``kept``: those of ``before`` that may stay as they are. What is written anew waits.
    """
    rows = [_chunk_values(owner, one) for one in given]
    stays = {
        row["id"]
        for row in rows
        if kept.get(row["id"]) == (row["digest"], *(row[name] for name in _PLACE))
    }
    for batch in batches([known for known in before if known not in stays]):
        await connection.execute(delete(chunk).where(chunk.c.id.in_(batch)))
    if fresh := [row for row in rows if row["id"] not in stays]:
        await connection.execute(insert(chunk), fresh)
        placed = exists().where(chunk_place.c.seq == chunk.c.seq)
        await connection.execute(
            insert(chunk_place).from_select(
                ["seq", "indexed"],
                select(chunk.c.seq, literal(WAITS)).where(
                    chunk.c.document_id == owner, ~placed
                ),
            )
        )
    now = {row["id"] for row in rows}
    return [known for known in before if known not in now]


def _chunk_values(owner: str, one: Chunk) -> dict[str, Any]:
    clean = msgspec.structs.replace(
        one, heading=text_of(one.heading), text=text_of(one.text), document_id=owner
    )
    return {
        **msgspec.structs.asdict(clean),
        "digest": digest_of(clean),
    }


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
