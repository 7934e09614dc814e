"""Sessions of the page in SQL: only hashes of their secrets are stored."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, insert, select

from nestor.backends.sql.database import Database
from nestor.backends.sql.key_store import hash_of
from nestor.backends.sql.rows import time_text
from nestor.backends.sql.schema import page_link, page_session
from nestor.errors import Unauthorized
from nestor.model.access import PageLink, PageSession
from nestor.model.ids import new_id

LINK_LIFE = timedelta(minutes=5)
SESSION_LIFE = timedelta(hours=8)
MAX_SECRET_CHARS = 200


class SqlSessionStore:
    """``ports.session_store.SessionStore``. What is too old is removed when links are made."""

    def __init__(
        self,
        database: Database,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._now = now

    async def make_link(self) -> PageLink:
        """Make a link that signs one browser in, once, within five minutes."""
        now = self._now()
        link = PageLink(token=secrets.token_urlsafe(32), expires_at=now + LINK_LIFE)
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
        now = self._now()
        session = PageSession(
            id=new_id(), created_at=now, expires_at=now + SESSION_LIFE
        )
        secret = secrets.token_urlsafe(32)
        async with self._database.write() as connection:
            used = await connection.execute(
                delete(page_link).where(
                    page_link.c.token_hash == hash_of(token[: MAX_SECRET_CHARS + 1]),
                    page_link.c.expires_at > time_text(now),
                )
            )
            if used.rowcount != 1:
                raise Unauthorized(
                    "this link was used, or is older than five minutes; make a new one:"
                    " nestor page"
                )
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
        """Tell whose session this is; None when nobody's, ended, or too old."""
        if not secret or len(secret) > MAX_SECRET_CHARS:
            return None
        query = select(page_session).where(
            page_session.c.secret_hash == hash_of(secret),
            page_session.c.expires_at > time_text(self._now()),
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        return PageSession(
            id=row.id,
            created_at=datetime.fromisoformat(row.created_at),
            expires_at=datetime.fromisoformat(row.expires_at),
        )

    async def end(self, session_id: str) -> None:
        """The session is refused from now on; nothing happens when there is none."""
        async with self._database.write() as connection:
            await connection.execute(
                delete(page_session).where(page_session.c.id == session_id)
            )
