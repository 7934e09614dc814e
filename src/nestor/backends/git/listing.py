"""What is in a working tree that somebody else filled: every file by its content.

The tree is walked here, not by git, so that neither a stat cache, a ``.git`` of the
agent's (at the top or nested, folder or file), a link in place of a folder, nor a name
can change what is seen. Git is asked for two things: which untracked paths the tree's
``.gitignore`` files leave out, and the ids of contents, taken as they are.
"""

import asyncio
import os
import re
import stat
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from nestor.backends.git.command import Repository
from nestor.backends.git.trees import GITLINK, SYMLINK, Entry, text
from nestor.errors import WorkspaceError

NEW_FILE_LIMIT_BYTES = 50 * 1024 * 1024
"""A new file over this is left out, and said."""
TRACKED_FILE_LIMIT_BYTES = 1024 * 1024 * 1024
NEW_FILES_LIMIT_BYTES = 1024 * 1024 * 1024
_DEPTH_LIMIT = 256
_DOT_GIT = re.compile(rb"(?:^|[\\/])(?:\.git|git~1)[ .]*(?:$|[:\\/])", re.IGNORECASE)
"""Names that git itself refuses in a tree, as some system would take them for ``.git``."""
_DOT_GITMODULES = re.compile(rb"\.gitmodules[ .]*(?::.*)?|gi.{0,5}~\d", re.IGNORECASE)
_READ_BY_GIT = {b".gitignore", b".gitattributes"}


class Found(NamedTuple):
    """One thing in a folder; ``path`` is relative to the top."""

    path: bytes
    kind: str
    """``folder``, ``link``, ``100644`` or ``100755``."""
    size: int


@dataclass(slots=True)
class Listing:
    """The tree as it stands, and what is not in it with the reason."""

    tree: dict[bytes, Entry] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


async def take(git: Repository, known: Mapping[bytes, Entry]) -> Listing:
    """List the work tree of ``git`` and store every content in its object store.

    ``known`` paths (of earlier commits) are taken even where an ignore file names them.
    Raises WorkspaceError when there is no tree, or it is too large.
    """
    if git.work_tree is None or not git.work_tree.is_dir():
        raise WorkspaceError("the working tree is gone")
    listing = Listing()
    files = await _walk(git, known, listing)
    _check_sizes(files, known, listing)
    with tempfile.TemporaryDirectory() as folder:
        contents = await asyncio.to_thread(
            _contents, os.fsencode(git.work_tree), files, Path(folder)
        )
        out = await git.run(
            *("hash-object", "-w", "--no-filters", "--stdin-paths"),
            stdin=b"".join(_quoted(path) + b"\n" for path in contents),
        )
    for found, oid in zip(files, out.decode().split(), strict=True):
        mode = SYMLINK if found.kind == "link" else found.kind
        listing.tree[found.path] = Entry(mode, oid)
    return listing


async def _walk(
    git: Repository, known: Mapping[bytes, Entry], listing: Listing
) -> list[Found]:
    """Go down level by level; one question to git about ignored paths for each level."""
    top = os.fsencode(git.work_tree or "")
    known_folders = _folders(known)
    files: list[Found] = []
    level = [b""]
    for _ in range(_DEPTH_LIMIT):
        found, said = await asyncio.to_thread(_scan, top, level)
        listing.left_out += said
        ignored = await _ignored(
            git, [one.path for one in found if one.path not in known]
        )
        level = []
        for one in found:
            entry = known.get(one.path)
            if one.kind != "folder":
                if entry is not None or one.path not in ignored:
                    files.append(one)
            elif entry is not None and entry.mode == GITLINK:
                listing.tree[one.path] = entry
                listing.left_out += _inside(top, one.path)
            elif one.path in known_folders or one.path not in ignored:
                level.append(one.path)
        if not level:
            return files
    listing.left_out += [f"{text(path)[:200]}: nested too deep" for path in level]
    return files


def _folders(paths: Collection[bytes]) -> set[bytes]:
    folders: set[bytes] = set()
    for path in paths:
        while (path := path.rpartition(b"/")[0]) and path not in folders:
            folders.add(path)
    return folders


def _scan(top: bytes, level: list[bytes]) -> tuple[list[Found], list[str]]:
    """List some folders without following any link; make what is hidden readable."""
    found: list[Found] = []
    said: list[str] = []
    for folder in level:
        place = os.path.join(top, folder)  # noqa: PTH118 - bytes: names need not be text
        try:
            if not os.access(place, os.R_OK | os.X_OK):
                os.chmod(place, 0o700)  # noqa: PTH101 - bytes
            with os.scandir(place) as entries:
                for entry in entries:
                    path = folder + b"/" + entry.name if folder else entry.name
                    one = _look(path, entry)
                    if isinstance(one, Found):
                        found.append(one)
                    elif one:
                        said.append(one)
        except OSError as error:
            said.append(f"{text(folder)[:200]}: {error.strerror}")
    found.sort()
    return found, said


def _look(path: bytes, entry: os.DirEntry[bytes]) -> Found | str:
    """Say what one thing is, or why it is left out (nothing to say for ``.git``)."""
    status = entry.stat(follow_symlinks=False)
    kind = ""
    if entry.name.lower() == b".git":
        return "" if path == entry.name else f"{text(path)}: a repository of its own"
    if _DOT_GIT.search(entry.name):
        return f"{text(path)}: git does not take this name"
    if stat.S_ISDIR(status.st_mode):
        kind = "folder"
    elif stat.S_ISREG(status.st_mode):
        if not status.st_mode & stat.S_IRUSR:
            os.chmod(entry.path, stat.S_IMODE(status.st_mode) | stat.S_IRUSR)  # noqa: PTH101
        kind = "100755" if status.st_mode & stat.S_IXUSR else "100644"
    elif stat.S_ISLNK(status.st_mode) and not _DOT_GITMODULES.fullmatch(entry.name):
        kind = "link"
    elif not stat.S_ISLNK(status.st_mode) and entry.name in _READ_BY_GIT:
        os.unlink(entry.path)  # noqa: PTH108 - bytes; git would wait on it for ever
    if kind:
        return Found(path, kind, status.st_size)
    return f"{text(path)}: neither a file, a folder nor a usable link"


def _inside(top: bytes, path: bytes) -> list[str]:
    """A submodule stays as it is on the base; say so when somebody filled its folder."""
    with os.scandir(os.path.join(top, path)) as entries:  # noqa: PTH118 - bytes
        filled = next(entries, None) is not None
    return [f"{text(path)}: files inside a submodule"] if filled else []


async def _ignored(git: Repository, paths: list[bytes]) -> set[bytes]:
    if not paths:
        return set()
    # check-ignore refuses literal pathspecs; after "./" no name is read as anything else.
    out = await git.run(
        *("check-ignore", "--no-index", "-z", "--stdin"),
        stdin=b"".join(b"./" + path + b"\0" for path in paths),
        ok=(0, 1),
        env={"GIT_LITERAL_PATHSPECS": "0"},
    )
    return {path.removeprefix(b"./") for path in out.split(b"\0")}


def _check_sizes(
    files: list[Found], known: Mapping[bytes, Entry], listing: Listing
) -> None:
    """Leave out large new files; refuse a tree that would fill the disk."""
    total = 0
    for one in list(files):
        if one.path in known:
            if one.size > TRACKED_FILE_LIMIT_BYTES:
                raise WorkspaceError(f"{text(one.path)} has grown to {one.size} bytes")
        elif one.size > NEW_FILE_LIMIT_BYTES:
            files.remove(one)
            listing.left_out.append(
                f"{text(one.path)}: {one.size} bytes, over {NEW_FILE_LIMIT_BYTES}"
            )
        else:
            total += one.size
    if total > NEW_FILES_LIMIT_BYTES:
        raise WorkspaceError(
            f"the agent left {total} bytes of new files; name them in .gitignore"
        )


def _contents(top: bytes, files: list[Found], scratch: Path) -> list[bytes]:
    """Name a file for each content: a link's is its target, written to ``scratch``."""
    contents: list[bytes] = []
    for number, one in enumerate(files):
        place = os.path.join(top, one.path)  # noqa: PTH118 - bytes
        if one.kind == "link":
            copy = scratch / str(number)
            copy.write_bytes(os.readlink(place))  # noqa: PTH115 - bytes
            place = os.fsencode(copy)
        contents.append(place)
    return contents


def _quoted(path: bytes) -> bytes:
    """Quote for a list with one path a line, as C does."""
    plain = set(range(0x20, 0x7F)) - {0x22, 0x5C}
    return (
        b'"'
        + b"".join(bytes([c]) if c in plain else b"\\%03o" % c for c in path)
        + b'"'
    )
