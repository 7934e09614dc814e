"""The search index over chunks: fast, and rebuildable. tests/contracts/test_search_index.py."""

from collections.abc import Sequence
from typing import Protocol

from nestor.model.knowledge import Chunk, Collection, Document, Hit


class SearchIndex(Protocol):
    """BM25 over chunks. It can be lost: ``KnowledgeStore`` can always fill it again.

    Any call may raise ``Unavailable`` (try again later), or ``IndexDamaged`` where only
    ``clear`` and a refill help.
    """

    async def upsert(self, chunks: Sequence[tuple[Chunk, Document]]) -> None:
        """Add or replace; durable when it returns."""
        ...

    async def remove(self, chunk_ids: Sequence[str]) -> None:
        """Remove; unknown ids are fine."""
        ...

    async def search(
        self, query: str, *, limit: int, collections: Sequence[Collection] | None = None
    ) -> list[Hit]:
        """Best first. Raises ``Unavailable`` when the index cannot answer."""
        ...

    async def count(self) -> int:
        """How many chunks it holds."""
        ...

    async def clear(self) -> None:
        """Drop everything and start empty, also when the index is damaged."""
        ...

    async def close(self) -> None:
        """Flush and let go of its lock."""
        ...
