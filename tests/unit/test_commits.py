"""What is remembered of tasks' histories, how much, and for how long."""

import tracemalloc
from pathlib import Path
from types import MappingProxyType

import pytest

from nestor.backends.git import trees
from nestor.backends.git.command import Repository
from nestor.backends.git.commits import Commit, Commits
from nestor.backends.git.trees import Entry
from nestor.backends.git.workspaces import GitWorkspaces
from nestor.errors import WorkspaceError
from nestor.model.task import DiffStat, TaskSpec

EMPTY = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
"""git's id of an empty file."""


class Counted:
    """How often each kind of question was asked of git."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.read = self.changes = 0
        read, changes = trees.read, trees.changes

        async def counted_read(git: Repository, commit: str) -> dict[bytes, Entry]:
            self.read += 1
            return await read(git, commit)

        async def counted_changes(
            git: Repository, base: str, after: str
        ) -> tuple[DiffStat, list[bytes]]:
            self.changes += 1
            return await changes(git, base, after)

        patch.setattr(trees, "read", counted_read)
        patch.setattr(trees, "changes", counted_changes)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


async def history(path: Path, *, paths: int = 3, commits: int = 1) -> tuple[Repository, list[str]]:  # fmt: skip
    """Make a repository with so many commits, each of so many paths of its own."""
    git = await trees.init(path, "sha1")
    await git.run("hash-object", "-w", "--stdin")
    made = []
    for number in range(commits):
        entries = {
            f"{number}-{n}".encode(): Entry("100644", EMPTY) for n in range(paths)
        }
        tree = await trees.write(git, entries)
        made.append(
            await trees.commit(
                git, tree, None, "m", seconds=trees.FIRST_COMMIT_S + number
            )
        )
    return git, made


async def test_a_commit_is_read_once_and_what_was_made_is_known(
    tmp_path: Path, counted: Counted
) -> None:
    git, (first,) = await history(tmp_path / "a")
    commits = Commits()

    held = await commits.read(git, first)
    assert await commits.read(git, first) is held
    made = await commits.make(git, {b"x": Entry("100644", EMPTY)}, first, "m")
    entries = (await commits.read(git, made)).entries
    change = await commits.changes(git, first, made)
    assert await commits.changes(git, first, made) is change

    assert (counted.read, counted.changes) == (1, 1)
    assert dict(entries) == await trees.read(git, made)
    assert change[1] == [b"0-0", b"0-1", b"0-2", b"x"]


async def test_one_repository_says_nothing_of_another(tmp_path: Path) -> None:
    here, (commit,) = await history(tmp_path / "a")
    there = await trees.init(tmp_path / "b", "sha1")
    commits = Commits()
    await commits.read(here, commit)
    await commits.changes(here, commit, commit)

    with pytest.raises(WorkspaceError):
        await commits.read(there, commit)
    with pytest.raises(WorkspaceError):
        await commits.changes(there, commit, commit)


async def test_what_was_used_last_stays(tmp_path: Path, counted: Counted) -> None:
    git, (a, b, c) = await history(tmp_path / "a", paths=100, commits=3)
    commits = Commits(remembered_bytes=4 * 80_000 // 3)  # two commits of some 35 kB
    for commit in (a, b, a, c, a):
        await commits.read(git, commit)
    assert counted.read == 3
    await commits.read(git, b)
    assert counted.read == 4


async def test_what_is_larger_than_the_limit_drives_nothing_out(
    tmp_path: Path, counted: Counted
) -> None:
    git, (small,) = await history(tmp_path / "a", paths=10)
    entries = {f"large-{n}".encode(): Entry("100644", EMPTY) for n in range(1000)}
    commits = Commits(remembered_bytes=40_000)
    await commits.read(git, small)
    large = await commits.make(git, entries, small, "m")
    await commits.read(git, large)
    await commits.read(git, large)
    await commits.changes(git, small, large)
    await commits.changes(git, small, large)
    assert (counted.read, counted.changes) == (3, 2)
    await commits.read(git, small)
    assert counted.read == 3


@pytest.mark.parametrize("length", [10, 3000])
async def test_what_is_remembered_is_bounded_by_its_bytes(
    tmp_path: Path, length: int
) -> None:
    limit = 4_000_000
    git, (first,) = await history(tmp_path / "a")
    commits = Commits(remembered_bytes=limit)
    name = "/".join(["n" * 200] * (length // 200)) or "n"
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(12):
            paths = [f"{name}/{number}-{n}".encode() for n in range(3_000_000 // (length + 400))]  # fmt: skip
            entries = {path: Entry("100644", f"{n:040}") for n, path in enumerate(paths)}  # fmt: skip
            commits._commits.keep(
                (git.git_dir, str(number)), Commit("t", 0, MappingProxyType(entries))
            )
            change = (DiffStat(files=1, insertions=1, deletions=1), paths[::3])
            commits._changes.keep((git.git_dir, first, str(number)), change)
            del paths, entries, change
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < limit * 1.25


async def test_a_task_that_ended_is_forgotten(tmp_path: Path, counted: Counted) -> None:
    workspaces = GitWorkspaces(tmp_path / "home")
    for task in ("one", "two"):
        base = await workspaces.prepare(task, TaskSpec(task_id=task))
        (workspaces.tree(task) / "f").write_text("x")
        await workspaces.snapshot(task, message="m", parent=base.base)
    asked = counted.read

    await workspaces.discard("one")
    await workspaces.files("two", base.base)
    assert counted.read == asked
    await workspaces.files("one", base.base)
    assert counted.read == asked + 1
