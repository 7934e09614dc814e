"""Sums that no column holds: kept as the largest, and added up by views all the same."""

from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text
from tests.contracts.test_call_ledger import NOON, a_call, batch

from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import MOST
from nestor.errors import Unavailable
from nestor.model.money import MAX_PICO_USD, pico, usd_of
from nestor.model.routing import Charge
from nestor.ports.budget_store import Account, Slice
from nestor.ports.call_ledger import SpendBy

HUGE = Decimal(4_000_000)
MOST_USD = usd_of(MOST)


async def kinds(database: Database) -> set[str]:
    """How the sums are kept: in SQLite a real one is no whole number any more."""
    of = "typeof" if database.is_sqlite else "pg_typeof"
    query = " UNION ALL ".join(
        f"SELECT CAST({of}({name}) AS text) FROM {table}"
        for table, name in (
            ("spend", "cost_pico_usd"),
            ("budget", "spent_pico_usd"),
            ("budget", "spent_tokens"),
            ("lease", "pico_usd"),
            ("lease", "tokens"),
        )
    )
    async with database.read() as connection:
        return set((await connection.execute(text(query))).scalars())


def whole(database: Database) -> set[str]:
    """What ``kinds`` must be."""
    return {"integer"} if database.is_sqlite else {"bigint"}


async def test_costs_add_up_to_the_largest_and_no_further(database: Database) -> None:
    ledger, store = SqlCallLedger(database), SqlBudgetStore(database)
    charges = (Charge(account="key:k", usd=HUGE, tokens=2**61),)
    for at, names in enumerate(("abc", "de", "f"), 1):
        calls = [a_call(name, cost_usd=HUGE, charges=charges) for name in names]
        assert await ledger.fold(batch(10 * at, *calls)) == len(names)
    later = [
        a_call(f"g{days}", cost_usd=HUGE, at=NOON + timedelta(days=days))
        for days in (1, 2)
    ]
    cheap = a_call("h", cost_usd=Decimal(1), at=NOON + timedelta(days=3), model="l")
    await ledger.fold(batch(40, *later, cheap))

    assert await kinds(database) == whole(database)
    spent = await store.spent("key:k", holder="j")
    assert (spent.usd, spent.tokens) == (MOST_USD, MOST)
    assert spent.own == Slice(usd=-MOST_USD, tokens=-MOST)
    rows = await ledger.spend(SpendBy.DAY)
    assert [row["cost_usd"] for row in rows] == [Decimal(1), HUGE, HUGE, MOST_USD]
    dearest, other = await ledger.spend(SpendBy.MODEL)
    assert (dearest["by"], dearest["calls"], other["by"]) == ("m", 8, "l")
    # Exact, though more than a column holds.
    assert dearest["cost_usd"] == MOST_USD + 2 * HUGE
    by_name = {row["model"]: row["cost_usd"] for row in await ledger.totals()}
    assert by_name == {"m": MOST_USD + 2 * HUGE, "l": Decimal(1)}


async def test_what_is_there_beyond_the_bound_stops_no_fold(database: Database) -> None:
    """As a version without a bound left it."""
    ledger, store = SqlCallLedger(database), SqlBudgetStore(database)
    charges = (Charge(account="key:k", usd=Decimal(1), tokens=1),)
    await ledger.fold(batch(1, a_call("a", charges=charges)))
    # More than a whole number of 64 bits, which only SQLite holds.
    most = "9.9e18" if database.is_sqlite else "9223372036854775807"
    async with database.write() as connection:
        for statement in (
            f"UPDATE spend SET cost_pico_usd = {most}",
            "UPDATE budget SET spent_pico_usd = 9223372036854775807",
            "UPDATE lease SET pico_usd = -9223372036854775807",
        ):
            await connection.execute(text(statement))
    await ledger.fold(batch(2, a_call("b", charges=charges)))
    assert await kinds(database) == whole(database)
    assert (await store.spent("key:k")).usd == MOST_USD
    (row,) = await ledger.spend(SpendBy.KEY)
    assert row["cost_usd"] == MOST_USD


async def test_the_dearest_come_first_to_the_last_pico(database: Database) -> None:
    ledger = SqlCallLedger(database)
    usd = Decimal(3_000_000)
    calls = [
        a_call(name, key_id=name, cost_usd=usd + usd_of(more))
        for name, more in (("a", 1), ("b", 3), ("c", 0), ("d", 2))
    ]
    await ledger.fold(batch(1, *calls))
    rows = await ledger.spend(SpendBy.KEY)
    assert [row["by"] for row in rows] == ["b", "d", "a", "c"]
    assert rows[0]["cost_usd"] == usd + usd_of(3)


async def test_what_is_owed_of_all_there_is_can_be_leased_and_given_back(
    database: Database,
) -> None:
    store, ledger = SqlBudgetStore(database), SqlCallLedger(database)
    charges = (Charge(account="key:k", usd=HUGE, tokens=2**61),) * 3
    await ledger.fold(batch(1, a_call("a", charges=charges)))
    account = Account(id="key:k", usd=Decimal("1E+30"), tokens=10**30)
    want = Slice(usd=Decimal("1E+30"), tokens=10**30)
    await store.lease(account, holder="j", want=want)
    for unused in (want, Slice(usd=-want.usd, tokens=-want.tokens)) * 2:
        await store.give_back("key:k", holder="j", unused=unused)
        await store.spent("key:k", holder="j")
    assert await kinds(database) == whole(database)


@pytest.mark.parametrize("usd", ["1E+30", "1E+999999", "4611686.018427387904"])
def test_no_amount_is_more_than_a_column_holds(usd: str) -> None:
    assert pico(Decimal(usd)) == MAX_PICO_USD == MOST
    assert pico(-Decimal(usd)) == -MAX_PICO_USD
    assert 2 * MAX_PICO_USD < 2**63


async def test_a_rehearsal_keeps_nothing_and_says_what_a_fold_would(
    database: Database,
) -> None:
    ledger = SqlCallLedger(database)
    await ledger.rehearse()
    names = ("model_call", "spend", "budget", "lease", "journal")
    async with database.read() as connection:
        for name in names:
            found = await connection.execute(text(f"SELECT count(*) FROM {name}"))
            assert found.scalar_one() == 0
    for name in names:
        async with database.write() as connection:
            await connection.execute(text(f"ALTER TABLE {name} RENAME TO away"))
        with pytest.raises(Exception, match=r"no such table|does not exist") as caught:
            await ledger.rehearse()
        assert not isinstance(caught.value, Unavailable)
        async with database.write() as connection:
            await connection.execute(text(f"ALTER TABLE away RENAME TO {name}"))
    await ledger.rehearse()
