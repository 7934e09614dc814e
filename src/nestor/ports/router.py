"""The Coordinator as Ralph sees it."""

from decimal import Decimal
from typing import Protocol

import msgspec

from nestor.model.routing import RouteRequest, RouteResult
from nestor.model.task import Usage


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls of one task (or of one of its iterations) came to.

    ``cost_usd`` None: at least one call's price is not known. ``replayed``: at least one
    answer came from a cassette.
    """

    calls: int = 0
    usage: Usage = Usage()
    cost_usd: Decimal | None = Decimal(0)
    models: list[str] = []
    routes: list[str] = []
    replayed: bool = False


class Router(Protocol):
    """Sends a query to the model that should answer it, and keeps the meter."""

    async def route(self, request: RouteRequest) -> RouteResult:
        """Answer a query. Raises ``Unavailable`` when no model and no fallback answers."""
        ...

    async def meter(self, task_id: str, *, iteration: int | None = None) -> Meter:
        """Add up the settled calls of a task."""
        ...

    def has_models(self) -> bool:
        """Tell whether any model is configured."""
        ...
