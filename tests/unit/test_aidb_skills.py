"""Learned patterns: written, found while they are active, at most three in an answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.aidb_world import NOW, World

from nestor.aidb.assemble import SKILLS_PROJECT
from nestor.aidb.skills import Skills
from nestor.aidb.watch import Watch
from nestor.errors import InvalidInput, NotFound
from nestor.model.ids import derived_id
from nestor.model.knowledge import Collection, Skill, SkillKind, SkillStatus


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path).open()
    await world.aidb.start()
    yield world
    await world.close()


def skill(number: int, **how: Any) -> Skill:
    given: dict[str, Any] = {
        "id": derived_id("skill", number),
        "kind": SkillKind.SKILL,
        "title": f"Lesson {number} of the walrus",
        "text": f"When the walrus number {number} sleeps, {'wait ' * number}on ice.",
        "created_at": NOW,
        "status": SkillStatus.ACTIVE,
    }
    return Skill(**{**given, **how})


@pytest.mark.parametrize(
    ("kind", "shelf"),
    [
        (SkillKind.SKILL, Collection.SKILLS_PATTERNS),
        (SkillKind.ERROR_SOLUTION, Collection.ERROR_SOLUTIONS),
        (SkillKind.BEST_PRACTICE, Collection.BEST_PRACTICES),
    ],
)
async def test_an_active_pattern_is_found_on_its_shelf_under_its_own_id(
    world: World, kind: SkillKind, shelf: Collection
) -> None:
    await world.aidb.skills.put(skill(1, kind=kind))

    (item,) = (await world.ask("walrus sleeps")).items

    assert (item.id, item.kind) == (skill(1).id, kind)
    assert item.source == f"{shelf}/Lesson 1 of the walrus"
    assert item.text == skill(1).text
    assert item.provenance["skill_id"] == skill(1).id
    assert await world.sources("walrus", collections=[shelf])
    assert not await world.sources("walrus", collections=[Collection.CODEBASE_CONTEXT])


@pytest.mark.parametrize("status", [SkillStatus.CANDIDATE, SkillStatus.RETIRED])
async def test_only_active_ones_are_found(world: World, status: SkillStatus) -> None:
    await world.aidb.skills.put(skill(1, status=status))
    assert await world.sources("walrus") == []
    await world.aidb.skills.put(skill(1))
    assert await world.sources("walrus")
    await world.aidb.skills.put(skill(1, status=status))
    for leg in ("bm25", "fused", "fulltext"):
        assert (await world.aidb.search("walrus", leg=leg)).items == [], leg
    assert (await world.aidb.skills.get(skill(1).id)).status is status


async def test_a_retired_one_is_kept_and_found_no_more(world: World) -> None:
    await world.aidb.skills.put(skill(1))
    retired = await world.aidb.skills.retire(skill(1).id)

    assert retired.status is SkillStatus.RETIRED
    assert await world.sources("walrus") == []
    assert await world.aidb.skills.all() == [retired]
    with pytest.raises(NotFound):
        await world.aidb.skills.retire("nosuch")


async def test_at_most_three_join_an_answer_unless_only_such_are_asked_for(
    world: World,
) -> None:
    for number in range(1, 7):
        await world.aidb.skills.put(skill(number))
    await world.add("a.md", "A walrus in a document, of all things.\n")

    mixed = (await world.ask("walrus sleeps ice", limit=10)).items
    only = (
        await world.ask(
            "walrus sleeps ice", limit=10, collections=[Collection.SKILLS_PATTERNS]
        )
    ).items

    assert [item.kind for item in mixed].count("skill") == 3
    assert "document" in [item.kind for item in mixed]
    assert len(only) > 3


async def test_a_second_write_replaces_and_says_whether_anything_changed(
    world: World,
) -> None:
    assert await world.aidb.skills.put(skill(1))
    assert not await world.aidb.skills.put(skill(1))
    assert await world.aidb.skills.put(skill(1, helpful=3))
    assert await world.aidb.skills.put(skill(1, text="The otter instead."))
    assert await world.sources("otter")
    found = (await world.ask("sleeps ice")).items
    assert found == []
    assert len(await world.store.hashes(SKILLS_PROJECT)) == 1


async def test_what_a_kill_left_half_done_is_mended_at_the_next_start(
    tmp_path: Path,
) -> None:
    world = await World(tmp_path).open()
    await world.aidb.skills.put(skill(1))
    retired = msgspec.structs.replace(skill(1), status=SkillStatus.RETIRED)
    await world.store.put_skill(retired)  # and killed before the document went
    await world.store.put_skill(skill(2))  # and killed before the document came
    await world.close()

    await world.open()
    await world.aidb.start()
    found = (await world.ask("walrus sleeps", limit=5)).items
    assert [item.id for item in found] == [skill(2).id]
    await world.close()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("id", {"id": "a/b"}),
        ("title", {"title": " "}),
        ("text", {"text": ""}),
        ("text", {"text": "a\0"}),
        ("text", {"text": "x" * 16_001}),
        ("tags", {"tags": ["\ud800"]}),
    ],
)
async def test_what_is_no_pattern_is_refused_by_field(
    world: World, field: str, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await world.aidb.skills.put(skill(1, **wrong))
    assert [one.field for one in caught.value.errors] == [field]
    assert await world.aidb.skills.all() == []


async def test_its_document_can_be_neither_added_nor_deleted_from_outside(
    world: World,
) -> None:
    await world.aidb.skills.put(skill(1))
    ((document_id, _),) = (await world.store.hashes(SKILLS_PROJECT)).values()
    with pytest.raises(InvalidInput, match="retire"):
        await world.aidb.delete(document_id)
    assert await world.aidb.documents.page() == ([], None)


class Held:
    """The store, whose next call of one name waits after it was done."""

    def __init__(self, part: Any, name: str) -> None:
        self._part, self._name = part, name
        self.done, self.go = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)
        if name != self._name or self.done.is_set():
            return method

        async def held(*args: Any, **named: Any) -> Any:
            result = await method(*args, **named)
            self.done.set()
            await self.go.wait()
            return result

        return held


def skills_over(world: World, store: Any) -> Skills:
    async def written() -> None:
        pass

    sql = Watch("database", lambda: NOW, required=True)
    return Skills(store, sql=sql, written=written, clock=lambda: NOW)


async def agrees(world: World) -> Skill:
    """What is found follows from what is stored."""
    stored = await world.store.skill(skill(1).id)
    found = await world.store.hashes(SKILLS_PROJECT)
    assert len(found) == (stored.status is SkillStatus.ACTIVE), stored
    for document_id, _ in found.values():
        assert await world.store.content(document_id) == stored.text
    return stored


_NEW = skill(1, text="The walrus has moved.")
_FIRST: dict[str, tuple[str, Callable[[Skills], Awaitable[Any]]]] = {
    "put": ("put_skill", lambda skills: skills.put(_NEW)),
    "put, half followed": ("find", lambda skills: skills.put(_NEW)),
    "retire": ("skill", lambda skills: skills.retire(_NEW.id)),
    "retire, half followed": ("find", lambda skills: skills.retire(_NEW.id)),
}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("first", _FIRST)
async def test_a_pattern_that_is_put_while_it_is_retired_is_found_or_is_not(
    world: World, first: str, processes: int
) -> None:
    """Whichever was last: the one is interrupted at a step, the other runs past it."""
    await world.aidb.skills.put(skill(1))
    name, begin = _FIRST[first]
    held = Held(world.store, name)
    one = skills_over(world, held)
    other = one if processes == 1 else skills_over(world, world.store)
    beginning = asyncio.ensure_future(begin(one))
    await held.done.wait()
    late = other.retire(_NEW.id) if first.startswith("put") else other.put(_NEW)
    ending = asyncio.ensure_future(late)
    await asyncio.wait([ending], timeout=0.3)  # where they share a turn, it waits
    held.go.set()
    await asyncio.gather(beginning, ending)

    stored = await agrees(world)
    assert stored.text == _NEW.text, "what was put is lost"
    if first.startswith("put"):
        assert stored.status is SkillStatus.RETIRED


async def test_many_who_put_and_retire_agree_in_the_end(world: World) -> None:
    for number in range(30):
        text = f"Round {number} of the walrus."
        await world.aidb.skills.put(skill(1))
        await asyncio.gather(
            world.aidb.skills.put(skill(1, text=text)),
            world.aidb.skills.retire(skill(1).id),
            world.aidb.skills.put(skill(1, text=text, helpful=number)),
        )
        await agrees(world)


async def test_every_pattern_that_lacks_its_document_gets_it_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestor.aidb.skills._PAGE", 3)
    world = await World(tmp_path).open()
    for number in range(1, 9):
        await world.store.put_skill(skill(number))
    await world.aidb.start()
    assert set(await world.store.hashes(SKILLS_PROJECT)) == {
        skill(number).id for number in range(1, 9)
    }
    await world.close()
