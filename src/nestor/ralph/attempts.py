"""Where a further attempt begins, and what it may take: pure functions of what is stored."""

from decimal import Decimal
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from nestor.errors import Conflict, InvalidInput
from nestor.model.task import Budget, Iteration, Spent, Task, TaskStatus
from nestor.ralph.records import Carried
from nestor.ralph.sealing import MAX_ITERATIONS, budget_errors

GOES_ON = frozenset(
    {
        TaskStatus.EXHAUSTED,
        TaskStatus.CANCELLED,
        TaskStatus.FAILED,
        TaskStatus.UNVERIFIED,
        TaskStatus.JUDGED,
    }
)
"""Ends that a further attempt can follow."""
NOTHING_CARRIED = "task {} was run by a version of Nestor that kept nothing to go on from: submit it again, under another id"


class BudgetChange(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """New limits of a task: not given: as before; null: none."""

    usd: Decimal | UnsetType | None = UNSET
    tokens: int | UnsetType | None = UNSET
    seconds: float | UnsetType | None = UNSET


class Further(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a further attempt gets. ``iterations`` None: as many as the task file says."""

    iterations: int | None = None
    budget: BudgetChange = BudgetChange()
    note: str | None = None
    """Kept in the audit log."""


def encoded(carried: Carried) -> str:
    """As the store keeps it."""
    return msgspec.json.encode(carried).decode()


def decoded(body: str | None) -> Carried | None:
    """What the store kept; None: nothing."""
    return None if body is None else msgspec.json.decode(body, type=Carried)


def at_base(before: Carried) -> Carried:
    """Return to the tree that the task began with; iterations and cost are not undone."""
    prepared = before.prepared
    return Carried(
        n=before.n,
        prepared=prepared,
        commit=prepared.base,
        agent_tree=prepared.base_tree,
        judged=prepared.base,
        spent=before.spent,
    )


def at_iteration(before: Carried, one: Iteration, *, agent_tree: str) -> Carried:
    """Return to what an iteration left; the count of iterations goes on, cost is not undone."""
    return Carried(
        n=before.n,
        prepared=before.prepared,
        commit=one.snapshot or "",
        agent_tree=agent_tree,
        judged=one.commit or "",
        restored=one.protected_restored,
        failing=[verdict for verdict in one.verdicts if not verdict.passed],
        spent=before.spent,
    )


def refuse_to_go_on(task: Task, action: str) -> None:
    """Raise ``Conflict`` with the reason why a further attempt cannot follow."""
    if task.status in GOES_ON:
        return
    why = {
        TaskStatus.VERIFIED: "it is verified; roll it back or fork it to go on from there",
        TaskStatus.REJECTED: "a person refused it; submit it again, under another id (--id)",
        TaskStatus.AWAITING_APPROVAL: "it waits for an answer: nestor approve",
        TaskStatus.RUNNING: "it is running"
        + (" until its processes are gone" if task.cancel_requested else ""),
    }.get(task.status, f"it is {task.status}")
    raise Conflict(f"cannot {action} task {task.task_id}: {why}")


def changed_budget(task: Task, change: BudgetChange) -> Budget:
    """Return the new limits. Raises for what is no limit, or is spent already."""
    given: dict[str, Any] = {
        name: value
        for name in change.__struct_fields__
        if (value := getattr(change, name)) is not UNSET
    }
    budget = msgspec.structs.replace(task.budget, **given)
    if errors := budget_errors(budget):
        raise InvalidInput(
            "; ".join(f"{e.field}: {e.message}" for e in errors), *errors
        )
    spent = task.spent
    reasons = []
    if budget.usd is not None and spent.usd is None:
        reasons.append(
            "what it spent is not known, so no limit in USD can be kept: give"
            " budget.usd null (--budget-usd none)"
        )
    for name, limit, used in (
        ("usd", budget.usd, spent.usd),
        ("tokens", budget.tokens, spent.tokens),
        ("seconds", budget.seconds, spent.seconds),
    ):
        if limit is not None and used is not None and used >= limit:
            shown = f"{used:.1f}" if isinstance(used, float) else used
            reasons.append(f"{shown} of {limit} {name} are spent: raise budget.{name}")
    if reasons:
        raise Conflict(f"task {task.task_id}: {'; '.join(reasons)}")
    return budget


def iterations_of(task: Task, further: Further) -> int:
    """Return how many iterations a further attempt gets. Raises ``InvalidInput``."""
    wanted = further.iterations
    if wanted is not None and not 1 <= wanted <= MAX_ITERATIONS:
        raise InvalidInput.at("iterations", f"use 1 to {MAX_ITERATIONS}")
    return wanted or task.spec.max_iterations or 1


def started_anew(point: Carried) -> Carried:
    """Return where a fork begins: that tree, and nothing done or spent."""
    return msgspec.structs.replace(point, n=0, spent=Spent())
