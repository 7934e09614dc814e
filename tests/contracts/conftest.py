"""What the contract tests share: a database of their own for each test, of either kind."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from tests.contracts.outside import Outside, outside_of
from tests.contracts.sandbox_place import (  # noqa: F401 - fixtures, found by their names
    isolating,
    make,
    place,
    sandbox,
)
from tests.servers import postgres
from tests.servers.postgres import Postgres

from nestor.backends.sql import migrate, postgresql, schema
from nestor.backends.sql.database import Database


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """One PostgreSQL for all tests of this process; nobody stops it."""
    with postgres.running() as running:
        yield running


@pytest.fixture(scope="session")
def migrated(server: Postgres) -> str:
    """Name a database with every table, for others to be copied from."""
    name = server.database()
    asyncio.run(migrate.upgrade(server.url(name)))
    return name


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'nestor.db'}"


@pytest.fixture
def postgres_url(server: Postgres) -> Iterator[str]:
    """An empty database."""
    name = server.database()
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def copied_url(server: Postgres, migrated: str) -> Iterator[str]:
    name = server.database(migrated)
    yield server.url(name)
    server.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest) -> str:
    """A database of either kind, without a table."""
    kinds = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}
    return str(request.getfixturevalue(kinds[request.param]))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A database of either kind, to be opened with ``Database.open``."""
    kinds = {"sqlite": "sqlite_url", "postgresql": "copied_url"}
    return str(request.getfixturevalue(kinds[request.param]))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database.open(database_url) as database:
        yield database


@pytest.fixture
def outside(request: pytest.FixtureRequest, database_url: str) -> Outside:
    """Another program at the same database."""
    sqlite = database_url.startswith("sqlite")
    server = None if sqlite else request.getfixturevalue("server")
    return outside_of(database_url, server)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds a lock gives up soon, of those who connect from now on."""
    monkeypatch.setattr("nestor.backends.sql.database.BUSY_TIMEOUT_MS", 50)
    soon = postgresql.OPTIONS.replace("lock_timeout=30s", "lock_timeout=50ms")
    assert soon != postgresql.OPTIONS
    monkeypatch.setattr(postgresql, "OPTIONS", soon)


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Returns the URL of an empty database at each call; the one before is gone."""
    numbers = count()
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / str(next(numbers))}.db"
    url = str(request.getfixturevalue("copied_url"))
    server: Postgres = request.getfixturevalue("server")

    def emptied() -> str:
        if next(numbers):
            tables = ", ".join(schema.metadata.tables)
            # The audit log refuses it: its triggers are asked aside.
            aside = "SET session_replication_role = replica"
            server.run(f"{aside}; TRUNCATE {tables} CASCADE", url.rpartition("/")[2])
        return url

    return emptied
