"""Commits of tasks' histories, asked of git once: an id says all that a commit holds."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Generic, TypeVar

from nestor.backends.git import trees
from nestor.backends.git.command import Repository
from nestor.backends.git.trees import Entry
from nestor.model.task import DiffStat

REMEMBERED_BYTES = 64 * 1024 * 1024
"""Of all tasks together. What was used last stays."""
_PATH_BYTES = 350
"""What a path takes beside its own bytes, with its entry."""
K = TypeVar("K", bound=tuple[Path | None, *tuple[str, ...]])
V = TypeVar("V")
Change = tuple[DiffStat, list[bytes]]


@dataclass(frozen=True, slots=True)
class Commit:
    """What one commit holds."""

    tree: str
    """Its tree's id."""
    seconds: int
    """When it was committed, in seconds since 1970."""
    entries: Mapping[bytes, Entry]
    """Every path, submodules included."""


class Commits:
    """Reads and makes commits, and remembers them by repository.

    Never across repositories: that a commit is known in one says nothing of another.
    """

    def __init__(self, *, remembered_bytes: int = REMEMBERED_BYTES) -> None:
        for_changes = remembered_bytes // 4
        self._commits: _Kept[tuple[Path | None, str], Commit] = _Kept(
            remembered_bytes - for_changes, lambda commit: _size(commit.entries)
        )
        self._changes: _Kept[tuple[Path | None, str, str], Change] = _Kept(
            for_changes, lambda change: _size(change[1])
        )

    async def read(self, git: Repository, commit: str) -> Commit:
        """Return what a commit holds; raises WorkspaceError where git has no such commit."""
        key = (git.git_dir, trees.checked(commit))
        known = self._commits.get(key)
        if known is None:
            known = Commit(
                tree=await git.line("rev-parse", "--verify", f"{commit}^{{tree}}"),
                seconds=await trees.committed_at(git, commit),
                entries=MappingProxyType(await trees.read(git, commit)),
            )
            self._commits.keep(key, known)
        return known

    async def make(
        self,
        git: Repository,
        entries: Mapping[bytes, Entry],
        parent: str | None,
        message: str,
    ) -> str:
        """Store a tree and a commit of it. Same entries, parent and message: same id."""
        seconds = trees.FIRST_COMMIT_S
        if parent is not None:
            seconds = (await self.read(git, parent)).seconds + 1
        tree = await trees.write(git, entries)
        commit = await trees.commit(git, tree, parent, message, seconds=seconds)
        held = MappingProxyType(dict(entries))
        self._commits.keep((git.git_dir, commit), Commit(tree, seconds, held))
        return commit

    async def changes(self, git: Repository, base: str, after: str) -> Change:
        """See ``trees.changes``."""
        key = (git.git_dir, base, after)
        known = self._changes.get(key)
        if known is None:
            known = await trees.changes(git, base, after)
            self._changes.keep(key, known)
        return known

    def forget(self, git_dir: Path) -> None:
        """Remember nothing of this repository any more."""
        self._commits.drop(git_dir)
        self._changes.drop(git_dir)


def _size(paths: Collection[bytes]) -> int:
    return sum(map(len, paths)) + _PATH_BYTES * (len(paths) + 1)


class _Kept(Generic[K, V]):
    """The most recently used of what was kept, up to a limit of their sizes together."""

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        self._limit = limit
        self._size = size
        self._held = 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def keep(self, key: K, value: V) -> None:
        size = self._size(value)
        # One that is too large would only drive out all others.
        if key in self._values or size > self._limit:
            return
        self._values[key] = value
        self._held += size
        while self._held > self._limit:
            _, dropped = self._values.popitem(last=False)
            self._held -= self._size(dropped)

    def drop(self, git_dir: Path) -> None:
        for key in [key for key in self._values if key[0] == git_dir]:
            self._held -= self._size(self._values.pop(key))
