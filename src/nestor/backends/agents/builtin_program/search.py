"""Searching the files below a folder, bounded in time and size."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from .bash import run_program
from .faults import ToolError
from .files import inside
from .limits import FILE_LIMIT, OUTPUT_LIMIT

_SKIPPED = {".git", ".hg", "node_modules", "__pycache__", ".venv", "venv", ".tox"}
_FILES = 20_000
_BATCH = 400
_SHOWN = 100
_LINE_CHARS = 300
_BATCH_OUTPUT = 256 * 1024
_FOUND, _NOTHING = 0, 1


def search(pattern: str, path: str, timeout_s: float) -> str:
    """Return ``path:line:text`` of the lines that match an extended regular expression.

    ``grep`` matches in linear time, gets argv lists alone, and the files in their sorted
    order, so that equal trees give equal answers.
    """
    if not pattern or "\0" in pattern or "\n" in pattern:
        raise ToolError("pattern must be one line of text")
    top = Path.cwd() if path in {"", "."} else inside(path)
    if not top.exists():
        raise ToolError("there is no such path")
    root = Path.cwd().resolve()
    deadline = time.monotonic() + timeout_s
    shown: list[str] = []
    more = False
    for batch in _batches(top, root):
        left = deadline - time.monotonic()
        lines = _grep(pattern, batch, max(left, 0.0))
        shown.extend(lines[: _SHOWN + 1 - len(shown)])
        if len(shown) > _SHOWN:
            more = True
            break
    text = "\n".join(shown[:_SHOWN])[:OUTPUT_LIMIT]
    if not text:
        return "nothing found"
    return f"{text}\n[more was found; narrow the pattern or the path]" if more else text


def _grep(pattern: str, files: list[str], timeout_s: float) -> list[str]:
    argv = ["grep", "-nHIE", "-m", str(_SHOWN + 1), "-e", pattern, "--", *files]
    ran = run_program(argv, timeout_s, _BATCH_OUTPUT)
    if ran.code is None:
        raise ToolError("the search took too long; narrow the pattern or the path")
    if ran.code not in {_FOUND, _NOTHING}:
        said = ran.output.strip().splitlines()
        raise ToolError(f"grep: {said[-1][:200] if said else f'exit {ran.code}'}")
    return [line[:_LINE_CHARS] for line in ran.output.split("\n") if line]


def _batches(top: Path, root: Path) -> Iterator[list[str]]:
    batch: list[str] = []
    for seen, name in enumerate(_files(top, root)):
        if seen >= _FILES:
            break
        batch.append(name)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _files(top: Path, root: Path) -> Iterator[str]:
    if top.is_file():
        yield str(top.resolve().relative_to(root))
        return
    for folder, names, files in os.walk(top.resolve()):
        names[:] = sorted(set(names) - _SKIPPED)
        for name in sorted(files):
            place = Path(folder, name)
            if place.is_symlink() or not place.is_file():
                continue
            if place.stat().st_size <= FILE_LIMIT:
                yield str(place.relative_to(root))
