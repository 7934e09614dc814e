"""HTML as text: what is seen, in order, under its headings."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestor.backends.documents.blocks import LIMIT, pieces
from nestor.backends.documents.html_spans import html_spans


def text(html: str) -> str:
    return html_spans(html)[0]


@pytest.mark.parametrize(
    ("html", "seen"),
    [
        ("a<b>b</b>c <i> d</i>\n e", "abc d e"),
        ("<p>a<p>b", "a\n\nb"),
        ("<div>a</div><div>b</div>c", "a\nb\nc"),
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<ul><li>a<ul><li>b</ul><li> c </ul>d", "- a\n\n- b\n\n- c\n\nd"),
        ("<table><tr><td>a<td><td> c<tr><td>d</table>", "a | | c\nd"),
        ("<table><tr><td><p>a</p><p>b</p><td>c</table>", "a\nb | c"),
        ("<pre>\n a\n\n  b </pre>c", " a\n\n  b \n\nc"),
        ("<pre><code>x <b>y</b>\nz</code></pre>", "x y\nz"),
        ("&lt;a&gt; &amp;amp; &#x1F9AD; &nbsp;&copy", "<a> &amp; 🦭 \xa0©"),
        ("<script>a</script>b<style>c</style><!-- d --><nav>e<p>f</nav>", "b"),
        ("<p>c<template><p>a</template><noscript>b</noscript>", "c"),
        ("<a href='https://sea'>link</a><img alt=x>", "link"),
        ("<h1></h1><p></p>", ""),
        ("<p>a</p>\n\n<!-- x -->\n<p>b</p>", "a\n\nb"),
        ("<select><option>a<option>b</select>", "a\nb"),
        ("plain", "plain"),
    ],
)
def test_the_text_is_what_is_seen(html: str, seen: str) -> None:
    assert text(html) == seen


def test_headings_are_the_path_and_the_title_comes_from_the_head() -> None:
    html = (
        "<title> A\n b </title><body>before<h1>Top <i>x</i></h1><p>one"
        "<h3>Deep</h3>two<h2>Side</h2><p>three<h1> </h1><p>four"
    )

    content, spans, title = html_spans(html)

    assert title == "A b"
    assert [(s.heading, content[s.start : s.end]) for s in spans] == [
        ("", "before"),
        ("Top x", "Top x\n\none"),
        ("Top x > Deep", "Deep\n\ntwo"),
        ("Top x > Side", "Side\n\nthree\n\nfour"),
    ]


def test_without_a_title_the_first_heading_is_it() -> None:
    assert html_spans("<h2>a</h2><h1>b</h1><h1>c</h1>")[2] == "b"


def test_a_list_of_lines_in_pre_stays_whole() -> None:
    code = "\n\n".join(f"line {n} of the code" for n in range(60))
    html = f"<p>{'word ' * 250}</p><pre>{code}</pre><p>after</p>"

    content, spans, _ = html_spans(html)

    assert sum(code in content[s.start : s.end] for s in spans) == 1


PARTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "<p>",
                "</p>",
                "<div>",
                "</div>",
                "<h1>",
                "</h1>",
                "<h3>",
                "</h3>",
                "<pre>",
                "</pre>",
                "<table>",
                "<tr>",
                "<td>",
                "</table>",
                "<li>",
                "<ul>",
                "</ul>",
                "<br>",
                "<b>",
                "</b>",
                "<script>",
                "</script>",
                "<nav>",
                "</nav>",
                "<svg>",
                "</svg>",
                "<template>",
                "</template>",
                "<title>",
                "</title>",
                "&amp;",
                "&#0;",
                "<!--",
                "-->",
                "<",
                ">",
                "<select>",
                "<option>",
                "<textarea>",
                "</textarea>",
                "<math>",
                "<frameset>",
                "<body>",
                "<html>",
            ]
        ),
        st.sampled_from([" ", "\n", "\r\n", "word ", "x" * 200]),
        st.text(max_size=10),
    ),
    max_size=60,
).map("".join)


@given(PARTS, st.sampled_from([40, LIMIT]))
def test_any_html_gives_exact_spans_over_all_its_text(html: str, limit: int) -> None:
    html = html.encode(errors="ignore").decode()

    content, spans, _ = html_spans(html, limit=limit)

    position = 0
    for piece in pieces(content, spans):
        assert content[piece.start : piece.end] == piece.text
        assert 0 < len(piece.text) <= limit
        assert not content[position : piece.start].replace("\ufeff", "").strip()
        position = piece.end
    assert not content[position:].replace("\ufeff", "").strip()


@given(st.lists(st.text("abc &<>", min_size=1, max_size=20), max_size=20))
def test_no_word_is_lost(texts: list[str]) -> None:
    tags = ["p", "div", "li", "td", "h2", "b", "pre", "span"]
    html = "".join(
        f"<{tags[n % 8]}>{t.replace('&', '&amp;').replace('<', '&lt;')}</{tags[n % 8]}> "
        for n, t in enumerate(texts)
    )

    letters = re.sub(r"[\s|-]", "", text(html))

    assert letters == re.sub(r"\s", "", "".join(texts))
