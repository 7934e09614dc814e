"""How documents are written: several in the statements that one takes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import and_, bindparam, delete, exists, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql.knowledge_rows import (
    PLACE,
    SAID,
    WAITS,
    batches,
    digest_of,
    document_of,
    documents,
    metadata_of,
    text_of,
)
from nestor.backends.sql.rows import encode
from nestor.backends.sql.schema import chunk, chunk_place, chunk_removed, document
from nestor.model.knowledge import Chunk, Document

Item = tuple[Document, str, Sequence[Chunk]]
"""A document, its whole text, and its chunks."""
_Chunks = dict[str, tuple[Any, ...]]
"""By id: the digest of a chunk, and its place in the document."""


async def write(connection: AsyncConnection, items: Sequence[Item]) -> list[str]:
    """Store or replace documents with their chunks; returns ids of chunks that are gone.

    A chunk keeps its place in the index where nothing has changed that the index holds.
    As if one were written after the other: of two with one name the last is left.
    """
    gone: list[str] = []
    for group in _groups(items):
        gone += await _write_group(connection, group)
    return gone


async def forget(connection: AsyncConnection, document_ids: Sequence[str]) -> int:
    """Delete documents and their chunks; returns how many documents there were."""
    found = 0
    for batch in batches(document_ids):
        await connection.execute(delete(chunk).where(chunk.c.document_id.in_(batch)))
        done = await connection.execute(
            delete(document).where(document.c.id.in_(batch))
        )
        found += done.rowcount
    return found


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


class _Change:
    """What writing one document changes."""

    def __init__(
        self, item: Item, standing: Sequence[Document], chunks: Mapping[str, _Chunks]
    ) -> None:
        """``standing``: what has its id or its name now; ``chunks``: of these."""
        new, content, given = item
        known = next((one for one in standing if one.id == new.id), None)
        self.is_new = known is None
        self.replaced = [one.id for one in standing if one.id != new.id]
        """Documents of another id that had the name."""
        self.values = {"id": new.id, **_document_values(new, content)}
        rows = [_chunk_values(new.id, one) for one in given]
        self.chunk_ids = [row["id"] for row in rows]
        before = {key: at for one in standing for key, at in chunks[one.id].items()}
        same = (
            known is not None
            and not self.replaced
            and all(getattr(known, name) == getattr(new, name) for name in SAID)
        )
        stays = {
            row["id"]
            for row in rows
            if same
            and before.get(row["id"]) == (row["digest"], *(row[n] for n in PLACE))
        }
        self.fresh = [row for row in rows if row["id"] not in stays]
        self.old = [one for one in before if one not in stays]
        """Chunks that are deleted, some of them to be written anew."""


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Cut where an id or a name comes again."""
    group: list[Item] = []
    seen: set[object] = set()
    for item in items:
        new = item[0]
        marks = {new.id, (text_of(new.project), text_of(new.path))}
        if marks & seen:
            yield group
            group, seen = [], set()
        group.append(item)
        seen |= marks
    if group:
        yield group


async def _write_group(connection: AsyncConnection, items: Sequence[Item]) -> list[str]:
    standing = await _standing(connection, [new for new, _, _ in items])
    ids = {new.id for new, _, _ in items}
    if len(items) > 1 and any(
        one.id != new.id and one.id in ids
        for (new, _, _), found in zip(items, standing, strict=True)
        for one in found
    ):  # one takes the name that another of them gives up
        return [key for item in items for key in await _write_group(connection, [item])]
    there = list(dict.fromkeys(one.id for found in standing for one in found))
    chunks = await _placed(connection, there)
    changes = [
        _Change(item, found, chunks)
        for item, found in zip(items, standing, strict=True)
    ]
    await forget(connection, [one for change in changes for one in change.replaced])
    await _write_documents(connection, changes)
    old = [one for change in changes for one in change.old]
    for batch in batches(old):
        await connection.execute(delete(chunk).where(chunk.c.id.in_(batch)))
    await _write_chunks(connection, changes)
    now = [one for change in changes for one in change.chunk_ids]
    gone = list(dict.fromkeys(one for one in old if one not in set(now)))
    await note_removed(connection, gone, back=now)
    return gone


async def _standing(
    connection: AsyncConnection, new: Sequence[Document]
) -> list[list[Document]]:
    """Read for each what has its id or its name."""
    found: dict[str, Document] = {}
    paths: dict[str, list[str]] = {}
    for one in new:
        paths.setdefault(text_of(one.project), []).append(text_of(one.path))
    by_id = [document.c.id.in_(b) for b in batches([one.id for one in new])]
    by_name = [
        and_(document.c.project == project, document.c.path.in_(batch))
        for project, names in paths.items()
        for batch in batches(names)
    ]
    for held in (*by_id, *by_name):
        rows = await connection.execute(documents().where(held))
        found |= {row[0]: document_of(row) for row in rows}
    named = {(one.project, one.path): one for one in found.values()}
    result = []
    for one in new:
        same = found.get(one.id), named.get((text_of(one.project), text_of(one.path)))
        result.append(list({found.id: found for found in same if found}.values()))
    return result


async def _placed(
    connection: AsyncConnection, owners: Sequence[str]
) -> dict[str, _Chunks]:
    """Read document → id → digest and place of its chunks."""
    found: dict[str, _Chunks] = {owner: {} for owner in owners}
    columns = (chunk.c.document_id, chunk.c.id, chunk.c.digest)
    query = select(*columns, *(chunk.c[name] for name in PLACE))
    for batch in batches(owners):
        held = chunk.c.document_id.in_(batch)
        for row in await connection.execute(query.where(held)):
            found[row[0]][row[1]] = tuple(row[2:])
    return found


async def _write_documents(
    connection: AsyncConnection, changes: Sequence[_Change]
) -> None:
    if new := [one.values for one in changes if one.is_new]:
        await connection.execute(insert(document), new)
    if known := [one.values for one in changes if not one.is_new]:
        values: dict[str, Any] = {
            name: bindparam(f"new_{name}") for name in known[0] if name != "id"
        }
        await connection.execute(
            update(document)
            .where(document.c.id == bindparam("new_id"))
            .values(**values),
            [{f"new_{name}": value for name, value in one.items()} for one in known],
        )


async def _write_chunks(
    connection: AsyncConnection, changes: Sequence[_Change]
) -> None:
    fresh = [row for change in changes for row in change.fresh]
    if not fresh:
        return
    await connection.execute(insert(chunk), fresh)
    placed = exists().where(chunk_place.c.seq == chunk.c.seq)
    for batch in batches([one.values["id"] for one in changes if one.fresh]):
        await connection.execute(
            insert(chunk_place).from_select(
                ["seq", "indexed"],
                select(chunk.c.seq, literal(WAITS))
                .where(chunk.c.document_id.in_(batch), ~placed)
                .order_by(chunk.c.seq),
            )
        )


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


def _chunk_values(owner: str, one: Chunk) -> dict[str, Any]:
    clean = msgspec.structs.replace(
        one, heading=text_of(one.heading), text=text_of(one.text), document_id=owner
    )
    return {**msgspec.structs.asdict(clean), "digest": digest_of(clean)}
