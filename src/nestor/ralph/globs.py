"""Path globs from the root of the repository, for the paths a task protects.

- ``*``, ``?``, ``[a-z]`` and ``[!a-z]`` stay within one name. ``**`` stands for any number
  of folders (``**/conftest.py`` is also the one at the top); at the end, for everything
  below. There is no negation; ``[*]`` is a star itself. Letters match in their own case.
- A pattern that matches a folder covers all that is in it; ``tests/`` matches only a folder.
- A pattern that *is* a path always matches it, so that ``pages/[id].test.js`` means itself.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase


class Globs:
    """Several patterns as one question. Time is linear in pattern and path."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._literal: set[str] = set()
        self._folders: set[str] = set()
        self._patterns: list[tuple[list[str], bool]] = []
        for pattern in patterns:
            parts = [part for part in pattern.split("/") if part not in {"", "."}]
            if not parts:
                continue
            only_folder = pattern.endswith("/")
            literal = self._folders if only_folder else self._literal
            literal.add("/".join(parts))
            if plain := _without_wildcards("/".join(parts)):
                literal.add(plain)
            else:
                ending = ["*"] if parts[-1] == "**" else []
                self._patterns.append((parts + ending, only_folder))

    def match(self, path: str) -> bool:
        """Tell whether any pattern covers this path of a file."""
        names = path.split("/")
        folders = ["/".join(names[:count]) for count in range(1, len(names))]
        if path in self._literal or any(
            folder in self._literal or folder in self._folders for folder in folders
        ):
            return True
        return any(_covers(pattern, names, only) for pattern, only in self._patterns)


def _without_wildcards(pattern: str) -> str | None:
    """Return the one path a pattern stands for; None when it is more than one."""
    if re.search(r"[*?\[]", re.sub(r"\[[*?\[]\]", "", pattern)):
        return None
    return re.sub(r"\[([*?\[])\]", r"\1", pattern)


def _covers(pattern: list[str], names: list[str], only_folder: bool) -> bool:
    """Step through the names, holding every place in the pattern that fits so far."""
    places = _past_stars({0}, pattern)
    for number, name in enumerate(names, 1):
        fitting = set()
        for place in places:
            if place == len(pattern):
                continue
            if pattern[place] == "**":
                fitting.add(place)
            elif fnmatchcase(name, pattern[place]):
                fitting.add(place + 1)
        places = _past_stars(fitting, pattern)
        if len(pattern) in places and not (only_folder and number == len(names)):
            return True
    return False


def _past_stars(places: set[int], pattern: list[str]) -> set[int]:
    """``**`` may stand for no folder at all."""
    for place in sorted(places):
        following = place
        while following < len(pattern) and pattern[following] == "**":
            following += 1
            places.add(following)
    return places
