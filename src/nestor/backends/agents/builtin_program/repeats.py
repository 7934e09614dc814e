"""Notices a model that goes round in circles."""

from __future__ import annotations

import hashlib

TOLD_AT = 3
TOLD = (
    "\n[This is the third time that this very call gave this very result. It will not"
    " change. Do something else, or call done.]"
)


class Repeats:
    """Counts equal calls with equal results since something new last happened."""

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}

    def note(self, name: str, arguments: str, result: str) -> int:
        """Count one call; returns how often it was made without anything new since."""
        told = f"{name}\x1f{arguments}\x1f{result}".encode("utf-8", "replace")
        key = hashlib.sha256(told).digest()
        if key not in self._seen:
            # Something new: what was repeated before it may be worth another look.
            self._seen = dict.fromkeys(self._seen, 1)
            self._seen[key] = 0
        self._seen[key] += 1
        return self._seen[key]
