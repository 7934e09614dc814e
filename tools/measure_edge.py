"""Measure what the edge costs: `python -m tools.measure_edge`.

CPU of one request for an empty route over one kept-alive connection: the route alone
(Litestar on uvicorn), and behind the whole edge (strict parsing and deadlines, Host and
Origin, key, scope, metrics, access log, security headers). Both servers run the whole
time and are asked in turn; medians and ranges of several rounds, to
bench/results/edge.json.
"""

import asyncio
import io
import json
import os
import platform
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from litestar import Litestar, get
from tests.faces.shell import MemorySessions

from nestor.backends.sql.database import Database
from nestor.backends.sql.key_store import SqlKeyStore
from nestor.telemetry import logs
from nestor.web.app import create_app
from nestor.web.serve import event_loop, serve

ROUNDS = 9
REQUESTS = 4_000
WARM_UP = 1_000
RESULT = Path("bench/results/edge.json")


@get("/empty", opt={"scope": "read"}, status_code=204, sync_to_thread=False)
def empty() -> None:
    """Do nothing."""


Serving = Callable[[socket.socket], Awaitable[None]]


async def alone(sock: socket.socket) -> None:
    """Serve the route without the edge."""
    app = Litestar([empty], openapi_config=None, logging_config=None)
    config = uvicorn.Config(
        app, http="httptools", ws="none", interface="asgi3", lifespan="off",
        log_config=None, access_log=False, proxy_headers=False, server_header=False,
    )  # fmt: skip
    await uvicorn.Server(config).serve(sockets=[sock])


async def behind_the_edge(sock: socket.socket, database_url: str) -> None:
    """Serve the route as a layer does: deadlines, keys in SQL, access log and all."""
    logs.configure("json", io.StringIO())

    async def nothing() -> list[Any]:
        return []

    async def ready() -> None:
        return

    async with Database.open(database_url) as database:
        parts: Any = SimpleNamespace(
            settings=SimpleNamespace(allowed_hosts=[], api_key=None),
            keys=SqlKeyStore(database),
            sessions=MemorySessions(),
            api_key="measured-admin-key-0123456789",
            service_key="measured-service-key-0123456789",
        )
        app = create_app("ralph", parts, [empty], dependencies=nothing)
        await serve({"ralph": app}, {"ralph": sock}, ready=ready, stop=asyncio.Event())


def start(serving: Serving) -> tuple[int, int]:
    """Serve in a child process; returns its pid and port."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    port = int(sock.getsockname()[1])
    if (pid := os.fork()) == 0:
        sock.setblocking(False)
        with asyncio.Runner(loop_factory=event_loop) as runner:
            runner.run(serving(sock))  # type: ignore[arg-type]
        os._exit(0)
    sock.close()
    return pid, port


async def make_key(database_url: str) -> str:
    """Return the secret of a key that may read."""
    async with Database.open(database_url) as database:
        return (await SqlKeyStore(database).create("measured", ["read"]))[1]


def ask(port: int, times: int, key: str) -> None:
    """Ask one after the other on one connection, and read each answer whole."""
    request = (
        f"GET /empty HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: measure\r\n"
        f"Accept: */*\r\nAuthorization: Bearer {key}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for _ in range(times):
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):  # the answer has no body
                if not (more := connection.recv(65_536)):
                    raise SystemExit(f"cut off: {answer!r}")
                answer += more
            if not answer.startswith(b"HTTP/1.1 204"):
                raise SystemExit(f"not answered: {answer!r}")


def cpu_us(pid: int) -> float:
    """Return the microseconds that the threads of a process have been on a CPU."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1000


def summary(values: list[float]) -> dict[str, float]:
    """Return median and range."""
    return {
        "median": round(statistics.median(values), 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


def main() -> None:
    """Measure, print, and keep."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/nestor.db"
        measure(asyncio.run(make_key(url)), url)


def measure(key: str, url: str) -> None:
    """Ask both in turn, print, and keep."""
    servers = {
        "alone": start(alone),
        "edge": start(lambda sock: behind_the_edge(sock, url)),
    }
    found: dict[str, list[float]] = {name: [] for name in servers}
    try:
        time.sleep(3)
        for _, port in servers.values():
            ask(port, WARM_UP, key)
        for number in range(ROUNDS):
            for name, (pid, port) in servers.items():
                before = cpu_us(pid)
                ask(port, REQUESTS, key)
                found[name].append((cpu_us(pid) - before) / REQUESTS)
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
    finally:
        for pid, _ in servers.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    shares = [b / a - 1 for a, b in zip(found["alone"], found["edge"], strict=True)]
    result = {
        "what": "CPU of one request for an empty route, alone and behind the edge",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "rounds": ROUNDS,
        "requests_a_round": REQUESTS,
        "alone_cpu_us": summary(found["alone"]),
        "with_edge_cpu_us": summary(found["edge"]),
        "edge_adds_ratio": summary(shares),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
