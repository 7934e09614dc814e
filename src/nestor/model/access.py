"""Who may do what: keys, their scopes, and sessions of the page."""

import functools
import re
from datetime import datetime
from decimal import Decimal

import msgspec

ADMIN = "admin"
SERVICE = "service"
"""One layer calling another: health, metrics, and the documents of AIDB."""
SCOPES = frozenset({ADMIN, "submit", "approve", "model", "read", "metrics", SERVICE})
SECRET_PREFIX = "nst_"  # noqa: S105 - what all secrets begin with is none
"""Redaction knows a secret by it anywhere."""
SECRET = re.compile(SECRET_PREFIX + "[A-Za-z0-9_-]{43}")
"""Every secret that is made here: 32 random bytes in base64url. Nothing else is looked up."""


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may spend on models; None: no limit.

    ``usd`` and ``tokens`` in all, ``rpm`` and ``tpm`` requests and tokens in any minute.
    """

    usd: Decimal | None = None
    tokens: int | None = None
    rpm: int | None = None
    tpm: int | None = None


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The holder of a key that was just checked."""

    key_id: str
    scopes: frozenset[str]
    limits: KeyLimits | None = None
    name: str = ""
    """What its maker called the key; for people, not unique."""

    @property
    def task_id(self) -> str | None:
        """The one task a task key belongs to; it reaches ``/v1/*`` and nothing else."""
        return _task_of(self.scopes)

    def may(self, scope: str) -> bool:
        """Tell whether this key reaches what ``scope`` guards; admin reaches all."""
        return ADMIN in self.scopes or scope in self.scopes


@functools.lru_cache(maxsize=256)  # asked several times in each request
def _task_of(scopes: frozenset[str]) -> str | None:
    for scope in scopes:
        if scope.startswith("task:"):
            return scope.removeprefix("task:")
    return None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is listed: never the secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """To the minute or so; None: never seen."""
    limits: KeyLimits | None = None


class PageLink(msgspec.Struct, frozen=True, kw_only=True):
    """Signs one browser in, once."""

    token: str
    expires_at: datetime


class PageSession(msgspec.Struct, frozen=True, kw_only=True):
    """A browser that was signed in; its secret is the cookie's value."""

    id: str
    created_at: datetime
    expires_at: datetime

    @property
    def principal(self) -> Principal:
        """The operator, on the page."""
        return Principal(
            key_id=f"page:{self.id}", scopes=frozenset({ADMIN}), name="page"
        )
