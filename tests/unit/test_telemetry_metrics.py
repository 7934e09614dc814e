"""The registry exports what contracts name, and nothing that nobody observed."""

import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from nestor.telemetry import metrics

NAMES = {
    "nestor_events_written_total": {"event_type"},
    "nestor_events_buffered": set(),
    "nestor_events_dropped_total": set(),
    "nestor_event_log_errors_total": {"error"},
    "nestor_tasks_total": {"status", "reason"},
    "nestor_tasks": {"status"},
    "nestor_iterations_total": {"outcome"},
    "nestor_model_calls_total": {"model", "side", "ok"},
    "nestor_model_tokens_total": {"model", "kind"},
    "nestor_model_cost_usd_total": {"model"},
    "nestor_model_cost_unknown_total": {"model"},
    "nestor_routes_total": {"route"},
    "nestor_context_requests_total": {"cached", "degraded"},
    "nestor_breaker_state": {"name"},
    "nestor_http_requests_total": {"layer", "method", "status"},
    "nestor_kb_chunks": {"state"},
    "nestor_model_latency_seconds_count": {"model"},
    "nestor_http_request_seconds_count": {"layer"},
    "nestor_queue_wait_seconds_count": set(),
    "nestor_build_info": {"version"},
    "process_resident_memory_bytes": set(),
}
OBSERVE_ALL = """
import sys
from nestor.telemetry import metrics
for metric in vars(metrics).values():
    names = getattr(metric, "_labelnames", ())
    if names and metric is not metrics.BUILD_INFO:
        child = metric.labels(*["x"] * len(names))
        child.observe(1) if hasattr(child, "observe") else child.inc()
from nestor.telemetry.http_metrics import counts_of
counts_of("x").answered("GET", 200)
counts_of("x").took(1)
sys.stdout.buffer.write(metrics.render())
"""


def scrape(code: str) -> dict[str, set[str]]:
    """Name and label names of every sample of a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(done.stdout.decode())
        for sample in family.samples
    }


def test_every_metric_has_its_name_and_labels() -> None:
    found = scrape(OBSERVE_ALL)

    assert {name: found.get(name) for name in NAMES} == NAMES
    assert not [name for name in found if name.endswith("_created")]


def test_nothing_is_exported_before_it_was_observed() -> None:
    found = scrape(
        "import sys; from nestor.telemetry import metrics;"
        "sys.stdout.buffer.write(metrics.render())"
    )

    labelled = {name for name, labels in NAMES.items() if labels} - {
        "nestor_build_info"
    }
    assert not labelled & set(found)
    assert not [name for name in found if name.startswith(("learning_", "system_"))]
    assert metrics.CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_event_types_cannot_make_labels_without_bound() -> None:
    labels = {metrics.event_type_label(f"type-{n}") for n in range(1_000)}

    assert len(labels) <= 65
    assert "other" in labels
    assert metrics.event_type_label("x" * 1_000_000) == "other"
    assert (metrics.flag(True), metrics.flag(False)) == ("true", "false")
