"""A task, its iterations and the verdicts on them: what Ralph works on.

``TaskSpec`` is what a user writes (the task file). ``Task`` is what the store knows.
Durations end in ``_s`` or ``_ms``, sizes in ``_bytes``, money is USD as ``Decimal``.
"""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum

import msgspec


class TaskStatus(StrEnum):
    """Where a task stands; ``FINAL_STATUSES`` never change again by themselves."""

    QUEUED = "queued"
    AWAITING_APPROVAL = "awaiting_approval"
    RUNNING = "running"
    VERIFIED = "verified"
    UNVERIFIED = "unverified"
    JUDGED = "judged"
    EXHAUSTED = "exhausted"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


FINAL_STATUSES = frozenset(TaskStatus) - {
    TaskStatus.QUEUED,
    TaskStatus.AWAITING_APPROVAL,
    TaskStatus.RUNNING,
}


class Reason(StrEnum):
    """Why a task stands where it stands."""

    CHECKS_PASSED = "checks_passed"
    NO_CHECKS = "no_checks"
    CHECKS_NOT_DISCRIMINATING = "checks_not_discriminating"
    JUDGE_PASSED = "judge_passed"
    APPROVAL_PENDING = "approval_pending"
    MAX_ITERATIONS = "max_iterations"
    BUDGET_USD = "budget_usd"
    BUDGET_TOKENS = "budget_tokens"
    BUDGET_SECONDS = "budget_seconds"
    STALLED = "stalled"
    REPEATED_ERROR = "repeated_error"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    WORKSPACE_ERROR = "workspace_error"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    RECOVERY_LIMIT = "recovery_limit"
    DEPENDENCY_FAILED = "dependency_failed"


class Outcome(StrEnum):
    """What one run of an agent came to. Says nothing about whether the work is right."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    BLOCKED = "blocked"
    AGENT_ERROR = "agent_error"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    USAGE_ERROR = "usage_error"


class Network(StrEnum):
    """What a sandboxed process may reach."""

    COORDINATOR = "coordinator"
    """``/v1/*`` of the Coordinator through a forwarder, and nothing else."""
    NONE = "none"
    FULL = "full"


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sealed command whose exit code decides. ``run``: argv, or a line for sh."""

    name: str = ""
    run: str | list[str]
    timeout_s: float = 300.0
    expect_exit: int = 0
    env: dict[str, str] = {}


class WorkspaceSpec(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Where the work happens: a local git repository, and the commit it starts from."""

    repo: str | None = None
    path: str | None = None
    """A folder inside the repository; the agent and the checks start there."""
    base: str | None = None
    """Any revision; the current HEAD when not given."""


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one task; None is unlimited (of that kind)."""

    usd: Decimal | None = None
    tokens: int | None = None
    seconds: float | None = None


class SandboxSpec(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """What the agent's sandbox may reach and use."""

    network: Network = Network.COORDINATOR
    hosts: list[str] = []
    """``name:port`` that may be reached besides the Coordinator; a person must agree."""
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    """What the workspace may grow to; None: a default of the sandbox."""
    processes: int = 512


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The task file, as submitted and sealed. The oldest fields come first."""

    task_id: str = ""
    name: str = ""
    task: str | None = None
    description: str | None = None
    prompt: str | None = None
    backend: str | None = None
    model: str | None = None
    """What the agent asks the Coordinator for: ``auto`` when not given, ``local``,
    ``remote``, or the name of a deployment."""
    use_hybrid: bool = True
    files: list[str] = []
    steps: list[str] = []
    completion_criteria: list[str] = []
    priority: str = "P2"
    phase: int | None = None
    estimated_iterations: int | None = None
    dependencies: list[str] = []
    checks: list[Check] = []
    test_command: str | list[str] | None = None
    protected: list[str] | None = None
    """Globs the agent may not change; None: the defaults; []: nothing is protected."""
    workspace: WorkspaceSpec | None = None
    command: str | list[str] | None = None
    max_iterations: int | None = None
    budget: Budget = Budget()
    require_approval: bool = False
    setup: list[str] = []
    mounts: list[str] = []
    guard_only: bool = False
    include_dirty: bool = False
    sandbox: SandboxSpec = SandboxSpec()
    context: dict[str, object] = {}

    @property
    def goal(self) -> str:
        """The one text that says what to do."""
        return self.prompt or self.task or self.description or ""

    @property
    def all_checks(self) -> list[Check]:
        """``checks`` plus ``test_command``, each with a name; given ones are kept, ours are free."""
        taken = {check.name for check in self.checks if check.name}
        found = []
        for number, check in enumerate(self.checks, 1):
            name = check.name or _free(f"check-{number}", taken)
            taken.add(name)
            found.append(msgspec.structs.replace(check, name=name))
        if self.test_command is not None:
            name = _free("tests", taken)
            found.append(Check(name=name, run=self.test_command))
        return found


def _free(name: str, taken: set[str]) -> str:
    """Return ``name``, or the first of ``name-2``, ``name-3``, … that nobody has."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What a task has used so far, by the Coordinator's meter and our clock.

    ``usd`` is None when a call's price is unknown: unknown is not zero.
    """

    usd: Decimal | None = Decimal(0)
    tokens: int = 0
    seconds: float = 0.0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one model call, or of several added up; None: not reported.

    ``cached_tokens`` (read from the provider's cache) and ``cache_write_tokens`` are part
    of ``input_tokens``, ``reasoning_tokens`` are part of ``output_tokens``.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None

    @property
    def total(self) -> int:
        """All known tokens."""
        return (self.input_tokens or 0) + (self.output_tokens or 0)


def as_count(value: object) -> int | None:
    """Return a number of tokens as a server gave it; None for what is no count."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None


class CheckRun(msgspec.Struct, frozen=True, kw_only=True):
    """One of several runs of a check on the same tree."""

    passed: bool
    exit_code: int | None
    duration_s: float
    note: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one check said on one tree. ``phase``: ``base`` or ``after``."""

    check: str
    phase: str
    passed: bool
    exit_code: int | None
    """None: it did not end by itself (time limit, killed by a signal)."""
    duration_s: float
    tests: int | None = None
    """Tests in the runner's complete report; None: no such report was seen."""
    output_tail: str = ""
    flaky: bool | None = None
    """True: on the same tree it passed and failed. None: not looked into."""
    runs: int = 1
    """How often it was run on this tree."""
    each_run: list[CheckRun] = []
    """Where there were several: each of them, the first first."""
    telling: bool = True
    """False: no test was there, or it is flaky, so that a pass later would prove nothing."""
    note: str = ""
    """Why a check with the right exit code still did not pass, or that it is flaky."""


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """Words that stand literally in a file of the judged tree (or in its diff)."""

    path: str
    text: str


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge model says of one criterion in prose. Never a verdict.

    ``met`` counts only with evidence that was found where the judge said it stands.
    None: the judge gave no usable answer.
    """

    criterion: str
    met: bool | None
    evidence: list[Quote] = []
    why: str = ""


class DiffStat(msgspec.Struct, frozen=True, kw_only=True):
    """Size of a change against the base of the task."""

    files: int = 0
    insertions: int = 0
    deletions: int = 0


class Iteration(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the loop, as recorded."""

    n: int
    started_at: datetime
    ended_at: datetime | None = None
    context_items: list[dict[str, object]] = []
    route: str | None = None
    model: str | None = None
    guidance: str | None = None
    outcome: Outcome | None = None
    exit_code: int | None = None
    claimed_done: bool = False
    diff_stat: DiffStat | None = None
    tree: str | None = None
    """Git tree id of what was judged: the snapshot, protected paths as on the base."""
    commit: str | None = None
    """The commit of that tree: what ``diff`` shows and the branch gets."""
    snapshot: str | None = None
    """The commit of the agent's own tree: where ``rollback`` and ``fork`` go on."""
    verdicts: list[Verdict] = []
    judgements: list[Judgement] = []
    judge_model: str | None = None
    usage: Usage = Usage()
    cost_usd: Decimal | None = None
    blocked_reason: str | None = None
    output_tail: str = ""
    notes: list[str] = []
    """What could not be had for this iteration (context, guidance), and why."""
    left_out: list[str] = []
    """Paths that are not in the snapshot, each with the reason."""
    protected_restored: list[str] = []
    """Paths the agent changed that verification put back as they were on the base."""
    refused: list[str] = []
    """What the sandbox refused it (``host pypi.org:443``), or which limit ended it."""


class ApprovalKind(StrEnum):
    """What a person is asked for."""

    START = "start"
    """To begin at all."""
    COMMAND = "command"
    """One command line, once; only ``builtin`` asks it."""
    PATH = "path"
    """A host path, seen read-only at the same place."""
    HOST = "host"
    """``name:port`` beyond the Coordinator."""
    NETWORK = "network"
    """Another network mode."""


GRANTS = frozenset({ApprovalKind.PATH, ApprovalKind.HOST, ApprovalKind.NETWORK})
"""Kinds that hold from the next iteration to the end of the task."""


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """A question to a person, and the answer once there is one."""

    id: str
    what: str
    """For people: what is asked, in one sentence."""
    kind: ApprovalKind = ApprovalKind.START
    subject: str = ""
    """Exactly what is granted: the command line, the path, ``name:port``, the mode."""
    digest: str = ""
    """SHA-256 over task, kind and subject: an answer holds for this alone."""
    iteration: int = 0
    asked_at: datetime | None = None
    approved: bool | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    note: str | None = None
    used_at: datetime | None = None
    """A command only: when it was let through, once; an equal one is a new question."""


class ForkPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The task and the iteration that another task goes on from; 0: its base."""

    task_id: str
    iteration: int


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task as the store knows it."""

    task_id: str
    name: str
    description: str
    status: TaskStatus
    reason: Reason | None = None
    priority: str
    phase: int | None
    backend: str
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    iteration: int = 0
    max_iterations: int
    budget: Budget
    spent: Spent = Spent()
    workspace: str | None = None
    branch: str | None = None
    base: str | None = None
    approvals: list[Approval] = []
    output: str = ""
    detail: str = ""
    """One sentence for a person: what happened and what to do."""
    replayed: bool = False
    sandboxed: bool = True
    trace_id: str
    cancel_requested: bool = False
    submitted_by: str = "admin"
    checks_digest: str = ""
    """SHA-256 over what was sealed at submit: the checks and all that they depend on."""
    attempt: int = 1
    """Counts starts by a person: submit, then each resume, retry or answered question."""
    forked_from: ForkPoint | None = None
    rolled_back_to: int | None = None
    """The iteration whose tree the branch and the next iteration start from."""
    bound_to: list[str] | None = None
    """Folders of the host that its repository must lie in, as at submit; None: anywhere."""
    waits_for: list[str] = []
    """Dependencies that are not verified yet: it is not handed to the engine."""
    spec: TaskSpec

    @property
    def success(self) -> bool:
        """True for ``verified`` alone."""
        return self.status is TaskStatus.VERIFIED

    @property
    def grants(self) -> list[Approval]:
        """What a person allowed the sandbox beyond the task file."""
        return [a for a in self.approvals if a.approved and a.kind in GRANTS]

    @property
    def asked(self) -> list[Approval]:
        """Questions that nobody has answered."""
        return [a for a in self.approvals if a.approved is None]
