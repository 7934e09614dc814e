"""Brings a database to the tables of this version.

The usual start finds it there already and never imports Alembic (0.3 s).
"""

import asyncio
import logging
from pathlib import Path

from sqlalchemy import Connection, create_engine, inspect, text

from nestor.backends.sql.database import (
    new_engine,
    prepare_sqlite,
    sync_url,
    translated,
)
from nestor.errors import Misconfigured

HEAD = "0006"
"""The newest revision in ``migrations``."""

_SCRIPTS = Path(__file__).parent / "migrations"
_VERSIONS = "alembic_version"
_ADVISORY_LOCK = 0x6E657374
"""Any number, the same in every process: PostgreSQL's lock for "Nestor migrates"."""
_WAIT_MS = 300_000
"""How long a process waits for another one that migrates."""


async def upgrade(url: str) -> None:
    """Migrate to ``HEAD`` in one transaction: all of it or nothing. May be called by several.

    Raises ``Misconfigured`` for a database that a newer version made, ``Unavailable``
    when it does not answer.
    """
    if sync_url(url).startswith("sqlite"):
        await asyncio.to_thread(_upgrade_sqlite, url)
    else:
        await _upgrade_postgresql(url)


def _upgrade_sqlite(url: str) -> None:
    engine = create_engine(sync_url(url))
    prepare_sqlite(engine)
    try:
        with translated():
            with engine.connect() as connection:
                connection.execution_options(nestor_read=True)
                if _revision(connection) == HEAD:
                    return
            # BEGIN IMMEDIATE is the lock: the second process waits here, then finds
            # nothing left to do.
            with engine.begin() as connection:
                if _revision(connection) != HEAD:
                    _migrate(connection)
    finally:
        engine.dispose()


async def _upgrade_postgresql(url: str) -> None:
    from nestor.backends.sql import postgresql  # noqa: PLC0415 - a driver few need

    await postgresql.look(
        url
    )  # says best what is wrong with the server, and how to mend
    engine = new_engine(url)
    try:
        with translated(url):
            async with engine.connect() as connection:
                await connection.run_sync(postgresql.refuse_server)
                if await connection.run_sync(_revision) == HEAD:
                    return
            async with engine.begin() as connection:
                await connection.execute(text("SET LOCAL statement_timeout = 0"))
                await connection.execute(text(f"SET LOCAL lock_timeout = {_WAIT_MS}"))
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK}
                )
                if await connection.run_sync(_revision) != HEAD:
                    await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_VERSIONS):
        return None
    return connection.execute(text(f"SELECT version_num FROM {_VERSIONS}")).scalar()  # noqa: S608 - a constant


def _migrate(connection: Connection) -> None:
    from alembic.config import Config  # noqa: PLC0415 - slow import, rarely needed
    from alembic.runtime.environment import EnvironmentContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    logging.getLogger("alembic").setLevel(logging.WARNING)
    scripts = ScriptDirectory(str(_SCRIPTS), version_locations=[str(_SCRIPTS)])
    current = _revision(connection)
    try:
        steps = EnvironmentContext(
            Config(),
            scripts,
            fn=lambda rev, _: scripts._upgrade_revs("head", rev),  # noqa: SLF001 - as Alembic's documentation of EnvironmentContext has it
        )
        with steps:
            # The caller's transaction is open, so Alembic neither begins nor commits.
            steps.configure(connection=connection)
            steps.run_migrations()
    except CommandError as error:
        message = (
            f"the database is at revision {current!r}, which this version of Nestor "
            f"(revision {HEAD!r}) does not know: a newer Nestor has migrated it. Start "
            "that version, restore a backup made before, or set NESTOR_DATABASE_URL to another"
        )
        raise Misconfigured(message) from error
