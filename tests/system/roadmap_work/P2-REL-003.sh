cd_to=ai-stack/mcp-servers/hybrid-coordinator
mkdir -p $cd_to
cat > $cd_to/backpressure.py <<'PY'
from typing import NamedTuple

class Status(NamedTuple):
    is_overloaded: bool
    lag_seconds: float
    queue_size: int
    recommendation: str

class BackpressureMonitor:
    def __init__(self, max_lag_seconds=300, max_queue_size=10000):
        self.most = max_lag_seconds, max_queue_size

    def check(self, oldest_unprocessed, queue_size, now):
        lag = max((now - oldest_unprocessed).total_seconds(), 0) if oldest_unprocessed else 0
        over = lag > self.most[0] or queue_size > self.most[1]
        return Status(over, lag, queue_size, "add a worker" if over else "none")
PY
echo 'from backpressure import BackpressureMonitor
LAG = "learning_lag_seconds"' > $cd_to/continuous_learning.py
