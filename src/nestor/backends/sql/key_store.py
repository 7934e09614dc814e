"""API keys in SQL: only their SHA-256 is stored."""

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec
from sqlalchemy import Row, insert, select, update

from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import encode, time_text
from nestor.backends.sql.schema import api_key
from nestor.errors import InvalidInput, NotFound
from nestor.model.access import SCOPES, ApiKey, Principal
from nestor.model.ids import TASK_ID, new_id

PREFIX = "nst_"
MAX_SECRET_CHARS = 200
MAX_NAME_CHARS = 200
CACHE_S = 2.0
"""A key revoked by another process is refused after at most this long."""

_CACHE_ENTRIES = 1024


class SqlKeyStore:
    """``ports.key_store.KeyStore``. 256-bit random secrets need no slow hash."""

    def __init__(
        self,
        database: Database,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._now = now
        self._monotonic = monotonic
        self._known: dict[str, tuple[Principal, float]] = {}
        self._revocations = 0

    async def create(self, name: str, scopes: Sequence[str]) -> tuple[ApiKey, str]:
        """Make a key; the secret is returned here and never again. Raises ``InvalidInput``."""
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise InvalidInput.at("name", f"1 to {MAX_NAME_CHARS} characters")
        key = ApiKey(
            id=new_id(), name=name, scopes=_valid(scopes), created_at=self._now()
        )
        secret = PREFIX + secrets.token_urlsafe(32)
        async with self._database.write() as connection:
            await connection.execute(
                insert(api_key).values(
                    id=key.id,
                    name=key.name,
                    secret_hash=hash_of(secret),
                    scopes=encode(key.scopes),
                    created_at=time_text(key.created_at),
                )
            )
        return key, secret

    async def check(self, secret: str) -> Principal | None:
        """Tell whose key this is; None when nobody's, or revoked."""
        if not secret or len(secret) > MAX_SECRET_CHARS:
            return None
        digest = hash_of(secret)
        known = self._known.get(digest)
        if known and self._monotonic() < known[1]:
            return known[0]
        revocations, until = self._revocations, self._monotonic() + CACHE_S
        query = select(api_key.c.id, api_key.c.scopes).where(
            api_key.c.secret_hash == digest, api_key.c.revoked_at.is_(None)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            self._known.pop(digest, None)
            return None
        principal = Principal(
            key_id=row.id,
            scopes=msgspec.json.decode(row.scopes, type=frozenset[str]),
        )
        # A revocation while we read may have been too late for our snapshot.
        if revocations == self._revocations:
            if len(self._known) >= _CACHE_ENTRIES:
                self._known.clear()
            self._known[digest] = (principal, until)
        return principal

    async def all(self) -> list[ApiKey]:
        """All keys, newest first, without secrets."""
        query = select(api_key).order_by(
            api_key.c.created_at.desc(), api_key.c.id.desc()
        )
        async with self._database.read() as connection:
            return [_key(row) for row in await connection.execute(query)]

    async def revoke(self, key_id: str) -> None:
        """A revoked key is refused from now on. Raises ``NotFound``."""
        async with self._database.write() as connection:
            found = await connection.scalar(
                select(api_key.c.id).where(api_key.c.id == key_id)
            )
            if found is None:
                raise NotFound.at("id", f"there is no key {key_id}")
            await connection.execute(
                update(api_key)
                .where(api_key.c.id == key_id, api_key.c.revoked_at.is_(None))
                .values(revoked_at=time_text(self._now()))
            )
        self._forget()

    async def revoke_scope(self, scope: str) -> None:
        """Revoke every key that has this scope (the keys of a task that ended)."""
        query = select(api_key.c.id, api_key.c.scopes).where(
            api_key.c.revoked_at.is_(None),
            api_key.c.scopes.contains(encode(scope), autoescape=True),
        )
        async with self._database.write() as connection:
            # LIKE ignores case on SQLite; the list itself decides.
            ids = [
                row.id
                for row in await connection.execute(query)
                if scope in msgspec.json.decode(row.scopes, type=list[str])
            ]
            await connection.execute(
                update(api_key)
                .where(api_key.c.id.in_(ids))
                .values(revoked_at=time_text(self._now()))
            )
        self._forget()

    def _forget(self) -> None:
        self._revocations += 1
        self._known.clear()


def hash_of(secret: str) -> str:
    """Return the SHA-256 under which a secret is kept, in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _valid(scopes: Sequence[str]) -> list[str]:
    unique = sorted(set(scopes))
    if not unique:
        raise InvalidInput.at("scopes", "at least one scope is needed")
    tasks = [scope for scope in unique if scope.startswith("task:")]
    for number, scope in enumerate(unique):
        task_id = scope.removeprefix("task:")
        if scope not in SCOPES and not (scope in tasks and TASK_ID.fullmatch(task_id)):
            known = ", ".join(sorted(SCOPES))
            raise InvalidInput.at(
                f"scopes.{number}", f"{scope!r} is not one of {known}, task:<id>"
            )
    if tasks and unique not in ([tasks[0]], ["model", tasks[0]]):
        raise InvalidInput.at("scopes", "a task's key reaches one task's /v1/* alone")
    return unique


def _key(row: Row[tuple[str, ...]]) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=msgspec.json.decode(row.scopes, type=list[str]),
        created_at=datetime.fromisoformat(row.created_at),
        revoked_at=datetime.fromisoformat(row.revoked_at) if row.revoked_at else None,
    )
