"""Full-text search over chunks in either database. Any text is a valid query."""

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, literal_column, select, text
from sqlalchemy.sql.elements import ColumnClause

from nestor.backends.sql.schema import chunk, document

_TERMS = 64
"""More words than this in a query cost time and find nothing better."""
_WORD = re.compile(r"\w+")
_STOPWORDS = frozenset(
    """a about an and are as at be but by can do does for from has have how i if in into
    is it its me my no not of on or that the their then there these they this to was we
    what when where which who why will with you your""".split()  # noqa: SIM905 - readable
)


def matches(query: str, *, sqlite: bool) -> Select[Any] | None:
    """Select ``id, score`` of chunks that hold any of the words; None: no words given.

    Rare words weigh more. Joined with ``document``, so that the caller can filter.
    """
    terms = _terms(query)
    if not terms:
        return None
    return _sqlite(terms) if sqlite else _postgresql(terms)


def _terms(query: str) -> list[str]:
    """Return the distinct words worth looking for, lower case, in order."""
    words = list(dict.fromkeys(_WORD.findall(query.lower())))
    return ([word for word in words if word not in _STOPWORDS] or words)[:_TERMS]


def _sqlite(terms: Sequence[str]) -> Select[Any]:
    """Each word in double quotes is a plain string to FTS5, whatever it holds."""
    matched = text("chunk_fts MATCH :terms").bindparams(
        terms=" OR ".join(f'"{term}"' for term in terms)
    )
    return (
        select(chunk.c.id, literal_column("-bm25(chunk_fts)").label("score"))
        .select_from(text("chunk_fts"))
        .join(chunk, text("chunk.seq = chunk_fts.rowid"))
        .join(document, document.c.id == chunk.c.document_id)
        .where(matched)
    )


def _postgresql(terms: Sequence[str]) -> Select[Any]:
    """``websearch_to_tsquery`` never raises; the vector is the one the index is on."""
    wanted = func.websearch_to_tsquery(
        literal_column("'english'"), " or ".join(f'"{term}"' for term in terms)
    )
    vector: ColumnClause[Any] = literal_column(
        "to_tsvector('english', chunk.heading || ' ' || chunk.text)"
    )
    return (
        select(chunk.c.id, func.ts_rank_cd(vector, wanted, 1).label("score"))
        .join(document, document.c.id == chunk.c.document_id)
        .where(vector.op("@@")(wanted))
    )
