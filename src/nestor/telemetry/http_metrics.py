"""Requests of a layer, counted: ``nestor_http_requests_total`` and ``…_request_seconds``.

Counted in plain integers: a histogram of prometheus-client takes two locks for each
observation, which costs more than all else that is counted of a request.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from nestor.telemetry import metrics
from nestor.telemetry.metrics import REGISTRY, SECONDS


class LayerCounts:
    """One layer's requests. Written by the loop that serves, read by any thread."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, int], int] = {}
        self._buckets = [0] * (len(SECONDS) + 1)
        self._sum_s = 0.0

    def answered(self, method: str, status: int) -> None:
        """Count an answer. ``method``: of a small set, since it becomes a label."""
        key = (method, status)
        self._answers[key] = self._answers.get(key, 0) + 1

    def took(self, seconds: float) -> None:
        """Note how long a request took, from its head to the end of its reply."""
        self._buckets[bisect_left(SECONDS, seconds)] += 1
        self._sum_s += seconds

    def answers(self) -> dict[tuple[str, int], int]:
        """Return the counts by method and status."""
        return dict(self._answers)

    def seconds(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulated buckets, and the sum."""
        total, rows = 0, []
        names = [*(str(float(bound)) for bound in SECONDS), "+Inf"]
        for name, count in zip(names, list(self._buckets), strict=True):
            total += count
            rows.append((name, float(total)))
        return rows, self._sum_s


class _HttpCollector(Collector):
    def __init__(self) -> None:
        self.layers: dict[str, LayerCounts] = {}

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        requests = CounterMetricFamily(
            *metrics.HTTP_REQUESTS, labels=["layer", "method", "status"]
        )
        seconds = HistogramMetricFamily(*metrics.HTTP_SECONDS, labels=["layer"])
        for layer, counts in list(self.layers.items()):
            for (method, status), count in counts.answers().items():
                requests.add_metric([layer, method, str(status)], count)
            buckets, sum_s = counts.seconds()
            seconds.add_metric([layer], buckets, sum_s)
        yield requests
        yield seconds


_COLLECTOR: Final = _HttpCollector()
REGISTRY.register(_COLLECTOR)


def counts_of(layer: str) -> LayerCounts:
    """Return the counts of a layer; all its ports in this process share them."""
    return _COLLECTOR.layers.setdefault(layer, LayerCounts())
