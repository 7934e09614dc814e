"""Bytes become text, by a rule that never guesses.

Text, Markdown and code: a byte order mark (UTF-8, UTF-16, UTF-32) decides; without one
the ``charset`` its sender named, and without that UTF-8. What does not decode without a
fault is refused: any bytes are valid Latin-1, so that a guess would remember noise.

HTML: a mark, then ``charset``, then the ``<meta>`` in its first kilobytes, then UTF-8
when it is, else windows-1252, as browsers do. Faulty bytes become U+FFFD, unless they
are more than one in a hundred characters.

NUL is in no text: whatever holds one after decoding is binary.
"""

import codecs
import re

from nestor.errors import Unreadable

MAX_BYTES = 32 * 1024 * 1024
"""Of a document as given, and of its text in UTF-8."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ENCODINGS = re.compile(
    r"utf-?8|utf-?16(?:-?[lb]e)?|(?:us-)?ascii|latin-?1|l1|iso-?8859-?\d{1,2}"
    r"|(?:windows-?|cp)125[0-8]|windows-?874|ibm866|koi8-[ru]|macintosh"
    r"|gbk|gb2312|gb18030|big5|euc-(?:jp|kr)|shift[_-]jis|iso-2022-jp"
)
"""Those of the web. Python knows more, some of which are no encodings of text."""
_AS_THE_WEB = {"ascii": "cp1252", "iso8859-1": "cp1252", "gb2312": "gb18030"}
_META = re.compile(
    rb"<meta\b[^>]{0,500}?\bcharset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE
)
_META_WITHIN = 4096
_MAGIC = (
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a ZIP file (or made of one, as .docx, .xlsx, .jar are)"),
    (b"%PDF-", "a PDF; give it a name that ends in .pdf"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"7z\xbc\xaf", "a 7z file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an old Office file"),
)


def text_of(raw: bytes, charset: str | None = None) -> str:
    """Decode text, Markdown or code. Raises ``Unreadable``."""
    if raw.startswith(b"%PDF-"):
        raise Unreadable(_binary(raw))
    marked, body = _marked(raw)
    encoding = marked or _known(charset) or "utf-8"
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        if any(raw.startswith(magic) for magic, _ in _MAGIC) or b"\0" in raw:
            raise Unreadable(_binary(raw)) from None
        at = error.start + len(raw) - len(body)
        raise Unreadable(
            f"it is not {encoding.upper()}: byte 0x{body[error.start]:02X} at {at:,}"
            "; save it as UTF-8"
        ) from None
    return checked(text, raw)


def html_of(raw: bytes, charset: str | None = None) -> str:
    """Decode HTML. Raises ``Unreadable``."""
    marked, body = _marked(raw)
    encoding = marked or _web(_known(charset)) or _web(_meta(body))
    if encoding is None:
        try:
            return checked(body.decode(), raw)
        except UnicodeDecodeError:
            encoding = "cp1252"
    text = body.decode(encoding, errors="replace")
    faults = text.count("\ufffd")
    if faults > len(text) // 100 + 1:
        if any(raw.startswith(magic) for magic, _ in _MAGIC) or b"\0" in raw:
            raise Unreadable(_binary(raw))
        raise Unreadable(f"{faults:,} of its characters are not {encoding}")
    return checked(text, raw)


def checked(text: str, raw: bytes = b"") -> str:
    """Return a text that may be kept. Raises ``Unreadable``: NUL, surrogate, too large."""
    if (at := text.find("\0")) >= 0:
        raise Unreadable(
            _binary(raw) if raw else f"NUL at character {at:,}: this is not text"
        )
    if len(text) > MAX_BYTES or len(encoded(text)) > MAX_BYTES:
        raise Unreadable(f"its text is over {MAX_BYTES:,} bytes in UTF-8; split it")
    return text


def encoded(text: str) -> bytes:
    """Return UTF-8. Raises ``Unreadable`` at a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Unreadable(
            f"a lone surrogate at character {error.start:,}: this is not text"
        ) from None


def _marked(raw: bytes) -> tuple[str | None, bytes]:
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return encoding, raw[len(mark) :]
    return None, raw


def _known(label: str | None) -> str | None:
    """Return Python's name of an encoding of text; None for what is not one."""
    if label is None or not _ENCODINGS.fullmatch(label.strip().lower()):
        return None
    try:
        return codecs.lookup(label.strip()).name
    except LookupError:
        return None


def _web(encoding: str | None) -> str | None:
    return _AS_THE_WEB.get(encoding, encoding) if encoding else None


def _meta(raw: bytes) -> str | None:
    found = _META.search(raw[:_META_WITHIN])
    encoding = _known(found[1].decode("ascii", "replace")) if found else None
    # The tag itself was read as ASCII, so it cannot be.
    return "utf-8" if encoding and encoding.startswith("utf-16") else encoding


def _binary(raw: bytes) -> str:
    for magic, what in _MAGIC:
        if raw.startswith(magic):
            return f"it is {what}" if b"%PDF" in magic else f"it is {what}, not text"
    return f"it is binary: a NUL at byte {raw.find(0):,}"
