"""What every KnowledgeStore promises."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.errors import NotFound
from nestor.model.ids import derived_id
from nestor.model.knowledge import Chunk, Collection, Document

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture
def store(database: Database) -> SqlKnowledgeStore:
    return SqlKnowledgeStore(database)


def make(
    path: str,
    *texts: str,
    collection: Collection = Collection.CODEBASE_CONTEXT,
    heading: str = "",
) -> tuple[Document, str, list[Chunk]]:
    owner = derived_id("document", "p", path)
    chunks, content = [], ""
    for ordinal, text in enumerate(texts):
        start = len(content)
        content += text + "\n"
        chunks.append(
            Chunk(
                id=derived_id(owner, text),
                document_id=owner,
                ordinal=ordinal,
                heading=heading,
                text=text,
                start=start,
                end=start + len(text),
            )
        )
    document = Document(
        id=owner,
        project="p",
        path=path,
        collection=collection,
        content_hash=derived_id(content),
        size_bytes=len(content.encode()),
        chunks=len(chunks),
        metadata={"lang": "fr", "é": "🦉"},
        added_at=NOW,
    )
    return document, content, chunks


async def found(
    store: SqlKnowledgeStore,
    query: str,
    collections: Sequence[Collection] | None = None,
) -> list[str]:
    hits = await store.search(query, limit=10, collections=collections)
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
    for path in ("b", "a", "c"):
        await store.put(*make(path, path))

    assert [document.path for document in await store.all(limit=2)] == ["a", "b"]


async def test_new_chunks_wait_for_the_index_and_the_same_ones_do_not_again(
    store: SqlKnowledgeStore,
) -> None:
    document, content, chunks = make("a", "one", "two")
    await store.put(document, content, chunks)
    assert [c for c, _ in await store.unindexed()] == chunks
    assert [c for c, _ in await store.unindexed(limit=1)] == chunks[:1]
    await store.mark_indexed([c.id for c in chunks])
    assert await store.unindexed() == []

    document, content, changed = make("a", "zero", "two")
    gone = await store.put(document, content, changed)

    assert gone == [chunks[0].id]
    assert await store.removed() == gone
    assert [c for c, _ in await store.unindexed()] == [changed[0]]
    stored = await store.chunks([chunks[1].id])
    assert stored[chunks[1].id][0] == changed[1], "its place in the text has moved"


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


async def test_another_collection_sends_the_chunks_to_the_index_again(
    store: SqlKnowledgeStore,
) -> None:
    document, content, chunks = make("a", "one")
    await store.put(document, content, chunks)
    await store.mark_indexed([chunks[0].id])

    moved = msgspec.structs.replace(document, collection=Collection.BEST_PRACTICES)
    assert await store.put(moved, content, chunks) == []

    assert [c for c, _ in await store.unindexed()] == chunks


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


async def test_search_keeps_to_the_collections(store: SqlKnowledgeStore) -> None:
    await store.put(*make("a", "walrus one"))
    await store.put(*make("b", "walrus two", collection=Collection.ERROR_SOLUTIONS))

    assert await found(store, "walrus", [Collection.ERROR_SOLUTIONS]) == ["walrus two"]
    assert await found(store, "walrus", []) == []
    assert len(await found(store, "walrus")) == 2


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
        hits = await store.search(query, limit=5)
        assert len(hits) == ("walrus" in query.lower() and query != ""), query


@given(st.text(max_size=60))
@example("NEAR(")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_at_all_makes_search_raise(
    tmp_path_factory: pytest.TempPathFactory, query: str
) -> None:
    async def ask() -> None:
        path = tmp_path_factory.getbasetemp() / "nasty.db"
        async with Database.open(f"sqlite:///{path}") as database:
            await SqlKnowledgeStore(database).search(query, limit=5)

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
    await store.delete(document.id)
    versions.append(await store.version())

    assert versions == sorted(set(versions))


async def test_counts_tell_what_waits(store: SqlKnowledgeStore) -> None:
    document, content, chunks = make("a", "one", "two")
    await store.put(document, content, chunks)
    await store.mark_indexed([chunks[0].id])
    await store.put(*make("a", "two"))

    counts = await store.counts()

    assert msgspec.structs.astuple(counts) == (1, 1, 1, 1)


async def test_reset_marks_every_chunk(store: SqlKnowledgeStore) -> None:
    document, content, chunks = make("a", "one", "two")
    await store.put(document, content, chunks)
    await store.mark_indexed([c.id for c in chunks])

    assert await store.reset_index() == 2

    assert len(await store.unindexed()) == 2


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


async def test_concurrent_writers_of_one_name_leave_one_whole_text(
    store: SqlKnowledgeStore,
) -> None:
    await asyncio.gather(
        *(store.put(*make("a", f"walrus {n}", f"otter {n}")) for n in range(10))
    )

    (document,) = await store.all()
    assert document.chunks == 2
    texts = [chunk.text.split()[1] for chunk, _ in await store.unindexed()]
    assert len(texts) == 2
    assert len(set(texts)) == 1
    assert len(await store.removed()) == 18
