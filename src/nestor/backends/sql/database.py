"""One database, opened with the pragmas and the error translation all stores share."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import event, make_url
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from nestor.errors import Misconfigured, Unavailable

BUSY_TIMEOUT_MS = 30_000


class Database:
    """An async engine. ``write()`` is one transaction; ``read()`` sees one snapshot."""

    def __init__(self, engine: AsyncEngine, url: str) -> None:
        self._engine = engine
        self.url = url

    @property
    def is_sqlite(self) -> bool:
        """Tell the dialect where SQL differs (full-text search)."""
        return self._engine.dialect.name == "sqlite"

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, migrate: bool = True) -> AsyncIterator[Self]:
        """Open ``sqlite:///PATH`` or ``postgresql://…``, bringing its tables up to date."""
        if migrate:
            from nestor.backends.sql.migrate import upgrade  # noqa: PLC0415 - slow import

            with translated():
                await upgrade(url)
        engine = create_async_engine(async_url(url))
        if engine.dialect.name == "sqlite":
            prepare_sqlite(engine.sync_engine)
        try:
            yield cls(engine, url)
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with translated():
            async with self._engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Read without taking the write lock."""
        with translated():
            async with self._engine.connect() as connection:
                if self.is_sqlite:
                    connection = await connection.execution_options(nestor_read=True)
                yield connection


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
        message = f"DATABASE_URL: {base!r} is not one of {sorted(drivers)}"
        raise Misconfigured(message)
    return parsed.set(drivername=f"{base}+{drivers[base]}").render_as_string(
        hide_password=False
    )


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite URL, None for a server."""
    parsed = make_url(url)
    if not parsed.drivername.startswith("sqlite") or not parsed.database:
        return None
    return Path(parsed.database)


def prepare_sqlite(engine: Any) -> None:
    """WAL, FULL sync (a commit survives a power cut), foreign keys, immediate transactions.

    Immediate, because a deferred one that turns into a writer half way fails at once with
    "database is locked" whatever the busy timeout (https://sqlite.org/lang_transaction.html).
    """

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy, not the driver, says BEGIN
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        read = connection.get_execution_options().get("nestor_read")
        connection.exec_driver_sql("BEGIN" if read else "BEGIN IMMEDIATE")


@contextmanager
def translated() -> Iterator[None]:
    """Turn driver errors that time may heal into ``Unavailable``; others are bugs."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        message = f"the database does not answer: {error.__cause__ or error}"
        raise Unavailable(message) from error
