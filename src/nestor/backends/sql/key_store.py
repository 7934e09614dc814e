"""API keys in SQL: only their SHA-256 is stored."""

import asyncio
import contextvars
import hashlib
import math
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
from sqlalchemy import BindParameter, Row, bindparam, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from nestor.backends.sql.database import Database
from nestor.backends.sql.key_limits import checked, limits_of, limits_text
from nestor.backends.sql.lookups import Lookups
from nestor.backends.sql.rows import encode, time_text
from nestor.backends.sql.schema import api_key
from nestor.errors import InvalidInput, NestorError, NotFound, Unavailable
from nestor.model.access import (
    SCOPES,
    SECRET,
    SECRET_PREFIX,
    ApiKey,
    KeyLimits,
    Principal,
)
from nestor.model.ids import TASK_ID, new_id
from nestor.telemetry.logs import get_logger

MAX_NAME_CHARS = 200
CACHE_S = 2.0
"""A key revoked by another process is refused after at most this long."""
BELIEVED_S = 600.0
"""A key that was good is believed for so long while the database does not answer. So an
outage stops nobody; a key that another process revokes meanwhile is refused as soon as
the database answers, or after this time."""
ANSWER_S, ASK_AGAIN_S = 1.0, 1.0
"""So long a request with such a key waits for the database, and after a failure no other
asks for so long."""
NOTE_EVERY_S = 60.0
"""How often the last use of keys is written; ``kill -9`` loses what came after."""

_HIDES = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Characters that make a name look like another one, or break the line it stands in."""
_CACHE_ENTRIES = 1024
_SHOWN_CHARS = 80
_log = get_logger("nestor.keys")


class _Known(NamedTuple):
    principal: Principal
    seen_at: float
    """When the database said so."""


class SqlKeyStore:
    """``ports.key_store.KeyStore``. 256-bit random secrets need no slow hash.

    The last use of each key is kept in memory and written in the background about once a
    minute; ``close`` writes the rest.
    """

    def __init__(
        self,
        database: Database,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        note_every_s: float = NOTE_EVERY_S,
    ) -> None:
        self._database = database
        self._now = now
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}
        """The one that was looked up last is the last."""
        self._revocations = 0
        self._lookups = Lookups("keys")
        self._asked: dict[str, tuple[asyncio.Task[Principal | None], float]] = {}
        """Keys that were good and are looked up again, and until when that is waited for."""
        self._ask_again_at = -math.inf
        self._note_every_s = note_every_s
        self._used: dict[str, datetime] = {}
        self._writer: asyncio.Task[None] | None = None
        self._write_failed = False
        self._closed = False

    async def create(
        self, name: str, scopes: Sequence[str], limits: KeyLimits | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key; the secret is returned here and never again. Raises ``InvalidInput``."""
        if not name.strip() or len(name) > MAX_NAME_CHARS:
            raise InvalidInput.at("name", f"1 to {MAX_NAME_CHARS} characters")
        if found := _HIDES.search(name):
            message = f"holds a control character (U+{ord(found[0]):04X})"
            raise InvalidInput.at("name", message)
        valid = _valid(scopes)
        of_a_task = any(scope.startswith("task:") for scope in valid)
        key = ApiKey(
            id=new_id(),
            name=name,
            scopes=valid,
            created_at=self._now(),
            limits=checked(limits, of_a_task=of_a_task),
        )
        secret = SECRET_PREFIX + secrets.token_urlsafe(32)
        async with self._database.write() as connection:
            await connection.execute(
                insert(api_key).values(
                    id=key.id,
                    name=key.name,
                    secret_hash=hash_of(secret),
                    scopes=encode(key.scopes),
                    created_at=time_text(key.created_at),
                    limits=limits_text(key.limits),
                )
            )
        return key, secret

    async def check(self, secret: str) -> Principal | None:
        """Tell whose key this is; None when nobody's, or revoked.

        What cannot be a key is answered without a lookup. See ``BELIEVED_S`` for what
        holds while the database is away. Raises ``Unavailable``.
        """
        if not SECRET.fullmatch(secret):
            return None
        digest = hash_of(secret)
        principal = self._cached(digest)
        if principal is None and self._believed(digest):
            principal = await self._asked_shortly(digest)
        elif principal is None:
            principal = await self._looked_up(digest)
        if principal is not None:
            self._note_use(principal.key_id)
        return principal

    def _cached(self, digest: str) -> Principal | None:
        known = self._known.get(digest)
        fresh = known is not None and self._monotonic() < known.seen_at + CACHE_S
        return known.principal if known is not None and fresh else None

    def _believed(self, digest: str) -> Principal | None:
        """Return whose key this was when that was seen last, if it is not too long ago."""
        known = self._known.get(digest)
        if known is None or self._monotonic() >= known.seen_at + BELIEVED_S:
            return None
        return known.principal

    async def _asked_shortly(self, digest: str) -> Principal | None:
        """Look up a key that was good; while there is no answer, it is."""
        now = self._monotonic()
        asked = self._asked.get(digest)
        if asked is None and now >= self._ask_again_at:
            task = asyncio.create_task(
                self._looked_up(digest), name="key", context=contextvars.Context()
            )
            asked = self._asked[digest] = (task, now + ANSWER_S)
            task.add_done_callback(lambda task: self._answered(digest, task))
        if asked is not None and (wait_s := asked[1] - now) > 0:
            # Who leaves does not end it: others wait for it, too.
            await asyncio.wait({asked[0]}, timeout=wait_s)
        return self._believed(digest)

    def _answered(self, digest: str, task: asyncio.Task[Principal | None]) -> None:
        del self._asked[digest]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ask_again_at = self._monotonic() + ASK_AGAIN_S
            if not isinstance(error, Unavailable):
                _log.error("key_not_looked_up", error=repr(error))

    async def _looked_up(self, digest: str) -> Principal | None:
        async with self._lookups.turn(known=digest in self._known):
            # Of many requests with one key the first has looked.
            return self._cached(digest) or await self._read(digest)

    async def _read(self, digest: str) -> Principal | None:
        revocations, seen_at = self._revocations, self._monotonic()
        columns = (api_key.c.id, api_key.c.name, api_key.c.scopes, api_key.c.limits)
        query = select(*columns).where(
            api_key.c.secret_hash == digest, api_key.c.revoked_at.is_(None)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            # Guesses are not remembered: they would push out what is known.
            self._known.pop(digest, None)
            return None
        principal = Principal(
            key_id=row.id,
            scopes=msgspec.json.decode(row.scopes, type=frozenset[str]),
            limits=limits_of(row.limits),
            name=row.name,
        )
        # A revocation while we read may have been too late for our snapshot.
        if revocations == self._revocations:
            known = self._known
            known.pop(digest, None)
            if len(known) >= _CACHE_ENTRIES:
                del known[next(iter(known))]
            known[digest] = _Known(principal=principal, seen_at=seen_at)
        return principal

    async def all(self) -> list[ApiKey]:
        """All keys, newest first, without secrets; with what this process saw of their use."""
        query = select(api_key).order_by(
            api_key.c.created_at.desc(), api_key.c.id.desc()
        )
        async with self._database.read() as connection:
            return [_key(row, self._used) for row in await connection.execute(query)]

    async def close(self) -> None:
        """Write the last uses that are not written.

        Never raises; a locked database is waited for as by any writer (30 s at most).
        """
        self._closed = True
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        if asked := [task for task, _ in self._asked.values()]:
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
        await self._write_uses()

    def _note_use(self, key_id: str) -> None:
        at = self._now()
        before = self._used.get(key_id)
        self._used[key_id] = at if before is None else max(at, before)
        if self._writer is None and not self._closed:
            # A context of its own: what it logs is not of the request that began it.
            self._writer = asyncio.create_task(
                self._write_now_and_then(),
                name="key uses",
                context=contextvars.Context(),
            )

    async def _write_now_and_then(self) -> None:
        while self._used:
            await asyncio.sleep(self._note_every_s)
            await self._write_uses()
        self._writer = None

    async def _write_uses(self) -> None:
        """Write what was noted, in one transaction; what cannot be written stays noted."""
        noted = dict(self._used)
        if not noted:
            return
        at: BindParameter[str] = bindparam("at")
        statement = (
            update(api_key)
            .where(
                api_key.c.id == bindparam("key_id"),
                # Another process may have written a later use.
                or_(api_key.c.last_used_at.is_(None), api_key.c.last_used_at < at),
            )
            .values(last_used_at=at)
        )
        rows = [{"key_id": key, "at": time_text(used)} for key, used in noted.items()]
        try:
            async with self._database.write() as connection:
                await connection.execute(statement, rows)
        except (NestorError, SQLAlchemyError) as error:
            # Nobody waits for this; it is tried again, and said once.
            if not self._write_failed:
                _log.warning("key_uses_not_written", error=str(error))
            self._write_failed = True
            return
        self._write_failed = False
        for key, used in noted.items():
            if self._used.get(key) == used:
                del self._used[key]

    async def revoke(self, key_id: str) -> None:
        """A revoked key is refused from now on. Raises ``NotFound``."""
        try:
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
        finally:
            # Also when that failed: who revokes a key does not want it believed.
            self._forget(lambda known: known.key_id == key_id)

    async def revoke_scope(self, scope: str) -> None:
        """Revoke every key that has this scope (the keys of a task that ended)."""
        query = select(api_key.c.id, api_key.c.scopes).where(
            api_key.c.revoked_at.is_(None),
            api_key.c.scopes.contains(encode(scope), autoescape=True),
        )
        try:
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
        finally:
            self._forget(lambda known: scope in known.scopes)

    def _forget(self, is_meant: Callable[[Principal], bool]) -> None:
        """Believe some keys no more. The others stay: the database may be away next."""
        self._revocations += 1
        for digest, known in list(self._known.items()):
            if is_meant(known.principal):
                del self._known[digest]


def hash_of(secret: str) -> str:
    """Return the SHA-256 under which a secret is kept, in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _valid(scopes: Sequence[str]) -> list[str]:
    if not scopes:
        raise InvalidInput.at("scopes", "at least one scope is needed")
    for number, scope in enumerate(scopes):
        head, _, task_id = scope.partition("task:")
        if scope in SCOPES or (not head and TASK_ID.fullmatch(task_id)):
            continue
        known = ", ".join(sorted(SCOPES))
        raise InvalidInput.at(
            f"scopes.{number}",
            f"{scope[:_SHOWN_CHARS]!r} is not one of {known}, task:<id>",
        )
    unique = sorted(set(scopes))
    tasks = [scope for scope in unique if scope.startswith("task:")]
    if tasks and unique not in ([tasks[0]], ["model", tasks[0]]):
        raise InvalidInput.at("scopes", "a task's key reaches one task's /v1/* alone")
    return unique


def _key(row: Row[tuple[str, ...]], used: Mapping[str, datetime]) -> ApiKey:
    stored = _time(row.last_used_at)
    seen = [at for at in (stored, used.get(row.id)) if at is not None]
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=msgspec.json.decode(row.scopes, type=list[str]),
        created_at=datetime.fromisoformat(row.created_at),
        revoked_at=_time(row.revoked_at),
        last_used_at=max(seen, default=None),
        limits=limits_of(row.limits),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
