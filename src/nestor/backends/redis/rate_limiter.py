"""A moving window for each client, shared by all processes that use the same Redis.

What this process admitted is counted here as well, so an outage of Redis changes one
thing only: meanwhile each process counts for itself. Whoever spent his window here is
refused without asking Redis, which therefore sees no more keys than windows fit here.

The shared counts go by the wall clocks of the processes. Where these differ, one process
takes what another admitted for older or newer than it is, by that much; the count here
goes by the monotonic clock and holds whatever they do.
"""

import time

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter

from nestor.backends.redis.connection import RedisConnection
from nestor.errors import Unavailable
from nestor.model.health import Dependency
from nestor.resilience.rate_limit import MovingWindow

KEY_PREFIX = "nestor:rate"


class RedisWindow:
    """``ports.rate_limiter.RateLimiter`` on Redis, beside a window of this process."""

    def __init__(
        self,
        connection: RedisConnection,
        limit: int,
        window_s: int,
        *,
        local: MovingWindow,
        name: str = "proxy",
    ) -> None:
        """``connection`` is closed by ``close``. ``local`` has the same limit and window.

        ``name``: limiters of the same name share their counts.
        """
        self._connection = connection
        self._local = local
        self._window_s = window_s
        self._item = RateLimitItemPerSecond(limit, window_s, namespace=name)
        storage = RedisStorage(
            "async+redis://",  # where to is the pool's to know
            implementation="redispy",
            key_prefix=KEY_PREFIX,
            connection_pool=connection.pool,  # type: ignore[arg-type] # said too narrowly there
        )
        self._shared = MovingWindowRateLimiter(storage)

    async def admit(self, client: str) -> float | None:
        """See ``RateLimiter.admit``. Waits at most ``WAIT_S`` for Redis."""
        wait_s = self._local.wait_s(client)
        if wait_s is not None:
            return wait_s
        try:
            return await self._connection.ask(lambda: self._hit(client))
        except Unavailable:
            return await self._local.admit(client)

    async def dependencies(self) -> list[Dependency]:
        """See ``RateLimiter.dependencies``: asks Redis, unless it just failed."""
        return [
            await self._connection.dependency(
                well="rate limits are shared",
                away="until it answers, rate limits are counted in this process alone",
            )
        ]

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    async def _hit(self, client: str) -> float | None:
        wait_s = self._local.wait_s(client)
        if wait_s is not None:  # spent while this one waited for its turn
            return wait_s
        if await self._shared.hit(self._item, client):
            return await self._local.admit(client)
        reset_at, _ = await self._shared.get_window_stats(self._item, client)
        # A wall clock that was set, here or there, must send nobody away for long.
        return min(max(reset_at - time.time(), 0.0), float(self._window_s))
