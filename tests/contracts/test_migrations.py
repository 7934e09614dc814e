"""The migrations make what ``schema.py`` says; the database promises what it says."""

import asyncio
import logging
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from nestor.backends.sql import migrate, schema
from nestor.backends.sql.database import Database, async_url, sync_url
from nestor.backends.sql.key_store import SqlKeyStore
from nestor.errors import Misconfigured, Unavailable


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


async def test_a_migrated_database_is_what_the_schema_says(database_url: str) -> None:
    await migrate.upgrade(database_url)

    def ours(name: str | None, kind: str, _parents: Any) -> bool:
        return kind != "table" or (name or "").startswith("chunk_fts") is False

    engine = create_engine(sync_url(database_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_name": ours, "compare_type": True},
        )
        differences = compare_metadata(context, schema.metadata)
        primary = inspect(connection).get_pk_constraint("task_event")
    engine.dispose()
    assert differences == []
    assert primary["constrained_columns"] == ["task_id", "id"]


def test_head_names_the_newest_migration() -> None:
    folder = Path(migrate.__file__).parent / "migrations"
    scripts = ScriptDirectory(str(folder), version_locations=[str(folder)])
    assert scripts.get_current_head() == migrate.HEAD


async def test_migrating_twice_changes_nothing(database_url: str) -> None:
    await migrate.upgrade(database_url)
    before = dump(database_url)
    await migrate.upgrade(database_url)
    assert dump(database_url) == before


async def test_a_database_of_the_first_version_keeps_its_rows(
    database_url: str,
) -> None:
    folder = Path(migrate.__file__).parent / "migrations"
    scripts = ScriptDirectory(str(folder), version_locations=[str(folder)])
    engine = create_engine(sync_url(database_url))
    steps = EnvironmentContext(
        Config(), scripts, fn=lambda rev, _: scripts._upgrade_revs("0001", rev)
    )
    with engine.begin() as connection, steps:
        steps.configure(connection=connection)
        steps.run_migrations()
        connection.execute(
            text(
                "INSERT INTO api_key (id, name, secret_hash, scopes, created_at)"
                " VALUES ('k', 'old', 'h', '[\"read\"]', '2026-01-02T03:04:05+00:00')"
            )
        )
    engine.dispose()

    await migrate.upgrade(database_url)

    async with Database.open(database_url) as database:
        kept = await SqlKeyStore(database).all()
    assert [(key.id, key.scopes, key.last_used_at) for key in kept] == [
        ("k", ["read"], None)
    ]


def test_a_database_that_is_up_to_date_is_opened_without_alembic(
    database_url: str,
) -> None:
    asyncio.run(migrate.upgrade(database_url))
    script = (
        "import asyncio, sys\n"
        "from nestor.backends.sql.migrate import upgrade\n"
        "asyncio.run(upgrade(sys.argv[1]))\n"
        "assert 'alembic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, database_url], check=True)


async def test_four_processes_may_migrate_at_once(database_url: str) -> None:
    script = (
        "import asyncio, sys\n"
        "from nestor.backends.sql.migrate import upgrade\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "asyncio.run(upgrade(sys.argv[1]))\n"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            database_url,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        await process.stdout.readline()
    ended = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    assert [process.returncode for process in processes] == [0] * 4, ended
    assert [error for _, error in ended] == [b""] * 4  # and quietly
    with sqlite3.connect(file_of(database_url)) as connection:
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    connection.close()
    assert rows == [(migrate.HEAD,)]


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(
    database_url: str,
) -> None:
    await migrate.upgrade(database_url)
    with sqlite3.connect(file_of(database_url)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = dump(database_url)
    with pytest.raises(Misconfigured, match=r"newer Nestor.*restore a backup"):
        await migrate.upgrade(database_url)
    assert dump(database_url) == before


async def test_a_migration_that_breaks_leaves_nothing_half_made(
    database_url: str,
) -> None:
    with sqlite3.connect(file_of(database_url)) as connection:
        connection.execute("CREATE TABLE model_call (mine TEXT)")
    connection.close()
    before = dump(database_url)
    with pytest.raises(Exception, match="model_call already exists"):
        await migrate.upgrade(database_url)
    assert dump(database_url) == before


async def test_migrating_says_nothing(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await migrate.upgrade(database_url)
    assert [record for record in caplog.records if record.name != "asyncio"] == []


async def test_full_text_follows_every_change_of_a_chunk(database: Database) -> None:
    async def found(word: str) -> list[int]:
        query = text("SELECT rowid FROM chunk_fts WHERE chunk_fts MATCH :w")
        async with database.read() as connection:
            return list((await connection.execute(query, {"w": word})).scalars())

    async def run(*statements: str) -> None:
        async with database.write() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    await run(
        "INSERT INTO document VALUES ('d','p','x','c','h',1,'','{}','t')",
        "INSERT INTO chunk VALUES (7,'c','d',0,'Running','dogs jump',0,1,0)",
    )
    assert await found("dog") == await found("run") == [7]
    await run("UPDATE chunk SET text = 'cats'")
    assert (await found("dog"), await found("cat")) == ([], [7])
    await run(
        "REPLACE INTO chunk VALUES (7,'c','d',0,'Running','birds',0,1,0)",
    )
    assert (await found("cat"), await found("bird")) == ([], [7])
    await run("DELETE FROM document")  # the chunk goes by cascade
    assert await found("bird") == []
    await run("INSERT INTO chunk_fts(chunk_fts, rank) VALUES ('integrity-check', 1)")


async def test_every_connection_has_the_pragmas(database: Database) -> None:
    async def pragma(connection: Any, name: str) -> Any:
        return await connection.scalar(text(f"PRAGMA {name}"))

    async with database.write() as connection, database.read() as other:
        for one in (connection, other):
            assert await pragma(one, "journal_mode") == "wal"
            assert await pragma(one, "synchronous") == 2  # FULL
            assert await pragma(one, "foreign_keys") == 1
            assert await pragma(one, "busy_timeout") == 30_000
            assert await pragma(one, "recursive_triggers") == 1


async def test_write_takes_the_lock_at_once_and_read_does_not(
    database: Database, database_url: str
) -> None:
    outside = sqlite3.connect(file_of(database_url), timeout=0, isolation_level=None)
    try:
        async with database.read() as connection:
            await connection.execute(text("SELECT * FROM counter"))
            outside.execute("BEGIN IMMEDIATE")  # nobody holds it
            outside.execute("INSERT INTO counter VALUES ('a', 1)")
            outside.execute("COMMIT")
            seen = await connection.scalar(text("SELECT count(*) FROM counter"))
            assert seen == 0  # one snapshot
        async with database.write():
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                outside.execute("BEGIN IMMEDIATE")
            assert outside.execute("SELECT count(*) FROM counter").fetchone() == (1,)
    finally:
        outside.close()


async def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with database.write() as connection:
            await connection.execute(text("INSERT INTO counter VALUES ('a', 1)"))
            raise ZeroDivisionError
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM counter")) == 0


async def test_a_locked_database_is_unavailable(
    database: Database, database_url: str
) -> None:
    outside = sqlite3.connect(file_of(database_url), isolation_level=None)
    try:
        async with database.read() as connection:  # the pooled one waits a moment only
            await connection.execute(text("PRAGMA busy_timeout = 50"))
        outside.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked"):
            async with database.write():
                pass
    finally:
        outside.close()
    async with database.write():
        pass  # and it heals


@contextmanager
def files_no_larger_than(limit: int) -> Iterator[None]:
    """A full disk, for this process alone (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_is_unavailable_and_loses_nothing(
    database: Database, database_url: str
) -> None:
    async with database.write() as connection:
        await connection.execute(text("INSERT INTO counter VALUES ('kept', 1)"))
    wal = Path(f"{file_of(database_url)}-wal").stat().st_size
    with files_no_larger_than(wal + 4096), pytest.raises(Unavailable):
        async with database.write() as connection:
            await connection.execute(
                text("INSERT INTO counter VALUES (hex(zeroblob(200000)), 2)")
            )
    async with database.write() as connection:
        names = (await connection.execute(text("SELECT name FROM counter"))).scalars()
        assert list(names) == ["kept"]
        await connection.execute(text("INSERT INTO counter VALUES ('more', 2)"))


async def test_a_read_only_database_is_unavailable(database_url: str) -> None:
    await migrate.upgrade(database_url)
    read_only = f"sqlite:///file:{file_of(database_url)}?mode=ro&uri=true"
    async with Database.open(read_only, migrate=False) as database:
        async with database.read() as connection:
            await connection.execute(text("SELECT * FROM counter"))
        with pytest.raises(Unavailable, match="readonly"):
            async with database.write() as connection:
                await connection.execute(text("INSERT INTO counter VALUES ('a', 1)"))


async def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="unable to open"):
        await migrate.upgrade(f"sqlite:///{tmp_path / 'none' / 'nestor.db'}")


async def test_a_file_that_is_no_database_says_what_to_do(database_url: str) -> None:
    file_of(database_url).write_bytes(
        b"not a database, but long enough to be read" * 99
    )
    with pytest.raises(Misconfigured, match="restore a backup"):
        await migrate.upgrade(database_url)


async def test_wrong_sql_is_a_bug_not_an_outage(database: Database) -> None:
    with pytest.raises(Exception, match="no such table") as caught:
        async with database.read() as connection:
            await connection.execute(text("SELECT * FROM absent"))
    assert not isinstance(caught.value, Unavailable)


def test_a_database_nobody_supports_is_refused_by_name() -> None:
    with pytest.raises(Misconfigured, match="DATABASE_URL: 'mysql'"):
        async_url("mysql://x/y")


def dump(url: str) -> list[str]:
    connection = sqlite3.connect(file_of(url))
    try:
        rows = connection.execute(
            "SELECT type, name, sql FROM sqlite_master"
        ).fetchall()
        names = {name for _, name, _ in rows}
        version = (
            connection.execute("SELECT * FROM alembic_version").fetchall()
            if "alembic_version" in names
            else []
        )
        return [*map(repr, rows), repr(version)]
    finally:
        connection.close()
