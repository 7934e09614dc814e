"""What ``ports.key_store.KeyStore`` promises, on real SQLite and real PostgreSQL."""

import asyncio
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.contracts.outside import Outside

from nestor.backends.sql import key_store, lookups
from nestor.backends.sql.database import Database
from nestor.backends.sql.key_store import (
    ASK_AGAIN_S,
    BELIEVED_S,
    CACHE_S,
    NOTE_EVERY_S,
    SqlKeyStore,
    hash_of,
)
from nestor.backends.sql.lookups import LOOKUPS
from nestor.errors import InvalidInput, NotFound, Unavailable
from nestor.model.access import KeyLimits


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Day:
    """The time of day, as a test sets it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class Counted(Database):
    """The real one; counts who reads, and lets a test hold the readers."""

    reads = at_once = most_at_once = 0
    hold: asyncio.Event | None = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        self.reads += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hold is not None:
                await self.hold.wait()
            async with super().read() as connection:
                yield connection
        finally:
            self.at_once -= 1


@pytest.fixture
async def counted(database_url: str) -> AsyncIterator[Counted]:
    async with Counted.open(database_url) as database:
        yield database


def guess() -> str:
    """Of the right form, and nobody's."""
    return "nst_" + secrets.token_urlsafe(32)


async def until(condition: object, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def last_used(store: SqlKeyStore) -> datetime | None:
    """Of the only key."""
    (key,) = await store.all()
    return key.last_used_at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> SqlKeyStore:
    return SqlKeyStore(database, monotonic=clock)


async def test_a_key_opens_what_its_scopes_say(store: SqlKeyStore) -> None:
    key, secret = await store.create("ci", ["submit", "read", "read"])
    principal = await store.check(secret)
    assert principal is not None
    assert (principal.key_id, principal.scopes) == (
        key.id,
        frozenset({"submit", "read"}),
    )
    (listed,) = await store.all()
    assert listed.last_used_at is not None
    assert msgspec.structs.replace(listed, last_used_at=None) == key
    assert secret.startswith("nst_")
    assert len(secret) == 47  # 32 random bytes


async def test_a_tasks_key_names_its_task(store: SqlKeyStore) -> None:
    _, secret = await store.create("agent", ["task:P1-fix.the_thing", "model"])
    principal = await store.check(secret)
    assert principal is not None
    assert principal.task_id == "P1-fix.the_thing"


@pytest.mark.parametrize(
    "scopes",
    [
        [],
        ["root"],
        ["Admin"],
        ["task:"],
        ["task:a b"],
        ["task:" + "x" * 65],
        ["task:a", "admin"],
        ["task:a", "task:b"],
        ["read", ""],
    ],
)
async def test_scopes_nobody_knows_are_refused(
    store: SqlKeyStore, scopes: list[str]
) -> None:
    with pytest.raises(InvalidInput, match="scopes"):
        await store.create("x", scopes)
    assert await store.all() == []


async def test_a_wrong_scope_is_named_by_its_place_and_shown_cut(
    store: SqlKeyStore,
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await store.create("x", ["read", "b" * 10_000])
    (error,) = caught.value.errors
    assert error.field == "scopes.1"
    assert "admin, approve, metrics, model, read, service, submit" in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize(
    "name",
    ["", " ", "x" * 201, "a\nb", "a\0", "\x1b[31mred", "\u202egnitset", "\ud800"],
)
async def test_a_key_needs_a_name_that_is_plain_text(
    store: SqlKeyStore, name: str
) -> None:
    with pytest.raises(InvalidInput, match="name"):
        await store.create(name, ["read"])
    assert await store.all() == []


async def test_a_name_may_be_in_any_script(store: SqlKeyStore) -> None:
    for name in ("Größe 1", "a\u200db", "鍵", "🔑"):
        assert (await store.create(name, ["read"]))[0].name == name


async def test_the_secret_is_nowhere_in_the_files(
    store: SqlKeyStore, outside: Outside
) -> None:
    _, secret = await store.create("ci", ["read"])
    await store.check(secret)
    files = outside.written()
    assert any(hash_of(secret).encode() in one for one in files)
    assert all(secret.encode() not in one for one in files)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "nst_",
        "' OR 1=1--",
        "%",
        "nst_" + "x" * 1_000_000,
        "\ud800",
        "é" * 10,
        "\x00",
    ],
)
async def test_a_secret_nobody_was_given_opens_nothing(
    store: SqlKeyStore, secret: str
) -> None:
    await store.create("ci", ["admin"])
    assert await store.check(secret) is None


async def test_a3_what_has_not_the_form_of_a_key_costs_no_lookup(
    counted: Counted,
) -> None:
    store = SqlKeyStore(counted)
    _, secret = await store.create("ci", ["admin"])
    for wrong in (
        "",
        "nst_",
        "' OR 1=1--",
        "nst_' OR '1'='1" + "x" * 30,
        secret + "x",
        secret + " ",
        secret + "\n",
        " " + secret,
        secret[:-1],
        secret.upper(),
        secret.removeprefix("nst_"),
        "nst_" + "x" * 42 + "=",
        "nst_" + "x" * 42 + "é",
        "nst_" + "x" * 42 + "\u0661",
        "nst_" + "x" * 42 + "\ud800",
        "nst_" + "x" * 42 + "\0",
        "nst_" + "x" * 1_000_000,
        "\ud800" * 47,
        "%" * 47,
    ):
        assert await store.check(wrong) is None, wrong[:60]
    assert counted.reads == 0
    assert await store.check(secret)
    assert counted.reads == 1


async def test_a3_without_a_database_a_wrong_form_is_still_nobodys(
    database: Database, outside: Outside
) -> None:
    store = SqlKeyStore(database)
    async with outside.away(database):
        began = time.monotonic()
        assert await store.check("' OR 1=1--") is None
        assert time.monotonic() - began < 5
        with pytest.raises(Unavailable):
            await store.check(guess())


async def test_a3_guesses_neither_crowd_the_database_nor_push_out_what_is_known(
    counted: Counted, clock: Clock
) -> None:
    store = SqlKeyStore(counted, monotonic=clock)
    _, secret = await store.create("ci", ["read"])
    assert await store.check(secret)
    guesses = (store.check(guess()) for _ in range(2_000))
    found = await asyncio.gather(*guesses, return_exceptions=True)
    # On a slow machine the last of them are told to come back.
    assert {type(one) for one in found} <= {type(None), Unavailable}
    assert counted.most_at_once <= LOOKUPS
    reads = counted.reads
    assert await store.check(secret)
    assert counted.reads == reads, "the guesses pushed a key out of the cache"


async def test_a3_a_flood_of_guesses_does_not_hold_up_a_key_that_was_good_before(
    counted: Counted, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "LOOKUP_WAIT_S", 0.5)
    store = SqlKeyStore(counted, monotonic=clock)
    _, secret = await store.create("ci", ["read"])
    assert await store.check(secret)
    counted.hold = asyncio.Event()  # as slow as can be
    flood = [asyncio.create_task(store.check(guess())) for _ in range(50)]
    await asyncio.sleep(0)
    clock.seconds = CACHE_S + 1  # looked up again
    good = asyncio.create_task(store.check(secret))
    told = await asyncio.gather(*flood[LOOKUPS:], return_exceptions=True)
    # Who cannot be looked up is told so, and waits no longer than that.
    assert {type(one) for one in told} == {Unavailable}
    assert counted.at_once == LOOKUPS + 1
    counted.hold.set()
    assert await good is not None
    assert await asyncio.gather(*flood[:LOOKUPS]) == [None] * LOOKUPS


async def test_many_requests_of_one_key_look_it_up_once(counted: Counted) -> None:
    store = SqlKeyStore(counted)
    _, secret = await store.create("ci", ["read"])
    found = await asyncio.gather(*(store.check(secret) for _ in range(200)))
    assert all(found)
    assert counted.reads <= LOOKUPS


async def test_a_revoked_key_is_refused_at_once(store: SqlKeyStore) -> None:
    key, secret = await store.create("ci", ["read"])
    other, other_secret = await store.create("other", ["read"])
    assert await store.check(secret)
    await store.revoke(key.id)
    assert await store.check(secret) is None
    assert await store.check(other_secret)
    revoked = {one.id: one.revoked_at for one in await store.all()}
    assert revoked[key.id] is not None
    assert revoked[other.id] is None
    await store.revoke(key.id)
    assert {one.id: one.revoked_at for one in await store.all()} == revoked
    with pytest.raises(NotFound):
        await store.revoke("nobody")


async def test_a_task_that_ended_takes_its_keys_along(store: SqlKeyStore) -> None:
    _, mine = await store.create("a", ["task:a1"])
    _, also = await store.create("a", ["task:a1", "model"])
    _, longer = await store.create("b", ["task:a1x"])
    _, other_case = await store.create("c", ["task:A1"])
    for secret in (mine, also, longer, other_case):
        assert await store.check(secret)
    await store.revoke_scope("task:a1")
    assert [await store.check(one) for one in (mine, also)] == [None, None]
    assert all([await store.check(one) for one in (longer, other_case)])
    await store.revoke_scope("task:nobody")


async def test_another_process_sees_a_revocation_within_the_caches_time(
    store: SqlKeyStore, database: Database, clock: Clock
) -> None:
    key, secret = await store.create("ci", ["read"])
    assert await store.check(secret)
    await SqlKeyStore(database).revoke(key.id)
    clock.seconds = CACHE_S + 0.01
    assert await store.check(secret) is None
    assert CACHE_S <= 2.0


async def test_a_check_during_a_revocation_does_not_outlive_it(
    store: SqlKeyStore,
) -> None:
    for _ in range(10):
        key, secret = await store.create("ci", ["read"])
        await asyncio.gather(
            *[store.check(secret) for _ in range(4)], store.revoke(key.id)
        )
        assert await store.check(secret) is None


async def test_keys_are_listed_newest_first(store: SqlKeyStore) -> None:
    for name in "abc":
        await store.create(name, ["read"])
    assert [one.name for one in await store.all()] == ["c", "b", "a"]


# When a key was last used.


async def test_the_last_use_is_shown_at_once_and_to_others_after_close(
    database: Database,
) -> None:
    day = Day()
    store, other = SqlKeyStore(database, now=day), SqlKeyStore(database)
    _, secret = await store.create("ci", ["read"])
    assert await last_used(store) is None
    day.now += timedelta(minutes=5)
    assert await store.check(secret)
    assert await store.check(guess()) is None
    assert await last_used(store) == day.now
    assert await last_used(other) is None, "a use was written while somebody waited"
    await store.close()
    assert await last_used(other) == day.now
    await store.close()


async def test_the_last_use_is_written_in_the_background(database: Database) -> None:
    store = SqlKeyStore(database, note_every_s=0.05)
    other = SqlKeyStore(database)
    _, secret = await store.create("ci", ["read"])
    for _ in range(3):  # the writer ends when there is nothing, and begins again
        before = await last_used(other)
        assert await store.check(secret)

        async def written(before: datetime | None = before) -> bool:
            return await last_used(other) not in {None, before}

        await until(written)
    assert NOTE_EVERY_S == 60
    await store.close()


async def test_uses_of_many_keys_are_written_in_one_transaction(
    database: Database,
) -> None:
    store = SqlKeyStore(database)
    made = [await store.create(f"k{n}", ["read"]) for n in range(20)]
    assert all([await store.check(secret) for _, secret in made[1:]])
    changes = 0

    class Watched(Database):
        @asynccontextmanager
        async def write(self) -> AsyncIterator[AsyncConnection]:
            nonlocal changes
            changes += 1
            async with super().write() as connection:
                yield connection

    async with Watched.open(database.url) as watched:
        writer = SqlKeyStore(watched)
        assert all([await writer.check(secret) for _, secret in made[1:]])
        await writer.close()
    found = {key.name: key.last_used_at for key in await SqlKeyStore(database).all()}
    assert found.pop("k0") is None
    assert all(found.values())
    assert changes == 1
    await store.close()


async def test_an_older_use_never_replaces_a_later_one(database: Database) -> None:
    early, late = Day(), Day()
    late.now += timedelta(hours=1)
    first = SqlKeyStore(database, now=early)
    second = SqlKeyStore(database, now=late)
    _, secret = await first.create("ci", ["read"])
    assert await first.check(secret)
    assert await second.check(secret)
    await second.close()
    await first.close()
    assert await last_used(SqlKeyStore(database)) == late.now


async def test_a_clock_that_is_set_back_does_not_move_the_last_use_back(
    database: Database,
) -> None:
    day = Day()
    used = day.now
    store = SqlKeyStore(database, now=day)
    _, secret = await store.create("ci", ["read"])
    assert await store.check(secret)
    day.now -= timedelta(hours=3)
    assert await store.check(secret)
    assert await last_used(store) == used
    await store.close()


async def test_a_locked_database_delays_the_note_and_no_request(
    database: Database, outside: Outside
) -> None:
    store = SqlKeyStore(database, note_every_s=0.01)
    _, secret = await store.create("ci", ["read"])
    async with outside.writing():
        began = time.monotonic()
        for _ in range(100):
            assert await store.check(secret)
            await asyncio.sleep(0.005)
        assert time.monotonic() - began < 10
        assert await last_used(SqlKeyStore(database)) is None

    async def written() -> bool:
        return await last_used(SqlKeyStore(database)) is not None

    await until(written)
    await store.close()


async def test_what_cannot_be_written_is_kept_tried_again_and_said_once(
    database: Database, outside: Outside, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqlKeyStore(database, note_every_s=0.02)
    _, secret = await store.create("ci", ["read"])
    async with outside.refusing("api_key"):
        assert await store.check(secret)
        await asyncio.sleep(0.5)  # many attempts
        assert await last_used(store) is not None

    async def written() -> bool:
        return await last_used(SqlKeyStore(database)) is not None

    await until(written)
    await store.close()
    told = capsys.readouterr()
    assert (told.out + told.err).count("key_uses_not_written") == 1


async def test_closing_over_a_database_that_refuses_does_not_raise(
    database: Database, outside: Outside
) -> None:
    store = SqlKeyStore(database)
    _, secret = await store.create("ci", ["read"])
    assert await store.check(secret)
    await outside.run("ALTER TABLE api_key RENAME TO gone")
    await store.close()
    await outside.run("ALTER TABLE gone RENAME TO api_key")
    assert await store.check(secret), "a request that is still running"


# What a key may spend.


async def test_a_keys_limits_are_kept_listed_and_carried(
    store: SqlKeyStore, database: Database
) -> None:
    limits = KeyLimits(usd=Decimal("5.50"), tokens=1000, rpm=60, tpm=500)
    key, secret = await store.create("a", ["model"], limits)
    assert key.limits == limits
    assert str(key.limits.usd) == "5.5"
    for one in (store, SqlKeyStore(database)):
        principal = await one.check(secret)
        assert principal is not None
        assert principal.limits == limits
        assert [listed.limits for listed in await one.all()] == [limits]
        await one.close()


async def test_a_key_without_limits_has_none(store: SqlKeyStore) -> None:
    for limits in (None, KeyLimits()):
        key, secret = await store.create("a", ["model"], limits)
        assert key.limits is None
        principal = await store.check(secret)
        assert principal is not None
        assert principal.limits is None
    _, secret = await store.create("t", ["task:a", "model"], KeyLimits())
    assert await store.check(secret)


@pytest.mark.parametrize(
    ("limits", "fields"),
    [
        (KeyLimits(usd=Decimal(0)), ["limits.usd"]),
        (KeyLimits(usd=Decimal(-1)), ["limits.usd"]),
        (KeyLimits(usd=Decimal("NaN")), ["limits.usd"]),
        (KeyLimits(usd=Decimal("sNaN")), ["limits.usd"]),
        (KeyLimits(usd=Decimal("Infinity")), ["limits.usd"]),
        (KeyLimits(usd=Decimal("1E-13")), ["limits.usd"]),
        (KeyLimits(usd=Decimal("1E+999999")), ["limits.usd"]),
        (KeyLimits(tokens=0, rpm=-1), ["limits.tokens", "limits.rpm"]),
        (KeyLimits(tpm=10**18), ["limits.tpm"]),
    ],
)
async def test_a_limit_that_is_none_is_refused_by_its_name(
    store: SqlKeyStore, limits: KeyLimits, fields: list[str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await store.create("x", ["model"], limits)
    assert [error.field for error in caught.value.errors] == fields
    assert await store.all() == []


async def test_a_tasks_key_has_no_limits_of_its_own(store: SqlKeyStore) -> None:
    with pytest.raises(InvalidInput, match="limits: a task's key has none"):
        await store.create("x", ["task:a", "model"], KeyLimits(rpm=1))


# The database is away.


async def test_a_key_that_was_good_is_good_for_a_while_without_the_database(
    counted: Counted, outside: Outside, clock: Clock
) -> None:
    database = counted
    store = SqlKeyStore(database, monotonic=clock)
    limits = KeyLimits(rpm=60)
    _, secret = await store.create("ci", ["read"], limits)
    _, never_used = await store.create("new", ["read"])
    key, revoked = await store.create("old", ["read"])
    good = await store.check(secret)
    assert good is not None
    assert await store.check(revoked)
    await store.revoke(key.id)
    async with outside.away(database):
        for clock.seconds in (CACHE_S + 1, 60, BELIEVED_S - 1):
            assert await store.check(secret) == good
            for other in (never_used, revoked, guess()):
                with pytest.raises(Unavailable):
                    await store.check(other)
        clock.seconds = BELIEVED_S
        with pytest.raises(Unavailable):
            await store.check(secret)
    assert await store.check(secret) == good
    assert await store.check(never_used)
    assert await store.check(revoked) is None
    assert BELIEVED_S == 600
    await store.close()


async def test_without_the_database_good_keys_cost_one_look_a_second(
    counted: Counted, outside: Outside, clock: Clock
) -> None:
    database = counted
    store = SqlKeyStore(database, monotonic=clock)
    secrets = [(await store.create(str(n), ["read"]))[1] for n in range(20)]
    assert all([await store.check(secret) for secret in secrets])
    async with outside.away(database):
        clock.seconds = CACHE_S + 1
        assert await store.check(secrets[0])
        reads = database.reads
        for _ in range(10):
            assert all([await store.check(secret) for secret in secrets])
        assert database.reads == reads
        clock.seconds += ASK_AGAIN_S
        assert await store.check(secrets[0])
        assert database.reads == reads + 1
    await store.close()


async def test_a_key_revoked_elsewhere_is_refused_once_the_database_is_back(
    counted: Counted, outside: Outside, clock: Clock
) -> None:
    database = counted
    store = SqlKeyStore(database, monotonic=clock)
    key, secret = await store.create("ci", ["read"])
    assert await store.check(secret)
    clock.seconds = CACHE_S + 1
    async with outside.away(database):
        assert await store.check(secret)
        async with Database.open(outside.elsewhere_url) as theirs:
            await SqlKeyStore(theirs).revoke(key.id)
        assert await store.check(secret)
    clock.seconds += ASK_AGAIN_S
    assert await store.check(secret) is None
    assert await store.check(secret) is None
    await store.close()


@pytest.mark.parametrize("how", ["key", "scope"])
async def test_a_key_that_could_not_be_revoked_here_is_not_believed(
    counted: Counted, outside: Outside, clock: Clock, how: str
) -> None:
    database = counted
    store = SqlKeyStore(database, monotonic=clock)
    key, secret = await store.create("ci", ["task:a"])
    _, other = await store.create("other", ["read"])
    assert await store.check(secret)
    assert await store.check(other)
    async with outside.away(database):
        revoking = {"key": store.revoke, "scope": store.revoke_scope}[how]
        with pytest.raises(Unavailable):
            await revoking({"key": key.id, "scope": "task:a"}[how])
        with pytest.raises(Unavailable):
            await store.check(secret)
        assert await store.check(other)
    await store.close()


async def test_a_database_that_hangs_holds_a_good_key_up_for_a_second_at_most(
    counted: Counted, clock: Clock
) -> None:
    store = SqlKeyStore(counted)
    keys = [await store.create(str(n), ["read"]) for n in range(10)]
    for _, secret in keys:
        assert await store.check(secret)
    await asyncio.sleep(CACHE_S)
    counted.hold = asyncio.Event()
    for attempt in range(3):
        began = time.monotonic()
        found = await asyncio.gather(*(store.check(secret) for _, secret in keys))
        assert all(found)
        # Waited for once; who comes while that still hangs is not held up.
        assert time.monotonic() - began < (4 if attempt == 0 else 0.9)
    assert counted.at_once <= LOOKUPS
    await SqlKeyStore(await _another(counted)).revoke(keys[0][0].id)
    counted.hold.set()

    async def is_refused() -> bool:
        return await store.check(keys[0][1]) is None

    await until(is_refused)
    await store.close()


async def _another(database: Database) -> Database:
    """The same, not counted and not held."""
    return Database(database._engine, database.url)


async def test_a_locked_file_is_no_outage_for_keys(sqlite_url: str) -> None:
    """Another program has the file to itself: SQLite waits for it for long."""
    async with Database.open(sqlite_url) as database:
        await _checked_while_locked(
            database, Path(sqlite_url.removeprefix("sqlite:///"))
        )


async def _checked_while_locked(database: Database, file: Path) -> None:
    store = SqlKeyStore(database)
    _, secret = await store.create("ci", ["read"])
    assert await store.check(secret)
    await database._engine.dispose()
    with closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
        await asyncio.sleep(CACHE_S)
        began = time.monotonic()
        for _ in range(20):
            assert await store.check(secret)
        assert time.monotonic() - began < 5
    await store.close()


async def test_a_use_without_the_database_is_noted_and_written_later(
    counted: Counted, outside: Outside
) -> None:
    database = counted
    day = Day()
    store = SqlKeyStore(database, now=day, note_every_s=0.05)
    _, secret = await store.create("ci", ["read"])
    assert await store.check(secret)

    async def written() -> bool:
        return await last_used(SqlKeyStore(database)) == day.now

    await until(written)
    async with outside.away(database):
        day.now += timedelta(minutes=3)
        assert await store.check(secret)
        await asyncio.sleep(0.3)  # several attempts
    await until(written)
    await store.close()


async def test_what_is_known_is_bounded_and_the_latest_stay(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_store, "_CACHE_ENTRIES", 3)
    store = SqlKeyStore(database, monotonic=clock)
    secrets = [(await store.create(str(n), ["read"]))[1] for n in range(5)]
    for secret in (*secrets[:3], secrets[0], *secrets[3:]):
        clock.seconds += CACHE_S + 1
        assert await store.check(secret)
    assert set(store._known) == {hash_of(secrets[n]) for n in (0, 3, 4)}
    await store.close()
