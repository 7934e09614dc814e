"""Embeddings of an ONNX model in this process, in threads of their own."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nestor.backends.embeddings.onnx_model import OnnxModel
from nestor.errors import Unavailable
from nestor.model.knowledge import EmbeddingStamp

MOST_THREADS = 2
_CLOSED = "embeddings: closed"


class OnnxEmbedder:
    """Implements ``ports.embedder.Embedder`` over a folder (see ``folder``).

    The model is loaded at first use, and looked for again at each use until it is there.
    Texts are embedded one by one, by a thread for each core (two at most); questions go
    before all others and have a thread of their own besides, so that they wait for nobody.
    """

    def __init__(
        self, folder: Path, *, remedy: str = "", threads: int | None = None
    ) -> None:
        """``remedy``: what to do while there is no model in the folder that can be used."""
        self._folder = folder
        self._remedy = remedy
        self._threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self._loading = asyncio.Lock()
        self._workers: _Workers | None = None
        self._closed = False

    async def stamp(self) -> EmbeddingStamp:
        """Tell what the vectors are made by; loads the model."""
        return (await self._ready()).model.stamp

    async def embed(
        self, texts: Sequence[str], *, query: bool = False
    ) -> list[list[float]]:
        """Return vectors of unit length, in order. What a cancelled call wanted is dropped."""
        if not texts:
            return []
        job = _Job(list(texts), query=query)
        (await self._ready()).take(job)
        try:
            return await job.done
        finally:
            job.dropped = True

    async def close(self) -> None:
        """End the threads and let go of the model; calls under way fail."""
        self._closed = True
        async with self._loading:
            workers, self._workers = self._workers, None
        if workers is not None:
            await asyncio.to_thread(workers.close)

    async def _ready(self) -> "_Workers":
        async with self._loading:
            if self._closed:
                raise Unavailable(_CLOSED)
            if self._workers is None:
                model = await asyncio.to_thread(self._load)
                self._workers = _Workers(model, self._threads)
            return self._workers

    def _load(self) -> OnnxModel:
        if self._remedy and not self._folder.exists():
            raise Unavailable(f"embeddings: not built; {self._remedy}")
        try:
            return OnnxModel.load(self._folder)
        except Unavailable as error:
            if self._remedy:
                raise Unavailable(f"{error}; {self._remedy}") from error
            raise


class _Job:
    """Texts of one call. Made on the event loop, filled by threads."""

    def __init__(self, texts: list[str], *, query: bool) -> None:
        self.texts = texts
        self.query = query
        self.dropped = False
        """Nobody waits for it any more."""
        self.next = 0
        self._found: list[list[float]] = [[] for _ in texts]
        self._missing = len(texts)
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[list[list[float]]] = self._loop.create_future()

    def put(self, at: int, vector: list[float]) -> None:
        """Keep a vector; the last one ends the wait."""
        with self._lock:
            self._found[at] = vector
            self._missing -= 1
            whole = self._missing == 0
        if whole:
            self._tell(None)

    def fail(self, error: Unavailable) -> None:
        """End the wait with an error."""
        self.dropped = True
        self._tell(error)

    def _tell(self, error: Unavailable | None) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody is told
            self._loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, error: Unavailable | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(self._found)
        else:
            self.done.set_exception(error)


class _Workers:
    """Threads around one model: ``count`` for everything, one more for questions alone."""

    def __init__(self, model: OnnxModel, count: int) -> None:
        self.model = model
        self._questions: deque[_Job] = deque()
        self._others: deque[_Job] = deque()
        self._something = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(
                target=self._work,
                args=(number == count,),
                name=f"embeddings-{number}",
                daemon=True,  # a process that ends waits for no vector
            )
            for number in range(count + 1)
        ]
        for thread in self._threads:
            thread.start()

    def take(self, job: _Job) -> None:
        """Put a job at the end of its queue."""
        with self._something:
            if self._closing:
                raise Unavailable(_CLOSED)
            (self._questions if job.query else self._others).append(job)
            self._something.notify_all()

    def close(self) -> None:
        """Fail what waits, and wait for what is under way: a text for each thread."""
        with self._something:
            self._closing = True
            waiting = [*self._questions, *self._others]
            self._questions.clear()
            self._others.clear()
            self._something.notify_all()
        for job in waiting:
            job.fail(Unavailable(_CLOSED))
        for thread in self._threads:
            thread.join()

    def _work(self, questions_only: bool) -> None:
        while True:
            with self._something:
                while (found := self._next(questions_only)) is None:
                    if self._closing:
                        return
                    self._something.wait()
            job, at = found
            try:
                vector = self.model.vector(job.texts[at], query=job.query)
            except Exception as error:  # noqa: BLE001 - a thread's edge, and the library's bare ones
                failure = Unavailable(f"embeddings: the model failed: {error}"[:300])
                failure.__cause__ = error
                job.fail(failure)
            else:
                job.put(at, vector)

    def _next(self, questions_only: bool) -> tuple[_Job, int] | None:
        """Take the next text; None when there is none. The caller holds the lock."""
        for queue in (self._questions, *(() if questions_only else (self._others,))):
            while queue:
                job = queue[0]
                at = job.next
                job.next += 1
                if job.next >= len(job.texts) or job.dropped:
                    queue.popleft()
                if not job.dropped:
                    return job, at
        return None
