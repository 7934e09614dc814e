"""Every metric Nestor exports: name, labels, unit. No other module names one.

Names in use elsewhere (dashboards, alerts, scripts) are a contract. A metric is listed
here only when something observes it: a sample that nobody measured is a lie. A labelled
metric has no sample until its first observation.

Labels must stay few. ``model`` is the name of a configured deployment, ``reason`` and
``status`` are members of ``nestor.model``'s enumerations, ``event_type`` goes through
``event_type_label``. Never a task id, a path, a query or a message.
"""

import threading
from typing import Final

import prometheus_client
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from nestor import __version__

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""Of what ``render`` returns."""

# ``…_created`` samples double the size of a scrape and no rule or panel reads them.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY: Final = CollectorRegistry()
# The text format tells ``nestor_tasks`` (a gauge) from ``nestor_tasks_total`` (a
# counter); one registry of this client does not, so the gauge has its own.
_STATES: Final = CollectorRegistry()

SECONDS: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
)

BUILD_INFO: Final = Info("nestor_build", "Version that runs.", registry=REGISTRY)
BUILD_INFO.info({"version": __version__})
ProcessCollector(registry=REGISTRY)

# Events --------------------------------------------------------------------------------
EVENTS_WRITTEN: Final = Counter(
    "nestor_events_written_total",
    "Events whose whole line stands in the log.",
    ["event_type"],
    registry=REGISTRY,
)
EVENTS_BUFFERED: Final = Gauge(
    "nestor_events_buffered",
    "Events waiting in memory because the log cannot be written.",
    registry=REGISTRY,
)
EVENTS_DROPPED: Final = Counter(
    "nestor_events_dropped_total",
    "Events lost because the buffer was full, or at close.",
    registry=REGISTRY,
)
EVENT_LOG_ERRORS: Final = Counter(
    "nestor_event_log_errors_total",
    "Failures of the event log by errno name or cause.",
    ["error"],
    registry=REGISTRY,
)

# Tasks ---------------------------------------------------------------------------------
TASKS_ENDED: Final = Counter(
    "nestor_tasks_total",
    "Tasks that ended.",
    ["status", "reason"],
    registry=REGISTRY,
)
TASKS: Final = Gauge("nestor_tasks", "Tasks by status.", ["status"], registry=_STATES)
ITERATIONS: Final = Counter(
    "nestor_iterations_total",
    "Iterations that ended, by outcome class of the agent.",
    ["outcome"],
    registry=REGISTRY,
)
QUEUE_WAIT: Final = Histogram(
    "nestor_queue_wait_seconds",
    "From submit (or approval) to the start of a task.",
    buckets=SECONDS,
    registry=REGISTRY,
)

# Models --------------------------------------------------------------------------------
MODEL_CALLS: Final = Counter(
    "nestor_model_calls_total",
    "Calls of a model endpoint; ok is true or false.",
    ["model", "side", "ok"],
    registry=REGISTRY,
)
MODEL_TOKENS: Final = Counter(
    "nestor_model_tokens_total",
    "Tokens the upstream reported; kind is input, output, and of these cached, cache_write, reasoning.",
    ["model", "kind"],
    registry=REGISTRY,
)
MODEL_COST: Final = Counter(
    "nestor_model_cost_usd_total",
    "USD of the calls whose cost is known.",
    ["model"],
    registry=REGISTRY,
)
MODEL_COST_UNKNOWN: Final = Counter(
    "nestor_model_cost_unknown_total",
    "Calls whose cost is unknown: no price configured, or no usage reported.",
    ["model"],
    registry=REGISTRY,
)
MODEL_LATENCY: Final = Histogram(
    "nestor_model_latency_seconds",
    "From the request to the whole answer of a model endpoint.",
    ["model"],
    buckets=SECONDS,
    registry=REGISTRY,
)
MODEL_CALLS_UNSETTLED: Final = Counter(
    "nestor_model_calls_unsettled_total",
    "Calls of which nobody saw the end: the process ended before.",
    ["model"],
    registry=REGISTRY,
)
ROUTES: Final = Counter(
    "nestor_routes_total",
    "Routed queries; route is local, remote or extract.",
    ["route"],
    registry=REGISTRY,
)
BREAKER_STATE: Final = Gauge(
    "nestor_breaker_state",
    "Circuit breaker: 0 closed, 1 half-open, 2 open.",
    ["name"],
    registry=REGISTRY,
)

# The meter's journal -------------------------------------------------------------------
CALLS_WAITING: Final = Gauge(
    "nestor_calls_waiting",
    "Model calls that ended and are not in the database yet.",
    registry=REGISTRY,
)
CALLS_WAITING_SECONDS: Final = Gauge(
    "nestor_calls_waiting_seconds",
    "How long the database has not had all calls that ended.",
    registry=REGISTRY,
)
CALL_FOLDS_FAILED: Final = Counter(
    "nestor_call_folds_failed_total",
    "Batches of calls that the database did not take; they are tried again.",
    registry=REGISTRY,
)
JOURNAL_UNWRITTEN: Final = Gauge(
    "nestor_journal_unwritten_lines",
    "Lines of the call journal waiting in memory because the disk takes no more.",
    registry=REGISTRY,
)
JOURNAL_DROPPED: Final = Counter(
    "nestor_journal_dropped_lines_total",
    "Lines of the call journal that neither the disk nor memory could take.",
    registry=REGISTRY,
)
JOURNAL_BAD_LINES: Final = Counter(
    "nestor_journal_bad_lines_total",
    "Lines in journals of ended processes that are no call; their files are kept.",
    registry=REGISTRY,
)
CALLS_ASIDE: Final = Counter(
    "nestor_calls_set_aside_total",
    "Calls that the database does not take; they are kept in files beside the journal.",
    registry=REGISTRY,
)
JOURNAL_ERRORS: Final = Counter(
    "nestor_journal_errors_total",
    "Failures of the call journal by errno name.",
    ["error"],
    registry=REGISTRY,
)

# Knowledge -----------------------------------------------------------------------------
CONTEXT_REQUESTS: Final = Counter(
    "nestor_context_requests_total",
    "Context requests; cached and degraded are true or false.",
    ["cached", "degraded"],
    registry=REGISTRY,
)
KB_CHUNKS: Final = Gauge(
    "nestor_kb_chunks",
    "Chunks of the knowledge base; state is indexed or pending.",
    ["state"],
    registry=REGISTRY,
)

KB_EMBEDDED: Final = Counter(
    "nestor_kb_texts_embedded_total",
    "Texts of which a vector was made and kept.",
    registry=REGISTRY,
)
KB_DEGRADED: Final = Counter(
    "nestor_kb_degraded_total",
    "Context requests that had to do without a part, by part.",
    ["part"],
    registry=REGISTRY,
)
KB_CANARY: Final = Gauge(
    "nestor_kb_canary_found",
    "1 when the known text was found by this leg when it was looked for last, else 0.",
    ["leg"],
    registry=REGISTRY,
)

# HTTP: ``telemetry.http_metrics`` counts these ------------------------------------------
HTTP_REQUESTS: Final = ("nestor_http_requests", "Requests answered, by layer.")
HTTP_SECONDS: Final = (
    "nestor_http_request_seconds",
    "From the head of a request to the end of its reply.",
)

_MAX_EVENT_TYPES = 64
_event_types: set[str] = set()
_event_types_lock = threading.Lock()


def event_type_label(event_type: str) -> str:
    """Bound the label: the first 64 event types of this process, then ``other``."""
    if event_type in _event_types:
        return event_type
    with _event_types_lock:
        if len(event_type) <= 64 and len(_event_types) < _MAX_EVENT_TYPES:  # noqa: PLR2004
            _event_types.add(event_type)
            return event_type
    return "other"


def flag(value: bool) -> str:
    """Render a truth value as a label: ``true`` or ``false``."""
    return "true" if value else "false"


def render() -> bytes:
    """Return what ``GET /metrics`` answers: Prometheus text format 0.0.4."""
    return generate_latest(REGISTRY) + generate_latest(_STATES)
