"""The Coordinator: sends each query to the model that should answer it."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from msgspec import structs

from nestor.coordinator.answer_cache import AnswerCaching
from nestor.coordinator.asking import Say
from nestor.coordinator.budgets import Budgets, estimate
from nestor.coordinator.dialects.anthropic_chunks import reply_of
from nestor.coordinator.dialects.anthropic_reply import text_in
from nestor.coordinator.dialects.openai import choice_of
from nestor.coordinator.dispatch import Answered, CallContext, Dispatcher, utc_now
from nestor.coordinator.failures import unreadable
from nestor.coordinator.gateway import FACES, Gateway
from nestor.coordinator.interactions import Interactions
from nestor.coordinator.limits import NOBODY, BudgetOf, Caller, Limits, used_tokens
from nestor.coordinator.metering import Metering
from nestor.coordinator.pool import Pool
from nestor.coordinator.pricing import MAX_TOKENS
from nestor.coordinator.prompt import messages
from nestor.coordinator.selection import Selection
from nestor.coordinator.upstream import Upstream
from nestor.errors import InvalidInput, Unavailable, UpstreamError
from nestor.model.event import QUERY_ROUTED
from nestor.model.health import Dependency
from nestor.model.ids import derived_id, new_id
from nestor.model.knowledge import ContextItem, ContextRequest
from nestor.model.routing import (
    EXTRACT,
    Decision,
    Dialect,
    Mode,
    RouteRequest,
    RouteResult,
    Side,
)
from nestor.model.task import Usage
from nestor.ports.answer_cache import AnswerCache
from nestor.ports.call_ledger import CallLedger
from nestor.ports.interaction_store import InteractionStore
from nestor.ports.knowledge_base import KnowledgeBase
from nestor.ports.model_client import ModelReply
from nestor.ports.quota import Quota
from nestor.ports.router import Meter
from nestor.telemetry import metrics
from nestor.telemetry.learning_client import LearningClient
from nestor.telemetry.trace import current_trace_id

_NOTHING_KNOWN = (
    "No model is configured, and the knowledge base holds nothing about this query."
)


class Coordinator:
    """Implements ``ports.router.Router``; ``gateway`` is what stands behind ``/v1``.

    ``stop`` folds the meter and closes the pool's clients.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        metering: Metering,
        budgets: Budgets,
        quota: Quota,
        answers: AnswerCache,
        ledger: CallLedger,
        interactions: InteractionStore,
        budget_of: BudgetOf,
        knowledge: KnowledgeBase,
        extract: Callable[[str, Sequence[ContextItem]], str],
        learning: LearningClient,
        routing_default: Side = Side.LOCAL,
        keep_prompts: bool = True,
        also_depends_on: Sequence[Callable[[], Dependency]] = (),
        now: Callable[[], datetime] = utc_now,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.metering = metering
        self._budgets = budgets
        self._quota = quota
        self._answers = answers
        self._ledger = ledger
        self._knowledge = knowledge
        self._extract = extract
        self._learning = learning
        self._default = routing_default
        self._also_depends_on = also_depends_on
        self._timer = timer
        self._limits = Limits(quota, budget_of, timer=timer)
        self._selection = Selection(pool, routing_default)
        self._dispatcher = Dispatcher(
            metering, budgets=budgets, quota=quota, now=now, timer=timer
        )
        self._routes: Counter[str] = Counter()
        self.interactions = Interactions(
            interactions,
            ledger=ledger,
            metering=metering,
            knowledge=knowledge,
            learning=learning,
            now=now,
            keep_prompts=keep_prompts,
        )
        self.gateway = Gateway(
            selection=self._selection,
            dispatcher=self._dispatcher,
            metering=metering,
            limits=self._limits,
            cache=AnswerCaching(answers),
            timer=timer,
        )

    async def start(self) -> None:
        """Settle what processes that died have left, and fold the meter from now on."""
        await self.metering.start()

    async def stop(self) -> None:
        """Settle what is open and let go of the clients."""
        await self._dispatcher.close()
        await self.interactions.close()
        await self._budgets.close()
        await self.metering.stop()
        await self.pool.close()
        await self._answers.close()
        await self._quota.close()

    def budget_changed(self, task_id: str) -> None:
        """Hold a task to the budget that it has now, from its next call on."""
        self._limits.forget(task_id)

    def has_models(self) -> bool:
        """Tell whether any model is configured."""
        return bool(self.pool.sides)

    async def meter(self, task_id: str, *, iteration: int | None = None) -> Meter:
        """Add up the calls of a task that have ended."""
        await self.metering.fold_now()
        return await self._ledger.meter(task_id, iteration=iteration)

    async def route(
        self, request: RouteRequest, *, caller: Caller = NOBODY
    ) -> RouteResult:
        """Answer a query, with context from the knowledge base when none is given.

        Raises ``InvalidInput``, ``BudgetExceeded`` when the task has none left, and
        ``Unavailable`` that lists why each model did not answer. Without any model the answer is quoted from the knowledge base.
        """
        began = self._timer()
        _check_route(request)
        items, degraded = await self._context(request)
        by_name = request.named is not None
        if not self.pool.sides and request.mode is Mode.AUTO and not by_name:
            result = self._quote(request, items, degraded, began)
        else:
            result = await self._ask(request, items, degraded, began, caller)
        self._routes[result.route] += 1
        metrics.ROUTES.labels(result.route).inc()
        self._tell(request, result)
        late = await self.interactions.routed(request, result, key_id=caller.key_id)
        if late is not None:
            return structs.replace(result, degraded=[*result.degraded, late])
        return result

    def models(self) -> list[str]:
        """What ``model`` may be."""
        return self._selection.names()

    def window(self, model: str) -> int | None:
        """Return how many tokens fit, whoever is asked for ``model``; None: unknown."""
        return self._selection.window(model)

    async def stats(self) -> dict[str, Any]:
        """Routes since the start of this process, all settled calls, breaker states."""
        await self.metering.fold_now()
        return {
            "routes": dict(self._routes),
            "calls": await self._ledger.totals(),
            "calibration": None,
            "routing_default": self._default,
            "deployments": self.pool.stats(),
        }

    def breakers(self) -> dict[str, str]:
        """State by name, for health."""
        return self.pool.breakers()

    async def dependencies(self) -> list[Dependency]:
        """What the last calls came to; asks no model."""
        return [
            *await self.pool.dependencies(),
            *(look() for look in self._also_depends_on),
            *self.metering.dependencies(),
            *await self._quota.dependencies(),
            *await self._answers.dependencies(),
        ]

    async def _context(
        self, request: RouteRequest
    ) -> tuple[Sequence[ContextItem], list[str]]:
        if request.context is not None:
            return request.context, []
        wanted = ContextRequest(
            query=request.query, task_id=request.task_id, iteration=request.iteration
        )
        try:
            found = await self._knowledge.get_context(wanted)
        except Unavailable as error:
            if not self.pool.sides:
                raise
            return [], [f"knowledge base: {error}"]
        return found.items, found.degraded

    async def _ask(
        self,
        request: RouteRequest,
        items: Sequence[ContextItem],
        degraded: list[str],
        began: float,
        caller: Caller,
    ) -> RouteResult:
        decision, order = self._selection.choose(
            request.named or request.mode,
            iteration=request.iteration,
            field="model" if request.named else "mode",
        )
        body: dict[str, Any] = {"messages": messages(request.query, items)}
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        said = Say(FACES[Dialect.OPENAI], body)
        since = self._timer()
        context, tokens = await self._call_context(
            request, decision, order, items, caller
        )
        try:
            answered = await self._dispatcher.first(order, said, context)
        except BaseException:
            if not context.may_be_billed:
                await self._limits.correct(caller, admitted=tokens, used=0, since=since)
            raise
        text, error = _text_of(answered)
        reply = answered.value
        call = self._dispatcher.settle(
            answered,
            reply.usage,
            replayed=reply.replayed,
            error=None if error is None else str(error),
        )
        used = used_tokens(call.usage)
        await self._limits.correct(caller, admitted=tokens, used=used, since=since)
        if error is not None:
            raise error
        reason = decision.reason
        if answered.fallback_from is not None:
            reason += f"; {answered.fallback_from} did not answer"
        return RouteResult(
            response=text,
            route=call.side,
            confidence=decision.confidence,
            model=call.model,
            reason=reason,
            context_ids=[item.id for item in items],
            sources=[item.source for item in items],
            interaction_id=call.interaction_id,
            usage=call.usage,
            cost_usd=call.cost_usd,
            latency_ms=self._milliseconds(began),
            fallback_from=answered.fallback_from,
            replayed=call.replayed,
            degraded=degraded,
        )

    async def _call_context(
        self,
        request: RouteRequest,
        decision: Decision,
        order: Sequence[Upstream],
        items: Sequence[ContextItem],
        caller: Caller,
    ) -> tuple[CallContext, int]:
        """Admit the request; return with it the tokens that it was admitted for."""
        size = len(request.query.encode("utf-8", "replace"))
        size += sum(len(item.text) for item in items)
        if request.task_id is not None:
            caller = structs.replace(caller, task_id=request.task_id)
        _, tokens = estimate(order[0].deployment, size, request.max_tokens)
        await self._limits.admit(caller, tokens)
        context = CallContext(
            purpose="route",
            reason=decision.reason,
            trace_id=current_trace_id(),
            task_id=request.task_id,
            iteration=request.iteration,
            key_id=caller.key_id,
            accounts=await self._limits.accounts(caller),
            request_bytes=size,
            max_tokens=request.max_tokens,
            context_ids=tuple(item.id for item in items),
        )
        return context, tokens

    def _quote(
        self,
        request: RouteRequest,
        items: Sequence[ContextItem],
        degraded: list[str],
        began: float,
    ) -> RouteResult:
        return RouteResult(
            response=self._extract(request.query, items) if items else _NOTHING_KNOWN,
            route=EXTRACT,
            confidence=None,
            model=None,
            reason="no model is configured: quoted from the knowledge base",
            context_ids=[item.id for item in items],
            sources=[item.source for item in items],
            interaction_id=new_id(),
            usage=Usage(),
            cost_usd=Decimal(0),  # nobody was asked, so nothing was billed
            latency_ms=self._milliseconds(began),
            degraded=degraded,
        )

    def _tell(self, request: RouteRequest, result: RouteResult) -> None:
        once = None
        guides = request.named is None  # only guidance is asked once an iteration
        if guides and request.task_id is not None and request.iteration is not None:
            once = derived_id(request.task_id, request.iteration, QUERY_ROUTED)
        self._learning.log_event(
            QUERY_ROUTED,
            {
                "interaction_id": result.interaction_id,
                "query": request.query,
                "route": result.route,
                "confidence": result.confidence,
                "model": result.model,
                "reason": result.reason,
                "iteration": request.iteration,
                "context_ids": result.context_ids,
                "fallback_from": result.fallback_from,
                "replayed": result.replayed,
            },
            task_id=request.task_id,
            event_id=once,
        )

    def _milliseconds(self, began: float) -> float:
        return round((self._timer() - began) * 1000, 3)


def _text_of(answered: Answered[ModelReply]) -> tuple[str, UpstreamError | None]:
    """Return the text of an answer, and why it has none."""
    body = answered.value.body
    try:
        if answered.upstream.deployment.dialect is Dialect.ANTHROPIC:
            body = reply_of(body)
        return text_in(choice_of(body)[0].get("content")), None
    except UpstreamError as error:
        return "", error
    except Exception:  # noqa: BLE001 - a call that was made is settled
        return "", unreadable(answered.upstream.deployment)


def _check_route(request: RouteRequest) -> None:
    if not request.query.strip():
        raise InvalidInput.at("query", "is empty")
    for field in ("iteration", "max_tokens"):
        value = getattr(request, field)
        if value is not None and value < 1:
            raise InvalidInput.at(field, "must be at least 1")
    if request.max_tokens is not None and request.max_tokens > MAX_TOKENS:
        raise InvalidInput.at("max_tokens", f"must be at most {MAX_TOKENS}")
