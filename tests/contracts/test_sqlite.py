"""What a database in a file promises, beside what both kinds do: SQLite."""

import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from nestor.backends.sql import migrate
from nestor.backends.sql.database import Database
from nestor.errors import Misconfigured, Unavailable


@pytest.fixture
async def database(sqlite_url: str) -> AsyncIterator[Database]:
    async with Database.open(sqlite_url) as database:
        yield database


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


async def test_full_text_follows_every_change_of_a_chunk(database: Database) -> None:
    async def found(word: str) -> list[int]:
        query = text("SELECT rowid FROM chunk_fts WHERE chunk_fts MATCH :w")
        async with database.read() as connection:
            return list((await connection.execute(query, {"w": word})).scalars())

    async def run(*statements: str) -> None:
        async with database.write() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    rest = ", NULL, NULL, NULL, ''"
    await run(
        "INSERT INTO document VALUES ('d','p','x','c','h',1,'','{}','t','m')",
        f"INSERT INTO chunk VALUES (7,'c','d',0,'Running','dogs jump',0,1{rest})",
    )
    assert await found("dog") == await found("run") == [7]
    await run("UPDATE chunk SET text = 'cats'")
    assert (await found("dog"), await found("cat")) == ([], [7])
    await run(
        f"REPLACE INTO chunk VALUES (7,'c','d',0,'Running','birds',0,1{rest})",
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
    database: Database, sqlite_url: str
) -> None:
    outside = sqlite3.connect(file_of(sqlite_url), timeout=0, isolation_level=None)
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


async def test_a_locked_database_is_unavailable(
    database: Database, sqlite_url: str
) -> None:
    outside = sqlite3.connect(file_of(sqlite_url), isolation_level=None)
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
    database: Database, sqlite_url: str
) -> None:
    async with database.write() as connection:
        await connection.execute(text("INSERT INTO counter VALUES ('kept', 1)"))
    wal = Path(f"{file_of(sqlite_url)}-wal").stat().st_size
    with files_no_larger_than(wal + 4096), pytest.raises(Unavailable):
        async with database.write() as connection:
            await connection.execute(
                text("INSERT INTO counter VALUES (hex(zeroblob(200000)), 2)")
            )
    async with database.write() as connection:
        names = (await connection.execute(text("SELECT name FROM counter"))).scalars()
        assert list(names) == ["kept"]
        await connection.execute(text("INSERT INTO counter VALUES ('more', 2)"))


async def test_a_read_only_database_is_unavailable(sqlite_url: str) -> None:
    await migrate.upgrade(sqlite_url)
    read_only = f"sqlite:///file:{file_of(sqlite_url)}?mode=ro&uri=true"
    async with Database.open(read_only, migrate=False) as database:
        async with database.read() as connection:
            await connection.execute(text("SELECT * FROM counter"))
        with pytest.raises(Unavailable, match="readonly"):
            async with database.write() as connection:
                await connection.execute(text("INSERT INTO counter VALUES ('a', 1)"))


async def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="unable to open"):
        await migrate.upgrade(f"sqlite:///{tmp_path / 'none' / 'nestor.db'}")


async def test_a_file_that_is_no_database_says_what_to_do(sqlite_url: str) -> None:
    file_of(sqlite_url).write_bytes(b"not a database, but long enough to be read" * 99)
    with pytest.raises(Misconfigured, match="restore a backup"):
        await migrate.upgrade(sqlite_url)
