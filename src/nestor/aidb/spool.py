"""Where a document that is being sent waits until it is whole."""

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from nestor.aidb.ingest import MAX_CONTENT_BYTES
from nestor.errors import TooLarge, Unavailable

_AT_ONCE = 1 << 18
"""A write of so much takes less time than handing it to a thread would."""


class Spooled(NamedTuple):
    """A file that exists until the block ends, and what it holds."""

    path: Path
    content_hash: str
    size_bytes: int


class Spool:
    """A folder of files that are being received; what a dead process left goes at ``open``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        """Make the folder, empty. Raises ``Unavailable``."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self._folder.glob("document-*"):
                left.unlink()
        except OSError as error:
            message = f"{self._folder} cannot be used: {error.strerror}"
            raise Unavailable(message) from error

    @asynccontextmanager
    async def take(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[Spooled]:
        """Write what comes in, never much of it in memory. Raises ``TooLarge``, ``Unavailable``."""
        try:
            handle, name = tempfile.mkstemp(dir=self._folder, prefix="document-")
        except OSError as error:
            message = f"nothing can be received: {error.strerror}"
            raise Unavailable(message) from error
        path = Path(name)
        try:
            try:
                digest, size = await _written(handle, pieces)
            finally:
                os.close(handle)
            yield Spooled(path, digest, size)
        finally:
            os.unlink(path)  # noqa: PTH108 - a moment; a thread may not come to it


async def _written(handle: int, pieces: AsyncIterator[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    held = bytearray()

    def write(part: bytes) -> None:
        digest.update(part)
        view = memoryview(part)
        while view:
            view = view[os.write(handle, view) :]

    try:
        async for piece in pieces:
            size += len(piece)
            if size > MAX_CONTENT_BYTES:
                raise TooLarge.at("body", f"over {MAX_CONTENT_BYTES} bytes")
            held += piece
            if len(held) >= _AT_ONCE:
                write(bytes(held))
                held.clear()
        write(bytes(held))
    except OSError as error:
        message = f"nothing can be received: {error.strerror}"
        raise Unavailable(message) from error
    return digest.hexdigest(), size
