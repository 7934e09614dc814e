"""A query and where it went; a model call and what it cost."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum

import msgspec

from nestor.model.knowledge import ContextItem
from nestor.model.task import Usage


class Side(StrEnum):
    """Where a model runs."""

    LOCAL = "local"
    REMOTE = "remote"


class Mode(StrEnum):
    """What the caller asks for."""

    AUTO = "auto"
    LOCAL = "local"
    REMOTE = "remote"


EXTRACT = "extract"
"""The route of an answer that quotes the knowledge base because no model is configured."""


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One configured model endpoint. Prices are USD per million tokens; None: unknown."""

    name: str
    side: Side
    model: str
    base_url: str
    dialect: str = "openai"
    api_key: str | None = None
    price_input: Decimal | None = None
    price_output: Decimal | None = None
    timeout_s: float = 120.0
    replayed: bool = False
    """Answers come from a cassette, not from a model."""


class RouteRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Body of ``POST /route``. ``context`` given: the knowledge base is not asked again."""

    query: str
    context: list[ContextItem] | None = None
    iteration: int | None = None
    task_id: str | None = None
    mode: Mode = Mode.AUTO
    max_tokens: int | None = None


class RouteResult(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of ``POST /route``. ``confidence`` None: no evidence yet."""

    response: str
    route: str
    """``local``, ``remote`` or ``extract``."""
    confidence: float | None
    model: str | None
    reason: str
    context_ids: list[str]
    sources: list[str] = []
    interaction_id: str
    usage: Usage
    cost_usd: Decimal | None
    latency_ms: float
    fallback_from: str | None = None
    replayed: bool = False
    degraded: list[str] = []


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Which side is asked first, and why."""

    side: Side
    confidence: float | None
    reason: str


class ModelCall(msgspec.Struct, frozen=True, kw_only=True):
    """A settled call: what the meter keeps."""

    interaction_id: str
    at: datetime
    deployment: str
    side: Side
    model: str
    dialect: str
    route_reason: str
    ok: bool
    usage: Usage
    cost_usd: Decimal | None
    latency_ms: float
    task_id: str | None = None
    iteration: int | None = None
    trace_id: str = ""
    error: str | None = None
    fallback_from: str | None = None
    replayed: bool = False
    purpose: str = "gateway"
    """``gateway`` (an agent or client) or ``route`` (guidance and questions)."""
