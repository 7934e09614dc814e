"""Answers given before, in this process's memory."""

import time
from collections import OrderedDict
from collections.abc import Callable

from nestor.model.health import Dependency

MAX_BYTES = 64 * 1024 * 1024
_ENTRY_BYTES = 400
"""What an entry takes beside its answer: the digest, the times, the map."""


class MemoryAnswers:
    """``ports.answer_cache.AnswerCache`` of bounded size; what was not used longest goes."""

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    @property
    def bytes_kept(self) -> int:
        """What all answers take together."""
        return self._bytes

    async def get(self, digest: str) -> bytes | None:
        """See ``AnswerCache.get``."""
        found = self._kept.get(digest)
        if found is None:
            return None
        until, answer = found
        if until <= self._clock():
            self._drop(digest)
            return None
        self._kept.move_to_end(digest)
        return answer

    async def put(self, digest: str, answer: bytes, *, ttl_s: float) -> None:
        """See ``AnswerCache.put``. An answer larger than all the room is not kept."""
        self._drop(digest)
        size = _size(answer)
        if ttl_s <= 0 or size > self._max_bytes:
            return
        while self._bytes + size > self._max_bytes:
            self._drop(next(iter(self._kept)))
        self._kept[digest] = (self._clock() + ttl_s, answer)
        self._bytes += size

    async def dependencies(self) -> list[Dependency]:
        """See ``AnswerCache.dependencies``: answers are kept here."""
        return []

    async def close(self) -> None:
        """See ``AnswerCache.close``: there are no connections."""

    def _drop(self, digest: str) -> None:
        found = self._kept.pop(digest, None)
        if found is not None:
            self._bytes -= _size(found[1])


def _size(answer: bytes) -> int:
    return len(answer) + _ENTRY_BYTES
