"""The wall clock of one run, which stands still while a person is waited for."""

from __future__ import annotations

import time

from .faults import AgentError


class Clock:
    """Counts from its making. ``limit_s`` None: no limit."""

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._begun = time.monotonic()
        self.waited_s = 0.0

    def left(self, most_s: float) -> float:
        """Return the seconds left, ``most_s`` at most. Raises AgentError when none are."""
        if self._limit_s is None:
            return most_s
        left = self._limit_s - (time.monotonic() - self._begun - self.waited_s)
        if left <= 0:
            message = f"stopped: its time of {self._limit_s:g} s is used up"
            raise AgentError("timeout", message)
        return min(left, most_s)
