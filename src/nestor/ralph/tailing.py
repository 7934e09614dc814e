"""What an agent prints, told live while it runs: as ``output`` events of its task.

Bounded, because agents print without end: one event in half a second, 4 KiB in each, the
newest lines; 256 KiB in an iteration. What is left out is counted. The whole output's end
stays in the iteration's record.
"""

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nestor.errors import NestorError
from nestor.model.task import Task
from nestor.ralph.parts import Parts
from nestor.telemetry.redact import REDACTED, redact

EVERY_S = 0.5
EVENT_BYTES = 4 * 1024
ITERATION_BYTES = 256 * 1024
_READ_BYTES = 64 * 1024
_KEY_BODY = re.compile(r"^[A-Za-z0-9+/=]{48,}\r?$", re.MULTILINE)
"""A line of a PEM block: where the block was cut, redaction cannot know it."""


@asynccontextmanager
async def told_live(p: Parts, task: Task, n: int, run_dir: Path) -> AsyncIterator[None]:
    """While the body runs a command in ``run_dir``, tell what it prints.

    Nothing may run there yet. A step that is done again tells its output again.
    """
    for name in ("output", "output.old"):
        # Of an attempt that died: it is not what runs now.
        with contextlib.suppress(OSError):
            (run_dir / name).unlink()
    tail = Tail(run_dir)
    over = asyncio.Event()
    telling = asyncio.create_task(_tell(p, task, n, tail, over))
    try:
        yield
    finally:
        # Not cancelled: what it has read and not told yet would be lost.
        over.set()
        await asyncio.gather(telling, return_exceptions=True)
    await _tell_once(p, task, n, tail, last=True)


async def _tell(
    p: Parts, task: Task, n: int, tail: "Tail", over: asyncio.Event
) -> None:
    while not over.is_set():
        try:
            await asyncio.wait_for(over.wait(), EVERY_S)
        except TimeoutError:
            await _tell_once(p, task, n, tail, last=False)


async def _tell_once(p: Parts, task: Task, n: int, tail: "Tail", *, last: bool) -> None:
    if (data := await asyncio.to_thread(tail.piece, last=last)) is None:
        return
    # For people only: a database that is away must not end the agent's work.
    with contextlib.suppress(NestorError):
        await p.store.tell(task.task_id, "output", {"n": n, **data})


class Tail:
    """Follows the newest output of one run, across the change of its file."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "output"
        self._inode: int | None = None
        self._at = 0
        self._rest = b""
        """The line that has not ended yet."""
        self._beheaded = False
        """The line that comes next has lost its beginning."""
        self._left_out = 0
        self._told = 0

    def piece(self, *, last: bool) -> dict[str, Any] | None:
        """Return what is new since the last call; None: nothing.

        ``last``: nothing more will come, so a line without an end is taken too.
        """
        new = self._rest
        for read, skipped in self._read():
            if skipped:  # its line has lost its end
                end = new.rfind(b"\n") + 1
                self._left_out += len(new) - end
                new = new[:end]
            new += read
        end = new.rfind(b"\n") + 1
        if last or len(new) - end > EVENT_BYTES:
            end = len(new)
        whole, self._rest = new[:end], new[end:]
        room = min(EVENT_BYTES, ITERATION_BYTES - self._told)
        shown = _newest(whole, room)
        self._left_out += len(whole) - len(shown)
        if not shown and not (last and self._left_out):
            return None
        left_out, self._left_out = self._left_out, 0
        self._told += len(shown)
        return {"text": _clean(shown), "left_out_bytes": left_out}

    def _read(self) -> Iterator[tuple[bytes, bool]]:
        """Read what was written since, each part with whether some before it was skipped."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(self._path, flags)
        except OSError:
            return
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                return
            if about.st_ino != self._inode:
                yield from self._rest_of_old()
                self._inode, self._at = about.st_ino, 0
            yield self._part(file, about.st_size)

    def _rest_of_old(self) -> Iterator[tuple[bytes, bool]]:
        """Read on in the file that was followed so far, under the name it has now.

        What was written and gone before anybody looked is not counted.
        """
        with (
            contextlib.suppress(OSError),
            self._path.with_name("output.old").open("rb") as file,
        ):
            about = os.fstat(file.fileno())
            lost = about.st_ino != self._inode
            if lost:  # nobody looked while that one was written
                self._at = 0
            found, skipped = self._part(file, about.st_size)
            yield found, skipped or lost

    def _part(self, file: BinaryIO, size: int) -> tuple[bytes, bool]:
        """Read on from where we are; of very much only the newest part, whole lines."""
        skipped = size - self._at > _READ_BYTES
        if skipped:
            self._left_out += size - _READ_BYTES - self._at
            self._at = size - _READ_BYTES
        file.seek(self._at)
        found = file.read(_READ_BYTES)
        self._at += len(found)
        if self._beheaded or skipped:
            lost, end, found = found.partition(b"\n")
            self._left_out += len(lost + end)
            self._beheaded = not end
        return found, skipped


def _newest(whole: bytes, room: int) -> bytes:
    """Return the last whole lines that fit; of a line that is longer, nothing.

    Half a line could hold half a secret, which nobody would know for one.
    """
    if len(whole) <= room:
        return whole
    return whole[len(whole) - room :].partition(b"\n")[2] if room > 0 else b""


def _clean(raw: bytes) -> str:
    text = raw.decode(errors="replace").replace("\r\n", "\n")
    # A line that was written over and over, as progress is, is its last state.
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return _KEY_BODY.sub(REDACTED, redact("\n".join(lines)))
