"""What a caller may spend: its key's limits, its task's budget."""

import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec

from nestor.coordinator.pricing import MAX_TOKENS
from nestor.errors import NotFound, RateLimited
from nestor.model.access import KeyLimits
from nestor.model.task import Budget, Usage
from nestor.ports.budget_store import Account
from nestor.ports.quota import Quota

BudgetOf = Callable[[str], Awaitable[Budget]]
"""``await budget_of(task_id)``; raises ``NotFound``."""
_MOST_TASKS = 1024
_FRESH_S = 1.0
"""A person may change a task's budget: another process sees it so much later."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf models are asked."""

    key_id: str | None = None
    limits: KeyLimits | None = None
    task_id: str | None = None
    iteration: int | None = None
    tags: tuple[str, ...] = ()
    """Only deployments that have all of them are asked."""
    cache: bool = False
    """An answer that was given to it before will do."""

    @property
    def owner(self) -> str:
        """Whose answers it shares: a task's keys change, the task does not."""
        return f"task:{self.task_id}" if self.task_id else f"key:{self.key_id}"


NOBODY = Caller()
"""The Coordinator itself."""


def used_tokens(usage: Usage) -> int | None:
    """Return the tokens that count for ``tpm``; None where they are not known."""
    return None if usage.input_tokens is None else usage.total


class Limits:
    """Requests and tokens a minute; and which budgets a call is charged to."""

    def __init__(
        self,
        quota: Quota,
        budget_of: BudgetOf,
        *,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quota = quota
        self._timer = timer
        self._budget_of = budget_of
        self._tasks: OrderedDict[str, tuple[float, Account | None]] = OrderedDict()
        self._changes = 0

    async def admit(self, caller: Caller, tokens: int) -> None:
        """Count a request that may take ``tokens``. Raises ``RateLimited``."""
        limits = caller.limits
        if limits is None:
            return
        for limit, name, cost, what in (
            (limits.rpm, "rpm", 1, "requests"),
            (limits.tpm, "tpm", tokens, "tokens"),
        ):
            if limit is None:
                continue
            wait_s = await self._quota.admit(
                f"{name}:{caller.key_id}", limit=limit, cost=cost
            )
            if wait_s is not None:
                if name == "tpm" and limits.rpm is not None:
                    # Refused after all: it is none of the requests.
                    await self._quota.correct(f"rpm:{caller.key_id}", by=-1)
                message = f"this key may use {limit} {what} a minute"
                raise RateLimited(message, retry_after_s=wait_s)

    async def correct(
        self, caller: Caller, *, admitted: int, used: int | None, since: float
    ) -> None:
        """Count the tokens that were used, where they are known, in place of ``admitted``.

        ``since``: when they were admitted, in seconds of the timer.
        """
        if caller.limits is None or caller.limits.tpm is None or used is None:
            return
        if not 0 <= used <= 2 * MAX_TOKENS:
            return  # what no model takes is not what it took
        if used != admitted:
            await self._quota.correct(
                f"tpm:{caller.key_id}",
                by=used - admitted,
                age_s=max(0.0, self._timer() - since),
            )

    async def accounts(self, caller: Caller) -> tuple[Account, ...]:
        """Return the budgets that a call of ``caller`` is held to."""
        found = []
        limits = caller.limits
        if limits is not None and (limits.usd is not None or limits.tokens is not None):
            name = f"key:{caller.key_id}"
            found.append(Account(id=name, usd=limits.usd, tokens=limits.tokens))
        if caller.task_id is not None:
            account = await self._task(caller.task_id)
            if account is not None:
                found.append(account)
        return tuple(found)

    def forget(self, task_id: str) -> None:
        """Read a task's budget again: it was changed, by this process."""
        self._changes += 1
        self._tasks.pop(task_id, None)

    async def _task(self, task_id: str) -> Account | None:
        now = self._timer()
        read_at, known = self._tasks.get(task_id, (-math.inf, None))
        if now - read_at < _FRESH_S:
            self._tasks.move_to_end(task_id)
            return known
        changes = self._changes
        try:
            budget = await self._budget_of(task_id)
        except NotFound:  # a caller's own word for its calls
            return None
        account = None
        if budget.usd is not None or budget.tokens is not None:
            name = f"task:{task_id}"
            account = Account(id=name, usd=budget.usd, tokens=budget.tokens)
        if changes != self._changes:  # it may have been read before it was changed
            return account
        self._tasks[task_id] = now, account
        self._tasks.move_to_end(task_id)
        if len(self._tasks) > _MOST_TASKS:
            self._tasks.popitem(last=False)
        return account
