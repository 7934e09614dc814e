"""Made-up chunks: vectors in clusters, words by rank. The same for the same size and seed."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from nestor.model.ids import derived_id
from nestor.model.knowledge import (
    Chunk,
    Collection,
    Document,
    EmbeddingStamp,
    Entry,
    Where,
)

DIMENSION, CLUSTERS, WORDS, ASKED = 384, 2000, 60, 200
VOCABULARY, KNOWN = 20_000, 3_000
PROJECTS = 20
STAMP = EmbeddingStamp(model="made-up", revision="1", dimension=DIMENSION)
FILTERS: dict[str, list[str] | None] = {
    "none": None,
    "1 of 20 projects": ["p3"],
    "10 of 20 projects": [f"p{number}" for number in range(10)],
}
Vectors = np.ndarray[Any, np.dtype[np.float32]]


class MadeUp:
    """``size`` chunks of 60 words, and ``ASKED`` questions near some of them."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.size = size
        chance = np.random.default_rng(seed)
        centres = chance.normal(size=(CLUSTERS, DIMENSION))
        found = centres[chance.integers(0, CLUSTERS, size)]
        self.vectors = _unit(found + 0.8 * chance.normal(size=(size, DIMENSION)))
        near = self.vectors[chance.integers(0, size, ASKED)]
        self.queries = _unit(near + 0.05 * chance.normal(size=(ASKED, DIMENSION)))
        words = np.array([f"w{number:05d}x" for number in range(VOCABULARY)])
        ranks = (chance.pareto(1.0, (size, WORDS)) * 20).astype(np.int64)
        ranks = np.minimum(ranks, VOCABULARY - 1)
        self.texts = [" ".join(words[row]) for row in ranks]
        asked = chance.integers(0, KNOWN, (ASKED, 6))
        self.questions = [" ".join(words[row]) for row in asked]
        self.row_of = {self.chunk_id(number): number for number in range(size)}

    def chunk_id(self, number: int) -> str:
        return derived_id("chunk", number)

    def project(self, number: int) -> str:
        return f"p{number % PROJECTS}"

    def path(self, number: int) -> str:
        return f"src/d{number % 300}/f{number % 5000}.py"

    def entry(self, number: int) -> Entry:
        owner = derived_id("document", number)
        text = self.texts[number]
        return Entry(
            chunk=Chunk(
                id=self.chunk_id(number),
                document_id=owner,
                ordinal=0,
                heading="",
                text=text,
                start=0,
                end=len(text),
            ),
            document=Document(
                id=owner,
                project=self.project(number),
                path=self.path(number),
                collection=Collection.CODEBASE_CONTEXT,
                content_hash="",
                size_bytes=len(text),
                chunks=1,
                metadata={},
                added_at=datetime(2026, 1, 1, tzinfo=UTC),
            ),
            vector=self.vectors[number].tolist(),
        )

    def nearest(self, projects: list[str] | None, limit: int) -> list[set[int]]:
        """Look at every vector: what is right."""
        rows = np.arange(self.size)
        if projects is not None:
            allowed = {int(name[1:]) for name in projects}
            rows = rows[np.isin(rows % PROJECTS, sorted(allowed))]
        scores = self.queries @ self.vectors[rows].T
        best = np.argpartition(-scores, limit, axis=1)[:, :limit]
        return [set(rows[found].tolist()) for found in best]

    def write(self, folder: Path) -> None:
        """Write what the peers read."""
        np.save(folder / "vectors.npy", self.vectors)
        np.save(folder / "queries.npy", self.queries)
        with (folder / "corpus.jsonl").open("w") as file:
            for number, text in enumerate(self.texts):
                row = {
                    "project": self.project(number),
                    "path": self.path(number),
                    "text": text,
                }
                file.write(json.dumps(row) + "\n")


def where(projects: list[str] | None) -> Where:
    return Where(projects=projects)


def _unit(found: np.ndarray[Any, Any]) -> Vectors:
    length = np.linalg.norm(found, axis=1, keepdims=True)
    unit: Vectors = (found / length).astype(np.float32)
    return unit
