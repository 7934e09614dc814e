"""The data folder: made private, locked by who runs on it, with its key and its identity."""

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Self

from nestor.errors import Misconfigured
from nestor.model.ids import new_id
from nestor.resilience.secret_file import read_secret_file

API_KEY = "api-key"
RUN_FILE = "run.json"
_LOCK = "up.lock"
_EXECUTOR = "executor-id"


class DataFolder:
    """``$NESTOR_HOME`` while one process runs the stack on it."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @classmethod
    @contextmanager
    def locked(cls, home: Path) -> Iterator[Self]:
        """Make the folder if needed and hold it until the block ends.

        Raises ``Misconfigured`` when it cannot be written or another process holds it.
        """
        with _explained(home):
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            _refuse_if_not_ours(home)
            # Opened in place, never replaced: a lock on a replaced file locks nothing.
            lock = os.open(
                home / _LOCK,
                os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
        try:
            _take(lock, home)
            with _explained(home):
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
                home.chmod(0o700)
            yield cls(home)
        finally:
            os.close(lock)

    @staticmethod
    def refuse_if_held(home: Path) -> None:
        """Raise ``Misconfigured`` when a process runs on ``home`` now; makes nothing."""
        try:
            lock = os.open(home / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # not there, or not ours: ``locked`` will say which
            return
        try:
            _take(lock, home)
        finally:
            os.close(lock)

    def admin_key(self) -> str:
        """Return the admin key, made at the first start (mode 0600)."""
        return self._keep(API_KEY, lambda: f"nst_{secrets.token_urlsafe(32)}")

    def executor_id(self) -> str:
        """Return the identity under which this folder's unfinished tasks are found again."""
        return self._keep(_EXECUTOR, new_id)

    def write_run_file(
        self, ports: Mapping[str, int], started_at: datetime, *, host: str = "127.0.0.1"
    ) -> None:
        """Tell clients where the layers are. ``host``: where this machine reaches them."""
        run = {
            "pid": os.getpid(),
            "host": host,
            "ports": dict(ports),
            "started_at": started_at.isoformat(),
        }
        with _explained(self.home):
            _write(self.home / RUN_FILE, json.dumps(run))

    def remove_run_file(self) -> None:
        """Nothing runs here any more."""
        (self.home / RUN_FILE).unlink(missing_ok=True)

    def _keep(self, name: str, make: Callable[[], str]) -> str:
        path = self.home / name
        with _explained(path):
            if not path.exists():
                _write(path, f"{make()}\n")
            return read_secret(path)


def _take(lock: int, home: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        message = (
            f"NESTOR_HOME: {home} is in use by another nestor (pid "
            f"{holder or 'unknown'}); stop that one, or set another NESTOR_HOME"
        )
        raise Misconfigured(message) from error


def read_secret(path: Path) -> str:
    """Read a one-line file that only its owner may read. Raises ``Misconfigured``."""
    with _explained(path):
        try:
            return read_secret_file(path, owner_only=True)
        except ValueError as error:
            wrong = f"{error}; make it so, or remove it and a new one is made at start"
            raise Misconfigured(wrong) from error


def _refuse_if_not_ours(home: Path) -> None:
    """Whoever owns the folder can open it to others and put other files in the place of ours."""
    owner = home.stat().st_uid
    if owner != os.geteuid():
        message = (
            f"NESTOR_HOME: {home} belongs to another user (uid {owner}, this is uid"
            f" {os.geteuid()}); start as that user, or set another NESTOR_HOME"
        )
        raise Misconfigured(message)


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole: after a crash or a full disk the old one stands."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600
    )
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            message = f"{path}: is a symbolic link; remove it"
        else:
            message = (
                f"NESTOR_HOME: {path} cannot be used: {error.strerror}; "
                "set NESTOR_HOME to a folder you may write"
            )
        raise Misconfigured(message) from error
