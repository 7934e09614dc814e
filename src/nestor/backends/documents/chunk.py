"""Cut Markdown and text into pieces along their structure, with exact source spans.

Markdown: a heading starts a piece and gives it its path (``Install > Linux``); fenced
code and front matter stay whole unless they alone exceed the limit. Other text: blank
lines, then line ends, then sentences, then spaces. Linear in the size of the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from nestor.backends.documents.blocks import (
    HEADING_CHARS,
    LIMIT,
    Block,
    Headings,
    Span,
    short,
    spans,
)

_LONGEST_HEADING = 1_000
"""Characters of a line; a longer one is a paragraph."""

_LINES = re.compile(r"(?P<blank>[ \t\r\n]*[\r\n])|(?P<line>[^\r\n]+(?:\r\n?|\n)?)")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_CLOSING_HASHES = re.compile(r"(?:^|[ \t])#+$")
_FENCE = re.compile(r"(?:(?<=[\r\n])|\A|(?<=\A\ufeff))[ \t]*(`{3,}|~{3,})([^\r\n]*)")
_SETEXT = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_FRONT_MATTER = re.compile(r"---[ \t]*(?:\r\n?|\n)")
_FRONT_MATTER_END = re.compile(r"^(?:---|\.\.\.)[ \t]*(?:\r\n?|\n|\Z)", re.MULTILINE)
_TITLE = re.compile(r"^title:[ \t]*([^\r\n]{1,500})", re.MULTILINE)


@dataclass(slots=True)
class _Scanner:
    """Where the line scanner stands."""

    content: str
    markdown: bool
    headings: Headings = field(default_factory=Headings)
    title: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        return self.headings.path

    def enter(self, level: int, title: str) -> None:
        self.headings.enter(level, title)
        if level == 1 and not self.title:
            self.title = short(title)


def text_spans(
    content: str, *, markdown: bool, limit: int = LIMIT
) -> tuple[list[Span], str]:
    """Return the spans of the pieces, and the title: of front matter, or the first ``#``.

    The spans hold at most ``limit`` characters each, are ordered, do not overlap and cover
    every character that is not blank (white space, a byte order mark). The same text
    always gives the same.
    """
    scanner = _Scanner(content, markdown)
    found = spans(content, _blocks(scanner), limit)
    return found, scanner.title


def paragraphs(
    content: str, start: int, end: int, *, page: int | None = None
) -> Iterator[Block]:
    """Cut plain text at its blank lines."""
    for block in _paragraphs(_Scanner(content, markdown=False), start, end):
        block.page = page
        yield block


def _blocks(scanner: _Scanner) -> Iterator[Block]:
    """Cut into front matter, then fences and what is between them."""
    content = scanner.content
    start = 1 if content.startswith("\ufeff") else 0
    if not scanner.markdown:
        yield from _paragraphs(scanner, start, len(content))
        return
    if end := _front_matter(content, start):
        if title := _TITLE.search(content, start, end):
            scanner.title = short(title[1].strip().strip("\"'"))
        yield Block(start, end, alone=True)
        start = end
    opened: tuple[int, str] | None = None
    for match in _FENCE.finditer(content, start):
        if opened is None and _opens(match):
            yield from _paragraphs(scanner, start, match.start())
            opened = match.start(), match[1]
        elif opened and _closes(match, opened[1]):
            yield Block(opened[0], match.end(), scanner.path)
            opened, start = None, match.end()
    if opened:  # never closed: it runs to the end
        yield Block(opened[0], len(content), scanner.path)
    else:
        yield from _paragraphs(scanner, start, len(content))


def _paragraphs(scanner: _Scanner, start: int, end: int) -> Iterator[Block]:
    """Cut text without fences into headings and paragraphs."""
    pending: Block | None = None  # the paragraph being read
    for match in _LINES.finditer(scanner.content, start, end):
        begin, stop = match.span()
        if match["blank"] is not None:
            if pending:
                yield pending
            pending = None
        elif heading := _heading(scanner, begin, stop, pending):
            if pending and heading.start != pending.start:
                yield pending
            pending = None
            yield heading
        elif pending:
            pending.end = stop
        else:
            pending = Block(begin, stop, scanner.path)
    if pending:
        yield pending


def _heading(
    scanner: _Scanner, begin: int, stop: int, pending: Block | None
) -> Block | None:
    """Read ``## Title``, or a one-line paragraph that this line underlines."""
    if not scanner.markdown or stop - begin > _LONGEST_HEADING:
        return None
    line = scanner.content[begin:stop].rstrip("\r\n")
    if atx := _ATX.match(line):
        title = line[atx.end(1) :].strip()
        scanner.enter(len(atx[1]), _CLOSING_HASHES.sub("", title))
        return Block(begin, stop, scanner.path, opens=True, bare=True)
    # The length is looked at first: each line of a long paragraph may look like this.
    if (
        pending
        and pending.end - pending.start <= _LONGEST_HEADING
        and (under := _SETEXT.match(line))
    ):
        title = scanner.content[pending.start : pending.end].strip()
        if len(title) <= HEADING_CHARS and "\n" not in title and "\r" not in title:
            scanner.enter(1 if under[1][0] == "=" else 2, title)
            return Block(pending.start, stop, scanner.path, opens=True, bare=True)
    return None


def _opens(fence: re.Match[str]) -> bool:
    """A back-tick fence has no back-tick in its info string (that is inline code)."""
    return fence[1][0] == "~" or "`" not in fence[2]


def _closes(fence: re.Match[str], opened: str) -> bool:
    """At least as long, of the same character, and nothing after it."""
    return fence[1].startswith(opened) and not fence[2].strip()


def _front_matter(content: str, start: int) -> int | None:
    """Return where the ``---`` block at the very top ends."""
    match = _FRONT_MATTER.match(content, start)
    if not match:
        return None
    end = _FRONT_MATTER_END.search(content, match.end())
    return end.end() if end else None
