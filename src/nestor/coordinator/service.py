"""The Coordinator: sends each query to the model that should answer it."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from nestor.coordinator.budget import MaySpend
from nestor.coordinator.chat import ChatReply, ChatStream, check_chat, reply_headers
from nestor.coordinator.dispatch import Answered, CallContext, Dispatcher, utc_now
from nestor.coordinator.metering import Metering
from nestor.coordinator.policy import decide
from nestor.coordinator.prompt import messages
from nestor.coordinator.upstream import Upstream
from nestor.errors import InvalidInput, NotFound, Unavailable
from nestor.model.access import Principal
from nestor.model.event import QUERY_ROUTED
from nestor.model.health import Dependency
from nestor.model.ids import derived_id, new_id
from nestor.model.knowledge import ContextItem, ContextRequest
from nestor.model.routing import (
    EXTRACT,
    Decision,
    Deployment,
    Mode,
    RouteRequest,
    RouteResult,
    Side,
)
from nestor.model.task import Usage
from nestor.ports.call_ledger import CallLedger
from nestor.ports.knowledge_base import KnowledgeBase
from nestor.ports.model_client import ModelClient, ModelReply, ModelStream
from nestor.ports.router import Meter
from nestor.resilience.circuit_breaker import CircuitBreaker
from nestor.telemetry import metrics
from nestor.telemetry.learning_client import LearningClient
from nestor.telemetry.trace import current_trace_id

_NOTHING_KNOWN = (
    "No model is configured, and the knowledge base holds nothing about this query."
)


class Coordinator:
    """Implements ``ports.router.Router``, and the gateway behind ``/v1``.

    ``clients`` are by the name of their deployment; ``stop`` closes them. Explicitly
    asking for a side or a model never falls back to another: who says ``local`` may mean
    that the text must not leave the machine.
    """

    def __init__(
        self,
        *,
        deployments: Sequence[Deployment],
        clients: Mapping[str, ModelClient],
        ledger: CallLedger,
        knowledge: KnowledgeBase,
        extract: Callable[[str, Sequence[ContextItem]], str],
        learning: LearningClient,
        routing_default: Side = Side.LOCAL,
        also_depends_on: Sequence[Callable[[], Dependency]] = (),
        may_spend: MaySpend | None = None,
        now: Callable[[], datetime] = utc_now,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstreams = [
            Upstream(
                deployment,
                clients[deployment.name],
                CircuitBreaker(f"model:{deployment.name}", clock=timer),
                now=now,
            )
            for deployment in deployments
        ]
        self._sides = {d.side for d in deployments}
        self._ledger = ledger
        self._knowledge = knowledge
        self._extract = extract
        self._learning = learning
        self._default = routing_default
        self._also_depends_on = also_depends_on
        self._may_spend = may_spend
        self._timer = timer
        self._metering = Metering(ledger, learning)
        self._dispatcher = Dispatcher(self._metering, now=now, timer=timer)
        self._routes: Counter[str] = Counter()

    async def start(self) -> None:
        """Nothing to start: models are asked when there is something to ask."""

    async def stop(self) -> None:
        """Settle what is open and let go of the clients."""
        await self._metering.finish()
        for upstream in self._upstreams:
            await upstream.client.close()

    def has_models(self) -> bool:
        """Tell whether any model is configured."""
        return bool(self._upstreams)

    async def meter(self, task_id: str, *, iteration: int | None = None) -> Meter:
        """Add up the settled calls of a task."""
        return await self._ledger.meter(task_id, iteration=iteration)

    async def route(self, request: RouteRequest) -> RouteResult:
        """Answer a query, with context from the knowledge base when none is given.

        Raises ``InvalidInput``, ``BudgetExceeded`` when the task has none left, and
        ``Unavailable`` that lists why each model did not answer. Without any model the answer is quoted from the knowledge base.
        """
        began = self._timer()
        _check_route(request)
        items, degraded = await self._context(request)
        if not self._upstreams and request.mode is Mode.AUTO:
            result = self._quote(request, items, degraded, began)
        else:
            result = await self._ask(request, items, degraded, began)
        self._routes[result.route] += 1
        metrics.ROUTES.labels(result.route).inc()
        self._tell(request, result)
        return result

    async def chat(
        self,
        request: dict[str, Any],
        *,
        principal: Principal | None = None,  # noqa: ARG002 - limits are per key
        task_id: str | None = None,
        iteration: int | None = None,
    ) -> ChatReply | ChatStream:
        """Pass a chat completion on; ``model`` is auto, local, remote or a configured one.

        Fallback to the other side happens until the first token, and for ``auto`` only.
        Raises ``InvalidInput``, ``NotFound`` (unknown model), ``BudgetExceeded`` (of the
        task: nobody was asked, nothing is billed), ``Unavailable``.
        """
        began = self._timer()
        check_chat(request)
        decision, order = self._order(request.get("model") or Mode.AUTO, iteration)
        await self._refuse_if_spent(task_id)
        context = CallContext(
            purpose="gateway",
            reason=decision.reason,
            trace_id=current_trace_id(),
            task_id=task_id,
            iteration=iteration,
        )
        if request.get("stream"):
            return await self._stream(request, decision, order, context, began)
        answered = await self._dispatcher.first(
            order, lambda client: client.complete(request), context
        )
        call = await self._settle(answered)
        headers = reply_headers(
            answered,
            decision,
            overhead_s=self._timer() - began - answered.waited_s,
            replayed=answered.value.replayed,
            call=call,
        )
        return ChatReply(answered.value, headers)

    def models(self) -> list[dict[str, Any]]:
        """What ``model`` may be, in OpenAI's shape."""
        names = [Mode.AUTO.value] if self._upstreams else []
        names += [side.value for side in Side if side in self._sides]
        for upstream in self._upstreams:
            names += [upstream.deployment.name, upstream.deployment.model]
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": "nestor"}
            for name in dict.fromkeys(names)
        ]

    async def stats(self) -> dict[str, Any]:
        """Routes since the start of this process, all settled calls, breaker states."""
        return {
            "routes": dict(self._routes),
            "calls": await self._ledger.totals(),
            "calibration": None,
            "routing_default": self._default,
            "deployments": [
                {
                    "name": upstream.deployment.name,
                    "side": upstream.deployment.side,
                    "model": upstream.deployment.model,
                    "replayed": upstream.deployment.replayed,
                    "priced": upstream.deployment.price_input is not None
                    and upstream.deployment.price_output is not None,
                    "breaker": msgspec.to_builtins(upstream.breaker.snapshot()),
                }
                for upstream in self._upstreams
            ],
        }

    def breakers(self) -> dict[str, str]:
        """State by name, for health."""
        return {u.breaker.name: u.breaker.state.value for u in self._upstreams}

    async def dependencies(self) -> list[Dependency]:
        """What the last calls came to; asks nobody."""
        seen = [upstream.dependency() for upstream in self._upstreams]
        return [*seen, *(look() for look in self._also_depends_on)]

    async def _stream(
        self,
        request: dict[str, Any],
        decision: Decision,
        order: Sequence[Upstream],
        context: CallContext,
        began: float,
    ) -> ChatStream:
        answered: Answered[ModelStream] = await self._dispatcher.first(
            order, lambda client: client.stream(request), context
        )
        headers = reply_headers(
            answered,
            decision,
            overhead_s=self._timer() - began - answered.waited_s,
            replayed=answered.value.replayed,
        )
        return ChatStream(answered, self._dispatcher, headers)

    def _order(
        self, model: str, iteration: int | None
    ) -> tuple[Decision, list[Upstream]]:
        """Return the decision and the upstreams to ask, in order."""
        if model in set(Mode):
            if not self._upstreams:
                raise Unavailable(
                    "no model is configured: set NESTOR_LOCAL_MODEL or NESTOR_REMOTE_MODEL"
                )
            decision = self._decide(Mode(model), iteration, field="model")
            first = [u for u in self._upstreams if u.deployment.side == decision.side]
            rest = [u for u in self._upstreams if u.deployment.side != decision.side]
            return decision, [*first, *(rest if model == Mode.AUTO else [])]
        for upstream in self._upstreams:
            if model in {upstream.deployment.name, upstream.deployment.model}:
                side = upstream.deployment.side
                reason = f"asked for {upstream.deployment.name}"
                decision = Decision(side=side, confidence=None, reason=reason)
                return decision, [upstream]
        known = ", ".join(entry["id"] for entry in self.models()) or "none"
        raise NotFound.at("model", f"{model[:100]!r} is not configured; known: {known}")

    def _decide(self, mode: Mode, iteration: int | None, *, field: str) -> Decision:
        try:
            return decide(
                mode=mode,
                configured=self._sides,
                default=self._default,
                iteration=iteration,
            )
        except InvalidInput as error:
            raise InvalidInput.at(field, error.errors[0].message) from None

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
            if not self._upstreams:
                raise
            return [], [f"knowledge base: {error}"]
        return found.items, found.degraded

    async def _ask(
        self,
        request: RouteRequest,
        items: Sequence[ContextItem],
        degraded: list[str],
        began: float,
    ) -> RouteResult:
        decision, order = self._order(request.mode, request.iteration)
        await self._refuse_if_spent(request.task_id)
        body: dict[str, Any] = {"messages": messages(request.query, items)}
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        context = CallContext(
            purpose="route",
            reason=decision.reason,
            trace_id=current_trace_id(),
            task_id=request.task_id,
            iteration=request.iteration,
        )
        answered = await self._dispatcher.first(
            order, lambda client: client.complete(body), context
        )
        call = await self._settle(answered)
        reason = decision.reason
        if answered.fallback_from is not None:
            reason += f"; {answered.fallback_from} did not answer"
        return RouteResult(
            response=answered.value.text,
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

    async def _refuse_if_spent(self, task_id: str | None) -> None:
        if task_id is not None and self._may_spend is not None:
            await self._may_spend(task_id)

    async def _settle(self, answered: Answered[ModelReply]) -> Any:
        answered.upstream.answered(answered.permit)
        reply = answered.value
        return await self._dispatcher.settle(
            answered, reply.usage, replayed=reply.replayed
        )

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
        if request.task_id is not None and request.iteration is not None:
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


def _check_route(request: RouteRequest) -> None:
    if not request.query.strip():
        raise InvalidInput.at("query", "is empty")
    for field in ("iteration", "max_tokens"):
        value = getattr(request, field)
        if value is not None and value < 1:
            raise InvalidInput.at(field, "must be at least 1")
