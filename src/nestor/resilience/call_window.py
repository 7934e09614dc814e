"""How many calls of the last while failed or were slow, in constant memory."""

from collections import deque
from typing import NamedTuple

_PARTS = 10


class Totals(NamedTuple):
    """Of one window."""

    calls: int
    failed: int
    slow: int


class CallWindow:
    """Counts in tenths of ``window_s``; a tenth is forgotten as a whole, once it began that long ago."""

    def __init__(self, window_s: float) -> None:
        self._part_s = window_s / _PARTS
        self._parts: deque[list[int]] = deque()
        """Of each tenth: its number, calls, failed, slow."""
        self._totals = [0, 0, 0]

    def count(self, now: float, *, failed: bool, slow: bool) -> None:
        """Note one call that ended ``now`` (seconds of a clock that never goes back)."""
        number = int(now // self._part_s)
        parts = self._parts
        if not parts or parts[-1][0] != number:
            parts.append([number, 0, 0, 0])
        part, totals = parts[-1], self._totals
        for place, counts in enumerate((True, failed, slow)):
            if counts:
                part[place + 1] += 1
                totals[place] += 1

    def totals(self, now: float) -> Totals:
        """Add up what is not over."""
        oldest = int(now // self._part_s) - _PARTS
        while self._parts and self._parts[0][0] <= oldest:
            _, *gone = self._parts.popleft()
            self._totals = [a - b for a, b in zip(self._totals, gone, strict=True)]
        return Totals(*self._totals)

    def clear(self) -> None:
        """Begin anew."""
        self._parts.clear()
        self._totals = [0, 0, 0]
