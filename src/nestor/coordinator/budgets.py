"""What accounts (keys, tasks) may still spend on models: reserved before a call, settled after.

A budget is spent from by several processes. Each leases slices of it from the database
ahead of need, so that the way of a call asks no database; what it does not need it gives
back. All processes together never spend more than the limit, except for calls that turn
out dearer than estimated: such excess is charged too, and the account is refused
afterwards. A slice that is held elsewhere is not left here: near its end a budget may be
refused with up to a slice a process unspent, until that is given back.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine, Sequence
from decimal import Decimal
from typing import Any

from nestor.coordinator.budget_slice import Held, is_strict, name_of
from nestor.coordinator.pricing import MAX_TOKENS
from nestor.errors import BudgetExceeded, NestorError, Unavailable
from nestor.model.money import pico, usd_of
from nestor.model.routing import DEFAULT_MAX_TOKENS, Charge, Deployment, Kind
from nestor.ports.budget_store import Account, BudgetStore, Slice
from nestor.telemetry.logs import get_logger

IDLE_S = 60.0
"""What nobody spent from for so long is given back."""
SWEEPS = 12
"""Looks within that time for more than is needed."""
ASK_AGAIN_S = 1.0
"""After the database had no more to give, or did not answer, it is not asked for so long."""
WAIT_S = 5.0
"""The longest that a call waits for a lease."""
BYTES_A_TOKEN = 3
"""Of a request's JSON. English has 4 to 5 bytes a token, code about 3.5: this errs high."""
_PER_MILLION = Decimal(1_000_000)
_NOTHING = Decimal(0)
_MAX_USD = Decimal(1_000_000)
_log = get_logger("nestor.budgets")


def estimate(
    deployment: Deployment,
    request_bytes: int,
    max_tokens: int | None,
    answers: int = 1,
) -> tuple[Decimal | None, int]:
    """Return what a call may cost at most, about: USD (None: a price is not known) and tokens.

    ``request_bytes``: of the request's JSON; pictures in it count by their bytes, which is
    far more than they cost. Input is priced at the dearest that it may be billed as.
    ``max_tokens`` is the limit of each of the ``answers``.
    """
    input_tokens = -(-request_bytes // BYTES_A_TOKEN)
    output_tokens = 0
    if deployment.kind is Kind.CHAT:
        if max_tokens is None:  # 0 is a limit
            max_tokens = deployment.max_output_tokens or DEFAULT_MAX_TOKENS
        output_tokens = max_tokens * answers
    tokens = input_tokens + output_tokens
    if deployment.replayed:
        return _NOTHING, tokens
    price_in, price_out = deployment.price_input, deployment.price_output
    if price_in is None or (price_out is None and output_tokens):
        return None, tokens
    price_in = max(price_in, deployment.price_cache_write or price_in)
    total = price_in * input_tokens + (price_out or _NOTHING) * output_tokens
    return total / _PER_MILLION, tokens


class Reservation:
    """What one call reserved; settled or released once: what comes second changes nothing."""

    __slots__ = ("_final", "_parts", "charges")

    def __init__(self, parts: Sequence[tuple[Held, Charge, int]]) -> None:
        self._parts = parts
        self._final: tuple[Charge, ...] | None = None if parts else ()
        self.charges = tuple(charge for _, charge, _ in parts)
        """As reserved: what is charged when nobody sees the call's end."""

    def settle(self, usd: Decimal | None, tokens: int | None) -> tuple[Charge, ...]:
        """The call ended: return what it is charged. None: not known, as reserved.

        So is what no call can cost: below 0, or more than a column holds.
        """
        if self._final is None:
            if usd is not None and not 0 <= usd <= _MAX_USD:
                usd = None
            if tokens is not None and not 0 <= tokens <= 2 * MAX_TOKENS:
                tokens = None
            self._final = tuple(
                Charge(
                    account=reserved.account,
                    usd=reserved.usd if usd is None else usd,
                    tokens=reserved.tokens if tokens is None else tokens,
                )
                for _, reserved, _ in self._parts
            )
            self._end(None if usd is None else pico(usd), tokens)
        return self._final

    def release(self) -> None:
        """Nothing was billed."""
        if self._final is None:
            self._final = ()
            self._end(0, 0)

    def _end(self, usd: int | None, tokens: int | None) -> None:
        for held, charge, pico_usd in self._parts:
            held.usd.settle(pico_usd, pico_usd if usd is None else usd)
            held.tokens.settle(
                charge.tokens, charge.tokens if tokens is None else tokens
            )
            held.open -= 1


NO_RESERVATION = Reservation(())
"""Of a call that no account with a limit pays."""


class Budgets:
    """One a process. ``holder``: the id of this process's journal. For one event loop.

    Where the database is away, what is held is spent; then ``Unavailable``.
    """

    def __init__(
        self,
        store: BudgetStore,
        holder: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        idle_s: float = IDLE_S,
    ) -> None:
        self._store = store
        self._holder = holder
        self._clock = clock
        self._idle_s = idle_s
        self._held: dict[str, Held] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def reserve(
        self,
        accounts: Sequence[Account],
        *,
        usd: Decimal | None,
        tokens: int,
        model: str = "this model",
    ) -> Reservation:
        """Reserve what a call may cost with every account that has a limit, or with none.

        A ``key:`` is refused what is not left of it. Any other account, once less is left
        than a call may cost, gives one call all that is left: a task's loop ends it when
        its budget is spent, and one that is refused before would try on and on. Where the
        price of ``model`` is unknown (``usd`` None) a key with a limit in USD is refused,
        and a task is not: the loop ends it after its iteration.

        Raises ``BudgetExceeded``; ``Unavailable`` when more had to be leased and could not.
        """
        parts: list[tuple[Held, Charge, int]] = []
        needs = None
        try:
            for account in accounts:
                if account.usd is None and account.tokens is None:
                    continue
                if needs is None:
                    needs = (0 if usd is None else pico(usd), tokens)
                if usd is None:
                    _refuse_unpriced(account, model)
                # Not all at once: those before one that is refused are released.
                taken = await self._take(self._held_of(account), *needs)
                parts.append(taken)
        except BaseException:
            Reservation(parts).release()
            raise
        return Reservation(parts) if parts else NO_RESERVATION

    async def close(self) -> None:
        """Give back what is free. What calls under way reserved ends with the journal."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        if self._running:
            await asyncio.wait(self._running, timeout=WAIT_S)
        for task in self._running:
            task.cancel()
        for held in list(self._held.values()):
            await self._give_back(held)

    async def _take(
        self, held: Held, usd: int, tokens: int
    ) -> tuple[Held, Charge, int]:
        if not (held.usd.fits(usd) and held.tokens.fits(tokens)):
            await self._wait_until_it_fits(held, usd, tokens)
            # Less, where it is the last that a task has.
            usd = held.usd.at_most(usd)
            tokens = held.tokens.at_most(tokens)
        now = held.used_at = self._clock()
        held.open += 1
        held.usd.take(usd)
        held.tokens.take(tokens)
        if held.lease is None and now >= held.failed_until and held.is_low(now):
            self._start_lease(held)
        charge = Charge(account=held.account.id, usd=usd_of(usd), tokens=tokens)
        return held, charge, usd

    async def _wait_until_it_fits(self, held: Held, usd: int, tokens: int) -> None:
        """Lease more until both fit or, of what is not strict, all that is left is here."""
        strict = held.is_strict
        sides = ((held.usd, usd), (held.tokens, tokens))
        held.open += 1
        try:
            while lacking := [(s, need) for s, need in sides if not s.fits(need)]:
                now = self._clock()
                for side, need in lacking:
                    if side.refuses(need, now, strict=strict):
                        if held.has_surplus():
                            # What this one could not use, others may.
                            self._begin(self._give_back(held))
                        raise BudgetExceeded(held.refusal(side, need))
                if not strict and all(now < s.empty_until for s, _ in lacking):
                    return
                await self._more(held, usd, tokens)
        finally:
            held.open -= 1

    async def _more(self, held: Held, usd: int, tokens: int) -> None:
        """Wait for a lease, one at a time for all who wait. Raises ``Unavailable``."""
        if self._clock() < held.failed_until:
            raise _away(held)
        held.usd.waiting += usd
        held.tokens.waiting += tokens
        try:
            task = held.lease or self._start_lease(held)
            # Who stops waiting stops no lease: it may have been given.
            await asyncio.wait({task}, timeout=WAIT_S)
        finally:
            held.usd.waiting -= usd
            held.tokens.waiting -= tokens
        if not task.done():
            held.failure = f"the database did not answer within {WAIT_S:g} s"
            raise _away(held)
        task.result()
        if self._clock() < held.failed_until:
            raise _away(held)

    def _held_of(self, account: Account) -> Held:
        held = self._held.get(account.id)
        if held is None:
            held = self._held[account.id] = Held(account, self._clock())
            if self._sweeper is None and not self._closed:
                self._sweeper = self._begin(self._sweep())
        elif held.account != account:
            held.set_account(account)
        return held

    def _start_lease(self, held: Held) -> asyncio.Task[None]:
        held.lease = self._begin(self._lease(held))
        return held.lease

    async def _lease(self, held: Held) -> None:
        account = held.account
        usd, tokens = held.usd.wanted(), held.tokens.wanted()
        try:
            given = await self._store.lease(
                account,
                holder=self._holder,
                want=Slice(usd=usd_of(usd), tokens=tokens),
            )
            held.failure = None
            held.usd.give(pico(given.usd), usd, self._clock() + ASK_AGAIN_S)
            held.tokens.give(given.tokens, tokens, self._clock() + ASK_AGAIN_S)
            if pico(given.usd) < usd or given.tokens < tokens:
                # For who is refused now: how much of how much.
                seen = await self._store.spent(account.id, holder=self._holder)
                held.usd.total = pico(seen.usd) + pico(seen.own.usd)
                held.tokens.total = seen.tokens + seen.own.tokens
        except NestorError as error:
            if held.failure is None:
                _log.warning("budget_not_leased", account=account.id, error=str(error))
            held.failure = str(error)
            held.failed_until = self._clock() + ASK_AGAIN_S
        finally:
            held.lease = None

    async def _sweep(self) -> None:
        try:
            while self._held:
                await asyncio.sleep(self._idle_s / SWEEPS)
                for held in list(self._held.values()):
                    await self._give_back(held)
                    held.usd.peak = held.usd.reserved
                    held.tokens.peak = held.tokens.reserved
        finally:
            self._sweeper = None

    async def _give_back(self, held: Held) -> None:
        """Give back what is not needed here; forget an account that is idle and settled."""
        if not (self._is_idle(held) or held.has_surplus()):
            return
        try:
            # Looked for first: what a database that is away is given back is lost.
            await self._store.spent(held.account.id)
        except NestorError:
            return
        usd, tokens = held.usd.surplus(), held.tokens.surplus()
        if self._is_idle(held):
            usd, tokens = max(0, held.usd.free), max(0, held.tokens.free)
            if held.open == 0:
                # Also what is owed: who begins anew here knows of none.
                usd, tokens = held.usd.free, held.tokens.free
                if self._held.get(held.account.id) is held:
                    del self._held[held.account.id]
        if usd or tokens:
            held.usd.return_(usd)
            held.tokens.return_(tokens)
            await self._return(held, Slice(usd=usd_of(usd), tokens=tokens))

    async def _return(self, held: Held, unused: Slice) -> None:
        account = held.account.id
        try:
            await self._store.give_back(account, holder=self._holder, unused=unused)
        except NestorError as error:
            # It may have been taken back, so it is not spent; it ends with the journal.
            _log.warning("budget_not_given_back", account=account, error=str(error))

    def _is_idle(self, held: Held) -> bool:
        if held.lease is not None:
            return False
        return self._closed or self._clock() - held.used_at >= self._idle_s

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # A context of its own: what it logs is not of the request that began it.
        task = asyncio.create_task(work, name="budgets", context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("budgets_broke", error=repr(error))


def _refuse_unpriced(account: Account, model: str) -> None:
    if account.usd is not None and is_strict(account.id):
        raise BudgetExceeded(
            f"the price of {model} is not configured, so a budget in USD cannot be held:"
            f" {name_of(account.id)} may use models whose price_input and price_output"
            " are set"
        )


def _away(held: Held) -> Unavailable:
    return Unavailable(
        f"the budget of {held.name} cannot be read, and what was held of it"
        f" here is used up: {held.failure}"
    )
