"""Connections to PostgreSQL that notice a server which is gone, frozen or wrongly set.

PostgreSQL has no timeout for a server that holds a connection and says nothing, and a
statement may rightly take long. So a silent server is asked by a second connection: while
that one is answered, the first waits on; where it is not, all that wait are cut off.
"""

import asyncio
import re
from typing import Any, ClassVar

import psycopg
from psycopg import waiting
from psycopg.types.string import StrDumper
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from nestor.errors import Misconfigured, Unavailable

SILENCE_S = 1.0
"""A statement that is not answered for so long makes us ask whether anybody is there."""
CONNECT_S = 2.0
"""Longest wait for a connection, the asking one too."""
PATIENCE_S = 0.3
"""Longest wait of anybody while the server is known to be away: it is asked on the side."""
STATEMENT_S, LOCK_S = 60, 30
OLDEST, OLDEST_NUMBER = "14", 140000
REMEDY = "start PostgreSQL, or correct NESTOR_DATABASE_URL"
OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in (
        ("statement_timeout", f"{STATEMENT_S}s"),
        ("lock_timeout", f"{LOCK_S}s"),
        ("idle_in_transaction_session_timeout", f"{STATEMENT_S}s"),
        # Work for who has hung up ends.
        ("client_connection_check_interval", "2s"),
    )
)
_WRONG = re.compile(
    r"password authentication failed|no password supplied|no pg_hba\.conf entry"
    r"|(?:database|role) \".*\" does not exist|permission denied for database"
    r"|is not permitted to log in|unrecognized configuration parameter"
    r"|could not translate host name|failed to resolve host|certificate|SSL"
)
"""What waiting does not heal. Only in English: elsewhere it counts as an outage."""


def engine_of(url: str) -> AsyncEngine:
    """Make the engine for ``postgresql+psycopg://…``; nothing is connected yet."""
    return create_async_engine(
        url,
        pool_pre_ping=True,
        pool_timeout=SILENCE_S + CONNECT_S,
        connect_args={
            "async_creator_fn": _Server().connect,
            "options": OPTIONS,
            "application_name": "nestor",
        },
    )


def place_of(url: str) -> str:
    """Return host and database for people: no user, no password."""
    parsed = make_url(url)
    host = parsed.host or parsed.query.get("host") or "its socket"
    port = f":{parsed.port}" if parsed.port else ""
    return f"{parsed.database} at {host}{port}"


async def look(url: str) -> str:
    """Say which server stands there. Raises ``Misconfigured``, ``Unavailable``; both tell how to mend."""
    parsed = make_url(url).set(drivername="postgresql")
    server = _Server()
    try:
        connection = await server.connect(
            conninfo=parsed.render_as_string(hide_password=False), options=OPTIONS
        )
    except psycopg.OperationalError as error:
        raise refusal(error, url) from error
    try:
        info = connection.info
        _refuse_old(info.server_version)
        row = await (await connection.execute("SHOW server_version")).fetchone()
    except psycopg.OperationalError as error:
        raise refusal(error, url) from error
    finally:
        await connection.close()
    version = row[0] if row else "of unknown version"
    return f"PostgreSQL {version}, {place_of(url)}"


def refusal(error: BaseException | None, url: str) -> Misconfigured | Unavailable:
    """Tell what is wrong with a server, and how to mend it. ``error``: of the driver."""
    text = in_one_line(error)
    where = f"PostgreSQL ({place_of(url)})"
    if _WRONG.search(text):
        return Misconfigured(f"NESTOR_DATABASE_URL: {where} refuses: {text}")
    return Unavailable(f"{where} does not answer: {text}; {REMEDY}")


def in_one_line(error: BaseException | None) -> str:
    """Return what the driver says, which is often set in several lines."""
    return " ".join(str(error).split())


def refuse_server(connection: Any) -> None:
    """Raise ``Misconfigured`` for a server too old, or one that does not hold all text."""
    _refuse_old(int(connection.exec_driver_sql("SHOW server_version_num").scalar()))
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise Misconfigured(
            f"NESTOR_DATABASE_URL: the database has the encoding {encoding}; make one "
            "with: CREATE DATABASE nestor ENCODING 'UTF8' TEMPLATE template0"
        )


def _refuse_old(number: int) -> None:
    if number < OLDEST_NUMBER:
        message = f"version {OLDEST} or newer is needed, this is {number // 10000}"
        raise Misconfigured(f"NESTOR_DATABASE_URL: PostgreSQL: {message}")


class _Text(StrDumper):
    """PostgreSQL holds no NUL: it becomes U+FFFD, so that looking for one finds nothing."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)


class _Server:
    """The server of one engine: connects to it, and knows whether it was there just now."""

    def __init__(self) -> None:
        self._params: dict[str, Any] = {}
        self._away = ""
        """Why nobody could connect when that was tried last; empty: somebody could."""
        self._asking: asyncio.Task[bool] | None = None

    async def connect(self, **params: Any) -> "_Connection":
        """Connect within ``CONNECT_S``. Raises ``psycopg.OperationalError``."""
        self._params = params
        if self._away and not await self._is_back():
            raise psycopg.OperationalError(self._away)
        try:
            connection = await self._connected()
        except psycopg.OperationalError as error:
            self._away = in_one_line(error)
            raise
        self._away = ""
        connection.server = self
        connection.adapters.register_dumper(str, _Text)
        return connection

    async def _is_back(self) -> bool:
        task = self.asked()
        await asyncio.wait({task}, timeout=PATIENCE_S)
        return task.done() and task.result()

    async def _connected(self) -> "_Connection":
        try:
            async with asyncio.timeout(CONNECT_S):
                return await _Connection.connect(**self._params)
        except TimeoutError:
            message = f"no connection within {CONNECT_S:g} s"
            raise psycopg.OperationalError(message) from None

    def asked(self) -> asyncio.Task[bool]:
        """Ask whether the server is there; all who wonder at one moment ask once."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._answers(), name="is it there")
            self._asking.add_done_callback(self._was_asked)
        return self._asking

    def _was_asked(self, _task: asyncio.Task[bool]) -> None:
        self._asking = None

    async def _answers(self) -> bool:
        try:
            connection = await self._connected()
        except psycopg.OperationalError as error:
            self._away = in_one_line(error)
            # One that refuses (too many clients, shutting down) is there.
            return "FATAL" in self._away
        await connection.close()
        return True


class _Connection(psycopg.AsyncConnection[Any]):
    """A connection whose statements end when the server is not there any more."""

    server: _Server | None = None
    _limit: asyncio.Timeout | None = None
    _watch: asyncio.TimerHandle | None = None
    _INTERVAL_S: ClassVar[float] = 0.1

    async def wait(
        self,
        gen: Any,
        interval: float = _INTERVAL_S,
        timeout: float | None = None,  # noqa: ASYNC109 - psycopg's own name
    ) -> Any:
        """As psycopg's. Who is cancelled leaves a closed connection: nobody waits for its end."""
        loop = asyncio.get_running_loop()
        limit = self._limit = asyncio.timeout(None)
        self._watch = loop.call_later(SILENCE_S, self._wonder)
        try:
            async with limit:
                return await waiting.wait_async(
                    gen, self.pgconn.socket, interval=interval, timeout=timeout
                )
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise
        except TimeoutError:
            if not limit.expired():
                raise
            self.pgconn.finish()
            message = "the server says nothing any more"
            raise psycopg.OperationalError(message) from None
        finally:
            self._limit = None
            self._watch.cancel()

    def _wonder(self) -> None:
        if self.server is not None and self._limit is not None:
            task, limit = self.server.asked(), self._limit
            task.add_done_callback(lambda asked: self._told(asked, limit))

    def _told(self, asked: asyncio.Task[bool], limit: asyncio.Timeout) -> None:
        if self._limit is not limit:
            return  # answered meanwhile
        loop = asyncio.get_running_loop()
        if asked.cancelled() or asked.exception() is not None or asked.result():
            self._watch = loop.call_later(SILENCE_S, self._wonder)
        else:
            limit.reschedule(loop.time())
