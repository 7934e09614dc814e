"""Budgets that several processes spend from. tests/contracts/test_budget_store.py."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Protocol

import msgspec


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """``key:ID`` or ``task:ID``, and what may be spent under that name; None: no limit."""

    id: str
    usd: Decimal | None = None
    tokens: int | None = None


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """What a process was given to spend."""

    usd: Decimal = Decimal(0)
    tokens: int = 0


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What an account has spent, and what processes hold of it."""

    usd: Decimal
    tokens: int
    leased: Slice
    own: Slice = Slice()
    """Of it, what the holder that was asked for has; below 0: what it owes."""


class BudgetStore(Protocol):
    """``limit >= spent + leased`` at every lease; ``CallLedger.fold`` turns leased into spent.

    A fold takes the whole of what a call came to, also where that is more than was leased.
    The holder owes the difference then: it counts as leased 0, and the next lease of the
    same holder pays it first. So what a process counts (leased, less what its calls came
    to) is what stands here, once its calls are folded.
    """

    async def lease(self, account: Account, *, holder: str, want: Slice) -> Slice:
        """Give ``holder`` (a journal's id) up to ``want`` more; less, or nothing, near the limit.

        A side without a limit is not given: it is not asked for. Raises ``Unavailable``;
        then nothing may be spent of it, whether it was given or not.
        """
        ...

    async def give_back(self, account_id: str, *, holder: str, unused: Slice) -> None:
        """Return what is not needed. A negative side: what is owed is not asked for again."""
        ...

    async def spent(self, account_id: str, *, holder: str | None = None) -> Spent:
        """Tell where an account stands, by the calls that are folded."""
        ...

    async def all_spent(self, account_ids: Sequence[str]) -> dict[str, Spent]:
        """Tell where each of several accounts stands."""
        ...
