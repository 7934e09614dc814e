"""Learned patterns in SQL: replaced by who saw the newest, and read in pages."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.errors import NotFound
from nestor.model.knowledge import Skill, SkillKind, SkillStatus

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def store(database: Database) -> SqlKnowledgeStore:
    return SqlKnowledgeStore(database)


def skill(**how: Any) -> Skill:
    given: dict[str, Any] = {
        "id": "s",
        "kind": SkillKind.SKILL,
        "title": "t",
        "text": "x",
        "created_at": NOW,
        "status": SkillStatus.ACTIVE,
    }
    return Skill(**given | how)


async def test_a_pattern_is_replaced_only_where_it_is_still_what_was_read(
    store: SqlKnowledgeStore,
) -> None:
    old, new = skill(), skill(text="new")
    await store.put_skill(old)
    before = await store.version()
    assert not await store.replace_skill(new, skill(text="newer"))
    assert await store.version() == before
    assert await store.skill("s") == old

    assert await store.replace_skill(old, new)
    assert await store.version() > before
    assert await store.skill("s") == new
    assert not await store.replace_skill(old, skill(text="late"))
    with pytest.raises(NotFound):
        await store.replace_skill(skill(id="none"), skill(id="none", text="y"))


async def test_of_many_who_read_the_same_one_replaces_it(
    store: SqlKnowledgeStore,
) -> None:
    await store.put_skill(skill())
    done = await asyncio.gather(
        *(store.replace_skill(skill(), skill(text=str(n))) for n in range(10))
    )
    assert sum(done) == 1
    assert (await store.skill("s")).text == str(done.index(True))


async def test_pages_hold_each_pattern_once(store: SqlKnowledgeStore) -> None:
    for number in range(7):  # two of each time
        at = NOW + timedelta(seconds=number // 2)
        await store.put_skill(skill(id=f"s{number}", created_at=at))
    every = await store.skills()
    found: list[Skill] = []
    while page := await store.skills(limit=2, after=found[-1] if found else None):
        assert len(page) <= 2
        found += page
    assert found == every
    assert len({one.id for one in found}) == 7
    assert msgspec.structs.replace(found[0], id="s") == skill(
        created_at=NOW + timedelta(seconds=3)
    )
