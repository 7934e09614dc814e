"""What ``ports.key_store.KeyStore`` promises, on real SQLite."""

import asyncio
from pathlib import Path

import pytest

from nestor.backends.sql.database import Database
from nestor.backends.sql.key_store import CACHE_S, MAX_SECRET_CHARS, SqlKeyStore
from nestor.errors import InvalidInput, NotFound


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


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
    assert await store.all() == [key]
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


@pytest.mark.parametrize("name", ["", "x" * 201])
async def test_a_key_needs_a_name(store: SqlKeyStore, name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        await store.create(name, ["read"])


async def test_the_secret_is_nowhere_in_the_files(
    store: SqlKeyStore, database: Database
) -> None:
    _, secret = await store.create("ci", ["read"])
    await store.check(secret)
    folder = Path(database.url.removeprefix("sqlite:///")).parent
    files = [one.read_bytes() for one in folder.iterdir()]
    assert files
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


async def test_an_overlong_secret_is_refused_even_if_stored(
    store: SqlKeyStore,
) -> None:
    _, secret = await store.create("ci", ["admin"])
    assert await store.check(secret + " ") is None
    assert await store.check(secret + "x" * MAX_SECRET_CHARS) is None


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
