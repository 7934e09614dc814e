"""One file that many processes append whole lines to; no line is torn or joined.

Why this holds, on local Linux file systems:

* A batch is one ``write(2)`` with ``O_APPEND``. The kernel places and copies it under
  the inode's lock, so batches never interleave, whatever their length.
* A writer killed inside ``write(2)``, or a disk that fills up, leaves a torn line at the
  end. Each writer looks at the last byte first. If it is no line end, a live writer may
  be half way (the size grows while it copies), so the look is repeated until the line
  ends, or under an exclusive lock; a line still torn then is ended by a line end of our
  own. (Where live writers keep the lock from us for ``LOCK_WAIT_S``, that line end may
  be a blank line too many, which readers pass over.)
* Another writer may die between our look and our write. So we look again after: the byte
  before our batch says whether its first line was joined to a torn one, and that line is
  then written again. What is reported as written stands whole on a line of its own.

Writers share the lock, so they do not wait for each other; who renames the file (rotation)
takes it exclusively. Under the lock the path is compared with the open file, and opened
again when it was renamed. No wait is longer than ``LOCK_WAIT_S``.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LOCK_WAIT_S = 0.05
_LOCK_POLL_S = 0.001
_MAX_REOPEN = 10
_MAX_TRIES = 5
"""Of a line that was joined to a torn one; each needs another writer's death."""
# Read and write: the end is looked at, and a FIFO in the way cannot block the open.
_OPEN_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class UnsafePathError(OSError):
    """Something else stands where the folder or the file should be."""


class Appended(NamedTuple):
    """``whole``: positions of the lines that stand whole in the file, ascending."""

    whole: list[int]
    error: OSError | None


class AppendFile:
    """Not safe under threads; its owner holds a lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._unsynced: list[int] = []
        self._lock_wait_s = LOCK_WAIT_S

    def open(self) -> None:
        """Open, and make if absent, the folder (0700) and the file (0600).

        Raises ``UnsafePathError`` for a symbolic link, a FIFO, a folder, a second hard
        link or another owner; any other ``OSError`` as it comes.
        """
        folder = open_folder(self._path.parent)
        try:
            self._fd = open_regular(self._path, folder)
        except BaseException:
            os.close(folder)
            raise
        # The folder's entry must survive a power cut as well.
        self._unsynced.append(folder)

    def append(
        self, lines: Sequence[bytes], *, lock_wait_s: float = LOCK_WAIT_S
    ) -> Appended:
        """Append ``lines``, each with its line end, in order. Never raises ``OSError``.

        ``error`` is None when all lines are whole. ``lock_wait_s``: how long to wait for
        whoever renames the file.
        """
        self._lock_wait_s = lock_wait_s
        whole: list[int] = []
        left = list(range(len(lines)))
        error: OSError | None = None
        try:
            self._lock(fcntl.LOCK_SH)
            try:
                for _ in range(_MAX_TRIES):
                    done = self._write([lines[position] for position in left])
                    whole += [left[index] for index in done.whole]
                    left = sorted(set(left).difference(whole))
                    error = done.error
                    if error or not left:
                        break
                else:
                    error = OSError(errno.EAGAIN, "other writers keep dying")
            finally:
                self._unlock()
        except OSError as caught:
            error = caught
        return Appended(sorted(whole), error)

    def take_unsynced(self) -> list[int]:
        """Hand over descriptors whose fsync makes all that was written durable.

        The caller fsyncs and closes them.
        """
        taken, self._unsynced = self._unsynced, []
        if self._fd is not None:
            taken.append(os.dup(self._fd))
        return taken

    def close(self) -> None:
        """Let go of the file; what ``take_unsynced`` did not hand over is not synced."""
        for fd in (*self._unsynced, self._fd):
            if fd is not None:
                os.close(fd)
        self._unsynced, self._fd = [], None

    def _lock(self, mode: int) -> None:
        """Lock the file that the path names now, opening it again if it was renamed."""
        deadline = time.monotonic() + self._lock_wait_s
        reopened = 0
        while True:
            if self._fd is None:
                self.open()
            fd = self._opened()
            try:
                fcntl.flock(fd, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_LOCK_POLL_S)
                continue
            if self._is_current(fd):
                return
            self._unsynced.append(fd)
            self._fd = None
            reopened += 1
            if reopened > _MAX_REOPEN:
                raise BlockingIOError(errno.EAGAIN, "the event log keeps moving")

    def _unlock(self) -> None:
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _opened(self) -> int:
        if self._fd is None:
            raise OSError(errno.EBADF, "the event log is not open")
        return self._fd

    def _is_current(self, fd: int) -> bool:
        ours = os.fstat(fd)
        try:
            named = self._path.lstat()
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)

    def _write(self, lines: list[bytes]) -> Appended:
        prefix = b"\n" if self._torn() else b""
        fd = self._opened()
        data = prefix + b"".join(lines)
        written = os.write(fd, data)
        end = os.lseek(fd, 0, os.SEEK_CUR)
        start = end - written
        joined = not prefix and start > 0 and os.pread(fd, 1, start - 1) != b"\n"
        whole: list[int] = []
        line_end = len(prefix)
        for position, line in enumerate(lines):
            if line_end + len(line) > written:
                break
            line_end += len(line)
            whole.append(position)
        error = None
        if written < len(data):
            error = OSError(errno.ENOSPC, "short write")
            self._cut(fd, keep=start + min(line_end, written), end=end)
        return Appended(whole[1:] if joined else whole, error)

    def _torn(self) -> bool:
        """Tell whether the file ends inside a line that nobody is writing any more."""
        deadline = time.monotonic() + self._lock_wait_s
        while _ends_inside_line(self._opened()):
            if self._alone():
                return _ends_inside_line(self._opened())
            # Giving the shared lock up is part of asking for the exclusive one.
            self._lock(fcntl.LOCK_SH)
            if time.monotonic() >= deadline:
                # A line end of our own is right either way: at worst a blank line.
                return True
            time.sleep(_LOCK_POLL_S)
        return False

    def _alone(self) -> bool:
        """Take the lock exclusively if nobody else holds it now."""
        fd = self._opened()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Renamed while we held no lock: what is torn there is not ours to end.
        return self._is_current(fd)

    @staticmethod
    def _cut(fd: int, *, keep: int, end: int) -> None:
        """Take our own torn piece back, if nothing was appended behind it."""
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if keep < end == os.fstat(fd).st_size:
                os.ftruncate(fd, keep)


def _ends_inside_line(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) not in (b"\n", b"")


def open_folder(folder: Path) -> int:
    """Open, and make if absent, a folder (0700) that is ours. Raises ``OSError``."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(folder, flags)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise UnsafePathError(error.errno, f"{folder} is not a folder") from error
        raise
    return _checked(fd, folder, stat.S_IFDIR, 0o700)


def open_regular(path: Path, folder: int, *, create: bool = True) -> int:
    """Open a plain file (0600) that is ours alone, to append to. Raises ``OSError``."""
    flags = _OPEN_FLAGS if create else _OPEN_FLAGS & ~os.O_CREAT
    try:
        fd = os.open(path.name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR}:
            raise UnsafePathError(error.errno, f"{path} is not a plain file") from error
        raise
    return _checked(fd, path, stat.S_IFREG, 0o600)


def _checked(fd: int, path: Path, kind: int, mode: int) -> int:
    """Return ``fd`` if it is ours and ours alone; close it if not."""
    try:
        found = os.fstat(fd)
        if reason := _unsafe(found, kind):
            raise UnsafePathError(errno.EPERM, f"{path} {reason}")  # noqa: TRY301
        if stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(fd, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _unsafe(found: os.stat_result, kind: int) -> str | None:
    if stat.S_IFMT(found.st_mode) != kind:
        return "is not a plain file"
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    if kind == stat.S_IFREG and found.st_nlink > 1:
        return "has a second hard link"
    return None
