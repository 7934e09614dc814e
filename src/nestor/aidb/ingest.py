"""Turn a text into a document and its chunks, or refuse it."""

import hashlib
import unicodedata
from collections.abc import Sequence
from datetime import datetime

from nestor.aidb.chunk import chunk, is_markdown
from nestor.errors import FieldError, InvalidInput, TooLarge
from nestor.model.ids import derived_id
from nestor.model.knowledge import Chunk, Document, NewDocument

MAX_CONTENT_BYTES = 32 * 1024 * 1024
MAX_NAME = 1024
"""Of a project or a path, in characters."""
MAX_METADATA_BYTES = 64 * 1024
_REFUSED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Shown in a name, these make it read as another one."""


def check(new: NewDocument) -> None:
    """Raise ``InvalidInput`` or ``TooLarge`` that names the field."""
    _check_name("project", new.project)
    _check_name("path", new.path)
    _check_text("content", new.content)
    if len(new.content.encode()) > MAX_CONTENT_BYTES:
        raise TooLarge.at("content", f"over {MAX_CONTENT_BYTES} bytes in UTF-8")
    size = 0
    for key, value in new.metadata.items():
        _check_text("metadata", key)
        _check_text("metadata", value)
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


def document_id(new: NewDocument) -> str:
    """Return the id of whatever stands at this project and path."""
    return derived_id("document", new.project, new.path)


def content_hash(content: str) -> str:
    """SHA-256 of the text in UTF-8, in hex."""
    return hashlib.sha256(content.encode()).hexdigest()


def prepare(new: NewDocument, now: datetime) -> tuple[Document, list[Chunk]]:
    """Cut a checked text into chunks.

    A chunk's id follows from its document, collection, heading and text, so that an
    edit elsewhere in the document leaves it, and its place in the index, alone.
    """
    owner = document_id(new)
    pieces = chunk(new.content, markdown=is_markdown(new.path))
    seen: dict[tuple[str, str], int] = {}
    chunks = []
    for ordinal, piece in enumerate(pieces):
        same = seen[piece.heading, piece.text] = (
            seen.get((piece.heading, piece.text), -1) + 1
        )
        chunks.append(
            Chunk(
                id=derived_id(
                    "chunk", owner, new.collection, piece.heading, piece.text, same
                ),
                document_id=owner,
                ordinal=ordinal,
                heading=piece.heading,
                text=piece.text,
                start=piece.start,
                end=piece.end,
            )
        )
    document = Document(
        id=owner,
        project=new.project,
        path=new.path,
        collection=new.collection,
        content_hash=content_hash(new.content),
        size_bytes=len(new.content.encode()),
        chunks=len(chunks),
        metadata=new.metadata,
        added_at=now,
    )
    return document, chunks


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


def _check_text(field: str, value: str) -> None:
    if (at := value.find("\0")) >= 0:
        message = f"NUL at character {at}: this is not text"
        raise InvalidInput.at(field, message)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"a lone surrogate at character {error.start}: this is not text"
        raise InvalidInput.at(field, message) from error
