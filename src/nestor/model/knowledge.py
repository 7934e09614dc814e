"""Documents, their chunks, and the context that is made of them."""

from datetime import datetime
from enum import StrEnum

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
    """A remembered text, without its content."""

    id: str
    project: str
    path: str
    collection: Collection
    content_hash: str
    size_bytes: int
    chunks: int
    metadata: dict[str, str]
    added_at: datetime


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a document. ``start``/``end`` are character offsets into its content."""

    id: str
    document_id: str
    ordinal: int
    heading: str
    text: str
    start: int
    end: int


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk that a search found; a higher score is better, within one search only."""

    chunk_id: str
    score: float


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
    collections: list[Collection] | None = None
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
