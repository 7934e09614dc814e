"""The meter's lasting memory: settled model calls. tests/contracts/test_call_ledger.py."""

from datetime import date
from enum import StrEnum
from typing import Any, Protocol

from nestor.model.routing import ModelCall
from nestor.ports.call_journal import Settled
from nestor.ports.router import Meter


class SpendBy(StrEnum):
    """What spend is added up by."""

    MODEL = "model"
    DEPLOYMENT = "deployment"
    TASK = "task"
    KEY = "key"
    DAY = "day"


class CallLedger(Protocol):
    """Append-only; a call is kept under its interaction id, so a repeat changes nothing."""

    async def fold(self, settled: Settled) -> int:
        """Keep calls, what they cost their accounts, and the journal's place: all or nothing.

        Returns how many were new. Repeating it, or an older place, changes nothing. Raises
        ``Unavailable``; anything else is for what stands in one of the calls.
        """
        ...

    async def rehearse(self) -> None:
        """Fold a plain call, and keep nothing of it: raises what ``fold`` would.

        Tells a call that cannot be kept from a database that keeps none.
        """
        ...

    async def folded_to(self, journal_id: str) -> int:
        """Return the place up to which a journal is in here; 0 for an unknown one."""
        ...

    async def forget(self, journal_id: str) -> None:
        """A journal is folded whole and gone: give back what it still holds of budgets."""
        ...

    async def meter(self, task_id: str, *, iteration: int | None = None) -> Meter:
        """Add up a task's calls, or those of one iteration."""
        ...

    async def calls(self, task_id: str) -> list[ModelCall]:
        """Read a task's calls, oldest first."""
        ...

    async def has(self, interaction_id: str) -> bool:
        """Tell whether a call of this id is kept."""
        ...

    async def call(self, interaction_id: str) -> ModelCall | None:
        """Read one call; None where none of this id is kept."""
        ...

    async def totals(self) -> list[dict[str, Any]]:
        """Calls, tokens and cost by model and route."""
        ...

    async def spend(
        self, by: SpendBy, *, since: date | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Add up by model, deployment, task, key or day, the dearest (newest day) first.

        Keys: ``by`` (the name; None: calls without a task, without a key), ``calls``,
        ``failed``, ``unsettled``, ``cached``, tokens as in ``Usage`` (of the calls that
        reported them; None: none did), ``cost_usd`` (``Decimal``, of what is known),
        ``unpriced`` (calls whose cost is not known).
        """
        ...
