"""Second indexes beside the one that answers, and how words are weighed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contracts.search_indexes import (
    EVERYWHERE,
    KINDS,
    STAMP,
    X,
    Y,
    entry,
    found,
    near,
    opened,
)

from nestor.errors import InvalidInput, Unavailable
from nestor.model.knowledge import Entry, Hit
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
        yield index


async def test_a_rebuild_is_seen_by_nobody_before_it_is_swapped_in(
    index: SearchIndex,
) -> None:
    await index.upsert([entry("walrus")])
    rebuild = await index.rebuild(STAMP)
    await rebuild.upsert([entry("otter", vector=X), entry("lynx", vector=Y)])
    await rebuild.remove([entry("lynx").chunk.id])

    assert await found(index, "walrus otter lynx") == [entry("walrus").chunk.id]
    assert await index.stamp() is None
    await index.upsert([entry("beaver")])  # the old one goes on being written

    await rebuild.swap()

    assert await found(index, "walrus otter lynx beaver") == [entry("otter").chunk.id]
    assert await index.stamp() == STAMP
    assert await near(index, X) == [entry("otter").chunk.id]
    with pytest.raises(Unavailable, match="over"):
        await rebuild.upsert([entry("wolf")])
    await rebuild.discard()
    assert await index.count() == 1


async def test_a_discarded_rebuild_leaves_the_index_as_it_was(
    index: SearchIndex,
) -> None:
    await index.upsert([entry("walrus")])
    rebuild = await index.rebuild(None)
    await rebuild.upsert([entry("otter")])

    await rebuild.discard()
    await rebuild.discard()

    assert await found(index, "walrus otter") == [entry("walrus").chunk.id]
    with pytest.raises(Unavailable, match="over"):
        await rebuild.swap()
    assert await found(index, "walrus otter") == [entry("walrus").chunk.id]


async def test_a_second_rebuild_throws_the_first_away(index: SearchIndex) -> None:
    await index.upsert([entry("walrus")])
    first = await index.rebuild(None)
    await first.upsert([entry("otter")])

    second = await index.rebuild(STAMP)
    await second.upsert([entry("lynx")])

    with pytest.raises(Unavailable, match="over"):
        await first.upsert([entry("beaver")])
    with pytest.raises(Unavailable, match="over"):
        await first.swap()
    await second.swap()
    assert await found(index, "walrus otter lynx beaver") == [entry("lynx").chunk.id]


async def test_a_rebuild_refuses_vectors_of_another_dimension(
    index: SearchIndex,
) -> None:
    rebuild = await index.rebuild(STAMP)
    with pytest.raises(InvalidInput):
        await rebuild.upsert([entry("walrus", vector=[1.0])])
    with pytest.raises(InvalidInput):
        await (await index.rebuild(None)).upsert([entry("walrus", vector=X)])


async def test_more_than_one_request_can_carry_is_written_and_read(
    index: SearchIndex,
) -> None:
    entries = [entry(f"walrus {n}") for n in range(230)]
    await index.upsert(entries)

    assert await index.count() == 230
    ids = [one.chunk.id for one in entries]
    assert set(await index.entries(ids)) == set(ids)
    await index.remove(ids[:220])
    assert await index.count() == 10


def words(count: int, key: str) -> Entry:
    """A chunk of ``count`` words; its path is one more."""
    return entry("walrus " + "wave " * (count - 2), key=key)


async def test_the_weight_of_words_follows_the_chunks(index: SearchIndex) -> None:
    """The first chunks are weighed by a guess, then all by the true mean."""
    short = [words(20, f"a{n}") for n in range(200)]
    await index.upsert(short)
    [guessed, *_] = await _hits(index)
    await index.upsert([words(20, f"b{n}") for n in range(100)])
    hits = await _hits(index)

    # All are alike, so all score alike: also those written under the guess.
    assert len({round(hit.score, 4) for hit in hits}) == 1
    assert hits[0].score < guessed.score
    assert await index.outdated() is None


async def test_an_index_whose_chunks_became_much_longer_says_so(
    index: SearchIndex,
) -> None:
    await index.upsert([words(10, f"a{n}") for n in range(260)])
    assert await index.outdated() is None
    await index.upsert([words(80, f"b{n}") for n in range(260)])

    assert "weighed as if it were 10" in str(await index.outdated())

    rebuild = await index.rebuild(None)
    await rebuild.upsert([words(80, f"b{n}") for n in range(260)])
    await rebuild.swap()
    assert await index.outdated() is None


async def _hits(index: SearchIndex) -> list[Hit]:
    legs = await index.search(query="walrus", limit=300, where=EVERYWHERE)
    assert legs.bm25
    return legs.bm25
