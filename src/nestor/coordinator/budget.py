"""What a task may still spend on models: asked before each call that names the task."""

from collections.abc import Awaitable, Callable
from decimal import Decimal

from nestor.errors import BudgetExceeded, NotFound
from nestor.ports.call_ledger import CallLedger
from nestor.ports.task_store import TaskStore

MaySpend = Callable[[str], Awaitable[None]]
"""``await may_spend(task_id)``: raises ``BudgetExceeded`` when the task has spent its own."""


def within_budget(tasks: TaskStore, ledger: CallLedger) -> MaySpend:
    """Hold each task to its budget by the calls that are settled.

    Calls under way are not counted, so a budget is overrun by those at most. Nor is what
    nobody knows the price of: the loop ends such a task after its iteration.
    """

    async def may_spend(task_id: str) -> None:
        try:
            budget = (await tasks.get(task_id)).budget
        except NotFound:  # a caller's own word for its calls
            return
        if budget.tokens is None and budget.usd is None:
            return
        calls = await ledger.calls(task_id)
        tokens = sum(call.usage.total for call in calls)
        if budget.tokens is not None and tokens >= budget.tokens:
            message = f"task {task_id} has used {tokens} of {budget.tokens} tokens"
            raise BudgetExceeded(message)
        usd = sum((call.cost_usd or Decimal(0) for call in calls), Decimal(0))
        if budget.usd is not None and usd >= budget.usd:
            raise BudgetExceeded(
                f"task {task_id} has spent {usd:f} of {budget.usd} USD"
            )

    return may_spend
