"""What is asked before an upstream is: its limits a minute, and the budgets of who pays."""

import asyncio

from nestor.coordinator.attempt import CallContext
from nestor.coordinator.budgets import (
    NO_RESERVATION,
    Budgets,
    Reservation,
    estimate,
)
from nestor.coordinator.upstream import Upstream
from nestor.errors import RateLimited
from nestor.ports.quota import Quota
from nestor.telemetry.logs import get_logger

_log = get_logger("nestor.coordinator")


class Admission:
    """Without ``budgets`` no account is asked, without ``quota`` no limit a minute."""

    def __init__(self, budgets: Budgets | None, quota: Quota | None) -> None:
        self._budgets = budgets
        self._quota = quota
        self._corrections: set[asyncio.Task[None]] = set()

    async def ask(
        self, upstream: Upstream, context: CallContext
    ) -> tuple[Reservation, int]:
        """Ask the deployment's limits a minute, then the budgets of who pays.

        Raises ``RateLimited``, ``BudgetExceeded``, ``Unavailable``; then nothing is taken.
        """
        deployment = upstream.deployment
        usd, tokens = estimate(
            deployment, context.request_bytes, context.max_tokens, context.answers
        )
        taken: list[tuple[str, int]] = []
        try:
            for name, limit, cost, unit in (
                (upstream.requests_quota, deployment.rpm, 1, "requests"),
                (upstream.tokens_quota, deployment.tpm, max(tokens, 1), "tokens"),
            ):
                if limit is None or self._quota is None:
                    continue
                wait_s = await self._quota.admit(name, limit=limit, cost=cost)
                if wait_s is not None:
                    raise _used_up(deployment.name, f"{limit} {unit}", wait_s)  # noqa: TRY301 - what was taken is given back
                taken.append((name, cost))
            reservation = NO_RESERVATION
            if context.accounts and self._budgets is not None:
                reservation = await self._budgets.reserve(
                    context.accounts, usd=usd, tokens=tokens, model=deployment.name
                )
        except BaseException:
            for name, cost in taken:
                self.correct(name, -cost)
            raise
        return reservation, dict(taken).get(upstream.tokens_quota, 0)

    def correct(self, name: str, by: int) -> None:
        """Count what a call took over what it was admitted for (less: negative)."""
        if self._quota is None or not by:
            return
        task = asyncio.create_task(self._quota.correct(name, by=by))
        self._corrections.add(task)
        task.add_done_callback(self._corrected)

    async def close(self) -> None:
        """Wait for what is still being counted."""
        await asyncio.gather(*self._corrections, return_exceptions=True)

    def _corrected(self, task: asyncio.Task[None]) -> None:
        self._corrections.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.warning("quota_not_corrected", error=repr(error))


def _used_up(name: str, limit: str, wait_s: float) -> RateLimited:
    message = f"{name}: its {limit} a minute are used"
    return RateLimited(message, retry_after_s=wait_s)
