"""What the sandbox said of itself when it was last looked at."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime

from nestor.model.health import Dependency, HealthStatus
from nestor.ports.sandbox import Sandbox

FRESH_S = 30.0
"""A look starts a process, so an answer serves for this long."""


class Isolation:
    """Looks through the sandbox's ``probe``, off the event loop, one look at a time."""

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        clock: Callable[[], datetime],
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sandbox = sandbox
        self._clock = clock
        self._timer = timer
        self._seen: Dependency | None = None
        self._seen_at = 0.0
        self._looking: asyncio.Task[Dependency] | None = None

    async def dependency(self) -> Dependency:
        """Return the last look, or a new one when that is older than ``FRESH_S``."""
        if self._seen is not None and self._timer() - self._seen_at < FRESH_S:
            return self._seen
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        # Who asks may give up; the look goes on and serves the next one.
        return await asyncio.shield(self._looking)

    async def _look(self) -> Dependency:
        began = self._timer()
        at = self._clock()
        why = await asyncio.to_thread(self._sandbox.probe)
        status, message = HealthStatus.HEALTHY, f"{self._sandbox.name} isolates"
        if self._sandbox.name == "landlock":
            message += ", weaker than bubblewrap: other processes can be seen"
        if self._sandbox.name == "none":
            status = HealthStatus.DEGRADED
            message = "agents run WITHOUT isolation (NESTOR_SANDBOX=none)"
        if why is not None:
            status, message = HealthStatus.UNHEALTHY, why
        self._seen, self._seen_at = (
            Dependency(
                name="sandbox",
                status=status,
                message=message,
                last_observed=at,
                required=True,
            ),
            began,
        )
        return self._seen
