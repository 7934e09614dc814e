"""Telemetry that is committed with the rows it tells of; a relay moves it to the event log."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import encode, insert
from nestor.backends.sql.schema import event_outbox
from nestor.model.event import Event


async def queue(
    database: Database, connection: AsyncConnection, telemetry: Sequence[Event]
) -> None:
    """Put events into the outbox, in the caller's transaction; ids in it are left alone."""
    if not telemetry:
        return
    await connection.execute(
        insert(database, event_outbox).on_conflict_do_nothing(index_elements=["id"]),
        [{"id": one.id, "event": encode(one)} for one in telemetry],
    )
