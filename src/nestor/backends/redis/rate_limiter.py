"""A moving window for each client, shared by all processes that use the same Redis.

What this process admitted is counted here as well, so an outage of Redis changes one
thing only: meanwhile each process counts for itself. Whoever spent his window here is
refused without asking Redis, which therefore sees no more keys than windows fit here.

The shared counts go by the wall clocks of the processes. Where these differ, one process
takes what another admitted for older or newer than it is, by that much; the count here
goes by the monotonic clock and holds whatever they do.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from nestor.errors import Unavailable
from nestor.model.health import Dependency, HealthStatus
from nestor.resilience.circuit_breaker import CircuitBreaker
from nestor.resilience.rate_limit import MovingWindow

T = TypeVar("T")
WAIT_S = 0.2
"""The longest that a request waits for Redis: for a connection and all it is asked."""
FAILURES, RECOVERY_S = 3, 2.0
"""After so many failures in a row nobody waits for this long; then one tries."""
MAX_CONNECTIONS = 4
"""One serves thousands of requests a second; making one costs as much as 25 of them."""
KEY_PREFIX = "nestor:rate"


class RedisWindow:
    """``ports.rate_limiter.RateLimiter`` on Redis, beside a window of this process."""

    def __init__(
        self,
        url: str,
        limit: int,
        window_s: int,
        *,
        local: MovingWindow,
        name: str = "proxy",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Connects later, when it is asked. ``local`` has the same limit and window.

        ``url``: as ``model.network.refuse_redis_url`` lets it through. ``name``: limiters
        of the same name share their counts.
        """
        self._local = local
        self._window_s = window_s
        self._now = now
        self._item = RateLimitItemPerSecond(limit, window_s, namespace=name)
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=WAIT_S,
            socket_timeout=WAIT_S,
            socket_connect_timeout=WAIT_S,
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
        )
        storage = RedisStorage(
            "async+redis://",  # where to is the pool's to know
            implementation="redispy",
            key_prefix=KEY_PREFIX,
            connection_pool=self._pool,  # type: ignore[arg-type] # said too narrowly there
        )
        self._storage = storage
        self._shared = MovingWindowRateLimiter(storage)
        self._breaker = CircuitBreaker(
            "redis", failures=FAILURES, recovery_s=RECOVERY_S
        )
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._failure: str | None = None
        self._observed_at: datetime | None = None

    async def admit(self, client: str) -> float | None:
        """See ``RateLimiter.admit``. Waits at most ``WAIT_S`` for Redis."""
        wait_s = self._local.wait_s(client)
        if wait_s is not None:
            return wait_s
        try:
            return await self._ask(lambda: self._hit(client))
        except Unavailable:
            return await self._local.admit(client)

    async def dependencies(self) -> list[Dependency]:
        """See ``RateLimiter.dependencies``: asks Redis, unless it just failed."""
        try:
            await self._ask(self._ping)
        except Unavailable:
            status = HealthStatus.DEGRADED
            message = (
                f"{self._failure or 'not asked yet'}; until it answers, rate limits are"
                " counted in this process alone"
            )
        else:
            status, message = HealthStatus.HEALTHY, "rate limits are shared"
        return [
            Dependency(
                name="redis",
                status=status,
                message=message,
                last_observed=self._observed_at,
            )
        ]

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.disconnect()

    async def _hit(self, client: str) -> float | None:
        wait_s = self._local.wait_s(client)
        if wait_s is not None:  # spent while this one waited for its turn
            return wait_s
        if await self._shared.hit(self._item, client):
            return await self._local.admit(client)
        reset_at, _ = await self._shared.get_window_stats(self._item, client)
        # A wall clock that was set, here or there, must send nobody away for long.
        return min(max(reset_at - time.time(), 0.0), float(self._window_s))

    async def _ping(self) -> None:
        await self._storage.get(KEY_PREFIX)

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask when the breaker allows it. Raises ``Unavailable``."""
        with self._breaker.admit():
            try:
                async with asyncio.timeout(WAIT_S), self._turns:
                    answer = await question()
            except (RedisError, OSError, EOFError, ValueError) as error:
                self._observe(_why(error))
                raise Unavailable("Redis does not answer") from error
            self._observe(None)
            return answer

    def _observe(self, failure: str | None) -> None:
        self._failure, self._observed_at = failure, self._now()


def _why(error: Exception) -> str:
    if isinstance(error, AuthenticationError):
        return "Redis refuses the name or password in NESTOR_REDIS_URL"
    if isinstance(error, (TimeoutError, RedisTimeoutError)):
        return f"Redis did not answer within {WAIT_S:g} s"
    return f"Redis does not answer ({type(error).__name__})"
