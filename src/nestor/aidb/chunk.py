"""Cut a document into pieces along its structure, with exact source spans.

Markdown: a heading starts a piece and gives it its path (``Install > Linux``); fenced
code and front matter stay whole unless they alone exceed the limit. Other text: blank
lines, then line ends, then sentences, then spaces. Linear in the size of the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

LIMIT = 1_600
"""Longest piece, in characters: some 400 tokens, so that five fit any prompt."""
MOST_PIECES = 40_000
"""Of one document, roughly: below the size this implies, small sections are merged."""
_MARKDOWN = frozenset({".md", ".markdown", ".mdx", ".mkd"})
_HEADING_CHARS = 120

_LINES = re.compile(
    r"(?P<blank>(?:[ \t]*(?:\r\n?|\n))+)|(?P<line>[^\r\n]+(?:\r\n?|\n)?)"
)
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r"(?:(?<=[\r\n])|\A|(?<=\A\ufeff))[ \t]*(`{3,}|~{3,})([^\r\n]*)")
_SETEXT = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_SENTENCE_END = re.compile(r"[.!?:;][\"')\]]*\s+")
_BLANK = " \t\r\n\f\v\ufeff"
_TAIL = 400
"""How far before the limit a good place to cut is looked for, in characters."""


@dataclass(frozen=True, slots=True)
class Piece:
    """``content[start:end] == text``; ``heading`` is the path of headings above it."""

    heading: str
    text: str
    start: int
    end: int


@dataclass(slots=True)
class _Block:
    start: int
    end: int
    path: tuple[str, ...] = ()
    heading: bool = False
    alone: bool = False
    """Front matter: shares its piece with nothing."""


@dataclass(slots=True)
class _Group:
    """Blocks that will share a piece."""

    blocks: list[_Block] = field(default_factory=list)
    only_headings: bool = True


@dataclass(slots=True)
class _Reader:
    """Where the line scanner stands."""

    content: str
    markdown: bool
    stack: list[tuple[int, str]] = field(default_factory=list)

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(title for _, title in self.stack)

    def enter(self, level: int, title: str) -> None:
        while self.stack and self.stack[-1][0] >= level:
            self.stack.pop()
        self.stack.append((level, title.strip()[:_HEADING_CHARS]))


def is_markdown(path: str) -> bool:
    """Tell by the name whether headings and fences are to be looked for."""
    return PurePosixPath(path).suffix.lower() in _MARKDOWN


def chunk(content: str, *, markdown: bool, limit: int = LIMIT) -> list[Piece]:
    """Cut ``content`` into pieces of at most ``limit`` characters.

    The spans are ordered, do not overlap and cover every character that is not blank
    (white space, a byte order mark). The same text always gives the same pieces.
    """
    smallest = len(content) // MOST_PIECES
    pieces: list[Piece] = []
    group = _Group()
    for block in _blocks(_Reader(content, markdown)):
        if group.blocks and not _joins(content, group, block, smallest, limit):
            pieces += _cut(content, group.blocks, limit)
            group = _Group()
        group.blocks.append(block)
        group.only_headings = group.only_headings and block.heading
    return pieces + _cut(content, group.blocks, limit)


def _joins(
    content: str, group: _Group, block: _Block, smallest: int, limit: int
) -> bool:
    if block.alone or group.blocks[-1].alone:
        return False
    start = group.blocks[0].start
    end = _shrink(content, block.start, block.end)[1]
    if end - _shrink(content, start, block.end)[0] > limit:
        return False
    return not block.heading or group.only_headings or block.start - start < smallest


def _cut(content: str, group: list[_Block], limit: int) -> list[Piece]:
    if not group:
        return []
    path = group[0].path
    if all(one.heading for one in group[:-1]):
        path = group[-1].path  # a title directly above its first section
    else:
        for block in group:
            path = _common(path, block.path)
    pieces = []
    for start, end in _split(content, group[0].start, group[-1].end, limit):
        first, last = _shrink(content, start, end)
        if first < last:
            pieces.append(Piece(" > ".join(path), content[first:last], first, last))
    return pieces


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return one[:length]


def _blank(char: str) -> bool:
    return char in _BLANK or char.isspace()


def _shrink(content: str, start: int, end: int) -> tuple[int, int]:
    """Leave out blank ends, but keep the indentation of the first line."""
    while end > start and _blank(content[end - 1]):
        end -= 1
    first = start
    while first < end and _blank(content[first]):
        first += 1
    while first > start and content[first - 1] in " \t":
        first -= 1
    return first, end


def _split(content: str, start: int, end: int, limit: int) -> Iterator[tuple[int, int]]:
    start, end = _shrink(content, start, end)
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


def _blocks(reader: _Reader) -> Iterator[_Block]:
    """Cut into front matter, then fences and what is between them."""
    content = reader.content
    start = 1 if content.startswith("\ufeff") else 0
    if not reader.markdown:
        yield from _paragraphs(reader, start, len(content))
        return
    if end := _front_matter(content, start):
        yield _Block(start, end, alone=True)
        start = end
    opened: tuple[int, str] | None = None
    for match in _FENCE.finditer(content, start):
        if opened is None and _opens(match):
            yield from _paragraphs(reader, start, match.start())
            opened = match.start(), match[1]
        elif opened and _closes(match, opened[1]):
            yield _Block(opened[0], match.end(), reader.path)
            opened, start = None, match.end()
    if opened:  # never closed: it runs to the end
        yield _Block(opened[0], len(content), reader.path)
    else:
        yield from _paragraphs(reader, start, len(content))


def _paragraphs(reader: _Reader, start: int, end: int) -> Iterator[_Block]:
    """Cut text without fences into headings and paragraphs."""
    pending: _Block | None = None  # the paragraph being read
    for match in _LINES.finditer(reader.content, start, end):
        begin, stop = match.span()
        if match["blank"] is not None:
            if pending:
                yield pending
            pending = None
        elif heading := _heading(reader, begin, stop, pending):
            if pending and heading.start != pending.start:
                yield pending
            pending = None
            yield heading
        elif pending:
            pending.end = stop
        else:
            pending = _Block(begin, stop, reader.path)
    if pending:
        yield pending


def _heading(
    reader: _Reader, begin: int, stop: int, pending: _Block | None
) -> _Block | None:
    """Read ``## Title``, or a one-line paragraph that this line underlines."""
    if not reader.markdown:
        return None
    line = reader.content[begin:stop].rstrip("\r\n")
    if atx := _ATX.match(line):
        reader.enter(len(atx[1]), atx[2] or "")
        return _Block(begin, stop, reader.path, heading=True)
    if pending and (under := _SETEXT.match(line)):
        title = reader.content[pending.start : pending.end].strip()
        if len(title) <= _HEADING_CHARS and "\n" not in title and "\r" not in title:
            reader.enter(1 if under[1][0] == "=" else 2, title)
            return _Block(pending.start, stop, reader.path, heading=True)
    return None


def _opens(fence: re.Match[str]) -> bool:
    """A back-tick fence has no back-tick in its info string (that is inline code)."""
    return fence[1][0] == "~" or "`" not in fence[2]


def _closes(fence: re.Match[str], opened: str) -> bool:
    """At least as long, of the same character, and nothing after it."""
    return fence[1].startswith(opened) and not fence[2].strip()


def _front_matter(content: str, start: int) -> int | None:
    """Return where the ``---`` block at the very top ends."""
    match = re.compile(r"---[ \t]*(?:\r\n?|\n)").match(content, start)
    if not match:
        return None
    end = re.compile(r"^(?:---|\.\.\.)[ \t]*(?:\r\n?|\n|\Z)", re.MULTILINE).search(
        content, match.end()
    )
    return end.end() if end else None
