"""Answers by quoting: every sentence stands in an item, every mark points at it."""

import re

from hypothesis import given
from hypothesis import strategies as st

from nestor.aidb.extract import NOTHING, answer_by_extraction
from nestor.model.knowledge import ContextItem


def item(text: str, source: str = "p/a.md") -> ContextItem:
    return ContextItem(id=source, kind="document", text=text, source=source, score=1.0)


def test_the_best_sentences_are_quoted_with_marks_and_sources() -> None:
    items = [
        item("# Walrus\n\nA walrus is large. It eats clams.", "p/walrus.md#Walrus"),
        item("Nothing here.", "p/b.md"),
        item("Clams live in sand. The walrus eats many clams daily.", "p/c.md"),
    ]

    answer = answer_by_extraction("What does the walrus eat?", items)

    assert "The walrus eats many clams daily. [3]" in answer
    assert "It eats clams. [1]" in answer
    assert "[2]" not in answer
    assert answer.endswith("Sources:\n[1] p/walrus.md#Walrus\n[3] p/c.md")


def test_without_anything_in_common_it_says_so() -> None:
    assert answer_by_extraction("giraffe", [item("A walrus.")]) == NOTHING
    assert answer_by_extraction("giraffe", []) == NOTHING


def test_repeated_sentences_are_quoted_once() -> None:
    items = [item("The walrus eats clams."), item("The walrus eats clams.", "p/b")]

    assert answer_by_extraction("walrus", items).count("clams") == 1


def test_a_question_of_stop_words_still_finds_its_words() -> None:
    assert "To be or not to be. [1]" in answer_by_extraction(
        "to be", [item("To be or not to be.")]
    )


@given(st.text(max_size=80), st.lists(st.text(max_size=200), max_size=4))
def test_nothing_is_said_that_does_not_stand_in_an_item(
    query: str, texts: list[str]
) -> None:
    items = [item(text, f"s{n}") for n, text in enumerate(texts)]

    answer = answer_by_extraction(query, items)

    if answer != NOTHING:
        quotes = answer.rpartition("\n\nSources:\n")[0].split("\n\n")
        for quote in quotes:
            match = re.fullmatch(r"(.*) \[(\d+)\]", quote, re.DOTALL)
            assert match
            said = match[1].removesuffix(" …")
            assert said in " ".join(texts[int(match[2]) - 1].split())
