"""Two processes spend from one budget, one is killed at random: the limit holds to the cent.

What is compared is what the upstream would bill (written before a call is settled), what
stands in SQL, and the limit. No call here is dearer than it was estimated, so the limit
holds without exception; what was under way in the killed process is charged as reserved.
"""

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from tests.conftest import ROOT, Rounds

from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.database import Database
from nestor.ports.budget_store import Slice

LIMIT = Decimal(6)
SHORT_OF = Decimal("0.02")
"""What may stay unspent at the end: less than a call may cost, in each process."""


@contextmanager
def worker(
    home: Path, url: str, account: str, seed: str
) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.system.budget_worker"),
            *(str(home), url, account, str(LIMIT), seed),
        ],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


async def ended(child: subprocess.Popen[str]) -> int:
    return await asyncio.to_thread(child.wait, 120)


@pytest.mark.heavy
async def test_a_budget_holds_whoever_is_killed(
    tmp_path: Path, counted: Rounds
) -> None:
    url = f"sqlite:///{tmp_path / 'nestor.db'}"
    async with Database.open(url) as database:
        for number, chance in counted("two-budgets", 1, 60):
            await one_round(database, tmp_path / str(number), f"key:{number}", chance)


async def one_round(
    database: Database, home: Path, account: str, chance: random.Random
) -> None:
    home.mkdir()
    store = SqlBudgetStore(database)
    watching = asyncio.create_task(never_over(store, account))
    seeds = [str(chance.random()) for _ in range(3)]
    with worker(home, database.url, account, seeds[0]) as stays:
        with worker(home, database.url, account, seeds[1]) as dies:
            # By what is spent and not by the clock: machines differ.
            share = LIMIT / 3 * Decimal(chance.random())
            while (await store.spent(account)).usd < share:
                await asyncio.sleep(0.01)
            dies.send_signal(signal.SIGKILL)
            await ended(dies)
            assert (await store.spent(account)).usd < LIMIT / 2, "it died too late"
        with worker(home, database.url, account, seeds[2]) as comes:
            assert [await ended(comes), await ended(stays)] == [0, 0]
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    found = await store.spent(account)
    bill = sum(map(Decimal, (home / "bill").read_text().split()))
    assert bill <= found.usd <= LIMIT
    # The dead hold nothing, and what they held was spent by others.
    assert found.leased == Slice()
    assert found.usd >= LIMIT - SHORT_OF


async def never_over(store: SqlBudgetStore, account: str) -> None:
    while True:
        found = await store.spent(account)
        assert found.usd + found.leased.usd <= LIMIT
        await asyncio.sleep(0.01)
