"""What every KnowledgeStore promises, on real SQLite and real PostgreSQL.

Over 400 lines because a port has one file of tests.
"""

import asyncio
import hashlib
import struct
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError
from tests.contracts.outside import Outside

from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.errors import InvalidInput, NotFound
from nestor.model.ids import derived_id
from nestor.model.knowledge import (
    Chunk,
    Collection,
    Document,
    EmbeddingStamp,
    Skill,
    SkillKind,
    SkillStatus,
    Where,
)
from nestor.ports.knowledge_store import KnowledgeCounts

EVERYWHERE = Where()
STAMP = EmbeddingStamp(model="m", revision="1", dimension=3)
OTHER = EmbeddingStamp(model="m", revision="2", dimension=2)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture
def store(database: Database) -> SqlKnowledgeStore:
    return SqlKnowledgeStore(database)


def make(
    path: str,
    *texts: str,
    collection: Collection = Collection.CODEBASE_CONTEXT,
    heading: str = "",
    project: str = "p",
    metadata: dict[str, str] | None = None,
) -> tuple[Document, str, list[Chunk]]:
    owner = derived_id("document", project, ascii(path))
    chunks, content = [], ""
    for ordinal, text in enumerate(texts):
        start = len(content)
        content += text + "\n"
        chunks.append(
            Chunk(
                id=derived_id(owner, ascii(text)),
                document_id=owner,
                ordinal=ordinal,
                heading=heading,
                text=text,
                start=start,
                end=start + len(text),
                first_line=ordinal + 1,
                last_line=ordinal + 1,
                page=ordinal + 7,
            )
        )
    document = Document(
        id=owner,
        project=project,
        path=path,
        collection=collection,
        content_hash=derived_id(ascii(content)),
        size_bytes=len(content.encode(errors="replace")),
        chunks=len(chunks),
        metadata={"lang": "fr", "é": "🦉"} if metadata is None else metadata,
        added_at=NOW,
    )
    return document, content, chunks


async def waiting(store: SqlKnowledgeStore, limit: int = 500) -> list[Chunk]:
    return [entry.chunk for entry in await store.waiting(None, limit=limit)]


async def found(
    store: SqlKnowledgeStore,
    query: str,
    where: Where = EVERYWHERE,
) -> list[str]:
    hits = await store.search(query, limit=10, where=where)
    pairs = await store.chunks([hit.chunk_id for hit in hits])
    return [pairs[hit.chunk_id][0].text for hit in hits]


async def test_a_document_survives_the_round_trip(store: SqlKnowledgeStore) -> None:
    document, content, chunks = make("a.md", "écris 🦉", "deux", heading="A > B")

    assert await store.put(document, content, chunks) == []

    assert await store.get(document.id) == document
    assert await store.find("p", "a.md") == document
    assert await store.find("p", "b.md") is None
    assert await store.all() == [document]
    assert await store.chunks([chunks[1].id, "unknown"]) == {
        chunks[1].id: (chunks[1], document)
    }


async def test_documents_come_by_project_and_path(store: SqlKnowledgeStore) -> None:
    for path in ("b", "a", "B", "é", "a/c", "a-c"):
        await store.put(*make(path, path))
    await store.put(*make("z", "z", project="o"))

    assert [d.path for d in await store.all(limit=3)] == ["z", "B", "a"]
    inside = [d.path for d in await store.all(project="p")]
    assert inside == ["B", "a", "a-c", "a/c", "b", "é"], "as bytes, in any language"
    assert await store.all(project="none") == []
    after = [d.path for d in await store.all(after=("p", "a-c"), limit=2)]
    assert after == ["a/c", "b"]
    assert len(await store.all(after=("o", "a"))) == 7
    assert await store.all(after=("p", "é")) == []


async def test_the_content_is_kept_and_hashes_name_every_path(
    store: SqlKnowledgeStore,
) -> None:
    document, content, chunks = make("a", "one", "two")
    await store.put(document, content, chunks)
    other = make("b", "three", project="o")[0]
    await store.put(other, "three", [])

    assert await store.content(document.id) == "one\ntwo\n"
    assert await store.hashes("p") == {"a": (document.id, document.content_hash)}
    assert await store.hashes("o") == {"b": (other.id, other.content_hash)}
    assert await store.hashes("none") == {}
    with pytest.raises(NotFound):
        await store.content("none")


async def test_what_no_database_holds_becomes_a_sign_of_the_same_length(
    store: SqlKnowledgeStore,
) -> None:
    document, content, chunks = make(
        "a\0", "wal\0rus \ud800", heading="h\0", metadata={"k\0": "\0v", "\\u0000": "x"}
    )
    await store.put(document, content, chunks)

    assert await store.content(document.id) == "wal\ufffdrus \ufffd\n"
    (entry,) = await store.waiting(None)
    assert (entry.chunk.text, entry.chunk.heading) == ("wal\ufffdrus \ufffd", "h\ufffd")
    assert entry.document.metadata == {"k\ufffd": "\ufffdv", "\\u0000": "x"}
    assert await store.find("p", "a\0") == entry.document
    assert await found(store, "rus", Where(metadata={"k\0": "\0v"}))
    assert await found(store, "rus", Where(path_prefix="a\0"))
    with pytest.raises(NotFound):
        await store.get("a\0b")


async def test_new_chunks_wait_for_the_index_and_the_same_ones_do_not_again(
    store: SqlKnowledgeStore,
) -> None:
    document, content, chunks = make("a", "one", "two", "three")
    await store.put(document, content, chunks)
    assert await waiting(store) == chunks
    assert await waiting(store, limit=1) == chunks[:1]
    await store.mark_indexed(await store.waiting(None))
    assert await waiting(store) == []

    document, content, changed = make("a", "uno", "two", "four!", "three")
    gone = await store.put(document, content, changed)

    assert gone == [chunks[0].id]
    assert await store.removed() == gone
    # "three" has moved, which an index that answers by itself must know.
    assert await waiting(store) == [changed[0], *changed[2:]]
    assert (await store.chunks([changed[1].id]))[changed[1].id][0] == changed[1]


async def test_a_chunk_that_comes_back_is_no_longer_removed(
    store: SqlKnowledgeStore,
) -> None:
    await store.put(*make("a", "one"))
    await store.put(*make("a", "two"))
    assert len(await store.removed()) == 1

    await store.put(*make("a", "one"))

    two = make("a", "two")[2][0]
    assert await store.removed() == [two.id]
    await store.forget_removed([two.id])
    assert await store.removed() == []


@pytest.mark.parametrize(
    "change", [{"collection": Collection.BEST_PRACTICES}, {"metadata": {"k": "v"}}]
)
async def test_what_the_index_says_of_a_document_sends_its_chunks_there_again(
    store: SqlKnowledgeStore, change: dict[str, Any]
) -> None:
    document, content, chunks = make("a", "one")
    await store.put(document, content, chunks)
    await store.mark_indexed(await store.waiting(None))

    changed = msgspec.structs.replace(document, **change)
    assert await store.put(changed, content, chunks) == []

    assert [(e.chunk, e.document) for e in await store.waiting(None)] == [
        (chunks[0], changed)
    ]


async def test_what_was_replaced_while_the_index_was_filled_goes_on_waiting(
    store: SqlKnowledgeStore,
) -> None:
    document, content, chunks = make("a", "one")
    await store.put(document, content, chunks)
    taken = await store.waiting(None)
    moved = msgspec.structs.replace(document, collection=Collection.BEST_PRACTICES)
    await store.put(moved, content, chunks)

    await store.mark_indexed(taken)
    assert await waiting(store) == chunks

    taken = await store.waiting(None)
    await store.delete(document.id)
    await store.mark_indexed(taken)
    assert await store.counts() == KnowledgeCounts(
        documents=0, chunks=0, waiting=0, removed=1, without_vector=0
    )


async def test_a_text_with_another_id_takes_over_the_name(
    store: SqlKnowledgeStore,
) -> None:
    old, content, chunks = make("a", "one")
    await store.put(old, content, chunks)

    new = msgspec.structs.replace(old, id="other")
    mine = [msgspec.structs.replace(chunks[0], id="other-chunk", document_id="other")]
    assert await store.put(new, content, mine) == [chunks[0].id]

    assert await store.all() == [new]
    assert await store.removed() == [chunks[0].id]


async def test_several_are_put_as_if_one_after_the_other(
    store: SqlKnowledgeStore, tmp_path: Path
) -> None:
    """Replaced, unchanged, new, twice in one call, and a name that another has just left."""
    a, b, c = make("a", "one", "two"), make("b", "three"), make("c", "four")
    other, content, chunks = make("c", "four")
    other = msgspec.structs.replace(other, id="other", path="b")
    chunks = [
        msgspec.structs.replace(one, id="other-chunk", document_id="other")
        for one in chunks
    ]
    renamed = msgspec.structs.replace(b[0], path="moved")
    calls = [
        [a, b, make("empty")],
        [make("a", "two", "new"), c, b],
        [make("a", "first"), make("a", "one", "two"), c],
        [(renamed, b[1], b[2]), (other, content, chunks), make("a")],
    ]
    url = f"sqlite:///{tmp_path}/one-by-one.db"
    async with Database.open(url) as database:
        by_one = SqlKnowledgeStore(database)
        for items in calls:
            gone = await store.put_all(items)
            singly = [key for item in items for key in await by_one.put(*item)]
            assert await store.all() == await by_one.all()
            assert await waiting(store) == await waiting(by_one)
            assert await store.removed() == await by_one.removed()
            assert set(gone) <= set(singly)
            await store.mark_indexed(await store.waiting(None))
            await by_one.mark_indexed(await by_one.waiting(None))
    assert [one.path for one in await store.all()] == ["a", "b", "c", "empty", "moved"]
    assert set(await store.get_all([a[0].id, "other", "unknown"])) == {a[0].id, "other"}
    assert await store.put_all([]) == []


async def test_of_several_all_are_stored_or_none(store: SqlKnowledgeStore) -> None:
    document, content, chunks = make("b", "same")
    with pytest.raises(IntegrityError):
        await store.put_all([make("a", "one"), (document, content, chunks * 2)])
    assert await store.all() == []
    assert await waiting(store) == []


async def test_a_deleted_document_is_gone_from_search_too(
    store: SqlKnowledgeStore,
) -> None:
    document, content, chunks = make("a", "walrus one", "walrus two")
    await store.put(document, content, chunks)

    assert set(await store.delete(document.id)) == {c.id for c in chunks}

    assert await found(store, "walrus") == []
    assert set(await store.removed()) == {c.id for c in chunks}
    assert await store.chunks([chunks[0].id]) == {}
    with pytest.raises(NotFound):
        await store.get(document.id)
    with pytest.raises(NotFound):
        await store.delete(document.id)


async def test_a_replaced_text_is_no_longer_found(store: SqlKnowledgeStore) -> None:
    await store.put(*make("a", "the walrus sleeps"))
    await store.put(*make("a", "the otter sleeps"))

    assert await found(store, "walrus") == []
    assert await found(store, "otter") == ["the otter sleeps"]


async def test_search_ranks_by_words_and_looks_into_headings(
    store: SqlKnowledgeStore,
) -> None:
    await store.put(*make("a", "the walrus likes the ice", "an otter likes a walrus"))
    await store.put(*make("b", "nothing here", heading="Penguins"))

    assert await found(store, "What does an OTTER like?") == [
        "an otter likes a walrus",
        "the walrus likes the ice",
    ]
    assert await found(store, "penguins") == ["nothing here"]
    assert await found(store, "giraffe") == []


async def test_words_are_found_inside_of_names_and_paths(
    store: SqlKnowledgeStore,
) -> None:
    await store.put(
        *make("a", "call src/walrus.py:otter_count(seal-cub)", "the who", "été 海象")
    )
    for word in ("walrus", "otter", "count", "seal", "cub", "otter_count", "src"):
        assert len(await found(store, word)) == 1, word
    assert await found(store, "otter_seal") == [], "a name is found as it is written"
    assert await found(store, "the who") == ["the who"], "words of no weight, too"
    assert await found(store, "ÉTÉ") == await found(store, "海象") == ["été 海象"]


async def test_a_rare_word_weighs_more_than_two_frequent_ones(
    store: SqlKnowledgeStore,
) -> None:
    await store.put(*make("a", *(f"walrus otter {n}" for n in range(50)), "seal only"))

    hits = await found(store, "walrus otter seal")
    assert hits[0] == "seal only"
    assert len(hits) == 10


async def test_search_keeps_to_where(store: SqlKnowledgeStore) -> None:
    lessons = Collection.ERROR_SOLUTIONS
    await store.put(*make("src/a_b.py", "walrus one", metadata={"lang": "py"}))
    await store.put(*make("src/axb.py", "walrus two", collection=lessons, metadata={}))
    await store.put(*make("Src/50%.md", "walrus three", project="o"))

    async def numbers(**where: Any) -> set[str]:
        return {
            text.split()[1] for text in await found(store, "walrus", Where(**where))
        }

    assert await numbers() == {"one", "two", "three"}
    assert await numbers(collections=[lessons]) == {"two"}
    assert await numbers(collections=[]) == set()
    assert await numbers(projects=["o"]) == {"three"}
    assert await numbers(projects=[]) == set()
    assert await numbers(path_prefix="src/") == {"one", "two"}
    assert await numbers(path_prefix="src/a_") == {"one"}, "no sign means another"
    assert await numbers(path_prefix="%") == set()
    assert await numbers(path_prefix="Src/50%") == {"three"}
    assert await numbers(path_prefix="") == {"one", "two", "three"}
    assert await numbers(metadata={"lang": "py"}) == {"one"}
    assert await numbers(metadata={"lang": "p"}) == set()
    assert await numbers(metadata={"é": "🦉", "lang": "fr"}) == {"three"}
    assert await numbers(metadata={"é": "🦉", "lang": "py"}) == set()
    assert await numbers(projects=["p"], path_prefix="src/", metadata={}) == {
        *("one", "two")
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ('a"b', 'c"d'),
        ("a\\", "\\"),
        ("$.a[0]", "'; DROP TABLE chunk;--"),
        ("a b.c", "null"),
        ("", ""),
        ("tab\t", "line\nline"),
        (",", '","x":"y'),
    ],
)
async def test_metadata_is_compared_as_it_is_whatever_it_holds(
    store: SqlKnowledgeStore, name: str, value: str
) -> None:
    await store.put(*make("a", "walrus one", metadata={name: value, "x": "1"}))
    await store.put(*make("b", "walrus two", metadata={name + "x": value, "y": name}))
    await store.put(*make("c", "walrus three", metadata={"x": f'"{name}":"{value}"'}))

    assert await found(store, "walrus", Where(metadata={name: value})) == ["walrus one"]
    assert await found(store, "walrus", Where(metadata={name: value + "x"})) == []


NASTY = [
    'walrus"',
    '"',
    '""',
    "NEAR(walrus otter, 2)",
    "walrus*",
    "-walrus",
    "^walrus",
    "text:walrus",
    "{text heading}: walrus",
    "walrus AND",
    "OR",
    "NOT",
    "(walrus",
    "walrus + otter",
    "'; DROP TABLE chunk;--",
    "\0walrus",
    "\ud800 walrus",
    "___",
    "%",
    "a" * 8000,
    "w " * 4000,
]


async def test_any_text_is_a_valid_query(store: SqlKnowledgeStore) -> None:
    await store.put(*make("a", "walrus"))

    for query in NASTY:
        hits = await store.search(query, limit=5, where=EVERYWHERE)
        assert len(hits) == ("walrus" in query.lower() and query != ""), query


@given(texts=st.lists(st.text(max_size=60), max_size=20))
@example(texts=["NEAR(", "\0", "\ud800", "%s", ":x", "\\"])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_text_at_all_makes_a_search_raise(
    database_url: str, texts: list[str]
) -> None:
    async def ask() -> None:
        async with Database.open(database_url) as database:
            store = SqlKnowledgeStore(database)
            for text in texts:
                where = Where(path_prefix=text, metadata={text: text}, projects=[text])
                await store.search(text, limit=5, where=where)

    asyncio.run(ask())


async def test_every_change_of_content_raises_the_version(
    store: SqlKnowledgeStore,
) -> None:
    versions = [await store.version()]
    document, content, chunks = make("a", "one")
    await store.put(document, content, chunks)
    versions.append(await store.version())
    await store.put(*make("a", "two"))
    versions.append(await store.version())
    await store.mark_indexed(await store.waiting(None))
    versions.append(await store.version())
    await store.reset_index()
    versions.append(await store.version())
    await store.delete(document.id)
    versions.append(await store.version())
    await store.put_skill(a_skill())
    versions.append(await store.version())

    assert versions == sorted(set(versions))


async def test_counts_tell_what_waits(store: SqlKnowledgeStore) -> None:
    await store.put(*make("a", "one", "two"))
    await store.mark_indexed(await store.waiting(None))
    await store.put(*make("a", "one", "three"))

    assert await store.counts() == KnowledgeCounts(
        documents=1, chunks=2, waiting=1, removed=1, without_vector=1
    )


async def test_reset_marks_every_chunk(store: SqlKnowledgeStore) -> None:
    document, content, chunks = make("a", "one", "two")
    await store.put(document, content, chunks)
    await store.mark_indexed(await store.waiting(None))

    assert await store.reset_index() == 2

    assert await waiting(store) == chunks


async def test_all_chunks_are_read_in_an_order_that_can_be_gone_on_with(
    store: SqlKnowledgeStore,
) -> None:
    chunks = []
    for n in range(4):
        document, content, mine = make(f"{n}", f"one {n}", f"two {n}")
        await store.put(document, content, mine)
        chunks += mine

    numbers, read = [0], []
    while page := await store.each(None, after=numbers[-1], limit=3):
        numbers += [number for number, _ in page]
        read += [entry.chunk for _, entry in page]
    assert read == chunks
    assert numbers == sorted(set(numbers))

    ids: list[str] = []
    while some := await store.ids(after=ids[-1] if ids else None, limit=3):
        ids += some
    assert ids == sorted(chunk.id for chunk in chunks)


# Vectors.


async def test_a_vector_sends_what_stands_by_its_words_to_the_index_once_more(
    store: SqlKnowledgeStore,
) -> None:
    await store.put(*make("a", "one", "two"))
    (one, two) = await store.waiting(STAMP)
    assert (one.vector, two.vector) == (None, None)
    await store.mark_indexed([one])
    assert [e.chunk for e in await store.waiting(STAMP)] == [two.chunk]

    lacking = await store.unembedded(STAMP)
    assert {text for _, text in lacking} == {"one", "two"}
    await store.put_vectors(STAMP, {digest: [0.5, 0.25, -1] for digest, _ in lacking})
    assert await store.unembedded(STAMP) == []

    known = await store.waiting(STAMP)
    assert [(e.chunk, e.vector) for e in known] == [
        (two.chunk, [0.5, 0.25, -1.0]),  # stands nowhere yet: first
        (one.chunk, [0.5, 0.25, -1.0]),
    ]
    assert await waiting(store) == [two.chunk], "an index that takes no vectors"
    await store.mark_indexed(known)
    assert await store.waiting(STAMP) == []
    assert (await store.counts()).without_vector == 0


async def test_a_vector_that_comes_while_the_index_is_filled_is_not_forgotten(
    store: SqlKnowledgeStore,
) -> None:
    await store.put(*make("a", "one"))
    taken = await store.waiting(STAMP)
    ((digest, _),) = await store.unembedded(STAMP)
    await store.put_vectors(STAMP, {digest: [1, 0, 0]})

    await store.mark_indexed(taken)

    assert (await store.counts()).without_vector == 1
    assert [e.vector for e in await store.waiting(STAMP)] == [[1.0, 0.0, 0.0]]


async def test_vectors_of_another_model_are_none(store: SqlKnowledgeStore) -> None:
    await store.put(*make("a", "one"))
    ((digest, text),) = await store.unembedded(STAMP)
    await store.put_vectors(STAMP, {digest: [1, 0, 0]})
    await store.mark_indexed(await store.waiting(OTHER))

    assert await store.waiting(OTHER) == []
    assert await store.unembedded(OTHER) == [(digest, text)]
    ((_, entry),) = await store.each(OTHER)
    assert entry.vector is None
    ((_, entry),) = await store.each(STAMP)
    assert entry.vector == [1.0, 0.0, 0.0]


async def test_a_text_that_stands_twice_is_embedded_once(
    store: SqlKnowledgeStore,
) -> None:
    await store.put(*make("a", "same", "same but not", heading="H"))
    await store.put(*make("b", "same", heading="H"))
    await store.put(*make("c", "same", heading="I"))

    lacking = await store.unembedded(STAMP)
    assert {text for _, text in lacking} == {"H\nsame", "H\nsame but not", "I\nsame"}
    digest = next(digest for digest, text in lacking if text == "H\nsame")
    await store.put_vectors(STAMP, {digest: [1, 2, 3]})

    entries = await store.waiting(STAMP)
    assert [e.vector is not None for e in entries] == [True, False, True, False]
    # The same text again, in a new place, is known already.
    await store.put(*make("d", "same", heading="H"))
    assert (await store.waiting(STAMP))[-1].vector == [1.0, 2.0, 3.0]


async def test_what_lacks_a_vector_is_found_wherever_its_digest_stands(
    store: SqlKnowledgeStore,
) -> None:
    done: set[str] = set()
    for n in range(30):
        await store.put(*make(f"{n}", *(f"text {n} {m}" for m in range(5))))
        lacking = await store.unembedded(STAMP, limit=4)
        assert await store.unembedded(STAMP, limit=4) == lacking, "asked again"
        assert not done & {digest for digest, _ in lacking}
        done |= {digest for digest, _ in lacking}
        await store.put_vectors(STAMP, {digest: [1, 2, 3] for digest, _ in lacking})
    while lacking := await store.unembedded(STAMP, limit=7):
        await store.put_vectors(STAMP, {digest: [1, 2, 3] for digest, _ in lacking})
        done |= {digest for digest, _ in lacking}
    assert len(done) == 150
    assert await store.unembedded(STAMP, limit=7) == []
    await store.drop_vectors(None)
    assert len(await store.unembedded(STAMP, limit=200)) == 150


async def test_another_process_sees_what_lacks_a_vector(
    store: SqlKnowledgeStore, database: Database
) -> None:
    other = SqlKnowledgeStore(database)
    await store.put(*make("a", "one"))
    ((digest, _),) = await other.unembedded(STAMP)
    await store.put_vectors(STAMP, {digest: [1, 2, 3]})
    assert await other.unembedded(STAMP) == []
    await store.put(*make("b", *(f"text {n}" for n in range(20))))
    assert len(await other.unembedded(STAMP)) == 20


@pytest.mark.parametrize(
    "vector", [[], [1.0], [1.0] * 4, [0.0] * 3, [1.0, float("nan"), 0.0]]
)
async def test_what_is_no_vector_of_the_model_is_refused_whole(
    store: SqlKnowledgeStore, vector: list[float]
) -> None:
    await store.put(*make("a", "one", "two"))
    (first, _), (second, _) = await store.unembedded(STAMP)

    with pytest.raises(InvalidInput, match="vector"):
        await store.put_vectors(STAMP, {first: [1, 2, 3], second: vector})

    assert len(await store.unembedded(STAMP)) == 2


async def test_vectors_are_dropped_that_nobody_needs(store: SqlKnowledgeStore) -> None:
    await store.put(*make("a", "one", "two"))
    for stamp in (STAMP, OTHER):
        lacking = await store.unembedded(stamp)
        await store.put_vectors(
            stamp, {digest: [1.0] * stamp.dimension for digest, _ in lacking}
        )
    await store.put(*make("a", "one"))
    assert await store.drop_vectors(STAMP) == 3  # two of the other, one of "two"
    assert [e.vector for e in await store.waiting(STAMP)] == [[1.0, 1.0, 1.0]]
    assert len(await store.unembedded(OTHER)) == 1
    assert await store.drop_vectors(STAMP) == 0
    assert await store.drop_vectors(None) == 1
    assert [e.vector for e in await store.waiting(STAMP)] == [None]
    await store.mark_indexed(await store.waiting(STAMP))
    assert await store.waiting(STAMP) == []


async def test_a_vector_is_kept_as_float32_little_endian(
    store: SqlKnowledgeStore, outside: Outside
) -> None:
    await store.put(*make("a", "one"))
    ((digest, text),) = await store.unembedded(STAMP)
    await store.put_vectors(STAMP, {digest: [0.1, -2, 3]})

    ((stored,),) = outside.rows("SELECT vector FROM embedding")
    assert stored == struct.pack("<3f", 0.1, -2, 3)
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    (entry,) = await store.waiting(STAMP)
    assert entry.vector == [struct.unpack("<f", struct.pack("<f", 0.1))[0], -2.0, 3.0]


# Learned patterns.


def a_skill(**changes: Any) -> Skill:
    given: dict[str, Any] = {
        "id": "s1",
        "kind": SkillKind.ERROR_SOLUTION,
        "title": "écris\0",
        "text": "🦉",
        "tags": ["a"],
        "provenance": ["e1"],
        "helpful": 3,
        "lower_bound": 0.25,
        "created_at": NOW,
        "status": SkillStatus.ACTIVE,
    }
    return Skill(**(given | changes))


async def test_a_skill_survives_the_round_trip_and_says_whether_it_changed(
    store: SqlKnowledgeStore,
) -> None:
    assert await store.put_skill(a_skill())
    assert not await store.put_skill(a_skill())
    before = await store.version()
    assert not await store.put_skill(a_skill())
    assert await store.version() == before
    assert await store.skill("s1") == a_skill()

    assert await store.put_skill(a_skill(status=SkillStatus.RETIRED))
    assert await store.skills() == [a_skill(status=SkillStatus.RETIRED)]
    for unknown in ("s2", "s\0"):
        with pytest.raises(NotFound):
            await store.skill(unknown)


async def test_skills_come_newest_first(store: SqlKnowledgeStore) -> None:
    for name, days in (("old", 2), ("new", 0), ("mid", 1)):
        at = NOW - timedelta(days=days)
        await store.put_skill(a_skill(id=name, created_at=at))

    assert [skill.id for skill in await store.skills()] == ["new", "mid", "old"]
    assert [skill.id for skill in await store.skills(limit=1)] == ["new"]


# Size, and many at once.


async def test_a_document_of_thousands_of_chunks_is_replaced_whole(
    store: SqlKnowledgeStore,
) -> None:
    texts = [f"walrus number {n}" for n in range(3000)]
    document, content, chunks = make("a", *texts)
    await store.put(document, content, chunks)

    gone = await store.put(*make("a", "otter"))

    assert len(gone) == 3000
    assert await found(store, "walrus") == []
    assert len(await store.removed(limit=5000)) == 3000


async def test_a_document_of_ten_thousand_chunks_is_stored_within_seconds(
    store: SqlKnowledgeStore,
) -> None:
    big = make(
        "a", *(f"walrus number {n} of many in a long text" for n in range(10_000))
    )
    began = time.monotonic()
    await store.put(*big)
    assert time.monotonic() - began < 20
    began = time.monotonic()
    taken = await store.waiting(STAMP, limit=500)
    await store.mark_indexed(taken)
    assert await store.waiting(STAMP, limit=500) != taken
    assert time.monotonic() - began < 5


async def test_concurrent_writers_of_one_name_leave_one_whole_text(
    store: SqlKnowledgeStore, database: Database
) -> None:
    stores = (store, SqlKnowledgeStore(database))
    await asyncio.gather(
        *(stores[n % 2].put(*make("a", f"walrus {n}", f"otter {n}")) for n in range(10))
    )

    (document,) = await store.all()
    assert document.chunks == 2
    texts = [chunk.text.split()[1] for chunk in await waiting(store)]
    assert len(texts) == 2
    assert len(set(texts)) == 1
    assert len(await store.removed()) == 18


async def test_all_kinds_of_changes_at_once_neither_lock_up_nor_lose_any(
    store: SqlKnowledgeStore, database: Database
) -> None:
    other = SqlKnowledgeStore(database)

    async def write(mine: SqlKnowledgeStore, project: str) -> None:
        for n in range(12):
            await mine.put(*make(f"{n % 4}", f"one {n}", f"two {n}", project=project))

    async def index(mine: SqlKnowledgeStore) -> None:
        for _ in range(12):
            await mine.mark_indexed(await mine.waiting(STAMP))
            lacking = await mine.unembedded(STAMP, limit=5)
            await mine.put_vectors(STAMP, {digest: [1, 2, 3] for digest, _ in lacking})
            await mine.forget_removed(await mine.removed())
            await mine.drop_vectors(STAMP)

    await asyncio.gather(
        write(store, "p"),
        write(other, "p"),
        write(other, "q"),
        index(store),
        index(other),
    )
    counts = await store.counts()
    assert (counts.documents, counts.chunks) == (8, 16)
    while lacking := await store.unembedded(STAMP):
        await store.put_vectors(STAMP, {digest: [1, 2, 3] for digest, _ in lacking})
    while entries := await store.waiting(STAMP):
        await store.mark_indexed(entries)
    counts = await store.counts()
    assert (counts.waiting, counts.without_vector) == (0, 0)


@pytest.mark.parametrize(
    ("question", "index"),
    [
        (
            "SELECT seq FROM chunk_place WHERE indexed = 0 ORDER BY seq LIMIT 9",
            "indexed",
        ),
        ("SELECT id FROM chunk WHERE id > 'x' ORDER BY id LIMIT 9", "id"),
        (
            (
                "SELECT text FROM chunk WHERE digest > 'a' AND NOT EXISTS (SELECT 1 FROM"
                f" embedding e WHERE e.digest = chunk.digest AND stamp = '{STAMP.id}')"
                " ORDER BY digest LIMIT 9"
            ),
            "digest",
        ),
        (
            "SELECT id, path, content_hash FROM document WHERE project = 'p'",
            "project_path",
        ),
    ],
)
async def test_what_the_keeper_asks_all_the_time_is_read_from_an_index(
    store: SqlKnowledgeStore, outside: Outside, question: str, index: str
) -> None:
    await store.put(*make("a", *(f"walrus {n}" for n in range(2000))))
    await store.mark_indexed(await store.waiting(None, limit=1990))
    lacking = await store.unembedded(STAMP, limit=1500)
    await store.put_vectors(STAMP, {digest: [1, 2, 3] for digest, _ in lacking})
    rows = (f"('{n}', '{n}', 'x', 'c', 'h', 1, 'c', '{{}}', 't')" for n in range(3000))
    await outside.run(
        "INSERT INTO document (id, project, path, collection, content_hash, size_bytes,"
        f" content, metadata, added_at) VALUES {', '.join(rows)}"
    )
    sqlite = outside.url.startswith("sqlite")
    await outside.run("ANALYZE")
    plan = repr(outside.rows(f"EXPLAIN {'QUERY PLAN' if sqlite else ''} {question}"))
    assert index in plan
    assert "TEMP B-TREE" not in plan
    assert "Sort" not in plan
    assert "Seq Scan" not in plan
