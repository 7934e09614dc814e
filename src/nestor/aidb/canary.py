"""A text of AIDB's own that must always be found: recall that died would be noticed."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from hashlib import sha256

from nestor.aidb import ingest
from nestor.aidb.assemble import CANARY_PROJECT
from nestor.aidb.finder import Finder
from nestor.aidb.ingest import Source
from nestor.aidb.watch import Watch
from nestor.errors import InvalidInput, Unavailable
from nestor.model.health import Dependency, HealthStatus
from nestor.model.knowledge import Chunk, Collection, Document, Where
from nestor.ports.document_reader import Piece, Reading
from nestor.ports.knowledge_store import KnowledgeStore
from nestor.telemetry import metrics
from nestor.telemetry.logs import get_logger

NAME = "canary"
_FIRST_S = 20.0
_AMONG = 10
_WORDS = 6
_log = get_logger(__name__)


class Canary:
    """Looks for its text every ``every_s`` seconds, in the whole index, by each leg.

    The text is random words that no other text holds, so it must come first by words; its
    own vector is nearest to itself. A leg that does not answer says nothing about recall:
    that is told elsewhere. The document stands in a project that no answer shows.
    """

    def __init__(
        self,
        store: KnowledgeStore,
        finder: Finder,
        *,
        sql: Watch,
        written: Callable[[], Awaitable[None]],
        clock: Callable[[], datetime],
        every_s: float,
    ) -> None:
        self._store = store
        self._finder = finder
        self._sql = sql
        self._written = written
        self._clock = clock
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self._missed: list[str] | None = None
        self._looked_at: datetime | None = None
        self.chunk: Chunk | None = None
        """Where its text stands; None: not written yet."""

    def start(self) -> None:
        """Begin, in the background."""
        if self._every_s > 0:
            self._task = asyncio.create_task(self._forever(), name="aidb-canary")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def dependencies(self) -> list[Dependency]:
        """Report what was found when it was looked for last; nothing before that."""
        if self._looked_at is None or self._missed is None:
            return []
        missed = ", ".join(self._missed)
        status = HealthStatus.DEGRADED if missed else HealthStatus.HEALTHY
        message = (
            f"a known text was not found ({missed}): look with nestor kb verify, mend"
            " with nestor kb reindex"
        )
        return [
            Dependency(
                name="recall",
                status=status,
                message=message if missed else "",
                last_observed=self._looked_at,
            )
        ]

    async def look(self) -> dict[str, bool]:
        """Look for the text now; returns whether each leg that answered found it."""
        chunk = self.chunk or await self._ensure()
        found: dict[str, bool] = {}
        for leg in ("bm25", "dense"):
            try:
                hits = await self._finder.leg(leg, chunk.text, _AMONG, Where())
            except (Unavailable, InvalidInput):
                continue  # away, or there is none
            well = any(hit.chunk_id == chunk.id for hit in hits)
            if well or not await self._waits():
                found[leg] = well
        for leg, well in found.items():
            metrics.KB_CANARY.labels(leg=leg).set(1 if well else 0)
            if not well:
                _log.error("canary_not_found", leg=leg)
        if found:
            self._missed = [leg for leg, well in found.items() if not well]
            self._looked_at = self._clock()
        return found

    async def _waits(self) -> bool:
        """Tell whether the index has not everything yet: then the text may be missing."""
        try:
            counts = await self._sql.run(self._store.counts())
        except Unavailable:
            return True
        return bool(counts.waiting or counts.without_vector)

    async def find_own(self) -> None:
        """Look whether the text was written by an earlier start."""
        known = await self._sql.run(self._store.find(CANARY_PROJECT, NAME))
        if known is not None:
            content = await self._sql.run(self._store.content(known.id))
            self.chunk = _prepared(content, known.added_at)[1]

    async def _forever(self) -> None:
        pause = min(_FIRST_S, self._every_s)
        while True:
            await asyncio.sleep(pause)
            pause = self._every_s
            try:
                if self.chunk is None:
                    await self._ensure()
                    pause = min(_FIRST_S, self._every_s)  # its vector needs a moment
                else:
                    await self.look()
            except Unavailable:
                pause = min(_FIRST_S, self._every_s)
            except Exception:  # noqa: BLE001 - the edge of a background task: it must outlive a bug
                _log.exception("canary_failed")

    async def _ensure(self) -> Chunk:
        await self.find_own()
        if self.chunk is None:
            content = " ".join(f"k{secrets.token_hex(6)}" for _ in range(_WORDS))
            document, chunk = _prepared(content, self._clock())
            await self._sql.run(self._store.put(document, content, [chunk]))
            self.chunk = chunk
            await self._written()
        return self.chunk


def _prepared(content: str, now: datetime) -> tuple[Document, Chunk]:
    source = Source(
        project=CANARY_PROJECT,
        path=NAME,
        collection=Collection.INTERACTION_HISTORY,
        metadata={},
        content_hash=sha256(content.encode()).hexdigest(),
        size_bytes=len(content),
    )
    piece = Piece(
        heading="",
        text=content,
        start=0,
        end=len(content),
        first_line=1,
        last_line=1,
    )
    reading = Reading(content=content, media="text/plain", pieces=[piece])
    document, (chunk,) = ingest.prepare(source, reading, now)
    return document, chunk
