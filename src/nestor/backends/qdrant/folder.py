"""The folder of an Edge index: whose it is, which generation counts, and no other file.

``current.json`` names one ``generation-N`` and how it was made; it is written durably and
last, so that after a crash at any moment exactly one whole generation counts. What else
was begun is removed at the next start. Beside the folder, ``<name>.lock`` is held from
before the first load until the end, because a second ``load`` of the same files breaks
the first one's next flush.
"""

import fcntl
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from nestor.backends.qdrant.points import Made
from nestor.errors import Misconfigured

_GENERATION = re.compile(r"generation-([0-9]{1,18})")
_OLDER = ("shard", "stamp.json", "stamp.tmp", "current.tmp")
"""What the layout before generations left, and what a crash while writing leaves."""


class _Pointer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    generation: int
    made: Made


class IndexFolder:
    """One folder, locked by this process. Not for two threads at once."""

    def __init__(self, path: Path, lock: int) -> None:
        """``lock``: the descriptor that holds the lock; see ``locked``."""
        self.path = path
        self._lock = lock
        self._last = 0

    @classmethod
    def locked(cls, path: Path) -> "IndexFolder":
        """Take the lock; the folder itself is not touched.

        Raises ``Misconfigured`` when another process holds it, or it cannot be made.
        """
        return cls(path, _take_lock(path))

    def release(self) -> None:
        """Let go of the lock."""
        os.close(self._lock)

    def current(self) -> tuple[int, Made] | None:
        """Return which generation counts; None when none is named."""
        try:
            data = (self.path / "current.json").read_bytes()
            pointer = msgspec.json.decode(data, type=_Pointer)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return pointer.generation, pointer.made

    def shard(self, generation: int) -> Path:
        """Where a generation's files stand."""
        return self.path / f"generation-{generation}"

    def begin(self) -> int:
        """Return the number of a generation that does not exist yet; makes the folder.

        Raises ``OSError``.
        """
        if self.path.exists() and not self.path.is_dir():
            self.path.unlink()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        current = self.current()
        # Never one of before: who still holds that number would write into this one.
        taken = [*self._generations(), current[0] if current else 0, self._last]
        self._last = max(taken) + 1
        return self._last

    def point_at(self, generation: int, made: Made) -> None:
        """Let ``generation`` count from now on, also after a power failure.

        Raises ``OSError``: then what counted before counts still.
        """
        _sync_tree(self.shard(generation))
        pointer = _Pointer(generation=generation, made=made)
        temporary = self.path / "current.tmp"
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(pointer))
            file.flush()
            os.fsync(file.fileno())
        _sync(self.path)  # the generation's own name, before anything points at it
        temporary.replace(self.path / "current.json")
        # It counts from here on, whatever is said now. Should a power failure take that
        # back, what counted before is gone: damage, which is seen and mended.
        with suppress(OSError):
            _sync(self.path)

    def remove_others(self, *keep: int) -> None:
        """Remove every generation but these, and what older layouts left.

        What cannot be removed now is tried again at the next start.
        """
        for number in self._generations():
            if number not in keep:
                shutil.rmtree(self.shard(number), ignore_errors=True)
        for name in _OLDER:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _generations(self) -> list[int]:
        try:
            names = [entry.name for entry in os.scandir(self.path)]
        except OSError:
            return []
        found = [match for name in names if (match := _GENERATION.fullmatch(name))]
        return [int(match[1]) for match in found]


def holder_of(folder: Path) -> str | None:
    """Return the process that has a file in ``folder`` locked; None when none is known."""
    try:
        inodes = {str(entry.stat().st_ino) for entry in os.scandir(folder)}
        inodes.add(str(folder.stat().st_ino))
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # 1: FLOCK  ADVISORY  WRITE 4711 08:01:393217 0 EOF
        match line.split():
            case [_, _, _, _, pid, where, *_] if where.split(":")[-1] in inodes:
                return pid
    return None


def _take_lock(path: Path) -> int:
    """Lock ``<path>.lock`` and write our process id into it."""
    lock = path.with_name(path.name + ".lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(lock, flags, 0o600)
    except OSError as error:
        message = f"the search index at {path} cannot be opened: {error.strerror}"
        raise Misconfigured(message) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
        os.close(handle)
        message = (
            f"the search index at {path} is in use by process {holder or 'unknown'};"
            " ask that one (it is a running Nestor), stop it, or give this one another"
            " data folder (NESTOR_HOME)"
        )
        raise Misconfigured(message) from error
    # For people alone: a disk that is full stops nobody from reading the index.
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _sync_tree(folder: Path) -> None:
    for where, _, files in os.walk(folder):
        for name in files:
            _sync(Path(where) / name)
        _sync(Path(where))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
