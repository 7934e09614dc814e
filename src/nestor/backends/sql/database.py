"""One database, opened with the pragmas and the error translation all stores share."""

import re
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, event, func, make_url, select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from nestor.errors import Misconfigured, Unavailable

BUSY_TIMEOUT_MS = 30_000
_TIME_MAY_HEAL = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_NOT_OURS = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})
_READ_ONLY = "25006"
"""What a PostgreSQL standby says to a write, until it is made the primary."""


class Database:
    """An async engine. ``write()`` is one transaction; ``read()`` sees one snapshot."""

    def __init__(self, engine: AsyncEngine, url: str) -> None:
        self._engine = engine
        self.url = url
        """With the password: for other openers, never for people."""
        self._reading = (
            engine
            if engine.dialect.name == "sqlite"
            else engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        )

    @property
    def is_sqlite(self) -> bool:
        """Tell the dialect where SQL differs (full-text search, upsert)."""
        return self._engine.dialect.name == "sqlite"

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, migrate: bool = True) -> AsyncIterator[Self]:
        """Open ``sqlite:///PATH`` or ``postgresql://…``, bringing its tables up to date."""
        if migrate:
            from nestor.backends.sql.migrate import upgrade  # noqa: PLC0415 - a cycle

            await upgrade(url)
        engine = new_engine(url)
        try:
            yield cls(engine, url)
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with translated(self.url, running=True):
            async with self._engine.begin() as connection:
                yield connection

    async def serialise(self, connection: AsyncConnection, key: int) -> None:
        """Let one transaction at a time go on from here, of those that say the same ``key``.

        SQLite has one writer anyway. Raises ``Unavailable`` after waiting too long.
        """
        if not self.is_sqlite:
            await connection.execute(select(func.pg_advisory_xact_lock(key)))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Read one snapshot without taking the write lock; what is written here is lost."""
        with translated(self.url, running=True):
            async with self._reading.connect() as connection:
                if self.is_sqlite:
                    await connection.execution_options(nestor_read=True)
                yield connection


def new_engine(url: str) -> AsyncEngine:
    """Make an engine for any database that Nestor can use; nothing is opened yet."""
    if not _is_sqlite(url):
        from nestor.backends.sql.postgresql import engine_of  # noqa: PLC0415 - a driver few need

        return engine_of(async_url(url))
    engine = create_async_engine(async_url(url))
    prepare_sqlite(engine.sync_engine)
    return engine


def async_url(url: str) -> str:
    """Name the async driver: aiosqlite or psycopg."""
    return _with_driver(url, {"sqlite": "aiosqlite", "postgresql": "psycopg"})


def sync_url(url: str) -> str:
    """Name the sync driver, for Alembic and DBOS."""
    return _with_driver(url, {"sqlite": "pysqlite", "postgresql": "psycopg"})


def _with_driver(url: str, drivers: dict[str, str]) -> str:
    parsed = make_url(url)
    base = re.sub(r"\+.*", "", parsed.drivername)
    if base not in drivers:
        message = f"NESTOR_DATABASE_URL: {base!r} is not one of {sorted(drivers)}"
        raise Misconfigured(message)
    return parsed.set(drivername=f"{base}+{drivers[base]}").render_as_string(
        hide_password=False
    )


def _is_sqlite(url: str) -> bool:
    return make_url(url).drivername.startswith("sqlite")


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite URL, None for a server."""
    database = make_url(url).database
    return Path(database) if _is_sqlite(url) and database else None


def prepare_sqlite(engine: Engine, *, begin: bool = True) -> None:
    """WAL, FULL sync (a commit survives a power cut), foreign keys, immediate transactions.

    Immediate, because a deferred one that turns into a writer half way fails at once with
    "database is locked" whatever the busy timeout (https://sqlite.org/lang_transaction.html).
    ``begin=False`` leaves BEGIN to the driver, which then says it before the first write
    only: for DBOS, which says its own BEGIN in its migrations and polls with bare reads.
    """

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None if begin else "IMMEDIATE"
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # Without it a row that REPLACE removes fires no delete trigger.
        cursor.execute("PRAGMA recursive_triggers = ON")
        cursor.close()

    if begin:

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            read = connection.get_execution_options().get("nestor_read")
            connection.exec_driver_sql("BEGIN" if read else "BEGIN IMMEDIATE")


def _use_wal(cursor: Any) -> None:
    """Turn WAL on; the file remembers it. SQLite does not wait for the lock here itself."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode")
            if cursor.fetchone()[0] in {"wal", "memory"}:
                return
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.fetchone()
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)  # in the driver's thread, or a start that is alone
        else:
            return


@contextmanager
def translated(url: str | None = None, *, running: bool = False) -> Iterator[None]:
    """Turn driver errors that time may heal into ``Unavailable``; others are bugs.

    ``url``: which database; a server is then named in the message, without its password.
    A damaged file is ``Misconfigured`` at the start, so that it ends there; ``running``:
    it is an outage, as everything is that comes later.
    """
    try:
        yield
    except PoolTimeout as error:
        message = f"the database does not answer: {error}"
        raise Unavailable(message) from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlite_errorcode", None) is not None:
            healed = _of_sqlite(error, running)
        else:
            healed = _of_server(error, url)
        if healed is None:
            raise
        raise healed from error


def _of_sqlite(error: DBAPIError, running: bool) -> Unavailable | Misconfigured | None:
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    if code in _NOT_OURS:
        message = (
            f"the database file is damaged or no database ({error.orig}): "
            "restore a backup, or set NESTOR_DATABASE_URL to another"
        )
        return Unavailable(message) if running else Misconfigured(message)
    if code not in _TIME_MAY_HEAL:
        return None
    return Unavailable(f"the database does not answer: {error.orig}")


def _of_server(error: DBAPIError, url: str | None) -> Unavailable | None:
    """A lost connection, a lock or a statement that took too long, a deadlock, a standby.

    What only the operator can mend is an outage, too, once the stack runs: it may be
    mended meanwhile.
    """
    heals = isinstance(error, OperationalError | InterfaceError)
    state = getattr(error.orig, "sqlstate", None)
    if not heals and not error.connection_invalidated and state != _READ_ONLY:
        return None
    said = " ".join(str(error.orig).split())
    if url is None or _is_sqlite(url):
        return Unavailable(f"the database does not answer: {said}")
    from nestor.backends.sql.postgresql import place_of  # noqa: PLC0415 - a driver few need

    return Unavailable(f"the database does not answer: {place_of(url)}: {said}")
