"""What ``ports.budget_store.BudgetStore`` promises, on real SQLite."""

import asyncio
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.conftest import ROOT, Rounds

from nestor.backends.sql.budget_store import SqlBudgetStore, charge, forget_holder
from nestor.backends.sql.database import Database
from nestor.model.money import MAX_PICO_USD, pico, pico_limit, usd_of
from nestor.model.routing import Charge
from nestor.ports.budget_store import Account, Slice, Spent

PICO = Decimal("1E-12")
A = Account(id="key:a", usd=Decimal(5), tokens=1000)


@pytest.fixture
def store(database: Database) -> SqlBudgetStore:
    return SqlBudgetStore(database)


def some(usd: Decimal | str | int = 0, tokens: int = 0) -> Slice:
    return Slice(usd=Decimal(usd), tokens=tokens)


async def spend(
    database: Database, holder: str, account: str, usd: Decimal | str, tokens: int
) -> None:
    """Do what a fold does."""
    async with database.write() as connection:
        made = Charge(account=account, usd=Decimal(usd), tokens=tokens)
        await charge(database, connection, holder=holder, charges=[made])


async def forget(database: Database, holder: str) -> None:
    async with database.write() as connection:
        await forget_holder(connection, holder)


async def test_what_is_asked_for_is_given_until_the_limit(
    store: SqlBudgetStore,
) -> None:
    want = some("2", 300)
    assert await store.lease(A, holder="h1", want=want) == want
    assert await store.lease(A, holder="h2", want=want) == want
    assert await store.lease(A, holder="h1", want=want) == some("1", 300)
    assert await store.lease(A, holder="h2", want=want) == some("0", 100)
    assert await store.lease(A, holder="h3", want=want) == some()
    found = await store.spent("key:a")
    assert found == Spent(usd=Decimal(0), tokens=0, leased=some("5", 1000))


async def test_a_side_without_a_limit_is_not_given(store: SqlBudgetStore) -> None:
    usd_alone = Account(id="key:u", usd=Decimal(1))
    tokens_alone = Account(id="key:t", tokens=10)
    for account, given in (
        (usd_alone, some("0.5", 0)),
        (tokens_alone, some(0, 10)),
        (Account(id="key:n"), some()),
    ):
        want = some("0.5", 50)
        assert await store.lease(account, holder="h", want=want) == given


async def test_accounts_do_not_touch_each_other(store: SqlBudgetStore) -> None:
    other = Account(id="task:a", usd=Decimal(5), tokens=1000)
    assert await store.lease(A, holder="h", want=some(5, 1000)) == some(5, 1000)
    assert await store.lease(other, holder="h", want=some(5, 1000)) == some(5, 1000)


async def test_amounts_are_exact_to_the_last_pico(
    store: SqlBudgetStore, database: Database
) -> None:
    limit = Decimal("0.300000000001")
    account = Account(id="key:p", usd=limit)
    for _ in range(3):
        given = await store.lease(account, holder="h", want=some("0.1"))
        assert given == some("0.1")
        await spend(database, "h", "key:p", "0.1", 7)
    assert await store.lease(account, holder="h", want=some("0.1")) == some(PICO)
    found = await store.spent("key:p")
    assert (found.usd, found.tokens) == (Decimal("0.3"), 21)
    assert found.leased.usd == PICO


async def test_what_is_spent_stays_spent_and_what_is_given_back_is_free(
    store: SqlBudgetStore, database: Database
) -> None:
    await store.lease(A, holder="h1", want=some(4, 800))
    await spend(database, "h1", "key:a", "1.5", 300)
    assert await store.spent("key:a") == Spent(
        usd=Decimal("1.5"), tokens=300, leased=some("2.5", 500)
    )
    await store.give_back("key:a", holder="h1", unused=some("2.5", 500))
    assert await store.spent("key:a") == Spent(
        usd=Decimal("1.5"), tokens=300, leased=some()
    )
    given = await store.lease(A, holder="h2", want=some(9, 9000))
    assert given == some("3.5", 700)


async def test_a_process_that_is_gone_holds_nothing_any_more(
    store: SqlBudgetStore, database: Database
) -> None:
    await store.lease(A, holder="h1", want=some(4, 800))
    await store.lease(A, holder="h2", want=some("0.5", 100))
    await spend(database, "h1", "key:a", "1", 100)
    await forget(database, "h1")
    found = await store.spent("key:a")
    assert found == Spent(usd=Decimal(1), tokens=100, leased=some("0.5", 100))


async def test_a_dearer_call_is_charged_whole_and_its_holder_pays_first(
    store: SqlBudgetStore, database: Database
) -> None:
    await store.lease(A, holder="h1", want=some(1, 100))
    await spend(database, "h1", "key:a", "3", 300)  # 2 USD, 200 tokens over
    found = await store.spent("key:a", holder="h1")
    assert found == Spent(usd=Decimal(3), tokens=300, leased=some(), own=some(-2, -200))
    # What h1 owes makes nobody's part larger than what is left.
    given = await store.lease(A, holder="h2", want=some("1.5", 0))
    assert given == some("1.5", 0)
    given = await store.lease(A, holder="h1", want=some(9, 9000))
    assert given == some("2.5", 900)  # 2 of them were owed
    found = await store.spent("key:a", holder="h1")
    assert (found.leased, found.own) == (some(2, 700), some("0.5", 700))
    assert await store.lease(A, holder="h3", want=some(1, 1)) == some()


async def test_an_account_over_its_limit_gets_nothing(
    store: SqlBudgetStore, database: Database
) -> None:
    await store.lease(A, holder="h1", want=some(5, 1000))
    await spend(database, "h1", "key:a", "7", 1500)
    for holder in ("h1", "h2"):
        assert await store.lease(A, holder=holder, want=some(9, 9000)) == some()
    # What is owed is not asked for again, and counts as spent all the same.
    await store.give_back("key:a", holder="h1", unused=some(-2, -500))
    assert await store.spent("key:a") == Spent(
        usd=Decimal(7), tokens=1500, leased=some()
    )
    assert await store.lease(A, holder="h1", want=some(9, 9000)) == some()


async def test_a_new_limit_counts_from_the_next_lease_on(
    store: SqlBudgetStore, database: Database
) -> None:
    small = Account(id="key:a", usd=Decimal(1))
    large = Account(id="key:a", usd=Decimal(3))
    assert await store.lease(small, holder="h", want=some(9)) == some(1)
    assert await store.lease(small, holder="h", want=some(9)) == some()
    assert await store.lease(large, holder="h", want=some("1.5")) == some("1.5")
    assert await store.lease(small, holder="g", want=some(9)) == some()
    assert await store.lease(large, holder="g", want=some(9)) == some("0.5")


async def test_giving_back_where_nothing_is_held_makes_nothing(
    store: SqlBudgetStore,
) -> None:
    await store.give_back("key:x", holder="h", unused=some(1, 1))
    found = await store.spent("key:x")
    assert found == Spent(usd=Decimal(0), tokens=0, leased=some())


async def test_amounts_that_no_column_holds_are_held_as_the_largest(
    store: SqlBudgetStore,
) -> None:
    vast = Account(id="key:v", usd=Decimal("1E+999999"), tokens=10**30)
    given = await store.lease(vast, holder="h", want=some("4000000", 10**18))
    assert given == some("4000000", 10**18)
    await store.lease(vast, holder="h", want=some("4000000", 2**61))
    found = await store.spent("key:v")
    assert found.leased.usd == usd_of(MAX_PICO_USD)


async def test_several_accounts_are_told_at_once(
    store: SqlBudgetStore, database: Database
) -> None:
    await spend(database, "h", "key:7", "0.25", 9)
    await store.lease(A, holder="h", want=some(1, 1))
    names = ["key:a", *(f"key:{n}" for n in range(1200))]
    found = await store.all_spent(names)
    assert list(found) == names
    assert found["key:7"].usd == Decimal("0.25")
    assert found["key:a"].leased == some(1, 1)
    assert await store.all_spent([]) == {}


@pytest.mark.parametrize(
    ("usd", "whole"),
    [
        ("0", 0),
        ("0.000092", 92_000_000),
        ("1E-12", 1),
        ("1E-13", 1),
        ("1.0000000000001", 10**12 + 1),
        ("1E+2", 10**14),
    ],
)
def test_nothing_costs_less_than_it_does(usd: str, whole: int) -> None:
    assert pico(Decimal(usd)) == whole


def test_money_is_written_plainly() -> None:
    texts = [str(usd_of(pico(Decimal(t)))) for t in ("0", "0.50", "100", "5E+3")]
    assert texts == ["0", "0.5", "100", "5000"]
    assert pico_limit(Decimal("1E-13")) == 0


# Many holders, in any order.

AMOUNTS = st.integers(0, 60)


class Machine(RuleBasedStateMachine):
    """Compares with a model in whole numbers; 1 here is a pico-USD and a token."""

    fresh_url: ClassVar[Callable[[], str]]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.opened = Database.open(Machine.fresh_url())
        self.database = self.run_(self.opened.__aenter__())
        self.store = SqlBudgetStore(self.database)
        self.held: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.spent = [0, 0]
        self.limit = [100, 100]

    def run_(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run_(self.opened.__aexit__(None, None, None))
        self.loop.close()

    @property
    def account(self) -> Account:
        return Account(id="key:a", usd=usd_of(self.limit[0]), tokens=self.limit[1])

    def positive(self, side: int) -> int:
        return sum(max(0, held[side]) for held in self.held.values())

    @rule(holder=st.sampled_from("abc"), usd=AMOUNTS, tokens=AMOUNTS)
    def lease(self, holder: str, usd: int, tokens: int) -> None:
        want = Slice(usd=usd_of(usd), tokens=tokens)
        given = self.run_(self.store.lease(self.account, holder=holder, want=want))
        for side, (asked, got) in enumerate(
            ((usd, pico(given.usd)), (tokens, given.tokens))
        ):
            before = self.spent[side] + self.positive(side)
            self.held[holder][side] += got
            after = self.spent[side] + self.positive(side)
            assert 0 <= got <= asked
            # Never over the limit by a lease, and never less than there is.
            assert after <= max(before, self.limit[side])
            if got < asked:
                assert after >= self.limit[side]

    @rule(holder=st.sampled_from("abc"), usd=AMOUNTS, tokens=AMOUNTS)
    def fold(self, holder: str, usd: int, tokens: int) -> None:
        self.run_(spend(self.database, holder, "key:a", usd_of(usd), tokens))
        for side, cost in enumerate((usd, tokens)):
            self.held[holder][side] -= cost
            self.spent[side] += cost

    @rule(holder=st.sampled_from("abc"), part=st.floats(0, 1))
    def give_back(self, holder: str, part: float) -> None:
        unused = [int(max(0, held) * part) for held in self.held[holder]]
        slice_ = Slice(usd=usd_of(unused[0]), tokens=unused[1])
        self.run_(self.store.give_back("key:a", holder=holder, unused=slice_))
        for side in (0, 1):
            self.held[holder][side] -= unused[side]

    @rule(holder=st.sampled_from("abc"))
    def go(self, holder: str) -> None:
        self.run_(forget(self.database, holder))
        self.held.pop(holder, None)

    @rule(usd=st.integers(50, 150), tokens=st.integers(50, 150))
    def change_limit(self, usd: int, tokens: int) -> None:
        self.limit = [usd, tokens]

    @invariant()
    def what_stands_there_is_what_happened(self) -> None:
        found: Spent = self.run_(self.store.spent("key:a"))
        assert [pico(found.usd), found.tokens] == self.spent
        leased = [pico(found.leased.usd), found.leased.tokens]
        assert leased == [self.positive(0), self.positive(1)]


def test_any_order_of_leases_folds_and_ends_keeps_the_promise(
    fresh_url: Callable[[], str], counted: Rounds
) -> None:
    Machine.fresh_url = staticmethod(fresh_url)
    for number, _ in counted("budget-store-machine", 1, 20):
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=12,
                stateful_step_count=25,
                deadline=None,
                derandomize=number == 0,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


HAMMER = """
import asyncio, random, sys
from decimal import Decimal
from nestor.backends.sql.budget_store import SqlBudgetStore, charge
from nestor.backends.sql.database import Database
from nestor.model.routing import Charge
from nestor.ports.budget_store import Account, Slice

async def main(url, holder, seed):
    random.seed(seed)
    spent = 0
    async with Database.open(url, migrate=False) as database:
        store = SqlBudgetStore(database)
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(ACCOUNTS):
            account = Account(id=f"key:{number}", usd=Decimal("0.02"), tokens=20)
            while True:
                n = random.randint(1, 9)
                want = Slice(usd=Decimal(n) / 1000, tokens=n)
                given = await store.lease(account, holder=holder, want=want)
                assert given.usd * 1000 == given.tokens
                if not given.tokens:
                    break
                used = random.randint((given.tokens + 1) // 2, given.tokens)
                cost = Charge(account=account.id, usd=Decimal(used) / 1000, tokens=used)
                async with database.write() as connection:
                    await charge(database, connection, holder=holder, charges=[cost])
                spent += used
                rest = given.tokens - used
                unused = Slice(usd=Decimal(rest) / 1000, tokens=rest)
                await store.give_back(account.id, holder=holder, unused=unused)
    print(spent, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""
ACCOUNTS = 60


@pytest.mark.heavy
async def test_two_processes_at_once_never_spend_over_a_limit(
    store: SqlBudgetStore, database_url: str, seed: int
) -> None:
    code = HAMMER.replace("ACCOUNTS", str(ACCOUNTS))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, database_url, holder, f"{seed}{holder}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for holder in ("h1", "h2")
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        spent = []
        for child in children:
            out, _ = await asyncio.to_thread(child.communicate, timeout=120)
            assert child.returncode == 0
            spent.append(int(out))
    finally:
        for child in children:
            child.kill()
            child.communicate()
    accounts = [f"key:{number}" for number in range(ACCOUNTS)]
    found = await store.all_spent(accounts)
    assert sum(one.tokens for one in found.values()) == sum(spent)
    for one in found.values():
        assert one.usd == Decimal(one.tokens) / 1000
        # Where one held the last of it, both may have stopped before it was given back.
        assert 20 - 4 <= one.tokens <= 20
        assert one.leased == some()
    assert all(spent)
