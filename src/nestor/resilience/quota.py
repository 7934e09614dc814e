"""Requests and tokens a minute, counted in this process."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable

from nestor.model.health import Dependency
from nestor.ports.quota import MAX_COST, WINDOW_S

MAX_NAMES = 10_000
"""Windows kept at one time; names beyond share one, so memory stays bounded."""
_FORGOTTEN_AT_ONCE = 64
"""More than one call adds, so that windows go faster than they come."""


class _Window:
    """Costs by the second they came in: at most 62 numbers, whatever is admitted."""

    __slots__ = ("seconds", "used")

    def __init__(self, seconds: deque[list[int]] | None = None, used: int = 0) -> None:
        self.seconds = seconds if seconds is not None else deque()
        """``[second, cost]``, oldest first."""
        self.used = used

    def copy(self) -> "_Window":
        return _Window(deque([*pair] for pair in self.seconds), self.used)

    def prune(self, now: float) -> None:
        """Drop the seconds of which all is a window old."""
        while self.seconds and _over_at(self.seconds[0][0]) <= now:
            self.used -= self.seconds.popleft()[1]

    def add(self, cost: int, now: float) -> None:
        second = int(now)
        if not self.seconds or self.seconds[-1][0] != second:
            self.seconds.append([second, 0])
        self.seconds[-1][1] += cost
        self.used += cost

    def take_away(self, cost: int) -> None:
        """The oldest first: what stays then counts longest, so never too little counts."""
        while cost > 0 and self.seconds:
            part = min(cost, self.seconds[0][1])
            self.seconds[0][1] -= part
            self.used -= part
            cost -= part
            if self.seconds[0][1] == 0:
                self.seconds.popleft()

    def wait_s(self, limit: int, cost: int, now: float) -> float | None:
        """Tell when ``cost`` fits: None is now. ``prune`` first."""
        if self.used + cost <= limit or self.used == 0:
            return None
        left = self.used
        for second, freed in self.seconds:
            left -= freed
            if left + cost <= limit or left == 0:
                return _over_at(second) - now
        return float(WINDOW_S)  # what is counted is never less than its parts


class MovingQuota:
    """``ports.quota.Quota`` on the monotonic clock. For one event loop.

    Once more than ``max_names`` were seen within a minute, those who come then share one
    window, and what that one holds is held against each that gets a window of its own
    afterwards: dropping somebody's window would give him a new one.
    """

    def __init__(
        self,
        *,
        max_names: int = MAX_NAMES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_names = max_names
        self._clock = clock
        # In the order of each one's last cost, so the first is the first to end.
        self._own: OrderedDict[str, _Window] = OrderedDict()
        self._others = _Window()

    @property
    def names(self) -> int:
        """How many have a window of their own."""
        return len(self._own)

    async def admit(self, name: str, *, limit: int, cost: int = 1) -> float | None:
        """See ``Quota.admit``."""
        now, cost = self._clock(), min(cost, MAX_COST)
        self._forget(now)
        window = self._window_of(name, now)
        wait_s = window.wait_s(limit, cost, now)
        if wait_s is None:
            self._add(name, window, cost, now)
        return wait_s

    def wait_s(self, name: str, *, limit: int, cost: int = 1) -> float | None:
        """Tell what ``admit`` would say, and take nothing."""
        now = self._clock()
        self._forget(now)
        return self._window_of(name, now).wait_s(limit, cost, now)

    async def correct(self, name: str, *, by: int, age_s: float = 0.0) -> None:
        """See ``Quota.correct``."""
        now = self._clock()
        window = self._window_of(name, now)
        if by > 0:
            self._add(name, window, min(by, MAX_COST), now)
        elif age_s < WINDOW_S and name in self._own:
            # In a window that is shared it would be others' costs that go.
            window.take_away(-by)

    async def dependencies(self) -> list[Dependency]:
        """See ``Quota.dependencies``: counts are kept here."""
        return []

    async def close(self) -> None:
        """See ``Quota.close``: there are none."""

    def _add(self, name: str, window: _Window, cost: int, now: float) -> None:
        window.add(cost, now)
        if window is not self._others:
            self._own[name] = window
            self._own.move_to_end(name)

    def _window_of(self, name: str, now: float) -> _Window:
        """Return what counts for ``name`` now; a new window is not stored yet."""
        window = self._own.get(name)
        if window is None:
            self._others.prune(now)
            full = len(self._own) >= self._max_names
            # A newcomer may be any of those who shared: their past is his.
            return self._others if full else self._others.copy()
        window.prune(now)
        return window

    def _forget(self, now: float) -> None:
        """Drop some names whose window is over; the longest silent come first."""
        for _ in range(_FORGOTTEN_AT_ONCE):
            name, window = next(iter(self._own.items()), (None, None))
            if name is None or window is None:
                return
            if window.seconds and _over_at(window.seconds[-1][0]) > now:
                return
            del self._own[name]


def _over_at(second: int) -> float:
    """Return when the last of what came in ``second`` is a window old."""
    return float(second + 1 + WINDOW_S)
