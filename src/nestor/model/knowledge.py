"""Documents, their chunks, and the context that is made of them."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec


class Collection(StrEnum):
    """The named shelves of the knowledge base."""

    CODEBASE_CONTEXT = "codebase-context"
    SKILLS_PATTERNS = "skills-patterns"
    ERROR_SOLUTIONS = "error-solutions"
    INTERACTION_HISTORY = "interaction-history"
    BEST_PRACTICES = "best-practices"


class NewDocument(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """A text to remember. ``project`` and ``path`` together name it; a second add replaces."""

    project: str
    path: str
    content: str
    collection: Collection = Collection.CODEBASE_CONTEXT
    metadata: dict[str, str] = {}


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A remembered text, without its content.

    ``content_hash``: SHA-256 in hex of the bytes as they were given, so that a client can
    tell an unchanged file without sending it; ``size_bytes``: how many they were.
    """

    id: str
    project: str
    path: str
    collection: Collection
    content_hash: str
    size_bytes: int
    chunks: int
    metadata: dict[str, str]
    added_at: datetime
    media: str = "text/plain"
    """What it was read as: ``text/plain``, ``text/markdown``, ``text/html``,
    ``application/pdf`` or ``text/x-LANGUAGE``."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a document. ``start``/``end`` are character offsets into its content.

    The content of HTML and PDF is the text that was taken out of them. Lines count from
    1, both ends included.
    """

    id: str
    document_id: str
    ordinal: int
    heading: str
    text: str
    start: int
    end: int
    first_line: int | None = None
    last_line: int | None = None
    page: int | None = None
    """Of a PDF, from 1: where the piece begins."""


def embedded_text(chunk: Chunk) -> str:
    """Return what a chunk's vector is made of. Where it stands in its file is not in it."""
    return f"{chunk.heading}\n{chunk.text}" if chunk.heading else chunk.text


class EmbeddingStamp(msgspec.Struct, frozen=True, kw_only=True):
    """What made a vector. Vectors of different stamps are never compared."""

    model: str
    revision: str
    """Of the weights: a hash, a version; ``unknown`` where the server does not say."""
    dimension: int

    @property
    def id(self) -> str:
        """One word for it, as it is stored."""
        return f"{self.model}@{self.revision}:{self.dimension}"


MAX_NAMED, MAX_PAIRS, MAX_PREFIX = 100, 32, 1024
"""Of one filter: every entry is a condition that a database has to take."""
Shelves = Annotated[list[Collection], msgspec.Meta(max_length=MAX_NAMED)]
Projects = Annotated[list[str], msgspec.Meta(max_length=MAX_NAMED)]
PathPrefix = Annotated[str, msgspec.Meta(max_length=MAX_PREFIX)]
Metadata = Annotated[dict[str, str], msgspec.Meta(max_length=MAX_PAIRS)]


class Where(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which chunks a search may find; every field that is given must hold."""

    collections: Shelves | None = None
    projects: Projects | None = None
    path_prefix: PathPrefix | None = None
    """``src/`` finds ``src/a.py``. Compared as text."""
    metadata: Metadata | None = None
    """Each of these must stand in the document's metadata, equal."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What the search index holds of one chunk."""

    chunk: Chunk
    document: Document
    vector: Sequence[float] | None = None
    """Of unit length, made by the index's stamp; None: found by words only until it is."""


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk that a search found; a higher score is better, within one search only."""

    chunk_id: str
    score: float


class Legs(msgspec.Struct, frozen=True, kw_only=True):
    """What each way of searching found, best first. None: nobody asked it.

    Where both were asked, each also scores what only the other found, so that every
    chunk here has both scores. A score depends on the chunk, the query and the whole
    index: never on the filter, nor on what else was found.
    """

    bm25: list[Hit] | None = None
    dense: list[Hit] | None = None
    bm25_of_dense: dict[str, float] = {}
    """Scores of hits of ``dense`` alone. One that is missing has no word of the query."""
    dense_of_bm25: dict[str, float] = {}
    """Cosines of hits of ``bm25`` alone. One that is missing has no vector yet."""
    terms: int = 0
    """Different words of the query, without stop words."""
    points: int = 0
    """Chunks in the index."""


class Vectors(msgspec.Struct, frozen=True, kw_only=True):
    """By what the index knows a chunk: to compare chunks with each other."""

    dense: Sequence[float] | None = None
    """Of unit length. None: it has none, or none was asked for."""
    words: dict[int, float] = {}
    """Its words, by numbers, and their BM25 weights without rarity."""


class SkillKind(StrEnum):
    """What a learned pattern is about; each lives on a shelf of its own."""

    SKILL = "skill"
    ERROR_SOLUTION = "error-solution"
    BEST_PRACTICE = "best-practice"


class SkillStatus(StrEnum):
    """Only ``active`` ones are found."""

    CANDIDATE = "candidate"
    ACTIVE = "active"
    RETIRED = "retired"


class Skill(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A learned pattern, as learning writes it through ``POST /skills``."""

    id: str
    """A UUID (version 5) that follows from what was learned: a second write replaces."""
    kind: SkillKind
    title: str
    text: str
    tags: list[str] = []
    provenance: list[str] = []
    """Ids of the events it was learned from."""
    helpful: int = 0
    harmful: int = 0
    lower_bound: float | None = None
    value_score: float | None = None
    value_version: str | None = None
    embedding_model: str | None = None
    created_at: datetime
    last_used_at: datetime | None = None
    status: SkillStatus = SkillStatus.CANDIDATE


class ContextItem(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of context with where it came from."""

    id: str
    kind: str
    """``document``, ``skill``, ``error-solution`` or ``best-practice``."""
    text: str
    source: str
    """For people: ``project/path#heading``."""
    score: float
    provenance: dict[str, object] = {}


class ContextRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Body of ``POST /context``."""

    query: str
    limit: int = 5
    token_budget: int | None = None
    collections: Shelves | None = None
    projects: Projects | None = None
    path_prefix: PathPrefix | None = None
    metadata: Metadata | None = None
    task_id: str | None = None
    iteration: int | None = None


class ContextResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and what could not be reached while looking."""

    items: list[ContextItem]
    cached: bool = False
    degraded: list[str] = []
    """One line for each part that did not answer, e.g. ``index: full-text search in SQL used``."""


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """What an ingest did with one document."""

    document: Document
    unchanged: bool
    """The same content was already there: nothing was written."""
