"""The event log in ``unified-events.jsonl``; see ``nestor.ports.event_log``."""

import errno
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from nestor.backends.files.append_file import LOCK_WAIT_S, AppendFile, UnsafePathError
from nestor.backends.files.event_line import encode
from nestor.backends.files.event_reader import BadLine, find_ids, read_events
from nestor.errors import Misconfigured, Unavailable
from nestor.model.event import Event
from nestor.telemetry import metrics
from nestor.telemetry.logs import get_logger

__all__ = ["FILE_NAME", "BadLine", "FileEventLog", "read_events"]

FILE_NAME: Final = "unified-events.jsonl"
SEEN_BYTES: Final = 16 * 1024 * 1024
BUFFER_BYTES: Final = 64 * 1024 * 1024
"""Second bound of the buffer, beside the number of events."""
_BATCH_BYTES = 256 * 1024
_RETRY_S = 1.0
"""How often a log with buffered events tries again while nothing is appended."""
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""Errors at the start that may pass; any other needs an operator."""
_log = get_logger("nestor.event_log")


class _Waiting(NamedTuple):
    line: bytes
    event_type: str


class FileEventLog:
    """Appends to ``DIRECTORY/unified-events.jsonl`` (folder 0700, file 0600).

    Durability: when ``append`` returns, the lines are the kernel's (``kill -9`` loses
    none). A thread fsyncs at most every ``fsync_interval_s``: a power cut loses what was
    appended in that time, plus the time of the fsync itself.

    While the file cannot be written, up to ``buffer_events`` events (and 64 MiB) wait in
    memory; the oldest are kept, newer ones beyond the bound are dropped. Both are
    metrics. They are tried again at each append, every second, and in ``close``.

    Safe under threads; after ``fork`` the child starts with an empty buffer.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_prompts: bool = True,
        buffer_events: int = 10_000,
        fsync_interval_s: float = 0.2,
    ) -> None:
        """Open the log. Raises ``Misconfigured`` when the path is unsafe or refused."""
        self._path = directory / FILE_NAME
        self._keep_prompts = keep_prompts
        self._buffer_events = buffer_events
        self._interval_s = fsync_interval_s
        self._start_empty()
        try:
            self._file.open()
        except OSError as error:
            if error.errno not in _PASSING:
                raise Misconfigured(f"event log: {_said(error, self._path)}") from error
            self._failed(error)
        _logs.add(self)

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._file = AppendFile(self._path)
        self._waiting: dict[str, _Waiting] = {}
        self._waiting_bytes = 0
        self._failing = False
        self._closed = False
        self._work = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path:
        """The active file."""
        return self._path

    @property
    def buffered(self) -> int:
        """Events that wait in memory: a killed process would lose these."""
        return len(self._waiting)

    def append(self, events: Sequence[Event]) -> None:
        """See EventLog.append. An id that is still waiting is not queued twice."""
        encoded = [(e, encode(e, keep_prompts=self._keep_prompts)) for e in events]
        with self._lock:
            if self._closed:
                metrics.EVENTS_DROPPED.inc(len(encoded))
                return
            for event, line in encoded:
                if event.id not in self._waiting:
                    label = metrics.event_type_label(event.event_type)
                    self._waiting[event.id] = _Waiting(line, label)
                    self._waiting_bytes += len(line)
                    metrics.EVENTS_BUFFERED.inc()
            self._flush()
            self._drop_beyond_bound()
            self._ensure_thread()
        self._work.set()

    def seen(self, ids: frozenset[str]) -> frozenset[str]:
        """See EventLog.seen. Events that wait in memory do not count."""
        try:
            return find_ids(self._path, ids, limit_bytes=SEEN_BYTES)
        except OSError as error:
            raise Unavailable(f"event log: {_said(error, self._path)}") from error

    def close(self) -> None:
        """See EventLog.close. What still cannot be written is dropped and counted."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread, self._thread = self._thread, None
        self._closing.set()
        self._work.set()
        if thread:
            thread.join(timeout=5.0)
        with self._lock:
            self._flush()
            unsynced = self._unsynced()
            self._file.close()
            if lost := len(self._waiting):
                metrics.EVENTS_DROPPED.inc(lost)
                metrics.EVENTS_BUFFERED.dec(lost)
                _log.error("events_dropped", count=lost, cause="close")
                self._waiting.clear()
        self._sync(unsynced)

    def _flush(self) -> None:
        """Write what waits, in order, until done or refused."""
        while self._waiting:
            batch: list[str] = []
            size = 0
            for event_id, waiting in self._waiting.items():
                if batch and size + len(waiting.line) > _BATCH_BYTES:
                    break
                batch.append(event_id)
                size += len(waiting.line)
            done = self._file.append(
                [self._waiting[i].line for i in batch],
                # In an outage no append waits: the next one tries again.
                lock_wait_s=0.0 if self._failing else LOCK_WAIT_S,
            )
            for position in done.whole:
                written = self._waiting.pop(batch[position])
                self._waiting_bytes -= len(written.line)
                metrics.EVENTS_WRITTEN.labels(written.event_type).inc()
                metrics.EVENTS_BUFFERED.dec()
            if done.error:
                self._failed(done.error)
                return
        if self._failing:
            self._failing = False
            _log.info("event_log_recovered", path=str(self._path))

    def _drop_beyond_bound(self) -> None:
        dropped = 0
        while len(self._waiting) > self._buffer_events or (
            self._waiting_bytes > BUFFER_BYTES
        ):
            _, waiting = self._waiting.popitem()
            self._waiting_bytes -= len(waiting.line)
            dropped += 1
        if dropped:
            metrics.EVENTS_DROPPED.inc(dropped)
            metrics.EVENTS_BUFFERED.dec(dropped)

    def _failed(self, error: OSError) -> None:
        metrics.EVENT_LOG_ERRORS.labels(_cause(error)).inc()
        if not self._failing:  # once an outage; the metric counts each
            self._failing = True
            _log.error("event_log_unwritable", error=_said(error, self._path))

    def _ensure_thread(self) -> None:
        if self._thread is None:
            thread = threading.Thread(
                target=self._keep_durable, name="event-log-fsync", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no threads left, or the interpreter is ending
                metrics.EVENT_LOG_ERRORS.labels("no_thread").inc()
            else:
                self._thread = thread

    def _keep_durable(self) -> None:
        work, closing = self._work, self._closing
        while True:
            work.wait(_RETRY_S if self._waiting else None)
            # The pause comes before the fsync: it covers all that is appended in it.
            if closing.wait(self._interval_s):
                return
            work.clear()
            with self._lock:
                if self._closed:
                    return
                if self._waiting:
                    self._flush()
                unsynced = self._unsynced()
            self._sync(unsynced)

    def _unsynced(self) -> list[int]:
        try:
            return self._file.take_unsynced()
        except OSError as error:  # no descriptors left
            self._failed(error)
            return []

    @staticmethod
    def _sync(descriptors: list[int]) -> None:
        """Fsync outside the lock: appends go on meanwhile."""
        for fd in descriptors:
            try:
                os.fsync(fd)
            except OSError as error:
                metrics.EVENT_LOG_ERRORS.labels(f"fsync_{_cause(error)}").inc()
            finally:
                with suppress(OSError):
                    os.close(fd)

    def _after_fork(self) -> None:
        """In the child: what waits is the parent's to write; its lock may be held."""
        metrics.EVENTS_BUFFERED.dec(len(self._waiting))
        closed = self._closed
        with suppress(OSError):
            self._file.close()
        self._start_empty()
        self._closed = closed


def _cause(error: OSError) -> str:
    if isinstance(error, UnsafePathError):
        return "unsafe_path"
    if isinstance(error, BlockingIOError):
        return "locked"
    return errno.errorcode.get(error.errno or 0, "unknown")


def _said(error: OSError, path: Path) -> str:
    if isinstance(error, UnsafePathError):
        return error.strerror or "unsafe path"
    return f"{error.strerror}: {path}"


_logs: "weakref.WeakSet[FileEventLog]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for log in list(_logs):
        log._after_fork()  # noqa: SLF001 - the hook is a function, not a method


os.register_at_fork(after_in_child=_after_fork_in_child)
