"""``nestor up`` with its real deadlines, while a thousand clients do nothing useful."""

import asyncio
import resource
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.system.child import Child

from nestor.web.wire import MAX_CONNECTIONS

pytestmark = [pytest.mark.heavy, pytest.mark.alone]

LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")
HELD = 1_000
MIB = 1 << 20
AT_ONCE = 100


@pytest.fixture(autouse=True)
def _enough_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def rss_bytes(child: Child) -> int:
    assert child.process is not None
    status = Path(f"/proc/{child.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def connections_of(child: Child) -> int:
    assert child.process is not None
    folder = Path(f"/proc/{child.process.pid}/fd")
    found = 0
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):
            found += str(entry.readlink()).startswith("socket:")
    return found


async def health_s(port: int) -> float:
    """Ask once, on a connection of its own; return how long the answer took."""
    began = time.monotonic()
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return time.monotonic() - began


async def watched(child: Child, seconds: float) -> tuple[list[float], int]:
    """Ask every layer for its health again and again; return the times and the most RSS."""
    took, most = [], 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for layer in LAYERS:
            took += [await health_s(child.port(layer))]
        most = max(most, rss_bytes(child))
        await asyncio.sleep(0.2)
    return took, most


class Held:
    """A client that sends ``start``, then ``drop`` every second, and waits for its end."""

    def __init__(self, kind: str, start: bytes, drop: bytes) -> None:
        self.kind = kind
        self._start = start
        self._drop = drop
        self.answer = b""
        self.lasted_s = -1.0

    async def open(self, port: int) -> asyncio.Task[None]:
        """Connect; the task that is returned ends when the server has closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(self._start)
        return asyncio.create_task(self._hold(reader, writer))

    async def _hold(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        began = time.monotonic()
        closed = asyncio.create_task(self._read(reader))
        while not closed.done():
            with suppress(ConnectionError):
                writer.write(self._drop)
            await asyncio.wait({closed}, timeout=1.0)
        self.lasted_s = time.monotonic() - began
        writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while part := await reader.read(4096):
                self.answer += part


async def hold(held: list[Held], port: int) -> list[asyncio.Task[None]]:
    tasks: list[asyncio.Task[None]] = []
    for at in range(0, len(held), AT_ONCE):
        some = held[at : at + AT_ONCE]
        tasks += await asyncio.gather(*(one.open(port) for one in some))
    return tasks


def key_of(child: Child) -> str:
    return (child.home / "api-key").read_text().strip()


def clients(key: str, port: int) -> list[Held]:
    host = f"Host: 127.0.0.1:{port}\r\n"
    body = f"POST /submit HTTP/1.1\r\n{host}Content-Length: 90000\r\n"
    kinds = {
        "idle": ("", b""),
        "head": (f"GET /health/live HTTP/1.1\r\n{host}A: ", b"a"),
        "body": (f"{body}Authorization: Bearer {key}\r\n\r\n", b" "),
    }
    names = list(kinds)
    return [
        Held(names[n % 3], kinds[names[n % 3]][0].encode(), kinds[names[n % 3]][1])
        for n in range(HELD)
    ]


async def test_l4_a_thousand_idle_and_slow_clients_keep_nobody_waiting(
    tmp_path: Path,
) -> None:
    with Child(tmp_path / "home") as child:
        stack = child.start()
        await watched(child, 1.0)
        before, sockets = rss_bytes(child), connections_of(child)
        port = child.port("ralph")
        held = clients(key_of(child), port)
        tasks = await hold(held, port)
        # A client is connected a moment before the server has taken it.
        until = time.monotonic() + 3
        while (taken := connections_of(child) - sockets) <= 0.9 * HELD:
            assert time.monotonic() < until, taken
            await asyncio.sleep(0.05)
        took, most = await watched(child, 4.0)
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        assert len(took) > 2 * len(LAYERS)
        assert max(took) < 1.0
        assert most - before < 100 * MIB
        for one in held:
            assert 0 < one.lasted_s < 10, (one.kind, one.lasted_s)
        answers = Counter((one.kind, one.answer[:12]) for one in held)
        assert {kind for kind, _ in answers} == {"idle", "head", "body"}
        assert answers["idle", b""] == sum(one.kind == "idle" for one in held)
        for kind in ("head", "body"):
            assert answers[kind, b"HTTP/1.1 408"] == sum(o.kind == kind for o in held)
        assert stack.call("ralph", "GET", "/tasks")["tasks"] == []
        assert connections_of(child) - sockets < 20


async def test_l4_more_idle_clients_than_a_port_takes_lock_nobody_out(
    tmp_path: Path,
) -> None:
    with Child(tmp_path / "home") as child:
        child.start()
        port = child.port("coordinator")
        held = [Held("idle", b"", b"") for _ in range(MAX_CONNECTIONS + 200)]
        tasks = await hold(held, port)
        took = [await health_s(port) for _ in range(5)]
        assert max(took) < 1.0
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)


@asynccontextmanager
async def greedy(key: str, port: int, times: int) -> AsyncIterator[socket.socket]:
    """A client that asks ``times`` for something large, and takes none of it."""
    head = (
        f"GET /schema/openapi.json HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {key}\r\n\r\n"
    ).encode()
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        sending = asyncio.create_task(loop.sock_sendall(sock, head * times))
        yield sock
        sending.cancel()
        await asyncio.wait({sending})


async def test_l4_clients_that_take_no_reply_are_cut_and_cost_little(
    tmp_path: Path,
) -> None:
    times = 5_000
    with Child(tmp_path / "home") as child:
        child.start()
        await watched(child, 1.0)
        before, sockets = rss_bytes(child), connections_of(child)
        port = child.port("ralph")
        opened = [greedy(key_of(child), port, times) for _ in range(30)]
        socks = [await one.__aenter__() for one in opened]
        took, most = await watched(child, 20.0)
        assert max(took) < 5.0  # the document is made as often as the buffers take it
        assert most - before < 100 * MIB
        assert connections_of(child) - sockets < 20  # all 30 are gone
        answer = b""
        with suppress(ConnectionError):
            while part := await asyncio.get_running_loop().sock_recv(socks[0], MIB):
                answer += part
        assert 0 < answer.count(b"HTTP/1.1 200 OK") < times
        for one in opened:
            await one.__aexit__(None, None, None)
