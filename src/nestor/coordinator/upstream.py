"""One deployment as the Coordinator holds it: its client, its breaker, what was seen."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from nestor.errors import CircuitOpen, Unavailable, UpstreamError
from nestor.model.health import Dependency, HealthStatus
from nestor.model.routing import Deployment
from nestor.ports.model_client import ModelClient
from nestor.resilience.circuit_breaker import CircuitBreaker, Permit

_CLIENT_ERRORS = range(400, 500)
_NOT_THE_CALLERS_FAULT = {408, 429}


class Upstream:
    """What calls came to is remembered for health reports.

    ``in_flight`` counts calls between ``enter`` and ``leave``; once retired, ``on_idle``
    is called when the last of them has ended.
    """

    def __init__(
        self,
        deployment: Deployment,
        client: ModelClient,
        breaker: CircuitBreaker,
        *,
        now: Callable[[], datetime],
        on_idle: Callable[["Upstream"], None] = lambda _: None,
    ) -> None:
        self.deployment = deployment
        self.client = client
        self.breaker = breaker
        self.requests_quota = f"deployment:{deployment.name}:requests"
        self.tokens_quota = f"deployment:{deployment.name}:tokens"
        """Names that ``ports.quota.Quota`` counts under."""
        self.in_flight = 0
        self._now = now
        self._on_idle = on_idle
        self._retired = False
        self._last_error: str | None = None
        self._observed_at: datetime | None = None

    def enter(self) -> None:
        """A call begins."""
        self.in_flight += 1

    def leave(self) -> None:
        """A call has ended: of a stream, its last byte."""
        self.in_flight -= 1
        if self._retired and not self.in_flight:
            self._on_idle(self)

    def retire(self) -> None:
        """No new calls come: it was taken out of the configuration, or changed there."""
        self._retired = True
        self.breaker.retire()
        if not self.in_flight:
            self._on_idle(self)

    def answered(self, permit: Permit, *, slow: bool = False) -> None:
        """Note that an answer came to its end."""
        permit.succeed(slow=slow)
        self._observe(None)

    def failed(self, permit: Permit, error: Unavailable) -> None:
        """Note a failure. A 4xx of the caller's making shows a server that is well."""
        if isinstance(error, CircuitOpen):
            permit.release()  # nothing was looked at
            return
        self._observe(str(error))
        if isinstance(error, UpstreamError):
            if error.stale:
                permit.release()  # a connection ended; of the server it says nothing
                return
            status = error.status
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

    def stats(self) -> dict[str, Any]:
        """What ``/stats`` shows of it: never an address or a key."""
        deployment = self.deployment
        return {
            "name": deployment.name,
            "side": deployment.side,
            "kind": deployment.kind,
            "dialect": deployment.dialect,
            "model": deployment.model,
            "weight": deployment.weight,
            "tags": list(deployment.tags),
            "fallbacks": list(deployment.fallbacks),
            "replayed": deployment.replayed,
            "priced": deployment.price_input is not None
            and deployment.price_output is not None,
            "in_flight": self.in_flight,
            "breaker": msgspec.to_builtins(self.breaker.snapshot()),
        }

    def _observe(self, error: str | None) -> None:
        self._last_error = error
        self._observed_at = self._now()
