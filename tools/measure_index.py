# ruff: noqa: SLF001 - it looks inside to ask the engine itself
"""Measure the search index in process beside raw Qdrant Edge: latency, recall, stalls.

``python tools/measure_index.py [CHUNKS] [OUT.json]``: made-up vectors in clusters (384
numbers, 2,000 clusters) and made-up words. It waits for the graph, so 100,000 chunks
take some ten minutes. Numbers hold for the machine they were taken on.
"""

import asyncio
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qdrant

from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.model.ids import derived_id
from nestor.model.knowledge import (
    Chunk,
    Collection,
    Document,
    EmbeddingStamp,
    Entry,
    Legs,
    Where,
)

_DIMENSION, _CLUSTERS, _BATCH, _ASKED, _LIMIT = 384, 2000, 500, 200, 10
_STAMP = EmbeddingStamp(model="made-up", revision="1", dimension=_DIMENSION)
_FILTERS = {
    "none": Where(),
    "1 of 20 projects": Where(projects=["p3"]),
    "10 of 20 projects": Where(projects=[f"p{n}" for n in range(10)]),
    "2 of 20 projects": Where(projects=["p1", "p2"]),
    "one folder": Where(path_prefix="src/d7/"),
    "every folder": Where(path_prefix="src/"),
    "metadata": Where(metadata={"lang": "py"}),
}


class Corpus:
    """Made-up chunks, the same for the same size."""

    def __init__(self, size: int) -> None:
        self.size = size
        chance = np.random.default_rng(1)
        centres = chance.normal(size=(_CLUSTERS, _DIMENSION))
        found = centres[chance.integers(0, _CLUSTERS, size)]
        found = found + 0.8 * chance.normal(size=(size, _DIMENSION))
        self.vectors = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(
            np.float32
        )
        ranks = np.minimum((chance.pareto(1.0, (size, 60)) * 20).astype(int), 19_999)
        self.words = [f"w{n:05d}x" for n in range(20_000)]
        self.texts = [" ".join(self.words[n] for n in row) for row in ranks]

    def entry(self, number: int) -> Entry:
        """One chunk of 60 words with its vector."""
        owner = derived_id("document", number)
        text = self.texts[number]
        return Entry(
            chunk=Chunk(
                id=derived_id("chunk", number),
                document_id=owner,
                ordinal=0,
                heading="",
                text=text,
                start=0,
                end=len(text),
            ),
            document=Document(
                id=owner,
                project=f"p{number % 20}",
                path=f"src/d{number % 300}/f{number % 5000}.py",
                collection=Collection.CODEBASE_CONTEXT,
                content_hash="",
                size_bytes=len(text),
                chunks=1,
                metadata={"lang": ("py", "md", "js")[number % 3]},
                added_at=datetime(2026, 1, 1, tzinfo=UTC),
            ),
            vector=self.vectors[number].tolist(),
        )

    def question(self, chance: random.Random) -> tuple[str, list[float]]:
        """Words, and a vector near that of some chunk."""
        noise = np.random.default_rng(chance.getrandbits(32)).normal(size=_DIMENSION)
        vector = self.vectors[chance.randrange(self.size)] + 0.05 * noise
        words = " ".join(chance.choice(self.words[:3000]) for _ in range(6))
        return words, (vector / np.linalg.norm(vector)).tolist()


async def main(size: int) -> dict[str, Any]:
    """Measure in a folder that is removed afterwards."""
    corpus = Corpus(size)
    with tempfile.TemporaryDirectory() as folder:
        async with await QdrantEdgeIndex.open(Path(folder) / "qdrant") as index:
            found = await _measured(index, corpus)
    return {
        "chunks": size,
        "dimension": _DIMENSION,
        "machine": f"{platform.machine()}, {platform.python_version()}",
        **found,
    }


async def _measured(index: QdrantEdgeIndex, corpus: Corpus) -> dict[str, Any]:
    await index.clear(_STAMP)
    began = time.perf_counter()
    for at in range(0, corpus.size, _BATCH):
        last = min(corpus.size, at + _BATCH)
        await index.upsert([corpus.entry(n) for n in range(at, last)])
    inserted = time.perf_counter() - began
    began = time.perf_counter()
    while (task := index._graph) is not None:
        during = await _latency(index, corpus, _FILTERS["none"])
        print("while the graph is built:", during, file=sys.stderr, flush=True)
        await asyncio.wait([task], timeout=20)
    built = time.perf_counter() - began
    return {
        "insert_s": round(inserted, 1),
        "graph_s": round(built, 1),
        "in_graph": index._all.current.made.in_graph,
        "searches": {
            name: await _compared(index, corpus, where)
            for name, where in _FILTERS.items()
        },
        "while_500_are_written": await _while_writing(index, corpus),
    }


async def _compared(
    index: QdrantEdgeIndex, corpus: Corpus, where: Where
) -> dict[str, Any]:
    """Ask ours and the raw engine (its defaults, and exact) the same questions in turn."""
    engine = index._all.current._engine
    held = _raw_filter(where)
    ours, raw, exact, both, right, raw_right, asked = [], [], [], [], 0, 0, 0
    chance = random.Random(5)
    for _ in range(_ASKED):
        words, vector = corpus.question(chance)
        truth, took = _asked(engine, vector, held, qdrant.SearchParams(exact=True))
        exact.append(took)
        default, took = _asked(engine, vector, held, None)
        raw.append(took)
        legs, took = await _timed(
            index.search(vector=vector, stamp=_STAMP, limit=_LIMIT, where=where)
        )
        ours.append(took)
        _, took = await _timed(
            index.search(
                query=words, vector=vector, stamp=_STAMP, limit=100, where=where
            )
        )
        both.append(took)
        got = [hit.chunk_id for hit in legs.dense or []]
        asked += len(truth)
        right += len(set(got) & set(truth))
        raw_right += len(set(default) & set(truth))
    return {
        "ours_p50_ms": _p50(ours),
        "both_legs_of_100_p50_ms": _p50(both),
        "raw_p50_ms": _p50(raw),
        "raw_exact_p50_ms": _p50(exact),
        "recall@10": round(right / asked, 4),
        "raw_recall@10": round(raw_right / asked, 4),
    }


async def _while_writing(index: QdrantEdgeIndex, corpus: Corpus) -> dict[str, Any]:
    """How long searches and the event loop wait while a batch is written."""
    took: list[float] = []
    stalls: list[float] = []
    for round_ in range(6):
        again = [corpus.entry(n) for n in range(round_ * 500, round_ * 500 + 500)]
        writing = asyncio.create_task(index.upsert(again))
        while not writing.done():
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            stalls.append(time.perf_counter() - began)
            words, _ = corpus.question(random.Random(round_))
            _, one = await _timed(
                index.search(query=words, limit=_LIMIT, where=Where())
            )
            took.append(one)
        await writing
    return {
        "searches": len(took),
        "search_p50_ms": _p50(took),
        "search_max_ms": round(1e3 * max(took), 1),
        "event_loop_max_ms": round(1e3 * max(stalls), 1),
    }


async def _latency(
    index: QdrantEdgeIndex, corpus: Corpus, where: Where
) -> dict[str, float]:
    took = []
    for n in range(50):
        _, vector = corpus.question(random.Random(n))
        _, one = await _timed(
            index.search(vector=vector, stamp=_STAMP, limit=_LIMIT, where=where)
        )
        took.append(one)
    return {"p50_ms": _p50(took), "max_ms": round(1e3 * max(took), 1)}


async def _timed(question: Coroutine[Any, Any, Legs]) -> tuple[Legs, float]:
    began = time.perf_counter()
    found = await question
    return found, time.perf_counter() - began


def _asked(
    engine: Any, vector: list[float], held: Any, how: Any
) -> tuple[list[str], float]:
    began = time.perf_counter()
    found = engine.query(
        qdrant.QueryRequest(
            limit=_LIMIT,
            query=qdrant.Query.Nearest(vector, using="dense"),
            filter=held,
            params=how,
            with_payload=False,
        )
    )
    took = time.perf_counter() - began
    return [str(one.id) for one in found], took


def _raw_filter(where: Where) -> Any:
    from nestor.backends.qdrant import shard  # noqa: PLC0415 - the same filter

    return shard._filter(where)


def _p50(took: Sequence[float]) -> float:
    return round(1e3 * statistics.median(took), 3)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    result = json.dumps(asyncio.run(main(count)), indent=1)
    print(result)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(result + "\n")
