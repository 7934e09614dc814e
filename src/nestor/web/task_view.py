"""A task as clients see it."""

from decimal import Decimal
from typing import Any

import msgspec

from nestor.model.access import ADMIN, Principal
from nestor.model.task import Approval, Check, Task
from nestor.ralph.approving import open_questions
from nestor.web.views import TaskView

_HIDDEN = "[hidden]"
"""Instead of a value that only an admin's key may read."""


def task_view(task: Task, reader: Principal, waits: str | None = None) -> TaskView:
    """Shape a task for clients: what it is, where it stands, what it used.

    ``waits``: why it does not run yet, where somebody looked.

    What its checks find in their environment may be secret: the values are the admin's.
    """
    budget = msgspec.to_builtins(task.budget)
    spent = task.spent
    return {
        "task_id": task.task_id,
        "name": task.name,
        "description": task.description,
        "status": task.status,
        "reason": task.reason,
        "detail": task.detail,
        "priority": task.priority,
        "phase": task.phase,
        "backend": task.backend,
        "created_at": task.created_at,
        "started_at": task.started_at,
        "ended_at": task.ended_at,
        "iteration": task.iteration,
        "max_iterations": task.max_iterations,
        "budget": {
            "usd": budget["usd"],
            "tokens": budget["tokens"],
            "seconds": budget["seconds"],
            "spent_usd": None if spent.usd is None else money(spent.usd),
            "spent_tokens": spent.tokens,
            "spent_s": round(spent.seconds, 3),
        },
        "workspace": task.workspace
        or (task.spec.workspace.repo if task.spec.workspace else None),
        "branch": task.branch,
        "base": task.base,
        "checks": [_check_view(check, reader) for check in task.spec.all_checks],
        # What a person agrees to, who approves it.
        "command": task.spec.command,
        "setup": task.spec.setup,
        "mounts": task.spec.mounts,
        "sandbox": msgspec.to_builtins(task.spec.sandbox),
        "protected": task.spec.protected,
        "guard_only": task.spec.guard_only,
        "checks_digest": task.checks_digest,
        "approvals": _plain(task.approvals),
        "questions": _plain(open_questions(task)),
        "grants": _plain(task.grants),
        "attempt": task.attempt,
        "forked_from": msgspec.to_builtins(task.forked_from),
        "rolled_back_to": task.rolled_back_to,
        "success": task.success,
        "output": task.output,
        "replayed": task.replayed,
        "sandboxed": task.sandboxed,
        "cancel_requested": task.cancel_requested,
        "dependencies": task.spec.dependencies,
        "waits_for": task.waits_for,
        "waits": waits,
        "trace_id": task.trace_id,
    }


def _plain(approvals: list[Approval]) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = msgspec.to_builtins(approvals)
    return plain


def _check_view(check: Check, reader: Principal) -> dict[str, Any]:
    view: dict[str, Any] = msgspec.to_builtins(check)
    if not reader.may(ADMIN):
        view["env"] = dict.fromkeys(check.env, _HIDDEN)
    return view


def money(value: Decimal) -> str:
    """USD as text that keeps every decimal."""
    return format(value, "f")
