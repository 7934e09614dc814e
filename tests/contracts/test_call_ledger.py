"""What ``ports.call_ledger.CallLedger`` promises, on real SQLite."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from tests.contracts.outside import Outside

from nestor.backends.sql import migrate
from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database, sync_url
from nestor.backends.sql.rows import encode
from nestor.errors import Unavailable
from nestor.model.ids import new_id
from nestor.model.routing import Charge, ModelCall, Side
from nestor.model.task import Usage
from nestor.ports.budget_store import Account, Slice
from nestor.ports.call_journal import Settled
from nestor.ports.call_ledger import SpendBy
from nestor.ports.router import Meter

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def ledger(database: Database) -> SqlCallLedger:
    return SqlCallLedger(database)


def a_call(interaction_id: str, **given: Any) -> ModelCall:
    fields: dict[str, Any] = {
        "at": NOON,
        "deployment": "main",
        "side": Side.REMOTE,
        "model": "m",
        "dialect": "openai",
        "route_reason": "asked for",
        "ok": True,
        "usage": Usage(input_tokens=10, output_tokens=2),
        "cost_usd": Decimal("0.10"),
        "latency_ms": 3.0,
        "task_id": "t1",
        "iteration": 1,
    }
    return ModelCall(interaction_id=interaction_id, **(fields | given))


def batch(position: int, *calls: ModelCall, journal: str = "j") -> Settled:
    return Settled(journal=journal, position=position, calls=calls)


async def keep(ledger: SqlCallLedger, *calls: ModelCall) -> int:
    """Fold calls from a journal of their own."""
    return await ledger.fold(batch(len(calls), *calls, journal=new_id()))


async def everything(database: Database) -> dict[str, Sequence[Any]]:
    tables = ("model_call", "spend", "budget", "lease", "journal")
    async with database.read() as connection:
        return {
            table: (
                await connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2"))
            ).all()
            for table in tables
        }


async def test_a_call_is_kept_once_under_its_id(ledger: SqlCallLedger) -> None:
    call = a_call("a", error="x", fallback_from="local")
    assert await keep(ledger, call) == 1
    assert await keep(ledger, msgspec.structs.replace(call, cost_usd=Decimal(9))) == 0
    assert await ledger.calls("t1") == [call]
    assert (await ledger.has("a"), await ledger.has("b")) == (True, False)


async def test_every_field_of_a_call_comes_back(ledger: SqlCallLedger) -> None:
    call = a_call(
        "a",
        usage=Usage(
            input_tokens=5,
            output_tokens=4,
            cached_tokens=3,
            cache_write_tokens=2,
            reasoning_tokens=1,
        ),
        key_id="k",
        context_ids=("c1", "c2"),
        attempt_of="b",
        charges=(Charge(account="key:k", usd=Decimal("0.1"), tokens=9),),
        unsettled=True,
        cached=True,
        error="lone \ud800 surrogate",
    )
    await keep(ledger, call)
    (kept,) = await ledger.calls("t1")
    assert kept == msgspec.structs.replace(call, error="lone \ufffd surrogate")


async def test_a_call_twice_in_one_batch_is_one(ledger: SqlCallLedger) -> None:
    twice = [a_call("a"), a_call("a", cost_usd=Decimal(9)), a_call("b")]
    assert await ledger.fold(batch(3, *twice)) == 2
    assert (await ledger.meter("t1")).cost_usd == Decimal("0.20")


async def test_folds_at_once_keep_every_call_and_count_each_once(
    ledger: SqlCallLedger,
) -> None:
    found = await asyncio.gather(
        *(
            ledger.fold(batch(1, a_call(f"{n % 20}"), journal=f"j{n}"))
            for n in range(40)
        )
    )
    assert sum(found) == 20
    (row,) = await ledger.spend(SpendBy.MODEL)
    assert (row["calls"], row["cost_usd"]) == (20, Decimal(2))


async def test_a_fold_repeated_or_older_changes_nothing(
    ledger: SqlCallLedger, database: Database
) -> None:
    charges = (Charge(account="key:k", usd=Decimal("0.1"), tokens=12),)
    first = batch(2, *(a_call(name, charges=charges) for name in "ab"))
    second = batch(3, a_call("c", charges=charges))
    assert await ledger.fold(first) == 2
    assert await ledger.fold(second) == 1
    before = await everything(database)
    assert await ledger.fold(second) == 0
    assert await ledger.fold(first) == 0
    assert await ledger.fold(batch(1, a_call("older", charges=charges))) == 0
    assert await everything(database) == before
    assert await ledger.folded_to("j") == 3
    assert await ledger.folded_to("nobody") == 0


async def test_a_larger_batch_with_what_is_there_adds_the_rest_alone(
    ledger: SqlCallLedger,
) -> None:
    await ledger.fold(batch(1, a_call("a")))
    assert await ledger.fold(batch(2, a_call("a"), a_call("b"))) == 1
    (row,) = await ledger.spend(SpendBy.TASK)
    assert (row["calls"], row["input_tokens"]) == (2, 20)


@pytest.mark.parametrize("table", ["model_call", "spend", "budget", "lease", "journal"])
async def test_a_fold_is_all_or_nothing(
    ledger: SqlCallLedger, database: Database, outside: Outside, table: str
) -> None:
    """Whichever of its tables refuses."""
    store = SqlBudgetStore(database)
    account = Account(id="key:k", usd=Decimal(1), tokens=1000)
    await store.lease(account, holder="j", want=Slice(usd=Decimal(1), tokens=500))
    before = await everything(database)
    call = a_call("a", charges=(Charge(account="key:k", usd=Decimal(1), tokens=1),))
    async with outside.refusing(table):
        with pytest.raises(DBAPIError, match="no"):
            await ledger.fold(batch(1, call))
    assert await everything(database) == before
    assert await ledger.fold(batch(1, call)) == 1


async def test_charges_move_from_what_is_leased_to_what_is_spent(
    ledger: SqlCallLedger, database: Database
) -> None:
    store = SqlBudgetStore(database)
    account = Account(id="key:k", usd=Decimal(1), tokens=1000)
    for holder in ("j", "other"):
        await store.lease(
            account, holder=holder, want=Slice(usd=Decimal("0.4"), tokens=400)
        )
    charges = (
        Charge(account="key:k", usd=Decimal("0.000000000001"), tokens=100),
        Charge(account="task:t1", usd=Decimal("0.1"), tokens=100),
    )
    await ledger.fold(batch(2, *(a_call(name, charges=charges) for name in "ab")))
    spent = await store.spent("key:k")
    assert (spent.usd, spent.tokens) == (Decimal("0.000000000002"), 200)
    assert spent.leased == Slice(usd=Decimal("0.799999999998"), tokens=600)
    assert (await store.spent("task:t1")).usd == Decimal("0.2")
    await ledger.forget("j")
    spent = await store.spent("key:k")
    assert spent.leased == Slice(usd=Decimal("0.4"), tokens=400)
    assert (spent.tokens, await ledger.folded_to("j")) == (200, 0)


async def test_a_database_that_is_locked_is_unavailable_and_loses_nothing(
    impatient: None, ledger: SqlCallLedger, outside: Outside
) -> None:
    async with outside.writing():
        with pytest.raises(Unavailable):
            await ledger.fold(batch(1, a_call("a")))
    assert await ledger.fold(batch(1, a_call("a"))) == 1


async def test_a_thousand_calls_of_a_thousand_keys_are_one_fold(
    ledger: SqlCallLedger,
) -> None:
    calls = [
        a_call(
            new_id(),
            key_id=f"k{n}",
            charges=(Charge(account=f"key:k{n}", usd=Decimal("0.1"), tokens=12),),
        )
        for n in range(1000)
    ]
    assert await ledger.fold(batch(1000, *calls)) == 1000
    rows = await ledger.spend(SpendBy.KEY, limit=2000)
    assert len(rows) == 1000
    assert sum(row["cost_usd"] for row in rows) == Decimal(100)


async def test_the_meter_adds_exactly(ledger: SqlCallLedger) -> None:
    await keep(ledger, a_call("a", at=NOON + timedelta(seconds=1)))
    await keep(ledger, a_call("b", side=Side.LOCAL, model="l", cost_usd=Decimal("0.2")))
    await keep(ledger, a_call("c", iteration=2, replayed=True))
    await keep(ledger, a_call("d", task_id="t2"))
    await keep(ledger, a_call("e", task_id=None, iteration=None))
    assert await ledger.meter("t1", iteration=1) == Meter(
        calls=2,
        usage=Usage(input_tokens=20, output_tokens=4),
        cost_usd=Decimal("0.30"),
        models=["l", "m"],
        routes=["local", "remote"],
    )
    whole = await ledger.meter("t1")
    assert (whole.calls, whole.cost_usd, whole.replayed) == (3, Decimal("0.40"), True)
    assert [call.interaction_id for call in await ledger.calls("t1")] == ["b", "c", "a"]


async def test_one_unknown_cost_makes_the_sum_unknown(ledger: SqlCallLedger) -> None:
    await keep(ledger, a_call("a"), a_call("b", cost_usd=None, iteration=2))
    assert (await ledger.meter("t1")).cost_usd is None
    assert (await ledger.meter("t1", iteration=1)).cost_usd == Decimal("0.10")
    (row,) = await ledger.totals()
    assert row["cost_usd"] is None
    (row,) = await ledger.spend(SpendBy.MODEL)
    assert (row["cost_usd"], row["unpriced"]) == (Decimal("0.1"), 1)


async def test_tokens_add_up_over_what_is_known(ledger: SqlCallLedger) -> None:
    await keep(ledger, a_call("a"), a_call("b", usage=Usage(reasoning_tokens=0)))
    await keep(ledger, a_call("c", usage=Usage(input_tokens=5)))
    known = Usage(input_tokens=15, output_tokens=2, reasoning_tokens=0)
    assert (await ledger.meter("t1")).usage == known
    for rows in (await ledger.totals(), await ledger.spend(SpendBy.DAY)):
        (row,) = rows
        assert {name: row[name] for name in msgspec.structs.asdict(known)} == (
            msgspec.structs.asdict(known)
        )


async def test_a_task_without_calls_has_cost_nothing(ledger: SqlCallLedger) -> None:
    assert await ledger.meter("nobody") == Meter()
    assert await ledger.calls("nobody") == []
    assert await ledger.totals() == []
    assert await ledger.spend(SpendBy.KEY) == []


async def test_totals_are_by_model_and_route(ledger: SqlCallLedger) -> None:
    await keep(ledger, a_call("a"), a_call("b", ok=False, task_id=None))
    await keep(
        ledger, a_call("c", side=Side.LOCAL, cost_usd=Decimal(100), usage=Usage())
    )
    local, remote = await ledger.totals()
    assert local == {
        "model": "m",
        "route": "local",
        "calls": 1,
        "failed": 0,
        "input_tokens": None,
        "output_tokens": None,
        "cached_tokens": None,
        "cache_write_tokens": None,
        "reasoning_tokens": None,
        "cost_usd": Decimal(100),
    }
    assert f"{local['cost_usd']}" == "100"
    assert (remote["route"], remote["calls"], remote["failed"]) == ("remote", 2, 1)
    assert (remote["input_tokens"], remote["cost_usd"]) == (20, Decimal("0.20"))


async def test_spend_is_by_what_is_asked_the_dearest_first(
    ledger: SqlCallLedger,
) -> None:
    await keep(
        ledger,
        a_call("a", key_id="k1", model="big", deployment="d1", cost_usd=Decimal(3)),
        a_call("b", key_id="k2", at=NOON - timedelta(days=1), cost_usd=Decimal(5)),
        a_call("c", task_id=None, unsettled=True, ok=False, cost_usd=None),
        a_call("d", task_id=None, cached=True, cost_usd=Decimal(0)),
    )

    async def by(by: SpendBy, **given: Any) -> list[tuple[Any, Any]]:
        return [(row["by"], row["cost_usd"]) for row in await ledger.spend(by, **given)]

    assert await by(SpendBy.MODEL) == [("m", 5), ("big", 3)]
    assert await by(SpendBy.DEPLOYMENT) == [("main", 5), ("d1", 3)]
    assert await by(SpendBy.KEY) == [("k2", 5), ("k1", 3), (None, 0)]
    assert await by(SpendBy.TASK) == [("t1", 8), (None, 0)]
    assert await by(SpendBy.DAY) == [("2026-01-02", 3), ("2026-01-01", 5)]
    assert await by(SpendBy.DAY, limit=1) == [("2026-01-02", 3)]
    assert await by(SpendBy.MODEL, since=date(2026, 1, 2)) == [("big", 3), ("m", 0)]
    last = (await ledger.spend(SpendBy.KEY))[-1]
    assert last == {
        "by": None,
        "calls": 2,
        "failed": 1,
        "unsettled": 1,
        "cached": 1,
        "unpriced": 1,
        "input_tokens": 20,
        "output_tokens": 4,
        "cached_tokens": None,
        "cache_write_tokens": None,
        "reasoning_tokens": None,
        "cost_usd": Decimal(0),
    }


async def test_a_day_begins_at_midnight_utc(ledger: SqlCallLedger) -> None:
    late = datetime.fromisoformat("2026-01-01T23:30:00-02:00")
    await keep(ledger, a_call("a", at=late))
    (row,) = await ledger.spend(SpendBy.DAY)
    assert row["by"] == "2026-01-02"


async def test_calls_of_before_the_sums_are_in_them(empty_url: str) -> None:
    """A database of the version that kept calls alone."""
    folder = Path(migrate.__file__).parent / "migrations"
    scripts = ScriptDirectory(str(folder), version_locations=[str(folder)])
    engine = create_engine(sync_url(empty_url))
    steps = EnvironmentContext(
        Config(), scripts, fn=lambda rev, _: scripts._upgrade_revs("0002", rev)
    )
    old: dict[str, Any] = {
        "deployment": "main",
        "side": "remote",
        "model": "m",
        "ok": True,
        "usage": {"input_tokens": 10, "output_tokens": 2, "cached_tokens": None},
        "cost_usd": "0.10",
    }
    rows: list[dict[str, Any]] = [
        {"id": "a", "task": "t1", "body": old | {"task_id": "t1"}},
        {"id": "b", "task": "t1", "body": old | {"task_id": "t1", "cost_usd": None}},
        {"id": "c", "task": None, "body": old | {"ok": False, "usage": {}}},
    ]
    with engine.begin() as connection, steps:
        steps.configure(connection=connection)
        steps.run_migrations()
        for row in rows:
            connection.execute(
                text("INSERT INTO model_call VALUES (:id, :task, 1, :at, :body)"),
                row
                | {"at": "2026-01-02T03:04:05.000000Z", "body": encode(row["body"])},
            )
    engine.dispose()

    async with Database.open(empty_url) as database:
        ledger = SqlCallLedger(database)
        none, task = await ledger.spend(SpendBy.TASK)  # equally dear: by name
        spent = await SqlBudgetStore(database).spent("task:t1")
        (day,) = await ledger.spend(SpendBy.DAY)
    assert (task["by"], task["calls"], task["unpriced"]) == ("t1", 2, 1)
    assert (task["input_tokens"], task["cached_tokens"]) == (20, None)
    assert (none["by"], none["failed"], none["input_tokens"]) == (None, 1, None)
    assert (day["by"], day["cost_usd"]) == ("2026-01-02", Decimal("0.2"))
    assert (spent.usd, spent.tokens) == (Decimal("0.1"), 24)
