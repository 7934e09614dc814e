"""Sessions of the page in SQL: only hashes of their secrets are stored."""

import hmac
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, delete, insert, select

from nestor.backends.sql.database import Database
from nestor.backends.sql.lookups import Lookups
from nestor.backends.sql.rows import time_text
from nestor.backends.sql.schema import page_link, page_session
from nestor.errors import Unauthorized
from nestor.model.access import SECRET, SECRET_PREFIX, PageLink, PageSession
from nestor.model.ids import new_id

LINK_LIFE = timedelta(minutes=5)
SESSION_LIFE = timedelta(hours=8)

_MAX_KNOWN = 1024
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
        made_under: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``made_under``: a digest of the admin key. Under another key all are nobody's.

        It goes into every stored hash and is not stored itself: who reads the database
        cannot try admin keys against it.
        """
        self._database = database
        self._made_under = made_under.encode()
        self._now = now
        self._lookups = Lookups("sessions")
        self._known: set[str] = set()

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
                    token_hash=self._hash(link.token),
                    expires_at=time_text(link.expires_at),
                )
            )
        # Its turn comes before guesses, however many there are.
        self._remember(self._hash(link.token))
        return link

    async def redeem(self, token: str) -> tuple[PageSession, str]:
        """Turn a token into a session; see ``SessionStore.redeem``."""
        if not SECRET.fullmatch(token):
            raise Unauthorized(_REFUSED)
        digest = self._hash(token)
        # Guesses end here: writers wait for each other.
        found = select(page_link.c.token_hash).where(page_link.c.token_hash == digest)
        if await self._looked_up(digest, found) is None:
            self._known.discard(digest)
            raise Unauthorized(_REFUSED)
        now, secret = self._now(), _secret()
        session = PageSession(
            id=new_id(), created_at=now, expires_at=now + SESSION_LIFE
        )
        async with self._database.write() as connection:
            used = await connection.execute(
                delete(page_link).where(
                    page_link.c.token_hash == digest,
                    page_link.c.expires_at > time_text(now),
                )
            )
            if used.rowcount != 1:
                raise Unauthorized(_REFUSED)
            await connection.execute(
                insert(page_session).values(
                    id=session.id,
                    secret_hash=self._hash(secret),
                    created_at=time_text(session.created_at),
                    expires_at=time_text(session.expires_at),
                )
            )
        self._known.discard(digest)
        self._remember(self._hash(secret))
        return session, secret

    async def check(self, secret: str) -> PageSession | None:
        """Tell whose session this is; None when nobody's, ended, or too old.

        What cannot be a secret is answered without a lookup. Raises ``Unavailable``.
        """
        if not SECRET.fullmatch(secret):
            return None
        digest = self._hash(secret)
        found = select(page_session).where(
            page_session.c.secret_hash == digest,
            page_session.c.expires_at > time_text(self._now()),
        )
        row = await self._looked_up(digest, found)
        if row is None:
            self._known.discard(digest)
            return None
        self._remember(digest)
        return PageSession(
            id=row.id,
            created_at=datetime.fromisoformat(row.created_at),
            expires_at=datetime.fromisoformat(row.expires_at),
        )

    async def _looked_up(self, digest: str, query: Select[Any]) -> Row[Any] | None:
        async with (
            self._lookups.turn(known=digest in self._known),
            self._database.read() as connection,
        ):
            row: Row[Any] | None = (await connection.execute(query)).first()
            return row

    def _remember(self, digest: str) -> None:
        """Know a good secret by its hash; no guess adds to these."""
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known.add(digest)

    def _hash(self, secret: str) -> str:
        return hmac.digest(self._made_under, secret.encode(), "sha256").hex()

    async def end(self, session_id: str) -> None:
        """The session is refused from now on; nothing happens when there is none."""
        async with self._database.write() as connection:
            await connection.execute(
                delete(page_session).where(page_session.c.id == session_id)
            )

    async def end_all(self) -> None:
        """Every session, and every link that was not used, is refused from now on."""
        async with self._database.write() as connection:
            for table in (page_link, page_session):
                await connection.execute(delete(table))


def _secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)
