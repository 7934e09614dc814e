"""Budgets in one process: what is reserved, settled, leased ahead and given back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from tests.servers.sqlite_lock import locked

from nestor.backends.sql.budget_store import SqlBudgetStore, charge
from nestor.backends.sql.database import Database
from nestor.coordinator import budgets as module
from nestor.coordinator.budgets import (
    ASK_AGAIN_S,
    IDLE_S,
    Budgets,
    Reservation,
    estimate,
)
from nestor.errors import BudgetExceeded, Unavailable
from nestor.model.routing import DEFAULT_MAX_TOKENS, Charge, Deployment, Kind, Side
from nestor.ports.budget_store import Account, Slice, Spent

D = Decimal
KEY = Account(id="key:k1", usd=D(5), tokens=100_000)
TASK = Account(id="task:t1", tokens=18)
NOBODY = Account(id="key:free")


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Watched(SqlBudgetStore):
    """The real one; counts what is asked, and lets a test hold leases up."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.leases: list[Slice] = []
        self.asked = 0
        self.hold: asyncio.Event | None = None

    async def lease(self, account: Account, *, holder: str, want: Slice) -> Slice:
        self.asked += 1
        self.leases.append(want)
        given = await super().lease(account, holder=holder, want=want)
        if self.hold is not None:
            await self.hold.wait()
        return given

    async def give_back(self, account_id: str, *, holder: str, unused: Slice) -> None:
        self.asked += 1
        await super().give_back(account_id, holder=holder, unused=unused)

    async def spent(self, account_id: str, *, holder: str | None = None) -> Spent:
        self.asked += 1
        return await super().spent(account_id, holder=holder)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path / 'sql' / 'nestor.db'}"
    (tmp_path / "sql").mkdir()
    async with Database.open(url) as database:
        yield database


@pytest.fixture
def store(database: Database) -> Watched:
    return Watched(database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def budgets(store: Watched, clock: Clock) -> AsyncIterator[Budgets]:
    async with AsyncExitStack() as stack:
        made = Budgets(store, "h1", clock=clock)
        stack.push_async_callback(made.close)
        yield made


@asynccontextmanager
async def away(tmp_path: Path, database: Database) -> AsyncIterator[None]:
    """The database's folder is not where it was, and nothing has it open."""
    await database._engine.dispose()
    folder = tmp_path / "sql"
    folder.rename(tmp_path / "elsewhere")
    try:
        yield
    finally:
        await database._engine.dispose()
        (tmp_path / "elsewhere").rename(folder)


@asynccontextmanager
async def quiet(budgets: Budgets) -> AsyncIterator[None]:
    """Then nothing runs in the background but the sweeper."""
    yield
    async with asyncio.timeout(10):
        while budgets._running - {budgets._sweeper}:
            await asyncio.sleep(0.005)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.02)


async def fold(database: Database, *charges: Charge, holder: str = "h1") -> None:
    async with database.write() as connection:
        await charge(database, connection, holder=holder, charges=charges)


def cost(reservation: Reservation) -> list[tuple[Decimal, int]]:
    return [(one.usd, one.tokens) for one in reservation.charges]


# What is reserved and charged.


async def test_a_call_is_charged_what_it_came_to(
    budgets: Budgets, store: Watched, database: Database
) -> None:
    for _ in range(10):
        reserved = await budgets.reserve([KEY], usd=D("0.01"), tokens=500)
        assert cost(reserved) == [(D("0.01"), 500)]
        charges = reserved.settle(D("0.000092"), 18)
        assert charges == (Charge(account=KEY.id, usd=D("0.000092"), tokens=18),)
        await fold(database, *charges)
    await budgets.close()
    assert await store.spent(KEY.id) == Spent(
        usd=D("0.00092"), tokens=180, leased=Slice()
    )


async def test_what_is_unknown_is_charged_as_reserved(budgets: Budgets) -> None:
    for usd, tokens, charged in (
        (None, None, (D("0.01"), 500)),
        (D(0), None, (D(0), 500)),
        (None, 0, (D("0.01"), 0)),
    ):
        reserved = await budgets.reserve([KEY], usd=D("0.01"), tokens=500)
        (one,) = reserved.settle(usd, tokens)
        assert (one.usd, one.tokens) == charged


async def test_what_is_unknown_is_gone(budgets: Budgets) -> None:
    for account, usd in (
        (Account(id="key:k", usd=D("0.03")), D("0.01")),
        (Account(id="key:t", tokens=30), None),
    ):
        for _ in range(3):
            (await budgets.reserve([account], usd=usd, tokens=10)).settle(None, None)
        with pytest.raises(BudgetExceeded):
            await budgets.reserve([account], usd=usd, tokens=10)


@pytest.mark.parametrize(
    ("usd", "tokens"),
    [
        (D(-1), -1),
        (D("1E+12"), 10**19),
        (D("1E+999999"), 10**400),
        (D("Infinity"), 2**63),
    ],
)
async def test_what_no_call_can_cost_is_charged_as_reserved(
    budgets: Budgets, database: Database, usd: Decimal, tokens: int
) -> None:
    reserved = await budgets.reserve([KEY], usd=D("0.01"), tokens=500)
    (one,) = reserved.settle(usd, tokens)
    assert (one.usd, one.tokens) == (D("0.01"), 500)
    await fold(database, one)


async def test_a_reservation_ends_once(budgets: Budgets, store: Watched) -> None:
    account = Account(id="key:k", tokens=100)
    for first, second in (
        ("settle", "settle"),
        ("settle", "release"),
        ("release", "settle"),
        ("release", "release"),
    ):
        reserved = await budgets.reserve([account], usd=None, tokens=10)
        ended: list[tuple[Charge, ...]] = []
        for how in (first, second, first):
            if how == "settle":
                ended.append(reserved.settle(None, 5))
            else:
                reserved.release()
        one = Charge(account="key:k", usd=D(0), tokens=5)
        expected = (one,) if first == "settle" else ()
        assert set(ended) <= {expected}
        assert reserved.settle(None, 99) == expected
    # 90 are left: two were settled with 5 each.
    assert await budgets.reserve([account], usd=None, tokens=90)
    with pytest.raises(BudgetExceeded):
        await budgets.reserve([account], usd=None, tokens=1)


async def test_what_was_released_may_be_spent_again(budgets: Budgets) -> None:
    for _ in range(50):
        reserved = await budgets.reserve([KEY], usd=D(5), tokens=100_000)
        reserved.release()
        assert reserved.settle(D(1), 1) == ()


async def test_accounts_without_a_limit_cost_nothing(
    budgets: Budgets, store: Watched
) -> None:
    for accounts in ([], [NOBODY], [NOBODY, Account(id="task:x")]):
        reserved = await budgets.reserve(accounts, usd=None, tokens=10**12)
        assert reserved.charges == ()
        assert reserved.settle(D(9), 9) == ()
        reserved.release()
    assert store.asked == 0
    assert budgets._held == {}


async def test_only_accounts_with_a_limit_are_charged(budgets: Budgets) -> None:
    task = Account(id="task:t9", usd=D(1))
    reserved = await budgets.reserve([NOBODY, KEY, task], usd=D("0.01"), tokens=10)
    assert [one.account for one in reserved.charges] == ["key:k1", "task:t9"]
    assert [one.account for one in reserved.settle(D(0), 1)] == ["key:k1", "task:t9"]


async def test_a_refusal_by_one_account_takes_nothing_of_the_other(
    budgets: Budgets, clock: Clock
) -> None:
    large = Account(id="key:l", tokens=100)
    small = Account(id="key:s", tokens=10)
    for _ in range(3):
        with pytest.raises(BudgetExceeded, match="key s"):
            await budgets.reserve([large, small], usd=None, tokens=60)
    assert await budgets.reserve([large], usd=None, tokens=100)


# The end of a budget.


async def test_a_key_is_never_given_what_is_not_left(
    budgets: Budgets, database: Database
) -> None:
    account = Account(id="key:k", usd=D("0.10"))
    for _ in range(4):
        reserved = await budgets.reserve([account], usd=D("0.025"), tokens=1)
        await fold(database, *reserved.settle(D("0.024"), 1))
    with pytest.raises(BudgetExceeded) as caught:
        await budgets.reserve([account], usd=D("0.025"), tokens=1)
    assert str(caught.value) == (
        "key k has 0.004 of 0.1 USD left, and this call may take up to 0.025: ask for"
        " a shorter answer (max_tokens)"
    )
    assert await budgets.reserve([account], usd=D("0.004"), tokens=1)
    with pytest.raises(BudgetExceeded) as caught:
        await budgets.reserve([account], usd=D(0), tokens=1)
    assert str(caught.value) == (
        "key k has spent 0.096 of 0.1 USD, 0.004 more are reserved by calls under way:"
        " it takes a key with a larger budget"
    )


async def test_a_call_larger_than_the_whole_budget_asks_no_database(
    budgets: Budgets, store: Watched
) -> None:
    account = Account(id="key:k", tokens=1000)
    with pytest.raises(BudgetExceeded) as caught:
        await budgets.reserve([account], usd=None, tokens=4130)
    assert str(caught.value) == (
        "key k has a budget of 1000 tokens, and this call may take up to 4130: ask for"
        " a shorter answer (max_tokens)"
    )
    assert store.asked == 0


async def test_a_dearer_call_is_charged_whole_and_the_account_is_refused(
    budgets: Budgets, store: Watched, database: Database, clock: Clock
) -> None:
    account = Account(id="key:k", tokens=100)
    reserved = await budgets.reserve([account], usd=None, tokens=90)
    (one,) = reserved.settle(None, 130)
    assert one.tokens == 130
    await fold(database, one)
    for _ in range(3):
        clock.seconds += ASK_AGAIN_S + 1
        with pytest.raises(BudgetExceeded, match="has used 130 of 100 tokens"):
            await budgets.reserve([account], usd=None, tokens=1)
    found = await store.spent(account.id)
    assert (found.tokens, found.leased) == (130, Slice())


async def test_a_dearer_call_is_paid_of_what_is_leased_next(
    budgets: Budgets, store: Watched, database: Database
) -> None:
    account = Account(id="key:k", tokens=1000)
    reserved = await budgets.reserve([account], usd=None, tokens=50)
    await fold(database, *reserved.settle(None, 400))
    taken = 400
    for _ in range(100):
        try:
            reserved = await budgets.reserve([account], usd=None, tokens=7)
        except BudgetExceeded:
            break
        taken += 7
        await fold(database, *reserved.settle(None, None))
    assert 1000 - 7 < taken <= 1000


@pytest.mark.parametrize(("limit", "allowed"), [(18, 1), (19, 2), (36, 2), (1, 1)])
async def test_a_tasks_last_call_gets_what_is_left_and_the_next_is_refused(
    budgets: Budgets, database: Database, clock: Clock, limit: int, allowed: int
) -> None:
    account = Account(id="task:t1", tokens=limit)
    for _ in range(allowed):
        reserved = await budgets.reserve([account], usd=None, tokens=5000)
        assert 0 < reserved.charges[0].tokens <= limit
        await fold(database, *reserved.settle(D(0), 18))
        clock.seconds += 100
    used = 18 * allowed
    for _ in range(2):
        with pytest.raises(BudgetExceeded) as caught:
            await budgets.reserve([account], usd=None, tokens=5000)
        assert str(caught.value) == f"task t1 has used {used} of {limit} tokens"
        clock.seconds += 100


async def test_a_task_in_usd_is_told_in_usd(budgets: Budgets) -> None:
    account = Account(id="task:t1", usd=D("0.000092"))
    reserved = await budgets.reserve([account], usd=D(1), tokens=1)
    reserved.settle(D("0.000092"), 18)
    with pytest.raises(BudgetExceeded) as caught:
        await budgets.reserve([account], usd=D(1), tokens=1)
    assert str(caught.value) == "task t1 has spent 0.000092 of 0.000092 USD"


async def test_only_one_call_of_a_task_gets_the_last_of_it(budgets: Budgets) -> None:
    account = Account(id="task:t1", tokens=100)
    asked = (budgets.reserve([account], usd=None, tokens=80) for _ in range(20))
    said = await asyncio.gather(*asked, return_exceptions=True)
    given = [one.charges[0].tokens for one in said if isinstance(one, Reservation)]
    assert sorted(given) == [20, 80]
    refused = [one for one in said if isinstance(one, BudgetExceeded)]
    assert len(refused) == 18
    assert "100 more are reserved by calls under way" in str(refused[-1])


async def test_an_unknown_price_refuses_a_key_and_not_a_task(
    budgets: Budgets,
) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        await budgets.reserve([KEY], usd=None, tokens=1, model="gpt-x")
    assert str(caught.value) == (
        "the price of gpt-x is not configured, so a budget in USD cannot be held: key"
        " k1 may use models whose price_input and price_output are set"
    )
    task = Account(id="task:t1", usd=D("0.01"))
    reserved = await budgets.reserve([task], usd=None, tokens=9)
    assert cost(reserved) == [(D(0), 9)]
    (one,) = reserved.settle(D("0.01"), 9)
    assert one.usd == D("0.01")
    with pytest.raises(BudgetExceeded, match=r"has spent 0\.01 of 0\.01 USD"):
        await budgets.reserve([task], usd=None, tokens=9)
    tokens_alone = Account(id="key:k2", tokens=10)
    assert await budgets.reserve([tokens_alone], usd=None, tokens=9)


async def test_a_new_limit_is_seen_at_once(
    budgets: Budgets, database: Database
) -> None:
    small = Account(id="key:k", tokens=10)
    large = Account(id="key:k", tokens=30)
    reserved = await budgets.reserve([small], usd=None, tokens=10)
    await fold(database, *reserved.settle(None, None))
    with pytest.raises(BudgetExceeded, match="of 10 tokens"):
        await budgets.reserve([small], usd=None, tokens=10)
    assert await budgets.reserve([large], usd=None, tokens=20)
    with pytest.raises(BudgetExceeded, match="of 30 tokens"):
        await budgets.reserve([large], usd=None, tokens=1)


# Leases.


async def test_most_calls_ask_no_database(
    budgets: Budgets, store: Watched, database: Database
) -> None:
    calls = 2000
    for number in range(calls):
        reserved = await budgets.reserve([KEY], usd=D("0.001"), tokens=20)
        charges = reserved.settle(D("0.001"), 20)
        if number % 10 == 0:
            await asyncio.sleep(0.002)  # a server does other things, too
        await fold(database, *charges) if number % 100 == 0 else None
    # 2 USD are 20 slices, topped up at the half.
    assert len(store.leases) < 60


async def test_a_call_whose_slice_suffices_never_waits(
    budgets: Budgets, store: Watched
) -> None:
    await budgets.reserve([KEY], usd=D("0.01"), tokens=10)
    async with quiet(budgets):
        pass
    store.hold = asyncio.Event()
    for _ in range(8):  # below the half: a lease is under way, and hangs
        reserving = budgets.reserve([KEY], usd=D("0.01"), tokens=10)
        with pytest.raises(StopIteration):
            reserving.send(None)  # it would give a future back if it waited
    await asyncio.sleep(0.05)
    assert len(store.leases) == 2
    store.hold.set()


async def test_many_that_wait_make_few_leases(budgets: Budgets, store: Watched) -> None:
    asked = (budgets.reserve([KEY], usd=D("0.02"), tokens=10) for _ in range(200))
    assert len(await asyncio.gather(*asked)) == 200
    assert len(store.leases) <= 3


async def test_who_stops_waiting_loses_no_lease(
    budgets: Budgets, store: Watched
) -> None:
    account = Account(id="key:k", tokens=100)
    store.hold = asyncio.Event()
    waiting = asyncio.create_task(budgets.reserve([account], usd=None, tokens=60))
    await asyncio.sleep(0.2)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    store.hold.set()
    async with quiet(budgets):
        pass
    assert await budgets.reserve([account], usd=None, tokens=100)


async def test_a_refused_account_asks_the_database_once_a_second(
    budgets: Budgets, store: Watched, clock: Clock
) -> None:
    account = Account(id="key:k", tokens=10)
    held = await budgets.reserve([account], usd=None, tokens=10)
    leases = len(store.leases)
    for _ in range(500):
        with pytest.raises(BudgetExceeded):
            await budgets.reserve([account], usd=None, tokens=1)
    assert len(store.leases) <= leases + 1
    clock.seconds += ASK_AGAIN_S
    with pytest.raises(BudgetExceeded):
        await budgets.reserve([account], usd=None, tokens=1)
    assert len(store.leases) <= leases + 2
    held.release()
    assert await budgets.reserve([account], usd=None, tokens=10)


async def test_what_another_process_gives_back_is_found(
    budgets: Budgets, store: Watched, clock: Clock
) -> None:
    account = Account(id="key:k", tokens=10)
    await store.lease(account, holder="h2", want=Slice(tokens=10))
    with pytest.raises(BudgetExceeded):
        await budgets.reserve([account], usd=None, tokens=4)
    await store.give_back("key:k", holder="h2", unused=Slice(tokens=5))
    clock.seconds += ASK_AGAIN_S
    assert await budgets.reserve([account], usd=None, tokens=4)


# Giving back.


async def test_an_idle_slice_is_given_back_and_the_account_forgotten(
    store: Watched, clock: Clock, database: Database
) -> None:
    budgets = Budgets(store, "h1", clock=clock, idle_s=0.6)
    reserved = await budgets.reserve([KEY], usd=D("0.01"), tokens=100)
    open_one = await budgets.reserve([TASK], usd=None, tokens=5)
    await fold(database, *reserved.settle(D("0.01"), 90))
    assert (await store.spent(KEY.id)).leased.usd > 0
    await asyncio.sleep(0.3)  # time stands still: nothing is idle
    assert (await store.spent(KEY.id)).leased.usd > 0
    clock.seconds += IDLE_S

    async def only_the_open_one_is_held() -> bool:
        mine, other = [await store.spent(one.id) for one in (TASK, KEY)]
        return (mine.leased, other.leased) == (Slice(tokens=5), Slice())

    await until(only_the_open_one_is_held)
    assert await store.spent(KEY.id) == Spent(usd=D("0.01"), tokens=90, leased=Slice())
    open_one.release()

    async def nothing_is_held() -> bool:
        leased = (await store.spent(TASK.id)).leased
        return leased == Slice() and budgets._sweeper is None

    await until(nothing_is_held)
    assert budgets._held == {}
    again = await budgets.reserve([KEY], usd=D("4.99"), tokens=100)
    assert cost(again) == [(D("4.99"), 100)]
    await budgets.close()
    assert IDLE_S == 60


async def test_closing_gives_back_all_but_what_calls_reserved(
    budgets: Budgets, store: Watched, database: Database
) -> None:
    reserved = await budgets.reserve([KEY], usd=D("0.02"), tokens=100)
    await budgets.reserve([TASK], usd=None, tokens=5)
    async with quiet(budgets):
        pass
    await budgets.close()
    assert (await store.spent(KEY.id)).leased == Slice(usd=D("0.02"), tokens=100)
    assert (await store.spent(TASK.id)).leased == Slice(tokens=5)
    await fold(database, *reserved.settle(D("0.01"), 60))
    await budgets.close()
    found = await store.spent(KEY.id)
    assert found == Spent(usd=D("0.01"), tokens=60, leased=Slice())


async def test_after_a_crowd_the_surplus_is_given_back(
    store: Watched, clock: Clock
) -> None:
    budgets = Budgets(store, "h1", clock=clock, idle_s=0.6)
    crowd = [await budgets.reserve([KEY], usd=D("0.1"), tokens=10) for _ in range(45)]
    for one in crowd[1:]:
        one.release()

    async def is_small() -> bool:
        return (await store.spent(KEY.id)).leased.usd < D("0.4")

    async with asyncio.timeout(10):
        while not await is_small():
            await asyncio.sleep(0.05)
    await budgets.close()


async def test_what_a_refused_call_could_not_use_is_left_to_others(
    budgets: Budgets, store: Watched
) -> None:
    account = Account(id="key:k", tokens=1000)
    await store.lease(account, holder="h2", want=Slice(tokens=300))
    with pytest.raises(BudgetExceeded):
        await budgets.reserve([account], usd=None, tokens=800)
    async with quiet(budgets):
        pass
    assert (await store.spent("key:k")).leased.tokens <= 300 + 20


async def test_what_is_owed_is_forgotten_with_the_account(
    store: Watched, clock: Clock, database: Database
) -> None:
    budgets = Budgets(store, "h1", clock=clock, idle_s=0.3)
    account = Account(id="key:k", tokens=100)
    reserved = await budgets.reserve([account], usd=None, tokens=10)
    await fold(database, *reserved.settle(D("0.5"), 60))
    clock.seconds += IDLE_S

    async def is_over() -> bool:
        return budgets._sweeper is None

    await until(is_over)
    assert await store.lease(account, holder="h1", want=Slice(tokens=99)) == Slice(
        tokens=40
    )
    await budgets.close()


# The database is away.


async def test_without_the_database_what_is_held_is_spent_and_no_more(
    budgets: Budgets,
    store: Watched,
    database: Database,
    clock: Clock,
    tmp_path: Path,
) -> None:
    account = Account(id="key:k", tokens=1000)
    first = await budgets.reserve([account], usd=None, tokens=10)
    async with quiet(budgets):
        pass
    held = (await store.spent("key:k")).leased.tokens
    taken = 10
    async with away(tmp_path, database):
        while taken + 3 <= held:
            await budgets.reserve([account], usd=None, tokens=3)
            taken += 3
            await asyncio.sleep(0.02)  # more is asked for, in vain
        with pytest.raises(Unavailable, match="budget of key k cannot be read"):
            await budgets.reserve([account], usd=None, tokens=3)
        asked = store.asked
        for _ in range(100):
            with pytest.raises(Unavailable):
                await budgets.reserve([account], usd=None, tokens=held)
        assert store.asked == asked, "each call asked a database that is away"
        first.release()
        assert await budgets.reserve([account], usd=None, tokens=10)
    assert 0 < held - 10 < 100
    clock.seconds += ASK_AGAIN_S
    assert await budgets.reserve([account], usd=None, tokens=900)


async def test_an_idle_slice_is_kept_while_the_database_is_away(
    store: Watched, database: Database, clock: Clock, tmp_path: Path
) -> None:
    budgets = Budgets(store, "h1", clock=clock, idle_s=0.3)
    account = Account(id="key:k", tokens=1000)
    (await budgets.reserve([account], usd=None, tokens=10)).release()
    async with quiet(budgets):
        pass
    async with away(tmp_path, database):
        clock.seconds += 10 * IDLE_S
        asked = store.asked
        async with asyncio.timeout(10):
            while store.asked < asked + 3:
                await asyncio.sleep(0.02)
        assert await budgets.reserve([account], usd=None, tokens=20)
    await budgets.close()


async def test_a_database_that_hangs_holds_a_call_up_shortly(
    budgets: Budgets, store: Watched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.3)
    path = tmp_path / "sql" / "nestor.db"
    async with locked(path), asyncio.timeout(5):
        with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s"):
            await budgets.reserve([KEY], usd=D(1), tokens=1)
    async with quiet(budgets):
        pass
    # The lease came late, and is not lost.
    assert await budgets.reserve([KEY], usd=D(1), tokens=1)


# Estimates.


def deployment(**more: object) -> Deployment:
    return Deployment(
        name="m",
        side=Side.REMOTE,
        model="m",
        base_url="http://m",
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("given", "size", "max_tokens", "found"),
    [
        ({"price_input": D(3), "price_output": D(15)}, 300, 100, (D("0.0018"), 200)),
        (
            {"price_input": D(3), "price_output": D(15), "max_output_tokens": 10},
            301,
            None,
            (D("0.000453"), 111),
        ),
        ({}, 3, None, (None, 1 + DEFAULT_MAX_TOKENS)),
        ({"price_input": D(1)}, 3, 1, (None, 2)),
        ({"price_output": D(1)}, 3, 1, (None, 2)),
        ({"price_input": D(1), "kind": Kind.EMBEDDINGS}, 300, None, (D("0.0001"), 100)),
        ({"price_input": D(0), "price_output": D(0)}, 3, 1, (D(0), 2)),
        ({"replayed": True}, 3, 1, (D(0), 2)),
        (
            {"price_input": D(3), "price_cache_write": D(6), "price_output": D(0)},
            3000,
            1,
            (D("0.006"), 1001),
        ),
        (
            {"price_input": D(3), "price_cache_write": D(0), "price_output": D(0)},
            3000,
            1,
            (D("0.003"), 1001),
        ),
    ],
)
def test_an_estimate_errs_high_and_says_when_it_does_not_know(
    given: dict[str, object],
    size: int,
    max_tokens: int | None,
    found: tuple[Decimal | None, int],
) -> None:
    assert estimate(deployment(**given), size, max_tokens) == found
