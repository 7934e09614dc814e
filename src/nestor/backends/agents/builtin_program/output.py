"""What is printed for whoever watches, and how long output is kept short."""

from __future__ import annotations

import json
import sys

from .limits import OUTPUT_LIMIT

END = "NESTOR-AGENT-END "
REFUSED = "NESTOR-REFUSED "
_REFUSED_CHARS = 300


class Ends:
    """The beginning and the end of a byte stream of any length."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = b""
        self._tail = b""
        self._size = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self._size += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail = (self._tail + data[room:])[-self._half :]

    def text(self) -> str:
        """Return what is kept, with a note where bytes are missing."""
        missing = self._size - len(self._head) - len(self._tail)
        cut = b"\n[... %d bytes left out ...]\n" % missing if missing else b""
        return (self._head + cut + self._tail).decode("utf-8", "replace")


def clean(text: str) -> str:
    """Return ``text`` as UTF-8 can hold it."""
    return text.encode("utf-8", "replace").decode()


def say(text: str) -> None:
    """Print for whoever watches; no line of it can be taken for one of ours."""
    for line in text[: 2 * OUTPUT_LIMIT].splitlines():
        sys.stdout.write(f"| {line}\n")
    sys.stdout.flush()


def say_refused(what: str) -> None:
    """Print one refusal as the harness reads it."""
    short = " ".join(clean(what).split())[:_REFUSED_CHARS]
    sys.stdout.write(f"{REFUSED}{json.dumps(short)}\n")
    sys.stdout.flush()


def say_end(*, claims_done: bool, summary: str, turns: int, error: str | None) -> None:
    """Print the last line."""
    end = {
        "claims_done": claims_done,
        "summary": " ".join(clean(summary).split())[:500],
        "turns": turns,
        "error": error,
    }
    sys.stdout.write(END + json.dumps(end) + "\n")
    sys.stdout.flush()
