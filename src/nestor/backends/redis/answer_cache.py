"""Answers given before, shared by all processes that use the same Redis.

What this process kept it also has in its own memory, so an outage of Redis changes one
thing only: meanwhile each process has its own answers. Redis forgets by time; for a
bound in bytes set its ``maxmemory`` with a policy that evicts.
"""

from contextlib import suppress

from redis.exceptions import ResponseError

from nestor.backends.redis.connection import RedisConnection
from nestor.errors import Unavailable
from nestor.model.health import Dependency
from nestor.resilience.answer_cache import MemoryAnswers

KEY_PREFIX = "nestor:answer:"
MAX_VALUE_BYTES = 1024 * 1024
"""More is neither put nor taken, whoever put it there."""


class RedisAnswers:
    """``ports.answer_cache.AnswerCache`` on Redis, beside the memory of this process."""

    def __init__(self, connection: RedisConnection, *, local: MemoryAnswers) -> None:
        """``connection`` is closed by ``close``."""
        self._connection = connection
        self._local = local

    async def get(self, digest: str) -> bytes | None:
        """See ``AnswerCache.get``. Waits for Redis only where this process has none."""
        kept = await self._local.get(digest)
        if kept is not None:
            return kept
        try:
            found = await self._connection.ask(lambda: self._take(digest))
        except Unavailable:
            return None
        return found if found and len(found) <= MAX_VALUE_BYTES else None

    async def put(self, digest: str, answer: bytes, *, ttl_s: float) -> None:
        """See ``AnswerCache.put``."""
        await self._local.put(digest, answer, ttl_s=ttl_s)
        milliseconds = int(ttl_s * 1000)
        if milliseconds <= 0 or len(answer) > MAX_VALUE_BYTES:
            return
        with suppress(Unavailable):
            await self._connection.ask(
                lambda: self._connection.client.set(
                    KEY_PREFIX + digest, answer, px=milliseconds
                )
            )

    async def dependencies(self) -> list[Dependency]:
        """See ``AnswerCache.dependencies``: asks Redis, unless it just failed."""
        return [
            await self._connection.dependency(
                well="answers are shared",
                away="until it answers, each process gives its own answers again",
            )
        ]

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    async def _take(self, digest: str) -> bytes | None:
        # A part, so that no value of another's making fills the memory here.
        try:
            found = await self._connection.client.getrange(
                KEY_PREFIX + digest, 0, MAX_VALUE_BYTES
            )
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                return None  # somebody else's: no fault of the server
            raise
        return found if isinstance(found, bytes) else None
