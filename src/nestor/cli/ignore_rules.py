"""Ignore files: git's own syntax, read without git.

A pattern without a slash fits a name at any depth; with one, a path from the folder of
its file; a slash at its end, only folders. ``*``, ``?`` and ``[a-z]`` stay within a name,
``**`` stands for any number of folders, ``!`` takes back. The last line that fits decides.
What lies in an ignored folder cannot be taken back, as in git.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path

MAX_BYTES = 256 * 1024
"""Of an ignore file; what follows is not read."""
_STARS = "**"


@dataclass(frozen=True, slots=True)
class _Pattern:
    parts: tuple[re.Pattern[str] | None, ...]
    """None: ``**``."""
    anywhere: bool
    only_folder: bool
    takes_back: bool

    def fits(self, names: Sequence[str], *, folder: bool) -> bool:
        if self.only_folder and not folder:
            return False
        if self.anywhere:
            part = self.parts[0]
            return part is not None and part.match(names[-1]) is not None
        places = _past_stars({0}, self.parts)
        for name in names:
            fitting = set()
            for place in places:
                if place < len(self.parts):
                    part = self.parts[place]
                    if part is None:
                        fitting.add(place)
                    elif part.match(name):
                        fitting.add(place + 1)
            places = _past_stars(fitting, self.parts)
        return len(self.parts) in places


class IgnoreRules:
    """The patterns of one ignore file."""

    def __init__(self, lines: Sequence[str]) -> None:
        found = [_pattern(line) for line in lines]
        self._patterns = [pattern for pattern in found if pattern][::-1]

    @classmethod
    def read(cls, path: Path) -> "IgnoreRules | None":
        """Read an ignore file; None when there is none that can be read."""
        try:
            if path.is_symlink() or not path.is_file():
                return None
            with path.open("rb") as file:
                text = file.read(MAX_BYTES).decode(errors="surrogateescape")
        except OSError:
            return None
        return cls(text.removeprefix("\ufeff").split("\n"))

    def ignores(self, names: Sequence[str], *, folder: bool) -> bool | None:
        """Tell of a path from the file's own folder; None: no line speaks of it."""
        for pattern in self._patterns:
            if pattern.fits(names, folder=folder):
                return not pattern.takes_back
        return None


def _pattern(line: str) -> _Pattern | None:
    line = _without_spaces(line.removesuffix("\r"))
    if not line or line.startswith("#"):
        return None
    takes_back = line.startswith("!")
    line = line[takes_back:]
    only_folder = line.endswith("/")
    line = line.removesuffix("/")
    if not line:
        return None
    parts = line.removeprefix("/").split("/")
    if parts[-1] == _STARS:  # what is in a folder, not the folder
        parts.insert(-1, "*")
    compiled = tuple(None if part == _STARS else _name(part) for part in parts)
    anywhere = "/" not in line and compiled[0] is not None
    return _Pattern(compiled, anywhere, only_folder, takes_back)


def _without_spaces(line: str) -> str:
    """Leave out blanks at the end, unless a backslash stands before them."""
    short = line.rstrip(" ")
    slashes = len(short) - len(short.rstrip("\\"))
    return short + " " if slashes % 2 and len(short) < len(line) else short


def _name(part: str) -> re.Pattern[str]:
    """One name of a pattern. ``translate`` makes expressions that never backtrack."""
    told = re.sub(
        r"\\(.)",
        lambda m: f"[{m[1]}]" if m[1] in "*?[" else m[1],
        part,
        flags=re.DOTALL,
    )
    return re.compile(translate(told.replace("[^", "[!")))


def _past_stars(places: set[int], parts: Sequence[re.Pattern[str] | None]) -> set[int]:
    """``**`` may stand for no folder at all."""
    for place in sorted(places):
        after = place
        while after < len(parts) and parts[after] is None:
            after += 1
            places.add(after)
    return places
