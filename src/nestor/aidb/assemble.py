"""From hits to context: sources, no repetition, within the budget."""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from nestor.model.knowledge import (
    Chunk,
    Collection,
    ContextItem,
    Document,
    Hit,
    Where,
)

CHARS_PER_TOKEN = 4
"""An estimate (English prose and code with usual vocabularies), not a count."""
_NEAR = 0.8
"""Jaccard similarity of three-word runs from which two texts count as the same."""
_KINDS = {
    Collection.CODEBASE_CONTEXT: "document",
    Collection.INTERACTION_HISTORY: "document",
    Collection.SKILLS_PATTERNS: "skill",
    Collection.ERROR_SOLUTIONS: "error-solution",
    Collection.BEST_PRACTICES: "best-practice",
}
DOCUMENT = "document"
MAX_LEARNED = 3
"""Learned patterns in an answer, where documents are asked for, too."""
CANARY_PROJECT, SKILLS_PROJECT = "nestor:canary", "nestor:skills"
"""What AIDB keeps for itself; no document of others may stand there."""
SKILL_ID, TITLE = "skill_id", "title"
"""Metadata of the document in which a learned pattern is found."""
_WORD = re.compile(r"\w+")


def join(indexed: Sequence[Hit], full_text: Sequence[Hit]) -> list[Hit]:
    """Merge the index with full-text search in SQL, best first, scores from 0 to 1.

    Each side's scores are divided by its best. A chunk that the index found gets the mean
    of both. One that it did not find may still wait for it: only SQL's score can count.
    """
    ours, theirs = _scaled(indexed), _scaled(full_text)
    scores = {key: (score + theirs.get(key, 0.0)) / 2 for key, score in ours.items()}
    scores |= {key: score for key, score in theirs.items() if key not in ours}
    ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    return [Hit(chunk_id=key, score=score) for key, score in ranked]


def _scaled(hits: Sequence[Hit]) -> dict[str, float]:
    top = max((hit.score for hit in hits), default=0.0)
    return {hit.chunk_id: hit.score / top if top > 0 else 0.0 for hit in hits}


def items(
    hits: Iterable[Hit],
    found: Mapping[str, tuple[Chunk, Document]],
    where: Where,
) -> list[ContextItem]:
    """Give each hit its text and source; what is gone, or fits no more, is left out."""
    made = []
    for hit in hits:
        if (pair := found.get(hit.chunk_id)) is None:
            continue
        chunk, document = pair
        if document.project != CANARY_PROJECT and _fits(document, where):
            made.append(_item(hit, chunk, document))
    return made


def _fits(document: Document, where: Where) -> bool:
    wanted = where.metadata or {}
    return (
        (where.collections is None or document.collection in where.collections)
        and (where.projects is None or document.project in where.projects)
        and document.path.startswith(where.path_prefix or "")
        and all(document.metadata.get(name) == said for name, said in wanted.items())
    )


def only_learned(collections: Sequence[Collection] | None) -> bool:
    """Tell whether nothing but learned patterns is asked for."""
    return collections is not None and all(_KINDS[c] != DOCUMENT for c in collections)


def diverse(
    candidates: Iterable[ContextItem], limit: int, *, learned: int
) -> list[ContextItem]:
    """Take the best ``limit`` items of which no two say nearly the same.

    At most ``learned`` of them are learned patterns.
    """
    chosen: list[ContextItem] = []
    shingles: list[frozenset[tuple[str, ...]]] = []
    for item in candidates:
        if len(chosen) == limit:
            break
        if item.kind != DOCUMENT and learned == 0:
            continue
        mine = _shingles(item.text)
        if all(_similarity(mine, other) < _NEAR for other in shingles):
            chosen.append(item)
            shingles.append(mine)
            learned -= item.kind != DOCUMENT
    return chosen


def within(candidates: Sequence[ContextItem], tokens: int | None) -> list[ContextItem]:
    """Keep what fits into ``tokens`` (estimated at four characters a token), best first.

    An item that does not fit is passed over for a shorter one after it; where none
    fits, the best is cut, and its ``provenance.end`` with it.
    """
    if tokens is None:
        return list(candidates)
    left = tokens * CHARS_PER_TOKEN
    chosen = []
    for item in candidates:
        if len(item.text) <= left:
            chosen.append(item)
            left -= len(item.text)
    if not chosen and candidates:
        chosen.append(_cut(candidates[0], left))
    return chosen


def _cut(item: ContextItem, length: int) -> ContextItem:
    text = item.text[:length]
    if (space := max(text.rfind(" "), text.rfind("\n"))) > length // 2:
        text = text[:space]
    provenance = dict(item.provenance)
    start = provenance["start"]
    assert isinstance(start, int)
    provenance["end"] = start + len(text)
    if isinstance(line := provenance.get("first_line"), int):
        provenance["last_line"] = line + text.count("\n")
    return msgspec.structs.replace(item, text=text, provenance=provenance)


def _item(hit: Hit, chunk: Chunk, document: Document) -> ContextItem:
    source = f"{document.project}/{document.path}"
    if chunk.heading:
        source = f"{source}#{chunk.heading}"
    provenance: dict[str, object] = {
        "document_id": document.id,
        "project": document.project,
        "path": document.path,
        "heading": chunk.heading,
        "start": chunk.start,
        "end": chunk.end,
        "collection": str(document.collection),
    }
    for name in ("first_line", "last_line", "page"):
        if (value := getattr(chunk, name)) is not None:
            provenance[name] = value
    key = chunk.id
    if document.project == SKILLS_PROJECT:
        key = provenance[SKILL_ID] = document.metadata.get(SKILL_ID, document.path)
        source = f"{document.collection}/{document.metadata.get(TITLE) or key}"
    return ContextItem(
        id=key,
        kind=_KINDS[document.collection],
        text=chunk.text,
        source=source,
        score=hit.score,
        provenance=provenance,
    )


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    if len(words) < 3:  # noqa: PLR2004 - a run of three
        return frozenset({tuple(words) or (text,)})
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def _similarity(one: frozenset[object], other: frozenset[object]) -> float:
    return len(one & other) / len(one | other)
