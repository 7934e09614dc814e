"""An HTTPS proxy for the hosts that people granted: CONNECT, and nothing else.

Lives in the worker's process, one for each run. A name is looked up once, here, and the
address that was judged is the one that is connected to.
"""

import asyncio
import base64
import contextlib
import hmac
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from nestor.backends.sandbox.networks import Reach
from nestor.backends.sandbox.refusals import Refusals

CONNECTIONS = 32
HEAD_BYTES = 8192
_HEAD_S, _CONNECT_S, IDLE_S = 10.0, 15.0, 300.0
_PART = 65536
_REQUEST = re.compile(rb"([A-Z]{1,20}) (\S{1,2000}) HTTP/1\.[01]\r\n")
_TARGET = re.compile(r"(?P<name>[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\]):(?P<port>[0-9]{1,5})")  # fmt: skip
_AUTHORIZATION = re.compile(
    rb"\r\nproxy-authorization: *basic +([^\s]+) *\r\n", re.IGNORECASE
)
_SAID = {
    400: "Bad Request",
    403: "Forbidden",
    407: "Proxy Authentication Required",
    502: "Bad Gateway",
    503: "Service Unavailable",
}
Address = tuple[str, int]


class Egress:
    """Admits ``hosts`` (``name:port``, compared in lower case); None: all of the internet.

    What it refuses is remembered as ``host NAME:PORT``, which a person can grant, as
    ``plain http …``, which no grant opens, or as ``address …`` where a granted name leads
    to an address that nothing may reach.
    """

    def __init__(
        self,
        *,
        hosts: Sequence[str] | None,
        reach: Reach,
        refusals: Refusals,
        password: str = "",
    ) -> None:
        self._hosts = None if hosts is None else {one.lower() for one in hosts}
        self._reach = reach
        self._refusals = refusals
        login = base64.b64encode(f"nestor:{password}".encode())
        self._login = login if password else None
        self._open: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def on_socket(self, path: Path) -> AsyncIterator[Path]:
        """Serve on a Unix socket in a private folder; yields its path."""
        server = await asyncio.start_unix_server(self._accept, path, limit=HEAD_BYTES)
        path.chmod(0o600)  # noqa: ASYNC240 - one system call
        async with self._serving(server):
            yield path

    @asynccontextmanager
    async def on_port(self) -> AsyncIterator[int]:
        """Serve on a free loopback port; yields it."""
        server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, limit=HEAD_BYTES
        )
        async with self._serving(server):
            yield server.sockets[0].getsockname()[1]

    @asynccontextmanager
    async def _serving(self, server: asyncio.Server) -> AsyncIterator[None]:
        try:
            yield
        finally:
            server.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self._open) >= CONNECTIONS:
            writer.write(_answer(503, f"more than {CONNECTIONS} connections at once"))
            writer.close()
            return
        task = asyncio.create_task(self._connection(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            with contextlib.suppress(
                OSError, TimeoutError, asyncio.IncompleteReadError
            ):
                await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(_HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            writer.write(_answer(400, f"the head is over {HEAD_BYTES} bytes"))
            return
        target = self._admitted(head)
        if isinstance(target, bytes):
            writer.write(target)
            await writer.drain()
            return
        outside = await self._connected(target, writer)
        if outside is None:
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await _joined(reader, writer, *outside)
        finally:
            outside[1].close()

    def _admitted(self, head: bytes) -> Address | bytes:
        """Return where a request may lead, or the answer that refuses it."""
        request = _REQUEST.match(head)
        if request is None:
            return _answer(400, "not a request to a proxy")
        if self._login is not None:
            given = _AUTHORIZATION.search(head)
            if given is None or not hmac.compare_digest(given[1], self._login):
                return _answer(407, "this proxy is for one task alone")
        method, target = request[1].decode(), request[2].decode("latin-1").lower()
        if method != "CONNECT":
            self._refusals.add(_plain(method, target))
            return _answer(403, "only https:// can be reached from here, by CONNECT")
        found = _TARGET.fullmatch(target)
        if found is None or not 0 < int(found["port"]) < 65536:  # noqa: PLR2004
            return _answer(400, "write CONNECT name:port")
        if self._hosts is not None and target not in self._hosts:
            self._refusals.add(f"host {target}")
            return _answer(403, f"{target} is not granted; a person can grant it")
        return found["name"].strip("[]"), int(found["port"])

    async def _connected(
        self, target: Address, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        name, port = target
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            writer.write(_answer(502, f"{name} is not found: {error}"))
            return None
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        faults = {one: self._reach.refuses(one) for one in addresses}
        usable = [one for one in addresses if faults[one] is None]
        if not usable:
            where = addresses[0]
            self._refusals.add(
                f"address {name}:{port} is {where}, which {faults[where]}"
            )
            writer.write(
                _answer(403, f"{name} leads to {where}, which {faults[where]}")
            )
            return None
        why = "it does not answer"
        for address in usable[:4]:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    return await asyncio.open_connection(address, port)
            except (OSError, TimeoutError) as error:
                why = str(error) or why
        writer.write(_answer(502, f"{name}:{port}: {why}"))
        return None


async def _joined(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
) -> None:
    """Copy bytes both ways until both ends are done, or nothing came for a while."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(IDLE_S) as idle:

        async def copy(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter
        ) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(_PART):
                    idle.reschedule(loop.time() + IDLE_S)
                    sink.write(data)
                    await sink.drain()
                sink.write_eof()

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))


def _plain(method: str, target: str) -> str:
    """Say what a request without TLS wanted: not as a host, which could be granted."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(target)
        if parts.scheme == "http" and parts.hostname:
            port = parts.port or 80
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return f"plain http to {host[:100]}:{port}: only https:// can be granted"
    return f"request {method} {target}"


def _answer(status: int, why: str) -> bytes:
    body = f"nestor: {why}\n".encode(errors="replace")
    head = f"HTTP/1.1 {status} {_SAID[status]}\r\nContent-Type: text/plain\r\n"
    if status == 407:  # noqa: PLR2004 - some clients send their login only when asked
        head += 'Proxy-Authenticate: Basic realm="nestor"\r\n'
    return (
        f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body
    )
