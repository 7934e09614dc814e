"""The audit log: who decided what, written in the transaction of what was decided."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import encode, time_text
from nestor.backends.sql.schema import audit_log
from nestor.ports.audit_log import Audited, AuditEntry
from nestor.ports.task_store import AuditNote

_LOCK = 0x6E6573746F72_0A
"""Who appends holds it to the end of its transaction: two would follow the same entry."""
_BATCH = 500


async def note(
    database: Database,
    connection: AsyncConnection,
    notes: Sequence[AuditNote],
    *,
    at: datetime,
) -> None:
    """Append notes in the caller's transaction. Nothing else is locked after this."""
    if not notes:
        return
    await database.serialise(connection, _LOCK)
    newest = select(audit_log.c.seq, audit_log.c.digest).order_by(
        audit_log.c.seq.desc()
    )
    last = (await connection.execute(newest.limit(1))).first()
    newest_seq, before = (last.seq, last.digest) if last else (0, "")
    for seq, one in enumerate(notes, newest_seq + 1):
        row = {
            # Given by us: a second entry in this place is refused by its key.
            "seq": seq,
            "at": time_text(at),
            "actor": one.actor,
            "action": one.action,
            "task_id": one.task_id,
            "data": encode(one.data),
        }
        before = _digest(before, row)
        await connection.execute(audit_log.insert(), {**row, "digest": before})


class SqlAuditLog:
    """``ports.audit_log.AuditLog``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def entries(self, *, after: int = 0, limit: int = 200) -> list[AuditEntry]:
        """Read entries with a ``seq`` greater than ``after``, ascending."""
        async with self._database.read() as connection:
            return [
                AuditEntry(
                    seq=row["seq"],
                    at=datetime.fromisoformat(row["at"]),
                    actor=row["actor"],
                    action=row["action"],
                    task_id=row["task_id"],
                    data=msgspec.json.decode(row["data"]),
                    digest=row["digest"],
                )
                for row in await _rows(connection, after, limit)
            ]

    async def verify(self) -> Audited:
        """Recompute every digest, as of one moment."""
        count, head = 0, ""
        async with self._database.read() as connection:
            while rows := await _rows(connection, count, _BATCH):
                for row in rows:
                    said = row.pop("digest")
                    if row["seq"] != count + 1 or _digest(head, row) != said:
                        return Audited(entries=count, head=head, broken_at=count + 1)
                    count, head = count + 1, said
        return Audited(entries=count, head=head)


async def _rows(
    connection: AsyncConnection, after: int, limit: int
) -> list[dict[str, Any]]:
    query = select(audit_log).where(audit_log.c.seq > after)
    rows = await connection.execute(query.order_by(audit_log.c.seq).limit(limit))
    return [dict(row) for row in rows.mappings()]


def _digest(before: str, row: dict[str, Any]) -> str:
    # A list in JSON: no value can be taken for the end of the one before it.
    return hashlib.sha256(encode([before, *row.values()]).encode()).hexdigest()
