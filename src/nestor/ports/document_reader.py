"""Turns files into text and pieces. tests/contracts/test_document_reader.py."""

from pathlib import Path
from typing import Protocol

import msgspec


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a text that is found by itself. ``text`` stands at ``start`` to ``end``.

    ``heading``: the path of headings, or of classes and functions, above it. Lines and
    pages count from 1.
    """

    heading: str
    text: str
    start: int
    end: int
    first_line: int
    last_line: int
    page: int | None = None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a document says. ``content[piece.start:piece.end] == piece.text``."""

    content: str
    media: str
    pieces: list[Piece]
    title: str = ""


class DocumentReader(Protocol):
    """Reads Markdown, text, code, HTML and PDF, hostile ones too."""

    async def read(
        self, source: Path | str, *, name: str, media: str | None = None
    ) -> Reading:
        """Read a file (``Path``) or a text (``str``); ``name`` says what kind it is.

        ``media``: what it is, where the name does not say. Bounded in time and memory
        whatever the bytes are. Raises ``Unreadable`` with a sentence for people: not
        text, damaged, locked by a password, a bomb, too long a line, nothing to read.
        """
        ...

    async def close(self) -> None:
        """End its processes."""
        ...
