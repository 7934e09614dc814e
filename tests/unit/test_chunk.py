"""Chunking: exact spans, whole structure, any text."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nestor.backends.documents.blocks import LIMIT, pieces
from nestor.backends.documents.chunk import text_spans
from nestor.ports.document_reader import Piece


def chunk(content: str, *, markdown: bool, limit: int = LIMIT) -> list[Piece]:
    return pieces(content, text_spans(content, markdown=markdown, limit=limit)[0])


MARKDOWN = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "# Title\n",
                "## Sub title ##\n",
                "###### deep\r\n",
                "#\n",
                "```python\n",
                "```\n",
                "~~~~\n",
                "---\n",
                "===\n",
                "\n",
                "\r\n",
                "\r",
                "   \n",
                "\ufeff",
                "a: b\n",
                "- item one\n",
                "    indented\n",
                "\u2028",
                "word " * 50,
                "x" * 300,
                "End. Start! ",
            ]
        ),
        st.text(max_size=40),
    ),
    max_size=40,
).map("".join)


def _blank(char: str) -> bool:
    return char.isspace() or char == "\ufeff"


@given(MARKDOWN, st.booleans(), st.sampled_from([40, 200, LIMIT]))
@example("\ufeff# A\r\n\r\ntext\r\n", True, LIMIT)
def test_spans_are_exact_ordered_bounded_and_cover_all_that_is_not_blank(
    content: str, markdown: bool, limit: int
) -> None:
    pieces = chunk(content, markdown=markdown, limit=limit)

    position = 0
    for piece in pieces:
        assert content[piece.start : piece.end] == piece.text
        assert 0 < len(piece.text) <= limit
        assert piece.start >= position
        before = re.split("\r\n|\r|\n", content[: piece.start])
        inside = re.split("\r\n|\r|\n", piece.text)
        assert piece.first_line == len(before)
        assert piece.last_line == piece.first_line + len(inside) - 1
        assert all(_blank(char) for char in content[position : piece.start])
        position = piece.end
    assert all(_blank(char) for char in content[position:])
    assert chunk(content, markdown=markdown, limit=limit) == pieces


def test_a_piece_carries_the_path_of_its_headings() -> None:
    content = "# Guide\n\nHello.\n\n## Linux\n\nUse apt.\n\n### Old\n\nX.\n\n## Mac\n\nBrew.\n"

    pieces = chunk(content, markdown=True)

    assert [p.heading for p in pieces] == [
        "Guide",
        "Guide > Linux",
        "Guide > Linux > Old",
        "Guide > Mac",
    ]
    assert pieces[1].text == "## Linux\n\nUse apt."


def test_a_title_above_its_first_section_is_no_piece_of_its_own() -> None:
    pieces = chunk("# Guide\n\n## Linux\n\nUse apt.\n", markdown=True)

    assert [(p.heading, p.start) for p in pieces] == [("Guide > Linux", 0)]


def test_underlined_titles_are_headings() -> None:
    pieces = chunk("Guide\n=====\n\nHello.\n\nLinux\n---\napt\n", markdown=True)

    assert [p.heading for p in pieces] == ["Guide", "Guide > Linux"]


def test_fenced_code_is_never_cut_and_its_hashes_are_no_headings() -> None:
    code = "```sh\n" + "# not a heading\nls -l\n\n" * 40 + "```"
    assert len(code) < LIMIT
    content = "# A\n\n" + "word " * 200 + "\n\n" + code + "\n\nafter\n"

    pieces = chunk(content, markdown=True)

    assert sum(code in piece.text for piece in pieces) == 1
    assert {piece.heading for piece in pieces} == {"A"}


def test_a_longer_fence_closes_only_by_its_own_length() -> None:
    content = "````\n```\n# inside\n```\n````\n\n# outside\n\nx\n"

    assert [p.heading for p in chunk(content, markdown=True)] == ["", "outside"]


def test_a_fence_over_the_limit_is_cut_at_line_ends() -> None:
    content = "```\n" + "print('hello world')\n" * 200 + "```\n"

    pieces = chunk(content, markdown=True)

    assert len(pieces) > 1
    assert all(p.text.endswith(("print('hello world')", "```")) for p in pieces)


def test_front_matter_is_one_piece_without_headings() -> None:
    content = "---\ntitle: T\n# comment\n---\n# A\n\nx\n"

    pieces = chunk(content, markdown=True)

    assert [(p.heading, p.text) for p in pieces] == [
        ("", "---\ntitle: T\n# comment\n---"),
        ("A", "# A\n\nx"),
    ]


def test_plain_text_has_no_headings() -> None:
    (piece,) = chunk("# A\n\nx\n", markdown=False)

    assert (piece.heading, piece.text, piece.start, piece.end) == ("", "# A\n\nx", 0, 6)


def test_long_prose_is_cut_after_a_sentence() -> None:
    content = "This is a sentence of some length. " * 200

    pieces = chunk(content, markdown=False)

    assert all(piece.text.endswith(".") for piece in pieces)


@pytest.mark.parametrize("content", ["", "\ufeff", "\n \r\n\t", "\u3000"])
def test_blank_text_gives_no_pieces(content: str) -> None:
    assert chunk(content, markdown=True) == []


@pytest.mark.parametrize(
    "unit",
    [
        *("# a\n", "# a\nb\n\n", "\n", "`", "```\n", " \n", "a.b ", "-\n", "  "),
        *("---\n", "a\n---\n", "=\n", "\r", "\f", "#", "~", "---", "\u3000", "x"),
    ],
)
@pytest.mark.parametrize("start", ["", "# ", "---\n", "long " * 400 + "\n", "```\n"])
def test_a_hostile_text_costs_linear_time_and_a_bounded_number_of_pieces(
    unit: str, start: str
) -> None:
    content = start + unit * (300_000 // len(unit)) + "x"
    started = time.process_time()

    pieces = chunk(content, markdown=True)

    assert time.process_time() - started < 5
    assert len(pieces) <= 50_000


def test_a_paragraph_is_not_looked_at_again_at_each_of_its_lines() -> None:
    content = "long " * 400 + "\n" + "---\n" * 400_000
    started = time.process_time()

    pieces = chunk(content, markdown=True)

    assert time.process_time() - started < 6
    assert {piece.heading for piece in pieces} == {""}


def test_blanks_before_a_paragraph_are_looked_at_once() -> None:
    content = ("\f" * 20_000 + "x\n\n") * 400
    started = time.process_time()

    pieces = chunk(content, markdown=True)

    assert time.process_time() - started < 10
    assert sum(piece.text.count("x") for piece in pieces) == 400


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("# A", "A"),
        ("# A #", "A"),
        ("#\tA ###  ", "A"),
        ("# A#", "A#"),
        ("# #", ""),
        ("#A", None),
        ("    # A", None),
        ("####### A", None),
        ("# " + "A " * 600, None),
    ],
)
def test_a_line_is_a_heading_or_not(line: str, heading: str | None) -> None:
    (piece,) = chunk(f"# Top\n\n{line}\n\nx\n", markdown=True, limit=3_000)[-1:]

    expected = "Top" if heading is None else heading
    assert piece.heading == expected
