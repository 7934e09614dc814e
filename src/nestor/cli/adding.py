"""Send files to AIDB: only what changed, and what is gone is forgotten."""

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nestor.cli.client import Stack
from nestor.cli.folder import EMPTY, MAX_FILE_BYTES, TOO_LARGE, Summary, walk
from nestor.cli.inert import inert
from nestor.cli.render import Screen
from nestor.errors import InvalidInput, NotFound, TooLarge

MAX_FILES = 100_000
_BATCH_BYTES = 512 * 1024
_BATCH_FILES = 100
_PAGE = 1_000
_TIMEOUT_S = 300.0
CODE = "codebase-context"
FOLDER = "folder"
"""Metadata: a digest of the folder that a file was added with, and of whose folder that is.
Two folders in one project, or of one path on two machines, neither replace each other's
files nor take them for deleted."""
_TWICE = "another file of this name is added with it; give it a project of its own"
_OTHERS = (
    "a file of this name was added with another folder; give this one a project of its"
    " own (--project), or let it take the other's place (--replace)"
)


@dataclass(frozen=True, slots=True)
class _File:
    project: str
    name: str
    """Within the project."""
    path: Path
    folder: str | None


@dataclass(slots=True)
class _Result:
    added: int = 0
    unchanged: int = 0
    removed: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, path: object, why: str) -> None:
        self.skipped.append((inert(path), why))


class Adding:
    """One ``nestor kb add``."""

    def __init__(
        self,
        stack: Stack,
        screen: Screen,
        *,
        client: str | None = None,
        project: str | None = None,
        collection: str = CODE,
        replace: bool = False,
        dry_run: bool = False,
    ) -> None:
        """``client``: whose folders they are (see ``client_id``); None: nobody's yet.

        ``replace``: files take the place of those that were added with other folders.
        """
        self._client = client or secrets.token_hex(16)
        self._replace = replace
        self._stack = stack
        self._screen = screen
        self._project = project
        self._collection = collection
        self._dry_run = dry_run
        self._result = _Result()
        self._known: dict[str, dict[str, dict[str, Any]]] = {}
        self._batch: list[tuple[_File, dict[str, Any]]] = []
        self._size = 0

    def add(self, paths: list[Path], *, quiet: bool) -> dict[str, Any]:
        """Add files and folders; returns counts and what was left out, with why.

        ``left_out`` counts by reason; ``skipped`` names files that should have been sent,
        ``refused`` those of them that were given by name, not found in a folder.
        Raises ``InvalidInput`` for a path that is not there or is a link.
        """
        roots = [_root(given) for given in paths]
        files: dict[tuple[str, str], _File] = {}
        gone: list[tuple[str, str, Summary]] = []
        for root in roots:
            summary = Summary()
            for one in self._found(root, summary):
                if files.setdefault((one.project, one.name), one).path != one.path:
                    self._result.skip(one.path, _TWICE)
                if len(files) > MAX_FILES:
                    message = f"more than {MAX_FILES} files; add them folder by folder"
                    raise InvalidInput.at("PATH", message)
            self._result.left_out.update(summary.skipped)
            self._result.skipped += summary.named
            if root.is_dir():
                gone.append((self._name(root), self._mark(root), summary))
        with self._progress(len(files), quiet) as advance:
            for one in files.values():
                self._one(one)
                advance()
            self._send()
        for project, mark, summary in gone:
            self._forget(project, mark, files, summary)
        done = self._result
        named = {inert(root) for root in roots if not root.is_dir()}
        return {
            "added": done.added,
            "unchanged": done.unchanged,
            "removed": done.removed,
            "left_out": dict(done.left_out),
            "skipped": done.skipped,
            "refused": [p for p, _ in done.skipped if p in named],
            "dry_run": self._dry_run,
        }

    def _name(self, folder: Path) -> str:
        return self._project or folder.name or "root"

    def _mark(self, folder: Path) -> str:
        whose = self._client.encode() + b"\0" + os.fsencode(folder)
        return hashlib.sha256(whose).hexdigest()[:16]

    def _found(self, root: Path, summary: Summary) -> Iterator[_File]:
        if not root.is_dir():
            size = root.stat().st_size
            if size == 0 or size > MAX_FILE_BYTES:
                why = TOO_LARGE if size else EMPTY
                summary.skipped[why] += 1
                summary.named.append((inert(root), why))
                return
            yield _File(self._name(root.parent), root.name, root, None)
            return
        mark, project = self._mark(root), self._name(root)
        for found in walk(root, summary):
            yield _File(project, found.relative, found.path, mark)

    def _one(self, file: _File) -> None:
        """Send a file, with others or alone, unless AIDB has just this."""
        try:
            raw = _read(file.path)
        except OSError as error:
            self._result.skip(file.path, error.strerror or str(error))
            return
        known = self._of(file.project).get(file.name)
        metadata = dict(known["metadata"]) if known else {}
        same = known is not None and (
            known["content_hash"] == hashlib.sha256(raw).hexdigest()
            and known["collection"] == self._collection
        )
        foreign = self._is_foreign(file, metadata)
        if foreign and not self._replace:
            if same:
                self._result.unchanged += 1
            else:
                self._result.skip(file.path, _OTHERS)
            return
        if foreign:
            del metadata[FOLDER]
        if file.folder is not None:
            metadata[FOLDER] = file.folder
        if same and known is not None and known["metadata"] == metadata:
            self._result.unchanged += 1
            return
        if self._dry_run:
            self._result.added += 1
            return
        text = _text(raw)
        if text is None or len(raw) > _BATCH_BYTES:
            self._send_alone(file, raw, metadata)
            return
        if self._size + len(raw) > _BATCH_BYTES or len(self._batch) >= _BATCH_FILES:
            self._send()
        item: dict[str, Any] = {
            "project": file.project,
            "path": file.name,
            "content": text,
            "collection": self._collection,
            "metadata": metadata,
        }
        self._batch.append((file, item))
        self._size += len(raw)

    def _is_foreign(self, file: _File, metadata: dict[str, str]) -> bool:
        """Tell whether what stands there was added with another folder than the file's."""
        mark = metadata.get(FOLDER)
        return mark is not None and mark != (
            file.folder or self._mark(file.path.parent)
        )

    def _send(self) -> None:
        batch, self._batch, self._size = self._batch, [], 0
        if not batch:
            return
        body = {"items": [item for _, item in batch]}
        try:
            reply = self._stack.call(
                "aidb", "POST", "/documents", body=body, timeout_s=_TIMEOUT_S
            )
        except InvalidInput:  # one of them: each is told by itself
            for file, item in batch:
                self._send_alone(file, item["content"].encode(), item["metadata"])
            return
        for item in reply["items"]:
            self._count(item)

    def _send_alone(self, file: _File, raw: bytes, metadata: dict[str, str]) -> None:
        query = {
            "project": file.project,
            "path": file.name,
            "collection": self._collection,
            "metadata": json.dumps(metadata),
        }
        try:
            reply = self._stack.call(
                "aidb",
                "PUT",
                "/documents/file",
                query=query,
                raw_body=raw,
                timeout_s=_TIMEOUT_S,
            )
        except (InvalidInput, TooLarge) as error:
            said = [one.message for one in error.errors] or [str(error)]
            self._result.skip(file.path, inert("; ".join(said)))
        else:
            self._count(reply)

    def _count(self, item: dict[str, Any]) -> None:
        if item.get("unchanged"):
            self._result.unchanged += 1
        else:
            self._result.added += 1

    def _of(self, project: str) -> dict[str, dict[str, Any]]:
        """Read what AIDB has of a project, by path."""
        if project not in self._known:
            found: dict[str, dict[str, Any]] = {}
            after = None
            while True:
                page = self._stack.call(
                    "aidb",
                    "GET",
                    "/documents",
                    query={"project": project, "after": after, "limit": _PAGE},
                )
                found |= {one["path"]: one for one in page["documents"]}
                if (after := page.get("next")) is None:
                    break
            self._known[project] = found
        return self._known[project]

    def _forget(
        self,
        project: str,
        mark: str,
        files: dict[tuple[str, str], _File],
        summary: Summary,
    ) -> None:
        """Forget what this folder had and has no more; what cannot be looked at stays."""
        for path, known in self._of(project).items():
            shown = inert(path)
            if (
                known["metadata"].get(FOLDER) != mark
                or (project, path) in files
                or any(shown == c or shown.startswith(f"{c}/") for c in summary.closed)
                or "" in summary.closed
            ):
                continue
            if not self._dry_run:
                target = f"/documents/{quote(known['id'], safe='')}"
                try:
                    self._stack.call("aidb", "DELETE", target)
                except NotFound:
                    continue
            self._result.removed += 1

    @contextmanager
    def _progress(self, total: int, quiet: bool) -> Iterator[Callable[[], None]]:
        """Show a bar, on a terminal only."""
        if quiet or not self._screen.terminal or not total:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415 - only for a terminal

        columns = (TextColumn("adding"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._screen.console, transient=True) as bar:
            task = bar.add_task("adding", total=total)
            yield lambda: bar.advance(task)


def _root(given: Path) -> Path:
    if given.expanduser().is_symlink():
        message = f"{given} is a link, which is not followed; give what it leads to"
        raise InvalidInput.at("PATH", message)
    root = given.expanduser().resolve()
    if not root.exists():
        raise InvalidInput.at("PATH", f"{given} does not exist")
    if not root.is_dir() and not root.is_file():
        raise InvalidInput.at("PATH", f"{given} is neither a file nor a folder")
    return root


def _read(path: Path) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags), "rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise OSError(0, TOO_LARGE)
    return raw


def _text(raw: bytes) -> str | None:
    """Return what can be sent as JSON and is the same bytes there; None: send the file."""
    if b"\0" in raw or raw.startswith(b"%PDF-"):
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
