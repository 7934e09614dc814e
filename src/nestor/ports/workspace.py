"""A task's private clone and its history, kept by the harness. tests/contracts/test_workspace.py."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from nestor.model.task import DiffStat, TaskSpec


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A clone that is ready. ``base`` and ``tree`` are full git ids."""

    base: str
    tree: str
    repo: str | None
    """The user's repository; None for an empty scratch one."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the working tree held when the agent ended, as committed by the harness."""

    commit: str
    tree: str
    diff_stat: DiffStat
    """Against the base."""
    changed_paths: list[str]
    """Against the base, relative to the repository."""
    left_out: list[str] = []
    """Paths of the working tree that are not in the snapshot, each with the reason."""


class Workspaces(Protocol):
    """Private clones by task id. Nothing here trusts the clone's own ``.git``.

    All calls may raise ``WorkspaceError`` with a sentence for the user.
    """

    async def inspect(
        self, spec: TaskSpec, *, inside: Sequence[Path] | None = None
    ) -> None:
        """Check the repository at submit: exists, is git, clean (or ``include_dirty``), base known.

        ``inside``: folders that it and all that git reads for it must lie in; None:
        anywhere. Raises ``InvalidInput`` that names the field, ``Forbidden`` for what
        leads out of those folders.
        """
        ...

    async def prepare(
        self, task_id: str, spec: TaskSpec, *, inside: Sequence[Path] | None = None
    ) -> Prepared:
        """Make the clone at the base; made before: leave it, return the same.

        ``inside``: as for ``inspect``, looked at again, then and whenever the repository is
        opened for this task.
        """
        ...

    async def reset(self, task_id: str, commit: str) -> None:
        """Put the working tree to exactly this commit: nothing half-applied stays."""
        ...

    async def snapshot(self, task_id: str, *, message: str, parent: str) -> Snapshot:
        """Commit the working tree on branch ``nestor/<task>`` as a child of ``parent``.

        The same tree on the same parent gives the same commit, so a repeat is harmless.
        """
        ...

    async def restore(
        self, task_id: str, commit: str, *, protected: Callable[[str], bool], base: str
    ) -> tuple[Snapshot, list[str]]:
        """Put protected paths back as on ``base``, as a child of ``commit``.

        ``protected`` is asked about the paths of both trees; one that only ``commit`` has
        is removed. Returns what came of it, and the paths that were put back; without
        any, the commit is the given one.
        """
        ...

    async def checkout(self, task_id: str, commit: str, into: Path) -> None:
        """Write a fresh copy of ``commit`` to ``into``; what that held is removed."""
        ...

    async def files(self, task_id: str, commit: str) -> list[str]:
        """List the paths of a commit."""
        ...

    async def diff(self, task_id: str, commit: str, base: str) -> str:
        """Unified diff from ``base`` to ``commit``, at most 1 MiB, then cut and said so."""
        ...

    async def deliver(self, task_id: str, commit: str) -> str | None:
        """Put branch ``nestor/<task>`` into the user's repository; returns its name.

        None when there is no repository to put it into.
        """
        ...

    async def fork(self, task_id: str, commit: str, *, into: str) -> Prepared:
        """Make task ``into`` a workspace with the base and history of ``task_id``, at ``commit``.

        Made before: leave it, return the same.
        """
        ...

    async def remove(self, *folders: Path) -> None:
        """Remove folders that sandboxed code has filled, however deep or closed."""
        ...

    async def discard(self, task_id: str) -> None:
        """Remove an ended task's working files and ``runs``; its history (rollback points) stays."""
        ...

    def tree(self, task_id: str) -> Path:
        """Host path of the working tree."""
        ...

    def folder(self, task_id: str) -> Path:
        """Host path of the task's own folder (run dirs, checkouts); made when missing."""
        ...
