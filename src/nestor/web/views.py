"""What replies look like that are put together in a handler, for readers and for mypy.

Money is USD as decimal text, times are RFC 3339, None is unknown.
"""

from datetime import datetime
from typing import Any, NotRequired, TypedDict

from nestor.model.access import KeyLimits
from nestor.model.interaction import Feedback
from nestor.model.knowledge import Added, Document, Skill
from nestor.model.task import Reason, TaskStatus
from nestor.ports.audit_log import AuditEntry
from nestor.ports.knowledge_store import KnowledgeCounts


class Accepted(TypedDict):
    """Reply of ``POST /submit``."""

    task_id: str
    status: TaskStatus
    position: int
    """Queued tasks that go before it, itself included; 0: it waits for others, or not at all."""
    waits_for: list[str]
    detail: str
    url: str


class SpentBudget(TypedDict):
    """Limits of a task, and what it has used."""

    usd: str | None
    tokens: int | None
    seconds: float | None
    spent_usd: str | None
    spent_tokens: int
    spent_s: float


class TaskView(TypedDict):
    """One task."""

    task_id: str
    name: str
    description: str
    status: TaskStatus
    reason: Reason | None
    detail: str
    priority: str
    phase: int | None
    backend: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    iteration: int
    max_iterations: int
    budget: SpentBudget
    workspace: str | None
    branch: str | None
    base: str | None
    checks: list[dict[str, Any]]
    command: str | list[str] | None
    setup: list[str]
    mounts: list[str]
    sandbox: dict[str, Any]
    protected: list[str] | None
    guard_only: bool
    checks_digest: str
    approvals: list[dict[str, Any]]
    questions: list[dict[str, Any]]
    """Those of ``approvals`` that wait for an answer."""
    grants: list[dict[str, Any]]
    """Those of them that widened the sandbox."""
    attempt: int
    forked_from: dict[str, Any] | None
    rolled_back_to: int | None
    success: bool
    output: str
    replayed: bool
    sandboxed: bool
    cancel_requested: bool
    dependencies: list[str]
    waits_for: list[str]
    """Those that are not verified yet, of a task that waits for them."""
    waits: str | None
    """Why no worker has it now, as seen; None: one does, or is about to."""
    trace_id: str


class TaskList(TypedDict):
    """Reply of ``GET /tasks``; ``truncated``: there are older ones."""

    tasks: list[TaskView]
    truncated: bool


class Status(TaskList):
    """Reply of ``GET /status``."""

    counts: dict[str, int]
    workers: list[dict[str, Any]]


class ResultView(TypedDict):
    """How one task ended."""

    task_id: str
    status: TaskStatus
    success: bool
    reason: Reason | None
    detail: str
    iterations: int
    verdicts: list[dict[str, Any]]
    judgements: list[dict[str, Any]]
    """What a judge said of the last iteration: apart from verdicts, and never one."""
    judge_model: str | None
    checks_digest: str
    output: str
    diff_stat: dict[str, int] | None
    cost_usd: str | None
    tokens: int
    duration_s: float | None
    branch: str | None
    protected: list[str] | None
    guard_only: bool
    replayed: bool
    sandboxed: bool


class Results(TypedDict):
    """Reply of ``GET /results``; ``truncated``: there are older ones."""

    results: list[ResultView]
    truncated: bool


class AuditTrail(TypedDict):
    """Reply of ``GET /audit``, oldest first; ``next``: what to go on ``after``, None at the end."""

    entries: list[AuditEntry]
    next: int | None


class Iterations(TypedDict):
    """Reply of ``GET /tasks/{id}/iterations``."""

    base: list[dict[str, Any]]
    """Verdicts before any work was done."""
    iterations: list[dict[str, Any]]
    model_calls: list[dict[str, Any]]


class Shelf(TypedDict):
    """Reply of ``GET /documents``; ``next``: what to go on ``after``, None at the end."""

    documents: list[Document]
    counts: KnowledgeCounts
    next: str | None


class SkillChanged(TypedDict):
    """Reply of ``POST /skills``."""

    id: str
    changed: bool


class SkillList(TypedDict):
    """Reply of ``GET /skills``, newest first."""

    skills: list[Skill]


class Several(TypedDict):
    """Reply of ``POST /documents`` with ``items``, in their order."""

    items: list[Added]


class Reindexed(TypedDict):
    """Reply of ``POST /reindex``."""

    chunks: int


class EventFiles(TypedDict):
    """The telemetry's files on disk."""

    files: int | None
    bytes: int | None


class LearningStats(TypedDict):
    """Reply of ``GET /learning/stats``."""

    learning: str
    message: str
    processed: int
    telemetry: EventFiles
    events_written: int
    events_buffered: int
    events_dropped: int
    patterns: dict[str, Any] | None
    dataset: dict[str, Any] | None
    outbox_depth: int | None


class ChatMessage(TypedDict):
    """One message, in OpenAI's shape; more fields are passed on."""

    role: str
    content: NotRequired[Any]


class Chat(TypedDict):
    """Body of ``POST /v1/chat/completions``: OpenAI's; fields not named here are passed on."""

    messages: list[ChatMessage]
    model: NotRequired[str | None]
    stream: NotRequired[bool | None]
    stream_options: NotRequired[dict[str, Any] | None]
    tools: NotRequired[list[Any] | None]


class MessagesRequest(TypedDict):
    """Body of ``POST /v1/messages``: Anthropic's; fields not named here are passed on."""

    messages: list[ChatMessage]
    max_tokens: int
    model: NotRequired[str | None]
    stream: NotRequired[bool | None]


class ResponsesRequest(TypedDict):
    """Body of ``POST /v1/responses``: OpenAI's; fields not named here are passed on."""

    input: str | list[Any]
    model: NotRequired[str | None]
    stream: NotRequired[bool | None]


class EmbeddingsRequest(TypedDict):
    """Body of ``POST /v1/embeddings``, in OpenAI's shape."""

    input: str | list[Any]
    model: NotRequired[str | None]


class AnthropicModel(TypedDict):
    """What ``model`` may be, as Anthropic's SDK takes it."""

    type: str
    id: str
    display_name: str
    created_at: str


class AnthropicModels(TypedDict):
    """Reply of ``GET /v1/models`` to Anthropic's SDK."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Model(TypedDict):
    """What ``model`` may be, in OpenAI's shape."""

    id: str
    object: str
    created: int
    owned_by: str
    context_window: NotRequired[int]
    """Tokens, question and answer together; only where it is known."""


class Models(TypedDict):
    """Reply of ``GET /v1/models``, in OpenAI's shape."""

    object: str
    data: list[Model]


class CoordinatorStats(TypedDict):
    """Reply of ``GET /stats`` of the Coordinator."""

    routes: dict[str, int]
    calls: list[dict[str, Any]]
    calibration: dict[str, Any] | None
    routing_default: str
    deployments: list[dict[str, Any]]
    spend: "SpendStats"


class SpendTotal(TypedDict):
    """What calls came to.

    Tokens are those that were reported, null where none were. ``cost_usd`` is of the calls
    whose price is known, null where none is; ``unpriced`` counts the others. ``unsettled``:
    nobody saw their end.
    """

    calls: int
    failed: int
    unsettled: int
    cached: int
    unpriced: int
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    cost_usd: str | None


class SpendRow(SpendTotal):
    """Calls of one model, deployment, task, key or day; ``by`` null: of none."""

    by: str | None
    name: str | None
    """As ``by``; of a key what its maker called it."""


class SpendView(TypedDict):
    """Reply of ``GET /spend``; ``truncated``: there are more rows, the total has them."""

    by: str
    since: str | None
    rows: list[SpendRow]
    total: SpendTotal
    truncated: bool


class SpendStats(TypedDict):
    """What all calls came to: the dearest models, tasks and keys (ids), the last days."""

    total: SpendTotal
    by_model: dict[str, SpendTotal]
    by_task: dict[str, SpendTotal]
    by_key: dict[str, SpendTotal]
    by_day: dict[str, SpendTotal]


class InteractionView(TypedDict):
    """Reply of ``GET /interactions/{id}``: one of the first two is there.

    ``standing`` is what counts of ``feedback``: of each key the newest.
    """

    interaction_id: str
    interaction: dict[str, Any] | None
    call: dict[str, Any] | None
    feedback: list[Feedback]
    standing: list[Feedback]


class KeySpent(TypedDict):
    """What a key with limits has spent on models, by the calls that are settled."""

    usd: str
    tokens: int


class KeyView(TypedDict):
    """One key. ``spent`` is null where it has no limits: nobody counted it."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None
    limits: KeyLimits | None
    spent: KeySpent | None


class KeyList(TypedDict):
    """Reply of ``GET /keys``: never a secret."""

    keys: list[KeyView]


class MadeKey(TypedDict):
    """Reply of ``POST /keys``: the only place of ``key``, the secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None
    limits: KeyLimits | None
    key: str
