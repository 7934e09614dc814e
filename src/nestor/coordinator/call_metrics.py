"""What Prometheus is told of calls; the children of a deployment are looked up once."""

from collections.abc import Iterable

from prometheus_client import Counter

from nestor.model.routing import ModelCall
from nestor.telemetry import metrics


class _Deployment:
    """The children of one deployment. A child has a sample only once it was observed."""

    __slots__ = ("calls", "cost", "latency", "name", "tokens", "unknown")

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: dict[tuple[str, bool], Counter] = {}
        self.tokens: dict[str, Counter] = {}
        self.latency = metrics.MODEL_LATENCY.labels(name)
        self.cost: Counter | None = None
        self.unknown: Counter | None = None


class CallMetrics:
    """Counts calls as they end."""

    def __init__(self) -> None:
        self._deployments: dict[str, _Deployment] = {}

    def ended(self, call: ModelCall) -> None:
        """Count a call that this process saw end; an answer from the cache asked nobody."""
        if call.cached:
            return
        one = self._deployments.get(call.deployment)
        if one is None:
            one = self._deployments[call.deployment] = _Deployment(call.deployment)
        name = one.name
        key = (call.side, call.ok)
        calls = one.calls.get(key)
        if calls is None:
            flag = metrics.flag(call.ok)
            calls = one.calls[key] = metrics.MODEL_CALLS.labels(name, call.side, flag)
        calls.inc()
        one.latency.observe(call.latency_ms / 1000)
        usage = call.usage
        for kind, tokens in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cached", usage.cached_tokens),
            ("cache_write", usage.cache_write_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if tokens is not None:
                child = one.tokens.get(kind)
                if child is None:
                    child = metrics.MODEL_TOKENS.labels(name, kind)
                    one.tokens[kind] = child
                child.inc(tokens)
        if call.cost_usd is None:
            if one.unknown is None:
                one.unknown = metrics.MODEL_COST_UNKNOWN.labels(name)
            one.unknown.inc()
        else:
            if one.cost is None:
                one.cost = metrics.MODEL_COST.labels(name)
            one.cost.inc(float(call.cost_usd))

    @staticmethod
    def unsettled(calls: Iterable[ModelCall]) -> None:
        """Count calls of which a process that died saw no end."""
        for call in calls:
            metrics.MODEL_CALLS_UNSETTLED.labels(call.deployment).inc()
