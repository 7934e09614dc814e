"""What a ``setup`` command reads of the tree, where that can be known: lock files alone.

Anything but the few command lines below may read any file, so its result is of one tree.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

_LIMIT_BYTES = 4 * 1024 * 1024
_PYTHON = re.compile(r"(?:/usr/(?:local/)?bin/|/setup/[\w./-]+/)?python3?(?:\.\d+)?")
_PIP = re.compile(r"(?:/usr/(?:local/)?bin/|/setup/[\w./-]+/)?pip3?")
_SETUP_PLACE = re.compile(r"/setup(?:/[\w.-]+)*")
_QUIET = re.compile(r"-q+|-U|--(?:quiet|upgrade|no-cache-dir|disable-pip-version-check"
                    r"|no-input|no-deps|require-hashes|only-binary=:all:)")  # fmt: skip
_HASH = re.compile(r"--hash=\w+:[0-9a-f]+")
_PACKAGE = re.compile(r"[A-Za-z0-9][^/:@\\]*")
_ARCHIVE = re.compile(r"\.(?:whl|zip|tar|gz|tgz|bz2|tbz|xz|txz|lzma|tlz)\b", re.IGNORECASE)  # fmt: skip
"""A file of that name would be installed, not a package."""
_NPM_FILES = ("package.json", "package-lock.json", ".npmrc", "npm-shrinkwrap.json")
_NPM_LOCAL = re.compile(rb'"(?:resolved|version)"\s*:\s*"file:|"link"\s*:\s*true')


def read_by(commands: Sequence[str], tree: Path) -> list[Path] | None:
    """Return the files of ``tree`` that these commands read; None: nobody can say."""
    found: list[Path] = []
    for command in commands:
        try:
            files = _read_by(command, tree)
        except (OSError, ValueError):  # no file's name, a quote that does not end
            files = None
        if files is None:
            return None
        found += files
    return sorted(set(found))


def _read_by(command: str, tree: Path) -> list[Path] | None:
    named = re.sub(r"\$NESTOR_SETUP\b|\$\{NESTOR_SETUP\}", "/setup", command)
    if re.search(r"[\n\r\\`$]|\.\.", named):
        return None
    words = shlex.shlex(named, posix=True, punctuation_chars=True)
    words.commenters = ""
    words.whitespace_split = True
    match list(words):
        case [python, "-m", "venv", *rest] if _PYTHON.fullmatch(python):
            return [] if all(_SETUP_PLACE.fullmatch(word) for word in rest) else None
        case [python, "-m", "pip", "install", *rest] if _PYTHON.fullmatch(python):
            return _pip(rest, tree)
        case [pip, "install", *rest] if _PIP.fullmatch(pip):
            return _pip(rest, tree)
        case ["npm", "ci", "--ignore-scripts"]:
            return _npm(tree)
        case _:
            return None


def _pip(words: list[str], tree: Path) -> list[Path] | None:
    found: list[Path] = []
    rest = iter(words)
    for word in rest:
        if word in {"-r", "--requirement", "-c", "--constraint"}:
            path = _inside(tree, next(rest, ""))
            if path is None or not _lists_packages(path):
                return None
            found.append(path)
        elif word in {"-t", "--target", "--prefix"}:
            if not _SETUP_PLACE.fullmatch(next(rest, "")):
                return None
        elif not _QUIET.fullmatch(word) and not _is_package(word):
            return None
    return found


def _lists_packages(path: Path) -> bool:
    """Tell whether a requirements file names packages alone: no path, no other file."""
    for line in path.read_text(errors="replace").splitlines():
        named = _HASH.sub("", line.partition("#")[0]).strip().removesuffix("\\").strip()
        if named and not _is_package(named):
            return False
    return True


def _is_package(text: str) -> bool:
    return bool(_PACKAGE.fullmatch(text)) and not _ARCHIVE.search(text)


def _npm(tree: Path) -> list[Path] | None:
    found = [path for name in _NPM_FILES if (path := _inside(tree, name))]
    if any(_NPM_LOCAL.search(path.read_bytes()) for path in found):
        return None
    # Without any there is nothing to install from; let npm say so.
    return found or None


def _inside(tree: Path, name: str) -> Path | None:
    """Return a file of the tree, where it really lies; None: there is no such file."""
    top = tree.resolve()
    path = (top / name.removeprefix("/workspace/")).resolve()
    if not name or not path.is_relative_to(top) or not path.is_file():
        return None
    return path if path.stat().st_size <= _LIMIT_BYTES else None
