"""Ask one upstream after the other until one answers; settle each call that was made."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from nestor.coordinator.admission import Admission
from nestor.coordinator.attempt import Answered, Attempt, CallContext, Question, Run
from nestor.coordinator.budgets import NO_RESERVATION, Budgets, Reservation
from nestor.coordinator.failures import wait_of
from nestor.coordinator.metering import Metering, cost_usd
from nestor.coordinator.pricing import believable
from nestor.coordinator.upstream import Upstream
from nestor.errors import (
    BudgetExceeded,
    CircuitOpen,
    InvalidInput,
    RateLimited,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from nestor.model.ids import new_id
from nestor.model.routing import Charge, Kind, ModelCall
from nestor.model.task import Usage
from nestor.ports.quota import Quota
from nestor.resilience.retry import Backoff

T = TypeVar("T")
__all__ = [
    "CALLER_LEFT",
    "Answered",
    "CallContext",
    "Dispatcher",
    "Question",
    "utc_now",
]
CALLER_LEFT = "the caller left before the end"
SHORT_WAIT_S = 1.0
"""Who asks to come back within this time is waited for, though others are left to ask."""
_NOTHING = Usage()


def utc_now() -> datetime:
    """Wall clock, for records."""
    return datetime.now(UTC)


class Dispatcher:
    """Knows in which words calls fail, and that each is settled once.

    A request has one call that counts, under the interaction id: the attempt that
    answered, else the last that failed. Attempts before it are calls of their own, whose
    ``attempt_of`` is that id.
    """

    def __init__(
        self,
        metering: Metering,
        *,
        budgets: Budgets | None = None,
        quota: Quota | None = None,
        backoff: Backoff | None = None,
        now: Callable[[], datetime] = utc_now,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without ``budgets`` no account is asked, without ``quota`` no limit a minute."""
        self._metering = metering
        self._admission = Admission(budgets, quota)
        self._backoff = backoff or Backoff()
        self._now = now
        self._timer = timer

    async def first(
        self, order: Sequence[Upstream], question: Question[T], context: CallContext
    ) -> Answered[T]:
        """Return the first answer. When nobody answers, say why each did not.

        Each upstream is asked once, in order; twice where it asks to come back soon, or a
        kept connection had just ended. When nobody is left, those whose failure may pass
        are asked again, with growing pauses, while their ``timeout_s`` lasts.

        Raises ``InvalidInput`` (no upstream can express the request, or those asked
        refused it), ``RateLimited``, ``BudgetExceeded``, ``CircuitOpen`` when that is
        all there is to say, else ``Unavailable``. Nothing is left to settle then.
        """
        run = Run(question, context, new_id(), self._timer())
        try:
            for upstream in order:
                answered = await self._try(upstream, run)
                if answered is None and await self._comes_back_soon(upstream, run):
                    answered = await self._try(upstream, run)
                if answered is not None:
                    return answered
            while (again := await self._next_again(order, run)) is not None:
                answered = await self._try(again, run)
                if answered is not None:
                    return answered
            raise run.failures.given_up()
        finally:
            if run.ended is not None:
                self._metering.end(run.ended)

    def settle(
        self,
        answered: Answered[T],
        usage: Usage,
        *,
        replayed: bool,
        error: str | None = None,
        cached: bool = False,
    ) -> ModelCall:
        """Keep what a call came to. Once: a second time changes nothing.

        ``error``: how it broke after its start. What is not known of tokens and cost is
        charged as it was reserved.
        """
        if answered.call is not None:
            return answered.call
        attempt, upstream, usage = (
            answered.attempt,
            answered.upstream,
            believable(usage),
        )
        deployment = upstream.deployment
        cost = Decimal(0) if cached else cost_usd(deployment, usage, replayed=replayed)
        tokens = _tokens(usage, deployment.kind)
        if error is None:
            upstream.answered(attempt.permit, slow=answered.slow)
        else:
            attempt.permit.release()  # no effect where it was said to have failed
        call = answered.call = self._ended(
            attempt,
            charges=attempt.reservation.settle(cost, tokens),
            ok=error is None,
            usage=usage,
            cost_usd=cost,
            error=error,
            replayed=replayed,
            cached=cached,
        )
        if attempt.tokens and tokens is not None:
            self._admission.correct(upstream.tokens_quota, tokens - attempt.tokens)
        self._metering.end(call)
        return call

    async def close(self) -> None:
        """Wait for what is still being counted."""
        await self._admission.close()

    async def _try(self, upstream: Upstream, run: Run[T]) -> Answered[T] | None:
        """Ask one upstream once; None, and a failure noted, where it gives no answer."""
        body = run.prepared(upstream.deployment.dialect)
        if isinstance(body, InvalidInput):
            run.failures.cannot_say(upstream, body)
            return None
        try:
            permit = upstream.breaker.admit()
        except CircuitOpen as error:
            run.failures.refused(upstream, error)
            return None
        context, deployment = run.context, upstream.deployment
        reservation, tokens = NO_RESERVATION, 0
        if context.accounts or deployment.rpm is not None or deployment.tpm is not None:
            try:
                reservation, tokens = await self._admission.ask(upstream, context)
            except (BudgetExceeded, RateLimited, Unavailable) as error:
                permit.release()
                run.failures.refused(upstream, error)
                return None
            except BaseException:
                permit.release()
                raise
        call = self._begun(upstream, run, reservation)
        began = self._timer()
        attempt = Attempt(call, upstream, permit, began, reservation, tokens)
        self._begin(attempt, run)
        try:
            if deployment.name in run.asked_at:
                value = await self._asked_again(upstream, body, run)
            else:
                run.asked_at[deployment.name] = began
                value = await run.question.ask(upstream.client, body)
        except BaseException as error:
            run.waited_s += self._timer() - began
            if self._goes_on(attempt, error, run):
                return None
            raise
        elapsed_s = self._timer() - began
        return Answered(
            value=value,
            upstream=upstream,
            permit=permit,
            interaction_id=run.identity,
            at=call.at,
            began=began,
            waited_s=run.waited_s + elapsed_s,
            fallback_from=call.fallback_from,
            context=context,
            slow=deployment.slow_s is not None and elapsed_s > deployment.slow_s,
            attempt=attempt,
        )

    def _begun(
        self, upstream: Upstream, run: Run[T], reservation: Reservation
    ) -> ModelCall:
        deployment, context = upstream.deployment, run.context
        return ModelCall(
            interaction_id=run.identity,
            at=self._now(),
            deployment=deployment.name,
            side=deployment.side,
            model=deployment.model,
            dialect=context.dialect,
            route_reason=context.reason,
            ok=False,
            usage=_NOTHING,
            cost_usd=None,
            latency_ms=0.0,
            task_id=context.task_id,
            iteration=context.iteration,
            trace_id=context.trace_id,
            fallback_from=run.failures.first_but(deployment.name),
            replayed=deployment.replayed,
            purpose=context.purpose,
            key_id=context.key_id,
            context_ids=context.context_ids,
            charges=reservation.charges,
        )

    def _begin(self, attempt: Attempt, run: Run[T]) -> None:
        """Write it down. What failed before was an attempt, and not the one that counts."""
        if run.ended is not None:
            before = msgspec.structs.replace(
                run.ended, interaction_id=new_id(), attempt_of=run.identity
            )
            run.ended = None
            self._metering.end(before)
        attempt.upstream.enter()
        self._metering.begin(attempt.call)

    async def _asked_again(
        self, upstream: Upstream, body: dict[str, Any], run: Run[T]
    ) -> T:
        try:
            async with asyncio.timeout(max(0.0, run.left_s(upstream, self._timer()))):
                return await run.question.ask(upstream.client, body)
        except TimeoutError as error:
            name, limit_s = upstream.deployment.name, upstream.deployment.timeout_s
            message = f"{name}: no answer within {limit_s:g} s, asked more than once"
            raise UpstreamError(message) from error

    def _goes_on(self, attempt: Attempt, error: BaseException, run: Run[T]) -> bool:
        """End an attempt that gave no answer; tell whether another may be asked."""
        upstream, reservation = attempt.upstream, attempt.reservation
        deployment = upstream.deployment
        said, goes_on = CALLER_LEFT, True
        if isinstance(error, Unavailable):
            said = str(error)
            upstream.failed(attempt.permit, error)
            run.failures.asked(upstream, error)
        elif isinstance(error, InvalidInput):
            said = str(error)
            attempt.permit.release()
            run.failures.cannot_say(upstream, error)
        else:
            attempt.permit.release()
            goes_on = False
            if isinstance(error, Exception):
                said = type(error).__name__
        free = deployment.replayed or _was_not_billed(error)
        charges: tuple[Charge, ...] = ()
        if free:
            cost: Decimal | None = Decimal(0)
            reservation.release()
            if attempt.tokens:
                self._admission.correct(upstream.tokens_quota, -attempt.tokens)
        else:
            run.context.may_be_billed = True
            cost = cost_usd(deployment, _NOTHING, replayed=False)
            charges = reservation.settle(cost, None)
        run.ended = self._ended(attempt, charges=charges, cost_usd=cost, error=said)
        return goes_on

    def _ended(self, attempt: Attempt, **came_to: Any) -> ModelCall:
        attempt.upstream.leave()
        latency_ms = round((self._timer() - attempt.began) * 1000, 3)
        return msgspec.structs.replace(attempt.call, latency_ms=latency_ms, **came_to)

    async def _comes_back_soon(self, upstream: Upstream, run: Run[T]) -> bool:
        """Wait as long as it asks for, if that is short; tell whether to ask it again."""
        error = run.failures.of(upstream)
        if error is None or not run.failures.may_pass(upstream):
            return False
        if isinstance(error, UpstreamError) and error.stale:
            return True
        wait_s = wait_of(error)
        if wait_s is None or wait_s > SHORT_WAIT_S:
            return False
        return await self._waited(upstream, 1, wait_s, run)

    async def _next_again(
        self, order: Sequence[Upstream], run: Run[T]
    ) -> Upstream | None:
        """Return who is asked again once nobody is left, after the pause before it."""
        run.retries += 1
        for upstream in run.worth_asking_again(order):
            wait_s = wait_of(run.failures.of(upstream))
            if await self._waited(upstream, run.retries, wait_s, run):
                name = upstream.deployment.name
                run.again[name] = run.again.get(name, 0) + 1
                return upstream
        return None

    async def _waited(
        self, upstream: Upstream, tries: int, wait_s: float | None, run: Run[T]
    ) -> bool:
        delay_s = self._backoff.delay_s(tries, retry_after_s=wait_s)
        began = self._timer()
        if delay_s is None or delay_s >= run.left_s(upstream, began):
            return False
        await self._backoff.sleep(delay_s)
        run.waited_s += self._timer() - began
        return True


def _was_not_billed(error: BaseException) -> bool:
    """Tell whether an attempt cost nothing for sure.

    Nobody was reached, or an error status answered. Whether what was cut or timed out is
    billed, nobody told us.
    """
    if isinstance(error, UpstreamError):
        return error.status is not None
    if isinstance(error, UpstreamTimeout):
        return False
    return isinstance(error, Unavailable | InvalidInput)


def _tokens(usage: Usage, kind: Kind) -> int | None:
    """Return what a call took; None while a part of it is not known."""
    if usage.input_tokens is None:
        return None
    if usage.output_tokens is None:
        return usage.input_tokens if kind is Kind.EMBEDDINGS else None
    return usage.total
