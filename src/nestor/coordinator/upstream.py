"""One deployment as the Coordinator holds it: its client, its breaker, what was seen."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from nestor.errors import CircuitOpen, Unavailable, UpstreamError
from nestor.model.health import Dependency, HealthStatus
from nestor.model.routing import Deployment
from nestor.ports.model_client import ModelClient
from nestor.resilience.circuit_breaker import CircuitBreaker, Permit

T = TypeVar("T")
_CLIENT_ERRORS = range(400, 500)
_NOT_THE_CALLERS_FAULT = {408, 429}


class Upstream:
    """Calls go through the breaker; what they came to is remembered for health reports."""

    def __init__(
        self,
        deployment: Deployment,
        client: ModelClient,
        breaker: CircuitBreaker,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self.deployment = deployment
        self.client = client
        self.breaker = breaker
        self._now = now
        self._last_error: str | None = None
        self._observed_at: datetime | None = None

    async def ask(
        self, question: Callable[[ModelClient], Awaitable[T]]
    ) -> tuple[T, Permit]:
        """Ask when the breaker allows it. Raises ``Unavailable``, ``CircuitOpen`` included.

        The permit is to be settled once the answer has ended: a stream may die later.
        """
        permit = self.breaker.admit()
        try:
            return await question(self.client), permit
        except Unavailable as error:
            self.failed(permit, error)
            raise
        except BaseException:
            permit.release()
            raise

    def answered(self, permit: Permit) -> None:
        """Note that an answer came to its end."""
        permit.succeed()
        self._observe(None)

    def failed(self, permit: Permit, error: Unavailable) -> None:
        """Note a failure. A 4xx of the caller's making shows a server that is well."""
        if not isinstance(error, CircuitOpen):  # else nothing was looked at
            self._observe(str(error))
        status = error.status if isinstance(error, UpstreamError) else None
        if status in _CLIENT_ERRORS and status not in _NOT_THE_CALLERS_FAULT:
            permit.succeed()
            return
        permit.fail(error)
        if isinstance(error, UpstreamError) and error.retry_after_s:
            self.breaker.hold(error.retry_after_s)

    def dependency(self) -> Dependency:
        """What the last call came to; unknown before the first one."""
        status = None
        if self._observed_at is not None:
            well = self._last_error is None
            status = HealthStatus.HEALTHY if well else HealthStatus.UNHEALTHY
        return Dependency(
            name=f"model:{self.deployment.name}",
            status=status,
            message=self._last_error or "",
            last_observed=self._observed_at,
        )

    def _observe(self, error: str | None) -> None:
        self._last_error = error
        self._observed_at = self._now()
