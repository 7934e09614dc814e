"""``ports.DocumentReader``: what every kind of document gives, and who is refused."""

import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.servers import hostile_documents as hostile

from nestor.backends.documents import DocumentChildren
from nestor.backends.documents.blocks import LIMIT
from nestor.errors import Unreadable
from nestor.ports.document_reader import DocumentReader, Reading

LONG_S = 60.0
"""What a bounded refusal may take on a busy machine."""


@pytest.fixture
async def reader() -> AsyncIterator[DocumentReader]:
    async with DocumentChildren(most=1, seconds=LONG_S) as opened:
        yield opened


@pytest.fixture
async def children() -> AsyncIterator[DocumentChildren]:
    async with DocumentChildren(most=1, seconds=LONG_S) as opened:
        yield opened


def check(reading: Reading) -> None:
    """What holds of every reading."""
    content, position = reading.content, 0
    for piece in reading.pieces:
        assert content[piece.start : piece.end] == piece.text
        assert 0 < len(piece.text) <= LIMIT
        assert not content[position : piece.start].strip(" \t\r\n\f\v\ufeff")
        before = content[: piece.start].replace("\r\n", "\n").replace("\r", "\n")
        inside = piece.text.replace("\r\n", "\n").replace("\r", "\n")
        assert piece.first_line == 1 + before.count("\n")
        assert piece.last_line == piece.first_line + inside.count("\n")
        position = piece.end
    assert not content[position:].strip(" \t\r\n\f\v\ufeff")


async def refusal(reader: DocumentReader, path: Path | str, name: str) -> str:
    started = time.monotonic()
    with pytest.raises(Unreadable) as caught:
        await reader.read(path, name=name)
    assert time.monotonic() - started < LONG_S
    (error,) = caught.value.errors
    assert error.field == "content"
    assert str(caught.value).endswith(error.message)
    return error.message


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_markdown_has_headings_lines_and_a_title(
    reader: DocumentReader, tmp_path: Path, end: str
) -> None:
    text = "---\nname: x\n---\n# Guide\n\nHi.\n\n## Linux\n\n```\n# no\n```\n"
    path = tmp_path / "guide.md"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", end).encode())

    reading = await reader.read(path, name="docs/guide.md")

    check(reading)
    assert (reading.media, reading.title) == ("text/markdown", "Guide")
    assert reading.content == text.replace("\n", end)
    assert [(p.heading, p.first_line, p.last_line) for p in reading.pieces] == [
        ("", 1, 3),
        ("Guide", 4, 6),
        ("Guide > Linux", 8, 12),
    ]


async def test_a_text_is_read_as_a_file_is(
    reader: DocumentReader, tmp_path: Path
) -> None:
    text = "# A\n\nwalrus\n\n## B\n\nWalroß 🦭\n"
    path = tmp_path / "a.md"
    path.write_text(text)

    assert await reader.read(text, name="a.md") == await reader.read(path, name="a.md")


async def test_code_is_cut_at_classes_and_functions(reader: DocumentReader) -> None:
    code = (
        '"""Sells."""\n\nimport os\n\n\n'
        "# What sells.\n@dataclass\nclass Shop:\n"
        '    """Ein Laden für Walrösser."""\n\n    tax = 0.19\n\n'
        "    # Everything.\n    @property\n    def total(self) -> int:\n"
        '        """Sum."""\n        return 1\n\n'
        "    def empty(self) -> None: ...\n\n\nSHOP = Shop()\n"
    )

    reading = await reader.read(code, name="src/shop.py")

    check(reading)
    assert reading.media == "text/x-python"
    assert [(p.heading, p.first_line, p.last_line) for p in reading.pieces] == [
        ("", 1, 3),
        ("Shop", 6, 11),
        ("Shop > total", 13, 17),
        ("Shop > empty", 19, 19),
        ("", 22, 22),
    ]
    assert reading.pieces[2].text.startswith("    # Everything.\n    @property\n")


async def test_html_gives_what_is_seen_under_its_headings(
    reader: DocumentReader, tmp_path: Path
) -> None:
    path = tmp_path / "page"
    path.write_bytes(
        b"<!doctype html><head><meta charset=iso-8859-1><title>Sea &amp; ice</title>"
        b"<style>p{}</style><body><nav>menu</nav><h1>Walro\xdf</h1>"
        b"<p>It  eats\n<a href=x>clams</a>.<script>evil()</script>"
        b"<h2>Size</h2><table><tr><th>part<th>cm<tr><td>tusk<td>90</table>"
        b"<pre>a\n\n  b</pre><ul><li>one<li>two</ul><template>hidden</template>"
    )

    reading = await reader.read(path, name="page", media="text/html")

    check(reading)
    assert (reading.media, reading.title) == ("text/html", "Sea & ice")
    assert reading.content == (
        "Walroß\n\nIt eats clams.\n\nSize\n\npart | cm\ntusk | 90\n\n"
        "a\n\n  b\n\n- one\n- two"
    )
    assert [p.heading for p in reading.pieces] == ["Walroß", "Walroß > Size"]


@pytest.mark.parametrize(
    ("raw", "media"),
    [
        ("<p>Walroß".encode(), "text/html"),
        ("<p>Walroß".encode("utf-16"), "text/html"),
        ("<p>Walroß".encode("cp1252"), "text/html"),
        ("<p>Walroß".encode("cp850"), "text/html; charset=unknown-8"),
        ("<p>Walroß".encode("iso8859-15"), 'text/html; charset="ISO-8859-15"'),
        ("<meta charset='koi8-r'><p>Walroß".encode(), "text/html; charset=utf-8"),
        ("<meta charset='hex'><p>Walroß".encode(), "text/html"),
    ],
)
async def test_html_is_decoded_as_browsers_do(
    reader: DocumentReader, tmp_path: Path, raw: bytes, media: str
) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(raw)

    content = (await reader.read(path, name="a.html", media=media)).content

    assert content == ("Walroß" if b"\xe1" not in raw else "Walroá")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
async def test_a_mark_says_how_text_is_encoded(
    reader: DocumentReader, tmp_path: Path, encoding: str
) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path = tmp_path / "a.txt"
    path.write_bytes((mark + "Walroß\r\n").encode(encoding))

    reading = await reader.read(path, name="a.txt")

    assert reading.content == "Walroß\r\n"


async def test_text_is_decoded_by_the_charset_its_sender_named(
    reader: DocumentReader, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Walroß".encode("latin-1"))

    reading = await reader.read(path, name="a.txt", media="text/plain; charset=latin1")

    assert reading.content == "Walroß"


async def test_a_pdf_gives_its_text_by_page(
    reader: DocumentReader, tmp_path: Path
) -> None:
    path = tmp_path / "a.pdf"
    long = [f"line {n} says a few words" for n in range(120)]
    path.write_bytes(hostile.honest_pdf([["walrus", "clams"], [""], long], "Sea"))

    reading = await reader.read(path, name="a.pdf")

    check(reading)
    assert (reading.media, reading.title) == ("application/pdf", "Sea")
    assert [p.page for p in reading.pieces] == [1, 3, 3]
    assert reading.pieces[0].text.split() == ["walrus", "clams"]


async def test_a_pdf_locked_only_against_changes_is_read(
    reader: DocumentReader, tmp_path: Path
) -> None:
    (tmp_path / "a.pdf").write_bytes(hostile.locked_pdf(""))
    (tmp_path / "b.pdf").write_bytes(hostile.locked_pdf("secret"))

    reading = await reader.read(tmp_path / "a.pdf", name="a.pdf")

    assert reading.content.strip() == "walrus"
    assert "password" in await refusal(reader, tmp_path / "b.pdf", "b.pdf")


async def test_a_scanned_pdf_says_what_to_do(
    reader: DocumentReader, tmp_path: Path
) -> None:
    (tmp_path / "a.pdf").write_bytes(hostile.honest_pdf([[""]] * 3))

    assert "ocrmypdf" in await refusal(reader, tmp_path / "a.pdf", "a.pdf")


WORDS = {
    "flate bomb": "bomb",
    "nested flate bomb": "bomb",
    "100,000 pages": "more than 10,000 pages",
    "a million elements": "bomb",
    "no pages": "no text is in its pages (0)",
    "a text": "does not begin as one",
    "gzip named .txt": "gzip file",
    "PNG named .md": "picture",
    "PDF named .md": "it is a PDF",
    "NUL in text": "NUL at byte 6",
    "NUL in HTML": "NUL at byte 9",
    "Latin-1": "not UTF-8: byte 0xDF at 5",
    "random": "are not cp1252",
    "empty": "no text in it",
    "only blanks": "no text in it",
    "HTML without text": "no text in it",
    "100,000 divs": "nested deeper",
    "3 million tags": "more than 2,000,000 tags",
    "over 32 MiB": "33,554,433 bytes",
    "over 32 MiB in UTF-8": "in UTF-8",
    "a link": "a link",
    "a link to a device": "a link",
    "a link to itself": "a link",
    "a pipe": "a pipe",
    "a socket": "a socket",
    "a folder": "a folder",
    "a device": "a device",
    "nothing": "No such file",
}
"""Of the refusals; the others say ``damaged`` or ``binary``."""


@pytest.mark.parametrize("name", hostile.PDFS)
async def test_a_hostile_pdf_is_refused_by_name(
    children: DocumentChildren, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(hostile.PDFS[name]())
    await children.read("walrus", name="a.txt")
    pids = children.pids

    message = await refusal(children, path, "a.pdf")

    assert WORDS.get(name, "damaged") in message
    assert children.pids == pids, "the child did not have to die for it"


@pytest.mark.parametrize("name", hostile.TEXTS)
async def test_what_is_no_text_is_refused_by_name(
    reader: DocumentReader, tmp_path: Path, name: str
) -> None:
    file, make = hostile.TEXTS[name]
    path = tmp_path / file
    path.write_bytes(make())

    assert WORDS.get(name, "binary") in await refusal(reader, path, file)


async def test_what_is_no_file_is_refused_by_name(
    reader: DocumentReader, tmp_path: Path
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for name, path in hostile.not_files(folder).items():
        assert WORDS[name] in await refusal(reader, path, path.name)
    sparse = hostile.sparse(folder / "sparse.md")
    assert "1,073,741,824 bytes" in await refusal(reader, sparse, "sparse.md")
    assert "NUL" in await refusal(reader, Path("a\0b"), "a.md")


@pytest.mark.parametrize(
    "text", ["a\0b", "a\ud800b", "%PDF-1.7", "x" * (32 << 20) + "y"]
)
async def test_a_text_that_is_none_is_refused(
    reader: DocumentReader, text: str
) -> None:
    await refusal(reader, text, "a" if text.startswith("%PDF") else "a.md")


async def test_a_name_is_harmless_when_it_is_told(reader: DocumentReader) -> None:
    with pytest.raises(Unreadable) as caught:
        await reader.read("", name="\x1b[31m\u202egpj\ud800\n" + "x" * 999)

    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith("\\x1b[31m\\u202egpj\\ud800\\n")
    assert len(message) < 400


async def test_a_file_that_grows_while_it_is_read_is_refused(
    reader: DocumentReader, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"walrus\n" * 4_000_000)
    done = threading.Event()

    def touch() -> None:
        while not done.is_set():
            os.utime(path)

    writer = threading.Thread(target=touch)
    writer.start()
    try:
        assert "changed while" in await refusal(reader, path, "a.txt")
    finally:
        done.set()
        writer.join()


async def test_a_long_line_is_read(reader: DocumentReader, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * (32 * hostile.MIB // 5))

    reading = await reader.read(path, name="a.txt")

    assert sum(len(p.text.split()) for p in reading.pieces) == 32 * hostile.MIB // 5
    assert {p.last_line for p in reading.pieces} == {1}


@pytest.mark.parametrize("suffix", ["py", "js", "cpp", "rs"])
@pytest.mark.parametrize("unit", ["(", "x=>", "{", "a<", "class A{"])
async def test_code_that_is_nested_deeply_is_still_text(
    reader: DocumentReader, suffix: str, unit: str
) -> None:
    code = unit * 60_000

    reading = await reader.read(code, name=f"a.{suffix}")

    assert "".join(p.text for p in reading.pieces).replace(" ", "") == (
        code.replace(" ", "")
    )
