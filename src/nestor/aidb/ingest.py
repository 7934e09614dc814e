"""Turn a text into a document and its chunks, or refuse it."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from nestor.errors import FieldError, InvalidInput, TooLarge
from nestor.model.ids import derived_id
from nestor.model.knowledge import Chunk, Collection, Document, NewDocument
from nestor.ports.document_reader import Piece, Reading

MAX_CONTENT_BYTES = 32 * 1024 * 1024
MAX_NAME = 1024
"""Of a project or a path, in characters."""
MAX_METADATA_BYTES = 64 * 1024
RESERVED = "nestor:"
_REFUSED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Shown in a name, these make it read as another one."""


def check(new: NewDocument) -> None:
    """Raise ``InvalidInput`` or ``TooLarge`` that names the field."""
    check_name(new.project, new.path, new.metadata)
    check_text("content", new.content)
    if len(new.content.encode()) > MAX_CONTENT_BYTES:
        raise TooLarge.at("content", f"over {MAX_CONTENT_BYTES} bytes in UTF-8")


def check_name(project: str, path: str, metadata: Mapping[str, str]) -> None:
    """Raise ``InvalidInput`` or ``TooLarge`` for what a document cannot be called."""
    _check_name("project", project)
    _check_name("path", path)
    if project.startswith(RESERVED):
        message = f"names that begin with {RESERVED!r} are Nestor's own"
        raise InvalidInput.at("project", message)
    size = 0
    for key, value in metadata.items():
        check_text("metadata", key)
        check_text("metadata", value)
        size += len(key.encode()) + len(value.encode())
    if size > MAX_METADATA_BYTES:
        raise TooLarge.at("metadata", f"over {MAX_METADATA_BYTES} bytes in UTF-8")


def check_all(items: Sequence[NewDocument]) -> None:
    """Like ``check`` for a batch; the fields are named ``items.N.…``."""
    for number, new in enumerate(items):
        try:
            check(new)
        except InvalidInput as error:
            errors = [
                FieldError(f"items.{number}.{one.field}", one.message)
                for one in error.errors
            ]
            raise type(error)(f"items.{number}.{error}", *errors) from error


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a document is, beside its text."""

    project: str
    path: str
    collection: Collection
    metadata: dict[str, str]
    content_hash: str
    size_bytes: int

    @property
    def id(self) -> str:
        """The id of whatever stands at this project and path."""
        return derived_id("document", self.project, self.path)

    def is_same(self, known: Document) -> bool:
        """Tell whether just this stands there already."""
        return (
            known.content_hash == self.content_hash
            and known.collection == self.collection
            and known.metadata == self.metadata
        )


def source_of(new: NewDocument) -> Source:
    """Describe a text."""
    raw = new.content.encode()
    return Source(
        project=new.project,
        path=new.path,
        collection=new.collection,
        metadata=new.metadata,
        content_hash=hashlib.sha256(raw).hexdigest(),
        size_bytes=len(raw),
    )


def nothing(content: str) -> Reading:
    """Read a text that says nothing: it has no pieces, and is no error."""
    return Reading(content=content, media="text/plain", pieces=[])


def prepare(
    source: Source, reading: Reading, now: datetime
) -> tuple[Document, list[Chunk]]:
    """Make a document and its chunks of what was read.

    A chunk's id follows from its document, collection, heading and text, so that an
    edit elsewhere in the document leaves it, and its vector, alone.
    """
    seen: dict[tuple[str, str], int] = {}
    chunks = []
    for ordinal, piece in enumerate(reading.pieces):
        same = seen[piece.heading, piece.text] = (
            seen.get((piece.heading, piece.text), -1) + 1
        )
        chunks.append(_chunk(source, ordinal, piece, same))
    document = Document(
        id=source.id,
        project=source.project,
        path=source.path,
        collection=source.collection,
        content_hash=source.content_hash,
        size_bytes=source.size_bytes,
        chunks=len(chunks),
        metadata=source.metadata,
        added_at=now,
        media=reading.media,
    )
    return document, chunks


def _chunk(source: Source, ordinal: int, piece: Piece, same: int) -> Chunk:
    key = ("chunk", source.id, source.collection, piece.heading, piece.text, same)
    return Chunk(
        id=derived_id(*key),
        document_id=source.id,
        ordinal=ordinal,
        heading=piece.heading,
        text=piece.text,
        start=piece.start,
        end=piece.end,
        first_line=piece.first_line,
        last_line=piece.last_line,
        page=piece.page,
    )


def _check_name(field: str, value: str) -> None:
    if not value.strip():
        raise InvalidInput.at(field, "must not be empty")
    if len(value) > MAX_NAME:
        raise InvalidInput.at(field, f"longer than {MAX_NAME} characters")
    for char in value:
        if unicodedata.category(char) in _REFUSED or char in _DIRECTION:
            raise InvalidInput.at(
                field, f"holds the control character U+{ord(char):04X}"
            )


def check_text(field: str, value: str) -> None:
    """Raise ``InvalidInput`` for what no text holds."""
    if (at := value.find("\0")) >= 0:
        message = f"NUL at character {at}: this is not text"
        raise InvalidInput.at(field, message)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"a lone surrogate at character {error.start}: this is not text"
        raise InvalidInput.at(field, message) from error
