"""What each durable step leaves behind: recorded as JSON, read back after a crash."""

from datetime import datetime

import msgspec

from nestor.model.knowledge import ContextItem
from nestor.model.task import Judgement, Reason, Spent, TaskStatus, Verdict
from nestor.ports.router import Meter
from nestor.ports.workspace import Snapshot
from nestor.ralph.reports import TestReport


class End(msgspec.Struct, frozen=True, kw_only=True):
    """Why the task cannot or need not go on. ``detail``: one sentence for a person."""

    status: TaskStatus
    reason: Reason
    detail: str = ""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """The workspace, its environment, and what the checks say before any work."""

    base: str
    base_tree: str
    repo: str | None = None
    setup: str | None = None
    base_verdicts: list[Verdict] = []
    base_reports: dict[str, TestReport] = {}
    duration_s: float = 0.0


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt leaves to the next one: stored with every iteration."""

    n: int
    """The last iteration; 0: none."""
    prepared: Prepared
    commit: str
    """The agent's tree: where the next iteration starts."""
    agent_tree: str
    judged: str
    restored: list[str] = []
    failing: list[Verdict] = []
    spent: Spent = Spent()


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The start of an iteration; the first of an attempt says where it goes on."""

    at: datetime
    end: End | None = None
    carried: Carried | None = None
    over: bool = False
    """Another attempt has the task by now: this one ends without a change."""


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Items from the knowledge base; ``degraded`` says what it could not reach."""

    end: End | None = None
    items: list[ContextItem] = []
    degraded: list[str] = []


class Guidance(msgspec.Struct, frozen=True, kw_only=True):
    """Advice of a model. ``error``: why there is none although it was asked for."""

    end: End | None = None
    text: str | None = None
    route: str | None = None
    model: str | None = None
    error: str | None = None


class AgentRun(msgspec.Struct, frozen=True, kw_only=True):
    """How one run of the agent ended. ``failure`` is one of an ``AgentEnd``, or ``timeout``."""

    end: End | None = None
    failure: str | None = None
    claims_done: bool = False
    exit_code: int | None = None
    summary: str = ""
    output_tail: str = ""
    signature: str = ""
    duration_s: float = 0.0
    """Without the time it waited for a person."""
    sandboxed: bool = True
    refused: list[str] = []
    """What the sandbox, or the agent's own policy, did not let it do."""
    unanswered: bool = False
    """It ended because nobody answered what it asked."""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """The tree as the harness committed it."""

    end: End | None = None
    snapshot: Snapshot | None = None


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """Verdicts on the snapshot and the meter after them."""

    end: End | None = None
    judged: Snapshot | None = None
    """The snapshot with its protected paths as on the base: what the verdicts are on."""
    verdicts: list[Verdict] = []
    restored: list[str] = []
    same_tree_as: str | None = None
    """``base`` or ``iteration n``: that tree was checked before, its verdicts hold."""
    duration_s: float = 0.0
    total: Meter = Meter()
    iteration: Meter = Meter()
    judgements: list[Judgement] = []
    judge_model: str | None = None
    judge_error: str = ""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge says of the criteria; empty when none is configured.

    ``error``: why it said nothing. ``total``, ``iteration``: the meter after it, where it
    was asked.
    """

    end: End | None = None
    judgements: list[Judgement] = []
    model: str | None = None
    error: str = ""
    duration_s: float = 0.0
    total: Meter | None = None
    iteration: Meter | None = None


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """The decision on an iteration, as stored with it."""

    at: datetime
    end: End | None = None
