"""Keeps a repository, and all that git reads for it, inside folders that were allowed.

Whoever can write there may make a repository whose ``.git`` leads into another one of the
same user: by a ``gitdir`` line, a common folder, alternate objects, or links.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from nestor.backends.git.source import Source
from nestor.errors import Forbidden

_MAX_ALTERNATES = 100


def check_folder(text: str, inside: Sequence[Path]) -> None:
    """Raise ``Forbidden`` for a path outside, before anything looks at what is there."""
    try:
        path = Path(text).expanduser().resolve()
    except (OSError, RuntimeError):  # nobody's home, or links in a circle
        raise _outside() from None
    _refuse([path], inside)


def check(found: Source, inside: Sequence[Path]) -> None:
    """Raise ``Forbidden`` when some of what git reads for this repository lies outside."""
    folders = {found.git_dir, found.objects, found.index, found.exclude}
    # Of a linked worktree these two are different folders.
    folders |= {found.objects.parent, found.shallow}
    _refuse(sorted(folders), inside)
    for folder in (found.git_dir, found.objects.parent):
        _refuse(_links(folder), inside)
    _refuse(_alternates(found.objects), inside)


def _links(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        if Path(place) == folder and "hooks" in folders:
            folders.remove("hooks")  # never run, and often a link
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink():
                yield path


def _alternates(objects: Path) -> list[Path]:
    """Return every object folder that git would look into as well, at any depth."""
    found: list[Path] = []
    waiting = [objects]
    while waiting:
        if len(found) > _MAX_ALTERNATES:
            raise _outside()
        here = waiting.pop()
        try:
            lines = (here / "info" / "alternates").read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(b'"'):  # quoted as in C: nobody writes that by hand
                raise _outside()
            if line and not line.startswith(b"#"):
                other = here / os.fsdecode(line)
                if other not in found:
                    found.append(other)
                    waiting.append(other)
    return found


def _refuse(paths: Sequence[Path] | Iterator[Path], inside: Sequence[Path]) -> None:
    for path in paths:
        try:
            real = path.resolve()
        except (OSError, RuntimeError):  # links in a circle
            raise _outside() from None
        if not any(real.is_relative_to(root) for root in inside):
            raise _outside()


def _outside() -> Forbidden:
    return Forbidden(
        "workspace.repo: it, or what git reads for it, is outside"
        " NESTOR_WORKSPACE_ROOTS; this needs an admin key"
    )
