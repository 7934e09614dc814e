"""What is known about a part, and since when."""

from datetime import datetime
from enum import StrEnum

import msgspec


class HealthStatus(StrEnum):
    """``degraded``: still answers, with less than it should."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a layer leans on. ``last_observed`` None: never looked at, status unknown."""

    name: str
    status: HealthStatus | None
    message: str = ""
    last_observed: datetime | None = None
    required: bool = False
    """Without it the layer cannot do its job: ready turns 503."""


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of ``/health/*``."""

    status: HealthStatus
    check_type: str
    message: str
    details: dict[str, object]
    timestamp: datetime
    duration_ms: float
