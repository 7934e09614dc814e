"""What replies look like that are put together in a handler, for readers and for mypy.

Money is USD as decimal text, times are RFC 3339, None is unknown.
"""

from datetime import datetime
from typing import Any, NotRequired, TypedDict

from nestor.model.access import ApiKey
from nestor.model.knowledge import Added, Document
from nestor.model.task import Reason, TaskStatus
from nestor.ports.knowledge_store import KnowledgeCounts


class Accepted(TypedDict):
    """Reply of ``POST /submit``."""

    task_id: str
    status: TaskStatus
    position: int
    """Tasks that wait, this one included; 0 when it does not wait."""
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
    approvals: list[dict[str, Any]]
    success: bool
    output: str
    replayed: bool
    sandboxed: bool
    cancel_requested: bool
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


class Iterations(TypedDict):
    """Reply of ``GET /tasks/{id}/iterations``."""

    iterations: list[dict[str, Any]]
    model_calls: list[dict[str, Any]]


class Shelf(TypedDict):
    """Reply of ``GET /documents``."""

    documents: list[Document]
    counts: KnowledgeCounts


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


class Models(TypedDict):
    """Reply of ``GET /v1/models``, in OpenAI's shape."""

    object: str
    data: list[dict[str, Any]]


class CoordinatorStats(TypedDict):
    """Reply of ``GET /stats`` of the Coordinator."""

    routes: dict[str, int]
    calls: list[dict[str, Any]]
    calibration: dict[str, Any] | None
    routing_default: str
    deployments: list[dict[str, Any]]


class KeyList(TypedDict):
    """Reply of ``GET /keys``: never a secret."""

    keys: list[ApiKey]


class MadeKey(TypedDict):
    """Reply of ``POST /keys``: the only place of ``key``, the secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None
    key: str
