"""Who may do what: keys and their scopes."""

from datetime import datetime

import msgspec

ADMIN = "admin"
SCOPES = frozenset({ADMIN, "submit", "approve", "model", "read", "metrics", "service"})


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The holder of a key that was just checked."""

    key_id: str
    scopes: frozenset[str]

    @property
    def task_id(self) -> str | None:
        """The one task a task key belongs to; it reaches ``/v1/*`` and nothing else."""
        for scope in self.scopes:
            if scope.startswith("task:"):
                return scope.removeprefix("task:")
        return None

    def may(self, scope: str) -> bool:
        """Tell whether this key reaches what ``scope`` guards; admin reaches all."""
        return ADMIN in self.scopes or scope in self.scopes


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is listed: never the secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None = None
