"""The search index over chunks: fast, and rebuildable. tests/contracts/test_search_index.py."""

from collections.abc import Sequence
from typing import Protocol

from nestor.model.knowledge import (
    Chunk,
    Document,
    EmbeddingStamp,
    Entry,
    Legs,
    Vectors,
    Where,
)


class SearchIndex(Protocol):
    """BM25 and vectors over chunks. It can be lost: ``KnowledgeStore`` can fill it again.

    Any call may raise ``Unavailable`` (try again later), or ``IndexDamaged`` where only
    ``clear`` and a refill help.
    """

    async def stamp(self) -> EmbeddingStamp | None:
        """Tell by what its vectors were made; None: it takes none."""
        ...

    async def upsert(self, entries: Sequence[Entry]) -> None:
        """Add or replace; durable when it returns.

        An entry without a vector loses the one it had. Raises ``InvalidInput`` for a
        vector of another dimension; nothing is written then.
        """
        ...

    async def remove(self, chunk_ids: Sequence[str]) -> None:
        """Remove; unknown ids are fine."""
        ...

    async def search(
        self,
        *,
        limit: int,
        query: str | None = None,
        vector: Sequence[float] | None = None,
        stamp: EmbeddingStamp | None = None,
        where: Where,
        pairs: bool = False,
    ) -> Legs:
        """Search by words (``query``), by nearness (``vector``), or both at one moment.

        ``limit`` is for each. ``stamp``: what made ``vector``. ``pairs``: words that
        stand side by side in the query and in a chunk count a little extra. Raises
        ``OtherVectors`` when the index's own were made by something else.
        """
        ...

    async def vectors(
        self, chunk_ids: Sequence[str], *, stamp: EmbeddingStamp | None = None
    ) -> dict[str, Vectors]:
        """Read by what chunks are found; unknown ids are left out.

        Dense ones only with ``stamp``, and of that alone: raises ``OtherVectors`` as
        ``search`` does.
        """
        ...

    async def entries(
        self, chunk_ids: Sequence[str]
    ) -> dict[str, tuple[Chunk, Document]]:
        """Read chunks from the index itself, for when SQL does not answer."""
        ...

    async def ids(self, *, after: str | None = None, limit: int = 1000) -> list[str]:
        """Read the ids it holds in order, to compare them with SQL."""
        ...

    async def count(self) -> int:
        """How many chunks it holds."""
        ...

    async def outdated(self) -> str | None:
        """Say why ``rebuild`` with the same stamp would let it answer better; None: no reason.

        Worth asking now and then, e.g. after many chunks came in.
        """
        ...

    async def clear(self, stamp: EmbeddingStamp | None) -> None:
        """Drop everything and start empty for vectors of ``stamp``, also when damaged."""
        ...

    async def rebuild(self, stamp: EmbeddingStamp | None) -> "Rebuild":
        """Begin a second index beside this one, which goes on answering.

        One at a time: an unfinished one, of a dead process too, is thrown away.
        """
        ...

    async def close(self) -> None:
        """Flush and let go of its lock."""
        ...


class Rebuild(Protocol):
    """An index that is being filled; nobody sees it before ``swap``."""

    async def upsert(self, entries: Sequence[Entry]) -> None:
        """As ``SearchIndex.upsert``."""
        ...

    async def remove(self, chunk_ids: Sequence[str]) -> None:
        """As ``SearchIndex.remove``."""
        ...

    async def swap(self) -> None:
        """Answer from this one from now on, also after a crash; the old one is dropped."""
        ...

    async def discard(self) -> None:
        """Throw it away."""
        ...
