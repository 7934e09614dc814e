"""A moving window for each client, in this process."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable

MAX_CLIENTS = 10_000
"""Windows kept at one time; clients beyond share one, so memory stays bounded."""
_OTHERS = ""


class MovingWindow:
    """``ports.rate_limiter.RateLimiter`` on the monotonic clock."""

    def __init__(
        self,
        limit: int,
        window_s: float,
        *,
        max_clients: int = MAX_CLIENTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._window_s = window_s
        self._max_clients = max_clients
        self._clock = clock
        self._admitted: OrderedDict[str, deque[float]] = OrderedDict()

    async def admit(self, client: str) -> float | None:
        """See ``RateLimiter.admit``."""
        now = self._clock()
        self._forget(now - self._window_s)
        if client not in self._admitted and len(self._admitted) >= self._max_clients:
            client = _OTHERS
        times = self._admitted.setdefault(client, deque())
        while times and times[0] <= now - self._window_s:
            times.popleft()
        if len(times) >= self._limit:
            return times[0] + self._window_s - now
        times.append(now)
        self._admitted.move_to_end(client)
        return None

    def _forget(self, before: float) -> None:
        """Drop clients whose window is empty; the longest silent come first."""
        while self._admitted:
            client, times = next(iter(self._admitted.items()))
            if times and times[-1] > before:
                break
            del self._admitted[client]
