"""Learned patterns: kept as they were written, and found while they are active."""

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from hashlib import sha256

import msgspec

from nestor.aidb import ingest
from nestor.aidb.assemble import SKILL_ID, SKILLS_PROJECT, TITLE
from nestor.aidb.ingest import Source
from nestor.aidb.watch import Watch
from nestor.errors import InvalidInput, NotFound, TooLarge
from nestor.model.knowledge import Collection, Skill, SkillKind, SkillStatus
from nestor.ports.document_reader import Piece, Reading
from nestor.ports.knowledge_store import KnowledgeStore

MAX_TITLE, MAX_TEXT = 300, 16_000
"""Characters."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHELVES = {
    SkillKind.SKILL: Collection.SKILLS_PATTERNS,
    SkillKind.ERROR_SOLUTION: Collection.ERROR_SOLUTIONS,
    SkillKind.BEST_PRACTICE: Collection.BEST_PRACTICES,
}


class Skills:
    """The pattern itself is the truth; a document in a project of AIDB's own is how it is found.

    The pattern is written first. Killed in between, ``reconcile`` at the next start, before
    anybody is served, brings the document in line.
    """

    def __init__(
        self,
        store: KnowledgeStore,
        *,
        sql: Watch,
        written: Callable[[], Awaitable[None]],
        clock: Callable[[], datetime],
    ) -> None:
        """``written`` is awaited after each change."""
        self._store = store
        self._sql = sql
        self._written = written
        self._clock = clock

    async def put(self, skill: Skill) -> bool:
        """Store or replace; tells whether anything changed. Raises ``InvalidInput``."""
        _check(skill)
        changed = await self._sql.run(self._store.put_skill(skill))
        if await self._follow(skill) or changed:
            await self._written()
        return changed

    async def get(self, skill_id: str) -> Skill:
        """Read one. Raises ``NotFound``."""
        return await self._sql.run(self._store.skill(skill_id))

    async def all(self, *, limit: int = 1000) -> list[Skill]:
        """Read them, newest first."""
        return await self._sql.run(self._store.skills(limit=limit))

    async def retire(self, skill_id: str) -> Skill:
        """Let it be found no more; it is kept. Raises ``NotFound``."""
        skill = await self.get(skill_id)
        retired = msgspec.structs.replace(skill, status=SkillStatus.RETIRED)
        await self.put(retired)
        return retired

    async def reconcile(self) -> None:
        """Make what is found follow from what is stored."""
        there = await self._sql.run(self._store.hashes(SKILLS_PROJECT))
        if not there and not await self.all(limit=1):
            return
        changed = False
        for path, (document_id, _) in there.items():
            try:
                skill = await self.get(path)
            except NotFound:
                await self._sql.run(self._store.delete(document_id))
                changed = True
            else:
                changed |= await self._follow(skill)
        for skill in await self.all():
            if skill.id not in there:
                changed |= await self._follow(skill)
        if changed:
            await self._written()

    async def _follow(self, skill: Skill) -> bool:
        known = await self._sql.run(self._store.find(SKILLS_PROJECT, skill.id))
        if skill.status is not SkillStatus.ACTIVE:
            if known is None:
                return False
            await self._sql.run(self._store.delete(known.id))
            return True
        source = _source(skill)
        if known is not None and source.is_same(known):
            return False
        document, chunks = ingest.prepare(source, _reading(skill), self._clock())
        await self._sql.run(self._store.put(document, skill.text, chunks))
        return True


def _source(skill: Skill) -> Source:
    body = f"{skill.title}\n{skill.text}".encode()
    metadata = {SKILL_ID: skill.id, TITLE: skill.title}
    if skill.tags:
        metadata["tags"] = ",".join(skill.tags)
    return Source(
        project=SKILLS_PROJECT,
        path=skill.id,
        collection=_SHELVES[skill.kind],
        metadata=metadata,
        content_hash=sha256(body).hexdigest(),
        size_bytes=len(body),
    )


def _reading(skill: Skill) -> Reading:
    """One piece, whole: half a pattern is none."""
    piece = Piece(
        heading=skill.title,
        text=skill.text,
        start=0,
        end=len(skill.text),
        first_line=1,
        last_line=1 + skill.text.count("\n"),
    )
    return Reading(content=skill.text, media="text/plain", pieces=[piece])


def _check(skill: Skill) -> None:
    if not _ID.fullmatch(skill.id):
        raise InvalidInput.at("id", "1 to 64 letters, digits, '.', '_' or '-'")
    for name, value, most in (
        ("title", skill.title, MAX_TITLE),
        ("text", skill.text, MAX_TEXT),
    ):
        ingest.check_text(name, value)
        if not value.strip():
            raise InvalidInput.at(name, "must not be empty")
        if len(value) > most:
            raise TooLarge.at(name, f"over {most} characters")
    for name in ("tags", "provenance"):
        for value in getattr(skill, name):
            ingest.check_text(name, value)
