"""Turn Settings into running parts. The only room that names backends."""

from nestor.wiring.models import deployments
from nestor.wiring.stack import (
    PROXY_REQUESTS,
    PROXY_WINDOW_S,
    Nestor,
    refuse_if_running,
    refuse_limits_of_nobody,
    refuse_what_cannot_run,
    running,
)

__all__ = [
    "PROXY_REQUESTS",
    "PROXY_WINDOW_S",
    "Nestor",
    "deployments",
    "refuse_if_running",
    "refuse_limits_of_nobody",
    "refuse_what_cannot_run",
    "running",
]
