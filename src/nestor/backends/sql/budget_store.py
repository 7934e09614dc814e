"""Budgets in SQL: what is spent of each account, and what processes hold of it.

Every change locks the account's row of ``budget`` first (on SQLite the whole database,
with BEGIN IMMEDIATE), so two processes never decide by the same numbers. Amounts are
whole pico-USD: sums are exact.
"""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import case, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import MOST, bounded, insert, sum_of
from nestor.backends.sql.schema import budget, lease
from nestor.model.money import pico, pico_limit, usd_of
from nestor.model.routing import Charge
from nestor.ports.budget_store import Account, Slice, Spent

_AT_ONCE = 500
"""Accounts asked for by one statement: databases bound how many values one may have."""
Pair = tuple[int, int]
"""Pico-USD and tokens."""


class SqlBudgetStore:
    """``ports.budget_store.BudgetStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lease(self, account: Account, *, holder: str, want: Slice) -> Slice:
        """See ``BudgetStore.lease``: one short transaction."""
        async with self._database.write() as connection:
            spent = await self._locked(connection, account.id)
            own, others = await self._held(connection, account.id, holder)
            limit_usd = None if account.usd is None else pico_limit(account.usd)
            limit_tokens = None if account.tokens is None else min(account.tokens, MOST)
            usd = _given(pico(want.usd), limit_usd, spent[0] + others[0], own[0])
            tokens = _given(
                bounded(want.tokens), limit_tokens, spent[1] + others[1], own[1]
            )
            if usd or tokens:
                amounts = [(account.id, usd, tokens)]
                await _add(self._database, connection, holder, amounts)
        return Slice(usd=usd_of(usd), tokens=tokens)

    async def give_back(self, account_id: str, *, holder: str, unused: Slice) -> None:
        """See ``BudgetStore.give_back``. Of a holder that has nothing here it takes nothing."""
        async with self._database.write() as connection:
            await self._locked(connection, account_id)
            of_holder = (lease.c.account == account_id, lease.c.holder == holder)
            await connection.execute(
                update(lease)
                .where(*of_holder)
                .values(
                    pico_usd=sum_of(
                        self._database, lease.c.pico_usd, -pico(unused.usd)
                    ),
                    tokens=sum_of(
                        self._database, lease.c.tokens, bounded(-unused.tokens)
                    ),
                )
            )
            await connection.execute(
                delete(lease).where(
                    *of_holder, lease.c.pico_usd == 0, lease.c.tokens == 0
                )
            )

    async def spent(self, account_id: str, *, holder: str | None = None) -> Spent:
        """See ``BudgetStore.spent``: one snapshot."""
        async with self._database.read() as connection:
            query = select(budget).where(budget.c.account == account_id)
            row = (await connection.execute(query)).first()
            own, others = await self._held(connection, account_id, holder or "")
        positive = [
            max(0, mine) + theirs for mine, theirs in zip(own, others, strict=True)
        ]
        spent = (row.spent_pico_usd, row.spent_tokens) if row is not None else (0, 0)
        found = _spent(spent, (positive[0], positive[1]))
        return msgspec.structs.replace(found, own=_slice(own))

    async def all_spent(self, account_ids: Sequence[str]) -> dict[str, Spent]:
        """See ``BudgetStore.all_spent``."""
        spent: dict[str, Pair] = {}
        leased: dict[str, Pair] = {}
        async with self._database.read() as connection:
            for start in range(0, len(account_ids), _AT_ONCE):
                some = account_ids[start : start + _AT_ONCE]
                for row in await connection.execute(
                    select(budget).where(budget.c.account.in_(some))
                ):
                    spent[row.account] = (row.spent_pico_usd, row.spent_tokens)
                for row in await connection.execute(
                    select(lease.c.account, *_SUMS)
                    .where(lease.c.account.in_(some))
                    .group_by(lease.c.account)
                ):
                    leased[row.account] = (int(row[1]), int(row[2]))
        return {
            account: _spent(spent.get(account, (0, 0)), leased.get(account, (0, 0)))
            for account in account_ids
        }

    async def _locked(self, connection: AsyncConnection, account: str) -> Pair:
        """Lock an account until the transaction ends; return what is spent of it."""
        await connection.execute(
            insert(self._database, budget)
            .values(account=account, spent_pico_usd=0, spent_tokens=0)
            .on_conflict_do_nothing()
        )
        row = (
            await connection.execute(
                select(budget).where(budget.c.account == account).with_for_update()
            )
        ).one()
        return row.spent_pico_usd, row.spent_tokens

    async def _held(
        self, connection: AsyncConnection, account: str, holder: str
    ) -> tuple[Pair, Pair]:
        """Return what ``holder`` has (below 0: owes), and what all others have."""
        query = select(lease.c.pico_usd, lease.c.tokens)
        of_account = lease.c.account == account
        own = (
            await connection.execute(query.where(of_account, lease.c.holder == holder))
        ).first()
        others = (
            await connection.execute(
                select(*_SUMS).where(of_account, lease.c.holder != holder)
            )
        ).one()
        return (
            (own.pico_usd, own.tokens) if own is not None else (0, 0),
            (int(others[0] or 0), int(others[1] or 0)),
        )


async def charge(
    database: Database,
    connection: AsyncConnection,
    *,
    holder: str,
    charges: Iterable[Charge],
) -> None:
    """Turn what ``holder`` was leased into spent, in the transaction that keeps the calls.

    Accounts are taken in one order by all, so that two folds never wait for each other.
    """
    sums: dict[str, Pair] = {}
    for one in charges:
        usd, tokens = sums.get(one.account, (0, 0))
        sums[one.account] = (bounded(usd + pico(one.usd)), bounded(tokens + one.tokens))
    if not sums:
        return
    accounts = sorted(sums.items())
    added = insert(database, budget)
    # One statement for all accounts: each by itself waits for the driver's thread.
    await connection.execute(
        added.on_conflict_do_update(
            index_elements=[budget.c.account],
            set_={
                name: sum_of(database, budget.c[name], added.excluded[name])
                for name in ("spent_pico_usd", "spent_tokens")
            },
        ),
        [
            {"account": account, "spent_pico_usd": usd, "spent_tokens": tokens}
            for account, (usd, tokens) in accounts
        ],
    )
    await _add(
        database,
        connection,
        holder,
        [(account, -usd, -tokens) for account, (usd, tokens) in accounts],
    )


async def forget_holder(connection: AsyncConnection, holder: str) -> None:
    """All calls of ``holder`` are folded, and it makes no more: its leases end."""
    await connection.execute(delete(lease).where(lease.c.holder == holder))


async def _add(
    database: Database,
    connection: AsyncConnection,
    holder: str,
    amounts: Sequence[tuple[str, int, int]],
) -> None:
    added = insert(database, lease)
    await connection.execute(
        added.on_conflict_do_update(
            index_elements=[lease.c.account, lease.c.holder],
            set_={
                name: sum_of(database, lease.c[name], added.excluded[name])
                for name in ("pico_usd", "tokens")
            },
        ),
        [
            {"account": account, "holder": holder, "pico_usd": usd, "tokens": tokens}
            for account, usd, tokens in amounts
        ],
    )


_SUMS = tuple(
    # What a holder owes is spent already: it makes nobody else's part larger.
    func.sum(case((column > 0, column), else_=0))
    for column in (lease.c.pico_usd, lease.c.tokens)
)


def _given(want: int, limit: int | None, gone: int, own: int) -> int:
    """Return how much of ``want`` fits beside what is ``gone`` and ``own`` (below 0: owed)."""
    return 0 if limit is None else max(0, min(want, limit - gone - own))


def _spent(spent: Pair, leased: Pair) -> Spent:
    return Spent(
        usd=usd_of(spent[0]),
        tokens=spent[1],
        leased=_slice(leased),
    )


def _slice(pair: Pair) -> Slice:
    return Slice(usd=usd_of(pair[0]), tokens=pair[1])
