"""What a database on a server promises, beside what both kinds do: PostgreSQL."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from tests.servers import postgres
from tests.servers.postgres import PASSWORD, USER, Postgres

from nestor.backends.sql import full_text, migrate, postgresql
from nestor.backends.sql.database import Database
from nestor.errors import Misconfigured, Unavailable
from nestor.model.knowledge import Where

SOON = 5.0
"""Nobody waits longer for a server that is not there."""
ONE = text("SELECT 1")


@pytest.fixture(scope="module")
def mine() -> Iterator[Postgres]:
    """A server that tests may stop."""
    with postgres.running() as server:
        yield server


@pytest.fixture
async def stoppable(mine: Postgres) -> AsyncIterator[Database]:
    """A database on it."""
    async with Database.open(mine.url(mine.database())) as database:
        yield database


@pytest.fixture
async def database(copied_url: str) -> AsyncIterator[Database]:
    async with Database.open(copied_url) as database:
        yield database


async def ask(database: Database, statement: str = "SELECT 1") -> object:
    async with database.read() as connection:
        return await connection.scalar(text(statement))


async def insert(database: Database, name: str) -> None:
    async with database.write() as connection:
        await connection.execute(
            text("INSERT INTO counter VALUES (:n, 1)"), {"n": name}
        )


async def heals(database: Database) -> None:
    async with asyncio.timeout(SOON):
        while True:
            try:
                await ask(database)
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


# The server goes away.


async def test_a_server_that_is_gone_is_unavailable_and_heals(
    mine: Postgres, stoppable: Database
) -> None:
    await insert(stoppable, "kept")
    mine.stop()
    try:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(Unavailable, match="refused") as caught:
                await ask(stoppable)
            assert time.monotonic() - began < SOON
            assert f"127.0.0.1:{mine.port}" in str(caught.value)
            assert PASSWORD not in str(caught.value)
    finally:
        mine.start()
    await heals(stoppable)
    assert await ask(stoppable, "SELECT count(*) FROM counter") == 1


async def test_a_server_that_goes_in_the_middle_leaves_nothing_half_made(
    mine: Postgres, stoppable: Database
) -> None:
    with pytest.raises(Unavailable):  # noqa: PT012 - the block is what is tested
        async with stoppable.write() as connection:
            await connection.execute(text("INSERT INTO counter VALUES ('a', 1)"))
            mine.stop()
            await connection.execute(text("INSERT INTO counter VALUES ('b', 1)"))
    mine.start()
    await heals(stoppable)
    assert await ask(stoppable, "SELECT count(*) FROM counter") == 0


async def test_nobody_waits_for_a_server_that_is_frozen(
    mine: Postgres, stoppable: Database
) -> None:
    async def in_the_middle(frozen: asyncio.Event) -> None:
        async with stoppable.write() as connection:
            await connection.execute(text("INSERT INTO counter VALUES ('a', 1)"))
            await frozen.wait()
            await connection.execute(text("INSERT INTO counter VALUES ('b', 1)"))

    frozen = asyncio.Event()
    running = [
        asyncio.create_task(in_the_middle(frozen)),
        asyncio.create_task(ask(stoppable, "SELECT pg_sleep(60)")),
    ]
    await asyncio.sleep(0.5)
    mine.freeze()
    try:
        frozen.set()
        began = time.monotonic()
        # More than there are connections.
        new = [asyncio.create_task(ask(stoppable)) for _ in range(40)]
        ended = await asyncio.gather(*running, *new, return_exceptions=True)
        assert time.monotonic() - began < SOON
        assert [type(one) for one in ended] == [Unavailable] * 42
        # And who comes later is told so just as soon.
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(Unavailable):
                await insert(stoppable, "c")
            assert time.monotonic() - began < SOON
    finally:
        mine.thaw()
    await heals(stoppable)
    await insert(stoppable, "d")
    assert await ask(stoppable, "SELECT string_agg(name, '') FROM counter") == "d"


async def test_a_frozen_server_is_refused_at_the_start(mine: Postgres) -> None:
    url = mine.url(mine.database())
    mine.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(
            Unavailable, match="start PostgreSQL, or correct NESTOR_DATA"
        ):
            async with Database.open(url):
                pass
        assert time.monotonic() - began < SOON
    finally:
        mine.thaw()


async def test_a_statement_that_takes_long_is_waited_for(database: Database) -> None:
    seconds = 2 * postgresql.SILENCE_S + postgresql.CONNECT_S
    assert await ask(database, f"SELECT 7 FROM pg_sleep({seconds})") == 7


async def test_a_statement_without_end_is_ended(
    copied_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = postgresql.OPTIONS.replace("statement_timeout=60s", "statement_timeout=1s")
    assert short != postgresql.OPTIONS
    monkeypatch.setattr(postgresql, "OPTIONS", short)
    async with Database.open(copied_url) as database:
        with pytest.raises(Unavailable, match="statement timeout"):
            await ask(database, "SELECT pg_sleep(60)")
        assert await ask(database) == 1


async def test_who_gives_up_leaves_no_work_behind(
    database: Database, server: Postgres, copied_url: str
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await ask(database, "SELECT pg_sleep(77)")
    assert await ask(database) == 1
    name = copied_url.rpartition("/")[2]
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        f" WHERE datname = '{name}' AND query LIKE '%sleep(77)%'"
    )
    for _ in range(50):
        if server.rows(query) == [(0,)]:
            return
        await asyncio.sleep(0.2)
    raise AssertionError("the server works on for nobody")


async def test_a_connection_that_was_cut_is_replaced(
    database: Database, server: Postgres, copied_url: str
) -> None:
    name = copied_url.rpartition("/")[2]
    for _ in range(3):
        assert await ask(database) == 1
        server.run(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE datname = '{name}'"
        )
        assert await ask(database) == 1
    with pytest.raises(Unavailable):  # noqa: PT012 - the block is what is tested
        async with database.write() as connection:
            await connection.execute(
                text("SELECT pg_terminate_backend(pg_backend_pid(), 0)")
            )
            await connection.execute(ONE)


async def test_two_that_wait_for_each_other_are_an_outage_of_one(
    database: Database,
) -> None:
    await insert(database, "a")
    await insert(database, "b")
    both = asyncio.Barrier(2)

    async def change(first: str, second: str) -> None:
        async with database.write() as connection:
            for name in (first, second):
                await connection.execute(
                    text("UPDATE counter SET value = 2 WHERE name = :n"), {"n": name}
                )
                if name == first:
                    await both.wait()

    ended = await asyncio.gather(
        change("a", "b"), change("b", "a"), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in ended) == ["NoneType", "Unavailable"]


async def test_a_server_that_takes_no_more_clients_is_unavailable(
    database: Database, server: Postgres, copied_url: str
) -> None:
    name = copied_url.rpartition("/")[2]
    async with database.read() as connection:
        await connection.execute(ONE)
        server.run(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        with pytest.raises(Unavailable, match="not currently accepting"):
            await ask(database)
        assert await connection.scalar(ONE) == 1, "who is connected stays so"
        server.run(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    await heals(database)


# What it is asked for.


async def test_a_read_sees_one_moment_and_changes_nothing(database: Database) -> None:
    async with database.read() as connection:
        count = text("SELECT count(*) FROM counter")
        assert await connection.scalar(count) == 0
        await insert(database, "a")
        assert await connection.scalar(count) == 0
    with pytest.raises(Unavailable, match="read-only"):
        async with database.read() as connection:
            await connection.execute(text("INSERT INTO counter VALUES ('b', 1)"))
    assert await ask(database, "SELECT count(*) FROM counter") == 1


async def test_text_is_ordered_by_bytes_in_every_table(
    server: Postgres, copied_url: str
) -> None:
    odd = server.rows(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
        " AND data_type IN ('text', 'character varying')"
        " AND collation_name IS DISTINCT FROM 'C'",
        copied_url.rpartition("/")[2],
    )
    assert odd == []


async def test_tables_of_others_in_the_same_database_are_left_alone(
    postgres_url: str, server: Postgres
) -> None:
    name = postgres_url.rpartition("/")[2]
    server.run("CREATE TABLE theirs (name text)", name)
    await migrate.upgrade(postgres_url)
    query = (
        "SELECT collation_name FROM information_schema.columns"
        " WHERE table_name = 'theirs'"
    )
    assert server.rows(query, name) == [(None,)]


async def test_a_nul_in_what_is_looked_for_finds_nothing(database: Database) -> None:
    query = text("SELECT count(*) FROM counter WHERE name = :n")
    async with database.read() as connection:
        assert await connection.scalar(query, {"n": "a\0b"}) == 0


async def test_full_text_search_reads_its_index(copied_url: str) -> None:
    query = full_text.matches("walrus", Where(projects=["p"]), sqlite=False)
    assert query is not None
    async with Database.open(copied_url) as database, database.read() as connection:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        spelled = query.compile(
            connection.sync_engine, compile_kwargs={"literal_binds": True}
        )
        plan = (await connection.exec_driver_sql(f"EXPLAIN {spelled}")).all()
    assert "ix_chunk_full_text" in repr(plan)


async def test_a_text_of_many_words_can_be_stored(database: Database) -> None:
    words = " ".join(f"w{n:x}字{n}" for n in range(300_000))
    async with database.write() as connection:
        await connection.execute(
            text(
                "INSERT INTO document VALUES"
                " ('d','p','x','c','h',1,'','{}','t','text/plain')"
            )
        )
        await connection.execute(
            text(
                'INSERT INTO chunk (id, document_id, ordinal, heading, text, start, "end")'
                " VALUES ('c', 'd', 0, '', :t, 0, 1)"
            ),
            {"t": words},
        )


# What is wrong with it is said at the start.


async def refused(url: str) -> str:
    """Open and look; both say the same, and never the password."""
    said = []
    for opening in (Database.open(url).__aenter__(), postgresql.look(url)):
        with pytest.raises((Misconfigured, Unavailable)) as caught:
            await opening
        said.append(f"{type(caught.value).__name__}: {caught.value}")
        assert PASSWORD not in said[-1]
        assert "\n" not in said[-1]
    assert said[0] == said[1]
    return said[0]


async def test_a_server_that_refuses_is_named_with_the_setting(
    server: Postgres,
) -> None:
    good = server.url("nestor")
    wrong = good.replace(PASSWORD, "not-" + PASSWORD)
    assert (await refused(wrong)).startswith("Misconfigured: NESTOR_DATABASE_URL: ")
    assert "password authentication failed" in await refused(wrong)
    nobody = await refused(good.replace(USER + ":", "nobody:"))
    assert nobody.startswith("Misconfigured: NESTOR_DATABASE_URL: ")
    absent = await refused(server.url("absent"))
    assert 'database "absent" does not exist' in absent
    assert absent.startswith("Misconfigured: NESTOR_DATABASE_URL: ")
    with postgres.free_port() as port:
        gone = await refused(good.replace(str(server.port), str(port)))
    assert gone.startswith("Unavailable: PostgreSQL (nestor at 127.0.0.1:")
    assert gone.endswith("start PostgreSQL, or correct NESTOR_DATABASE_URL")
    socket = await refused(f"postgresql://{USER}@/x?host=/nowhere")
    assert socket.startswith("Unavailable: PostgreSQL (x at /nowhere")


async def test_a_database_that_cannot_hold_every_text_is_refused(
    server: Postgres,
) -> None:
    server.run(
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'"
        " TEMPLATE template0"
    )
    with pytest.raises(Misconfigured, match=r"LATIN1.*CREATE DATABASE"):
        async with Database.open(server.url("latin")):
            pass
    server.drop("latin")


def test_a_server_that_is_too_old_is_refused() -> None:
    with pytest.raises(Misconfigured, match="14 or newer is needed, this is 13"):
        postgresql._refuse_old(130012)
    postgresql._refuse_old(140000)


async def test_it_is_reached_by_its_socket_and_says_who_it_is(
    server: Postgres, copied_url: str
) -> None:
    name = copied_url.rpartition("/")[2]
    async with Database.open(server.socket_url(name)) as database:
        assert await ask(database) == 1
    said = await postgresql.look(server.socket_url(name))
    assert said == f"PostgreSQL 18.4, {name} at {server.folder}:{server.port}"
    said = await postgresql.look(copied_url)
    assert said == f"PostgreSQL 18.4, {name} at 127.0.0.1:{server.port}"


async def test_wrong_sql_is_a_bug_and_does_not_close_the_door(
    database: Database,
) -> None:
    with pytest.raises(DBAPIError):
        await ask(database, "SELECT * FROM absent")
    assert await ask(database) == 1
