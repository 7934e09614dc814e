"""Take the text out of a PDF, page by page, by pypdf with tight limits."""

import io
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from nestor.backends.documents.blocks import LIMIT, Block, Span, short, spans
from nestor.backends.documents.chunk import paragraphs
from nestor.backends.documents.decoding import MAX_BYTES
from nestor.errors import Unreadable

if TYPE_CHECKING:
    from pypdf import PdfReader

MOST_PAGES = 10_000
_BETWEEN = "\n\n"
_MIB = 1024 * 1024
_BOMB = "it unpacks into far more than it is (a bomb, or damaged): "
_ODD = {ord("\0"): None, **dict.fromkeys(range(0xD800, 0xE000), "\ufffd")}


def pdf_spans(
    raw: bytes,
    *,
    seconds: float,
    limit: int = LIMIT,
    monotonic: Callable[[], float] = time.monotonic,
) -> tuple[str, list[Span], str]:
    """Return the text, the spans of its pieces with their pages, and its title.

    ``seconds``: how long that may take; it is looked at after each page. Raises
    ``Unreadable``.
    """
    from pypdf import apply_configuration  # noqa: PLC0415 - 200 ms, where PDF is read
    from pypdf.errors import (  # noqa: PLC0415
        DependencyError,
        LimitReachedError,
        PyPdfError,
    )

    if b"%PDF-" not in raw[:1024]:
        raise Unreadable("its name says PDF, but it does not begin as one")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        with apply_configuration(
            zlib_maximum_output_length=32 * _MIB,
            lzw_maximum_output_length=32 * _MIB,
            run_length_maximum_output_length=32 * _MIB,
            array_based_stream_maximum_output_length=32 * _MIB,
            stream_decoding_work_maximum_length=128 * _MIB,
            stream_parsing_work_maximum_count=1_000_000,
            page_tree_maximum_entries=2 * MOST_PAGES,
            xform_maximum_invocations_per_extraction=500,
            jbig2dec_binary=None,
        ):
            reader = _opened(raw)
            texts = list(_texts(reader, monotonic, monotonic() + seconds))
            title = _title(reader)
    except LimitReachedError as error:
        raise Unreadable(f"{_BOMB}{error}") from error
    except DependencyError as error:
        raise Unreadable(
            "it is encrypted; save it without protection, e.g. by qpdf --decrypt"
        ) from error
    except PyPdfError as error:
        raise Unreadable(f"it is damaged: {error or type(error).__name__}") from error
    if not any(text.strip() for text in texts):
        raise Unreadable(
            f"no text is in its pages ({len(texts):,}): pictures of text need to be"
            " recognised first, e.g. by ocrmypdf"
        )
    content = _BETWEEN.join(texts)
    return content, spans(content, _blocks(content, texts), limit), title


def _opened(raw: bytes) -> "PdfReader":
    from pypdf import PdfReader  # noqa: PLC0415

    try:
        reader = PdfReader(io.BytesIO(raw), xref_stream_maximum_entries=500_000)
        locked = reader.is_encrypted and not reader.decrypt("")
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        # pypdf trusts what the file says of itself in many places
        raise Unreadable(f"it is damaged: {error}") from error
    if locked:
        raise Unreadable("it is locked by a password; save it without one")
    return reader


def _texts(
    reader: "PdfReader", monotonic: Callable[[], float], end: float
) -> Iterator[str]:
    size = 0
    number = 0
    try:
        count = _count(reader)
        for number, page in enumerate(reader.pages, 1):
            text = page.extract_text().translate(_ODD)
            size += len(text.encode()) + len(_BETWEEN)
            if size > MAX_BYTES:
                raise Unreadable(f"its text is over {MAX_BYTES:,} bytes; split it")
            yield text
            if monotonic() > end:
                raise Unreadable(
                    f"it has {count:,} pages, and reading {number:,} took all the time"
                    " there is; split it"
                )
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        where = f"page {number:,}" if number else "its list of pages"
        raise Unreadable(f"it is damaged: {where}: {error}") from error


def _count(reader: "PdfReader") -> int:
    from pypdf.errors import LimitReachedError  # noqa: PLC0415

    try:
        count = len(reader.pages)
    except LimitReachedError:
        count = MOST_PAGES + 1
    if count > MOST_PAGES:
        raise Unreadable(f"it has more than {MOST_PAGES:,} pages; split it")
    return count


def _title(reader: "PdfReader") -> str:
    from pypdf.errors import PyPdfError  # noqa: PLC0415

    try:
        told = reader.metadata.title if reader.metadata else None
    except (PyPdfError, AttributeError, LookupError, TypeError, ValueError):
        return ""  # the text is there; a title is a courtesy
    return short(told.translate(_ODD)) if isinstance(told, str) else ""


def _blocks(content: str, texts: list[str]) -> Iterator[Block]:
    """Cut each page at its blank lines; a page begins a piece."""
    start = 0
    for page, text in enumerate(texts, 1):
        opens = True
        for block in paragraphs(content, start, start + len(text), page=page):
            block.opens, opens = opens, False
            yield block
        start += len(text) + len(_BETWEEN)
