"""What every SearchIndex promises: in process, and as a client of a Qdrant server.

The server itself cannot be had here. Its class runs on qdrant-client's in-memory mode,
and over real HTTP on a stand-in that holds each request against Qdrant's OpenAPI.
"""

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
    found,
    near,
    opened,
)

from nestor.errors import InvalidInput, OtherVectors
from nestor.model.ids import derived_id
from nestor.model.knowledge import Chunk, Collection, Entry, Legs, Vectors, Where
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


async def test_the_best_match_comes_first_across_word_forms(index: SearchIndex) -> None:
    one = entry("walruses are sleeping on the ice")
    two = entry("the otter sleeps while the walrus eats and the walrus swims")
    await index.upsert([one, two, entry("nothing of interest")])

    assert await found(index, "sleeping walrus ice") == [one.chunk.id, two.chunk.id]
    assert await found(index, "sleeping walrus ice", limit=1) == [one.chunk.id]
    assert await found(index, "sleeping walrus ice", limit=0) == []
    assert await found(index, "giraffe") == []
    assert await found(index, "the and of") == []


async def test_a_rare_word_weighs_more_than_a_common_one(index: SearchIndex) -> None:
    common = [entry(f"walrus number{n}") for n in range(9)]
    rare = entry("otter number9")
    await index.upsert([*common, rare])

    assert (await found(index, "walrus otter"))[0] == rare.chunk.id


async def test_headings_and_paths_are_searched(index: SearchIndex) -> None:
    one = entry("use apt", heading="Install > Linux", path="docs/setup.md")
    await index.upsert([one, entry("use brew", heading="Install > Mac")])

    assert await found(index, "linux") == [one.chunk.id]
    assert await found(index, "docs") == [one.chunk.id]


async def test_the_nearest_comes_first(index: SearchIndex) -> None:
    await index.clear(STAMP)
    x, y = entry("one", vector=X), entry("two", vector=Y)
    between = entry("three", vector=[math.sqrt(0.9), math.sqrt(0.1), 0.0])
    await index.upsert([x, y, between, entry("without a vector")])

    assert await near(index, X) == [x.chunk.id, between.chunk.id, y.chunk.id]


async def test_both_legs_are_asked_at_once(index: SearchIndex) -> None:
    await index.clear(STAMP)
    await index.upsert([entry("walrus", vector=X), entry("otter", vector=Y)])

    legs = await index.search(
        query="otter", vector=X, stamp=STAMP, limit=1, where=EVERYWHERE
    )

    assert [h.chunk_id for h in legs.bm25 or []] == [entry("otter").chunk.id]
    assert [h.chunk_id for h in legs.dense or []] == [entry("walrus").chunk.id]
    assert legs.dense is not None
    assert legs.dense[0].score == pytest.approx(1.0)


async def test_each_leg_scores_what_only_the_other_found(index: SearchIndex) -> None:
    await index.clear(STAMP)
    walrus, both, otter = (
        entry("walrus", vector=Y),
        entry("walrus otter", vector=[0.6, 0.8, 0.0]),
        entry("otter", vector=X),
    )
    waits = entry("walrus walrus walrus")
    await index.upsert([walrus, both, otter, waits, entry("lynx", vector=Z)])
    asked = await index.search(
        query="walrus", vector=X, stamp=STAMP, limit=10, where=EVERYWHERE
    )
    scores = {hit.chunk_id: hit.score for hit in asked.bm25 or []}
    cosines = {hit.chunk_id: hit.score for hit in asked.dense or []}
    assert asked.terms == 1
    assert asked.points == 5

    one = await index.search(
        query="walrus", vector=X, stamp=STAMP, limit=1, where=EVERYWHERE
    )

    assert [hit.chunk_id for hit in one.bm25 or []] == [waits.chunk.id]
    assert one.bm25_of_dense.get(otter.chunk.id, 0.0) == 0.0
    assert one.dense_of_bm25 == {}  # it has no vector
    two = await index.search(
        query="walrus", vector=X, stamp=STAMP, limit=2, where=EVERYWHERE
    )
    assert {hit.chunk_id for hit in two.dense or []} == {otter.chunk.id, both.chunk.id}
    assert {hit.chunk_id for hit in two.bm25 or []} == {waits.chunk.id, walrus.chunk.id}
    known = two.bm25_of_dense
    assert known[both.chunk.id] == pytest.approx(scores[both.chunk.id])
    assert known.keys() <= {both.chunk.id, otter.chunk.id}
    expected = {walrus.chunk.id: cosines[walrus.chunk.id]}
    assert two.dense_of_bm25 == pytest.approx(expected)


async def test_a_filter_changes_no_score(index: SearchIndex) -> None:
    await index.clear(STAMP)
    entries = [
        entry(f"walrus sleeps {n}", project="pq"[n % 2], vector=[1.0, n / 9, 0.0])
        for n in range(9)
    ]
    await index.upsert([*entries, entry("walrus sleeps never", vector=Z)])

    def by_id(legs: Legs) -> dict[str, tuple[float, float]]:
        words = {h.chunk_id: h.score for h in legs.bm25 or []} | legs.bm25_of_dense
        near = {h.chunk_id: h.score for h in legs.dense or []} | legs.dense_of_bm25
        return {key: (words[key], near[key]) for key in words.keys() | near.keys()}

    async def asked(where: Where, limit: int) -> Legs:
        return await index.search(
            query="walrus sleeps 3",
            vector=X,
            stamp=STAMP,
            limit=limit,
            where=where,
            pairs=True,
        )

    every = by_id(await asked(EVERYWHERE, 50))
    legs = await asked(Where(projects=["q"]), 2)

    assert (legs.points, legs.terms) == (10, 3)
    few = by_id(legs)
    assert 2 <= len(few) <= 4
    for key, scores in few.items():
        assert scores == pytest.approx(every[key])


async def test_words_side_by_side_count_extra_only_when_asked(
    index: SearchIndex,
) -> None:
    apart = entry("sleeping otter walrus", key="a")
    beside = entry("sleeping the walrus otter", key="b")
    await index.upsert([apart, beside])

    async def scores(query: str, pairs: bool) -> dict[str, float]:
        legs = await index.search(query=query, limit=9, where=EVERYWHERE, pairs=pairs)
        assert legs.terms == 2
        return {hit.chunk_id: hit.score for hit in legs.bm25 or []}

    plain = await scores("sleep walrus", False)
    assert plain[apart.chunk.id] == pytest.approx(plain[beside.chunk.id])
    paired = await scores("sleep walrus", True)
    assert paired[beside.chunk.id] > paired[apart.chunk.id]
    assert paired[apart.chunk.id] == pytest.approx(plain[apart.chunk.id])
    turned = await scores("walrus sleep", True)
    assert turned == pytest.approx(plain)


async def test_it_tells_by_what_it_knows_a_chunk(index: SearchIndex) -> None:
    await index.clear(STAMP)
    one = entry("walrus otter", vector=[0.6, 0.8, 0.0])
    two, bare = entry("walrus", path="y"), entry("the", path="")
    await index.upsert([one, two, bare])
    ids = [one.chunk.id, two.chunk.id, bare.chunk.id, derived_id("no"), "no uuid"]

    held = await index.vectors(ids, stamp=STAMP)

    assert held.keys() == set(ids[:3])
    assert list(held[one.chunk.id].dense or []) == pytest.approx([0.6, 0.8, 0.0])
    assert held[two.chunk.id].dense is None
    assert held[bare.chunk.id] == Vectors()
    shared = held[one.chunk.id].words.keys() & held[two.chunk.id].words.keys()
    assert len(shared) == 1
    assert len(held[one.chunk.id].words) == 3  # with its path, and without pairs
    assert all(weight > 0 for weight in held[one.chunk.id].words.values())
    assert (await index.vectors(ids))[one.chunk.id].dense is None
    assert await index.vectors([]) == {}
    with pytest.raises(OtherVectors, match="m@1:3"):
        await index.vectors(ids, stamp=OTHER)


async def test_stop_words_leave_the_other_leg_alone(index: SearchIndex) -> None:
    await index.clear(STAMP)
    await index.upsert([entry("walrus", vector=X)])

    legs = await index.search(
        query="the", vector=X, stamp=STAMP, limit=5, where=EVERYWHERE
    )

    assert legs.bm25 == []
    assert [h.chunk_id for h in legs.dense or []] == [entry("walrus").chunk.id]


async def test_every_field_of_where_must_hold(index: SearchIndex) -> None:
    await index.clear(STAMP)
    one = entry("walrus one", project="a", path="src/ü/one.py", vector=X)
    two = entry("walrus two", Collection.ERROR_SOLUTIONS, path="src2.py", vector=Y)
    odd = {'a.b["c"]': "=x", "lang": "py"}
    three = entry("walrus three", path="doc/src/c.md", metadata=odd, vector=Z)
    await index.upsert([one, two, three])
    every = {"one": one.chunk.id, "two": two.chunk.id, "three": three.chunk.id}

    for where, names in (
        (Where(collections=[Collection.ERROR_SOLUTIONS]), "two"),
        (Where(collections=list(Collection)), "one two three"),
        (Where(collections=[]), ""),
        (Where(projects=["a", "nobody"]), "one"),
        (Where(projects=[]), ""),
        (Where(path_prefix="src"), "one two"),
        (Where(path_prefix="src/"), "one"),
        (Where(path_prefix="src/ü"), "one"),
        (Where(path_prefix="src/ü/"), "one"),
        (Where(path_prefix="rc/"), ""),
        (Where(path_prefix="doc/src/c.md"), "three"),
        (Where(path_prefix="doc/src/c.md/"), ""),
        (Where(path_prefix="a/" * 20), ""),
        (Where(path_prefix="SRC"), ""),
        (Where(path_prefix=""), "one two three"),
        (Where(metadata={"lang": "py"}), "three"),
        (Where(metadata=odd), "three"),
        (Where(metadata={"lang": "p"}), ""),
        (Where(metadata={"lang": "py", "more": "x"}), ""),
        (Where(metadata={'a.b["c"]=': "x"}), ""),
        (Where(metadata={}), "one two three"),
        (Where(projects=["p"], path_prefix="src"), "two"),
        (Where(projects=["a"], collections=[Collection.ERROR_SOLUTIONS]), ""),
    ):
        wanted = {every[name] for name in names.split()}
        assert set(await found(index, "walrus", where)) == wanted, where
        assert set(await near(index, X, where)) == wanted, where


async def test_the_deepest_folder_is_found_by_its_prefix(index: SearchIndex) -> None:
    deep = entry("walrus", path="a/" * 40 + "x.py")
    await index.upsert([deep, entry("walrus too", path="b/x.py")])

    for levels in (1, 15, 16, 17, 40):
        where = Where(path_prefix="a/" * levels)
        assert await found(index, "walrus", where) == [deep.chunk.id]
    assert await found(index, "walrus", Where(path_prefix="a/" * 41)) == []


async def test_an_upsert_replaces_and_a_removal_forgets(index: SearchIndex) -> None:
    await index.clear(STAMP)
    await index.upsert([entry("walrus", key="k", path="old", vector=X)])
    await index.upsert([entry("otter", key="k", path="new")])
    assert await index.count() == 1
    assert await found(index, "walrus") == []
    assert await found(index, "otter", Where(path_prefix="old")) == []
    assert await near(index, X) == []  # it lost its vector

    await index.remove([entry("", key="k").chunk.id, derived_id("unknown"), "no uuid"])

    assert await index.count() == 0
    assert await found(index, "otter") == []
    await index.upsert([])
    await index.remove([])


@pytest.mark.parametrize("query", ["", "\0", "\ud800", '"NEAR(', "x" * 8000, "ü 🦉"])
async def test_any_text_is_a_valid_query(index: SearchIndex, query: str) -> None:
    await index.upsert([entry("walrus")])

    assert await found(index, query) == []


async def test_an_entry_is_read_back_whole(index: SearchIndex) -> None:
    one = entry(
        "walrus\n🦉\0",
        Collection.SKILLS_PATTERNS,
        heading="A > B",
        path="src/ü.py",
        metadata={"a.b": "c", "": "empty"},
    )
    bare = entry("otter")
    bare = Entry(
        chunk=Chunk(
            id=bare.chunk.id,
            document_id="d",
            ordinal=0,
            heading="",
            text="otter",
            start=0,
            end=5,
        ),
        document=bare.document,
    )
    await index.upsert([one, bare])

    ids = [one.chunk.id, bare.chunk.id, derived_id("unknown"), "no uuid"]
    assert await index.entries(ids) == {
        one.chunk.id: (one.chunk, one.document),
        bare.chunk.id: (bare.chunk, bare.document),
    }
    assert await index.entries([]) == {}


async def test_what_no_encoding_can_hold_is_replaced(index: SearchIndex) -> None:
    broken = entry(
        "walrus \ud800", key="k", path="\udfff.py", metadata={"\ud800": "\ud800"}
    )
    await index.upsert([broken])

    assert await found(index, "walrus") == [broken.chunk.id]
    assert (await index.entries([broken.chunk.id]))[broken.chunk.id][1].path == "?.py"
    where = Where(path_prefix="\udfff", metadata={"\ud800": "\ud800"})
    assert await found(index, "walrus", where) == [broken.chunk.id]


async def test_ids_come_in_order_and_in_pages(index: SearchIndex) -> None:
    entries = [entry(f"walrus {n}") for n in range(25)]
    await index.upsert(entries)
    every = sorted(one.chunk.id for one in entries)

    assert await index.ids() == every
    assert await index.ids(limit=10) == every[:10]
    assert await index.ids(after=every[9], limit=10) == every[10:20]
    assert await index.ids(after=every[19], limit=10) == every[20:]
    assert await index.ids(after=every[-1]) == []
    await index.remove([every[4]])
    assert await index.ids(after=every[4], limit=2) == every[5:7]


async def test_vectors_of_another_model_are_never_compared(index: SearchIndex) -> None:
    assert await index.stamp() is None
    for stamp in (STAMP, None):
        with pytest.raises(OtherVectors, match="none"):
            await index.search(vector=X, stamp=stamp, limit=1, where=EVERYWHERE)
    await index.clear(STAMP)
    assert await index.stamp() == STAMP
    await index.upsert([entry("walrus", vector=X)])
    for stamp in (OTHER, None):
        with pytest.raises(OtherVectors, match="m@1:3"):
            await index.search(vector=X, stamp=stamp, limit=1, where=EVERYWHERE)

    assert await found(index, "walrus") == [entry("walrus").chunk.id]


@pytest.mark.parametrize(
    "vector", [[1.0], [1.0] * 4, [], [0.0] * 3, [math.nan, 0.0, 0.0], [math.inf] * 3]
)
async def test_what_is_no_vector_of_its_dimension_is_refused(
    index: SearchIndex, vector: list[float]
) -> None:
    await index.clear(STAMP)
    good, bad = entry("walrus", vector=X), entry("otter", vector=vector)

    with pytest.raises(InvalidInput, match=r"entries\.1\.vector"):
        await index.upsert([good, bad])
    with pytest.raises(InvalidInput, match="vector"):
        await index.search(vector=vector, stamp=STAMP, limit=1, where=EVERYWHERE)

    assert await index.count() == 0


async def test_an_index_without_a_stamp_takes_words_only(index: SearchIndex) -> None:
    with pytest.raises(InvalidInput, match="takes no vectors"):
        await index.upsert([entry("walrus", vector=X)])
    await index.upsert([entry("walrus")])
    assert await found(index, "walrus") == [entry("walrus").chunk.id]


async def test_clearing_starts_empty(index: SearchIndex) -> None:
    await index.clear(STAMP)
    await index.upsert([entry("walrus", vector=X)])

    await index.clear(OTHER)

    assert await index.count() == 0
    assert await found(index, "walrus") == []
    assert await index.stamp() == OTHER
    await index.upsert([entry("otter", vector=Y)])
    assert await index.count() == 1
