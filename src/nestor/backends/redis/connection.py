"""A few connections to Redis, asked shortly: nobody waits long for one that is away.

What Redis refuses (a full memory, an argument that is no number) it answers: that opens no
breaker, for it costs the next one no wait.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from nestor.errors import Unavailable
from nestor.model.health import Dependency, HealthStatus
from nestor.resilience.circuit_breaker import CircuitBreaker

T = TypeVar("T")
WAIT_S = 0.2
"""The longest that a request waits for Redis: for a connection and all it is asked."""
FAILURES, RECOVERY_S = 3, 2.0
"""After so many failures in a row nobody waits for this long; then one tries."""
_MOST_SAID = 200
MAX_CONNECTIONS = 4
"""One serves thousands of requests a second; making one costs as much as 25 of them."""


class RedisConnection:
    """Asks with a time limit, behind a breaker; remembers what it saw."""

    def __init__(
        self,
        url: str,
        *,
        user: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Connects later, when it is asked.

        ``url``: as ``model.network.refuse_redis_url`` lets it through. ``user``: what it is
        for; its breaker is ``redis USER``, so each has a name of its own in the metrics.
        """
        self._now = now
        self.pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=WAIT_S,
            socket_timeout=WAIT_S,
            socket_connect_timeout=WAIT_S,
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
        )
        self.client: Redis = Redis(connection_pool=self.pool)
        self._breaker = CircuitBreaker(
            f"redis {user}", failures=FAILURES, recovery_s=RECOVERY_S
        )
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._failure: str | None = None
        self._observed_at: datetime | None = None

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask when the breaker allows it, for ``WAIT_S`` at most. Raises ``Unavailable``."""
        with self._breaker.admit() as permit:
            try:
                async with asyncio.timeout(WAIT_S), self._turns:
                    answer = await question()
            except ResponseError as error:
                permit.succeed()
                self._observe(f"Redis refuses what it is asked ({error})"[:_MOST_SAID])
                raise Unavailable("Redis refuses what it is asked") from error
            except (RedisError, OSError, EOFError, ValueError) as error:
                self._observe(_why(error))
                raise Unavailable("Redis does not answer") from error
            self._observe(None)
            return answer

    async def dependency(self, *, well: str, away: str) -> Dependency:
        """Ask Redis, unless it just failed; ``away``: what happens until it answers."""
        try:
            await self.ask(lambda: self.client.get("nestor"))
        except Unavailable:
            status = HealthStatus.DEGRADED
            message = f"{self._failure or 'not asked yet'}; {away}"
        else:
            status, message = HealthStatus.HEALTHY, well
        return Dependency(
            name="redis",
            status=status,
            message=message,
            last_observed=self._observed_at,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.pool.disconnect()

    def _observe(self, failure: str | None) -> None:
        self._failure, self._observed_at = failure, self._now()


def _why(error: Exception) -> str:
    if isinstance(error, AuthenticationError):
        return "Redis refuses the name or password in NESTOR_REDIS_URL"
    if isinstance(error, (TimeoutError, RedisTimeoutError)):
        return f"Redis did not answer within {WAIT_S:g} s"
    return f"Redis does not answer ({type(error).__name__})"
