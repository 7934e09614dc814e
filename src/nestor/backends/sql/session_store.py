"""Sessions of the page in SQL: only hashes of their secrets are stored."""

import asyncio
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Row, delete, insert, select

from nestor.backends.sql.database import Database
from nestor.backends.sql.key_store import PREFIX, hash_of
from nestor.backends.sql.rows import time_text
from nestor.backends.sql.schema import page_link, page_session
from nestor.errors import Unauthorized, Unavailable
from nestor.model.access import PageLink, PageSession
from nestor.model.ids import new_id

LINK_LIFE = timedelta(minutes=5)
SESSION_LIFE = timedelta(hours=8)
LOOKUPS = 2
"""Secrets looked up at one time. Guessed ones must leave the database to real work."""
LOOKUP_WAIT_S = 5.0
"""Longest wait for a turn; who waits longer is told to come back."""

_FORM = re.compile(PREFIX + "[A-Za-z0-9_-]{43}")
"""32 random bytes in base64url. The prefix lets redaction know a secret anywhere."""
_MAX_SEEN = 1024
_REFUSED = (
    "this link is not known, was used, or is older than five minutes; make a new one in"
    " a terminal: nestor page"
)


class SqlSessionStore:
    """``ports.session_store.SessionStore``. What is too old is removed when links are made.

    Ages are of the wall clock: moving it back lets links and sessions live longer by as
    much. Nothing is cached, so that a session that was ended is refused at once.
    """

    def __init__(
        self,
        database: Database,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._now = now
        # A flood of guesses fills its own lane, not that of sessions seen before.
        self._guesses = asyncio.Semaphore(LOOKUPS)
        self._renewals = asyncio.Semaphore(LOOKUPS)
        self._seen: set[str] = set()

    async def make_link(self) -> PageLink:
        """Make a link that signs one browser in, once, within five minutes."""
        now = self._now()
        link = PageLink(token=_secret(), expires_at=now + LINK_LIFE)
        async with self._database.write() as connection:
            for table in (page_link, page_session):
                await connection.execute(
                    delete(table).where(table.c.expires_at <= time_text(now))
                )
            await connection.execute(
                insert(page_link).values(
                    token_hash=hash_of(link.token),
                    expires_at=time_text(link.expires_at),
                )
            )
        return link

    async def redeem(self, token: str) -> tuple[PageSession, str]:
        """Turn a token into a session; see ``SessionStore.redeem``."""
        if not _FORM.fullmatch(token):
            raise Unauthorized(_REFUSED)
        now, secret = self._now(), _secret()
        session = PageSession(
            id=new_id(), created_at=now, expires_at=now + SESSION_LIFE
        )
        async with self._database.write() as connection:
            used = await connection.execute(
                delete(page_link).where(
                    page_link.c.token_hash == hash_of(token),
                    page_link.c.expires_at > time_text(now),
                )
            )
            if used.rowcount != 1:
                raise Unauthorized(_REFUSED)
            await connection.execute(
                insert(page_session).values(
                    id=session.id,
                    secret_hash=hash_of(secret),
                    created_at=time_text(session.created_at),
                    expires_at=time_text(session.expires_at),
                )
            )
        return session, secret

    async def check(self, secret: str) -> PageSession | None:
        """Tell whose session this is; None when nobody's, ended, or too old.

        What cannot be a secret is answered without a lookup. Raises ``Unavailable``.
        """
        if not _FORM.fullmatch(secret):
            return None
        digest = hash_of(secret)
        row = await self._looked_up(digest)
        if row is None:
            self._seen.discard(digest)
            return None
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        self._seen.add(digest)
        return PageSession(
            id=row.id,
            created_at=datetime.fromisoformat(row.created_at),
            expires_at=datetime.fromisoformat(row.expires_at),
        )

    async def _looked_up(self, digest: str) -> Row[tuple[str, ...]] | None:
        lane = self._renewals if digest in self._seen else self._guesses
        try:
            async with asyncio.timeout(LOOKUP_WAIT_S):
                await lane.acquire()
        except TimeoutError:
            message = "too many unknown sessions are being looked up; try again"
            raise Unavailable(message) from None
        try:
            query = select(page_session).where(
                page_session.c.secret_hash == digest,
                page_session.c.expires_at > time_text(self._now()),
            )
            async with self._database.read() as connection:
                return (await connection.execute(query)).first()
        finally:
            lane.release()

    async def end(self, session_id: str) -> None:
        """The session is refused from now on; nothing happens when there is none."""
        async with self._database.write() as connection:
            await connection.execute(
                delete(page_session).where(page_session.c.id == session_id)
            )


def _secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)
