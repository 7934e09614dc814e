"""What every layer uses to tell the learning layer what happened."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from nestor.model.event import Event
from nestor.model.ids import new_id
from nestor.ports.event_log import EventLog
from nestor.telemetry.trace import current_trace_id


def _now() -> datetime:
    return datetime.now(UTC)


class LearningClient:
    """Makes events and hands them to the log. Never slower than an append, never raises."""

    def __init__(
        self, log: EventLog, source: str, *, clock: Callable[[], datetime] = _now
    ) -> None:
        self._log = log
        self._source = source
        self._clock = clock

    def event(
        self,
        event_type: str,
        data: dict[str, Any],
        *,
        task_id: str | None = None,
        event_id: str | None = None,
        trace_id: str | None = None,
    ) -> Event:
        """Make an event without writing it (durable transitions go through the outbox).

        ``event_id``: a derived id where the same thing may be told twice.
        """
        return Event(
            id=event_id or new_id(),
            event_type=event_type,
            timestamp=self._clock(),
            source=self._source,
            trace_id=trace_id or current_trace_id(),
            task_id=task_id,
            data=data,
        )

    def log_event(
        self,
        event_type: str,
        data: dict[str, Any],
        *,
        task_id: str | None = None,
        event_id: str | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Append one event; returns after ``write(2)``."""
        self._log.append(
            [
                self.event(
                    event_type,
                    data,
                    task_id=task_id,
                    event_id=event_id,
                    trace_id=trace_id,
                )
            ]
        )

    def append(self, events: Sequence[Event]) -> None:
        """Append events that were made before; see ``EventLog.append``."""
        self._log.append(events)

    def seen(self, ids: frozenset[str]) -> frozenset[str]:
        """Return those of ``ids`` that stand in the newest part of the log."""
        return self._log.seen(ids)
