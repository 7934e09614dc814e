"""Documents and chunks in SQL: the source of truth. tests/contracts/test_knowledge_store.py."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from nestor.model.knowledge import (
    Chunk,
    Document,
    EmbeddingStamp,
    Entry,
    Hit,
    Skill,
    Where,
)


class KnowledgeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How much there is, read in one snapshot."""

    documents: int
    chunks: int
    waiting: int
    """Chunks that wait for the index."""
    removed: int
    """Ids that are gone here but may still stand in the index."""
    without_vector: int = 0
    """Chunks that stand in the index without a vector."""


class KnowledgeStore(Protocol):
    """Texts by project and path, their chunks, their vectors, and full-text search.

    A chunk waits for the index until ``mark_indexed``; then it stands there by its words,
    or with its vector too. Vectors are kept by the digest of the text they were made of,
    so that no text is embedded twice with one stamp.
    """

    async def put(
        self, document: Document, content: str, chunks: Sequence[Chunk]
    ) -> list[str]:
        """Store or replace; in one transaction. Returns ids of chunks that are gone.

        Marks the new chunks as waiting for the index, bumps ``version``.
        """
        ...

    async def put_all(
        self, items: Sequence[tuple[Document, str, Sequence[Chunk]]]
    ) -> list[str]:
        """``put`` of several, in one transaction: all of them or none.

        As if one were put after the other.
        """
        ...

    async def find(self, project: str, path: str) -> Document | None:
        """Read a document by its name."""
        ...

    async def get(self, document_id: str) -> Document:
        """Read a document. Raises ``NotFound``."""
        ...

    async def get_all(self, ids: Sequence[str]) -> dict[str, Document]:
        """Read documents by id; unknown ids are left out."""
        ...

    async def content(self, document_id: str) -> str:
        """Read the text of a document. Raises ``NotFound``."""
        ...

    async def all(
        self,
        *,
        project: str | None = None,
        after: tuple[str, str] | None = None,
        limit: int = 1000,
    ) -> list[Document]:
        """Read documents by project and path; ``after``: those of the last one read."""
        ...

    async def hashes(self, project: str) -> dict[str, tuple[str, str]]:
        """Read path → (document id, content hash) of all documents of a project."""
        ...

    async def delete(self, document_id: str) -> list[str]:
        """Forget a document; returns the ids of its chunks. Raises ``NotFound``."""
        ...

    async def chunks(self, ids: Sequence[str]) -> dict[str, tuple[Chunk, Document]]:
        """Read chunks with their documents; unknown ids are left out."""
        ...

    async def waiting(
        self, stamp: EmbeddingStamp | None, *, limit: int = 500
    ) -> list[Entry]:
        """Read what the index lacks, oldest first, with vectors of ``stamp`` where known.

        These are chunks that wait, and chunks that stand there without a vector that is
        known by now.
        """
        ...

    async def mark_indexed(self, entries: Sequence[Entry]) -> None:
        """Note that these stand in the index as they are; bumps ``version``."""
        ...

    async def each(
        self, stamp: EmbeddingStamp | None, *, after: int = 0, limit: int = 500
    ) -> list[tuple[int, Entry]]:
        """Read all chunks in a fixed order, each with the number to go on ``after``."""
        ...

    async def ids(self, *, after: str | None = None, limit: int = 1000) -> list[str]:
        """Read the ids of all chunks, in order."""
        ...

    async def removed(self, *, limit: int = 500) -> list[str]:
        """Read ids of chunks that are gone here but may still stand in the index."""
        ...

    async def forget_removed(self, ids: Sequence[str]) -> None:
        """Note that these no longer stand in the index."""
        ...

    async def reset_index(self) -> int:
        """Mark every chunk as waiting for the index; returns how many."""
        ...

    async def unembedded(
        self, stamp: EmbeddingStamp, *, limit: int = 64
    ) -> list[tuple[str, str]]:
        """Read (digest, text) of what has no vector of ``stamp``, each digest once."""
        ...

    async def put_vectors(
        self, stamp: EmbeddingStamp, vectors: Mapping[str, Sequence[float]]
    ) -> None:
        """Keep vectors by the digest of their text. Raises ``InvalidInput`` for another dimension."""
        ...

    async def drop_vectors(self, keep: EmbeddingStamp | None) -> int:
        """Forget vectors of other stamps, and those of texts that are gone; returns how many."""
        ...

    async def search(self, query: str, *, limit: int, where: Where) -> list[Hit]:
        """Full-text search in SQL, for when the index is gone. Any text is a valid query."""
        ...

    async def counts(self) -> KnowledgeCounts:
        """Count documents, chunks, and what waits for the index."""
        ...

    async def version(self) -> int:
        """A number that grows with every change of what a search may find."""
        ...

    async def put_skill(self, skill: Skill) -> bool:
        """Store or replace a learned pattern; tell whether anything changed."""
        ...

    async def replace_skill(self, old: Skill, new: Skill) -> bool:
        """Store ``new`` where ``old`` still stands; tell whether it did. Raises ``NotFound``."""
        ...

    async def skill(self, skill_id: str) -> Skill:
        """Read one. Raises ``NotFound``."""
        ...

    async def skills(
        self, *, limit: int = 1000, after: Skill | None = None
    ) -> list[Skill]:
        """Read them, newest first; ``after``: the last one read."""
        ...
