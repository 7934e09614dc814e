"""The files of a journal that a living process writes, and what the disk did not take."""

import errno
import fcntl
import os
from collections import deque
from contextlib import suppress
from pathlib import Path

from nestor.backends.files import journal_lines as lines
from nestor.backends.files.append_file import open_folder, open_regular
from nestor.telemetry import metrics
from nestor.telemetry.logs import get_logger

_UNNAMED = ".new"
_log = get_logger("nestor.call_journal")


class Segment:
    """A file; ``size`` counts lines that still wait for the disk."""

    __slots__ = ("fd", "holds", "number", "path", "size", "synced")

    def __init__(self, number: int, path: Path, fd: int) -> None:
        self.number = number
        self.path = path
        self.fd = fd
        self.size = 0
        self.holds = 0
        """Lines of calls that are open or not folded."""
        self.synced = True


class JournalWriter:
    """Not safe under threads; its owner holds a lock."""

    def __init__(
        self, folder: Path, journal_id: str, *, segment_bytes: int, buffer_bytes: int
    ) -> None:
        """Make the files and take the lock. Raises ``OSError``."""
        self._id = journal_id
        self._path = folder
        self._segment_bytes = segment_bytes
        self._buffer_bytes = buffer_bytes
        self.buffer: deque[bytes] = deque()
        """Lines, or the rest of one, that wait for the disk."""
        self._buffered_bytes = 0
        self._failing = False
        self._folder = open_folder(folder)
        self._held = _hold(folder / f"{journal_id}{lines.LOCK}", self._folder)
        self._active = self._segment(0)
        self._segments = [self._active]
        self._rotate_at = segment_bytes
        self.doomed: list[Segment] = []
        """Files that are not needed any more and still there."""

    def append(self, line: bytes) -> Segment | None:
        """Write a line, or keep it for later; returns where, None where it was dropped."""
        if self._active.size >= self._rotate_at and not self.buffer:
            self._rotate()
        segment = self._active
        data = line if segment.size else lines.HEADER + line
        written = 0
        if not self.buffer:
            try:
                written = os.write(segment.fd, data)
            except OSError as error:
                self._failed(error)
        if written < len(data):
            # The rest of a line that was begun is kept in any case.
            full = self._buffered_bytes + len(data) > self._buffer_bytes
            if full and not written:
                metrics.JOURNAL_DROPPED.inc()
                return None
            self._keep(data[written:])
        segment.size += len(data)
        segment.synced = False
        return segment

    def _keep(self, data: bytes) -> None:
        self.buffer.append(data)
        self._buffered_bytes += len(data)
        metrics.JOURNAL_UNWRITTEN.inc()

    def flush(self) -> None:
        """Write what waits, in order, until done or refused."""
        while self.buffer:
            data = self.buffer[0]
            try:
                written = os.write(self._active.fd, data)
            except OSError as error:
                self._failed(error)
                return
            self._buffered_bytes -= written
            if written < len(data):
                self.buffer[0] = data[written:]
                continue  # the next write says why
            self.buffer.popleft()
            metrics.JOURNAL_UNWRITTEN.dec()
        if self._failing:
            self._failing = False
            _log.info("call_journal_recovered", path=str(self._active.path))

    def empty(self) -> bool:
        """Empty the one file that is left when no call is open and all are folded.

        Lines that wait for the disk are not needed any more either. False where it is
        not the time, or fails.
        """
        if self._active.holds or len(self._segments) > 1 or self.doomed:
            return False
        try:
            os.ftruncate(self._active.fd, 0)
        except OSError as error:
            self._failed(error)
            return False
        self._forget_buffer()
        self._active.size = 0
        self._rotate_at = self._segment_bytes
        return True

    def _forget_buffer(self) -> None:
        metrics.JOURNAL_UNWRITTEN.dec(len(self.buffer))
        self.buffer.clear()
        self._buffered_bytes = 0

    def _rotate(self) -> None:
        try:
            fresh = self._segment(self._active.number + 1)
        except OSError as error:
            self._failed(error)
            self._rotate_at += self._segment_bytes  # until then the old one goes on
            return
        self._rotate_at = self._segment_bytes
        self._active = fresh
        self._segments.append(fresh)

    def _segment(self, number: int) -> Segment:
        path = self._path / f"{self._id}.{number}{lines.SEGMENT}"
        return Segment(number, path, open_regular(path, self._folder))

    def _failed(self, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        metrics.JOURNAL_ERRORS.labels(name).inc()
        if not self._failing:  # once an outage; the metric counts each
            self._failing = True
            _log.error(
                "call_journal_unwritable",
                error=error.strerror,
                path=str(self._active.path),
            )

    def drop_unneeded(self) -> None:
        """Doom the files that hold no line of a call that is open or not folded."""
        for segment in self._segments[:]:
            if segment is not self._active and not segment.holds:
                self._segments.remove(segment)
                self.doomed.append(segment)

    def unsynced(self) -> list[int]:
        """Return descriptors whose fsync makes all that was written durable."""
        found = [one for one in self._segments if not one.synced]
        for segment in found:
            segment.synced = True
        # The folder's entries must survive a power cut as well.
        return [*(one.fd for one in found), *([self._folder] if found else [])]

    @staticmethod
    def sync(descriptors: list[int]) -> None:
        """Fsync; for outside of the owner's lock."""
        for fd in descriptors:
            try:
                os.fsync(fd)
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "unknown")
                metrics.JOURNAL_ERRORS.labels(f"fsync_{name}").inc()

    def remove(self, segments: list[Segment]) -> None:
        """Remove files that were doomed."""
        for segment in segments:
            with suppress(OSError):
                os.unlink(segment.path.name, dir_fd=self._folder)
            with suppress(OSError):
                os.close(segment.fd)
            segment.fd = -1

    def remove_all(self) -> None:
        """Remove the journal. The lock goes last: without it nobody looks for the rest."""
        self.remove([*self.doomed, *self._segments])
        with suppress(OSError):
            os.unlink(f"{self._id}{lines.LOCK}", dir_fd=self._folder)

    def let_go(self) -> None:
        """Close everything; what waits for the disk is gone, and counted."""
        metrics.JOURNAL_DROPPED.inc(len(self.buffer))
        self._forget_buffer()
        for fd in (*(one.fd for one in self._segments), self._held, self._folder):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)


def _hold(path: Path, folder: int) -> int:
    """Make the lock file. It has its name once it is locked: no taker finds it before."""
    unnamed = path.with_suffix(_UNNAMED)
    fd = open_regular(unnamed, folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(unnamed.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.close(fd)
        raise
    return fd
