"""What was last seen of a dependency: facts, never a fresh probe."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from nestor.errors import Unavailable
from nestor.model.health import Dependency, HealthStatus

T = TypeVar("T")


class Watch:
    """Every call to one dependency goes through ``run``, which notes how it ended."""

    def __init__(
        self, name: str, clock: Callable[[], datetime], *, required: bool
    ) -> None:
        self._name = name
        self._clock = clock
        self._required = required
        self._failure: str | None = None
        self._last: datetime | None = None

    async def run(self, call: Awaitable[T]) -> T:
        """Await ``call``. ``Unavailable`` is noted and passed on."""
        try:
            result = await call
        except Unavailable as error:
            self._failure, self._last = str(error), self._clock()
            raise
        self._failure, self._last = None, self._clock()
        return result

    def dependency(self, note: str = "") -> Dependency:
        """Report the last observation; ``note``: works, but with less than it should."""
        failing = HealthStatus.UNHEALTHY if self._required else HealthStatus.DEGRADED
        status: HealthStatus | None = None
        if self._last is not None:
            status = failing if self._failure else HealthStatus.HEALTHY
            if note and not self._failure:
                status = HealthStatus.DEGRADED
        return Dependency(
            name=self._name,
            status=status,
            message=self._failure or note,
            last_observed=self._last,
            required=self._required,
        )
