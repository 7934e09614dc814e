"""Blocks of a text become pieces of at most ``LIMIT`` characters, with exact spans.

Linear in the size of the text, whatever it holds.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nestor.ports.document_reader import Piece

LIMIT = 1_600
"""Longest piece, in characters: some 400 tokens, so that five fit any prompt."""
MOST_PIECES = 40_000
"""Of one document, roughly: below the size this implies, small sections are merged."""
HEADING_CHARS = 120
_SENTENCE_END = re.compile(r"[.!?:;][\"')\]]*\s+")
_BLANKS = "".join(c for c in map(chr, range(0x3001)) if c.isspace()) + "\ufeff"
_NOT_BLANK = re.compile(f"[^{re.escape(_BLANKS)}]")
_WINDOW = 256
_TAIL = 400
"""How far before the limit a good place to cut is looked for, in characters."""


class Span(NamedTuple):
    """Where a piece stands. Lines count from 1; a line ends with LF, CR LF or CR."""

    heading: str
    start: int
    end: int
    first_line: int
    last_line: int
    page: int | None


@dataclass(slots=True)
class Block:
    """A part of a text that is not cut unless it is over the limit by itself."""

    start: int
    end: int
    path: tuple[str, ...] = ()
    opens: bool = False
    """Begins a piece."""
    bare: bool = False
    """Only a title: shares its piece with what follows, and takes that one's path."""
    alone: bool = False
    """Front matter: shares its piece with nothing."""
    page: int | None = None


class Headings:
    """The path of headings at the place that is being read."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, str]] = []
        self.path: tuple[str, ...] = ()

    def enter(self, level: int, title: str) -> None:
        """Go on under a heading; those of its level and below end."""
        while self._stack and self._stack[-1][0] >= level:
            self._stack.pop()
        self._stack.append((level, short(title)))
        self.path = tuple(title for _, title in self._stack)


@dataclass(slots=True)
class _Group:
    """Blocks that will share a piece; ``first`` is where its text begins."""

    first: int
    blocks: list[Block] = field(default_factory=list)
    bare: bool = True

    def add(self, block: Block) -> None:
        self.blocks.append(block)
        self.bare = self.bare and block.bare


def short(title: str) -> str:
    """Return a title as one line that fits a path."""
    return " ".join(title[: 8 * HEADING_CHARS].split())[:HEADING_CHARS]


def spans(content: str, blocks: Iterable[Block], limit: int = LIMIT) -> list[Span]:
    """Join small blocks and cut large ones.

    The spans are ordered, do not overlap and cover every character of the blocks that
    is not blank (white space, a byte order mark).
    """
    return list(_numbered(content, _gathered(content, blocks, limit)))


def pieces(content: str, found: Sequence[Span]) -> list[Piece]:
    """Give each span its text."""
    return [
        Piece(
            heading=span.heading,
            text=content[span.start : span.end],
            start=span.start,
            end=span.end,
            first_line=span.first_line,
            last_line=span.last_line,
            page=span.page,
        )
        for span in found
    ]


def shrink(content: str, start: int, end: int) -> tuple[int, int]:
    """Leave out blank ends, but keep the indentation of the first line."""
    end = min(end, len(content))
    while end > start:
        window = content[max(start, end - _WINDOW) : end]
        kept = len(window.rstrip(_BLANKS))
        end -= len(window) - kept
        if kept:
            break
    match = _NOT_BLANK.search(content, start, end)
    first = match.start() if match else end
    if first > start and content[first - 1] in " \t":
        before = content[start:first]
        first = start + len(before.rstrip(" \t"))
    return first, end


_Cut = tuple[str, int, int, int | None]


def _gathered(content: str, blocks: Iterable[Block], limit: int) -> Iterator[_Cut]:
    smallest = len(content) // MOST_PIECES
    group: _Group | None = None
    for block in blocks:
        first, last = shrink(content, block.start, block.end)
        if first >= last:
            continue
        block.start, block.end = first, last
        if group is not None and not _joins(group, block, smallest, limit):
            yield from _cut(content, group, limit)
            group = None
        if group is None:
            group = _Group(first)
        group.add(block)
    if group is not None:
        yield from _cut(content, group, limit)


def _joins(group: _Group, block: Block, smallest: int, limit: int) -> bool:
    if block.alone or group.blocks[-1].alone or block.end - group.first > limit:
        return False
    return not block.opens or group.bare or block.start - group.first < smallest


def _cut(content: str, group: _Group, limit: int) -> Iterator[_Cut]:
    blocks = group.blocks
    # A title directly above its first section takes that one's path.
    path, *others = [one.path for one in blocks if not one.bare] or [blocks[-1].path]
    for other in others:
        path = _common(path, other)
    for start, end in _split(content, group.first, blocks[-1].end, limit):
        first, last = shrink(content, start, end)
        if first < last:
            yield " > ".join(path), first, last, blocks[0].page


def _numbered(content: str, cuts: Iterable[_Cut]) -> Iterator[Span]:
    has_cr = "\r" in content
    line, at = 1, 0

    def line_ends(start: int, end: int) -> int:
        count = content.count("\n", start, end)
        if has_cr:  # no span begins or ends between CR and LF: both are blank
            count += content.count("\r", start, end)
            count -= content.count("\r\n", start, end)
        return count

    for heading, start, end, page in cuts:
        first = line + line_ends(at, start)
        line, at = first + line_ends(start, end), end
        yield Span(heading, start, end, first, line, page)


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return one[:length]


def _split(content: str, start: int, end: int, limit: int) -> Iterator[tuple[int, int]]:
    while end - start > limit:
        at = _place(content, start, start + limit)
        yield start, at
        start = at
        while start < end and content[start] in "\r\n":
            start += 1
    if start < end:
        yield start, end


def _place(content: str, start: int, end: int) -> int:
    """Find the best place to cut in the last part of ``content[start:end]``."""
    low = max(start + 1, end - _TAIL)
    for mark in ("\n\n", "\n"):
        if (at := content.rfind(mark, low, end)) >= 0:
            return at + len(mark)
    sentences = list(_SENTENCE_END.finditer(content, low, end))
    if sentences:
        return sentences[-1].end()
    for at in range(end - 1, low - 1, -1):
        if content[at].isspace():
            return at + 1
    return end
