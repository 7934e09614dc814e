"""A real ``redis-server`` for one test: a free port, a folder of its own."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "canary-redis-password-5150"


class RedisServer:
    """One server that can be stopped, frozen and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])

    @property
    def url(self) -> str:
        """With the password."""
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start; returns once it answers."""
        self._process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--requirepass", PASSWORD, "--dir", str(self._folder)),
                *("--save", "", "--appendonly", "no", "--daemonize", "no"),
                *("--enable-debug-command", "yes"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                if self.ask("PING") == "+PONG":
                    return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("redis-server does not answer")

    def stop(self) -> None:
        """End it, at once; what it held is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, *command: str) -> str:
        """Send one command; return the whole answer as it came."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            sock.sendall(f"AUTH {PASSWORD}\r\n".encode())
            assert sock.recv(64) == b"+OK\r\n"
            sock.sendall((" ".join(command) + "\r\n").encode())
            return sock.recv(1 << 16).decode().strip()

    def clients(self) -> int:
        """How many are connected, beside who asks."""
        return self.ask("CLIENT", "LIST").count(" laddr=") - 1


@contextmanager
def running(folder: Path) -> Iterator[RedisServer]:
    """Run one until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
