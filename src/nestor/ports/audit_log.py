"""Who decided what: read here, written by ``TaskStore``. tests/contracts/test_audit_log.py."""

from datetime import datetime
from typing import Any, Protocol

import msgspec


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A decision as it stands in the log. ``seq`` counts from 1, without a gap."""

    seq: int
    at: datetime
    actor: str
    """The key's id; ``operator``: somebody at this machine, without a key."""
    action: str
    task_id: str
    data: dict[str, Any]
    digest: str
    """SHA-256 over this entry and the digest of the one before it."""


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """What looking at the whole log came to."""

    entries: int
    head: str
    """The newest digest, "" of an empty log. Kept elsewhere, it shows a log cut at its end."""
    broken_at: int | None = None
    """The first entry that is not as it was written, or whose predecessor is missing."""


class AuditLog(Protocol):
    """Append-only: the database itself refuses to change, remove or reorder entries.

    An entry is committed with what it tells of, so neither is there without the other.
    """

    async def entries(self, *, after: int = 0, limit: int = 200) -> list[AuditEntry]:
        """Read entries with a ``seq`` greater than ``after``, ascending."""
        ...

    async def verify(self) -> Audited:
        """Recompute every digest, as of one moment."""
        ...
