"""kill -9 of processes that make calls at full speed: every call is in SQL exactly once."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from tests.conftest import Rounds
from tests.contracts.test_call_journal import a_call

from nestor.backends.files.call_journal import FileCallJournal
from nestor.backends.files.event_log import FileEventLog, read_events
from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database
from nestor.coordinator.metering import Metering
from nestor.model.ids import new_id
from nestor.model.routing import Charge, ModelCall
from nestor.model.task import Usage
from nestor.ports.budget_store import Account, Slice
from nestor.ports.call_ledger import SpendBy
from nestor.telemetry.learning_client import LearningClient

pytestmark = pytest.mark.heavy
ACCOUNT = Account(id="key:k", usd=Decimal(10**6), tokens=10**12)
RESERVED = Charge(account=ACCOUNT.id, usd=Decimal("0.01"), tokens=100)
IN_FLIGHT = 5


@asynccontextmanager
async def metering(home: Path) -> AsyncIterator[tuple[Metering, Database]]:
    log = FileEventLog(home / "telemetry")
    async with Database.open(f"sqlite:///{home / 'nestor.db'}") as database:
        meter = Metering(
            SqlCallLedger(database),
            FileCallJournal(home / "journal", segment_bytes=50_000, kept_calls=500),
            LearningClient(log, "coordinator"),
            every_s=0.02,
        )
        yield meter, database
    log.close()


async def call_for_ever(home: Path, name: str) -> None:
    """Body of a child: note in a file of its own what the meter has taken."""
    chance = random.Random(name)
    side = os.open(home / f"{name}.side", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    async with metering(home) as (meter, database):
        await meter.start()
        await SqlBudgetStore(database).lease(
            ACCOUNT,
            holder=meter._journal.id,
            want=Slice(usd=Decimal(1), tokens=10_000),
        )
        open_calls: deque[ModelCall] = deque()
        print("ready", flush=True)  # noqa: T201
        while True:
            call = a_call(new_id(), charges=(RESERVED,), key_id="k")
            meter.begin(call)
            os.write(side, f"b {call.interaction_id}\n".encode())
            open_calls.append(call)
            if len(open_calls) > IN_FLIGHT:
                call = ended(open_calls.popleft(), chance.randrange(1, 1000))
                meter.end(call)
                tokens = call.usage.input_tokens
                os.write(side, f"e {call.interaction_id} {tokens}\n".encode())
                await asyncio.sleep(chance.choice((0, 0, 0, 0.001)))


def ended(call: ModelCall, tokens: int) -> ModelCall:
    cost = Decimal(tokens).scaleb(-6)
    return msgspec.structs.replace(
        call,
        usage=Usage(input_tokens=tokens, output_tokens=0),
        cost_usd=cost,
        charges=(Charge(account=ACCOUNT.id, usd=cost, tokens=tokens),),
    )


def start(home: Path, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.system.test_meter_kill", str(home), name],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


def noted(home: Path) -> tuple[set[str], dict[str, int]]:
    """What the children wrote down: begun calls, and tokens of those that ended."""
    begun: set[str] = set()
    tokens: dict[str, int] = {}
    for path in home.glob("*.side"):
        for line in path.read_text().splitlines():
            kind, call_id, *count = line.split()
            if kind == "b":
                begun.add(call_id)
            else:
                tokens[call_id] = int(count[0])
    return begun, tokens


def kill_while_calling(home: Path, number: int, chance: random.Random) -> None:
    """Two processes call and fold at once; sometimes nobody can fold, then both die."""
    children = [start(home, f"{number}{side}") for side in "ab"]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
    database = sqlite3.connect(home / "nestor.db", isolation_level=None, timeout=30)
    locked = chance.random() < 0.4
    time.sleep(chance.uniform(0, 0.3))
    if locked:
        database.execute("BEGIN IMMEDIATE")
        time.sleep(chance.uniform(0, 0.3))
    for child in children:
        time.sleep(chance.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
    database.close()


async def check(home: Path) -> tuple[int, int]:
    """Recover, and compare SQL and the event log with what the children noted."""
    async with metering(home) as (meter, database):
        await meter.start()
        await meter.fold_now()
        ledger = SqlCallLedger(database)
        calls = {call.interaction_id: call for call in await ledger.calls("t1")}
        (spent,) = await ledger.spend(SpendBy.KEY)
        budget = await SqlBudgetStore(database).spent(ACCOUNT.id)
        await meter.stop()
    begun, tokens = noted(home)
    settled = {name: call for name, call in calls.items() if not call.unsettled}
    assert begun <= set(calls)
    assert set(tokens) <= set(settled)
    for name, count in tokens.items():
        assert settled[name].usage.input_tokens == count
    # One child may die between the journal's line and its own.
    children = len(list(home.glob("*.side")))
    assert len(calls) - len(begun) <= children
    assert len(settled) - len(tokens) <= children
    unsettled = [call for call in calls.values() if call.unsettled]
    assert len(unsettled) <= children * (IN_FLIGHT + 1)
    assert all(call.charges == (RESERVED,) for call in unsettled)
    # What is added up is what is there.
    assert spent["calls"] == len(calls)
    assert spent["unsettled"] == spent["unpriced"] == len(unsettled)
    assert spent["input_tokens"] == sum(
        call.usage.input_tokens or 0 for call in settled.values()
    )
    cost = sum((call.cost_usd or Decimal(0) for call in settled.values()), Decimal(0))
    assert spent["cost_usd"] == cost
    charges = [charge for call in calls.values() for charge in call.charges]
    assert budget.usd == sum((one.usd for one in charges), Decimal(0))
    assert budget.tokens == sum(one.tokens for one in charges)
    assert budget.leased == Slice()
    # Each is told once, and nothing is left.
    told = Counter(
        event.data["interaction_id"]
        for event in read_events(home / "telemetry" / "unified-events.jsonl")
    )
    assert set(told) == set(calls)
    assert set(told.values()) == {1}
    assert list((home / "journal").iterdir()) == []
    return len(settled), len(unsettled)


def test_every_call_survives_kill_9_exactly_once(
    tmp_path: Path, counted: Rounds
) -> None:
    total = Counter[str]()
    for number, chance in counted("meter kills", 5, 300):
        home = tmp_path / f"{number}"
        home.mkdir()
        asyncio.run(opened_once(home))
        kill_while_calling(home, number, chance)
        if (
            chance.random() < 0.5
        ):  # the next ones recover at full speed, and die as well
            kill_while_calling(home, number + 1000, chance)
        settled, unsettled = asyncio.run(check(home))
        total.update(settled=settled, unsettled=unsettled)
    print(dict(total))  # noqa: T201


async def opened_once(home: Path) -> None:
    """Two children that migrate at once would only take their time."""
    async with Database.open(f"sqlite:///{home / 'nestor.db'}"):
        pass


if __name__ == "__main__":
    asyncio.run(call_for_ever(Path(sys.argv[1]), sys.argv[2]))
