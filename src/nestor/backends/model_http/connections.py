"""Connections to model servers, kept between calls, and never used when they have ended.

Servers close a connection that was idle: llama.cpp and uvicorn after 5 s, nginx after
75 s. A question sent into a connection that is just being closed is lost, and nobody can
tell whether it was read before: repeating it by itself may pay for it twice. So:

- A connection is taken again only while it was idle for less than servers keep it, and
  only if nothing can be read from it: an end that already arrived is seen before a byte
  is sent, and another connection is taken. Nothing was asked on the old one.
- What remains is an end that is under way while the question is sent. Then the call
  fails with ``UpstreamError`` whose ``stale`` is true. Whoever called may ask again at
  once; the attempt that was lost is one of which nobody knows whether it was billed.
"""

import asyncio
import select
import time
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError

IDLE_S = 3.0
"""How long a connection without TLS is kept: a new one costs next to nothing."""
TLS_IDLE_S = 30.0
"""With TLS: what stands before providers keeps them a minute and more."""
MAX_CONNECTIONS = 1000
"""Of one session, to all servers together; who comes then waits for one."""

_reused: ContextVar[bool] = ContextVar("reused", default=False)


def forget_reuse() -> None:
    """Say, before a call, that nothing is known of its connection yet."""
    _reused.set(False)


def was_reused() -> bool:
    """Tell whether the connection that this task was given last had served before."""
    return _reused.get()


class KeptConnections(aiohttp.TCPConnector):
    """A connector that looks at a kept connection before it gives it to a call."""

    def __init__(
        self,
        *,
        resolver: AbstractResolver | None = None,
        idle_s: float = IDLE_S,
        tls_idle_s: float = TLS_IDLE_S,
        limit: int = MAX_CONNECTIONS,
    ) -> None:
        super().__init__(
            resolver=resolver,
            limit=limit,
            limit_per_host=0,
            keepalive_timeout=max(idle_s, tls_idle_s),
        )
        self._factory = partial(_reader, loop=asyncio.get_running_loop())
        self._idle_s = idle_s
        self._tls_idle_s = tls_idle_s
        self._left_at: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: Any,  # noqa: ASYNC109 - the driver's own
    ) -> Connection:
        """Give a new connection, or a kept one on which nothing has ended."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            left_at = self._left_at.pop(protocol, None)
            if left_at is None:
                break
            kept_s = self._tls_idle_s if req.is_ssl() else self._idle_s
            if time.monotonic() - left_at < kept_s and _is_silent(connection):
                break
            connection.close()
        _reused.set(left_at is not None)
        connection.add_callback(partial(self._leave, protocol))
        return connection

    def _leave(self, protocol: Any) -> None:
        self._left_at[protocol] = time.monotonic()


class _Answer(ResponseHandler):
    """The driver's reader of answers, which tells who reads a body that it cannot go on.

    Where the frames of a body make no sense, the driver ends the connection and says so to
    who waits for a head; who waits for more of the body would wait until a time limit.
    """

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        body = self._payload
        super().set_exception(exc, *cause)
        if isinstance(exc, HttpProcessingError) and body and not body.is_eof():
            body.set_exception(aiohttp.ClientPayloadError(exc.message), *cause)


def _reader(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _Answer(loop)


def _is_silent(connection: Connection) -> bool:
    """Tell whether nothing came in since the last answer: neither an end nor anything."""
    transport = connection.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return not poll.poll(0)
