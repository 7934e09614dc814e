"""One ranking from words and vectors, by what their scores say. Pure functions.

Both legs score every candidate (``Legs``). A BM25 score is a sum over the query's terms,
so its size follows their number and the size of the index: divided by the most that one
term can give, times the square root of their number (as independent evidence adds up), it
lies beside a cosine with weight 1. Nothing in it depends on the rest of the list, as
places and normalised lists do, so that a filter changes no hit's score.

``feedback`` is Rocchio's ("Relevance feedback in information retrieval", 1971), for the
dense query alone. ``smooth`` rests on the cluster hypothesis (van Rijsbergen 1979: what is
alike is relevant to the same requests), as Diaz does ("Regularizing ad hoc retrieval
scores", CIKM 2005). Why so, and what else was tried: docs/decisions/0015-retrieval.md.
"""

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nestor.model.knowledge import Hit, Legs, Vectors

DEPTH = 100
"""Hits asked of each leg."""
WINDOW = 50
"""So many of the best are smoothed."""
FEEDBACK_HITS = 3
REFINED_POINTS = 20_000
"""Larger indexes are asked once: feedback and smoothing would take longer than the search."""
_FEEDBACK = 0.3
_NEIGHBOURS = 5
_SMOOTHING = 0.2
_K = 1.2
_BLOCK = 64
_NAME = re.compile(
    r"""[A-Za-z]+_\w+            # snake_case
    | --?[a-z][\w-]+             # -o, --option
    | \b[a-z]+[A-Z]\w*           # camelCase
    | \b[A-Z]{2,}\w*\b           # ACRONYM
    | \w+\.?\w*\(                # call(
    | \w+::\w                    # scope::name
    """,
    re.VERBOSE,
)


def load() -> None:
    """Import what ``smooth`` needs, for some 70 ms: beside the loop, before it is needed."""
    importlib.import_module("numpy")


def fuse(legs: Legs, query: str) -> list[Hit]:
    """Score every candidate, best first; equal scores by id.

    A leg that was not asked, or found nothing, leaves the order to the other. A chunk
    that waits for its vector is taken for as near as the other hits of words are on
    average: the only score that others can change.
    """
    words = {hit.chunk_id: hit.score for hit in legs.bm25 or []} | legs.bm25_of_dense
    near = {hit.chunk_id: hit.score for hit in legs.dense or []} | legs.dense_of_bm25
    known = [near[hit.chunk_id] for hit in legs.bm25 or [] if hit.chunk_id in near]
    usual = math.fsum(known) / len(known) if known else 0.0
    weight = _weight(query, legs.terms, legs.points)
    scored = [
        Hit(chunk_id=key, score=weight * words.get(key, 0.0) + near.get(key, usual))
        for key in words.keys() | near.keys()
    ]
    return _sorted(scored)


def feedback(vector: Sequence[float], best: Sequence[Vectors]) -> list[float] | None:
    """Move a query's vector a little towards the best hits; None: they have no vectors."""
    dense = [one.dense for one in best if one.dense is not None]
    if not dense:
        return None
    middle = _unit([math.fsum(values) for values in zip(*dense, strict=True)])
    pairs = zip(_unit(vector), middle, strict=True)
    return _unit([own + _FEEDBACK * other for own, other in pairs])


def smooth(ranked: Sequence[Hit], vectors: Mapping[str, Vectors]) -> list[Hit]:
    """Let the first ``WINDOW`` hits share their scores with those most like them.

    Likeness is the mean of the cosines of their vectors and of their weighed words. A hit
    that ``vectors`` lacks keeps its score. What follows the window stays behind it, in
    its order.
    """
    head, tail = ranked[:WINDOW], list(ranked[WINDOW:])
    known = [hit for hit in head if hit.chunk_id in vectors]
    if len(known) <= 1:
        return list(ranked)
    alike = _alike([vectors[hit.chunk_id] for hit in known])
    mixed = {
        hit.chunk_id: (1 - _SMOOTHING) * hit.score + _SMOOTHING * _heard(row, at, known)
        for at, (hit, row) in enumerate(zip(known, alike, strict=True))
    }
    floor = tail[0].score if tail else -math.inf  # means can be a rounding below
    smoothed = [
        Hit(chunk_id=h.chunk_id, score=max(mixed.get(h.chunk_id, h.score), floor))
        for h in head
    ]
    return _sorted(smoothed) + tail


def _weight(query: str, terms: int, points: int) -> float:
    """What a BM25 score is multiplied with: more where the query names things exactly."""
    words = query.split()
    exact = sum(bool(_NAME.search(word)) for word in words) / max(len(words), 1)
    most = (_K + 1) * math.log(1 + (points + 0.5) / 0.5)
    return (1 + exact) / (most * math.sqrt(max(terms, 1)))


def _heard(row: Sequence[float], own: int, hits: Sequence[Hit]) -> float:
    """Return the mean score of the nearest neighbours, by how near they are."""
    others = [(value, at) for at, value in enumerate(row) if at != own and value > 0]
    others.sort(key=lambda pair: (-pair[0], pair[1]))
    nearest = others[:_NEIGHBOURS]
    total = math.fsum(value for value, _ in nearest)
    if total <= 0:
        return hits[own].score
    return math.fsum(value * hits[at].score for value, at in nearest) / total


def _alike(rows: Sequence[Vectors]) -> list[list[float]]:
    """How alike each two are."""
    import numpy as np  # noqa: PLC0415 - heavy: see ``load``

    size = len(rows)
    counts = [len(row.words) for row in rows]
    total = sum(counts)
    which = np.repeat(np.arange(size), counts)
    numbers = np.fromiter((n for row in rows for n in row.words), np.int64, total)
    weights = np.fromiter(
        (w for row in rows for w in row.words.values()), np.float32, total
    )
    lengths = np.sqrt(np.bincount(which, weights**2, size))
    # A word that one row has alone counts in that row's length, and nowhere else.
    _, column, seen = np.unique(numbers, return_inverse=True, return_counts=True)
    shared = seen > 1
    place = np.cumsum(shared) - 1
    kept = shared[column]
    words = np.zeros((size, int(shared.sum())), dtype=np.float32)
    words[which[kept], place[column[kept]]] = (weights / lengths[which])[kept]
    dimension = max(
        (len(row.dense) for row in rows if row.dense is not None), default=0
    )
    held = np.array([row.dense is not None for row in rows])
    dense = np.zeros((size, dimension), dtype=np.float32)
    if held.any():
        dense[held] = [row.dense for row in rows if row.dense is not None]
    alike = (_products(dense) + _products(words)) / (1 + np.outer(held, held))
    found: list[list[float]] = alike.tolist()
    return found


def _products(matrix: Any) -> Any:
    """Multiply each row with each.

    In pieces: a larger product goes to several threads, and where cores are busy the one
    that is late keeps the others waiting (of 0.1 ms, one in twenty became 50).
    """
    parts = (matrix[:, at : at + _BLOCK] for at in range(0, matrix.shape[1], _BLOCK))
    return sum((part @ part.T for part in parts), start=0.0)


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length > 0 else list(vector)


def _sorted(hits: list[Hit]) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.chunk_id))
