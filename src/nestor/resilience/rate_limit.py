"""A moving window for each client, in this process."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable

from nestor.model.health import Dependency

MAX_CLIENTS = 10_000
"""Windows kept at one time; clients beyond share one, so memory stays bounded."""
_FORGOTTEN_AT_ONCE = 64
"""More than one call adds, so that windows go faster than they come, and never all in
one long pause."""


class MovingWindow:
    """``ports.rate_limiter.RateLimiter`` on the monotonic clock. For one event loop.

    No client is ever admitted more than ``limit`` times in any ``window_s`` seconds. It
    may be fewer once there were more than ``max_clients`` within one window: those who
    come then share one window, and what that one holds is held against each who gets a
    window of its own afterwards. Dropping somebody's window to make room would instead
    give who can change addresses a new one whenever he likes.
    """

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
        # In the order of each one's last admission, so the first is the first to end.
        self._own: OrderedDict[str, deque[float]] = OrderedDict()
        self._others: deque[float] = deque()

    @property
    def clients(self) -> int:
        """How many have a window of their own."""
        return len(self._own)

    async def admit(self, client: str) -> float | None:
        """See ``RateLimiter.admit``."""
        now = self._clock()
        self._forget(now)
        times = self._window_of(client, now)
        wait_s = self._wait_s(times, now)
        if wait_s is not None:
            return wait_s
        times.append(now)
        if times is not self._others:
            self._own[client] = times
            self._own.move_to_end(client)
        return None

    def wait_s(self, client: str) -> float | None:
        """Tell what ``admit`` would say, and admit nobody."""
        now = self._clock()
        self._forget(now)
        return self._wait_s(self._window_of(client, now), now)

    async def dependencies(self) -> list[Dependency]:
        """See ``RateLimiter.dependencies``: counts are kept here."""
        return []

    async def close(self) -> None:
        """See ``RateLimiter.close``: there are none."""

    def _window_of(self, client: str, now: float) -> deque[float]:
        """Return what counts for ``client`` now; a new window is not stored yet."""
        times = self._own.get(client)
        if times is None:
            self._prune(self._others, now)
            full = len(self._own) >= self._max_clients
            # A newcomer may be any of those who shared: their past is his.
            return self._others if full else deque(self._others)
        self._prune(times, now)
        return times

    def _wait_s(self, times: deque[float], now: float) -> float | None:
        if len(times) < self._limit:
            return None
        return times[0] + self._window_s - now

    def _prune(self, times: deque[float], now: float) -> None:
        while times and self._is_over(times[0], now):
            times.popleft()

    def _forget(self, now: float) -> None:
        """Drop some clients whose window is over; the longest silent come first."""
        for _ in range(_FORGOTTEN_AT_ONCE):
            client, times = next(iter(self._own.items()), (None, self._others))
            if client is None or (times and not self._is_over(times[-1], now)):
                return
            del self._own[client]

    def _is_over(self, then: float, now: float) -> bool:
        return then + self._window_s <= now
