"""What ``ports.session_store.SessionStore`` promises, on real SQLite."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from tests.contracts.outside import Outside

from nestor.backends.sql import lookups
from nestor.backends.sql.database import Database
from nestor.backends.sql.schema import page_link, page_session
from nestor.backends.sql.session_store import (
    LINK_LIFE,
    SESSION_LIFE,
    SqlSessionStore,
)
from nestor.errors import Unauthorized, Unavailable
from nestor.model.access import ADMIN
from nestor.telemetry.redact import REDACTED, redact

KEY = "digest-of-the-admin-key"


class Clock:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> SqlSessionStore:
    return SqlSessionStore(database, made_under=KEY, now=clock)


async def rows(database: Database) -> tuple[int, int]:
    """How many links and sessions are stored."""
    async with database.read() as connection:
        counts = [
            await connection.scalar(select(func.count()).select_from(table))
            for table in (page_link, page_session)
        ]
    return int(counts[0] or 0), int(counts[1] or 0)


async def test_a_link_makes_one_session_whose_secret_tells_whose_it_is(
    store: SqlSessionStore, clock: Clock
) -> None:
    link = await store.make_link()
    assert link.expires_at == clock.now + timedelta(minutes=5)
    session, secret = await store.redeem(link.token)
    assert session.expires_at == clock.now + timedelta(hours=8)
    assert await store.check(secret) == session
    assert session.principal.may(ADMIN)
    assert session.principal.key_id == f"page:{session.id}"
    assert len({link.token, secret, session.id}) == 3
    assert min(len(link.token), len(secret)) == 47  # 32 random bytes


async def test_a_link_works_once_and_the_session_it_made_stays(
    store: SqlSessionStore,
) -> None:
    link = await store.make_link()
    _, secret = await store.redeem(link.token)
    with pytest.raises(Unauthorized):
        await store.redeem(link.token)
    assert await store.check(secret)


async def test_of_many_who_redeem_one_link_at_once_one_succeeds(
    store: SqlSessionStore, database: Database
) -> None:
    other = SqlSessionStore(database, made_under=KEY)  # as another process has it
    for _ in range(5):
        link = await other.make_link()
        done = await asyncio.gather(
            *[
                one.redeem(link.token)
                for one in (SqlSessionStore(database, made_under=KEY), other) * 8
            ],
            return_exceptions=True,
        )
        won = [one for one in done if isinstance(one, tuple)]
        assert len(won) == 1
        assert all(isinstance(one, tuple | Unauthorized) for one in done)
    assert await rows(database) == (0, 5)


@pytest.mark.parametrize("age", [LINK_LIFE, LINK_LIFE + timedelta(days=1)])
async def test_a_link_is_refused_from_the_moment_it_is_five_minutes_old(
    store: SqlSessionStore, clock: Clock, age: timedelta
) -> None:
    young, old = await store.make_link(), await store.make_link()
    clock.now += LINK_LIFE - timedelta(microseconds=1)
    await store.redeem(young.token)
    clock.now += age - LINK_LIFE + timedelta(microseconds=1)
    with pytest.raises(Unauthorized) as refused:
        await store.redeem(old.token)
    with pytest.raises(Unauthorized) as used:
        await store.redeem(young.token)
    with pytest.raises(Unauthorized) as unknown:
        await store.redeem("nst_" + "x" * 43)
    assert str(refused.value) == str(used.value) == str(unknown.value)
    assert "nestor page" in str(refused.value)


async def test_a_session_is_refused_from_the_moment_it_is_eight_hours_old(
    store: SqlSessionStore, clock: Clock
) -> None:
    _, secret = await store.redeem((await store.make_link()).token)
    clock.now += SESSION_LIFE - timedelta(microseconds=1)
    assert await store.check(secret)
    clock.now += timedelta(microseconds=1)
    assert await store.check(secret) is None


async def test_a_session_that_was_ended_is_refused_at_once_and_others_stay(
    store: SqlSessionStore, database: Database
) -> None:
    mine, secret = await store.redeem((await store.make_link()).token)
    _, other = await store.redeem((await store.make_link()).token)
    assert await store.check(secret)
    await SqlSessionStore(database, made_under=KEY).end(mine.id)  # another process
    assert await store.check(secret) is None
    assert await store.check(other)
    await store.end(mine.id)
    await store.end("nobody")


async def test_all_that_were_ended_are_refused_at_once_and_so_are_open_links(
    store: SqlSessionStore, database: Database
) -> None:
    secrets = [(await store.redeem((await store.make_link()).token))[1] for _ in "ab"]
    link = await store.make_link()
    assert all([await store.check(secret) for secret in secrets])
    await SqlSessionStore(database, made_under=KEY).end_all()  # another process
    assert [await store.check(secret) for secret in secrets] == [None, None]
    with pytest.raises(Unauthorized):
        await store.redeem(link.token)
    assert await rows(database) == (0, 0)


async def test_what_was_made_under_another_admin_key_is_nobodys(
    store: SqlSessionStore, database: Database, clock: Clock
) -> None:
    _, secret = await store.redeem((await store.make_link()).token)
    link = await store.make_link()
    other = SqlSessionStore(database, made_under=KEY + "2", now=clock)
    assert await other.check(secret) is None
    with pytest.raises(Unauthorized):
        await other.redeem(link.token)
    assert await store.check(secret)
    await store.redeem(link.token)


async def test_what_is_too_old_is_removed_when_links_are_made(
    store: SqlSessionStore, database: Database, clock: Clock
) -> None:
    for _ in range(5):
        await store.redeem((await store.make_link()).token)
        await store.make_link()
    clock.now += SESSION_LIFE
    assert await rows(database) == (5, 5)
    await store.make_link()
    assert await rows(database) == (1, 0)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "nst_",
        "' OR 1=1--",
        "%",
        "nst_" + "x" * 43,
        "nst_" + "x" * 1_000_000,
        "\ud800",
        "é" * 10,
        "\x00",
    ],
)
async def test_a_secret_nobody_was_given_opens_nothing(
    store: SqlSessionStore, secret: str
) -> None:
    link = await store.make_link()
    session, _ = await store.redeem((await store.make_link()).token)
    assert await store.check(secret) is None
    with pytest.raises(Unauthorized):
        await store.redeem(secret)
    # A link is no session, and a session's id is no secret.
    assert await store.check(link.token) is None
    assert await store.check(session.id) is None


async def test_an_overlong_secret_is_refused(store: SqlSessionStore) -> None:
    link = await store.make_link()
    for wrong in (link.token + " ", link.token + "x" * 500, link.token + "\n"):
        with pytest.raises(Unauthorized):
            await store.redeem(wrong)
    _, secret = await store.redeem(link.token)
    assert await store.check(secret + "\n") is None


async def test_the_digest_of_the_admin_key_is_not_stored(
    store: SqlSessionStore, outside: Outside
) -> None:
    await store.redeem((await store.make_link()).token)
    assert all(KEY.encode() not in one for one in outside.written())


async def test_neither_token_nor_secret_is_in_the_files(
    store: SqlSessionStore, outside: Outside
) -> None:
    open_link = await store.make_link()
    used = await store.make_link()
    _, secret = await store.redeem(used.token)
    await store.check(secret)
    files = outside.written()
    assert any(store._hash(secret).encode() in one for one in files)
    for text in (open_link.token, used.token, secret):
        assert all(text.encode() not in one for one in files)


async def test_redaction_knows_both_secrets_by_their_shape(
    store: SqlSessionStore,
) -> None:
    link = await store.make_link()
    _, secret = await store.redeem(link.token)
    assert redact(f"a {link.token} b {secret}") == f"a {REDACTED} b {REDACTED}"


async def test_a_flood_of_guesses_leaves_sessions_that_are_known_their_turn(
    store: SqlSessionStore,
) -> None:
    _, secret = await store.redeem((await store.make_link()).token)
    assert await store.check(secret)
    guesses = [asyncio.create_task(store.check(f"nst_{n:043d}")) for n in range(300)]
    await asyncio.sleep(0)
    assert await store.check(secret)
    assert sum(guess.done() for guess in guesses) < 150
    assert set(await asyncio.gather(*guesses)) == {None}


async def test_a_flood_of_guesses_leaves_a_right_link_and_its_session_their_turn(
    store: SqlSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "LOOKUP_WAIT_S", 0.5)
    link = await store.make_link()
    # As slow as can be: every turn of the guesses is taken, and none is given back.
    async with AsyncExitStack() as held:
        for _ in range(lookups.LOOKUPS):
            await held.enter_async_context(store._lookups.turn(known=False))
        with pytest.raises(Unavailable):
            await store.redeem("nst_" + "x" * 43)
        _, secret = await store.redeem(link.token)
        assert await store.check(secret)


async def test_a_guessed_link_does_not_wait_for_writers(
    store: SqlSessionStore, database: Database
) -> None:
    async with database.write():
        with pytest.raises(Unauthorized):
            await asyncio.wait_for(store.redeem("nst_" + "x" * 43), 10)
