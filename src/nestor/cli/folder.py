"""Walk a folder for files worth remembering, and say what was left out, and why.

Left out always: ``.git``, dependencies and caches; names that begin with a dot, tracked or
not, since that is where keys (``.env``) and editors' files stand; links; what is no text
by its name or its first kilobytes; files over 32 MiB; what ``.gitignore`` ignores (asked of
git in a repository, read here elsewhere) and what ``.nestorignore``, same syntax, does.
"""

import os
import stat
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from nestor.backends.git.command import CONFIG, environment
from nestor.cli.ignore_rules import IgnoreRules
from nestor.cli.inert import inert

MAX_FILE_BYTES = 32 * 1024 * 1024
_GIT_S = 60
_HEAD = 8192


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


NEVER_READ = _set(
    """
    .git .hg .svn .venv venv node_modules __pycache__ .mypy_cache .pytest_cache
    .ruff_cache .tox .nox .idea .vscode bower_components
    """
)
BINARY_SUFFIXES = _set(
    """
    .7z .a .avi .avif .bin .bmp .bz2 .class .dat .db .deb .dll .dmg .doc .docx
    .dylib .egg .eot .exe .flac .gguf .gif .gz .heic .ico .iso .jar .jpeg .jpg .ko
    .lib .lz4 .m4a .mkv .mov .mp3 .mp4 .mpeg .npy .npz .o .obj .odp .ods .odt .ogg
    .onnx .otf .parquet .pkl .png .ppt .pptx .psd .pyc .pyd .pyo .rar .rpm
    .safetensors .so .sqlite .sqlite3 .svgz .tar .tgz .tif .tiff .ttf .wasm .wav
    .webm .webp .whl .woff .woff2 .xls .xlsx .xz .zip .zst
    """
)

NEVER = "folders never read (.git, node_modules, __pycache__, …)"
HIDDEN = "hidden"
IGNORED = "ignored by .gitignore"
IGNORED_BY_US = "ignored by .nestorignore"
LINK = "links"
LINK_OUT = "links that lead out of the folder"
BINARY = "binary"
EMPTY = "empty"
TOO_LARGE = "over 32 MiB"
NO_FILE = "pipes, sockets and devices"
BAD_NAME = "names with control characters"
CLOSED = "that cannot be opened"
_NAMED = {
    LINK_OUT: "a link that leads out of the folder",
    TOO_LARGE: TOO_LARGE,
    NO_FILE: "a pipe, a socket or a device",
    BAD_NAME: "a name with control characters",
    CLOSED: "cannot be opened",
}
"""What is named one by one, and how each is told."""
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_BAD = {"Cc", "Cs", "Zl", "Zp"}
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class FoundFile(NamedTuple):
    """A file to take. ``relative`` to the folder that was walked, with slashes."""

    relative: str
    path: Path
    size: int


@dataclass(slots=True)
class Summary:
    """What a walk took and left out, as far as it has come."""

    taken: int = 0
    taken_bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """How many by reason; a folder counts once."""
    named: list[tuple[str, str]] = field(default_factory=list)
    """Path (fit for a terminal) and reason of what a person should know of."""
    closed: list[str] = field(default_factory=list)
    """Of these, what could not be looked into; ``""``: the folder itself."""

    def skip(self, relative: str, reason: str, detail: str = "") -> None:
        """Count what was left out."""
        self.skipped[reason] += 1
        if reason in _NAMED:
            told = _NAMED[reason]
            why = f"{told}: {detail}" if detail else told
            self.named.append((inert(relative), why))
            if reason == CLOSED:
                self.closed.append(inert(relative))


class _Level(NamedTuple):
    """The ignore files above a place: (how many names deep, whose, its rules)."""

    rules: tuple[tuple[int, str, IgnoreRules], ...]
    listed: "_Listed | None"


def walk(folder: Path, summary: Summary) -> Iterator[FoundFile]:
    """Yield the files below ``folder``, by name; ``summary`` grows with them.

    Never follows a link, never recurses, and waits for no pipe. Raises ``OSError`` when
    ``folder`` itself cannot be read.
    """
    root = folder.resolve()
    with os.scandir(root):
        pass  # its own failure is the caller's
    first = _Level((), _listed(root, ""))
    waiting: list[tuple[str, _Level]] = [("", first)]
    while waiting:
        relative, level = waiting.pop()
        here = root / relative
        try:
            with os.scandir(here) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            summary.skip(relative, CLOSED, error.strerror or "")
            continue
        level = _inside(here, relative, level, {entry.name for entry in entries})
        below = []
        for entry in entries:
            path = f"{relative}/{entry.name}" if relative else entry.name
            if (reason := _left_out(entry, path, level, root)) is not None:
                summary.skip(path, *reason)
            elif entry.is_dir(follow_symlinks=False):
                below.append((path, level))
            elif (taken := _file(entry, path, summary)) is not None:
                summary.taken += 1
                summary.taken_bytes += taken.size
                yield taken
        waiting.extend(reversed(below))


def _inside(here: Path, relative: str, level: _Level, names: set[str]) -> _Level:
    """Add what the ignore files of a folder say."""
    if relative and ".git" in names:  # another repository, with rules of its own
        level = _Level(level.rules, _listed(here, relative + "/"))
    depth = len(relative.split("/")) if relative else 0
    read = [(".nestorignore", IGNORED_BY_US)]
    if level.listed is None:
        read.insert(0, (".gitignore", IGNORED))
    rules = level.rules
    for name, reason in read:
        if name in names and (found := IgnoreRules.read(here / name)):
            rules = (*rules, (depth, reason, found))
    return _Level(rules, level.listed)


def _left_out(
    entry: os.DirEntry[str], path: str, level: _Level, root: Path
) -> tuple[str, ...] | None:
    """Return why something is not even looked into."""
    is_folder = entry.is_dir(follow_symlinks=False)
    if is_folder and entry.name in NEVER_READ:
        return (NEVER,)
    if entry.name.startswith("."):
        return (HIDDEN,)
    if (ignored := _ignored(path, level, folder=is_folder)) is not None:
        return (ignored,)
    if entry.is_symlink():
        return _link(entry, root)
    if any(unicodedata.category(c) in _BAD or c in _DIRECTION for c in entry.name):
        return (BAD_NAME,)
    return None


def _ignored(path: str, level: _Level, *, folder: bool) -> str | None:
    if level.listed is not None and level.listed.ignores(path, folder=folder):
        return IGNORED
    names = path.split("/")
    for reason in (IGNORED, IGNORED_BY_US):
        for depth, whose, rules in reversed(level.rules):
            if whose != reason:
                continue
            said = rules.ignores(names[depth:], folder=folder)
            if said is not None:  # the deepest file that speaks of it decides
                if said:
                    return reason
                break
    return None


def _link(entry: os.DirEntry[str], root: Path) -> tuple[str, ...]:
    try:
        target = Path(entry.path).resolve()
    except (OSError, RuntimeError):  # links in a circle
        return (LINK,)
    return (LINK,) if target.is_relative_to(root) else (LINK_OUT,)


def _file(entry: os.DirEntry[str], path: str, summary: Summary) -> FoundFile | None:
    """Look at a file's size and beginning."""
    try:
        state = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(state.st_mode):
            summary.skip(path, NO_FILE)
        elif Path(entry.name).suffix.lower() in BINARY_SUFFIXES:
            summary.skip(path, BINARY)
        elif state.st_size > MAX_FILE_BYTES:
            summary.skip(path, TOO_LARGE, f"{state.st_size:,} bytes")
        elif state.st_size == 0:
            summary.skip(path, EMPTY)
        elif _binary(entry.path):
            summary.skip(path, BINARY)
        else:
            return FoundFile(path, Path(entry.path), state.st_size)
    except OSError as error:
        summary.skip(path, CLOSED, error.strerror or "")
    return None


def _binary(path: str) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, flags)
    try:
        head = os.read(handle, _HEAD)
    finally:
        os.close(handle)
    return b"\0" in head and not head.startswith((*_WIDE_MARKS, b"%PDF-"))


class _Listed:
    """What git says is in a repository and not ignored."""

    def __init__(self, prefix: str, paths: list[str]) -> None:
        self._prefix = prefix
        self._paths = {path.removesuffix("/") for path in paths}
        self._folders: set[str] = set()
        for path in self._paths:
            above = path.rpartition("/")[0]
            while above and above not in self._folders:
                self._folders.add(above)
                above = above.rpartition("/")[0]

    def ignores(self, path: str, *, folder: bool) -> bool:
        path = path.removeprefix(self._prefix)
        if folder:  # in the list itself: another repository
            return path not in self._folders and path not in self._paths
        return path not in self._paths


def _listed(folder: Path, prefix: str) -> _Listed | None:
    """Ask git; None where it is not installed, or this is no repository of its own.

    Also None for a folder that is itself ignored: somebody asked for it by name.
    """
    ignored = _git(folder, "check-ignore", "-q", ".")
    if ignored is None or ignored.returncode == 0:
        return None
    listed = _git(folder, "ls-files", "-co", "--exclude-standard", "-z")
    if listed is None or listed.returncode:
        return None
    names = listed.stdout.split(b"\0")
    return _Listed(prefix, [os.fsdecode(name) for name in names if name])


def _git(folder: Path, *args: str) -> subprocess.CompletedProcess[bytes] | None:
    """Run git without any program or configuration of the user or the repository."""
    env = environment()
    env.pop("GIT_LITERAL_PATHSPECS")  # check-ignore does not know it
    options = [
        part for key, value in CONFIG.items() for part in ("-c", f"{key}={value}")
    ]
    try:
        return subprocess.run(
            ["git", *options, *args],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_GIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
