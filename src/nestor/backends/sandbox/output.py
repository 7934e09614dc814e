"""Files that the guardian writes: what the command printed, and how it ended.

Standard library only: the guardian imports it without our package.
"""

from __future__ import annotations

import contextlib
import json
import os


def write_whole(path: str, value: object, *, durable: bool) -> None:
    """Replace a file so that a reader sees the old content or the new, nothing between."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, json.dumps(value).encode())
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)  # noqa: PTH105
    if not durable:
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY)  # noqa: PTH120
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Output:
    """The newest ``limit`` bytes on disk at most, as ``output.old`` then ``output``."""

    def __init__(self, run_dir: str, limit: int) -> None:
        self.path = f"{run_dir}/output"
        self.half = max(limit // 2, 1)
        self.truncated = False
        self._remove(f"{self.path}.old")
        self._open()

    def write(self, data: bytes) -> None:
        """Append; when half the limit is reached, the older half makes room."""
        while data:
            if self.size >= self.half:
                os.close(self.fd)
                if os.path.exists(f"{self.path}.old"):  # noqa: PTH110
                    self.truncated = True
                os.replace(self.path, f"{self.path}.old")  # noqa: PTH105
                self._open()
            part = data[: self.half - self.size]
            try:
                self.size += os.write(self.fd, part)
            except OSError:
                # A full disk must not stop the guardian from guarding.
                self.truncated = True
                return
            data = data[len(part) :]

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        self.fd = os.open(self.path, flags, 0o600)
        self.size = 0

    @staticmethod
    def _remove(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108


def memfd(data: bytes) -> int:
    """Return an anonymous file with this content, at its beginning."""
    fd = os.memfd_create("nestor")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
