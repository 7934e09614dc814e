"""An upstream that answers as it is told, byte for byte, and writes down what it got."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Script = Callable[["Call"], Awaitable[None]]
HEALTHY = b'{"status":"healthy","check_type":"live"}'


class Call:
    """One request as it came, and the way to answer it."""

    def __init__(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.head = head
        self._reader = reader
        self._writer = writer

    @property
    def line(self) -> bytes:
        """``GET /path HTTP/1.1``."""
        return self.head.split(b"\r\n", 1)[0]

    @property
    def names(self) -> set[bytes]:
        """Names of its headers, in lower case."""
        lines = self.head.split(b"\r\n")[1:]
        return {line.partition(b":")[0].lower() for line in lines if line}

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def hang(self) -> None:
        """Say nothing more, until the other side has gone."""
        await self._reader.read()

    def reset(self) -> None:
        """Break the connection off."""
        self._writer.transport.abort()


def reply(
    body: bytes = HEALTHY,
    *more: str,
    status: str = "200 OK",
    kind: str | None = "application/json",
) -> bytes:
    """A whole reply."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *more]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def says(data: bytes, *, closes: bool = False) -> Script:
    """Answer every call with these bytes."""

    async def script(call: Call) -> None:
        await call.send(data)
        if closes:
            raise ConnectionAbortedError

    return script


class Upstream:
    """A server on a free port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.calls: list[Call] = []
        self.connections = 0
        self.most_connections = 0
        self.script: Script = says(reply())

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer what comes on one connection."""
        self.connections += 1
        self.most_connections = max(self.most_connections, self.connections)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                call = Call(head, reader, writer)
                self.calls.append(call)
                await self.script(call)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def running() -> AsyncIterator[Upstream]:
    """Run one until the end of the block."""
    tasks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(upstream.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    upstream = Upstream(server.sockets[0].getsockname()[1])
    try:
        yield upstream
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
