"""Take the text out of HTML: what a reader would see, in pieces under their headings.

Scripts, styles, navigation and templates are left out; a table's rows are lines; ``pre``
keeps its lines. The tree is walked without recursion, however deep it is.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nestor.backends.documents.blocks import LIMIT, Block, Headings, Span, short, spans
from nestor.errors import Unreadable

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


MOST_TAGS = 2_000_000
DEEPEST = 4_000
"""Elements in elements. The parser's time grows with the square of it."""
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]{0,40})")
_SHALLOW = _set(
    """
    area base br col embed hr img input link meta param source track wbr p li dt dd
    tr td th thead tbody tfoot option optgroup colgroup caption rt rp html head body
    """
)
"""Have no end tag, or need none: however many there are, they do not nest."""
_LEFT_OUT = _set(
    """
    script style nav template noscript iframe svg canvas object
    """
)
_PARAGRAPHS = _set(
    """
    p ul ol dl table pre blockquote section article header footer main aside figure
    form fieldset details hr body h1 h2 h3 h4 h5 h6 hgroup
    """
)
_LINES = _set(
    """
    div li dt dd tr br option optgroup figcaption summary caption address legend
    center
    """
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_CELLS = frozenset({"td", "th"})
_SPACE = re.compile(r"[ \t\n\f\r]+")


def html_spans(source: str, *, limit: int = LIMIT) -> tuple[str, list[Span], str]:
    """Return the text, the spans of its pieces, and its title. Raises ``Unreadable``."""
    from selectolax.lexbor import (  # noqa: PLC0415 - where HTML is read
        LexborHTMLParser,
        SelectolaxError,
    )

    _check_depth(source)
    try:
        root = LexborHTMLParser(source).root
    except SelectolaxError as error:  # any text is HTML: it fails for want of memory
        raise MemoryError from error
    text = _Text()
    if root is not None:
        for node, tag, entered in _walk(root):
            if tag == "-text":
                text.write(node.text_content or "")
            elif tag == "title" and entered:
                text.title = text.title or short(node.text())
            elif entered:
                text.enter(tag)
            else:
                text.leave(tag)
    content, blocks = text.end()
    return content, spans(content, blocks, limit), text.title


def _check_depth(source: str) -> None:
    """Refuse before parsing what would take the parser minutes."""
    if source.count("<") > MOST_TAGS:
        raise Unreadable(f"it has more than {MOST_TAGS:,} tags; split it")
    opened: dict[str, int] = {}
    depth = 0
    for match in _TAG.finditer(source):
        name = match[2].lower()
        if name in _SHALLOW:
            continue
        count = opened.get(name, 0)
        if not match[1]:
            opened[name] = count + 1
            depth += 1
            if depth > DEEPEST:
                raise Unreadable(f"its elements are nested deeper than {DEEPEST:,}")
        elif count:
            opened[name] = count - 1
            depth -= 1


def _walk(root: "LexborNode") -> Iterator[tuple["LexborNode", str, bool]]:
    """Yield each node with its tag, True at its start and False at its end."""
    node: LexborNode | None = root
    tags: list[str] = []  # of the elements that are open
    while node is not None:
        tag = node.tag or ""
        child = None
        if tag not in _LEFT_OUT:
            yield node, tag, True
            child = node.first_child if tag not in {"-text", "title"} else None
        if child is not None:
            tags.append(tag)
            node = child
            continue
        if tag in _CLOSED_AT_ONCE:
            yield node, tag, False
        while node is not None:
            if not tags:
                return
            after = node.next
            if after is not None:
                node = after
                break
            node = node.parent
            if node is not None:
                yield node, tags.pop(), False


_CLOSED_AT_ONCE = _PARAGRAPHS | _LINES | _CELLS
"""Also when nothing is in them."""


class _Text:
    """The text as it grows, and its blocks."""

    def __init__(self) -> None:
        self.title = ""
        self._parts: list[str] = []
        self._length = 0
        self._gap = ""
        self._lead = ""
        self._blocks: list[Block] = []
        self._headings = Headings()
        self._heading: int | None = None
        """Where the parts of the heading that is open begin."""
        self._pre = self._cells = 0
        self._first_cell = True

    def enter(self, tag: str) -> None:
        self._break(tag)
        if tag in _HEADINGS:
            self._heading = len(self._parts)
        elif tag == "pre":
            self._pre += 1
        elif tag == "li":
            self._lead = "- "
        elif tag == "tr":
            self._first_cell = True
        elif tag in _CELLS:
            self._cells += 1
            if not self._first_cell:
                self._gap = " "  # whatever ended the cell before: a row is a line
                self._put("|")
            self._first_cell = False
            self._wider(" ")

    def leave(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._end_heading(_HEADINGS[tag])
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)
        elif tag in _CELLS:
            self._cells = max(0, self._cells - 1)
        if tag != "br":
            self._break(tag)

    def write(self, text: str) -> None:
        if self._pre:
            if text.strip():
                self._put(text)
            elif text:
                self._wider("\n" if "\n" in text else " ")
            return
        text = _SPACE.sub(" ", text)
        if text.startswith(" "):
            self._wider(" ")
            text = text[1:]
        ends = text.endswith(" ")
        if text := text.removesuffix(" "):
            self._put(text)
            if ends:
                self._wider(" ")

    def end(self) -> tuple[str, list[Block]]:
        """Return everything."""
        if self._blocks:
            self._blocks[-1].end = self._length
        return "".join(self._parts), self._blocks

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._wider("\n" if self._cells else "\n\n")
        elif tag in _LINES:
            self._wider("\n")

    def _wider(self, gap: str) -> None:
        if len(gap) > len(self._gap) or (gap == "\n" and self._gap == " "):
            self._gap = gap

    def _put(self, text: str) -> None:
        if not self._blocks:
            self._blocks.append(Block(0, 0))
        elif self._gap:
            if self._gap == "\n\n":
                self._blocks[-1].end = self._length
                start = self._length + 2
                self._blocks.append(Block(start, start, self._headings.path))
            self._parts.append(self._gap)
            self._length += len(self._gap)
        text = self._lead + text
        self._parts.append(text)
        self._length += len(text)
        self._gap = self._lead = ""

    def _end_heading(self, level: int) -> None:
        begin, self._heading = self._heading, None
        title = short("".join(self._parts[begin:])) if begin is not None else ""
        if not title:
            return
        self._headings.enter(level, title)
        if level == 1:
            self.title = self.title or title
        block = self._blocks[-1]
        block.path, block.opens, block.bare = self._headings.path, True, True
