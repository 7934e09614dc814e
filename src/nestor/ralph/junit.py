"""The JUnit file that pytest writes, read in one pass: tested code can write it, too.

So it is hostile: it is bounded, it may define nothing, no tree is made of it, and it is
read in small pieces, between which the other threads of this process get their turn.
"""

from typing import NoReturn
from xml.etree import ElementTree as ET

import msgspec

MAX_REPORT_BYTES = 8 * 1024 * 1024
_MAX_ELEMENTS = 200_000
_MAX_DEPTH = 20
_MAX_DIGITS = 9
_PIECE_BYTES = 64 * 1024


class Junit(msgspec.Struct, frozen=True, kw_only=True):
    """``ran``: class name and name of each test that was not skipped."""

    ran: list[tuple[str, str]]
    unreadable: list[str]
    """Modules that could not be collected."""
    skipped: int


def read_junit(data: bytes) -> Junit | None:
    """Read a whole report; None for one that is cut off, too large, or none."""
    if len(data) > MAX_REPORT_BYTES:
        return None
    reader = _Reader()
    parser = ET.XMLParser(target=reader)  # noqa: S314 - it refuses all definitions
    try:
        for begin in range(0, len(data), _PIECE_BYTES):
            parser.feed(data[begin : begin + _PIECE_BYTES])
        parser.close()
    except (ET.ParseError, ValueError, LookupError):
        # Also an encoding that does not exist.
        return None
    return reader.whole()


class _Reader:
    """Hears of each element as it begins and ends. Raises ``ValueError`` to refuse."""

    def __init__(self) -> None:
        self._within: list[str] = []
        self._elements = self._cases = self._tests = self._skipped = 0
        self._ran: list[tuple[str, str]] = []
        self._unreadable: list[str] = []
        self._case: tuple[str, str] = "", ""
        self._case_depth: int | None = None
        self._error: str | None = None
        """Of the case: what its first error says."""
        self._left_out = False

    def doctype(self, name: str, public: str | None, system: str | None) -> NoReturn:
        """Refuse: only there could anything be defined."""
        raise ValueError(f"{name} {public} {system}")

    def start(self, tag: str, about: dict[str, str]) -> None:
        self._elements += 1
        depth = len(self._within)
        if self._elements > _MAX_ELEMENTS or depth >= _MAX_DEPTH:
            raise ValueError("too much")
        if tag == "testsuite" and (depth == 0 or (depth == 1 and not self._in_suite)):
            self._tests += _count(about.get("tests", "0"))
            self._skipped += _count(about.get("skipped", "0"))
        elif tag == "testcase":
            self._cases += 1
            self._case = about.get("classname", ""), about.get("name", "")
            self._case_depth, self._error, self._left_out = depth, None, False
        elif self._case_depth is not None and depth == self._case_depth + 1:
            if tag == "error" and self._error is None:
                self._error = about.get("message", "")
            self._left_out = self._left_out or tag == "skipped"
        self._within.append(tag)

    def end(self, _: str) -> None:
        self._within.pop()
        if self._case_depth != len(self._within):
            return
        self._case_depth = None
        if self._error == "collection failure":
            self._unreadable.append(".".join(part for part in self._case if part))
        elif not self._left_out:
            self._ran.append(self._case)

    def close(self) -> None:
        """Nothing is left to be done."""

    @property
    def _in_suite(self) -> bool:
        return self._within[0] == "testsuite"

    def whole(self) -> Junit | None:
        if self._cases < self._tests:  # cut off
            return None
        return Junit(ran=self._ran, unreadable=self._unreadable, skipped=self._skipped)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise ValueError(text[:_MAX_DIGITS])
    return int(text)
