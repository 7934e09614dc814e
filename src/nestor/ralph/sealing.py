"""From what a user wrote to a sealed task: every field checked, nothing changed later."""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import msgspec

from nestor.errors import FieldError, InvalidInput
from nestor.model.access import ADMIN, Principal
from nestor.model.ids import TASK_ID, new_id, new_trace_id
from nestor.model.task import (
    Approval,
    Budget,
    Check,
    Network,
    Reason,
    SandboxSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from nestor.ports.agent import AgentBackend
from nestor.ports.sandbox import DISK_BYTES
from nestor.ralph.approving import is_host

PRIORITIES = ("P0", "P1", "P2", "P3")
MAX_ITERATIONS = 100
_MAX_TEXT = 100_000
_MAX_LIST = 200
_MIN_MEMORY = 64 * 1024 * 1024
_MAX_MEMORY = 1 << 50
_MIN_DISK = 1024 * 1024
_MAX_DISK = 1 << 50
MAX_PHASE = 9999
_MAX_PROCESSES = 32_768
MAX_TIMEOUT_S = 24 * 3600.0
_PHASE = re.compile(r"P([0-9]{1,4})-")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""No command line, path or environment holds these: NUL ends them, the rest is a mistake."""


class Sealing(msgspec.Struct, frozen=True, kw_only=True):
    """What sealing needs to know about this installation."""

    backends: Mapping[str, AgentBackend]
    default_backend: str
    max_iterations: int
    refuses_mount: Callable[[Path], str | None]
    """``ports.sandbox.Sandbox.refuses_mount``."""
    workspace_roots: tuple[Path, ...] = ()
    never_fits: Callable[[str, int | None], str | None] = lambda _backend, _bytes: None
    """``gate.Gate.never_fits``: why so much memory can never be had here."""


def seal(
    spec: TaskSpec, principal: Principal, rules: Sealing, *, now: datetime
) -> tuple[Task, str]:
    """Return the task to store and the digest of what was asked.

    Raises ``InvalidInput`` that names every wrong field at once.
    """
    sealed = msgspec.structs.replace(
        spec,
        task_id=spec.task_id or new_id(),
        backend=spec.backend or rules.default_backend,
        max_iterations=spec.max_iterations or rules.max_iterations,
        phase=spec.phase if spec.phase is not None else _phase(spec.task_id),
    )
    if errors := [
        *_text_errors(sealed),
        *_control_errors(sealed),
        *_field_errors(sealed, rules),
        *_dependency_errors(sealed),
    ]:
        raise InvalidInput(
            "; ".join(f"{e.field}: {e.message}" for e in errors), *errors
        )
    digest = hashlib.sha256(msgspec.json.encode(spec, order="sorted")).hexdigest()
    approval = needs_approval(sealed, principal)
    task = Task(
        task_id=sealed.task_id,
        name=sealed.name or _first_line(sealed.goal),
        description=sealed.goal,
        status=TaskStatus.AWAITING_APPROVAL if approval else TaskStatus.QUEUED,
        reason=Reason.APPROVAL_PENDING if approval else None,
        detail=approval or "",
        priority=sealed.priority,
        phase=sealed.phase,
        backend=sealed.backend or "",
        created_at=now,
        max_iterations=sealed.max_iterations or 1,
        budget=sealed.budget,
        approvals=[Approval(id="start", what=approval)] if approval else [],
        trace_id=new_trace_id(),
        submitted_by=principal.key_id,
        checks_digest=checks_digest(sealed),
        spec=sealed,
    )
    return task, digest


def checks_digest(spec: TaskSpec) -> str:
    """Return the SHA-256 over all that decides how the task ends, in a fixed order.

    The checks, what they are run with and on, and what a judge goes by: the criteria, or
    where there are none the goal.
    """
    place, limits = spec.workspace, spec.sandbox
    decides = {
        "checks": spec.all_checks,
        "protected": spec.protected,
        "guard_only": spec.guard_only,
        "setup": spec.setup,
        "mounts": spec.mounts,
        "criteria": spec.completion_criteria or [spec.goal],
        "path": place.path if place else None,
        "memory_bytes": limits.memory_bytes,
        "disk_bytes": limits.disk_bytes,
        "processes": limits.processes,
    }
    return hashlib.sha256(msgspec.json.encode(decides, order="sorted")).hexdigest()


def needs_approval(spec: TaskSpec, principal: Principal) -> str | None:
    """Say what a person must agree to before the first iteration; None: nothing.

    All of it at once: whoever agrees to one thing must not let another through unseen.
    """
    limits = spec.sandbox
    brings = [
        name
        for name, value in (
            ("command", spec.command),
            ("checks", spec.all_checks),
            ("setup", spec.setup),
            ("mounts", spec.mounts),
            ("more processes", limits.processes > SandboxSpec().processes),
            ("more room on the disk", (limits.disk_bytes or 0) > DISK_BYTES),
        )
        if value and not principal.may(ADMIN)
    ]
    asked = (
        (spec.require_approval, "the task asks for approval before it starts"),
        (limits.network is Network.FULL, "the agent wants the full network"),
        (limits.hosts, f"the agent wants to reach {', '.join(limits.hosts)}"),
        (
            brings,
            f"the key is not an admin's, and the task brings {', '.join(brings)}",
        ),
    )
    return "; ".join(text for needed, text in asked if needed) or None


def followed(spec: TaskSpec) -> TaskSpec:
    """Name the repository by where it really lies, so that ``moved`` can tell later."""
    place = spec.workspace
    if place is None or place.repo is None:
        return spec
    real = str(Path(place.repo).expanduser().resolve())
    place = msgspec.structs.replace(place, repo=real)
    return msgspec.structs.replace(spec, workspace=place)


def moved(spec: TaskSpec) -> str | None:
    """Say why the repository is not the one that was asked for; None: it is.

    Whoever may write beside it could put a link in its place after the task was let in.
    """
    repo = spec.workspace.repo if spec.workspace else None
    if repo is None:
        return None
    try:
        real = Path(repo).resolve()
    except (OSError, RuntimeError) as error:
        return f"{repo} cannot be followed any more: {error}"
    if real != Path(repo):
        return f"{repo} is a link to {real} now; submit the task again if that is meant"
    return None


def _text_errors(spec: TaskSpec) -> list[FieldError]:
    given = [f for f in ("task", "description", "prompt") if getattr(spec, f)]
    errors = []
    if len(given) != 1:
        said = " and ".join(given) if given else "none of them"
        errors.append(
            FieldError("task", f"give one of task, description, prompt; got {said}")
        )
    if len(spec.goal) > _MAX_TEXT:
        errors.append(FieldError(given[0], f"longer than {_MAX_TEXT} characters"))
    if not TASK_ID.fullmatch(spec.task_id) or set(spec.task_id) <= {"."}:
        errors.append(
            FieldError("task_id", "use 1 to 64 letters, digits, '.', '_' or '-'")
        )
    lists = ("files", "steps", "completion_criteria", "checks", "setup", "mounts")
    errors.extend(
        FieldError(field, f"more than {_MAX_LIST} entries")
        for field in lists
        if len(getattr(spec, field)) > _MAX_LIST
    )
    return errors


def _dependency_errors(spec: TaskSpec) -> Iterator[FieldError]:
    """Whether they go in a circle only the store can tell, where they meet the others."""
    if len(spec.dependencies) > _MAX_LIST:
        yield FieldError("dependencies", f"more than {_MAX_LIST} entries")
    for at, name in enumerate(spec.dependencies[:_MAX_LIST]):
        if not TASK_ID.fullmatch(name) or set(name) <= {"."}:
            message = "name a task: 1 to 64 letters, digits, '.', '_' or '-'"
            yield FieldError(f"dependencies.{at}", message)
        elif name == spec.task_id:
            yield FieldError(f"dependencies.{at}", "a task cannot wait for itself")


def _field_errors(spec: TaskSpec, rules: Sealing) -> list[FieldError]:
    limit = spec.sandbox
    wrong = (
        (
            "priority",
            spec.priority not in PRIORITIES,
            f"use one of {', '.join(PRIORITIES)}",
        ),
        (
            "max_iterations",
            not 1 <= (spec.max_iterations or 0) <= MAX_ITERATIONS,
            f"use 1 to {MAX_ITERATIONS}",
        ),
        (
            "sandbox.memory_bytes",
            limit.memory_bytes is not None
            and not _MIN_MEMORY <= limit.memory_bytes <= _MAX_MEMORY,
            "use 64 MiB to 1 PiB",
        ),
        (
            "sandbox.disk_bytes",
            limit.disk_bytes is not None
            and not _MIN_DISK <= limit.disk_bytes <= _MAX_DISK,
            "use 1 MiB to 1 PiB",
        ),
        (
            "sandbox.memory_bytes",
            bool(never := rules.never_fits(spec.backend or "", limit.memory_bytes)),
            never or "",
        ),
        (
            "sandbox.processes",
            not 1 <= limit.processes <= _MAX_PROCESSES,
            f"use 1 to {_MAX_PROCESSES}",
        ),
        (
            "phase",
            spec.phase is not None and not 0 <= spec.phase <= MAX_PHASE,
            f"use 0 to {MAX_PHASE}",
        ),
        ("test_command", _is_empty(spec.test_command), "is empty"),
        ("command", _is_empty(spec.command), "is empty"),
    )
    errors = [FieldError(field, message) for field, bad, message in wrong if bad]
    return [
        *errors,
        *budget_errors(spec.budget),
        *_backend_errors(spec, rules),
        *_check_errors(spec.checks),
        *_mount_errors(spec.mounts, rules),
        *_host_errors(limit.hosts),
    ]


def budget_errors(budget: Budget) -> list[FieldError]:
    """Name each limit that is none."""
    return [
        FieldError(f"budget.{name}", "must be a finite number above 0")
        for name in ("usd", "tokens", "seconds")
        for value in [getattr(budget, name)]
        if value is not None and not _is_amount(value)
    ]


def _is_amount(value: Decimal | float) -> bool:
    # Asked first: to compare a Decimal that is no number raises.
    finite = value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)
    return finite and value > 0


def _is_empty(run: str | list[str] | None) -> bool:
    """Tell whether a command that is given names nothing to run."""
    if run is None:
        return False
    first = run if isinstance(run, str) else (run or [""])[0]
    return not first.strip()


def _mount_errors(mounts: list[str], rules: Sealing) -> Iterator[FieldError]:
    for number, mount in enumerate(mounts):
        path = Path(mount)
        if not path.is_absolute():
            yield FieldError(f"mounts.{number}", "must be an absolute path")
        elif not _NOT_TEXT.search(mount) and (why := rules.refuses_mount(path)):
            yield FieldError(f"mounts.{number}", why)


def _host_errors(hosts: list[str]) -> Iterator[FieldError]:
    if len(hosts) > _MAX_LIST:
        yield FieldError("sandbox.hosts", f"more than {_MAX_LIST} entries")
    for number, host in enumerate(hosts[:_MAX_LIST]):
        if not is_host(host):
            message = "use name:port in small letters, e.g. pypi.org:443"
            yield FieldError(f"sandbox.hosts.{number}", message)


def _control_errors(spec: TaskSpec) -> Iterator[FieldError]:
    """Name each text that becomes a command, a path or a variable, and cannot be one."""
    for field, text in _passed_on(spec):
        if found := _NOT_TEXT.search(text):
            character = f"U+{ord(found[0]):04X}"
            yield FieldError(field, f"holds a control character ({character})")
    for number, check in enumerate(spec.checks):
        for name in check.env:
            if not _ENV_NAME.fullmatch(name):
                message = f"{name[:80]!r} is no name of an environment variable"
                yield FieldError(f"checks.{number}.env", message)


def _passed_on(spec: TaskSpec) -> Iterator[tuple[str, str]]:
    for number, check in enumerate(spec.checks):
        yield f"checks.{number}.name", check.name
        yield from _parts(f"checks.{number}.run", check.run)
        for name, value in check.env.items():
            # A name that cannot be one is told by itself, not as part of a path.
            plain = _ENV_NAME.fullmatch(name)
            yield f"checks.{number}.env" + (f".{name}" if plain else ""), value
    yield from _parts("test_command", spec.test_command)
    yield from _parts("command", spec.command)
    yield from _parts("setup", spec.setup)
    yield from _parts("mounts", spec.mounts)
    if spec.workspace is not None:
        for name in ("repo", "path", "base"):
            yield from _parts(f"workspace.{name}", getattr(spec.workspace, name))


def _parts(field: str, value: str | list[str] | None) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    for number, part in enumerate(value if isinstance(value, list) else []):
        yield f"{field}.{number}", part


def _backend_errors(spec: TaskSpec, rules: Sealing) -> list[FieldError]:
    backend = rules.backends.get(spec.backend or "")
    if backend is None:
        known = ", ".join(sorted(rules.backends))
        return [FieldError("backend", f"{spec.backend!r} is not one of: {known}")]
    if backend.name == "command" and not spec.command:
        return [FieldError("command", "backend command needs the command to run")]
    if backend.name != "command" and spec.command:
        return [FieldError("command", f"backend {backend.name} takes no command")]
    if backend.needs_model and spec.sandbox.network is Network.NONE:
        message = f"backend {backend.name} reaches no model from none; use coordinator"
        return [FieldError("sandbox.network", message)]
    return []


def _check_errors(checks: list[Check]) -> list[FieldError]:
    errors = []
    names: set[str] = set()
    for number, check in enumerate(checks):
        at = f"checks.{number}"
        if _is_empty(check.run):
            errors.append(FieldError(f"{at}.run", "is empty"))
        if not 0 < check.timeout_s <= MAX_TIMEOUT_S:
            errors.append(
                FieldError(f"{at}.timeout_s", "use more than 0, at most a day")
            )
        if check.name and check.name in names:
            errors.append(FieldError(f"{at}.name", f"{check.name!r} is there twice"))
        names.add(check.name)
    return errors


def _phase(task_id: str) -> int | None:
    match = _PHASE.match(task_id)
    return int(match[1]) if match else None


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:80] if text.strip() else ""
