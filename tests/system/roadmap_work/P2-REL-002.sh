cd_to=ai-stack/mcp-servers/hybrid-coordinator
mkdir -p $cd_to
cat > $cd_to/circuit_breaker.py <<'PY'
import time

class CircuitBreakerOpen(Exception):
    pass

class CircuitBreaker:
    def __init__(self, failure_threshold=5, recovery_timeout=60, clock=time.monotonic):
        self.threshold, self.timeout, self.clock = failure_threshold, recovery_timeout, clock
        self.failures, self.opened, self.probing = 0, None, False

    async def call(self, function, *arguments):
        if self.opened is not None:
            if self.probing or self.clock() - self.opened < self.timeout:
                raise CircuitBreakerOpen
            self.probing = True
        try:
            result = await function(*arguments)
        except Exception:
            self.failures += 1
            if self.probing or self.failures >= self.threshold:
                self.opened = self.clock()
            raise
        else:
            self.failures, self.opened = 0, None
            return result
        finally:
            self.probing = False
PY
cat > $cd_to/continuous_learning.py <<'PY'
from circuit_breaker import CircuitBreaker, CircuitBreakerOpen

qdrant, postgresql = CircuitBreaker(), CircuitBreaker()


async def store(index, rows, later):
    for breaker, write in ((qdrant, index), (postgresql, rows)):
        try:
            await breaker.call(write)
        except CircuitBreakerOpen:
            later.append(write)
PY
