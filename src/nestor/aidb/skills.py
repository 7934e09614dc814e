"""Learned patterns: kept as they were written, and found while they are active."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
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
_PAGE = 1000
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHELVES = {
    SkillKind.SKILL: Collection.SKILLS_PATTERNS,
    SkillKind.ERROR_SOLUTION: Collection.ERROR_SOLUTIONS,
    SkillKind.BEST_PRACTICE: Collection.BEST_PRACTICES,
}


class Skills:
    """The pattern itself is the truth; a document in a project of AIDB's own is how it is found.

    The pattern is written first. Killed in between, ``reconcile`` at the next start, before
    anybody is served, brings the document in line. One write at a time in this process;
    for others, each looks at the pattern again after it wrote the document: who wrote last
    leaves the two in line.
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
        self._turn = asyncio.Lock()

    async def put(self, skill: Skill) -> bool:
        """Store or replace; tells whether anything changed. Raises ``InvalidInput``."""
        _check(skill)
        async with self._turn:
            changed = await self._sql.run(self._store.put_skill(skill))
            followed = await self._in_line(skill.id)
        if followed or changed:
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
        async with self._turn:
            done = False
            while not done:  # once more for each time that another process was faster
                skill = await self.get(skill_id)
                retired = msgspec.structs.replace(skill, status=SkillStatus.RETIRED)
                done = await self._sql.run(self._store.replace_skill(skill, retired))
            followed = await self._in_line(skill_id)
        if followed or skill != retired:
            await self._written()
        return retired

    async def reconcile(self) -> None:
        """Make what is found follow from what is stored."""
        async with self._turn:
            changed = await self._reconciled()
        if changed:
            await self._written()

    async def _reconciled(self) -> bool:
        there = await self._sql.run(self._store.hashes(SKILLS_PROJECT))
        changed = False
        for path, (document_id, _) in there.items():
            try:
                changed |= await self._in_line(path)
            except NotFound:
                await self._sql.run(self._store.delete(document_id))
                changed = True
        page: list[Skill] = []
        while page := await self._sql.run(
            self._store.skills(limit=_PAGE, after=page[-1] if page else None)
        ):
            for skill in page:
                if skill.id not in there:
                    changed |= await self._in_line(skill.id)
        return changed

    async def _in_line(self, skill_id: str) -> bool:
        """Write the document until the pattern is still what it follows from."""
        skill, changed = await self.get(skill_id), False
        while True:
            changed |= await self._follow(skill)
            now = await self.get(skill_id)
            if now == skill:
                return changed
            skill = now

    async def _follow(self, skill: Skill) -> bool:
        known = await self._sql.run(self._store.find(SKILLS_PROJECT, skill.id))
        if skill.status is not SkillStatus.ACTIVE:
            if known is None:
                return False
            with suppress(NotFound):  # another process was faster
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
