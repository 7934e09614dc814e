"""The meter's first memory in files; see ``nestor.ports.call_journal``.

One process writes, so a line is one ``write(2)`` and nobody else's can stand between its
pieces: what the disk did not take waits in memory and is written on from there. The
journal goes on in a new file (a segment) when one is full, and a segment goes when every
line in it is of a call that is folded, whatever is still open elsewhere: neither load
without a pause nor one endless stream makes it grow for ever. When nothing at all is
open, the one file that is left is emptied.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from nestor.backends.files import journal_lines as lines
from nestor.backends.files.abandoned_journal import AbandonedJournal, take_abandoned
from nestor.backends.files.journal_aside import keep_aside
from nestor.backends.files.journal_writer import JournalWriter, Segment
from nestor.errors import Misconfigured, Unavailable
from nestor.model.ids import new_id
from nestor.model.routing import ModelCall
from nestor.ports.call_journal import Settled
from nestor.telemetry import metrics

SEGMENT_BYTES: Final = 16 * 1024 * 1024
BUFFER_BYTES: Final = 16 * 1024 * 1024
"""Of lines that wait for the disk."""
KEPT_CALLS: Final = 20_000
"""Calls that wait for SQL in memory (2 kB each); more of them stand on the disk alone."""
_RETRY_S = 0.5


class _Ended(NamedTuple):
    """A call that ended and is not folded. ``call`` None: it stands at ``start``."""

    position: int
    call: ModelCall | None
    begun_in: Segment | None
    ended_in: Segment | None
    """None: neither the disk nor the buffer took the line."""
    start: int
    length: int


class FileCallJournal:
    """``FOLDER/ID.N.jsonl`` (folder 0700, files 0600), held through a lock on ``ID.lock``.

    A thread fsyncs at most every ``fsync_interval_s``. Safe under threads; after ``fork``
    the child has none of it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        journal_id: str | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        kept_calls: int = KEPT_CALLS,
        fsync_interval_s: float = 0.2,
    ) -> None:
        """Make the journal and take its lock. Raises ``Misconfigured``.

        ``journal_id``: never used before; a new one when not given.
        """
        self._id = journal_id or new_id()
        self._path = folder
        self._kept_calls = kept_calls
        self._interval_s = fsync_interval_s
        self._lock = threading.Lock()
        self._open: dict[str, Segment | None] = {}
        self._ended: deque[_Ended] = deque()
        self._count = 0
        """Calls that ended: the position. Bytes would not do, as lines may be dropped."""
        self._dirty = False
        self._closed = False
        self._work = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self._file = JournalWriter(
                folder,
                self._id,
                segment_bytes=segment_bytes,
                buffer_bytes=buffer_bytes,
            )
        except OSError as error:
            said = error.strerror or str(error)
            raise Misconfigured(f"call journal: {said}: {folder}") from error
        _journals.add(self)

    @property
    def id(self) -> str:
        """See CallJournal.id."""
        return self._id

    @property
    def waiting(self) -> int:
        """See CallJournal.waiting."""
        return len(self._ended)

    @property
    def unwritten(self) -> int:
        """See CallJournal.unwritten."""
        return len(self._file.buffer)

    def begin(self, call: ModelCall) -> None:
        """See CallJournal.begin."""
        line = lines.begun(call)
        with self._lock:
            segment = self._append(line)
            if segment is not None:
                segment.holds += 1
            before = self._open.get(call.interaction_id)
            if before is not None:  # begun again, with another deployment
                before.holds -= 1
            self._open[call.interaction_id] = segment

    def end(self, call: ModelCall) -> None:
        """See CallJournal.end. A call that was never begun is as good."""
        with self._lock:
            self._count += 1
            line = lines.ended(self._count, call)
            segment = self._append(line)
            many = len(self._ended) >= self._kept_calls
            if self._closed or (many and segment is None):
                # Nothing is left that could hold it. Its first line stays, where there is
                # one, so that the next start finds a call of which nobody knows the end.
                return
            begun_in = self._open.pop(call.interaction_id, None)
            start = 0
            if segment is not None:
                segment.holds += 1
                start = segment.size - len(line)
            on_disk = segment is not None and not self._file.buffer
            self._ended.append(
                _Ended(
                    self._count,
                    None if many and on_disk else call,
                    begun_in,
                    segment,
                    start,
                    len(line),
                )
            )

    def settled(self, *, limit: int = 1000) -> Settled | None:
        """See CallJournal.settled."""
        with self._lock:
            chosen = list(islice(self._ended, limit))
            if not chosen:
                return None
            calls = [one.call or _read(one) for one in chosen]
        return Settled(journal=self._id, position=chosen[-1].position, calls=calls)

    def folded(self, settled: Settled) -> None:
        """See CallJournal.folded. Call it when their events stand in the event log, too."""
        if settled.journal != self._id:
            raise ValueError(f"{settled.journal} is not this journal")
        with self._lock:
            before = len(self._ended)
            while self._ended and self._ended[0].position <= settled.position:
                one = self._ended.popleft()
                for segment in (one.begun_in, one.ended_in):
                    if segment is not None:
                        segment.holds -= 1
            if self._closed or len(self._ended) == before:
                return
            # Written before a segment goes, as that may hold the last such line.
            if not self._file.empty():
                self._append(lines.folded(settled.position))
            self._file.drop_unneeded()

    def set_aside(self, settled: Settled, why: str) -> None:
        """See CallJournal.set_aside."""
        keep_aside(self._path, settled, why)
        self.folded(settled)

    def abandoned(self) -> Sequence[AbandonedJournal]:
        """See CallJournal.abandoned. Reads them whole: in a thread, where many may be."""
        return take_abandoned(self._path)

    def close(self, *, keep: bool = False) -> None:
        """See CallJournal.close."""
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
            if thread and thread.is_alive():
                self._file.flush()
                return  # it is in an fsync that hangs, and has the files
            if self._open or self._ended or keep:
                self._file.flush()
                self._file.sync(self._file.unsynced())
                self._file.remove(self._file.doomed)
            else:
                self._file.remove_all()
            self._file.let_go()

    def _append(self, line: bytes) -> Segment | None:
        if self._closed:
            metrics.JOURNAL_DROPPED.inc()
            return None
        segment = self._file.append(line)
        if not self._dirty:
            self._dirty = True
            self._ensure_thread()
            self._work.set()
        return segment

    def _ensure_thread(self) -> None:
        if self._thread is None:
            thread = threading.Thread(
                target=self._keep_durable, name="call-journal-fsync", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no threads left, or the interpreter is ending
                metrics.JOURNAL_ERRORS.labels("no_thread").inc()
            else:
                self._thread = thread

    def _keep_durable(self) -> None:
        while True:
            self._work.wait(_RETRY_S if self._file.buffer else None)
            # The pause comes before the fsync: it covers all that is written in it.
            if self._closing.wait(self._interval_s):
                return
            self._work.clear()
            with self._lock:
                if self._closed:
                    return
                self._dirty = False
                self._file.flush()
                doomed = self._file.doomed[:]
                unsynced = self._file.unsynced()
            # Only this thread closes a segment while it runs.
            self._file.sync(unsynced)
            self._file.remove(doomed)
            with self._lock:
                del self._file.doomed[: len(doomed)]

    def _after_fork(self) -> None:
        """In the child: the journal is the parent's, and so is the lock; it ends with it."""
        if not self._closed:
            self._closed = True
            self._lock = threading.Lock()
            self._file.let_go()


def _read(one: _Ended) -> ModelCall:
    segment = one.ended_in
    try:
        data = os.pread(segment.fd, one.length, one.start) if segment else b""
        return lines.call_of(lines.read_line(data))
    except (OSError, lines.BadLineError) as error:
        message = f"the call journal cannot be read: {error}"
        raise Unavailable(message) from error


_journals: "weakref.WeakSet[FileCallJournal]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for journal in list(_journals):
        journal._after_fork()  # noqa: SLF001 - the hook is a function, not a method


os.register_at_fork(after_in_child=_after_fork_in_child)
