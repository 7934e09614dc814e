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


class Dialect(StrEnum):
    """Whose shapes a request, its reply and its events have."""

    OPENAI = "openai"
    """Chat completions (and embeddings): what most servers of models speak."""
    ANTHROPIC = "anthropic"
    """Messages."""
    RESPONSES = "responses"
    """OpenAI's Responses. Callers speak it, no deployment does."""


DEFAULT_MAX_TOKENS = 4096
"""What a call may write where neither it nor its deployment says. Anthropic's API wants a
limit, and every model of theirs can write so much; a cut answer says that it was cut."""
BETAS = "anthropic-beta"
"""A header of Anthropic's dialect: betas that a caller asks for, separated by commas. Within
Nestor it is a field of the request, a list, for it says as much as the others do."""


class Kind(StrEnum):
    """What a deployment is asked for."""

    CHAT = "chat"
    EMBEDDINGS = "embeddings"


class CacheScope(StrEnum):
    """Who is given an answer that a deployment gave before to the same request."""

    OFF = "off"
    """Nobody, but for a caller that asks for it: then as ``private``."""
    PRIVATE = "private"
    """The same key (of a task: any of the task's keys)."""
    SHARED = "shared"


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One configured model endpoint. Prices are USD per million tokens; None: unknown."""

    name: str
    side: Side
    model: str
    base_url: str
    dialect: Dialect = Dialect.OPENAI
    """``openai`` or ``anthropic``."""
    kind: Kind = Kind.CHAT
    api_key: str | None = None
    price_input: Decimal | None = None
    price_output: Decimal | None = None
    price_cached: Decimal | None = None
    """Of input that the provider had cached; None: as input."""
    price_cache_write: Decimal | None = None
    """Of input that the provider puts in its cache; None: as input."""
    timeout_s: float = 120.0
    slow_s: float | None = None
    """An answer (of a stream: its first token) that takes longer counts as slow."""
    weight: int = 1
    """Share of the calls among deployments that may serve the same request; 0: only as fallback."""
    rpm: int | None = None
    tpm: int | None = None
    """Requests and tokens a minute that it takes; None: no limit."""
    max_output_tokens: int | None = None
    """What a call without a limit of its own may write, for budgets; None: unknown."""
    context_window: int | None = None
    """Tokens that its model takes, question and answer together; None: unknown."""
    tags: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    """Names of deployments that are asked next, in order, when this one does not answer."""
    cache: CacheScope = CacheScope.OFF
    cache_ttl_s: float = 3600.0
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

    @property
    def named(self) -> str | None:
        """The model that is asked whatever ``mode`` says; callers cannot name one."""
        return None


class NamedRoute(RouteRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What Nestor asks for itself: of a deployment, or a model, by its name."""

    model: str

    @property
    def named(self) -> str | None:
        """See RouteRequest.named."""
        return self.model


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
    dialect: Dialect
    """The caller's."""
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
    cached: bool = False
    """Answered from the answer cache: nobody was asked."""
    purpose: str = "gateway"
    """``gateway`` (an agent or client) or ``route`` (guidance and questions)."""
    key_id: str | None = None
    context_ids: tuple[str, ...] = ()
    """Of the knowledge that the request carried, where the gateway put it there."""
    attempt_of: str | None = None
    """The interaction whose earlier attempt this was; None: the one that counts."""
    charges: tuple["Charge", ...] = ()
    unsettled: bool = False
    """Nobody saw its end: whether, and for how much, it was billed is not known."""


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What a call costs an account (``key:ID``, ``task:ID``).

    What is not known is charged as it was reserved: a caller that leaves just before
    the end must not be free.
    """

    account: str
    usd: Decimal
    tokens: int
