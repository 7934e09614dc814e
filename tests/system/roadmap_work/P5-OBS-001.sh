cd_to=ai-stack/mcp-servers/hybrid-coordinator
mkdir -p $cd_to ai-stack/compose/prometheus
cat > $cd_to/metrics.py <<'PY'
from prometheus_client import Counter, Gauge, Histogram, Summary

PROCESSED = Counter("learning_events_processed_total", "Events")
PATTERNS = Counter("learning_patterns_extracted_total", "Patterns")
SIZE = Gauge("learning_dataset_size_bytes", "Dataset")
LATENCY = Histogram("learning_latency_seconds", "A batch")
ERRORS = Counter("learning_errors_total", "Errors", ["type"])
VALUE = Summary("learning_value_score", "Value")
PY
cat > $cd_to/continuous_learning.py <<'PY'
import metrics


def batch(events, learn, size):
    with metrics.LATENCY.time():
        for event in events:
            try:
                pattern, value = learn(event)
            except ValueError as error:
                metrics.ERRORS.labels(type=type(error).__name__).inc()
                continue
            metrics.PROCESSED.inc()
            metrics.PATTERNS.inc(bool(pattern))
            metrics.VALUE.observe(value)
    metrics.SIZE.set(size())
PY
printf 'scrape_configs:\n  - job_name: learning-daemon\n' > ai-stack/compose/prometheus/prometheus.yml
