"""Journals of processes that are gone: taken by one, read, and removed once folded.

The files are not changed while they are read and folded, so a taker that dies itself
leaves them as they were, and the next one finds the same calls in the same order.
"""

import errno
import fcntl
import os
from collections.abc import Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import msgspec

from nestor.backends.files import journal_lines as lines
from nestor.backends.files.append_file import open_folder, open_regular
from nestor.backends.files.journal_aside import keep_aside
from nestor.errors import Unavailable
from nestor.model.routing import ModelCall
from nestor.ports.call_journal import Settled
from nestor.telemetry import metrics
from nestor.telemetry.logs import get_logger

TAKEN: Final = 1 << 62
"""Positions of a taker are beyond any that the process itself could have folded: what it
left open may stand long before the place that SQL knows."""
UNSETTLED: Final = "the process ended before the call did"
_log = get_logger("nestor.call_journal")


class _Place(NamedTuple):
    """Where a call stands."""

    fd: int
    start: int
    length: int
    fields: tuple[str, ...]


class AbandonedJournal:
    """``ports.call_journal.CallJournal`` of a process that is gone; held until ``close``."""

    def __init__(self, folder: Path, journal_id: str, held: int) -> None:
        """Read all of it. ``held``: the lock, ours from now on. Raises ``OSError``."""
        self._id = journal_id
        self._held = held
        self._path = folder
        self._folder = open_folder(folder)
        self._files: dict[Path, int] = {}
        self._bad: dict[Path, int] = {}
        """How many lines of a file are none of ours."""
        self._open: dict[str, _Place] = {}
        self._ended: list[tuple[int, _Place]] = []
        self._known = 0
        """How many of those that ended were folded by the process itself."""
        try:
            for path in _segments(folder, journal_id):
                self._read(path)
        except BaseException:
            self._close_files()
            raise
        ended = [at for number, at in self._ended if number > self._known]
        self._calls = [*ended, *self._open.values()]
        self._settled = len(ended)
        self._done = 0
        if self._bad:
            metrics.JOURNAL_BAD_LINES.inc(sum(self._bad.values()))
            _log.error(
                "call_journal_bad_lines",
                journal=journal_id,
                files={path.name: count for path, count in self._bad.items()},
                kept_as=lines.BAD,
            )
        if self._open:
            _log.warning("calls_unsettled", journal=journal_id, calls=len(self._open))

    @property
    def id(self) -> str:
        """See CallJournal.id."""
        return self._id

    @property
    def waiting(self) -> int:
        """See CallJournal.waiting."""
        return len(self._calls) - self._done

    @property
    def unwritten(self) -> int:
        """None: nothing is written here."""
        return 0

    def begin(self, call: ModelCall) -> NoReturn:
        """Refuse: the process that called is gone."""
        raise RuntimeError(f"{call.interaction_id}: a journal taken over takes no call")

    def end(self, call: ModelCall) -> NoReturn:
        """Refuse: the process that called is gone."""
        raise RuntimeError(f"{call.interaction_id}: a journal taken over takes no call")

    def settled(self, *, limit: int = 1000) -> Settled | None:
        """See CallJournal.settled. Those that ended come first, then the unsettled."""
        first = self._done
        chosen = list(islice(self._calls, first, first + limit))
        if not chosen:
            return None
        calls = [self._call(number, at) for number, at in enumerate(chosen, first)]
        position = TAKEN + first + len(calls)
        return Settled(journal=self._id, position=position, calls=calls)

    def folded(self, settled: Settled) -> None:
        """See CallJournal.folded."""
        if settled.journal != self._id:
            raise ValueError(f"{settled.journal} is not this journal")
        self._done = max(self._done, settled.position - TAKEN)

    def set_aside(self, settled: Settled, why: str) -> None:
        """See CallJournal.set_aside."""
        keep_aside(self._path, settled, why)
        self.folded(settled)

    def abandoned(self) -> Sequence["AbandonedJournal"]:
        """None: ask the journal of the living process."""
        return ()

    def close(self, *, keep: bool = False) -> None:
        """Let go. Folded whole, its files go; those with bad lines are kept as ``.bad``.

        The lock goes last: without it nobody would look for the rest.
        """
        if self._held < 0:
            return
        if not (self.waiting or keep):
            try:
                for path in self._files:
                    if path in self._bad:
                        path.rename(path.with_suffix(lines.BAD))
                    else:
                        path.unlink()
                os.unlink(f"{self._id}{lines.LOCK}", dir_fd=self._folder)
            except OSError as error:  # the next taker finds it, and nothing new in it
                _failed(error, self._id)
        self._close_files()
        os.close(self._held)
        self._held = -1

    def _close_files(self) -> None:
        for fd in (*self._files.values(), self._folder):
            os.close(fd)

    def _read(self, path: Path) -> None:
        """Note where each call of a file stands."""
        try:
            fd = open_regular(path, self._folder, create=False)
        except OSError as error:
            if error.errno not in {errno.ELOOP, errno.EPERM, errno.EISDIR}:
                raise
            # Not ours: left where it is, and in nobody's way.
            _failed(error, self._id)
            return
        self._files[path] = fd
        with open(fd, "rb", closefd=False) as file:
            data = file.read()
        fields = ModelCall.__struct_fields__
        start = 0
        while start < len(data):
            end = data.find(b"\n", start)
            whole = end >= 0
            end = end if whole else len(data)
            try:
                line = lines.read_line(data[start:end])
                if line.kind == "h":
                    fields = lines.fields_of(line)
                else:
                    self._note(line, _Place(fd, start, end - start, fields))
            except lines.BadLineError:
                # A line that is torn at the end is what a death inside write(2) leaves.
                if whole and end > start:
                    self._bad[path] = self._bad.get(path, 0) + 1
            start = end + 1

    def _note(self, line: lines.Line, at: _Place) -> None:
        if line.kind == "f":
            self._known = max(self._known, line.number)
            return
        call_id = lines.call_of(line, at.fields).interaction_id
        if line.kind == "b":
            self._open[call_id] = at
        elif line.kind == "e":
            self._open.pop(call_id, None)
            self._ended.append((line.number, at))
        else:
            raise lines.BadLineError(line.kind)

    def _call(self, number: int, at: _Place) -> ModelCall:
        try:
            data = os.pread(at.fd, at.length, at.start)
            call = lines.call_of(lines.read_line(data), at.fields)
        except (OSError, lines.BadLineError) as error:
            message = f"the call journal {self._id} cannot be read: {error}"
            raise Unavailable(message) from error
        return call if number < self._settled else _unsettled(call)


def _unsettled(call: ModelCall) -> ModelCall:
    """Nobody saw its end. What costs nothing in any case still does."""
    free = call.replayed or call.cached
    return msgspec.structs.replace(
        call,
        ok=False,
        unsettled=True,
        error=UNSETTLED,
        cost_usd=Decimal(0) if free else None,
    )


def take_abandoned(folder: Path) -> list[AbandonedJournal]:
    """Take every journal whose process is gone and that nobody else took.

    What cannot be opened or read is logged, counted and left: it is in nobody's way.
    """
    found: list[AbandonedJournal] = []
    try:
        names = sorted(folder.glob(f"*{lines.LOCK}"))
    except OSError as error:
        _failed(error, str(folder))
        return found
    for path in names:
        try:
            held = _lock(path)
            if held is not None:
                found.append(_taken(folder, path, held))
        except OSError as error:
            _failed(error, path.stem)
        except Exception:  # noqa: BLE001 - one journal stops no other
            metrics.JOURNAL_ERRORS.labels("unreadable").inc()
            _log.exception("call_journal_unreadable", journal=path.stem)
    return found


def _taken(folder: Path, path: Path, held: int) -> AbandonedJournal:
    try:
        # Also without a file of calls: its process may hold leases all the same.
        return AbandonedJournal(folder, path.stem, held)
    except BaseException:
        os.close(held)
        raise


def _lock(path: Path) -> int | None:
    """Lock a lock file; None where a process has it, or it is gone."""
    folder = open_folder(path.parent)
    try:
        fd = open_regular(path, folder, create=False)
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours, named = os.fstat(fd), path.lstat()
        if (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def _segments(folder: Path, journal_id: str) -> list[Path]:
    """Return the files of a journal, oldest first."""

    def number(path: Path) -> int:
        text = path.name.removeprefix(f"{journal_id}.").removesuffix(lines.SEGMENT)
        return int(text) if text.isdecimal() else -1

    found = [p for p in folder.iterdir() if p.name.startswith(f"{journal_id}.")]
    mine = [p for p in found if p.name.endswith(lines.SEGMENT) and number(p) >= 0]
    return sorted(mine, key=number)


def _failed(error: OSError, journal: str) -> None:
    name = errno.errorcode.get(error.errno or 0, "unknown")
    metrics.JOURNAL_ERRORS.labels(name).inc()
    _log.error("call_journal_unreadable", journal=journal, error=str(error))
