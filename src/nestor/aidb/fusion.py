"""One ranking from two, by what the scores say and not by places alone."""

import math
from collections.abc import Sequence

from nestor.model.knowledge import Hit, Legs

DEPTH = 100
"""Hits of each leg that count."""
_SIGMAS = 3.0


def fuse(legs: Legs) -> list[Hit]:
    """Merge what both legs found, best first.

    Distribution-based score fusion: the scores of each list become their place between
    three standard deviations below its mean and three above it, and are summed. A leg
    that was not asked, or found nothing, changes nothing.
    """
    total: dict[str, float] = {}
    for leg in (legs.bm25, legs.dense):
        for key, score in _scaled((leg or [])[:DEPTH]).items():
            total[key] = total.get(key, 0.0) + score
    ranked = sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))
    return [Hit(chunk_id=key, score=score) for key, score in ranked]


def _scaled(hits: Sequence[Hit]) -> dict[str, float]:
    if not hits:
        return {}
    scores = [hit.score for hit in hits]
    mean = math.fsum(scores) / len(scores)
    spread = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / len(scores))
    if spread == 0:
        return {hit.chunk_id: 0.5 for hit in hits}
    low, width = mean - _SIGMAS * spread, 2 * _SIGMAS * spread
    return {hit.chunk_id: min(1.0, max(0.0, (hit.score - low) / width)) for hit in hits}
