"""Listen on every port or on none, serve, and stop without cutting anybody off."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import uvicorn

from nestor.errors import Misconfigured
from nestor.web.edge import ASGIApp
from nestor.web.protocol import EdgeProtocol

DRAIN_S = 10
"""What is being served when the layers stop has this long to finish."""
KEEP_ALIVE_S = 20
"""Longer than clients of this stack keep idle connections (15 s), so that they close first."""
BACKLOG = 512


async def serve(
    apps: Mapping[str, ASGIApp],
    sockets: Mapping[str, socket.socket],
    *,
    ready: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
    drain_s: int = DRAIN_S,
) -> None:
    """Serve each layer on the socket that ``bind`` took for it, until ``stop`` is set.

    ``ready`` is awaited once every port answers; the layers are started when it returns.
    Returns when all is answered, at most ``drain_s`` and a second after ``stop``; the
    sockets are closed then.
    """
    servers = {layer: _server(app, drain_s) for layer, app in apps.items()}
    ports = {layer: int(sockets[layer].getsockname()[1]) for layer in apps}
    opened: list[str] = []
    try:
        for layer, server in servers.items():
            await server.open(sockets[layer])
            opened.append(layer)
        await ready()
        for app in apps.values():
            _tell(app, "start", ports)
        await _until(stop, servers)
    finally:
        for app in apps.values():
            _tell(app, "drain")
        await asyncio.gather(*(servers[name].close(sockets[name]) for name in opened))
        for layer in apps:
            sockets[layer].close()


def bind(places: Mapping[str, tuple[str, int]]) -> dict[str, socket.socket]:
    """Take the port of every layer (``{layer: (host, port)}``), or none; 0: a free one.

    Raises ``Misconfigured`` that names the setting.
    """
    owners: dict[tuple[str, int], str] = {}
    for layer, (host, port) in places.items():
        if port and (other := owners.setdefault((host, port), layer)) != layer:
            message = f"{port} is also {_setting(other)}; set another port"
            raise Misconfigured(f"{_setting(layer)}: {message}")
    taken: dict[str, socket.socket] = {}
    try:
        for layer, (host, port) in places.items():
            taken[layer] = _listen(layer, host, port)
    except BaseException:
        for sock in taken.values():
            sock.close()
        raise
    return taken


def event_loop() -> asyncio.AbstractEventLoop:
    """Make the loop to serve on (``asyncio.Runner(loop_factory=event_loop)``)."""
    try:
        import uvloop  # noqa: PLC0415 - not to be had everywhere
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _listen(layer: str, host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Misconfigured(f"NESTOR_HOST: {host}: {error.strerror}") from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Two sockets may be bound to a port while neither listens: only this claims it.
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Misconfigured(_why(layer, host, port, error)) from error
    sock.setblocking(False)
    return sock


def _why(layer: str, host: str, port: int, error: OSError) -> str:
    name = _setting(layer)
    if error.errno == errno.EADDRINUSE:
        return (
            f"{name}: {port} is in use by another program; stop it or set another port"
        )
    if error.errno == errno.EACCES:
        return f"{name}: {port} may not be used by this account; set one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"NESTOR_HOST: {host} is no address of this machine"
    return f"{name}: cannot listen on {host}:{port}: {error.strerror}"


def _setting(layer: str) -> str:
    return f"NESTOR_{layer.upper()}_PORT"


class _Server(uvicorn.Server):
    """uvicorn's server, opened and closed from outside.

    ``uvicorn.Server.serve`` would take the process's signals, once for each port, and
    wake up ten times a second.
    """

    async def open(self, sock: socket.socket) -> None:
        """Answer connections of ``sock``."""
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.on_tick(0)
        await self.startup(sockets=[sock])

    async def close(self, sock: socket.socket) -> None:
        """Stop listening, let requests finish for a while, then cut what is left."""
        await self.shutdown(sockets=[sock])
        left = list(self.server_state.tasks)
        if left:
            await asyncio.wait(left, timeout=1)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _server(app: ASGIApp, drain_s: int) -> _Server:
    config = uvicorn.Config(
        app,
        http=EdgeProtocol,
        ws="none",
        interface="asgi3",
        lifespan="off",
        workers=1,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        forwarded_allow_ips="",
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
    )
    return _Server(config)


async def _until(stop: asyncio.Event, servers: Mapping[str, _Server]) -> None:
    """Wait, keeping the Date header of the replies right."""
    while not stop.is_set():
        for server in servers.values():
            await server.on_tick(0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)


def _tell(app: Any, what: str, *arguments: Any) -> None:
    """``LayerApp`` wants to know; any other ASGI application may be served as well."""
    if hasattr(app, what):
        getattr(app, what)(*arguments)
