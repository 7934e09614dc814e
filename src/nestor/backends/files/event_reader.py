"""Reads event files: whole files for people and tests, the newest part for ``seen``."""

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import msgspec

from nestor.backends.files.event_line import decode
from nestor.model.event import Event
from nestor.telemetry import metrics
from nestor.telemetry.logs import get_logger

MAX_READ_BYTES = 8 * 1024 * 1024
"""Of one line; a longer one is bad."""
_ROTATED_SUFFIX = re.compile(r"\.[\w-]+(\.gz)?")
_BOM = b"\xef\xbb\xbf"
_log = get_logger("nestor.event_log")


class BadLine(NamedTuple):
    """A line that is no event. ``offset``: bytes from the start (unpacked)."""

    path: Path
    offset: int
    reason: str
    line: bytes
    """At most the first 8 MiB."""


def report_bad(bad: BadLine) -> None:
    """Log where and why, never the line; count it."""
    metrics.EVENT_LOG_ERRORS.labels("bad_line").inc()
    _log.warning(
        "event_line_bad", path=str(bad.path), offset=bad.offset, reason=bad.reason
    )


def read_events(
    path: Path, *, on_bad: Callable[[BadLine], None] = report_bad
) -> Iterator[Event]:
    """Yield the events of one file (``.gz`` too), in the order of its lines.

    Blank lines are passed over; any other line that is no event goes to ``on_bad``. A
    last line without its end is being written: it is neither. Raises ``OSError``.
    """
    with _open(path) as file:
        offset = 0
        while line := file.readline(MAX_READ_BYTES + 1):
            start, offset = offset, offset + len(line)
            if len(line) > MAX_READ_BYTES and not line.endswith(b"\n"):
                skipped, ended = _skip_line(file)
                offset += skipped
                if ended:
                    on_bad(BadLine(path, start, "line too long", line[:-1]))
                continue
            if not line.endswith(b"\n"):
                return
            text = (line.removeprefix(_BOM) if start == 0 else line).strip()
            if not text:
                continue
            try:
                event = decode(text, origin=(path.name, start))
            except (ValueError, RecursionError) as error:
                on_bad(BadLine(path, start, str(error), line))
                continue
            yield event


def find_ids(active: Path, ids: frozenset[str], *, limit_bytes: int) -> frozenset[str]:
    """Return those of ``ids`` with a whole line in the last ``limit_bytes`` of the log.

    The log: ``active`` and the newest file rotated from it. Raises ``OSError``.
    """
    found: set[str] = set()
    for path in (active, _newest_rotated(active)):
        if path is None or limit_bytes <= 0 or found == ids:
            continue
        tail = _tail(path, limit_bytes)
        limit_bytes -= len(tail)
        found |= _ids_in(tail, ids - found)
    return frozenset(found)


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    return path.open("rb")


def _skip_line(file: BinaryIO) -> tuple[int, bool]:
    skipped = 0
    while piece := file.readline(MAX_READ_BYTES):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            return skipped, True
    return skipped, False


def _newest_rotated(active: Path) -> Path | None:
    newest: tuple[int, Path] | None = None
    try:
        with os.scandir(active.parent) as scan:
            entries = list(scan)
    except FileNotFoundError:
        return None
    for entry in entries:
        suffix = entry.name.removeprefix(active.name)
        if suffix == entry.name or not _ROTATED_SUFFIX.fullmatch(suffix):
            continue
        if entry.is_file(follow_symlinks=False):
            candidate = (
                entry.stat(follow_symlinks=False).st_mtime_ns,
                Path(entry.path),
            )
            newest = max(newest, candidate) if newest else candidate
    return newest[1] if newest else None


def _tail(path: Path, limit_bytes: int) -> bytes:
    """Return the whole lines among the last ``limit_bytes`` of a file."""
    try:
        if path.suffix == ".gz":
            return _gzip_tail(path, limit_bytes)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # One byte more tells whether the part begins with a whole line.
            file.seek(max(0, size - limit_bytes - 1))
            part = file.read(limit_bytes + 1)
            return part if size <= limit_bytes else part.partition(b"\n")[2]
    except FileNotFoundError:
        return b""


def _gzip_tail(path: Path, limit_bytes: int) -> bytes:
    tail, cut = b"", False
    with gzip.open(path, "rb") as file:
        try:
            while piece := file.read(1 << 20):
                tail += piece
                if len(tail) > limit_bytes + 1:
                    tail, cut = tail[-limit_bytes - 1 :], True
        except (EOFError, zlib.error, gzip.BadGzipFile):
            pass  # half a file: what could be read stands
    return tail.partition(b"\n")[2] if cut else tail


class _Head(msgspec.Struct):
    id: str


def _ids_in(tail: bytes, ids: frozenset[str]) -> set[str]:
    wanted = {i: msgspec.json.encode(i) for i in ids}
    wanted = {i: text for i, text in wanted.items() if text in tail}
    found: set[str] = set()
    if not wanted:
        return found
    decoder = msgspec.json.Decoder(_Head)
    for line in tail[: tail.rfind(b"\n") + 1].splitlines():
        if any(text in line for text in wanted.values()):
            try:
                head = decoder.decode(line)
            except msgspec.MsgspecError:
                continue  # torn, or joined to a torn one
            if head.id in wanted:
                found.add(head.id)
    return found
