"""A stream of bytes, cut behind its last complete event."""

import re
from collections.abc import Iterator

from nestor.model.sse import MAX_EVENT_BYTES, data_of, is_done

_END = re.compile(rb"\n\r?\n")


class Cutter:
    """Holds back what is not a whole event yet; changes no byte."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes as they came; return those up to the end of the last whole event."""
        if self._held:
            # Only a long event comes in many parts, and they are as large as a read.
            chunk = self._held + chunk
        if chunk.endswith(b"\n\n"):
            self._held = b""
            return chunk
        end = max(chunk.rfind(b"\n\n") + 2, chunk.rfind(b"\n\r\n") + 3)
        if end < 3:  # neither was found # noqa: PLR2004 - the length of the longer one
            if len(chunk) > MAX_EVENT_BYTES:
                self._held = b""
                return chunk
            self._held = chunk
            return b""
        self._held = chunk[end:]
        return chunk[:end]

    def rest(self) -> bytes:
        """Return what came after the last complete event."""
        return self._held

    def last_event(self) -> bytes:
        """Return the rest with the empty line that it lacks, if that makes it an event."""
        event = self._held + b"\n\n"
        self._held = b""
        return event if is_done(event) or data_of(event) is not None else b""


def split(piece: bytes) -> Iterator[bytes]:
    """Cut a piece into its events; what is behind the last end is one as well."""
    start = 0
    for match in _END.finditer(piece):
        yield piece[start : match.end()]
        start = match.end()
    if start < len(piece):
        yield piece[start:]


def start_of_event(piece: bytes, position: int) -> int:
    """Return where the event begins that ``position`` stands in."""
    before = piece.rfind(b"\n\n", 0, position), piece.rfind(b"\n\r\n", 0, position)
    return max(
        before[0] + 2 if before[0] >= 0 else 0, before[1] + 3 if before[1] >= 0 else 0
    )
