"""Ask one upstream after the other until one answers; settle each call that was made."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Generic, TypeVar

from nestor.coordinator.metering import Metering, cost_usd
from nestor.coordinator.upstream import Upstream
from nestor.errors import (
    CircuitOpen,
    InvalidInput,
    NestorError,
    RateLimited,
    Unavailable,
    UpstreamError,
)
from nestor.model.ids import new_id
from nestor.model.routing import ModelCall
from nestor.model.task import Usage
from nestor.ports.model_client import ModelClient
from nestor.resilience.circuit_breaker import Permit

T = TypeVar("T")
_REFUSALS = {400, 413, 422}
_TOO_MANY = 429
_WAIT_UNKNOWN_S = 1.0
CALLER_LEFT = "the caller left before the end"


def utc_now() -> datetime:
    """Wall clock, for records."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """On whose behalf a model is asked."""

    purpose: str
    reason: str
    trace_id: str
    task_id: str | None
    iteration: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Generic[T]):
    """The first upstream that answered, and what is needed to settle the call later."""

    value: T
    upstream: Upstream
    permit: Permit
    interaction_id: str
    at: datetime
    began: float
    """Seconds of the timer."""
    waited_s: float
    """For upstreams, those that failed before included."""
    fallback_from: str | None
    context: CallContext


class Dispatcher:
    """Knows in which words calls fail, and that each is settled once."""

    def __init__(
        self,
        metering: Metering,
        *,
        now: Callable[[], datetime] = utc_now,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metering = metering
        self._now = now
        self._timer = timer

    async def first(
        self,
        upstreams: Sequence[Upstream],
        question: Callable[[ModelClient], Awaitable[T]],
        context: CallContext,
    ) -> Answered[T]:
        """Return the first answer. When nobody answers, say why each did not.

        Raises ``InvalidInput`` or ``RateLimited`` when the only upstream said so, else
        ``Unavailable``.
        """
        failures: list[tuple[Upstream, Unavailable]] = []
        waited_s = 0.0
        for upstream in upstreams:
            identity, at, began = new_id(), self._now(), self._timer()
            name = failures[0][0].deployment.name if failures else None
            try:
                value, permit = await upstream.ask(question)
            except Unavailable as error:
                waited_s += self._timer() - began
                failures.append((upstream, error))
                if isinstance(error, UpstreamError):
                    await self._settle_failure(
                        upstream, identity, at, began, context, error
                    )
                continue
            except asyncio.CancelledError:
                await self._settle_failure(
                    upstream, identity, at, began, context, CALLER_LEFT
                )
                raise
            return Answered(
                value=value,
                upstream=upstream,
                permit=permit,
                interaction_id=identity,
                at=at,
                began=began,
                waited_s=waited_s + self._timer() - began,
                fallback_from=name,
                context=context,
            )
        raise _given_up(failures)

    async def settle(
        self,
        answered: Answered[T],
        usage: Usage,
        *,
        replayed: bool,
        error: str | None = None,
    ) -> ModelCall:
        """Keep what a call came to; once per call. ``error``: how it broke after its start."""
        deployment = answered.upstream.deployment
        call = ModelCall(
            interaction_id=answered.interaction_id,
            at=answered.at,
            deployment=deployment.name,
            side=deployment.side,
            model=deployment.model,
            dialect=deployment.dialect,
            route_reason=answered.context.reason,
            ok=error is None,
            usage=usage,
            cost_usd=cost_usd(deployment, usage, replayed=replayed),
            latency_ms=self._milliseconds(answered.began),
            task_id=answered.context.task_id,
            iteration=answered.context.iteration,
            trace_id=answered.context.trace_id,
            error=error,
            fallback_from=answered.fallback_from,
            replayed=replayed,
            purpose=answered.context.purpose,
        )
        await self._metering.settle(call)
        return call

    async def _settle_failure(
        self,
        upstream: Upstream,
        identity: str,
        at: datetime,
        began: float,
        context: CallContext,
        error: UpstreamError | str,
    ) -> None:
        """Keep a call that gave no answer.

        Reports no tokens. An error status is not billed; whether a call that was
        cut or timed out is, nobody told us: its cost is unknown.
        """
        deployment = upstream.deployment
        answered_no = isinstance(error, UpstreamError) and error.status is not None
        free = answered_no or deployment.replayed
        unpriced = cost_usd(deployment, Usage(), replayed=deployment.replayed)
        await self._metering.settle(
            ModelCall(
                interaction_id=identity,
                at=at,
                deployment=deployment.name,
                side=deployment.side,
                model=deployment.model,
                dialect=deployment.dialect,
                route_reason=context.reason,
                ok=False,
                usage=Usage(),
                cost_usd=Decimal(0) if free else unpriced,
                latency_ms=self._milliseconds(began),
                task_id=context.task_id,
                iteration=context.iteration,
                trace_id=context.trace_id,
                error=str(error),
                replayed=deployment.replayed,
                purpose=context.purpose,
            )
        )

    def _milliseconds(self, began: float) -> float:
        return round((self._timer() - began) * 1000, 3)


def _given_up(failures: Sequence[tuple[Upstream, Unavailable]]) -> NestorError:
    """Make the one error that tells of all of them."""
    errors = [error for _, error in failures]
    said = "; ".join(str(error) for error in errors)
    if all(isinstance(error, CircuitOpen) for error in errors):
        waits = [e.retry_after_s for e in errors if isinstance(e, CircuitOpen)]
        return CircuitOpen(said, retry_after_s=min(waits))
    if len(errors) > 1:
        return Unavailable(f"no model answered: {said}")
    (error,) = errors
    if isinstance(error, UpstreamError) and error.status in _REFUSALS:
        return InvalidInput(f"the model's server refused the request: {said}")
    if isinstance(error, UpstreamError) and error.status == _TOO_MANY:
        wait = error.retry_after_s or _WAIT_UNKNOWN_S
        return RateLimited(said, retry_after_s=wait)
    return error
