"""Where telemetry events go. Its meaning is tests/contracts/test_event_log.py."""

from collections.abc import Sequence
from typing import Protocol

from nestor.model.event import Event


class EventLog(Protocol):
    """An append-only log that many processes write.

    Delivery: an event is in the operating system's hands when ``append`` returns, so a
    killed process loses none; a power cut may lose the last 200 ms. Never raises into
    the caller: what cannot be written is kept in a bounded buffer, counted, and tried
    again; past the bound it is dropped *and counted*.
    """

    def append(self, events: Sequence[Event]) -> None:
        """Write whole lines, in order."""
        ...

    @property
    def buffered(self) -> int:
        """Events that are only in memory, because the log cannot be written now."""
        ...

    def seen(self, ids: frozenset[str]) -> frozenset[str]:
        """Return those of ``ids`` that stand in the newest part of the log.

        For a writer that died between its append and its own note of it. Looks at the
        active file and the newest rotated one, at most the last 16 MiB.
        """
        ...

    def close(self) -> None:
        """Write what is buffered and let go of the file."""
        ...
