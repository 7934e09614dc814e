"""Documents and chunks in SQL: the source of truth. tests/contracts/test_knowledge_store.py."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from nestor.model.knowledge import Chunk, Collection, Document, Hit


class KnowledgeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How much there is, read in one snapshot."""

    documents: int
    chunks: int
    waiting: int
    """Chunks that wait for the index."""
    removed: int
    """Ids that are gone here but may still stand in the index."""


class KnowledgeStore(Protocol):
    """Texts by project and path, their chunks, and full-text search over them."""

    async def put(
        self, document: Document, content: str, chunks: Sequence[Chunk]
    ) -> list[str]:
        """Store or replace; in one transaction. Returns ids of chunks that are gone.

        Marks the new chunks as waiting for the index, bumps ``version``.
        """
        ...

    async def find(self, project: str, path: str) -> Document | None:
        """Read a document by its name."""
        ...

    async def get(self, document_id: str) -> Document:
        """Read a document. Raises ``NotFound``."""
        ...

    async def all(self, *, limit: int = 1000) -> list[Document]:
        """Read documents by project and path."""
        ...

    async def delete(self, document_id: str) -> list[str]:
        """Forget a document; returns the ids of its chunks. Raises ``NotFound``."""
        ...

    async def chunks(self, ids: Sequence[str]) -> dict[str, tuple[Chunk, Document]]:
        """Read chunks with their documents; unknown ids are left out."""
        ...

    async def unindexed(self, *, limit: int = 500) -> list[tuple[Chunk, Document]]:
        """Read chunks that wait for the index, oldest first."""
        ...

    async def mark_indexed(self, ids: Sequence[str]) -> None:
        """Note that these stand in the index."""
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

    async def search(
        self, query: str, *, limit: int, collections: Sequence[Collection] | None = None
    ) -> list[Hit]:
        """Full-text search in SQL, for when the index is gone. Any text is a valid query."""
        ...

    async def counts(self) -> KnowledgeCounts:
        """Count documents, chunks, and what waits for the index."""
        ...

    async def version(self) -> int:
        """A number that grows with every change of content."""
        ...
