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
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from nestor.backends.git.command import Repository
from nestor.backends.git.trees import GITLINK, SYMLINK, Entry, text
from nestor.errors import WorkspaceError

NEW_FILE_LIMIT_BYTES = 50 * 1024 * 1024
"""A new file over this is left out, and said."""
TRACKED_FILE_LIMIT_BYTES = 1024 * 1024 * 1024
NEW_FILES_LIMIT_BYTES = 1024 * 1024 * 1024
NEW_PATHS_LIMIT = 200_000
NEW_NAMES_LIMIT_BYTES = 64 * 1024 * 1024
"""Of the paths together: the worker holds them all."""
RULES_LIMIT_BYTES = 1024 * 1024
"""Of one ``.gitignore`` or ``.gitattributes``: git takes 40 times as much memory."""
_BATCH = 20_000
"""Paths that git is asked about at once; of ignored ones no more are ever held."""
_LEFT_OUT_LIMIT = 1000
_DEPTH_LIMIT = 256
_DOT_GIT = re.compile(rb"(?:^|[\\/])(?:\.git|git~1)[ .]*(?:$|[:\\/])", re.IGNORECASE)
"""Names that git itself refuses in a tree, as some system would take them for ``.git``."""
_DOT_GITMODULES = re.compile(rb"\.gitmodules[ .]*(?::.*)?|gi.{0,5}~\d", re.IGNORECASE)
_NOT_PLAIN = re.compile(rb'[^ -~]|["\\]')
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
    """The first of them: an agent may leave as many as it likes."""

    def leave_out(self, *said: str) -> None:
        """Note what is not in the tree."""
        self.left_out += said[: max(_LEFT_OUT_LIMIT - len(self.left_out), 0)]


@dataclass(slots=True)
class Room:
    """How many more paths may be there, and how long their names may be together."""

    paths: int
    names_bytes: int

    @classmethod
    def beside(cls, base: Mapping[bytes, Entry]) -> "Room":
        """Return room for all that the base has, and a bounded number of new paths."""
        return cls(
            paths=len(base) + NEW_PATHS_LIMIT,
            names_bytes=sum(map(len, base)) + NEW_NAMES_LIMIT_BYTES,
        )

    def take(self, path: bytes) -> None:
        """Count one more path; raises WorkspaceError when there is no room."""
        self.paths -= 1
        self.names_bytes -= len(path)
        if self.paths < 0 or self.names_bytes < 0:
            raise WorkspaceError(
                f"the agent left more than {NEW_PATHS_LIMIT} new files and folders, or"
                f" names over {NEW_NAMES_LIMIT_BYTES} bytes together;"
                " name them in .gitignore"
            )


async def take(git: Repository, known: Mapping[bytes, Entry], room: Room) -> Listing:
    """List the work tree of ``git`` and store every content in its object store.

    ``known`` paths (of earlier commits) are taken even where an ignore file names them.
    Raises WorkspaceError when there is no tree, or it is too large.
    """
    if git.work_tree is None or not git.work_tree.is_dir():
        raise WorkspaceError("the working tree is gone")
    listing = Listing()
    files = await _walk(git, known, listing, room)
    files = _check_sizes(files, known, listing)
    with tempfile.TemporaryDirectory() as folder:
        contents = await asyncio.to_thread(
            _contents, os.fsencode(git.work_tree), files, Path(folder)
        )
        out = await git.run(
            *("hash-object", "-w", "--no-filters", "--stdin-paths"), stdin=contents
        )
    for found, oid in zip(files, out.decode().split(), strict=True):
        mode = SYMLINK if found.kind == "link" else found.kind
        listing.tree[found.path] = Entry(mode, oid)
    return listing


async def _walk(
    git: Repository, known: Mapping[bytes, Entry], listing: Listing, room: Room
) -> list[Found]:
    """Go down level by level, and ask git about ignored paths in batches."""
    top = os.fsencode(git.work_tree or "")
    known_folders = _folders(known)
    files: list[Found] = []
    level = [b""]
    for _ in range(_DEPTH_LIMIT):
        seen = _scan(top, level)
        level = []
        while batch := await asyncio.to_thread(_some, seen):
            listing.leave_out(*(one for one in batch if isinstance(one, str)))
            found = sorted(one for one in batch if isinstance(one, Found))
            ignored = await _ignored(
                git, [one.path for one in found if one.path not in known]
            )
            for one in found:
                entry = known.get(one.path)
                if one.kind != "folder":
                    if entry is not None or one.path not in ignored:
                        room.take(one.path)
                        files.append(one)
                elif entry is not None and entry.mode == GITLINK:
                    listing.tree[one.path] = entry
                    listing.leave_out(*_inside(top, one.path))
                elif one.path in known_folders:
                    level.append(one.path)
                elif one.path not in ignored:
                    room.take(one.path)
                    level.append(one.path)
        if not level:
            return files
    listing.leave_out(*(f"{text(path)[:200]}: nested too deep" for path in level))
    return files


def _some(seen: Iterator[Found | str]) -> list[Found | str]:
    return list(islice(seen, _BATCH))


def _folders(paths: Collection[bytes]) -> set[bytes]:
    folders: set[bytes] = set()
    for path in paths:
        while (path := path.rpartition(b"/")[0]) and path not in folders:
            folders.add(path)
    return folders


def _scan(top: bytes, level: list[bytes]) -> Iterator[Found | str]:
    """List some folders without following any link; make what is hidden readable.

    Gives what is there, and what is left out with the reason.
    """
    for folder in level:
        place = os.path.join(top, folder)  # noqa: PTH118 - bytes: names need not be text
        try:
            if not os.access(place, os.R_OK | os.X_OK):
                os.chmod(place, 0o700)  # noqa: PTH101 - bytes
            with os.scandir(place) as entries:
                for entry in entries:
                    path = folder + b"/" + entry.name if folder else entry.name
                    if one := _look(path, entry):
                        yield one
        except OSError as error:
            yield f"{text(folder)[:200]}: {error.strerror}"


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
        if entry.name in _READ_BY_GIT and status.st_size > RULES_LIMIT_BYTES:
            os.unlink(entry.path)  # noqa: PTH108 - bytes; git would read it whole
            return f"{text(path)}: {status.st_size} bytes, over {RULES_LIMIT_BYTES}"
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
) -> list[Found]:
    """Leave out large new files; refuse a tree that would fill the disk."""
    total = 0
    taken: list[Found] = []
    for one in files:
        if one.path in known:
            if one.size > TRACKED_FILE_LIMIT_BYTES:
                raise WorkspaceError(f"{text(one.path)} has grown to {one.size} bytes")
        elif one.size > NEW_FILE_LIMIT_BYTES:
            listing.leave_out(
                f"{text(one.path)}: {one.size} bytes, over {NEW_FILE_LIMIT_BYTES}"
            )
            continue
        else:
            total += one.size
        taken.append(one)
    if total > NEW_FILES_LIMIT_BYTES:
        raise WorkspaceError(
            f"the agent left {total} bytes of new files; name them in .gitignore"
        )
    return taken


def _contents(top: bytes, files: list[Found], scratch: Path) -> bytes:
    """Name a file a line for each content: a link's is its target, written to ``scratch``."""
    contents: list[bytes] = []
    for number, one in enumerate(files):
        place = os.path.join(top, one.path)  # noqa: PTH118 - bytes
        if one.kind == "link":
            copy = scratch / str(number)
            copy.write_bytes(os.readlink(place))  # noqa: PTH115 - bytes
            place = os.fsencode(copy)
        contents.append(_quoted(place) + b"\n")
    return b"".join(contents)


def _quoted(path: bytes) -> bytes:
    """Quote for a list with one path a line, as C does."""
    return b'"' + _NOT_PLAIN.sub(lambda odd: b"\\%03o" % odd[0][0], path) + b'"'
