"""The meter between a call's end and SQL: folding, events, outages, what it says of itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.contracts.test_call_journal import NOON, a_call, as_ended, die
from tests.servers.sqlite_lock import locked

from nestor.backends.files.call_journal import FileCallJournal
from nestor.backends.files.event_log import FileEventLog, read_events
from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database
from nestor.coordinator.metering import Metering
from nestor.coordinator.pricing import MAX_TOKENS, cost_usd
from nestor.errors import Unavailable
from nestor.model.event import Event
from nestor.model.health import HealthStatus
from nestor.model.routing import Charge, Deployment, Side
from nestor.model.task import Usage
from nestor.ports.call_journal import Settled
from nestor.ports.call_ledger import SpendBy
from nestor.telemetry import metrics
from nestor.telemetry.learning_client import LearningClient

PRICED = Deployment(
    name="d",
    side=Side.REMOTE,
    model="m",
    base_url="http://x",
    price_input=Decimal(2),
    price_output=Decimal(10),
)


class Ledger(SqlCallLedger):
    """The real one, that can be taken away or die at a fold's edges."""

    down = False
    after_commit: BaseException | None = None

    async def fold(self, settled: Settled) -> int:
        if self.down:
            raise Unavailable("the database does not answer: planted")
        new = await super().fold(settled)
        if self.after_commit is not None:
            raise self.after_commit
        return new

    async def folded_to(self, journal_id: str) -> int:
        if self.down:
            raise Unavailable("the database does not answer: planted")
        return await super().folded_to(journal_id)


@dataclass
class Rig:
    """One data folder; processes come and go."""

    home: Path
    ledger: Ledger
    clock: float = 1000.0
    logs: list[FileEventLog] = field(default_factory=list)

    def process(self, **given: Any) -> Metering:
        """A meter with a journal and an event log of its own."""
        log = FileEventLog(self.home / "telemetry")
        self.logs.append(log)
        return Metering(
            self.ledger,
            FileCallJournal(self.home / "journal", **given),
            LearningClient(log, "coordinator"),
            every_s=0.01,
            timer=lambda: self.clock,
        )

    def events(self) -> list[Event]:
        return list(read_events(self.home / "telemetry" / "unified-events.jsonl"))

    def told(self) -> list[str]:
        return [event.data["interaction_id"] for event in self.events()]


@asynccontextmanager
async def rig_at(home: Path) -> AsyncIterator[Rig]:
    async with Database.open(f"sqlite:///{home / 'nestor.db'}") as database:
        rig = Rig(home, Ledger(database))
        yield rig
        for log in rig.logs:
            log.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_at(tmp_path) as rig:
        yield rig


@asynccontextmanager
async def running(metering: Metering) -> AsyncIterator[Metering]:
    await metering.start()
    try:
        yield metering
    finally:
        await metering.stop()


def call(metering: Metering, *names: str, **given: Any) -> None:
    for name in names:
        begun = a_call(name)
        metering.begin(begun)
        metering.end(msgspec.structs.replace(as_ended(begun), **given))


def kill(metering: Metering) -> None:
    """As kill -9 of a process without a running folder."""
    journal = metering._journal
    assert isinstance(journal, FileCallJournal)
    die(journal)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_ended_is_folded_and_told_soon(rig: Rig) -> None:
    async with running(rig.process()) as metering:
        call(metering, "a", "b", key_id="k", context_ids=("c1",), attempt_of="x")
        await until(lambda: len(rig.told()) == 2)
        assert await rig.ledger.has("a")
        assert await rig.ledger.has("b")
        call(metering, "c")
        await until(lambda: len(rig.told()) == 3)
    event = rig.events()[0]
    assert event.event_type == "model_called"
    assert (event.source, event.task_id) == ("coordinator", "t1")
    assert event.timestamp == NOON + timedelta(milliseconds=12.5)
    assert event.data == {
        "interaction_id": "a",
        "model": "m",
        "deployment": "main",
        "side": "remote",
        "dialect": "openai",
        "usage": {
            "input_tokens": 10,
            "output_tokens": 2,
            "cached_tokens": None,
            "cache_write_tokens": None,
            "reasoning_tokens": None,
        },
        "cost_usd": "0.000000000001",
        "latency_ms": 12.5,
        "ok": True,
        "unsettled": False,
        "error": None,
        "reason": "asked for",
        "fallback_from": None,
        "attempt_of": "x",
        "purpose": "gateway",
        "iteration": None,
        "replayed": False,
        "cached": False,
        "key_id": "k",
        "context_ids": ["c1"],
    }


async def test_who_reads_the_meter_waits_for_all_that_ended(rig: Rig) -> None:
    metering = rig.process()
    call(metering, *(f"{number}" for number in range(1500)))
    await asyncio.gather(*(metering.fold_now() for _ in range(5)))
    assert (await rig.ledger.meter("t1")).calls == 1500
    assert len(set(rig.told())) == len(rig.told()) == 1500
    await metering.stop()


async def test_a_clean_end_folds_the_rest_and_leaves_nothing(rig: Rig) -> None:
    metering = rig.process()
    await metering.start()
    call(metering, "a")
    await metering.stop()
    assert (await rig.ledger.meter("t1")).calls == 1
    assert list((rig.home / "journal").iterdir()) == []
    assert await rig.ledger.folded_to(metering._journal.id) == 0


async def test_a_start_folds_what_a_dead_process_left(rig: Rig) -> None:
    dead = rig.process()
    call(dead, "a", "b")
    await dead.fold_now()
    call(dead, "c")
    dead.begin(a_call("open"))
    kill(dead)
    unsettled = metrics.MODEL_CALLS_UNSETTLED.labels("main")._value.get()

    async with running(rig.process()) as metering:
        await metering.fold_now()
        assert sorted(rig.told()) == ["a", "b", "c", "open"]
        (row,) = await rig.ledger.spend(SpendBy.TASK)
        assert (row["calls"], row["unsettled"], row["unpriced"]) == (4, 1, 1)
        # An open one is charged as it was reserved.
        spent = await SqlBudgetStore(rig.ledger._database).spent("key:k")
        assert (spent.usd, spent.tokens) == (Decimal(2), 2000)
        assert await rig.ledger.folded_to(dead._journal.id) == 0
    found = metrics.MODEL_CALLS_UNSETTLED.labels("main")._value.get()
    assert found - unsettled == 1
    last = rig.events()[-1].data
    assert (last["unsettled"], last["latency_ms"], last["cost_usd"]) == (
        True,
        None,
        None,
    )
    assert last["error"] == "the process ended before the call did"


async def test_a_death_between_commit_and_event_loses_and_repeats_none(
    rig: Rig,
) -> None:
    dead = rig.process()
    call(dead, "a")
    await dead.fold_now()
    call(dead, "b", "c")
    rig.ledger.after_commit = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await dead.fold_now()
    kill(dead)
    assert rig.told() == ["a"]
    assert await rig.ledger.has("c")

    # The next one writes the events of half of them, and dies before it notes so.
    rig.ledger.after_commit = None
    half = rig.process()
    (left,) = await asyncio.to_thread(half._journal.abandoned)
    settled = left.settled(limit=1)
    assert settled
    half._learning.append([half._event(one) for one in settled.calls])
    left.close()
    kill(half)

    async with running(rig.process()):
        pass
    assert rig.told() == ["a", "b", "c"]


async def test_a_taker_that_dies_between_batches_repeats_no_event(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestor.coordinator.folding.BATCH", 2)
    dead = rig.process()
    call(dead, *"abcde")
    kill(dead)
    taker = rig.process()

    class KilledError(BaseException):
        pass

    real = rig.ledger.fold

    async def fold(settled: Settled) -> int:
        new = await real(settled)
        if settled.calls[-1].interaction_id == "d":
            raise KilledError
        return new

    monkeypatch.setattr(rig.ledger, "fold", fold)
    with pytest.raises(KilledError):
        await taker.fold_now()
    monkeypatch.undo()
    for left in taker._left:
        left.close()
    kill(taker)
    assert rig.told() == ["a", "b"]
    monkeypatch.setattr("nestor.coordinator.folding.BATCH", 2)
    # What is further back than the log's end is known by the place alone.
    asked: list[str] = []
    last = rig.process()
    seen = last._learning.seen

    def noted(ids: frozenset[str]) -> frozenset[str]:
        asked.extend(ids)
        return seen(ids)

    monkeypatch.setattr(last._learning, "seen", noted)
    await last.fold_now()
    assert rig.told() == ["a", "b", "c", "d", "e"]
    assert len(asked) == 2
    await last.stop()


async def test_without_a_database_calls_go_on_and_all_are_there_after(
    rig: Rig,
) -> None:
    async with running(rig.process()) as metering:
        (well,) = metering.dependencies()
        assert (well.status, well.name) == (HealthStatus.HEALTHY, "call ledger")
        failed = metrics.CALL_FOLDS_FAILED._value.get()
        rig.ledger.down = True
        call(metering, "a", "b")
        await until(lambda: metering.dependencies()[0].status is HealthStatus.DEGRADED)
        rig.clock += 90
        call(metering, "c")
        with pytest.raises(Unavailable, match="planted"):
            await metering.fold_now()
        (ill,) = metering.dependencies()
        assert ill.message == (
            "3 calls wait in the journal since 90 s: "
            "the database does not answer: planted"
        )
        samples = metrics.render().decode()
        assert "nestor_calls_waiting 3.0" in samples
        assert "nestor_calls_waiting_seconds 90.0" in samples
        assert metrics.CALL_FOLDS_FAILED._value.get() > failed
        assert rig.told() == []
        rig.ledger.down = False
        await until(lambda: len(rig.told()) == 3)
        await until(lambda: metering.dependencies()[0].status is HealthStatus.HEALTHY)
        assert (await rig.ledger.meter("t1")).calls == 3
    assert "nestor_calls_waiting 0.0" in metrics.render().decode()


async def test_a_start_without_a_database_goes_on_and_recovers_later(rig: Rig) -> None:
    dead = rig.process()
    call(dead, "a")
    kill(dead)
    rig.ledger.down = True
    async with running(rig.process()) as metering:
        call(metering, "b")
        assert metering.dependencies()[0].status is HealthStatus.DEGRADED
        rig.ledger.down = False
        await until(lambda: sorted(rig.told()) == ["a", "b"])


async def test_an_end_without_a_database_leaves_the_rest_to_the_next_start(
    rig: Rig,
) -> None:
    metering = rig.process()
    await metering.start()
    rig.ledger.down = True
    call(metering, "a")
    await metering.stop()
    rig.ledger.down = False
    async with running(rig.process()):
        pass
    assert rig.told() == ["a"]


async def test_a_database_that_stays_locked_bounds_the_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestor.backends.sql.database.BUSY_TIMEOUT_MS", 20_000)
    monkeypatch.setattr("nestor.coordinator.metering._STOP_S", 0.2)
    async with Database.open(f"sqlite:///{rig.home / 'nestor.db'}") as database:
        rig.ledger = Ledger(database)
        metering = rig.process()
        await metering.start()
        async with locked(rig.home / "nestor.db"):
            call(metering, "a")
            async with asyncio.timeout(10):
                await metering.stop()
        async with running(rig.process()):
            pass
        assert rig.told() == ["a"]


async def test_who_stops_waiting_for_a_fold_stops_no_fold(rig: Rig) -> None:
    metering = rig.process()
    call(metering, "a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await metering.fold_now()
    await until(lambda: rig.told() == ["a"])
    await metering.stop()


async def test_a_running_process_takes_over_from_one_that_dies(rig: Rig) -> None:
    other = rig.process()
    call(other, "others")
    async with running(rig.process()) as metering:
        call(metering, "a")
        await until(lambda: rig.told() == ["a"])
        kill(other)
        rig.clock += 61
        call(metering, "b")
        await until(lambda: sorted(rig.told()) == ["a", "b", "others"])


async def test_an_unreadable_journal_keeps_nobody_elses_calls_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = rig.process()
    call(dead, "a")
    kill(dead)
    metering = rig.process()
    (left,) = metering._journal.abandoned()
    metering._left.append(left)

    def broken(*, limit: int) -> None:
        raise Unavailable("the call journal cannot be read: planted")

    monkeypatch.setattr(left, "settled", broken)
    call(metering, "b")
    with pytest.raises(Unavailable, match="planted"):
        await metering.fold_now()
    assert rig.told() == ["b"]
    monkeypatch.undo()
    await metering.fold_now()
    assert rig.told() == ["b", "a"]
    await metering.stop()


async def test_counts_that_no_model_has_stop_nothing(rig: Rig) -> None:
    metering = rig.process()
    mad = Usage(input_tokens=10**40, output_tokens=-5, cached_tokens=7)
    charges = (Charge(account="key:k", usd=Decimal(10**30), tokens=10**40),)
    call(metering, "mad", usage=mad, cost_usd=Decimal(10**30), charges=charges)
    call(metering, "most", usage=Usage(input_tokens=MAX_TOKENS))
    await metering.fold_now()
    most, found = sorted(
        await rig.ledger.calls("t1"), key=lambda one: one.interaction_id, reverse=True
    )
    assert found.interaction_id == "mad"
    assert (found.usage, found.cost_usd) == (Usage(cached_tokens=7), None)
    assert most.usage.input_tokens == MAX_TOKENS
    await metering.stop()


def sample(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


async def test_prometheus_hears_of_each_call_once_and_of_no_cached_answer(
    rig: Rig,
) -> None:
    metering = rig.process()
    usage = Usage(
        input_tokens=5,
        output_tokens=4,
        cached_tokens=3,
        cache_write_tokens=2,
        reasoning_tokens=1,
    )
    call(metering, "a", deployment="dep", usage=usage, cost_usd=Decimal("0.5"))
    call(metering, "b", deployment="dep", usage=Usage(), cost_usd=None, ok=False)
    call(metering, "c", deployment="dep", usage=usage, cached=True)
    name = "nestor_model_tokens_total"
    kinds = ("input", "output", "cached", "cache_write", "reasoning")
    assert [sample(name, model="dep", kind=kind) for kind in kinds] == [5, 4, 3, 2, 1]
    name = "nestor_model_calls_total"
    for ok in ("true", "false"):
        assert sample(name, model="dep", side="remote", ok=ok) == 1
    assert sample("nestor_model_cost_usd_total", model="dep") == 0.5
    assert sample("nestor_model_cost_unknown_total", model="dep") == 1
    assert sample("nestor_model_latency_seconds_count", model="dep") == 2
    await metering.stop()


@pytest.mark.parametrize(
    ("usage", "prices", "cost"),
    [
        (Usage(input_tokens=1000, output_tokens=100), {}, "0.003"),
        (
            Usage(input_tokens=1000, output_tokens=100, cached_tokens=600),
            {"price_cached": Decimal("0.2")},
            "0.00192",
        ),
        (Usage(input_tokens=1000, output_tokens=0, cached_tokens=600), {}, "0.002"),
        (
            Usage(
                input_tokens=1000,
                output_tokens=100,
                cached_tokens=500,
                cache_write_tokens=200,
                reasoning_tokens=90,
            ),
            {"price_cached": Decimal(0), "price_cache_write": Decimal("2.5")},
            "0.0021",
        ),
        (Usage(input_tokens=1000), {}, None),
        (Usage(input_tokens=1000), {"price_output": Decimal(0)}, "0.002"),
        (Usage(output_tokens=10, cached_tokens=5), {}, None),
        (Usage(input_tokens=1, output_tokens=1), {"price_input": None}, None),
        # More cached than there was: no negative part.
        (
            Usage(input_tokens=10, output_tokens=0, cached_tokens=20),
            {"price_cached": Decimal(1)},
            "0.00002",
        ),
        # The finest price there is, on the largest count.
        (
            Usage(input_tokens=MAX_TOKENS - 1, output_tokens=0),
            {"price_input": Decimal("0.000001")},
            "0.000099999999",
        ),
    ],
)
def test_what_a_call_costs(
    usage: Usage, prices: dict[str, Any], cost: str | None
) -> None:
    deployment = msgspec.structs.replace(PRICED, **prices)
    expected = None if cost is None else Decimal(cost)
    assert cost_usd(deployment, usage, replayed=False) == expected
    assert cost_usd(deployment, usage, replayed=True) == 0


async def test_two_processes_keep_both_their_calls(rig: Rig) -> None:
    async with running(rig.process()) as one, running(rig.process()) as other:
        for number in range(50):
            call(one, f"one-{number}")
            call(other, f"other-{number}")
        await asyncio.gather(one.fold_now(), other.fold_now())
        assert (await rig.ledger.meter("t1")).calls == 100
    assert len(set(rig.told())) == len(rig.told()) == 100
