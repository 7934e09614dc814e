"""Read one document: bytes or text in, text with the spans of its pieces out."""

from typing import NamedTuple

from nestor.backends.documents import media as kinds
from nestor.backends.documents.blocks import Span
from nestor.backends.documents.chunk import text_spans
from nestor.backends.documents.code_spans import code_spans, languages
from nestor.backends.documents.decoding import checked, html_of, text_of
from nestor.backends.documents.html_spans import html_spans
from nestor.backends.documents.pdf_spans import pdf_spans
from nestor.errors import Unreadable

_CODE = frozenset(languages())


class Text(NamedTuple):
    """What a document says. ``spans`` are of ``content``."""

    content: str
    media: str
    spans: list[Span]
    title: str


def read(
    source: bytes | str,
    *,
    name: str,
    media: str | None,
    seconds: float,
    plain: bool = False,
) -> Text:
    """Read what a file holds (``bytes``), or a text. Raises ``Unreadable``.

    ``plain``: without the parsers of code.
    """
    head = source[:4096]
    kind = kinds.kind_of(
        name, media, head if isinstance(head, bytes) else head.encode(errors="replace")
    )
    if kind.media == kinds.PDF:
        if isinstance(source, str):
            raise Unreadable("it is a PDF, which is no text; give the file itself")
        found = Text(*_with_media(kinds.PDF, pdf_spans(source, seconds=seconds)))
    elif kind.media == kinds.HTML:
        html = (
            checked(source)
            if isinstance(source, str)
            else html_of(source, kind.charset)
        )
        found = Text(*_with_media(kinds.HTML, html_spans(html)))
    else:
        text = (
            checked(source)
            if isinstance(source, str)
            else text_of(source, kind.charset)
        )
        found = _text(text, kind.media, plain=plain)
    if not found.spans:
        raise Unreadable("there is no text in it")
    return found


def _text(text: str, media: str, *, plain: bool) -> Text:
    if media in _CODE and not plain:
        return Text(text, media, code_spans(text, media), "")
    spans, title = text_spans(text, markdown=media == kinds.MARKDOWN)
    return Text(text, media, spans, title)


def _with_media(
    media: str, found: tuple[str, list[Span], str]
) -> tuple[str, str, list[Span], str]:
    content, spans, title = found
    return content, media, spans, title
