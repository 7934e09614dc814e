"""AIDB with an embedder: a real ONNX model of random weights in this process."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.servers.tiny_bert import make_tiny_folder
from tests.unit.aidb_world import WALRUS, Switched, World, sections

from nestor.aidb.finder import EMBEDDER_DOWN, VECTORS_OTHER
from nestor.backends.embeddings.onnx_embedder import OnnxEmbedder
from nestor.errors import InvalidInput, Unavailable
from nestor.model.health import HealthStatus
from nestor.model.knowledge import EmbeddingStamp, Entry, NewDocument, Where


class Counting(Switched):
    """The embedder behind a switch, and how often it saw each text."""

    def __init__(self, part: OnnxEmbedder) -> None:
        super().__init__(part)
        self.texts: list[str] = []
        self.questions: list[str] = []
        self.refuses: str | None = None

    async def embed(
        self, texts: Sequence[str], *, query: bool = False
    ) -> list[list[float]]:
        if self.down or any(self.refuses and self.refuses in text for text in texts):
            raise Unavailable("the embedder is switched off")
        (self.questions if query else self.texts).extend(texts)
        found: list[list[float]] = await self._part.embed(texts, query=query)
        return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_folder(folder)
    return folder


@pytest.fixture
async def world(tmp_path: Path, model: Path) -> AsyncIterator[World]:
    world = await opened(tmp_path, model)
    await world.aidb.start()
    yield world
    await world.close()


async def opened(home: Path, model: Path, **how: Any) -> World:
    embedder = Counting(OnnxEmbedder(model))
    world = await World(home).open(embedder=embedder, **how)
    world.embedder = embedder  # type: ignore[attr-defined]
    return world


def embedder_of(world: World) -> Counting:
    found = world.embedder  # type: ignore[attr-defined]
    assert isinstance(found, Counting)
    return found


async def test_words_find_a_text_at_once_and_its_vector_soon_after(
    world: World,
) -> None:
    await world.add("a.md", WALRUS)
    assert await world.sources("walrus") == ["p/a.md#Animals > Walrus"]

    await world.embedded()
    hits = await world.aidb.search("anything at all", leg="dense")

    assert [item.source for item in hits.items] == ["p/a.md#Animals > Walrus"]
    fused = await world.ask("walrus")
    assert fused.degraded == []
    assert [item.source for item in fused.items] == ["p/a.md#Animals > Walrus"]


async def test_a_text_is_embedded_once_however_often_it_comes_back(
    tmp_path: Path, model: Path
) -> None:
    world = await opened(tmp_path, model)
    await world.aidb.start()
    await world.add("a.md", sections(40))
    await world.add("copy.md", sections(40))
    await world.embedded()
    await world.add("a.md", "Preface.\n\n" + sections(40))
    await world.embedded()
    await world.aidb.reindex()
    await world.embedded()
    seen = [text for text in embedder_of(world).texts if "w7 " in text]
    assert len(seen) == 1
    await world.close()

    again = await opened(tmp_path, model)
    await again.aidb.start()
    await again.embedded()
    assert [t for t in embedder_of(again).texts if "walrus" in t] == []
    assert len((await again.aidb.search("w7", leg="dense", limit=50)).items) >= 40
    await again.close()


async def test_a_query_is_embedded_once(world: World) -> None:
    await world.add("a.md", WALRUS)
    await world.embedded()
    await world.ask("what do walruses eat?")

    asked = [q for q in embedder_of(world).questions if q == "what do walruses eat?"]
    assert len(asked) == 1


async def test_without_the_embedder_words_are_searched_and_it_comes_back_by_itself(
    world: World,
) -> None:
    await world.add("a.md", WALRUS)
    await world.embedded()
    embedder_of(world).down = True

    away = await world.ask("walrus ice")
    await world.add("b.md", "An otter on ice.\n")

    assert away.degraded == [EMBEDDER_DOWN]
    assert await world.sources("otter") == ["p/b.md"]
    with pytest.raises(Unavailable):
        await world.aidb.search("walrus", leg="dense")
    part = (await world.aidb.dependencies())[2]
    assert (part.name, part.status) == ("embedder", HealthStatus.DEGRADED)

    embedder_of(world).down = False
    await world.embedded()
    async with asyncio.timeout(5):
        while (await world.ask("walrus ice")).degraded:
            await asyncio.sleep(0.02)
    part = (await world.aidb.dependencies())[2]
    assert part.status is HealthStatus.HEALTHY


async def test_another_model_makes_the_index_anew_by_itself(
    tmp_path: Path, model: Path
) -> None:
    world = await opened(tmp_path, model)
    await world.aidb.start()
    await world.add("a.md", sections(30))
    await world.embedded()
    first = await world.index.stamp()
    await world.close()

    make_tiny_folder(tmp_path / "other", seed=1)
    world = await World(tmp_path).open(
        embedder=Counting(OnnxEmbedder(tmp_path / "other"))
    )
    world.index.calls.clear()
    await world.aidb.start()
    degraded = set()
    async with asyncio.timeout(30):
        while world.aidb.keeper.stamp == first:
            result = await world.ask("w7 walrus")
            assert result.items
            degraded |= set(result.degraded)
            await asyncio.sleep(0)
    await world.embedded()

    assert degraded <= {VECTORS_OTHER, EMBEDDER_DOWN}
    assert degraded
    assert await world.index.stamp() != first
    assert (await world.ask("w7 walrus", limit=3)).degraded == []
    assert len((await world.aidb.search("x", leg="dense", limit=50)).items) == 30
    assert (await world.aidb.verify()).problems == []
    await world.close()


async def test_old_vectors_are_never_compared_with_a_new_models_query(
    world: World,
) -> None:
    await world.add("a.md", WALRUS)
    await world.embedded()
    keeper = world.aidb.keeper
    other = EmbeddingStamp(model="other", revision="1", dimension=64)
    keeper.wanted = keeper.stamp = other  # the index was made anew behind our back

    result = await world.ask("walrus")

    assert result.degraded == [VECTORS_OTHER]
    assert result.items


async def test_what_is_written_while_the_index_is_made_anew_is_in_both(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = world.store.each

    async def slowly(*args: Any, **named: Any) -> Any:
        await asyncio.sleep(0.05)
        return await each(*args, **named)

    doomed = await world.add("doomed.md", "A doomed dodo.\n")
    await world.add("a.md", sections(300))
    await world.embedded()
    monkeypatch.setattr("nestor.aidb.index_keeper._BATCH", 8)
    monkeypatch.setattr(world.store, "each", slowly)
    making = asyncio.create_task(world.aidb.reindex())
    await asyncio.sleep(0.2)
    assert not making.done()

    await world.add("b.md", "An otter with a hammer.\n")
    during = await world.aidb.search("otter hammer", leg="bm25", limit=1)
    await world.aidb.delete(doomed.id)
    over = making.done()
    await making

    assert not over, "the rebuild was over before the writes"
    after = await world.aidb.search("otter hammer", leg="bm25", limit=1)
    for found in (during, after):
        assert [item.source for item in found.items] == ["p/b.md"]
    assert (await world.aidb.search("dodo", leg="bm25")).items == []
    await world.embedded()
    assert (await world.aidb.verify()).problems == []


async def test_a_text_that_the_model_refuses_holds_up_no_other(world: World) -> None:
    embedder_of(world).refuses = "poison"
    await world.add("bad.md", "This is poison.\n")
    await world.add("good.md", "The walrus is fine.\n")

    async with asyncio.timeout(30):
        while (await world.store.counts()).without_vector != 1:
            await asyncio.sleep(0.02)
    found = await world.aidb.search("walrus", leg="dense")
    assert [item.source for item in found.items] == ["p/good.md"]
    assert await world.sources("poison") == ["p/bad.md"]


async def test_an_addition_is_told_while_vectors_of_others_go_on_coming(
    tmp_path: Path, model: Path
) -> None:
    """Each writing of the index is met by one more vector, as while thousands are made."""
    world = await opened(tmp_path, model)
    embedder = embedder_of(world)
    stamp = await embedder.stamp()
    await world.index.clear(stamp)
    keeper = world.aidb.keeper
    keeper.stamp = stamp
    await world.add("many.md", sections(40))
    left = await world.store.unembedded(stamp, limit=100)
    assert len(left) > 30
    upsert = world.index.upsert

    async def upsert_and_embed(entries: Sequence[Entry]) -> None:
        await upsert(entries)
        if left:
            digest, text = left.pop()
            (vector,) = await embedder.embed([text])
            await world.store.put_vectors(stamp, {digest: vector})

    world.index.upsert = upsert_and_embed  # type: ignore[attr-defined]
    await world.add("one.md", WALRUS)

    assert len(left) > 25
    assert "p/one.md#Animals > Walrus" in await world.sources("clams", limit=50)
    await keeper.drain()
    assert not left
    assert (await world.store.counts()).waiting == 0
    await world.close()


async def test_filters_hold_for_every_leg(world: World) -> None:
    for project in ("p", "q"):
        for path in ("src/a.md", "doc/a.md"):
            new = NewDocument(
                project=project,
                path=path,
                content=f"The walrus of {project} in {path}.",
                metadata={"lang": "en" if path.startswith("src") else "de"},
            )
            await world.aidb.add(new)
    await world.embedded()
    where = Where(projects=["q"], path_prefix="src/", metadata={"lang": "en"})

    for leg in ("bm25", "dense", "fused", "fulltext"):
        found = await world.aidb.search("walrus", leg=leg, where=where)
        assert [item.source for item in found.items] == ["q/src/a.md"], leg
    assert await world.sources(
        "walrus", projects=["q"], path_prefix="src/", metadata={"lang": "en"}
    ) == ["q/src/a.md"]
    assert await world.sources("walrus", metadata={"lang": "fr"}) == []


async def test_the_canary_is_found_and_shown_to_nobody(
    tmp_path: Path, model: Path
) -> None:
    world = await opened(tmp_path, model, canary_s=3600.0)
    await world.aidb.start()
    await world.add("a.md", WALRUS)
    await world.embedded()
    canary = world.aidb.canary
    assert (await canary.look())["bm25"]
    await world.embedded()
    assert await canary.look() == {"bm25": True, "dense": True}
    assert canary.chunk is not None
    part = (await world.aidb.dependencies())[-1]
    assert (part.name, part.status) == ("recall", HealthStatus.HEALTHY)

    for leg in ("bm25", "dense", "fused", "fulltext"):
        found = await world.aidb.search(canary.chunk.text, leg=leg)
        assert all(item.source.startswith("p/") for item in found.items), leg
    result = await world.ask(canary.chunk.text, projects=["nestor:canary"])
    assert result.items == []
    counts, told = await world.aidb.counts(), await world.aidb.verify()
    assert (counts.documents, counts.chunks, counts.without_vector) == (1, 1, 0)
    assert (told.documents, told.chunks, told.indexed) == (1, 1, 1)
    assert len((await world.aidb.documents.page())[0]) == 1

    await world.index.remove([canary.chunk.id])
    assert await canary.look() == {"bm25": False, "dense": False}
    part = (await world.aidb.dependencies())[-1]
    assert part.status is HealthStatus.DEGRADED
    assert "kb reindex" in part.message
    await world.aidb.reindex()
    assert await canary.look() == {"bm25": True, "dense": True}
    first = canary.chunk
    await world.close()

    world = await opened(tmp_path, model, canary_s=3600.0)
    await world.aidb.start()
    assert world.aidb.canary.chunk == first, "there is one for each knowledge base"
    await world.close()


async def test_a_copy_among_many_of_one_text_is_neither_lost_nor_counted_as_found(
    world: World,
) -> None:
    document = await world.add("a.md", "# Same\n\nThe same words.\n\n" * 200)
    assert document.chunks == 200
    await world.embedded()
    told = await world.aidb.verify()
    assert (told.consistent, told.vectors_lost) == (True, [])
    assert 0 < told.vectors_tried < 50, "behind a hundred others nobody sees it"


async def test_verify_names_what_is_missing_what_is_too_much_and_lost_vectors(
    world: World,
) -> None:
    document = await world.add("a.md", sections(60))
    await world.embedded()
    fine = await world.aidb.verify()
    assert (fine.consistent, fine.vectors_tried, fine.problems) == (True, 50, [])
    entries = [entry for _, entry in await world.store.each(world.aidb.keeper.stamp)]
    lost, gone = entries[0], entries[30]
    await world.index.remove([gone.chunk.id])
    ghost = NewDocument(project="p", path="ghost.md", content="A ghost.")
    assert document.chunks == 60
    entry = entries[1]
    await world.index.upsert(
        [
            type(entry)(
                chunk=type(entry.chunk)(
                    id="00000000-0000-5000-8000-000000000000",
                    document_id=document.id,
                    ordinal=0,
                    heading="",
                    text=ghost.content,
                    start=0,
                    end=8,
                ),
                document=document,
            ),
            type(entry)(chunk=lost.chunk, document=lost.document),
        ]
    )

    told = await world.aidb.verify()

    assert not told.consistent
    assert told.missing == [gone.chunk.id]
    assert told.extra == ["00000000-0000-5000-8000-000000000000"]
    assert lost.chunk.id in told.vectors_lost
    assert len(told.problems) == 3
    await world.aidb.reindex()
    assert (await world.aidb.verify()).problems == []


async def test_nobody_can_write_where_aidb_keeps_its_own(world: World) -> None:
    with pytest.raises(InvalidInput, match="nestor:"):
        await world.aidb.add(
            NewDocument(project="nestor:canary", path="canary", content="x")
        )


def calls_of(embedder: Counting) -> list[list[str]]:
    """Every call of ``embed`` from here on, refused ones too."""
    calls: list[list[str]] = []
    embed = embedder.embed

    async def counted(texts: Sequence[str], *, query: bool = False) -> Any:
        calls.append(list(texts))
        return await embed(texts, query=query)

    embedder.embed = counted  # type: ignore[method-assign]
    return calls


async def test_one_hiccup_costs_no_text_its_vector(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice only this text is refused, as when a server restarts between two calls."""
    monkeypatch.setattr("nestor.aidb.embedding_worker._AGAIN_S", (0.05, 0.05, 3600.0))
    monkeypatch.setattr("nestor.aidb.embedding_worker._LOOK_S", 0.05)
    await world.embedded()
    embedder = embedder_of(world)
    embedder.refuses = "walrus"
    calls = calls_of(embedder)
    await world.add("a.md", WALRUS)
    async with asyncio.timeout(20):
        while sum("walrus" in text for texts in calls for text in texts) < 3:
            await asyncio.sleep(0.01)  # with others, alone, and the probe after it
    embedder.refuses = None

    await world.embedded()

    assert (await world.aidb.search("x", leg="dense")).items


async def test_a_text_that_is_always_refused_is_asked_for_three_times_and_later_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestor.aidb.embedding_worker._AGAIN_S", (0.01, 0.01, 0.5))
    monkeypatch.setattr("nestor.aidb.embedding_worker._LOOK_S", 0.01)
    await world.embedded()
    embedder_of(world).refuses = "poison"
    calls = calls_of(embedder_of(world))
    await world.add("bad.md", "This is poison.\n")

    def asked() -> int:  # alone: what fails among others is then asked for alone
        return sum(texts == ["This is poison."] for texts in calls)

    async with asyncio.timeout(20):
        while asked() < 6:  # three rounds, each as a batch of one and alone
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert asked() == 6
    assert world.aidb.keeper.embedded
    embedder_of(world).refuses = None
    await world.embedded()
    assert asked() == 7


async def test_more_refusals_than_are_remembered_do_not_spin(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestor.aidb.embedding_worker._MOST_REFUSED", 3)
    await world.embedded()
    embedder_of(world).refuses = "poison"
    calls = calls_of(embedder_of(world))
    poison = [
        NewDocument(project="p", path=f"{n}.md", content=f"This is poison {n}.")
        for n in range(20)
    ]
    await world.aidb.add_all(poison)
    async with asyncio.timeout(20):
        while not (calls and world.aidb.keeper.embedded):
            await asyncio.sleep(0.01)
    begun = len(calls)
    for number in range(10):  # each wakes it
        await world.add(f"new-{number}.md", f"An otter {number}.")
        await asyncio.sleep(0.05)

    assert len(calls) - begun <= 2 * 20 + 10
    assert world.aidb.keeper.embedded
    assert (await world.store.counts()).without_vector >= 20
