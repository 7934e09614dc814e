"""AIDB over its real parts: SQLite, Qdrant Edge and the event file are what they are.

Over 400 lines: what the service promises of documents and answers stands in one place.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.aidb_world import WALRUS, World, sections

from nestor.aidb.cache import cache_key
from nestor.aidb.finder import INDEX_DOWN, INDEX_REFILLING, SQL_DOWN
from nestor.errors import InvalidInput, NotFound, TooLarge, Unavailable
from nestor.model.event import CONTEXT_RETRIEVED, DOCUMENT_ADDED
from nestor.model.health import HealthStatus
from nestor.model.ids import derived_id
from nestor.model.knowledge import (
    Collection,
    ContextRequest,
    ContextResult,
    NewDocument,
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path).open()
    yield world
    await world.close()


async def test_context_comes_with_its_source(world: World) -> None:
    document = await world.add("docs/a.md", WALRUS)
    await world.add("b.md", "# Other\n\nNothing of interest.\n")

    result = await world.ask("What do walruses eat?")

    (item,) = result.items
    assert item.source == "p/docs/a.md#Animals > Walrus"
    assert item.kind == "document"
    assert item.provenance == {
        "document_id": document.id,
        "project": "p",
        "path": "docs/a.md",
        "heading": "Animals > Walrus",
        "start": 0,
        "end": len(WALRUS) - 1,
        "first_line": 1,
        "last_line": 5,
        "collection": "codebase-context",
    }
    assert item.text == WALRUS[:-1]
    assert (result.cached, result.degraded) == (False, [])


@pytest.mark.parametrize(
    ("collection", "kind"),
    [
        (Collection.SKILLS_PATTERNS, "skill"),
        (Collection.ERROR_SOLUTIONS, "error-solution"),
        (Collection.BEST_PRACTICES, "best-practice"),
        (Collection.INTERACTION_HISTORY, "document"),
    ],
)
async def test_the_kind_follows_the_collection(
    world: World, collection: Collection, kind: str
) -> None:
    await world.add("a.md", WALRUS, collection=collection)
    await world.add("b.md", "A walrus elsewhere.")

    (item,) = (await world.ask("walrus", collections=[collection])).items

    assert item.kind == kind


async def test_the_same_content_again_changes_nothing(world: World) -> None:
    first = await world.aidb.add(NewDocument(project="p", path="a", content=WALRUS))
    version = await world.store.version()
    second = await world.aidb.add(NewDocument(project="p", path="a", content=WALRUS))

    assert not first.unchanged
    assert second.unchanged
    assert second.document == first.document
    assert await world.store.version() == version
    assert len(world.events.of(DOCUMENT_ADDED)) == 1


async def test_changed_metadata_or_collection_is_a_change(world: World) -> None:
    await world.add("a", WALRUS)
    document = await world.add("a", WALRUS, metadata={"lang": "en"})
    assert document.metadata == {"lang": "en"}

    await world.add("a", WALRUS, collection=Collection.BEST_PRACTICES)

    assert await world.sources("walrus", collections=[Collection.BEST_PRACTICES])
    assert not await world.sources("walrus", collections=[Collection.CODEBASE_CONTEXT])


async def test_an_edit_and_a_deletion_are_seen_at_once(world: World) -> None:
    document = await world.add("a.md", WALRUS)
    assert await world.sources("walrus")
    await world.add(
        "a.md", WALRUS.replace("walrus", "otter").replace("Walrus", "Otter")
    )
    assert await world.sources("walrus") == []
    assert await world.sources("otter") == ["p/a.md#Animals > Otter"]

    await world.aidb.delete(document.id)

    assert await world.sources("otter") == []
    assert await world.index.count() == 0
    with pytest.raises(NotFound):
        await world.aidb.documents.get(document.id)


async def test_an_edit_elsewhere_leaves_a_chunk_and_its_place_in_the_index(
    world: World,
) -> None:
    tail = "\n## Otter\n\nOtters hold hands.\n"
    await world.add("a.md", WALRUS + tail)
    (before,) = (await world.ask("otters hands")).items
    await world.add("a.md", "Preface.\n\n" + WALRUS + tail)
    (after,) = (await world.ask("otters hands")).items

    assert after.id == before.id
    assert after.provenance["start"] == before.provenance["start"] + 10  # type: ignore[operator]


async def test_an_outage_of_the_index_is_said_and_everything_is_still_found(
    world: World,
) -> None:
    await world.aidb.start()
    await world.add("a.md", WALRUS)
    world.index.down = True

    before = await world.ask("walrus clams")
    await world.add("b.md", "The otter eats clams too.\n")
    after = await world.ask("otter clams", limit=1)

    assert before.degraded == [INDEX_DOWN]
    assert [item.source for item in before.items] == ["p/a.md#Animals > Walrus"]
    assert after.degraded == [INDEX_DOWN]
    assert [item.source for item in after.items] == ["p/b.md"]
    _, index = await world.aidb.dependencies()
    assert index.status is HealthStatus.DEGRADED
    assert "switched off" in index.message

    world.index.down = False
    await world.healed()
    assert (await world.ask("otter clams", limit=1)).items[0].source == "p/b.md"
    _, index = await world.aidb.dependencies()
    assert index.status is HealthStatus.HEALTHY


async def test_what_waits_for_the_index_is_found_and_not_cached(world: World) -> None:
    await world.add("a.md", sections(60))
    world.index.down = True
    await world.add("new.md", "Clams: the walrus with the golden tusk eats them.\n")
    await world.back()

    for _ in range(2):
        result = await world.ask("walrus golden tusk clams", limit=3)
        assert result.items[0].source == "p/new.md"
        assert (result.cached, result.degraded) == (False, [])


async def test_a_removed_chunk_does_not_come_back_from_an_index_that_was_down(
    world: World,
) -> None:
    document = await world.add("a.md", WALRUS)
    world.index.down = True
    await world.aidb.delete(document.id)
    world.index.down = False
    assert await world.index.count() == 1, "the index could not be told"

    assert await world.sources("walrus") == []

    await world.aidb.start()
    await world.healed()
    assert await world.index.count() == 0


async def test_the_index_answers_when_sql_is_gone_and_nothing_when_both_are(
    world: World,
) -> None:
    await world.add("a.md", WALRUS)
    (world.home / "n.db").rename(world.home / "elsewhere")
    for name in ("n.db-wal", "n.db-shm"):
        (world.home / name).unlink(missing_ok=True)
    (world.home / "n.db").mkdir()
    await world.store._database._engine.dispose()

    result = await world.ask("walrus")
    again = await world.ask("walrus")

    assert result.degraded == [SQL_DOWN]
    assert [item.source for item in result.items] == ["p/a.md#Animals > Walrus"]
    assert not again.cached
    database, _ = await world.aidb.dependencies()
    assert database.status is HealthStatus.UNHEALTHY
    assert database.required
    world.index.down = True
    with pytest.raises(Unavailable):
        await world.ask("walrus")

    (world.home / "n.db").rmdir()
    (world.home / "elsewhere").rename(world.home / "n.db")
    await world.back()
    assert (await world.ask("walrus")).degraded == []
    database, _ = await world.aidb.dependencies()
    assert database.status is HealthStatus.HEALTHY


def _all_garbage(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff\x00garbage" * 10)


def _engine_garbage(folder: Path) -> None:
    for generation in folder.glob("generation-*"):
        _all_garbage(generation)


def _points_lost(folder: Path) -> None:
    """The engine opens this without a word, with some points missing."""
    for file in folder.rglob("mutable_id_tracker.versions"):
        file.write_bytes(b"\xff\x00garbage" * 10)


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("damage", [_all_garbage, _engine_garbage, _points_lost, _gone])
async def test_a_damaged_index_is_refilled_by_itself_and_answers_meanwhile(
    tmp_path: Path, damage: Any
) -> None:
    world = await World(tmp_path).open()
    await world.add("a.md", sections(120))
    await world.add("b.md", "An otter.\n")  # the engine may do its last write again
    await world.close()
    await world.open()  # so that its own log no longer holds the others
    await world.close()
    damage(tmp_path / "qdrant")

    await world.open()
    await world.aidb.start()
    _, seen = await world.aidb.dependencies()
    assert seen.status is HealthStatus.DEGRADED, "said from the first moment"
    result = await world.ask("w77", limit=1)

    assert result.items[0].source == "p/a.md#Part 77"
    assert set(result.degraded) <= {INDEX_DOWN, INDEX_REFILLING}
    await world.healed()
    assert await world.index.count() == 121
    await world.close()


async def test_an_index_damaged_while_running_heals_too(world: World) -> None:
    await world.aidb.start()
    await world.add("a.md", WALRUS)
    _gone(world.home / "qdrant")

    await world.add("b.md", "An otter.\n")

    assert (await world.sources("walrus")) == ["p/a.md#Animals > Walrus"]
    await world.healed()
    assert await world.index.count() == 2


async def test_reindex_fills_an_index_that_knows_nothing(world: World) -> None:
    await world.add("a.md", WALRUS)
    await world.add("b.md", "An otter.\n")
    await world.index.clear(None)
    assert await world.sources("walrus") == []

    assert await world.aidb.reindex() == 2

    # The cached "nothing" above was true for what the index held then; ask anew.
    assert await world.sources("walrus ice") == ["p/a.md#Animals > Walrus"]


async def test_a_repeated_question_comes_from_the_cache_until_content_changes(
    world: World,
) -> None:
    await world.add("a.md", WALRUS)
    first = await world.ask("walrus")
    second = await world.ask("walrus")
    other = await world.ask("walrus", limit=4)
    assert [r.cached for r in (first, second, other)] == [False, True, False]
    assert second.items == first.items
    assert world.index.searches == 2

    await world.add("b.md", "Another walrus.\n")

    third = await world.ask("walrus")
    assert not third.cached
    assert len(third.items) == 2


async def test_a_degraded_answer_is_not_kept(world: World) -> None:
    await world.add("a.md", WALRUS)
    world.index.down = True
    assert (await world.ask("walrus")).degraded
    await world.back()

    result = await world.ask("walrus")

    assert (result.cached, result.degraded) == (False, [])


async def test_the_cache_is_bounded(tmp_path: Path) -> None:
    world = await World(tmp_path).open(cache_size=2)
    await world.add("a.md", WALRUS)
    for query in ("walrus", "ice", "walrus", "clams"):
        await world.ask(query)

    assert (await world.ask("walrus")).cached
    assert not (await world.ask("ice")).cached
    await world.close()


async def test_many_who_ask_at_once_share_one_search(world: World) -> None:
    await world.add("a.md", WALRUS)
    world.index.gate.clear()
    asked = [asyncio.create_task(world.ask("walrus")) for _ in range(20)]
    await asyncio.sleep(0.2)
    asked[0].cancel()  # the first to ask leaves; the others are still answered
    world.index.gate.set()

    results = await asyncio.gather(*asked, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(r, ContextResult) and r.items for r in results[1:])
    assert world.index.searches == 1
    assert len(world.events.of(CONTEXT_RETRIEVED)) == 19


async def test_a_failed_search_is_not_kept_for_those_who_ask_later(
    world: World,
) -> None:
    await world.add("a.md", WALRUS)
    world.index.down = True
    results = await asyncio.gather(*(world.ask("walrus") for _ in range(3)))
    assert all(result.degraded for result in results)


def test_the_key_is_the_same_in_every_process_and_follows_the_version() -> None:
    request = ContextRequest(query="walrus", task_id="t", iteration=1)

    assert cache_key(request, 7) == (
        cache_key(ContextRequest(query="walrus", task_id="u"), 7)
    )
    assert cache_key(request, 7) != cache_key(request, 8)
    shelves = [Collection.BEST_PRACTICES, Collection.ERROR_SOLUTIONS]
    assert cache_key(
        msgspec.structs.replace(request, collections=shelves), 7
    ) == cache_key(msgspec.structs.replace(request, collections=shelves[::-1]), 7)
    assert cache_key(ContextRequest(query="walrus"), 7) == (
        "996270d4b8a09faf24fd16c02a135c9aab20b8e505c3f3e50c9535437833c768"
    )


async def test_each_request_is_told_once_with_an_id_that_repeats(world: World) -> None:
    await world.add("a.md", WALRUS)
    await world.ask("walrus", task_id="t-1", iteration=2)
    await world.ask("walrus", task_id="t-1", iteration=2)
    await world.ask("walrus")

    first, again, free = world.events.of(CONTEXT_RETRIEVED)
    assert first.id == again.id == derived_id("t-1", 2, CONTEXT_RETRIEVED)
    assert free.id != first.id
    assert first.task_id == "t-1"
    assert first.data == {
        "query": "walrus",
        "results_count": 1,
        "sources": ["p/a.md#Animals > Walrus"],
        "cached": False,
        "degraded": [],
    }
    assert again.data["cached"] is True
    json.dumps(first.data)


async def test_the_token_budget_holds_and_shorter_items_fill_it(world: World) -> None:
    await world.add("long.md", "walrus " + "walrus clams ice " * 60)
    await world.add("short.md", "a walrus and an otter on ice")

    whole = await world.ask("walrus clams ice")
    fits = await world.ask("walrus clams ice", token_budget=10)
    tiny = await world.ask("walrus clams ice", token_budget=3)

    assert len(whole.items) == 2
    assert [item.source for item in fits.items] == ["p/short.md"]
    (item,) = tiny.items
    assert 0 < len(item.text) <= 12
    provenance = item.provenance
    assert provenance["end"] == provenance["start"] + len(item.text)  # type: ignore[operator]


async def test_near_equal_texts_are_given_once(world: World) -> None:
    text = "The walrus sleeps on the ice all day and eats clams at night near {}.\n"
    for number in range(5):
        await world.add(f"{number}.md", text.format(number))
    await world.add("other.md", "A walrus has tusks.\n")

    sources = await world.sources("walrus", limit=5)

    assert len(sources) == 2
    assert "p/other.md" in sources


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("query", {"query": ""}),
        ("query", {"query": " \n\0"}),
        ("limit", {"query": "x", "limit": 0}),
        ("limit", {"query": "x", "limit": 51}),
        ("token_budget", {"query": "x", "token_budget": 0}),
    ],
)
async def test_a_request_that_makes_no_sense_names_its_field(
    world: World, field: str, request_: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await world.aidb.get_context(ContextRequest(**request_))

    assert [error.field for error in caught.value.errors] == [field]
    assert world.events.all == []


async def test_a_query_of_any_text_and_length_is_answered(world: World) -> None:
    await world.add("a.md", WALRUS)
    queries = ["walrus \ud800", 'NEAR("walrus', "walrus " * 100_000, "\u202ewalrus"]
    for query in queries:
        assert (await world.ask(query)).items
    world.index.down = True
    for query in queries:
        assert (await world.ask(query)).items


@pytest.mark.parametrize(
    ("field", "document"),
    [
        ("project", {"project": ""}),
        ("project", {"project": "a\nb"}),
        ("path", {"path": "  "}),
        ("path", {"path": "x" * 1025}),
        ("path", {"path": "a\x1b[31m"}),
        ("path", {"path": "gpj.\u202emd"}),
        ("path", {"path": "\ud800"}),
        ("content", {"content": "a\0b"}),
        ("content", {"content": "a\ud800b"}),
        ("metadata", {"metadata": {"k": "\ud800"}}),
        ("metadata", {"metadata": {"k\0": "v"}}),
        ("metadata", {"metadata": {"k": "v" * 70_000}}),
    ],
)
async def test_a_document_that_is_no_text_is_refused_whole(
    world: World, field: str, document: dict[str, Any]
) -> None:
    good = {"project": "p", "path": "a", "content": "walrus"}
    bad = NewDocument(**{**good, **document})

    with pytest.raises(InvalidInput) as caught:
        await world.aidb.add(bad)
    assert [error.field for error in caught.value.errors] == [field]
    with pytest.raises(InvalidInput) as caught:
        await world.aidb.add_all([NewDocument(**good), bad])  # type: ignore[arg-type]
    assert [error.field for error in caught.value.errors] == [f"items.1.{field}"]
    assert await world.aidb.documents.page() == ([], None)


async def test_a_document_over_the_limit_is_too_large(world: World) -> None:
    content = "é" * (16 * 1024 * 1024) + "é"

    with pytest.raises(TooLarge):
        await world.aidb.add(NewDocument(project="p", path="a", content=content))


@pytest.mark.parametrize("content", ["", "\ufeff", " \r\n"])
async def test_an_empty_document_has_no_chunks_and_forgets_what_was_there(
    world: World, content: str
) -> None:
    await world.add("a.md", WALRUS)

    document = await world.add("a.md", content)

    assert document.chunks == 0
    assert await world.sources("walrus") == []


@pytest.mark.parametrize("content", ["\ufeff# A\r\n\r\nwalrus\r\n", "# A\r\rwalrus\r"])
async def test_line_ends_and_marks_are_kept_and_the_spans_are_right(
    world: World, content: str
) -> None:
    await world.add("a.md", content)

    (item,) = (await world.ask("walrus")).items

    start, end = item.provenance["start"], item.provenance["end"]
    assert isinstance(start, int)
    assert isinstance(end, int)
    assert content[start:end] == item.text
    assert item.source == "p/a.md#A"


async def test_a_large_document_goes_in_whole_and_out_whole(world: World) -> None:
    document = await world.add("a.md", sections(1500))
    assert document.chunks == 1500
    assert await world.index.count() == 1500
    assert (await world.sources("w1234", limit=1)) == ["p/a.md#Part 1234"]

    await world.aidb.delete(document.id)

    assert await world.index.count() == 0


async def test_search_keeps_to_the_leg_it_is_asked_for(world: World) -> None:
    await world.add("a.md", WALRUS)
    for leg in ("fused", "bm25", "fulltext"):
        assert (await world.aidb.search("walrus", leg=leg)).items
    world.index.down = True

    assert (await world.aidb.search("walrus", leg="fulltext")).degraded == []
    assert (await world.aidb.search("walrus")).degraded == [INDEX_DOWN]
    with pytest.raises(Unavailable):
        await world.aidb.search("walrus", leg="bm25")
    with pytest.raises(InvalidInput, match="leg"):
        await world.aidb.search("walrus", leg="dense")
    assert world.events.of(CONTEXT_RETRIEVED) == []


async def test_dependencies_are_unknown_until_something_was_seen(world: World) -> None:
    assert [d.status for d in await world.aidb.dependencies()] == [None, None]
    assert [d.last_observed for d in await world.aidb.dependencies()] == [None, None]

    await world.aidb.start()

    assert [(d.name, d.status) for d in await world.aidb.dependencies()] == [
        ("database", HealthStatus.HEALTHY),
        ("index", HealthStatus.HEALTHY),
    ]
