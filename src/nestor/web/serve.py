"""Listen on every port or on none, serve, and stop without cutting anybody off."""

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import uvicorn

from nestor.errors import Misconfigured
from nestor.web.edge import ASGIApp
from nestor.web.protocol import EdgeProtocol
from nestor.web.wire import MAX_CONNECTIONS, Deadlines, Wire

DRAIN_S = 10
"""What is being served when the layers stop has this long to finish."""
BACKLOG = 2_048
OPEN_FILES = 16_384
"""As many files (connections are files) as the process may have open, if it is let."""
OTHER_FILES = 256
"""Kept back for all that is no connection to a port."""


async def serve(
    apps: Mapping[str, ASGIApp],
    sockets: Mapping[str, socket.socket],
    *,
    ready: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
    hurry: asyncio.Event | None = None,
    drain_s: int = DRAIN_S,
    deadlines: Deadlines | None = None,
    max_connections: int = MAX_CONNECTIONS,
) -> None:
    """Serve each layer on the socket that ``bind`` took for it, until ``stop`` is set.

    ``ready`` is awaited once every port answers; the layers are started when it returns.
    Returns when all is answered, at most ``drain_s`` and a second after ``stop``; the
    sockets are closed then. At ``hurry`` what is still being served is cut off.

    The process's soft limit of open files is raised, to ``OPEN_FILES`` at most and never
    over its hard limit. Each port takes ``max_connections``, or its share of those files
    when that is less.
    """
    share = (_raise_file_limit() - OTHER_FILES) // max(len(apps), 1)
    limit = max(min(max_connections, share), 1)
    servers = {
        layer: _Server(_config(app, drain_s), _wire(app, deadlines, limit))
        for layer, app in apps.items()
    }
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
        closing = (servers[name].close(sockets[name], hurry) for name in opened)
        await asyncio.gather(*closing)
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

    def __init__(self, config: uvicorn.Config, wire: Wire) -> None:
        super().__init__(config)
        self.server_state = self.wire = wire

    async def open(self, sock: socket.socket) -> None:
        """Answer connections of ``sock``."""
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.on_tick(0)
        await self.startup(sockets=[sock])

    async def close(self, sock: socket.socket, hurry: asyncio.Event | None) -> None:
        """Stop listening, let requests finish for a while, then cut what is left."""
        cut = asyncio.create_task(self._cut(hurry)) if hurry else None
        try:
            await self.shutdown(sockets=[sock])
        finally:
            if cut is not None:
                cut.cancel()
        left = list(self.server_state.tasks)
        if left:
            await asyncio.wait(left, timeout=1)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _cut(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        self.force_exit = True
        for task in list(self.server_state.tasks):
            task.cancel()


def _config(app: ASGIApp, drain_s: int) -> uvicorn.Config:
    return uvicorn.Config(
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
        timeout_graceful_shutdown=drain_s,
    )


def _wire(app: ASGIApp, deadlines: Deadlines | None, limit: int) -> Wire:
    note = getattr(app, "note_refusal", None)  # of ``LayerApp``; others need not care
    return Wire(deadlines, max_connections=limit, note_refusal=note)


def _raise_file_limit() -> int:
    """Return how many files this process may have open from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    # Some systems have one more limit, of which they only say no.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


async def _until(stop: asyncio.Event, servers: Mapping[str, _Server]) -> None:
    """Wait, keeping the Date header of the replies right and slow clients out."""
    now = asyncio.get_running_loop().time
    last = now()
    every_s = min(server.wire.deadlines.sweep_s for server in servers.values())
    while not stop.is_set():
        for server in servers.values():
            await server.on_tick(0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every_s)
        elapsed_s, last = now() - last, now()
        for server in servers.values():
            server.wire.sweep(elapsed_s)


def _tell(app: Any, what: str, *arguments: Any) -> None:
    """``LayerApp`` wants to know; any other ASGI application may be served as well."""
    if hasattr(app, what):
        getattr(app, what)(*arguments)
