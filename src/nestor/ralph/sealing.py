"""From what a user wrote to a sealed task: every field checked, nothing changed later."""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from nestor.errors import FieldError, InvalidInput
from nestor.model.access import ADMIN, Principal
from nestor.model.ids import TASK_ID, new_id, new_trace_id
from nestor.model.task import Approval, Check, Network, Task, TaskSpec, TaskStatus
from nestor.ports.agent import AgentBackend

PRIORITIES = ("P0", "P1", "P2", "P3")
_MAX_ITERATIONS = 100
_MAX_TEXT = 100_000
_MAX_LIST = 200
_MIN_MEMORY = 64 * 1024 * 1024
_MAX_PROCESSES = 32_768
_MAX_TIMEOUT_S = 24 * 3600.0
_PHASE = re.compile(r"P(\d+)-")


class Sealing(msgspec.Struct, frozen=True, kw_only=True):
    """What sealing needs to know about this installation."""

    backends: Mapping[str, AgentBackend]
    default_backend: str
    max_iterations: int
    workspace_roots: tuple[Path, ...] = ()


def seal(
    spec: TaskSpec, principal: Principal, rules: Sealing, *, now: datetime
) -> tuple[Task, str]:
    """Return the task to store and the digest of what was asked.

    Raises ``InvalidInput`` that names every wrong field at once.
    """
    digest = hashlib.sha256(msgspec.json.encode(spec, order="sorted")).hexdigest()
    sealed = msgspec.structs.replace(
        spec,
        task_id=spec.task_id or new_id(),
        backend=spec.backend or rules.default_backend,
        max_iterations=spec.max_iterations or rules.max_iterations,
        phase=spec.phase if spec.phase is not None else _phase(spec.task_id),
    )
    if errors := [*_text_errors(sealed), *_field_errors(sealed, rules)]:
        raise InvalidInput(
            "; ".join(f"{e.field}: {e.message}" for e in errors), *errors
        )
    approval = needs_approval(sealed, principal)
    task = Task(
        task_id=sealed.task_id,
        name=sealed.name or _first_line(sealed.goal),
        description=sealed.goal,
        status=TaskStatus.AWAITING_APPROVAL if approval else TaskStatus.QUEUED,
        priority=sealed.priority,
        phase=sealed.phase,
        backend=sealed.backend or "",
        created_at=now,
        max_iterations=sealed.max_iterations or 1,
        budget=sealed.budget,
        approvals=[Approval(id="start", what=approval)] if approval else [],
        trace_id=new_trace_id(),
        submitted_by=principal.key_id,
        spec=sealed,
    )
    return task, digest


def needs_approval(spec: TaskSpec, principal: Principal) -> str | None:
    """Say what a person must agree to before the first iteration; None: nothing."""
    if spec.require_approval:
        return "the task asks for approval before it starts"
    if spec.sandbox.network is Network.FULL:
        return "the agent wants the full network"
    brings = [
        name
        for name, value in (
            ("command", spec.command),
            ("checks", spec.all_checks),
            ("setup", spec.setup),
            ("mounts", spec.mounts),
        )
        if value
    ]
    if brings and not principal.may(ADMIN):
        return f"the key is not an admin's, and the task brings {', '.join(brings)}"
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
            not 1 <= (spec.max_iterations or 0) <= _MAX_ITERATIONS,
            f"use 1 to {_MAX_ITERATIONS}",
        ),
        (
            "dependencies",
            bool(spec.dependencies),
            "waiting for other tasks is not built yet",
        ),
        (
            "sandbox.memory_bytes",
            limit.memory_bytes is not None and limit.memory_bytes < _MIN_MEMORY,
            "less than 64 MiB",
        ),
        (
            "sandbox.processes",
            not 1 <= limit.processes <= _MAX_PROCESSES,
            f"use 1 to {_MAX_PROCESSES}",
        ),
        (
            "test_command",
            spec.test_command is not None and not spec.test_command,
            "is empty",
        ),
        *(
            (f"budget.{name}", value is not None and not value > 0, "must be above 0")
            for name in ("usd", "tokens", "seconds")
            for value in [getattr(spec.budget, name)]
        ),
        *(
            (
                f"mounts.{number}",
                not Path(mount).is_absolute() or not Path(mount).exists(),
                "must be an absolute path that exists",
            )
            for number, mount in enumerate(spec.mounts)
        ),
    )
    errors = [FieldError(field, message) for field, bad, message in wrong if bad]
    return [*errors, *_backend_errors(spec, rules), *_check_errors(spec.checks)]


def _backend_errors(spec: TaskSpec, rules: Sealing) -> list[FieldError]:
    backend = rules.backends.get(spec.backend or "")
    if backend is None:
        known = ", ".join(sorted(rules.backends))
        return [FieldError("backend", f"{spec.backend!r} is not one of: {known}")]
    if backend.name == "command" and not spec.command:
        return [FieldError("command", "backend command needs the command to run")]
    if backend.name != "command" and spec.command:
        return [FieldError("command", f"backend {backend.name} takes no command")]
    return []


def _check_errors(checks: list[Check]) -> list[FieldError]:
    errors = []
    names: set[str] = set()
    for number, check in enumerate(checks):
        at = f"checks.{number}"
        if not check.run or (isinstance(check.run, str) and not check.run.strip()):
            errors.append(FieldError(f"{at}.run", "is empty"))
        if not 0 < check.timeout_s <= _MAX_TIMEOUT_S:
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
