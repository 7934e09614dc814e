"""Answer a question by quoting: what is left to do where no model is configured."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nestor.model.knowledge import ContextItem

_QUOTES = 4
_LONGEST = 400
"""Of one quoted sentence, in characters."""
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(
    r"(?<=[.!?])[\"')\]]*\s+(?=\S)|\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.)\s)"
)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s.*$", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_STOPWORDS = frozenset(
    """a about an and are as at be but by can do does for from has have how i if in into
    is it its me my of on or that the their then there these they this to was we what
    when where which who why will with you your""".split()  # noqa: SIM905 - readable
)
NOTHING = "The knowledge base holds nothing that answers this."


@dataclass(frozen=True, slots=True)
class _Quote:
    item: int
    position: int
    text: str
    words: frozenset[str]


def answer_by_extraction(query: str, items: Sequence[ContextItem]) -> str:
    """Quote the sentences of ``items`` that share most with ``query``.

    Each quote ends in its mark ``[n]``, the place of its item in ``items`` from 1; the
    sources follow. Nothing is added that does not stand in an item. Without a sentence
    that shares a word with the query the answer says so.
    """
    wanted = _words(query) - _STOPWORDS or _words(query)
    quotes = _quotes(items)
    weights = _weights(wanted, quotes)
    best: list[tuple[float, _Quote]] = []
    for quote in quotes:
        shared = sum(weights[word] for word in quote.words & wanted)
        if shared > 0:
            length = 1 + math.log(1 + len(quote.words) / 12)
            best.append((shared / length / (1 + 0.1 * quote.item), quote))
    best.sort(key=lambda scored: (-scored[0], scored[1].item, scored[1].position))
    chosen = _different([quote for _, quote in best])
    if not chosen:
        return NOTHING
    chosen.sort(key=lambda quote: (quote.item, quote.position))
    lines = [f"{quote.text} [{quote.item + 1}]" for quote in chosen]
    sources = [
        f"[{number + 1}] {items[number].source}"
        for number in sorted({quote.item for quote in chosen})
    ]
    return "\n\n".join([*lines, "Sources:\n" + "\n".join(sources)])


def _quotes(items: Sequence[ContextItem]) -> list[_Quote]:
    quotes = []
    for number, item in enumerate(items):
        text = _FENCE.sub("\n", _HEADING.sub("\n", item.text))
        for position, part in enumerate(_SENTENCE.split(text)):
            sentence = " ".join(part.split())
            if len(sentence) > _LONGEST:
                sentence = sentence[:_LONGEST].rsplit(" ", 1)[0] + " …"
            if words := _words(sentence):
                quotes.append(_Quote(number, position, sentence, words))
    return quotes


def _words(text: str) -> frozenset[str]:
    """Lower-case words, cut to a crude stem so that plurals and tenses meet."""
    return frozenset(_stem(word) for word in _WORD.findall(text.lower()))


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:  # noqa: PLR2004 - shorter stems mix words up
            return word.removesuffix(ending)
    return word


def _weights(wanted: frozenset[str], quotes: Sequence[_Quote]) -> dict[str, float]:
    """Rare words of the query say more (inverse document frequency over the quotes)."""
    counts = {word: sum(word in quote.words for quote in quotes) for word in wanted}
    return {
        word: math.log(1 + len(quotes) / count) if count else 0.0
        for word, count in counts.items()
    }


def _different(quotes: Sequence[_Quote]) -> list[_Quote]:
    """Take the first few that do not repeat one another."""
    chosen: list[_Quote] = []
    for quote in quotes:
        if len(chosen) == _QUOTES:
            break
        if all(
            len(quote.words & other.words) < 0.7 * len(quote.words | other.words)
            for other in chosen
        ):
            chosen.append(quote)
    return chosen
