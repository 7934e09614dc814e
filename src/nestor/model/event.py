"""The event envelope of the unified telemetry: one JSON line an event."""

from datetime import datetime
from typing import Any

import msgspec

SCHEMA_VERSION = 1

TASK_STARTED = "task_started"
TASK_ITERATION = "task_iteration"
EXIT_BLOCKED = "exit_blocked"
TASK_COMPLETED = "task_completed"
APPROVAL_REQUESTED = "approval_requested"
APPROVAL_DECIDED = "approval_decided"
QUERY_ROUTED = "query_routed"
MODEL_CALLED = "model_called"
CONTEXT_RETRIEVED = "context_retrieved"
FEEDBACK_RECEIVED = "feedback_received"
QUERY_AUGMENTED = "query_augmented"
INTERACTION_TRACKED = "interaction_tracked"
DOCUMENT_ADDED = "document_added"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One thing that happened. ``id`` is unique for ever; a repeat carries the same id."""

    schema: int = SCHEMA_VERSION
    id: str
    event_type: str
    timestamp: datetime
    source: str
    """The layer: ``ralph``, ``coordinator``, ``aidb``, ``learning``, …"""
    trace_id: str
    task_id: str | None = None
    data: dict[str, Any] = {}
