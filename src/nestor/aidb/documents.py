"""What the knowledge base remembers: adding, replacing, reading, forgetting."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from nestor.aidb import ingest
from nestor.aidb.ingest import Source
from nestor.aidb.watch import Watch
from nestor.errors import FieldError, InvalidInput
from nestor.model.event import DOCUMENT_ADDED
from nestor.model.knowledge import Added, Chunk, Document, NewDocument
from nestor.ports.document_reader import DocumentReader, Reading
from nestor.ports.knowledge_store import KnowledgeStore
from nestor.telemetry.learning_client import LearningClient

_IN_THREAD = 200
"""More pieces than this become chunks beside the event loop."""


class Documents:
    """Documents go in whole or not at all, and are found by the next query.

    Raises ``Unavailable`` when SQL does not answer, or no document can be read.
    """

    def __init__(
        self,
        store: KnowledgeStore,
        reader: DocumentReader,
        learning: LearningClient,
        *,
        sql: Watch,
        written: Callable[[], Awaitable[None]],
        clock: Callable[[], datetime],
    ) -> None:
        """``written`` is awaited after each change, before it is told to be done."""
        self._store = store
        self._reader = reader
        self._learning = learning
        self._sql = sql
        self._written = written
        self._clock = clock

    async def add(self, new: NewDocument) -> Added:
        """Remember a text, replacing what stood at its project and path.

        Durable when it returns. The same content, collection and metadata again changes
        nothing. Raises ``InvalidInput``, ``TooLarge`` (over 32 MiB), ``Unreadable``.
        """
        ingest.check(new)
        (added,) = await self._add_texts([new])
        return added

    async def add_all(self, items: Sequence[NewDocument]) -> list[Added]:
        """Remember several. All are checked and read before the first is stored."""
        ingest.check_all(items)
        return await self._add_texts(items, named=True)

    async def add_file(
        self, file: Path, source: Source, *, media: str | None = None
    ) -> Added:
        """Remember what a file says. ``media``: what it is, where its name does not say."""
        ingest.check_name(source.project, source.path, source.metadata)
        known = await self._sql.run(self._store.get_all([source.id]))
        if (same := _unchanged(source, known)) is not None:
            return same
        reading = await self._reader.read(file, name=source.path, media=media)
        (added,) = await self._put([(source, reading)])
        return added

    async def delete(self, document_id: str) -> None:
        """Forget a document. Raises ``NotFound``, or ``InvalidInput`` for one of AIDB's own."""
        found = await self.get(document_id)
        if found.project.startswith(ingest.RESERVED):
            message = "this is Nestor's own: a learned pattern ends with POST /skills/{id}/retire"
            raise InvalidInput.at("document_id", message)
        await self._sql.run(self._store.delete(document_id))
        await self._written()

    async def get(self, document_id: str) -> Document:
        """Read a document. Raises ``NotFound``."""
        return await self._sql.run(self._store.get(document_id))

    async def page(
        self,
        *,
        project: str | None = None,
        after: tuple[str, str] | None = None,
        limit: int = 1000,
    ) -> tuple[list[Document], tuple[str, str] | None]:
        """Read documents by project and path, and what to go on ``after``; None: the end."""
        found = await self._sql.run(
            self._store.all(project=project, after=after, limit=limit)
        )
        last = found[-1] if len(found) == limit else None
        own = [one for one in found if not one.project.startswith(ingest.RESERVED)]
        return own, None if last is None else (last.project, last.path)

    async def _add_texts(
        self, items: Sequence[NewDocument], *, named: bool = False
    ) -> list[Added]:
        sources = [ingest.source_of(new) for new in items]
        found = await self._sql.run(self._store.get_all([one.id for one in sources]))
        known = [_unchanged(source, found) for source in sources]
        readings: dict[int, Reading] = {}

        async def read(number: int, new: NewDocument) -> None:
            try:
                readings[number] = await self._read(new)
            except InvalidInput as error:
                if not named:
                    raise
                raise _within(number, error) from error

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_kept(read(number, new)))
                for number, new in enumerate(items)
                if known[number] is None
            ]
        for task in tasks:
            if (wrong := task.result()) is not None:
                raise wrong
        numbers = sorted(readings)
        put = await self._put([(sources[n], readings[n]) for n in numbers])
        told = dict(zip(numbers, put, strict=True))
        return [one or told[number] for number, one in enumerate(known)]

    async def _read(self, new: NewDocument) -> Reading:
        if not new.content.strip("\ufeff \t\r\n"):
            return ingest.nothing(new.content)
        return await self._reader.read(new.content, name=new.path)

    async def _put(self, items: Sequence[tuple[Source, Reading]]) -> list[Added]:
        """Store what was read, all of it or nothing, and tell of each."""
        if not items:
            return []
        now = self._clock()
        if sum(len(reading.pieces) for _, reading in items) > _IN_THREAD:
            made = await asyncio.to_thread(_prepared, items, now)
        else:
            made = _prepared(items, now)
        await self._sql.run(self._store.put_all(made))
        await self._written()
        return [self._tell(document) for document, _, _ in made]

    def _tell(self, document: Document) -> Added:
        self._learning.log_event(
            DOCUMENT_ADDED,
            {
                "document_id": document.id,
                "project": document.project,
                "path": document.path,
                "collection": str(document.collection),
                "chunks": document.chunks,
            },
        )
        return Added(document=document, unchanged=False)


def _unchanged(source: Source, known: Mapping[str, Document]) -> Added | None:
    """Return what stands there, where it is just this."""
    document = known.get(source.id)
    if document is None or not source.is_same(document):
        return None
    return Added(document=document, unchanged=True)


def _prepared(
    items: Sequence[tuple[Source, Reading]], now: datetime
) -> list[tuple[Document, str, list[Chunk]]]:
    made = []
    for source, reading in items:
        document, chunks = ingest.prepare(source, reading, now)
        made.append((document, reading.content, chunks))
    return made


async def _kept(reading: Awaitable[None]) -> Exception | None:
    """Return what went wrong: the first of several, in their order, is what is told."""
    try:
        await reading
    except Exception as error:  # noqa: BLE001 - raised again by who waits for all
        return error
    return None


def _within(number: int, error: InvalidInput) -> InvalidInput:
    fields = [FieldError(f"items.{number}.{e.field}", e.message) for e in error.errors]
    return type(error)(f"items.{number}: {error}", *fields)
