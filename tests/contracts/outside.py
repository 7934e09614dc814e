"""What others do to a database while it is tested, in SQLite's way and in PostgreSQL's.

What may have to wait does so in a thread: whoever holds the lock may need the event loop.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    closing,
)
from pathlib import Path
from typing import Protocol

import psycopg
from tests.servers.postgres import Postgres
from tests.servers.sqlite_lock import locked

from nestor.backends.sql.database import Database

Row = tuple[object, ...]


class Outside(Protocol):
    """Another program at the database behind ``url``."""

    url: str
    elsewhere_url: str
    """Where it is found while it is ``away``."""

    async def run(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        ...

    def rows(self, query: str) -> list[Row]:
        """Read."""
        ...

    def writing(self) -> AbstractAsyncContextManager[None]:
        """Hold every table, so that who writes has to wait, and who reads has not."""
        ...

    def refusing(self, table: str) -> AbstractAsyncContextManager[None]:
        """Let every INSERT and UPDATE of a table fail, with an error that says "no"."""
        ...

    def away(self, database: Database) -> AbstractAsyncContextManager[None]:
        """The database is not where it was, and nobody is connected to it."""
        ...

    def written(self) -> list[bytes]:
        """Read all files of the database, as they stand on the disk."""
        ...


class OutsideSqlite:
    """Another program that has the file open."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._file = Path(url.removeprefix("sqlite:///"))
        self._elsewhere = self._file.parent.with_name("elsewhere")
        self.elsewhere_url = f"sqlite:///{self._elsewhere / self._file.name}"

    async def run(self, *statements: str) -> None:
        for statement in statements:
            async with locked(self._file) as other:
                other.execute(statement)
                other.commit()

    def rows(self, query: str) -> list[Row]:
        with self._connected() as connection:
            return connection.execute(query).fetchall()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        async with locked(self._file):
            yield

    @asynccontextmanager
    async def refusing(self, table: str) -> AsyncIterator[None]:
        for verb in ("INSERT", "UPDATE"):
            await self.run(
                f"CREATE TRIGGER no_{verb} BEFORE {verb} ON {table}"
                " BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        yield
        await self.run("DROP TRIGGER no_INSERT", "DROP TRIGGER no_UPDATE")

    @asynccontextmanager
    async def away(self, database: Database) -> AsyncIterator[None]:
        await database._engine.dispose()
        self._file.parent.rename(self._elsewhere)
        try:
            yield
        finally:
            await database._engine.dispose()
            self._elsewhere.rename(self._file.parent)

    def written(self) -> list[bytes]:
        return [one.read_bytes() for one in self._file.parent.iterdir()]

    def _connected(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self._file, isolation_level=None, timeout=10))


class OutsidePostgres:
    """Another client of the server."""

    def __init__(self, server: Postgres, url: str) -> None:
        self.url = url
        self._server = server
        self._name = url.rpartition("/")[2]
        self._elsewhere = f"{self._name}_elsewhere"
        self.elsewhere_url = server.url(self._elsewhere)

    async def run(self, *statements: str) -> None:
        for statement in statements:
            await asyncio.to_thread(self._server.run, statement, self._name)

    def rows(self, query: str) -> list[Row]:
        return self._server.rows(query, self._name)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        tables = self.rows(
            "SELECT string_agg(quote_ident(table_name), ', ')"
            " FROM information_schema.tables WHERE table_schema = 'public'"
        )[0][0]
        with psycopg.connect(self.url) as connection:
            lock = f"LOCK TABLE {tables} IN SHARE ROW EXCLUSIVE MODE"
            await asyncio.to_thread(connection.execute, lock.encode())
            yield
            connection.rollback()

    @asynccontextmanager
    async def refusing(self, table: str) -> AsyncIterator[None]:
        await self.run(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RAISE EXCEPTION ''no''; END'",
            f"CREATE TRIGGER no BEFORE INSERT OR UPDATE ON {table}"
            " EXECUTE FUNCTION no()",
        )
        yield
        await self.run("DROP FUNCTION no() CASCADE")

    @asynccontextmanager
    async def away(self, database: Database) -> AsyncIterator[None]:
        await self._rename(database, self._name, self._elsewhere)
        try:
            yield
        finally:
            await self._rename(database, self._elsewhere, self._name)

    async def _rename(self, database: Database, old: str, new: str) -> None:
        await database._engine.dispose()
        end = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{old}'"
        for statement in (end, f'ALTER DATABASE "{old}" RENAME TO "{new}"'):
            await asyncio.to_thread(self._server.run, statement)

    def written(self) -> list[bytes]:
        self._server.run("CHECKPOINT")
        return self._server.files()


def outside_of(url: str, server: Postgres | None) -> Outside:
    """Make the one for ``url``."""
    if server is None:
        return OutsideSqlite(url)
    return OutsidePostgres(server, url)
