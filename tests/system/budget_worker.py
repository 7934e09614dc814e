"""A process that spends from one budget as fast as it can, until nothing is left.

``python -m tests.system.budget_worker HOME DATABASE_URL ACCOUNT USD SEED``

What the upstream would bill is appended to ``HOME/bill`` before a call is settled. Budgets,
journal and ledger are the product's.
"""

import asyncio
import os
import random
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from msgspec.structs import replace

from nestor.backends.files.call_journal import FileCallJournal
from nestor.backends.files.event_log import FileEventLog
from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database
from nestor.coordinator.budgets import Budgets
from nestor.coordinator.metering import Metering
from nestor.errors import BudgetExceeded, Unavailable
from nestor.model.ids import new_id
from nestor.model.routing import Dialect, ModelCall, Side
from nestor.model.task import Usage
from nestor.ports.budget_store import Account
from nestor.telemetry.learning_client import LearningClient

CALLERS = 8
RESERVED = Decimal("0.001")
REFUSED_S = 2.5
"""Longer than anybody needs to give back what he held and did not use."""


def call(interaction_id: str) -> ModelCall:
    return ModelCall(
        interaction_id=interaction_id,
        at=datetime.now(UTC),
        deployment="remote",
        side=Side.REMOTE,
        model="m",
        dialect=Dialect.OPENAI,
        route_reason="",
        ok=True,
        usage=Usage(),
        cost_usd=None,
        latency_ms=1.0,
    )


class Worker:
    def __init__(self, budgets: Budgets, metering: Metering, bill: int) -> None:
        self.budgets = budgets
        self.metering = metering
        self.bill = bill
        self.served_at = time.monotonic()

    async def spend(self, account: Account, chance: random.Random) -> None:
        while time.monotonic() - self.served_at < REFUSED_S:
            try:
                reserved = await self.budgets.reserve(
                    [account], usd=RESERVED, tokens=10
                )
            except BudgetExceeded:
                await asyncio.sleep(0.1)
                continue
            except Unavailable:  # SQL answers late on a busy machine: nobody refused
                self.served_at = time.monotonic()
                continue
            self.served_at = time.monotonic()
            begun = call(new_id())
            self.metering.begin(replace(begun, charges=reserved.charges))
            cost = RESERVED * chance.randint(0, 1000) / 1000
            os.write(self.bill, f"{cost:f}\n".encode())
            await asyncio.sleep(0.002 * chance.random())
            known = cost if chance.random() < 0.9 else None
            charges = reserved.settle(known, None)
            self.metering.end(replace(begun, charges=charges, cost_usd=known))


async def main() -> None:
    home, url, name, usd, seed = sys.argv[1:]
    folder = Path(home)
    account = Account(id=name, usd=Decimal(usd))
    log = FileEventLog(folder / f"events-{os.getpid()}")
    bill = os.open(folder / "bill", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    async with Database.open(url, migrate=False) as database:
        journal = FileCallJournal(folder / "journal")
        metering = Metering(
            SqlCallLedger(database), journal, LearningClient(log, "coordinator")
        )
        budgets = Budgets(SqlBudgetStore(database), journal.id, idle_s=2.0)
        await metering.start()
        print("ready", flush=True)  # noqa: T201 - the parent waits for it
        worker = Worker(budgets, metering, bill)
        await asyncio.gather(
            *(
                worker.spend(account, random.Random(f"{seed}:{n}"))
                for n in range(CALLERS)
            )
        )
        await budgets.close()
        await metering.stop()
    log.close()


if __name__ == "__main__":
    asyncio.run(main())
