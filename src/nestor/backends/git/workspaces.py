"""Workspaces in private clones, with the harness's history beside them.

``home/tasks/<task id>/`` holds ``workspace/`` (the agent's: its files and a ``.git`` that
nobody trusts), ``history.git/`` (the harness's; never seen inside the sandbox) and
``prepared.json``. Everything is made under a ``tmp-…`` name and renamed into place, so
that a kill at any instant leaves either nothing or the whole.
"""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nestor.backends.git import borders, folders, listing, source, trees
from nestor.backends.git.command import Repository
from nestor.backends.git.commits import Commits
from nestor.backends.git.trees import Entry
from nestor.errors import Forbidden, InvalidInput, WorkspaceError
from nestor.model.ids import TASK_ID
from nestor.model.task import TaskSpec
from nestor.ports.workspace import Prepared, Snapshot

DIFF_LIMIT_BYTES = 1024 * 1024
_CUT = "\n[diff cut at 1 MiB]\n"
_BASE = "refs/nestor/base"
_AGENT_CONFIG = "[user]\n\tname = Nestor\n\temail = nestor@localhost\n"


class GitWorkspaces:
    """Implements ``ports.workspace.Workspaces``. One caller at a time per task."""

    def __init__(self, home: Path) -> None:
        self._tasks = home.absolute() / "tasks"
        self._commits = Commits()

    def tree(self, task_id: str) -> Path:
        """See Workspaces.tree."""
        return self._path(task_id) / "workspace"

    def folder(self, task_id: str) -> Path:
        """See Workspaces.folder. Mode 0700."""
        path = self._path(task_id)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    async def inspect(
        self, spec: TaskSpec, *, inside: Sequence[Path] | None = None
    ) -> None:
        """See Workspaces.inspect. Runs nothing that the repository configures."""
        place = spec.workspace
        if place is None or place.repo is None:
            _refuse_without_repository(spec)
            return
        if inside is not None:
            borders.check_folder(place.repo, inside)
        try:
            found = await source.open_source(place.repo)
            if inside is not None:
                await asyncio.to_thread(borders.check, found, inside)
            if found.path.is_relative_to(self._tasks):
                raise InvalidInput.at(
                    "workspace.repo", "is inside Nestor's own data folder"
                )
            with tempfile.TemporaryDirectory(prefix="nestor-") as scratch:
                base = await source.check_request(spec, found, Path(scratch))
            if spec.task_id:
                await source.refuse_taken(found, branch_name(spec.task_id), base)
        except WorkspaceError as error:
            raise InvalidInput.at("workspace.repo", str(error)) from error

    async def prepare(
        self, task_id: str, spec: TaskSpec, *, inside: Sequence[Path] | None = None
    ) -> Prepared:
        """See Workspaces.prepare."""
        folder = self.folder(task_id)
        await asyncio.to_thread(folders.sweep, folder)
        await asyncio.to_thread(folders.unlock, folder)
        record = folders.read_record(folder)
        if record is None:
            record = await self._make_history(folder, task_id, spec, inside)
        if not self.tree(task_id).is_dir():
            await self.reset(task_id, record.base)
        return Prepared(base=record.base, tree=record.tree, repo=record.repo)

    async def reset(self, task_id: str, commit: str) -> None:
        """See Workspaces.reset. The agent's ``.git`` is made anew as well."""
        folder, record = self._prepared(task_id)
        await asyncio.to_thread(folders.sweep, folder)
        scratch = Path(tempfile.mkdtemp(prefix=folders.TEMPORARY, dir=folder))
        fresh = scratch / "workspace"
        clone = await trees.init(fresh, record.object_format, bare=False)
        history = self._history(task_id, work_tree=fresh, index=fresh / ".git/index")
        git_dir = fresh / ".git"
        await trees.unpack(history, commit)
        await asyncio.to_thread(folders.copy_objects, folder / "history.git", git_dir)
        with (git_dir / "config").open("a") as config:
            config.write(_AGENT_CONFIG)
        branch = f"refs/heads/{branch_name(task_id)}"
        await clone.run("update-ref", branch, commit)
        await clone.run("symbolic-ref", "HEAD", branch)
        with suppress(FileNotFoundError):
            (folder / "workspace").rename(scratch / "old")
        fresh.rename(folder / "workspace")
        await asyncio.to_thread(folders.remove, scratch)

    async def snapshot(self, task_id: str, *, message: str, parent: str) -> Snapshot:
        """See Workspaces.snapshot.

        Every file is read, never a stat cache. Ignored paths stay out unless the base or
        the parent has them. New files over 50 MiB, sockets and the like, and a nested
        repository's ``.git`` (not its files) are left out and named in ``left_out``; an
        ignore file over 1 MiB is removed. Raises WorkspaceError for over 200,000 new paths.
        """
        folder, record = self._prepared(task_id)
        # A step that is done again after a crash begins here.
        await asyncio.to_thread(folders.unlock, folder)
        git = self._history(task_id)
        base = await self._commits.read(git, record.base)
        before = await self._commits.read(git, parent)
        known = {**base.entries, **before.entries}
        at_tree = self._history(task_id, work_tree=self.tree(task_id))
        found = await listing.take(at_tree, known, listing.Room.beside(base.entries))
        commit = await self._commits.make(git, found.tree, parent, message)
        await git.run("update-ref", f"refs/heads/{branch_name(task_id)}", commit)
        stat_, paths = await self._commits.changes(git, record.base, commit)
        return Snapshot(
            commit=commit,
            tree=(await self._commits.read(git, commit)).tree,
            diff_stat=stat_,
            changed_paths=[trees.text(path) for path in paths],
            left_out=sorted(found.left_out)[:100],
        )

    async def restore(
        self, task_id: str, commit: str, *, protected: Callable[[str], bool], base: str
    ) -> tuple[Snapshot, list[str]]:
        """See Workspaces.restore."""
        self._prepared(task_id)
        git = self._history(task_id)
        tree = dict((await self._commits.read(git, commit)).entries)
        on_base = (await self._commits.read(git, base)).entries
        restored = _restore(tree, on_base, protected)
        named = sorted(trees.text(path) for path in restored)
        after = commit
        if restored:
            message = "Protected files as on the base\n\n" + "\n".join(named[:50])
            after = await self._commits.make(git, tree, commit, message)
        stat_, paths = await self._commits.changes(git, base, after)
        snapshot = Snapshot(
            commit=after,
            tree=(await self._commits.read(git, after)).tree,
            diff_stat=stat_,
            changed_paths=[trees.text(path) for path in paths],
        )
        return snapshot, named

    async def checkout(self, task_id: str, commit: str, into: Path) -> None:
        """See Workspaces.checkout."""
        self._prepared(task_id)
        git = self._history(task_id)
        await asyncio.to_thread(folders.empty, into)
        with tempfile.TemporaryDirectory() as scratch:
            index = Path(scratch) / "index"
            await trees.unpack(replace(git, work_tree=into, index=index), commit)

    async def files(self, task_id: str, commit: str) -> list[str]:
        r"""See Workspaces.files. Bytes that are not UTF-8 appear as ``\xNN``."""
        held = await self._commits.read(self._history(task_id), commit)
        return sorted(trees.text(path) for path in held.entries)

    async def diff(self, task_id: str, commit: str, base: str) -> str:
        """See Workspaces.diff. No attribute of the tree can hide a text file's change."""
        out = await self._history(task_id).run(
            *("diff-tree", "-r", "-p", "--no-renames", "--no-ext-diff"),
            *("--no-textconv", "--no-color", trees.checked(base)),
            trees.checked(commit),
            limit=DIFF_LIMIT_BYTES,
        )
        cut = _CUT if len(out) >= DIFF_LIMIT_BYTES else ""
        return out.decode(errors="replace") + cut

    async def deliver(self, task_id: str, commit: str) -> str | None:
        """See Workspaces.deliver. The branch is moved whatever it was on before.

        Raises WorkspaceError, and changes nothing, where it is checked out, or the
        repository or its base commit is gone.
        """
        _, record = self._prepared(task_id)
        if record.repo is None or record.head is None:
            return None
        branch = branch_name(task_id)
        await source.deliver(
            await _opened(record.repo, record.inside),
            self._history(task_id),
            branch,
            head=record.head,
            commit=trees.checked(commit),
        )
        return branch

    async def fork(self, task_id: str, commit: str, *, into: str) -> Prepared:
        """See Workspaces.fork. ``into`` gets a history of its own; nothing is shared.

        Raises WorkspaceError where its branch holds commits of somebody else.
        """
        source_folder, known = self._prepared(task_id)
        folder = self.folder(into)
        await asyncio.to_thread(folders.sweep, folder)
        record = folders.read_record(folder)
        if record is None:
            await self._refuse_taken(known, into)
            record = await self._copy_history(
                source_folder, folder, known, into, trees.checked(commit)
            )
        if not self.tree(into).is_dir():
            await self.reset(into, commit)
        return Prepared(base=record.base, tree=record.tree, repo=record.repo)

    async def remove(self, *places: Path) -> None:
        """See Workspaces.remove."""
        await asyncio.to_thread(folders.remove, *places)

    async def discard(self, task_id: str) -> None:
        """See Workspaces.discard. ``prepare`` or ``reset`` brings the tree back."""
        folder = self._path(task_id)
        self._commits.forget(folder / "history.git")
        if folder.is_dir():
            # What its commands printed is in the records, as much as anybody asks for.
            gone = (folder / "workspace", folder / "runs")
            await asyncio.to_thread(folders.remove, *gone)
            await asyncio.to_thread(folders.sweep, folder)

    def _path(self, task_id: str) -> Path:
        if not TASK_ID.fullmatch(task_id) or task_id in {".", ".."}:
            raise InvalidInput.at("task_id", "is not a task id")
        return self._tasks / task_id

    def _history(
        self, task_id: str, work_tree: Path | None = None, index: Path | None = None
    ) -> Repository:
        git_dir = self._path(task_id) / "history.git"
        return Repository(git_dir=git_dir, work_tree=work_tree, index=index)

    def _prepared(self, task_id: str) -> tuple[Path, folders.Record]:
        folder = self._path(task_id)
        record = folders.read_record(folder)
        if record is None:
            raise WorkspaceError(f"the workspace of task {task_id} is not prepared")
        return folder, record

    async def _make_history(
        self,
        folder: Path,
        task_id: str,
        spec: TaskSpec,
        inside: Sequence[Path] | None,
    ) -> folders.Record:
        """Build ``history.git`` beside its place; the record of it is the last act."""
        scratch = Path(tempfile.mkdtemp(prefix=folders.TEMPORARY, dir=folder))
        built = scratch / "history.git"
        place = spec.workspace
        bound = None if inside is None else [str(root) for root in inside]
        if place is None or place.repo is None:
            head, path, object_format = None, None, "sha1"
            history = await trees.init(built, object_format)
            empty = await trees.write(history, {})
            base = await trees.commit(
                history, empty, None, "Empty workspace", seconds=trees.FIRST_COMMIT_S
            )
            await history.run("update-ref", _BASE, base)
        else:
            found = await _opened(place.repo, bound)
            path, object_format = found.path, found.object_format
            head = await found.resolve(place.base)
            history = await trees.init(built, object_format)
            base = await source.copy_history(
                found, head, history, scratch, dirty=spec.include_dirty
            )
            # Whoever can write there may have led git away meanwhile.
            await _keep_inside(found, bound)
        await history.run("update-ref", f"refs/heads/{branch_name(task_id)}", base)
        record = folders.Record(
            base=base,
            tree=await history.line("rev-parse", "--verify", f"{base}^{{tree}}"),
            repo=str(path) if path else None,
            head=head,
            object_format=object_format,
            inside=bound,
        )
        await asyncio.to_thread(folders.put_in_place, folder, scratch, record)
        return record

    async def _copy_history(
        self,
        source_folder: Path,
        folder: Path,
        known: folders.Record,
        into: str,
        commit: str,
    ) -> folders.Record:
        """Build ``history.git`` of a fork as ``_make_history`` builds a new one."""
        scratch = Path(tempfile.mkdtemp(prefix=folders.TEMPORARY, dir=folder))
        built = scratch / "history.git"
        history = await trees.init(built, known.object_format)
        await asyncio.to_thread(
            folders.copy_objects, source_folder / "history.git", built
        )
        await history.run("update-ref", _BASE, known.base)
        await history.run("update-ref", f"refs/heads/{branch_name(into)}", commit)
        await asyncio.to_thread(folders.put_in_place, folder, scratch, known)
        return known

    async def _refuse_taken(self, known: folders.Record, task_id: str) -> None:
        if known.repo is None or known.head is None:
            return
        found = await _opened(known.repo, known.inside)
        try:
            await source.refuse_taken(found, branch_name(task_id), known.head)
        except InvalidInput as error:
            raise WorkspaceError(str(error)) from error


async def _opened(repo: str, inside: Sequence[str] | None) -> source.Source:
    """Open a user's repository that was let in before; raises WorkspaceError."""
    try:
        found = await source.open_source(repo)
    except InvalidInput as error:
        raise WorkspaceError(str(error)) from error
    await _keep_inside(found, inside)
    return found


async def _keep_inside(found: source.Source, inside: Sequence[str] | None) -> None:
    if inside is None:
        return
    try:
        await asyncio.to_thread(borders.check, found, [Path(root) for root in inside])
    except Forbidden as error:
        raise WorkspaceError(str(error)) from error


def branch_name(task_id: str) -> str:
    """Return ``nestor/<task id>``; ids that git does not take in a ref get a digest."""
    if re.search(r"^\.|\.\.|\.$|\.lock$", task_id):
        digest = hashlib.sha256(task_id.encode()).hexdigest()[:8]
        return f"nestor/{task_id.replace('.', '_')}-{digest}"
    return f"nestor/{task_id}"


def _refuse_without_repository(spec: TaskSpec) -> None:
    if spec.include_dirty:
        raise InvalidInput.at("include_dirty", "needs workspace.repo")
    for name in ("path", "base"):
        if spec.workspace and getattr(spec.workspace, name) is not None:
            raise InvalidInput.at(f"workspace.{name}", "needs workspace.repo")


def _restore(
    tree: dict[bytes, Entry],
    base: Mapping[bytes, Entry],
    restore: Callable[[str], bool],
) -> set[bytes]:
    """Put protected paths of ``tree`` back as on ``base``; return which were changed."""
    touched = {
        path
        for path in tree.keys() | base.keys()
        if tree.get(path) != base.get(path) and restore(trees.text(path))
    }
    for path in touched:
        tree.pop(path, None)
    back = {path: base[path] for path in touched if path in base}
    # A folder turned into a file or a link (or the reverse) stands in the way.
    above = {parent for path in back for parent in _parents(path)}
    blocking = {
        path
        for path in tree
        if path in above or any(parent in back for parent in _parents(path))
    }
    for path in blocking:
        del tree[path]
    tree |= back
    return touched | blocking


def _parents(path: bytes) -> list[bytes]:
    names = path.split(b"/")
    return [b"/".join(names[:count]) for count in range(1, len(names))]
