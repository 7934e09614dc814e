"""Makes documents that were made to hurt whoever reads them, and a few honest ones."""

import gzip
import io
import os
import socket
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from pypdf import PdfReader, PdfWriter

MIB = 1024 * 1024


def pdf(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """Write a PDF whose first object is its catalog."""
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for place in places:
        out += b"%010d 00000 n \n" % place
    size = len(objects) + 1
    out += b"trailer\n<< /Size %d /Root 1 0 R %s >>\n" % (size, trailer)
    out += b"startxref\n%d\n%%%%EOF\n" % start
    return bytes(out)


def stream(data: bytes, filters: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), filters, data)


def pages(contents: Sequence[bytes], title: str = "") -> bytes:
    """Write a PDF of pages whose content streams (objects) are given."""
    count = len(contents)
    kids = b" ".join(b"%d 0 R" % (4 + 2 * n) for n in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>" % (5 + 2 * n)
        )
        objects.append(content)
    objects.append(b"<< /Title (%s) >>" % title.encode("latin-1"))
    return pdf(objects, b"/Info %d 0 R" % len(objects))


def shown(lines: Sequence[str]) -> bytes:
    """Return a content stream that shows lines of text."""
    shows = b"".join(b"(%s) Tj T* " % line.encode("latin-1") for line in lines)
    return b"BT /F1 12 Tf 14 TL 72 720 Td %s ET" % shows


def honest_pdf(texts: Sequence[Sequence[str]], title: str = "") -> bytes:
    return pages([stream(shown(lines)) for lines in texts], title)


def locked_pdf(password: str) -> bytes:
    """Encrypt a PDF; an empty password locks only changes."""
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(honest_pdf([["walrus"]]))))
    writer.encrypt(password, "owner", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def flate_bomb() -> bytes:
    """128 KiB that unpack into 128 MiB."""
    data = zlib.compress(b" " * (128 * MIB), 9)
    return pages([stream(data, b"/Filter /FlateDecode")])


def nested_flate_bomb() -> bytes:
    """1 KiB that unpacks into 256 KiB, and that into 256 MiB."""
    packer = zlib.compressobj(9)
    inner = b"".join(packer.compress(bytes(MIB)) for _ in range(256)) + packer.flush()
    filters = b"/Filter [/FlateDecode /FlateDecode]"
    return pages([stream(zlib.compress(inner, 9), filters)])


def page_tree_cycle() -> bytes:
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Pages /Parent 2 0 R /Kids [2 0 R] /Count 1 >>",
        ]
    )


def many_pages(count: int = 100_000) -> bytes:
    """One page, named ``count`` times in lists of 10,000."""
    lists = count // 10_000
    kids = b" ".join(b"%d 0 R" % (5 + n) for n in range(lists))
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count),
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>",
            stream(b"BT ET"),
            *[
                b"<< /Type /Pages /Parent 2 0 R /Kids [%s] /Count 10000 >>"
                % (b"3 0 R " * 10_000)
                for _ in range(lists)
            ],
        ]
    )


def _with_xref_stream(rows: bytes, size: int, index: bytes, objects: bytes) -> bytes:
    out = b"%PDF-1.7\n" + objects
    packed = zlib.compress(rows)
    return out + (
        b"9 0 obj\n<< /Type /XRef /Size %d /W [1 4 2] /Root 1 0 R %s /Length %d"
        b" /Filter /FlateDecode >>\nstream\n%s\nendstream\nendobj\nstartxref\n%d\n%%%%EOF\n"
        % (size, index, len(packed), packed, len(out))
    )


def object_stream_loop() -> bytes:
    """The catalog stands in an object stream that stands in itself."""
    inner = b"1 0 << /Type /Catalog /Pages 2 0 R >>"
    held = b"5 0 obj\n" + (
        b"<< /Type /ObjStm /N 1 /First 4 /Extends 5 0 R /Length 6 0 R >>\nstream\n%s"
        b"\nendstream\nendobj\n" % inner
    )
    rows = b"\2\0\0\0\5\0\0" * 9  # each object stands in object 5
    return _with_xref_stream(rows, 9, b"/Index [0 9]", held)


def huge_xref() -> bytes:
    """A table that says it has a thousand million rows, and has three million."""
    rows = b"\1\0\0\0\x09\0\0" * 3_000_000
    return _with_xref_stream(rows, 1_000_000_000, b"/Index [0 1000000000]", b"")


def long_array() -> bytes:
    """A page that shows one list of 1.2 million elements."""
    data = b"BT /F1 1 Tf [" + b"(a) 1 " * 600_000 + b"] TJ ET"
    return pages([stream(zlib.compress(data, 9), b"/Filter /FlateDecode")])


PDFS: dict[str, Callable[[], bytes]] = {
    "flate bomb": flate_bomb,
    "nested flate bomb": nested_flate_bomb,
    "object stream loop": object_stream_loop,
    "page tree cycle": page_tree_cycle,
    "huge xref": huge_xref,
    "100,000 pages": many_pages,
    "a million elements": long_array,
    "cut off": lambda: honest_pdf([["walrus"]] * 50)[:2000],
    "noise": lambda: b"%PDF-1.7\n" + bytes(range(256)) * 400,
    "no pages": lambda: pages([]),
    "a text": lambda: b"walrus",
}

TEXTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "gzip named .txt": ("a.txt", lambda: gzip.compress(b"walrus " * 100)),
    "PNG named .md": ("a.md", lambda: b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "PDF named .md": ("a.md", lambda: honest_pdf([["walrus"]])),
    "NUL in text": ("a.txt", lambda: b"walrus\0clams"),
    "NUL in HTML": ("a.html", lambda: b"<p>walrus\0clams"),
    "Latin-1": ("a.md", lambda: "Walroß".encode("latin-1")),
    "half a UTF-16": ("a.txt", lambda: b"\xff\xfeA\0B"),
    "a surrogate in UTF-16": ("a.txt", lambda: b"\xff\xfe\x00\xd8A\0"),
    "random": ("a.html", lambda: bytes(range(128, 256)) * 99),
    "empty": ("a.md", lambda: b""),
    "only blanks": ("a.md", lambda: b" \r\n\t\n"),
    "HTML without text": ("a.html", lambda: b"<nav>x</nav><script>y</script>"),
    "100,000 divs": ("a.html", lambda: b"<div>" * 100_000),
    "3 million tags": ("a.html", lambda: b"<br>x" * 3_000_000),
    "over 32 MiB": ("a.txt", lambda: b"x" * (32 * MIB + 1)),
    "over 32 MiB in UTF-8": ("a.txt", lambda: b"\xff\xfe" + b"\x80\x4e" * (12 * MIB)),
}


def sparse(path: Path, size: int = 1024 * MIB) -> Path:
    """Write a file of one line that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def not_files(folder: Path) -> dict[str, Path]:
    """Make what looks like a file in a listing, and is none."""
    outside = folder.parent / f"{folder.name}-outside.md"
    outside.write_text("# Secret\n\nwalrus\n")
    link, zero, circle = folder / "link.md", folder / "zero.md", folder / "circle.md"
    link.symlink_to(outside)
    zero.symlink_to("/dev/zero")
    circle.symlink_to(circle)
    pipe, spoken, inner = folder / "pipe.md", folder / "socket.md", folder / "folder.md"
    os.mkfifo(pipe)
    inner.mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket is at most 107 bytes
        try:
            one.bind(spoken.name)
        finally:
            os.chdir(here)
    return {
        "a link": link,
        "a link to a device": zero,
        "a link to itself": circle,
        "a pipe": pipe,
        "a socket": spoken,
        "a folder": inner,
        "a device": Path("/dev/zero"),
        "nothing": folder / "absent.md",
    }
