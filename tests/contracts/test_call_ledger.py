"""What ``ports.call_ledger.CallLedger`` promises, on real SQLite."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database
from nestor.model.routing import ModelCall, Side
from nestor.model.task import Usage
from nestor.ports.call_ledger import CallLedger
from nestor.ports.router import Meter

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def ledger(database: Database) -> CallLedger:
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


async def test_a_call_is_kept_once_under_its_id(ledger: CallLedger) -> None:
    call = a_call("a", error="x", fallback_from="local")
    await ledger.record(call)
    await ledger.record(msgspec.structs.replace(call, cost_usd=Decimal(9)))
    assert await ledger.calls("t1") == [call]


async def test_many_at_once_are_all_kept(ledger: CallLedger) -> None:
    await asyncio.gather(*(ledger.record(a_call(f"{n % 20}")) for n in range(40)))
    assert (await ledger.meter("t1")).calls == 20


async def test_the_meter_adds_exactly(ledger: CallLedger) -> None:
    await ledger.record(a_call("a", at=NOON + timedelta(seconds=1)))
    await ledger.record(
        a_call("b", side=Side.LOCAL, model="l", cost_usd=Decimal("0.20"))
    )
    await ledger.record(a_call("c", iteration=2, replayed=True))
    await ledger.record(a_call("d", task_id="t2"))
    await ledger.record(a_call("e", task_id=None, iteration=None))
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


async def test_one_unknown_cost_makes_the_sum_unknown(ledger: CallLedger) -> None:
    await ledger.record(a_call("a"))
    await ledger.record(a_call("b", cost_usd=None, iteration=2))
    assert (await ledger.meter("t1")).cost_usd is None
    assert (await ledger.meter("t1", iteration=1)).cost_usd == Decimal("0.10")


async def test_tokens_add_up_over_what_is_known(ledger: CallLedger) -> None:
    await ledger.record(a_call("a"))
    await ledger.record(a_call("b", usage=Usage(input_tokens=5)))
    assert (await ledger.meter("t1")).usage == Usage(
        input_tokens=15, output_tokens=2, cached_tokens=None
    )


async def test_a_task_without_calls_has_cost_nothing(ledger: CallLedger) -> None:
    assert await ledger.meter("nobody") == Meter()
    assert await ledger.calls("nobody") == []
    assert await ledger.totals() == []


async def test_totals_are_by_model_and_route(ledger: CallLedger) -> None:
    await ledger.record(a_call("a"))
    await ledger.record(a_call("b", ok=False, task_id=None))
    await ledger.record(a_call("c", side=Side.LOCAL, cost_usd=None, usage=Usage()))
    local, remote = await ledger.totals()
    assert local == {
        "model": "m",
        "route": "local",
        "calls": 1,
        "failed": 0,
        "input_tokens": None,
        "output_tokens": None,
        "cached_tokens": None,
        "cost_usd": None,
    }
    assert (remote["route"], remote["calls"], remote["failed"]) == ("remote", 2, 1)
    assert (remote["input_tokens"], remote["cost_usd"]) == (20, Decimal("0.20"))
