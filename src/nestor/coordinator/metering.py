"""What a call came to: cost, ledger, event, metrics. Once per call, whatever happens."""

import asyncio
from collections import deque
from decimal import Decimal

from nestor.errors import NestorError
from nestor.model.event import MODEL_CALLED
from nestor.model.ids import derived_id
from nestor.model.routing import Deployment, ModelCall
from nestor.model.task import Usage
from nestor.ports.call_ledger import CallLedger
from nestor.telemetry import metrics
from nestor.telemetry.learning_client import LearningClient
from nestor.telemetry.logs import get_logger

_PER_MILLION = Decimal(1_000_000)
_MAX_WAITING = 10_000
_log = get_logger("nestor.coordinator")


def cost_usd(deployment: Deployment, usage: Usage, *, replayed: bool) -> Decimal | None:
    """Price a call in USD; None when a price or a count is not known.

    Cached tokens are priced as input. A replayed answer was not billed: 0.
    """
    if replayed:
        return Decimal(0)
    parts = (
        (deployment.price_input, usage.input_tokens),
        (deployment.price_output, usage.output_tokens),
    )
    total = Decimal(0)
    for price, tokens in parts:
        if price == 0:
            continue
        if price is None or tokens is None:
            return None
        total += price * tokens / _PER_MILLION
    return total


class Metering:
    """Settles calls. A settlement goes on when its caller is cancelled."""

    def __init__(self, ledger: CallLedger, learning: LearningClient) -> None:
        self._ledger = ledger
        self._learning = learning
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: deque[ModelCall] = deque(maxlen=_MAX_WAITING)
        """Calls that the ledger could not take yet."""

    async def settle(self, call: ModelCall) -> None:
        """Keep a call in the ledger, tell learning, count it. Never raises for its work."""
        self._tell(call)
        self._waiting.append(call)
        task = asyncio.create_task(self._record())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.shield(task)

    async def finish(self) -> None:
        """Wait for what is being settled, and try once more what could not be."""
        await asyncio.gather(*self._running)
        await self._record()

    async def _record(self) -> None:
        while self._waiting:
            call = self._waiting.popleft()
            try:
                await self._ledger.record(call)
            except NestorError as error:
                # The answer is worth more than its row; the event tells of it too.
                self._waiting.append(call)
                _log.warning("ledger_unavailable", error=str(error))
                return

    def _tell(self, call: ModelCall) -> None:
        self._learning.log_event(
            MODEL_CALLED,
            {
                "interaction_id": call.interaction_id,
                "model": call.model,
                "deployment": call.deployment,
                "side": call.side,
                "dialect": call.dialect,
                "usage": {
                    "input_tokens": call.usage.input_tokens,
                    "output_tokens": call.usage.output_tokens,
                    "cached_tokens": call.usage.cached_tokens,
                },
                "cost_usd": None if call.cost_usd is None else f"{call.cost_usd:f}",
                "latency_ms": call.latency_ms,
                "ok": call.ok,
                "error": call.error,
                "reason": call.route_reason,
                "fallback_from": call.fallback_from,
                "purpose": call.purpose,
                "iteration": call.iteration,
                "replayed": call.replayed,
            },
            task_id=call.task_id,
            event_id=derived_id(MODEL_CALLED, call.interaction_id),
            trace_id=call.trace_id,
        )
        name = call.deployment
        metrics.MODEL_CALLS.labels(name, call.side, metrics.flag(call.ok)).inc()
        metrics.MODEL_LATENCY.labels(name).observe(call.latency_ms / 1000)
        for kind, tokens in (
            ("input", call.usage.input_tokens),
            ("output", call.usage.output_tokens),
            ("cached", call.usage.cached_tokens),
        ):
            if tokens is not None:
                metrics.MODEL_TOKENS.labels(name, kind).inc(tokens)
        if call.cost_usd is None:
            metrics.MODEL_COST_UNKNOWN.labels(name).inc()
        else:
            metrics.MODEL_COST.labels(name).inc(float(call.cost_usd))
