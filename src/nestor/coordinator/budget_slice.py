"""What this process holds of one account: what is free, and what calls under way reserved."""

import asyncio

from nestor.model.money import pico_limit, usd_of
from nestor.ports.budget_store import Account

SLICES = 50
"""A slice is a budget's 50th part (2 %): so much more is leased than calls need, so that
most calls ask no database. It is also what another process may find held here."""


def name_of(account_id: str) -> str:
    """Return an account's name for people: ``task t1``."""
    return account_id.replace(":", " ", 1)


def is_strict(account_id: str) -> bool:
    """Tell whether no call may begin that might cost more than is left."""
    return account_id.startswith("key:")


class Side:
    """USD (as pico-USD) or tokens of one account.

    Below 0, ``free`` is what calls took over what was leased.
    """

    __slots__ = (
        *("empty_until", "free", "limit", "peak"),
        *("reserved", "slice", "total", "waiting"),
    )

    def __init__(self) -> None:
        self.free = self.reserved = self.waiting = 0
        self.peak = 0
        """The most that was reserved at one time since this was looked at last."""
        self.limit: int | None = None
        self.slice = 0
        self.total: int | None = None
        """What all have spent and what is held here, when that was looked at last: folds
        move it from here to there, and change nothing of the sum."""
        self.empty_until = 0.0
        """Until then the database is not asked again: it had no more to give."""

    def set_limit(self, limit: int | None) -> None:
        """Take a new limit: from now on leases go by it."""
        self.limit = limit
        self.slice = 0 if limit is None else max(1, limit // SLICES)
        self.empty_until = 0.0

    def fits(self, need: int) -> bool:
        """Tell whether ``need`` can be reserved. Where nothing is left not even 0 can."""
        return self.limit is None or (self.free >= need and self.free > 0)

    def at_most(self, need: int) -> int:
        """Return ``need``, or what there is of it."""
        return need if self.limit is None else min(need, self.free)

    def take(self, need: int) -> None:
        """Reserve."""
        self.free -= need
        self.reserved += need
        self.peak = max(self.peak, self.reserved)

    def settle(self, reserved: int, used: int) -> None:
        """End what was reserved."""
        self.reserved -= reserved
        self.free += reserved - used

    def is_low(self, now: float) -> bool:
        """Tell whether more is wanted before it is needed."""
        return (
            self.limit is not None
            and self.free * 2 < self.slice
            and now >= self.empty_until
        )

    def wanted(self) -> int:
        """Return what to ask for: what those who wait need, and a slice."""
        if self.limit is None:
            return 0
        return max(0, self.waiting + self.slice - self.free)

    def give(self, given: int, wanted: int, ask_again_at: float) -> None:
        """Take what was leased; less than was wanted is all that there was."""
        self.free += given
        if self.total is not None:
            self.total += given
        if given < wanted:
            self.empty_until = ask_again_at

    def return_(self, unused: int) -> None:
        """Let go of what is given back."""
        self.free -= unused
        if self.total is not None:
            self.total -= unused

    def refuses(self, need: int, now: float, *, strict: bool) -> bool:
        """Tell, of what does not fit, whether asking the database for more is of no use."""
        empty = now < self.empty_until
        if strict:
            return empty or need > (self.limit or 0)
        return empty and self.free <= 0

    def surplus(self) -> int:
        """Return what is not needed here, in use.

        A slice stays beside the most that calls reserved lately. Little is not worth asking
        the database to take it back.
        """
        over = self.free + self.reserved - self.peak - self.slice
        return over if over > self.slice // 2 else 0


class Held:
    """One account. For one event loop."""

    __slots__ = (
        *("account", "failed_until", "failure", "is_strict", "lease"),
        *("name", "open", "tokens", "usd", "used_at"),
    )

    def __init__(self, account: Account, now: float) -> None:
        self.usd, self.tokens = Side(), Side()
        self.open = 0
        """Reservations that are not settled, and calls that wait for a lease."""
        self.used_at = now
        self.lease: asyncio.Task[None] | None = None
        self.failed_until = 0.0
        self.failure: str | None = None
        self.name = name_of(account.id)
        self.is_strict = is_strict(account.id)
        """Nothing is given that is not left; else the last call gets what there is."""
        self.set_account(account)

    def set_account(self, account: Account) -> None:
        """Take an account's limits as they are now."""
        self.account = account
        self.usd.set_limit(None if account.usd is None else pico_limit(account.usd))
        self.tokens.set_limit(account.tokens)

    def is_low(self, now: float) -> bool:
        """Tell whether more is wanted before it is needed."""
        return self.usd.is_low(now) or self.tokens.is_low(now)

    def has_surplus(self) -> bool:
        """Tell whether there is more than is needed here."""
        return bool(self.usd.surplus() or self.tokens.surplus())

    def refusal(self, side: Side, need: int) -> str:
        """Say who has what of how much, and what to do."""
        is_usd = side is self.usd
        unit = "USD" if is_usd else "tokens"

        def shown(amount: int) -> str:
            return f"{usd_of(amount):f}" if is_usd else str(amount)

        limit = side.limit or 0
        verb = "spent" if is_usd else "used"
        text = f"{self.name} has {verb} up its {shown(limit)} {unit}"
        if side.total is not None:
            used = shown(side.total - side.free - side.reserved)
            text = f"{self.name} has {verb} {used} of {shown(limit)} {unit}"
        if self.is_strict and need > limit:
            text = f"{self.name} has a budget of {shown(limit)} {unit}"
        elif self.is_strict and side.free > 0:
            text = f"{self.name} has {shown(side.free)} of {shown(limit)} {unit} left"
        if side.reserved:
            text += f", {shown(side.reserved)} more are reserved by calls under way"
        if self.is_strict and (need > limit or side.free > 0):
            text += f", and this call may take up to {shown(need)}"
            text += ": ask for a shorter answer (max_tokens)"
        elif self.is_strict:
            text += ": it takes a key with a larger budget"
        return text
