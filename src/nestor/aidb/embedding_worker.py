"""Makes the vectors of texts in the background, each text once for a model."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from nestor.aidb.index_keeper import LONGEST_WAIT_S, IndexKeeper
from nestor.aidb.watch import Watch
from nestor.errors import Unavailable
from nestor.model.knowledge import EmbeddingStamp
from nestor.ports.embedder import Embedder
from nestor.ports.knowledge_store import KnowledgeStore
from nestor.telemetry import metrics
from nestor.telemetry.logs import get_logger

BATCH = 128
PROBE = "Is anybody there?"
_LOOK_S = 5.0
_AGAIN_S = (5.0, 30.0, 3600.0)
"""How long a text waits that was refused once, twice, and each time after that."""
_MOST_REFUSED = 1_000
"""So many refused texts are remembered, and as many more left out until a round ends."""
_FULL_PAUSE_S = 60.0
"""After a round in which more were refused than can be remembered."""
_log = get_logger(__name__)
_Texts = list[tuple[str, str]]


class _Refused(NamedTuple):
    times: int
    again_at: float


class EmbeddingWorker:
    """Takes texts without a vector out of SQL, and puts their vectors there.

    Resumable at any point: what has no vector is what SQL says has none. While one batch
    is written the next is being embedded. A text that the model refuses while it takes
    others is asked for again, later each time, and holds up no other meanwhile.
    """

    def __init__(
        self,
        store: KnowledgeStore,
        embedder: Embedder,
        keeper: IndexKeeper,
        *,
        sql: Watch,
        watch: Watch,
        retry_s: float,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._timer = timer
        self._embedder = embedder
        self._keeper = keeper
        self._sql = sql
        self._seen = watch
        self._retry_s = retry_s
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._refused: dict[str, _Refused] = {}
        self._overflow: set[str] = set()
        """Refused in this round, and too many to be remembered."""

    def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.create_task(self._forever(), name="aidb-embedding")

    async def stop(self) -> None:
        """End; what was not written is embedded again after the next start."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def wake(self) -> None:
        """Tell that there may be texts without a vector."""
        self._wake.set()

    async def _forever(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self._embed_all()
                failures = 0
                if self._overflow:
                    _log.warning("embedding_pauses", refused=len(self._refused))
                    await asyncio.sleep(_FULL_PAUSE_S)
            except Unavailable as error:
                failures += 1
                if failures == 1:
                    _log.warning("embedding_waits", error=str(error))
            except Exception:  # noqa: BLE001 - the edge of a background task: it must outlive a bug
                failures += 1
                _log.exception("embedding_worker_failed")
            if failures:
                pause = self._retry_s * 2 ** min(failures - 1, 16)
                await asyncio.sleep(min(pause, LONGEST_WAIT_S))
            else:
                await self._wait()

    async def _wait(self) -> None:
        """Wait for work, for a query that could not be embedded, or for a while."""
        signs = [
            asyncio.ensure_future(event.wait())
            for event in (self._wake, self._seen.failed)
        ]
        try:
            await asyncio.wait(
                signs, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for sign in signs:
                sign.cancel()

    async def _embed_all(self) -> None:
        stamp = await self._seen.run(self._embedder.stamp())
        if self._seen.failed.is_set():
            await self._seen.run(self._embedder.embed([PROBE], query=True))
            self._seen.failed.clear()
        self._overflow.clear()
        under_way: tuple[_Texts, asyncio.Task[dict[str, list[float]]]] | None = None
        try:
            while True:
                known = frozenset(digest for digest, _ in (under_way or ([],))[0])
                texts: _Texts = []
                if len(self._overflow) < _MOST_REFUSED:
                    texts = await self._without(stamp, known)
                done, under_way = under_way, None
                if texts:
                    self._keeper.want(stamp, embedded=False)
                    task = asyncio.create_task(self._embedded(texts))
                    task.add_done_callback(lambda t: t.cancelled() or t.exception())
                    under_way = texts, task
                if done is not None:
                    await self._keep(stamp, await done[1])
                elif under_way is None:
                    self._keeper.want(stamp, embedded=True)
                    return
        finally:
            if under_way is not None:
                under_way[1].cancel()

    async def _without(self, stamp: EmbeddingStamp, known: frozenset[str]) -> _Texts:
        now = self._timer()
        waiting = {d for d, one in self._refused.items() if now < one.again_at}
        left_out = known | waiting | self._overflow
        found = await self._sql.run(
            self._store.unembedded(stamp, limit=BATCH + len(left_out))
        )
        return [one for one in found if one[0] not in left_out][:BATCH]

    async def _keep(
        self, stamp: EmbeddingStamp, vectors: dict[str, list[float]]
    ) -> None:
        if vectors:
            for digest in vectors.keys() & self._refused.keys():
                del self._refused[digest]
            await self._sql.run(self._store.put_vectors(stamp, vectors))
            metrics.KB_EMBEDDED.inc(len(vectors))
            self._keeper.wake()

    async def _embedded(self, texts: _Texts) -> dict[str, list[float]]:
        try:
            vectors = await self._seen.run(
                self._embedder.embed([text for _, text in texts])
            )
        except Unavailable:
            return await self._one_by_one(texts)
        return {d: v for (d, _), v in zip(texts, vectors, strict=True)}

    async def _one_by_one(
        self, texts: Sequence[tuple[str, str]]
    ) -> dict[str, list[float]]:
        """Find out whether it was one of the texts. Raises ``Unavailable`` where it was not."""
        await self._seen.run(self._embedder.embed([PROBE]))
        found: dict[str, list[float]] = {}
        for digest, text in texts:
            try:
                (found[digest],) = await self._embedder.embed([text])
            except Unavailable as error:
                await self._seen.run(self._embedder.embed([PROBE]))
                self._refuse(digest, str(error))
        return found

    def _refuse(self, digest: str, why: str) -> None:
        """Let a text wait: it may be the text, or one hiccup of the model."""
        now, known = self._timer(), self._refused.get(digest)
        if known is None and len(self._refused) >= _MOST_REFUSED:
            over = [d for d, one in self._refused.items() if one.again_at <= now]
            for one in over:  # gone from SQL, or soon here again
                del self._refused[one]
        if known is None and len(self._refused) >= _MOST_REFUSED:
            self._overflow.add(digest)
            return
        times = 1 if known is None else known.times + 1
        pause = _AGAIN_S[min(times, len(_AGAIN_S)) - 1]
        self._refused[digest] = _Refused(times, now + pause)
        _log.warning(
            "text_not_embedded", digest=digest, times=times, again_in_s=pause, error=why
        )
