"""Searches the index by words and vectors at once, and ranks what comes."""

from collections.abc import Sequence

from nestor.aidb import fusion
from nestor.model.knowledge import EmbeddingStamp, Hit, Legs, Where
from nestor.ports.search_index import SearchIndex


async def rank(
    index: SearchIndex,
    query: str,
    *,
    vector: Sequence[float] | None = None,
    stamp: EmbeddingStamp | None = None,
    limit: int,
    where: Where,
) -> list[Hit]:
    """Return what the index finds, best first: at least ``limit`` where there are so many.

    ``vector`` and ``stamp`` as in ``SearchIndex.search``, which says what is raised.
    An index that is not large is asked again with a vector that the best hits have moved.
    """
    depth = max(limit, fusion.DEPTH)

    async def asked(by: Sequence[float] | None) -> Legs:
        return await index.search(
            limit=depth,
            query=query,
            vector=by,
            stamp=stamp if by is not None else None,
            where=where,
            pairs=True,
        )

    legs = await asked(vector)
    ranked = fusion.fuse(legs, query)
    if vector is None or not legs.dense or legs.points > fusion.REFINED_POINTS:
        return ranked
    best = [hit.chunk_id for hit in ranked[: fusion.FEEDBACK_HITS]]
    held = await index.vectors(best, stamp=stamp)
    moved = fusion.feedback(vector, [held[key] for key in best if key in held])
    if moved is not None:
        ranked = fusion.fuse(await asked(moved), query)
    window = [hit.chunk_id for hit in ranked[: fusion.WINDOW]]
    return fusion.smooth(ranked, await index.vectors(window, stamp=stamp))
