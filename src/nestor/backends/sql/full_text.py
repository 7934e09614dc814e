"""Full-text search over chunks in either database. Any text is a valid query."""

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Double,
    Function,
    Select,
    Subquery,
    cast,
    exists,
    func,
    literal_column,
    select,
    text,
    union_all,
)
from sqlalchemy.sql.elements import ColumnClause

from nestor.backends.sql.knowledge_rows import metadata_of, text_of
from nestor.backends.sql.schema import chunk, document
from nestor.model.knowledge import Where

_TERMS = 64
"""More words than this in a query cost time and find nothing better."""
SIGNS = "!\"#$%&''()*+,-./:;<=>?@[\\]^_`{|}~"
VECTOR = (
    "to_tsvector('nestor', translate(left(chunk.heading || ' ' || chunk.text, 200000),"
    f" '{SIGNS}', '{' ' * (len(SIGNS) - 1)}'))"
)
"""What the index of migration 0001 is on; another expression would not use it."""
_SAMPLE, _FILTERED, _RANKED = 300, 20_000, 200
"""Of one word: chunks that count, and those of which a filter may let through. Of all
words: chunks whose text is read for their rank."""
_WORD = re.compile(r"\w+")
_STOPWORDS = frozenset(
    """a about an and are as at be but by can do does for from has have how i if in into
    is it its me my no not of on or that the their then there these they this to was we
    what when where which who why will with you your""".split()  # noqa: SIM905 - readable
)


def matches(query: str, where: Where, *, sqlite: bool) -> Select[Any] | None:
    """Select ``id, score`` of chunks that hold any of the words; None: no words given.

    Rare words weigh more. On PostgreSQL of a frequent word ``_SAMPLE`` chunks are looked
    at, so that a search takes as long however many there are.
    """
    terms = _terms(query)
    if not terms:
        return None
    return _sqlite(terms, where) if sqlite else _postgresql(terms, where)


def _terms(query: str) -> list[str]:
    """Return the distinct words worth looking for, lower case, in order."""
    words = list(dict.fromkeys(_WORD.findall(query.lower())))
    return ([word for word in words if word not in _STOPWORDS] or words)[:_TERMS]


def _conditions(where: Where, *, sqlite: bool) -> list[ColumnElement[bool]]:
    """Return what must hold of a row of ``document``."""
    found: list[ColumnElement[bool]] = []
    if where.collections is not None:
        found.append(document.c.collection.in_([str(c) for c in where.collections]))
    if where.projects is not None:
        found.append(document.c.project.in_(where.projects))
    if where.path_prefix:
        # Not LIKE, which ignores case on SQLite and gives % and _ a meaning.
        prefix = text_of(where.path_prefix)
        found.append(func.substr(document.c.path, 1, len(prefix)) == prefix)
    found += [
        _says(name, value, sqlite=sqlite)
        for name, value in metadata_of(where.metadata or {}).items()
    ]
    return found


def _says(name: str, value: str, *, sqlite: bool) -> ColumnElement[bool]:
    """Metadata is JSON text. A path into it would have to be quoted; this compares."""
    if not sqlite:
        return document.c.metadata.cast(JSON).op("->>")(name) == value
    pair = func.json_each(document.c.metadata).table_valued("key", "value")
    return exists(select(1).where(pair.c.key == name, pair.c.value == value))


def _sqlite(terms: Sequence[str], where: Where) -> Select[Any]:
    """Each word in double quotes is a plain string to FTS5, whatever it holds."""
    matched = text("chunk_fts MATCH :terms").bindparams(
        terms=" OR ".join(f'"{term}"' for term in terms)
    )
    return (
        select(chunk.c.id, literal_column("-bm25(chunk_fts)").label("score"))
        .select_from(text("chunk_fts"))
        .join(chunk, text("chunk.seq = chunk_fts.rowid"))
        .join(document, document.c.id == chunk.c.document_id)
        .where(matched, *_conditions(where, sqlite=True))
        .order_by(literal_column("score").desc(), chunk.c.seq)
    )


def _postgresql(terms: Sequence[str], where: Where) -> Select[Any]:
    """Rank by how rare the words are that a chunk holds, then by how near they stand.

    PostgreSQL's own rank knows no rare words, and reads the whole text of each match.
    """
    samples = [_sample(term, where) for term in terms]
    found = union_all(
        *(
            select(
                sample.c.seq,
                func.ln(1 + literal_column(f"{_SAMPLE}.0") / func.count().over()).label(
                    "weight"
                ),
            )
            for sample in samples
        )
    ).subquery()
    rarity = func.sum(found.c.weight)
    best = (
        select(found.c.seq, rarity.label("rarity"))
        .group_by(found.c.seq)
        .order_by(rarity.desc(), found.c.seq)
        .limit(_RANKED)
        .subquery()
    )
    # 1: less for a long text; 32: below 1.
    near = func.ts_rank_cd(_vector(), _wanted(terms), 1 | 32)
    score = cast(best.c.rarity, Double) + 0.1 * near
    return (
        select(chunk.c.id, score.label("score"))
        .join(best, best.c.seq == chunk.c.seq)
        .order_by(score.desc(), chunk.c.seq)
    )


def _sample(term: str, where: Where) -> Subquery:
    """Select the chunks with one word. A LIMIT keeps the planner from any other way in."""
    conditions = _conditions(where, sqlite=False)
    holds = select(chunk.c.seq, chunk.c.document_id).where(
        _vector().op("@@")(_wanted([term]))
    )
    if not conditions:
        return holds.limit(_SAMPLE).subquery()
    some = holds.limit(_FILTERED).subquery()
    return (
        select(some.c.seq)
        .join(document, document.c.id == some.c.document_id)
        .where(*conditions)
        .limit(_SAMPLE)
        .subquery()
    )


def _vector() -> ColumnClause[Any]:
    return literal_column(VECTOR)


def _wanted(terms: Sequence[str]) -> Function[Any]:
    """``websearch_to_tsquery`` never raises.

    PostgreSQL takes ``a.b/c`` for a file and ``_`` for a part of a word: signs became
    spaces in the index, so a word that holds one is looked for as a phrase.
    """
    words = " or ".join(f'"{term}"'.replace("_", " ") for term in terms)
    return func.websearch_to_tsquery(literal_column("'nestor'"), words)
