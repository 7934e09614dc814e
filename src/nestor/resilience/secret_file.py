"""Read a file that should hold a secret, whatever stands in its place."""

import os
from pathlib import Path

from nestor.model.secret import fault_of_file

MAX_SECRET_BYTES = 64 * 1024


def read_secret_file(path: Path, *, owner_only: bool = False) -> str:
    """Read a file that holds one secret, at most 64 KiB of UTF-8, without the space around it.

    Links are followed, as the mounted secrets of containers are links: what counts is the
    file that was opened. ``owner_only``: neither a link nor anything for the group.
    Raises ``OSError``, and ``ValueError`` that says what is wrong with the file.
    """
    # A FIFO that nobody writes to would keep a plain open waiting for ever.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    handle = os.open(path, flags | (os.O_NOFOLLOW if owner_only else 0))
    try:
        if fault := fault_of_file(os.fstat(handle), path, owner_only=owner_only):
            raise ValueError(fault)
        with os.fdopen(handle, "rb", closefd=False) as file:
            raw = file.read(MAX_SECRET_BYTES + 1)
    finally:
        os.close(handle)
    if len(raw) > MAX_SECRET_BYTES:
        raise ValueError(f"{path} is over {MAX_SECRET_BYTES // 1024} KiB: not a secret")
    try:
        text = raw.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error
    if not text:
        raise ValueError(f"{path} is empty")
    if not text.isprintable():
        raise ValueError(f"{path} holds more than one line, or control characters")
    return text
