"""What was last seen of a dependency: facts, never a fresh probe."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from nestor.errors import Misconfigured, NestorError, Unavailable
from nestor.model.health import Dependency, HealthStatus

T = TypeVar("T")
HOLD_S = 0.5
"""After a failure queries do without a dependency for so long; then one of them asks."""


class Watch:
    """Every call to one dependency goes through ``run`` or ``ask``, which note how it ended."""

    def __init__(
        self,
        name: str,
        clock: Callable[[], datetime],
        *,
        required: bool,
        hold_s: float = HOLD_S,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._clock = clock
        self._timer = timer
        self._required = required
        self._hold_s = hold_s
        self._failure: str | None = None
        self._last: datetime | None = None
        self._ask_at = 0.0
        self.failed = asyncio.Event()
        """Set by each failure, for who mends it to wait for and clear."""

    @property
    def failing(self) -> bool:
        """Tell whether the last call failed."""
        return self._failure is not None

    async def run(self, call: Awaitable[T]) -> T:
        """Await ``call``. What goes wrong is noted and passed on; a refusal is not wrong."""
        try:
            result = await call
        except Exception as error:
            self._note_error(error)
            raise
        self._note(None)
        return result

    async def ask(self, call: Callable[[], Awaitable[T]], *, within_s: float) -> T:
        """Make a call that a query waits for.

        Raises ``Unavailable`` also when it takes too long, and at once while the
        dependency has just failed: then only one query in ``hold_s`` finds out whether
        it is back.
        """
        if self._failure is not None:
            now = self._timer()
            if now < self._ask_at:
                raise Unavailable(self._failure)
            self._ask_at = now + within_s + self._hold_s
        try:
            async with asyncio.timeout(within_s):
                result = await call()
        except TimeoutError:
            self._note(f"no answer within {within_s:g} s")
            raise Unavailable(self._failure or "") from None
        except Exception as error:
            self._note_error(error)
            raise
        self._note(None)
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

    def _note_error(self, error: Exception) -> None:
        if isinstance(error, Unavailable | Misconfigured):
            self._note(str(error))
        elif not isinstance(error, NestorError):
            # Its words may be of texts or of parameters: those are for the log alone.
            self._note(f"it failed with {type(error).__name__}")

    def _note(self, failure: str | None) -> None:
        self._failure, self._last = failure, self._clock()
        self._ask_at = 0.0
        if failure is not None:
            self._ask_at = self._timer() + self._hold_s
            self.failed.set()
