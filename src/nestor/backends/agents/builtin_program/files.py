"""Reading, writing and editing files that really lie in the current folder."""

from __future__ import annotations

import ast
import difflib
import json
import os
import warnings
from pathlib import Path

from .faults import Refused, ToolError
from .limits import FILE_LIMIT, OUTPUT_LIMIT

try:
    import tomllib
except ImportError:  # a python3 before 3.11
    tomllib = None  # type: ignore[assignment]

_LINES = 200
_NEAREST = 3
_NEAREST_LINES = 20_000
_LINE_CHARS = 500


def inside(name: str) -> Path:
    """Return the real place of a path argument. Raises Refused for one that leads out."""
    if "\0" in name or name.startswith("-") or not name:
        raise Refused("path is not a usable name", what=f"path {name[:200]!r}")
    try:
        root = Path.cwd().resolve()
        place = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, links in a circle
        raise ToolError("path is not a usable name") from error
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise Refused(
            "path must be relative to the current folder, without ..; nothing was done",
            what=f"path {name[:200]!r}",
        )
    if place == root or root not in place.parents:
        raise Refused(
            "path is outside the current folder; nothing was done",
            what=f"path {name[:200]!r}",
        )
    return place


def _writable(name: str) -> Path:
    place = inside(name)
    if ".git" in place.relative_to(Path.cwd().resolve()).parts:
        raise Refused(
            "git's own files are not written to; nothing was done",
            what=f"write {name[:200]!r}",
        )
    return place


def write_file(name: str, content: str) -> str:
    """Create or replace one file."""
    place = _writable(name)
    data = content.encode("utf-8", "replace")
    if len(data) > FILE_LIMIT:
        raise ToolError(f"content is over {FILE_LIMIT} bytes")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _write(place, data)
    except (OSError, ValueError) as error:
        raise _cannot("write", error) from error
    return f"wrote {len(data)} bytes{_fault(place, data)}"


def edit_file(name: str, old: str, new: str) -> str:
    """Replace the one place where ``old`` stands, exactly."""
    place = _writable(name)
    try:
        data = _read(place)
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ToolError("the file is not UTF-8 text; nothing was changed") from error
    except (OSError, ValueError) as error:
        raise _cannot("read", error) from error
    if not old:
        raise ToolError("old is empty; use write_file to make a file")
    found = text.count(old)
    if found != 1:
        raise ToolError(_no_match(text, old, found))
    changed = text.replace(old, new).encode("utf-8", "replace")
    if len(changed) > FILE_LIMIT:
        raise ToolError(f"the file would be over {FILE_LIMIT} bytes")
    try:
        _write(place, changed)
    except (OSError, ValueError) as error:
        raise _cannot("write", error) from error
    line = text[: text.index(old)].count("\n") + 1
    return f"edited at line {line}{_fault(place, changed)}"


def read_file(name: str, start: int = 1, lines: int = _LINES) -> str:
    """Return numbered lines, from ``start`` on, as many as asked and fit."""
    place = inside(name)
    if start < 1 or lines < 1:
        raise ToolError("start and lines begin at 1")
    try:
        data = _read(place)
    except (OSError, ValueError) as error:
        raise _cannot("read", error) from error
    if b"\0" in data:
        raise ToolError(f"not a text file ({len(data)} bytes)")
    every = data.decode("utf-8", "replace").removesuffix("\n").split("\n")
    if not data:
        return "the file is empty"
    if start > len(every):
        raise ToolError(f"the file has {len(every)} lines")
    shown: list[str] = []
    size = 0
    for number, text in enumerate(every[start - 1 : start - 1 + lines], start):
        line = f"{number}\t{_short(text)}"
        size += len(line.encode("utf-8", "replace")) + 1
        if size > OUTPUT_LIMIT and shown:
            break
        shown.append(line)
    last = start + len(shown) - 1
    if last < len(every):
        shown.append(f"[lines {start} to {last} of {len(every)}]")
    return "\n".join(shown)


def _read(place: Path) -> bytes:
    # Not blocking: a pipe that nobody writes to would hold us for ever.
    with os.fdopen(os.open(place, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        data: bytes = file.read(FILE_LIMIT + 1) or b""
    if len(data) > FILE_LIMIT:
        raise ToolError(f"the file is over {FILE_LIMIT} bytes; use bash")
    return data


def _write(place: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(place, flags, 0o644), "wb") as file:
        file.write(data)


def _cannot(what: str, error: Exception) -> ToolError:
    reason = getattr(error, "strerror", None) or "not a usable path"
    return ToolError(f"cannot {what}: {reason}")


def _short(line: str) -> str:
    return line if len(line) <= _LINE_CHARS else f"{line[:_LINE_CHARS]}[...]"


def _no_match(text: str, old: str, found: int) -> str:
    """Say why an edit was not made, with what helps to make it."""
    if found:
        numbers: list[str] = []
        at = -1
        while len(numbers) < _NEAREST:
            at = text.find(old, at + 1)
            if at < 0:
                break
            numbers.append(str(text[:at].count("\n") + 1))
        return (
            f"old stands {found} times in the file (lines {', '.join(numbers)}"
            f"{', ...' if found > len(numbers) else ''}); give more of the text around it."
            " Nothing was changed"
        )
    return (
        "old does not stand in the file exactly so (spaces count). Nothing was changed."
        f" Nearest lines:\n{_nearest(text, old)}"
    )


def _nearest(text: str, old: str) -> str:
    """Return the lines that look most like the first one that is sought."""
    sought = next((line.strip() for line in old.splitlines() if line.strip()), "")
    scored = []
    matcher = difflib.SequenceMatcher(b=sought[:_LINE_CHARS], autojunk=False)
    for number, line in enumerate(text.splitlines()[:_NEAREST_LINES], 1):
        matcher.set_seq1(line.strip()[:_LINE_CHARS])
        # The quick bounds first: the exact ratio is quadratic.
        if matcher.real_quick_ratio() > 0.5 and matcher.quick_ratio() > 0.5:  # noqa: PLR2004
            scored.append((-matcher.ratio(), number, line))
    best = sorted(scored)[:_NEAREST]
    if not best:
        return "(none is like it)"
    rows = sorted((number, line) for _, number, line in best)
    return "\n".join(f"{number}\t{_short(line)}" for number, line in rows)


def _fault(place: Path, data: bytes) -> str:
    """Say where what was written cannot be parsed; "" when nothing is known against it."""
    try:
        text = data.decode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if place.suffix == ".py":
                ast.parse(text)
            elif place.suffix == ".json":
                json.loads(text)
            elif place.suffix == ".toml" and tomllib is not None:
                tomllib.loads(text)
    except SyntaxError as error:
        return f"; but it is no valid Python: line {error.lineno}: {error.msg}"
    except ValueError as error:
        kind = place.suffix[1:].upper()
        return f"; but it is no valid {kind}: {str(error)[:200]}"
    except (RecursionError, MemoryError):
        return ""
    return ""
