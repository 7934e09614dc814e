"""Take the bytes of a file, and of nothing that only looks like one."""

import os
import stat

from nestor.backends.documents.decoding import MAX_BYTES
from nestor.errors import Unreadable

_AT_ONCE = 1 << 20
_OTHERS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link, and links are not followed; give what it leads to"),
    (stat.S_ISFIFO, "a pipe, not a file"),
    (stat.S_ISSOCK, "a socket, not a file"),
    (stat.S_ISCHR, "a device, not a file"),
    (stat.S_ISBLK, "a device, not a file"),
)
# Never a link's target, never a wait for who writes into a pipe, never our terminal.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def take(path: bytes) -> bytes:
    """Read a whole regular file of at most ``MAX_BYTES``. Raises ``Unreadable``."""
    try:
        # Before it is opened: that alone does things to a device.
        _check(os.lstat(path))
        handle = os.open(path, _FLAGS)
        try:
            return _whole(handle)
        finally:
            os.close(handle)
    except ValueError:
        raise Unreadable("its name holds a NUL") from None
    except OSError as error:
        raise Unreadable(f"it cannot be opened: {error.strerror}") from error


def _check(state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        kind = [text for test, text in _OTHERS if test(state.st_mode)]
        raise Unreadable(f"it is {kind[0] if kind else 'no file'}")
    if state.st_size > MAX_BYTES:
        raise Unreadable(
            f"it has {state.st_size:,} bytes; at most {MAX_BYTES:,} are read; split it"
        )


def _whole(handle: int) -> bytes:
    before = os.fstat(handle)
    _check(before)  # of what was opened: it may be another file by now
    parts, size = [], 0
    while size <= MAX_BYTES and (part := os.read(handle, _AT_ONCE)):
        parts.append(part)
        size += len(part)
    after = os.fstat(handle)
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if not same or size != after.st_size:
        raise Unreadable("it changed while it was read; add it again")
    return b"".join(parts)
