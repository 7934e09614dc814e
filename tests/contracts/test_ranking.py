"""Ranking over real indexes: what is asked of them, and that it finds better."""

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contracts.search_indexes import (
    EVERYWHERE,
    KINDS,
    OTHER,
    STAMP,
    X,
    Y,
    Z,
    entry,
    opened,
)
from tests.servers.qdrant_stand_in import qdrant_stand_in

from nestor.aidb import fusion
from nestor.aidb.ranking import rank
from nestor.backends.qdrant.server import QdrantServerIndex
from nestor.errors import OtherVectors
from nestor.model.knowledge import EmbeddingStamp, Where
from nestor.ports.search_index import SearchIndex

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
]


@pytest.fixture(params=KINDS)
async def index(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[SearchIndex]:
    async with opened(request.param, tmp_path) as index:
        await index.clear(STAMP)
        yield index


async def ranked(
    index: SearchIndex,
    query: str,
    vector: list[float] | None,
    *,
    stamp: EmbeddingStamp | None = STAMP,
    where: Where = EVERYWHERE,
) -> list[str]:
    hits = await rank(index, query, vector=vector, stamp=stamp, limit=10, where=where)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    return [hit.chunk_id for hit in hits]


async def test_what_both_ways_find_comes_first(index: SearchIndex) -> None:
    words = entry("walrus on ice", key="words", vector=Z)
    both = entry("walrus on ice", key="both", vector=[0.8, 0.6, 0.0])
    near = entry("otter", key="near", vector=[0.9, math.sqrt(0.19), 0.0])
    await index.upsert([words, near, both, entry("lynx", vector=Y)])

    assert (await ranked(index, "walrus ice", X))[0] == both.chunk.id


async def test_either_leg_alone_ranks_by_itself(index: SearchIndex) -> None:
    apart = entry("walrus otter sleeping", key="a", vector=X)
    beside = entry("otter sleeping walrus", key="b", vector=[0.6, 0.8, 0.0])
    await index.upsert([apart, beside])
    by_words, by_vectors = [beside.chunk.id, apart.chunk.id], [apart, beside]

    assert await ranked(index, "sleeping walrus", None) == by_words
    for query in ("giraffe", "the"):
        found = await ranked(index, query, X)
        assert found == [one.chunk.id for one in by_vectors]
    assert await ranked(index, "giraffe", None) == []


async def test_an_index_whose_vectors_are_all_to_come_is_searched_by_words(
    index: SearchIndex,
) -> None:
    one, two = entry("walrus walrus"), entry("walrus and a longer text about otters")
    await index.upsert([two, one])

    assert await ranked(index, "walrus", X) == [one.chunk.id, two.chunk.id]
    with pytest.raises(OtherVectors):
        await ranked(index, "walrus", X, stamp=OTHER)


async def test_the_best_hits_find_what_the_query_does_not_name(
    index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are equally near; one of them lies on the side of the best hits."""
    best = [
        entry(f"walrus {n}", vector=[math.sqrt(0.5), math.sqrt(0.5), 0.0])
        for n in range(3)
    ]
    beside = entry("otter", key="b", vector=[0.6, 0.8, 0.0])
    opposite = entry("lynx", key="a", vector=[0.6, -0.8, 0.0])
    await index.upsert([*best, beside, opposite])
    monkeypatch.setattr(fusion, "smooth", lambda hits, _: list(hits))

    hits = await rank(index, "walrus", vector=X, stamp=STAMP, limit=9, where=EVERYWHERE)
    scores = {hit.chunk_id: hit.score for hit in hits}
    assert scores[beside.chunk.id] > scores[opposite.chunk.id] + 0.1
    monkeypatch.setattr(fusion, "REFINED_POINTS", 4)  # this index is large, then
    hits = await rank(index, "walrus", vector=X, stamp=STAMP, limit=9, where=EVERYWHERE)
    scores = {hit.chunk_id: hit.score for hit in hits}
    assert scores[beside.chunk.id] == pytest.approx(scores[opposite.chunk.id])


async def test_a_filter_holds_in_every_question(index: SearchIndex) -> None:
    ours = [entry(f"walrus {n}", project="a", vector=X) for n in range(3)]
    others = [entry(f"walrus x{n}", project="b", vector=X) for n in range(9)]
    await index.upsert([*ours, *others])

    found = await ranked(index, "walrus", X, where=Where(projects=["a"]))

    assert set(found) == {one.chunk.id for one in ours}


async def test_how_often_a_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        qdrant_stand_in() as server,
        QdrantServerIndex.connect(server.base_url) as index,
    ):
        await index.clear(STAMP)
        await index.upsert([entry("walrus", vector=X), entry("otter", vector=Y)])

        async def asked(vector: list[float] | None) -> list[str]:
            server.requests.clear()
            await ranked(index, "walrus", vector)
            return sorted(line.partition("/points")[2] for line in server.asked)

        search, read = ["/count", "/query/batch"], [""]
        assert await asked(None) == search
        assert await asked(X) == sorted(2 * search + 2 * read)
        monkeypatch.setattr(fusion, "REFINED_POINTS", 1)
        assert await asked(X) == search
