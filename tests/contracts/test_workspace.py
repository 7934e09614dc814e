"""What every Workspaces promises, also to a user whose agent is hostile."""

import asyncio
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nestor.backends.git import command, listing
from nestor.backends.git.workspaces import GitWorkspaces, branch_name
from nestor.errors import InvalidInput, WorkspaceError
from nestor.model.task import DiffStat, TaskSpec, WorkspaceSpec
from nestor.ports.workspace import Prepared, Snapshot
from nestor.ralph.globs import Globs

TASK = "task-1"
ENV = {
    "PATH": os.defpath,
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{
        f"GIT_{who}_{what}": "dev@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
}


def git(repo: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", *args],
        cwd=repo,
        env=ENV,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def commit_all(repo: Path, message: str = "change") -> str:
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", message)
    return git(repo, "rev-parse", "HEAD")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    path = tmp_path / "user" / "repo"
    path.mkdir(parents=True)
    git(path, "init", "-q", "-b", "main")
    (path / "src").mkdir()
    (path / "src" / "app.py").write_text("one = 1\n")
    (path / "tests").mkdir()
    (path / "tests" / "test_app.py").write_text("def test(): assert True\n")
    (path / "run.sh").write_text("#!/bin/sh\n")
    (path / "run.sh").chmod(0o755)
    commit_all(path, "first")
    return path


@pytest.fixture
def workspaces(tmp_path: Path) -> GitWorkspaces:
    return GitWorkspaces(tmp_path / "home")


def spec(
    repo: Path, *, include_dirty: bool = False, task_id: str = "", **workspace: str
) -> TaskSpec:
    return TaskSpec(
        task_id=task_id,
        workspace=WorkspaceSpec(repo=str(repo), **workspace),
        include_dirty=include_dirty,
    )


async def taken(
    workspaces: GitWorkspaces, base: Prepared, message: str = "m"
) -> Snapshot:
    return await workspaces.snapshot(TASK, message=message, parent=base.base)


def error_fields(error: InvalidInput) -> list[str]:
    return [one.field for one in error.errors]


# --- inspect ---------------------------------------------------------------------------


async def test_a_clean_repository_is_accepted(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    await workspaces.inspect(spec(repo))
    await workspaces.inspect(spec(repo, path="src", base="main"))
    await workspaces.inspect(TaskSpec())


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/x.git",
        "ssh://host/x",
        "git@host:x.git",
        "ext::sh -c touch% /tmp/x",
        "file:///tmp",
        "relative/path",
        "--upload-pack=touch x",
        "/no/such/folder",
        "/dev/null",
        "/tmp/a\nb",
        "",
    ],
)
async def test_what_is_no_local_repository_is_refused_at_its_field(
    workspaces: GitWorkspaces, address: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        await workspaces.inspect(TaskSpec(workspace=WorkspaceSpec(repo=address)))
    assert error_fields(error.value) == ["workspace.repo"]


async def test_a_folder_that_is_not_git_is_refused(
    workspaces: GitWorkspaces, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="not a git repository"):
        await workspaces.inspect(spec(tmp_path))


async def test_a_folder_inside_a_repository_is_refused_with_the_remedy(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    with pytest.raises(InvalidInput, match=r"workspace\.path"):
        await workspaces.inspect(spec(repo / "src"))
    with pytest.raises(InvalidInput, match="git's own folder"):
        await workspaces.inspect(spec(repo / ".git"))


async def test_a_repository_without_a_commit_is_refused(
    workspaces: GitWorkspaces, tmp_path: Path
) -> None:
    git(tmp_path, "init", "-q", "empty")
    with pytest.raises(InvalidInput, match="no commit yet"):
        await workspaces.inspect(spec(tmp_path / "empty"))


@pytest.mark.parametrize(
    "change",
    [
        lambda repo: (repo / "src" / "app.py").write_text("two = 2\n"),
        lambda repo: (repo / "new.txt").write_text("x"),
        lambda repo: (repo / "src" / "app.py").unlink(),
        lambda repo: (repo / "run.sh").chmod(0o644),
        lambda repo: (
            (repo / "src" / "app.py").write_text("x"),
            git(repo, "add", "-A"),
        ),
    ],
    ids=["edited", "untracked", "deleted", "mode", "staged"],
)
async def test_a_dirty_repository_is_refused_or_included(
    workspaces: GitWorkspaces, repo: Path, change: object
) -> None:
    assert callable(change)
    change(repo)
    with pytest.raises(InvalidInput, match="has uncommitted changes") as error:
        await workspaces.inspect(spec(repo))
    assert error_fields(error.value) == ["workspace.repo"]
    await workspaces.inspect(spec(repo, include_dirty=True))


async def test_an_edit_of_the_same_size_in_the_second_of_the_commit_is_seen(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    for digit in range(2, 8):
        (repo / "src" / "app.py").write_text(f"one = {digit}\n")
        with pytest.raises(InvalidInput, match=r"src/app\.py"):
            await workspaces.inspect(spec(repo))
        commit_all(repo)


async def test_ignored_files_do_not_make_a_repository_dirty(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    (repo / ".gitignore").write_text("build/\n")
    commit_all(repo)
    (repo / "build").mkdir()
    (repo / "build" / "x").write_text("x")
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "exclude").write_text("local.txt\n")
    (repo / "local.txt").write_text("x")
    await workspaces.inspect(spec(repo))


async def test_line_ends_that_the_user_has_converted_do_not_make_it_dirty(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    git(repo, "config", "core.autocrlf", "true")
    (repo / "src" / "app.py").unlink()
    git(repo, "checkout", "--", "src/app.py")
    assert (repo / "src" / "app.py").read_bytes() == b"one = 1\r\n"
    os.utime(repo / "src" / "app.py", (1, 1))  # git has to read it again
    await workspaces.inspect(spec(repo))


@pytest.mark.parametrize("base", ["--output=/tmp/x", "nope", "HEAD:src", "-", "a\0b"])
async def test_an_unknown_base_is_refused_at_its_field(
    workspaces: GitWorkspaces, repo: Path, base: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        await workspaces.inspect(spec(repo, base=base))
    assert error_fields(error.value) == ["workspace.base"]


@pytest.mark.parametrize("path", ["..", "src/../..", "/etc", "nope", "src/app.py", ""])
async def test_a_folder_that_is_not_in_the_base_is_refused_at_its_field(
    workspaces: GitWorkspaces, repo: Path, path: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        await workspaces.inspect(spec(repo, path=path))
    assert error_fields(error.value) == ["workspace.path"]


async def test_a_bare_repository_a_worktree_and_a_shallow_clone_are_accepted(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    (repo / "second").write_text("2")
    commit_all(repo)
    git(tmp_path, "clone", "-q", "--bare", str(repo), "bare.git")
    git(repo, "worktree", "add", "-q", str(tmp_path / "tree"))
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{repo}", "shallow")
    for name in ("bare.git", "tree", "shallow"):
        await workspaces.inspect(spec(tmp_path / name))
        prepared = await workspaces.prepare(name, spec(tmp_path / name))
        assert prepared.base == git(repo, "rev-parse", "HEAD")
        (workspaces.tree(name) / "n").write_text(name)
        made = await workspaces.snapshot(name, message="m", parent=prepared.base)
        assert await workspaces.deliver(name, made.commit) == f"nestor/{name}"
        branch = git(tmp_path / name, "rev-parse", f"nestor/{name}")
        assert branch == made.commit
    git(repo, "fsck", "--strict")


async def test_a_repository_of_another_owner_is_accepted(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    for path in [repo, *repo.rglob("*")]:
        os.lchown(path, 12345, 12345)
    await workspaces.inspect(spec(repo))
    await workspaces.prepare(TASK, spec(repo))
    assert (workspaces.tree(TASK) / "src" / "app.py").exists()


def plant_programs(repo: Path, proof: Path) -> None:
    """Everything in a repository's configuration that git would start."""
    program = repo.parent / "evil.sh"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >> {proof}\ncat\n')
    program.chmod(0o755)
    hooks = repo / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in (
        *("reference-transaction", "post-checkout", "pre-commit", "post-index-change"),
        *("update", "post-commit", "pre-auto-gc", "fsmonitor-watchman"),
    ):
        (hooks / name).write_text(program.read_text())
        (hooks / name).chmod(0o755)
    for key in (
        *("core.fsmonitor", "core.sshCommand", "core.pager", "core.editor"),
        *("filter.evil.clean", "filter.evil.smudge", "filter.evil.process"),
        *("diff.evil.textconv", "diff.external", "core.alternateRefsCommand"),
        *("uploadpack.packObjectsHook", "remote.origin.uploadpack", "gpg.program"),
        *("core.askPass", "credential.helper"),
    ):
        git(repo, "config", key, str(program))
    git(repo, "config", "core.hooksPath", str(hooks))
    git(repo, "config", "filter.evil.required", "true")
    git(repo, "config", "log.showSignature", "true")


async def test_nothing_that_the_users_repository_configures_is_run(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    (repo / ".gitattributes").write_text("* filter=evil diff=evil\n")
    commit_all(repo)
    proof = tmp_path / "proof"
    plant_programs(repo, proof)
    os.utime(repo / "src" / "app.py", (1, 1))
    await workspaces.inspect(spec(repo, path="src"))
    (repo / "src" / "app.py").write_text("dirty = 1\n")
    with pytest.raises(InvalidInput):
        await workspaces.inspect(spec(repo))
    dirty = spec(repo, include_dirty=True)
    await workspaces.inspect(dirty)
    base = await workspaces.prepare(TASK, dirty)
    (workspaces.tree(TASK) / "src" / "app.py").write_text("three = 3\n")
    made = await taken(workspaces, base)
    await workspaces.diff(TASK, made.commit, base.base)
    assert await workspaces.deliver(TASK, made.commit)
    assert not proof.exists(), proof.read_text()


async def test_a_partial_clone_is_not_completed_by_the_program_it_names(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    plant_programs(repo, proof)
    git(repo, "config", "core.repositoryFormatVersion", "1")
    git(repo, "config", "extensions.partialClone", "origin")
    git(repo, "config", "remote.origin.promisor", "true")
    git(repo, "config", "remote.origin.url", str(repo))
    blob = git(repo, "rev-parse", "HEAD:src/app.py")
    (repo / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(WorkspaceError):
        await workspaces.prepare(TASK, spec(repo))
    missing = "0123456789" * 4
    (repo / ".git" / "refs" / "heads" / "gone").write_text(f"{missing}\n")
    with pytest.raises(InvalidInput):
        await workspaces.inspect(spec(repo, base="gone"))
    assert not proof.exists(), proof.read_text()


# --- prepare and reset -----------------------------------------------------------------


async def test_prepare_gives_a_clone_of_its_own_and_is_repeatable(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    first = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    assert first.base == git(repo, "rev-parse", "HEAD")
    assert first.tree == git(repo, "rev-parse", "HEAD^{tree}")
    assert first.repo == str(repo)
    assert git(tree, "status", "--porcelain") == ""
    assert git(tree, "rev-parse", "--abbrev-ref", "HEAD") == f"nestor/{TASK}"
    assert os.access(tree / "run.sh", os.X_OK)
    (tree / "mine").write_text("kept")
    (repo / "later").write_text("x")
    commit_all(repo)
    assert await workspaces.prepare(TASK, spec(repo)) == first
    assert (tree / "mine").read_text() == "kept"


async def test_the_clone_shares_no_file_with_the_users_repository_or_the_history(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    await workspaces.prepare(TASK, spec(repo))
    for path in workspaces.tree(TASK).rglob("*"):
        if path.is_file():
            assert path.stat().st_nlink == 1
    assert not (workspaces.tree(TASK) / ".git" / "objects/info/alternates").exists()
    shutil.rmtree(repo)
    await workspaces.reset(TASK, (await workspaces.prepare(TASK, spec(repo))).base)


async def test_a_task_without_a_repository_starts_from_one_empty_commit(
    workspaces: GitWorkspaces,
) -> None:
    first = await workspaces.prepare("a", TaskSpec())
    second = await workspaces.prepare("b", TaskSpec())
    assert first == second
    assert first.repo is None
    assert await workspaces.files("a", first.base) == []
    (workspaces.tree("a") / "new").write_text("x")
    made = await workspaces.snapshot("a", message="m", parent=first.base)
    assert made.changed_paths == ["new"]
    assert await workspaces.deliver("a", made.commit) is None


async def test_the_users_uncommitted_state_becomes_the_base(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    head = git(repo, "rev-parse", "HEAD")
    (repo / "src" / "app.py").write_text("two = 2\n")
    (repo / "run.sh").unlink()
    (repo / "new").mkdir()
    (repo / "new" / "file").write_text("x")
    (repo / "tests" / "test_app.py").unlink()
    (repo / "tests").rmdir()
    (repo / "tests").write_text("a file now")
    prepared = await workspaces.prepare(TASK, spec(repo, include_dirty=True))
    tree = workspaces.tree(TASK)
    assert git(tree, "rev-parse", f"{prepared.base}^") == head
    assert (tree / "src" / "app.py").read_text() == "two = 2\n"
    assert await workspaces.files(TASK, prepared.base) == [
        "new/file",
        "src/app.py",
        "tests",
    ]
    assert git(repo, "rev-parse", "HEAD") == head


@pytest.mark.parametrize("task_id", ["..", ".", "a/b", "", "x" * 65, "a\n"])
async def test_an_id_that_is_a_path_is_refused(
    workspaces: GitWorkspaces, task_id: str
) -> None:
    with pytest.raises(InvalidInput):
        workspaces.folder(task_id)


@pytest.mark.parametrize(
    "task_id", ["a..b", ".hidden", "ends.", "x.lock", "-dash", "A"]
)
async def test_an_id_that_git_refuses_as_a_branch_still_works(
    workspaces: GitWorkspaces, repo: Path, task_id: str
) -> None:
    base = await workspaces.prepare(task_id, spec(repo))
    (workspaces.tree(task_id) / "f").write_text("x")
    made = await workspaces.snapshot(task_id, message="m", parent=base.base)
    branch = await workspaces.deliver(task_id, made.commit)
    assert branch == branch_name(task_id)
    assert git(repo, "rev-parse", f"refs/heads/{branch}") == made.commit


async def test_reset_leaves_exactly_the_commit(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    (tree / "src" / "app.py").write_text("half")
    (tree / ".gitignore").write_text("cache\n")
    (tree / "cache").write_text("ignored")
    shutil.rmtree(tree / ".git")
    (tree / ".git").symlink_to("/etc")
    await workspaces.reset(TASK, base.base)
    assert sorted(p.name for p in tree.iterdir()) == [".git", "run.sh", "src", "tests"]
    assert (tree / "src" / "app.py").read_text() == "one = 1\n"
    assert git(tree, "status", "--porcelain") == ""


async def test_a_tree_that_is_deep_and_closed_can_be_reset(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    try:
        subprocess.run(
            ["mkdir", "-p", "d/" * 1500], cwd=workspaces.tree(TASK), check=True
        )
        (workspaces.tree(TASK) / "src").chmod(0)
        made = await taken(workspaces, base)
        assert made.changed_paths == []
        await workspaces.reset(TASK, base.base)
        assert not (workspaces.tree(TASK) / "d").exists()
    finally:  # pytest's own cleaning does not go that deep
        subprocess.run(["rm", "-rf", workspaces.folder(TASK)], check=True)


async def test_discard_keeps_the_history(workspaces: GitWorkspaces, repo: Path) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "f").write_text("x")
    made = await taken(workspaces, base)
    output = workspaces.folder(TASK) / "runs" / "agent-1" / "output"
    output.parent.mkdir(parents=True)
    output.write_text("much")
    await workspaces.discard(TASK)
    await workspaces.discard(TASK)
    assert not output.parent.parent.exists()
    assert not workspaces.tree(TASK).exists()
    assert "f" in await workspaces.files(TASK, made.commit)
    with pytest.raises(WorkspaceError, match="working tree is gone"):
        await taken(workspaces, base)
    assert await workspaces.prepare(TASK, spec(repo)) == base
    assert (workspaces.tree(TASK) / "src").is_dir()


async def test_what_a_killed_attempt_left_is_not_believed(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    folder = workspaces.folder(TASK)
    for name in ("history.git", "workspace", "tmp-1"):
        (folder / name).mkdir()
        (folder / name / "half").write_text("x")
    base = await workspaces.prepare(TASK, spec(repo))
    assert sorted(path.name for path in folder.iterdir()) == [
        *("history.git", "prepared.json", "workspace")
    ]
    assert not (workspaces.tree(TASK) / "half").exists()
    assert (await taken(workspaces, base)).tree == base.tree


KILLED = """
import asyncio, sys
from pathlib import Path
from nestor.backends.git.workspaces import GitWorkspaces
from nestor.model.task import TaskSpec, WorkspaceSpec
spec = TaskSpec(workspace=WorkspaceSpec(repo=sys.argv[2]), include_dirty=True)
print("ready", flush=True)
prepared = asyncio.run(GitWorkspaces(Path(sys.argv[1])).prepare("task-1", spec))
asyncio.run(GitWorkspaces(Path(sys.argv[1])).reset("task-1", prepared.base))
"""


async def test_a_kill_at_any_instant_of_prepare_or_reset_leaves_it_repeatable(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    (repo / "dirty").write_text("x")
    chance = random.Random(7)
    for _ in range(12):
        shutil.rmtree(workspaces.folder(TASK))
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "home"), str(repo)],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            await asyncio.sleep(chance.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
        base = await workspaces.prepare(TASK, spec(repo, include_dirty=True))
        await workspaces.reset(TASK, base.base)
        git(workspaces.tree(TASK), "fsck", "--strict")
        assert git(workspaces.tree(TASK), "status", "--porcelain") == ""
        made = await taken(workspaces, base)
        assert made.tree == base.tree
        assert "dirty" in await workspaces.files(TASK, made.commit)
    await workspaces.prepare(TASK, spec(repo))
    left = {path.name for path in workspaces.folder(TASK).iterdir()}
    assert left == {"history.git", "prepared.json", "workspace"}


# --- snapshot --------------------------------------------------------------------------


async def test_a_snapshot_says_what_changed_and_is_repeatable(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    (tree / "src" / "app.py").write_text("one = 1\ntwo = 2\n")
    (tree / "run.sh").unlink()
    (tree / "new").write_text("x\n")
    first = await taken(workspaces, base)
    await asyncio.sleep(1.1)  # no clock in it
    assert await taken(workspaces, base) == first
    assert first.changed_paths == ["new", "run.sh", "src/app.py"]
    assert first.diff_stat == DiffStat(files=3, insertions=2, deletions=1)
    assert first.left_out == []
    same = await workspaces.snapshot(TASK, message="n", parent=first.commit)
    assert same.tree == first.tree
    assert same.commit != first.commit


async def test_the_locks_of_a_git_that_was_killed_block_no_step(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    history = workspaces.folder(TASK) / "history.git"
    locks = (history / f"refs/heads/nestor/{TASK}.lock", history / "packed-refs.lock")
    for number in range(2):
        for lock in locks:
            lock.write_text("")
        (workspaces.tree(TASK) / "new").write_text(str(number))
        await taken(workspaces, base)
    for lock in locks:
        lock.write_text("")
    await workspaces.prepare(TASK, spec(repo))
    assert not any(lock.exists() for lock in locks)


async def test_a_lock_in_the_users_repository_is_named(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "new").write_text("n")
    snapshot = await taken(workspaces, base)
    lock = repo / f".git/refs/heads/nestor/{TASK}.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    with pytest.raises(WorkspaceError, match=re.escape(str(lock))):
        await workspaces.deliver(TASK, snapshot.commit)


async def test_a_git_that_is_not_awaited_any_more_removes_its_lock(
    repo: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "locked"
    hook = f"#!/bin/sh\n[ $1 = prepared ] && touch {marker} && exec sleep 60\n"
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "reference-transaction").write_text(hook)
    (tmp_path / "hooks" / "reference-transaction").chmod(0o755)
    config = {"core.hooksPath": str(tmp_path / "hooks")}
    at_work = command.Repository(git_dir=repo / ".git", config=config)
    head = git(repo, "rev-parse", "HEAD")

    running = asyncio.create_task(at_work.run("update-ref", "refs/heads/b", head))
    async with asyncio.timeout(30):
        while not marker.exists():
            await asyncio.sleep(0.01)
    assert (repo / ".git/refs/heads/b.lock").exists()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert running.cancelled()
    assert not (repo / ".git/refs/heads/b.lock").exists()


async def test_the_agents_own_git_decides_nothing(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    proof = tmp_path / "proof"
    plant_programs(tree, proof)
    git(tree, "config", "core.worktree", "/etc")
    (tree / ".git" / "info" / "exclude").write_text("*\n")
    (tree / ".git" / "index").write_bytes(b"garbage")
    (tree / "new.py").write_text("x\n")
    made = await taken(workspaces, base)
    assert made.changed_paths == ["new.py"]
    shutil.rmtree(tree / ".git")
    (tree / ".git").write_text(f"gitdir: {tmp_path}/elsewhere\n")
    assert (await taken(workspaces, base)) == made
    (tree / ".git").unlink()
    (tree / ".git").symlink_to(repo / ".git")
    assert (await taken(workspaces, base)) == made
    await workspaces.reset(TASK, made.commit)
    assert not proof.exists(), proof.read_text()


async def test_a_change_of_the_same_size_and_times_is_seen(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    file = workspaces.tree(TASK) / "src" / "app.py"
    before = file.stat()
    assert (await taken(workspaces, base)).changed_paths == []
    with file.open("r+") as stream:
        stream.write("one = 2\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await taken(workspaces, base)).changed_paths == ["src/app.py"]


async def test_attributes_in_the_tree_change_no_byte_and_hide_no_diff(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    (tree / ".gitattributes").write_text(
        "[attr]evil text=auto eol=crlf ident filter=evil diff=evil"
        " working-tree-encoding=UTF-16\n* evil\n*.py binary -diff\n"
        "* export-ignore\n"
    )
    (tree / "crlf.txt").write_bytes(b"a\r\nb\n$Id$\n")
    (tree / "src" / "app.py").write_text("one = 2\n")
    made = await taken(workspaces, base)
    out = tmp_path / "out"
    await workspaces.checkout(TASK, made.commit, out)
    assert (out / "crlf.txt").read_bytes() == b"a\r\nb\n$Id$\n"
    assert (out / "src" / "app.py").read_bytes() == b"one = 2\n"
    diff = await workspaces.diff(TASK, made.commit, base.base)
    assert "+one = 2" in diff
    await workspaces.reset(TASK, made.commit)
    assert (tree / "crlf.txt").read_bytes() == b"a\r\nb\n$Id$\n"


async def test_ignored_artefacts_stay_out_and_tracked_files_cannot_be_hidden(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    (repo / ".gitignore").write_text("build/\n*.log\n")
    (repo / "build").mkdir()
    (repo / "build" / "kept.txt").write_text("tracked although ignored")
    git(repo, "add", "-f", "build/kept.txt")
    commit_all(repo)
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    (tree / "build" / "artefact.o").write_text("x")
    (tree / "x.log").write_text("x")
    assert (await taken(workspaces, base)).tree == base.tree
    (tree / "module.py").write_text("x")
    first = await taken(workspaces, base)
    (tree / ".gitignore").write_text("*\n")
    (tree / "src" / "app.py").write_text("hidden = 1\n")
    (tree / "build" / "kept.txt").write_text("changed")
    (tree / "unseen").write_text("x")
    second = await workspaces.snapshot(TASK, message="m", parent=first.commit)
    assert second.changed_paths == [
        ".gitignore",
        "build/kept.txt",
        "module.py",
        "src/app.py",
    ]


async def test_nested_repositories_are_plain_files(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    (tree / "nested").mkdir()
    (tree / "nested" / "f").write_text("x")
    git(tree / "nested", "init", "-q")
    commit_all(tree / "nested")
    (tree / "src" / ".git").write_text("gitdir: /etc\n")
    (tree / "src" / "app.py").write_text("two = 2\n")
    made = await taken(workspaces, base)
    assert made.changed_paths == ["nested/f", "src/app.py"]
    assert [line.partition(":")[0] for line in made.left_out] == [
        "nested/.git",
        "src/.git",
    ]


async def test_a_submodule_of_the_base_stays_and_is_not_entered(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    inner = git(repo, "rev-parse", "HEAD")
    git(repo, "update-index", "--add", "--cacheinfo", f"160000,{inner},sub")
    git(repo, "commit", "-q", "-m", "submodule")
    (repo / "sub").mkdir()
    await workspaces.inspect(spec(repo))
    base = await workspaces.prepare(TASK, spec(repo))
    assert (await taken(workspaces, base)).tree == base.tree
    (workspaces.tree(TASK) / "sub" / "f").write_text("x")
    made = await taken(workspaces, base)
    assert made.tree == base.tree
    assert made.left_out == ["sub: files inside a submodule"]
    await restored(workspaces, made.commit, tmp_path / "out", ["**"], base.base)


async def test_links_are_kept_as_links_and_never_followed(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "outside"
    secret.mkdir()
    (secret / "app.py").write_text("secret")
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    shutil.rmtree(tree / "src")
    (tree / "src").symlink_to(secret)
    (tree / "loop").symlink_to("loop")
    (tree / ".gitattributes").symlink_to(secret / "app.py")
    made = await taken(workspaces, base)
    assert made.changed_paths == [".gitattributes", "loop", "src", "src/app.py"]
    assert await workspaces.files(TASK, made.commit) == [
        *(".gitattributes", "loop", "run.sh", "src", "tests/test_app.py")
    ]
    diff = await workspaces.diff(TASK, made.commit, base.base)
    assert "secret" not in diff.replace(str(secret), "")
    out = tmp_path / "out"
    await workspaces.checkout(TASK, made.commit, out)
    assert (out / "src").readlink() == secret


async def test_special_files_are_left_out_and_block_nobody(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    os.mkfifo(tree / "pipe")
    os.mkfifo(tree / "src" / ".gitignore")
    os.mkfifo(tree / ".gitattributes")
    (tree / "src" / "new").write_text("x")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tree)
        listener.bind("socket")
        os.chdir(here)
    async with asyncio.timeout(20):
        made = await taken(workspaces, base)
    assert made.changed_paths == ["src/new"]
    assert len(made.left_out) == 4


ODD = [
    b"-rf",
    b"--help",
    b"new\nline",
    b"carriage\r",
    b'tab\tquote"back\\slash',
    b":(exclude)x",
    b":!y",
    b"bad-\xff-utf8",
    "ünïcode".encode(),
    b" leading and trailing ",
    b"*",
    b"[a]",
    b"x" * 250,
]


async def test_odd_names_survive_the_round_trip(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    tree = os.fsencode(workspaces.tree(TASK))
    for name in ODD:
        Path(os.fsdecode(tree + b"/" + name)).write_bytes(name)
    made = await taken(workspaces, base)
    assert len(made.changed_paths) == len(ODD)
    "".join(made.changed_paths).encode()  # can be stored
    assert "bad-\\xff-utf8" in made.changed_paths
    out = os.fsencode(tmp_path / "out")
    await restored(workspaces, made.commit, tmp_path / "out", ["[a]"], base.base)
    for name in set(ODD) - {b"[a]"}:
        assert Path(os.fsdecode(out + b"/" + name)).read_bytes() == name
    assert not (tmp_path / "out" / "[a]").exists()
    assert "+++" in await workspaces.diff(TASK, made.commit, base.base)


@pytest.mark.parametrize("name", [".GIT", "git~1", ".git .", "GIT~1", ".git::$INDEX"])
async def test_names_that_git_takes_for_its_own_are_left_out(
    workspaces: GitWorkspaces, repo: Path, name: str
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "src" / name).write_text("x")
    made = await taken(workspaces, base)
    assert made.tree == base.tree
    assert len(made.left_out) == 1


async def test_a_large_new_file_is_left_out_and_a_tracked_one_is_not(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    for name in ("huge", "src/app.py"):
        with (tree / name).open("wb") as file:
            file.truncate(50 * 1024 * 1024 + 1)
    made = await taken(workspaces, base)
    assert made.changed_paths == ["src/app.py"]
    assert made.left_out == ["huge: 52428801 bytes, over 52428800"]
    with (tree / "src" / "app.py").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(WorkspaceError, match=r"src/app\.py has grown"):
        await taken(workspaces, base)


async def test_a_large_file_of_short_lines_is_compared_as_no_text(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "src" / "app.py").write_bytes(b"\n" * (9 << 20))
    snapshot = await taken(workspaces, base)
    assert snapshot.diff_stat == DiffStat(files=1, insertions=0, deletions=0)
    assert "Binary files" in await workspaces.diff(TASK, snapshot.commit, base.base)


async def test_git_that_needs_more_memory_than_it_may_have_is_a_fault_of_the_workspace(
    workspaces: GitWorkspaces, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "src" / "app.py").write_bytes(b"\n" * (7 << 20))
    monkeypatch.setattr(command, "MEMORY_LIMIT_BYTES", 150 << 20)
    with pytest.raises(WorkspaceError, match=r"git diff-tree: .*[Mm]emory"):
        await taken(workspaces, base)


@pytest.mark.parametrize("name", [".gitignore", "src/.gitattributes"])
async def test_rules_too_large_for_git_are_removed_and_said(
    workspaces: GitWorkspaces, repo: Path, name: str
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / name).write_bytes(b"a\n" * (1 << 19) + b"a\n")
    (workspaces.tree(TASK) / "a").write_text("")
    snapshot = await taken(workspaces, base)
    assert snapshot.changed_paths == ["a"]
    assert snapshot.left_out == [f"{name}: 1048578 bytes, over 1048576"]
    assert not (workspaces.tree(TASK) / name).exists()


@pytest.mark.parametrize("kind", ["files", "folders", "names"])
async def test_more_new_paths_than_the_worker_can_hold_are_refused(
    workspaces: GitWorkspaces, repo: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    limit = "NEW_NAMES_LIMIT_BYTES" if kind == "names" else "NEW_PATHS_LIMIT"
    monkeypatch.setattr(listing, limit, 300 if kind == "names" else 30)
    monkeypatch.setattr(listing, "_BATCH", 20)
    for number in range(50):  # what the base has is not counted
        (repo / f"old-{number}").write_text("")
    (repo / ".gitignore").write_text("*.o\n")
    commit_all(repo)
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    for number in range(70):  # nor what is ignored
        (tree / f"{number}.o").write_text("")
    for number in range(20):
        (tree / f"new-{number:03}").write_text("")
    await taken(workspaces, base)

    for number in range(20, 60):
        place = tree / f"new-{number:03}"
        place.mkdir() if kind == "folders" else place.write_text("")
    with pytest.raises(WorkspaceError, match=r"name them in \.gitignore"):
        await taken(workspaces, base)

    (tree / ".gitignore").write_text("*.o\nnew-*\n")
    assert (await taken(workspaces, base)).changed_paths == [".gitignore"]


async def test_the_executable_bit_is_part_of_the_tree(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "run.sh").chmod(0o644)
    (workspaces.tree(TASK) / "src" / "app.py").chmod(0o711)
    made = await taken(workspaces, base)
    assert made.changed_paths == ["run.sh", "src/app.py"]
    out = tmp_path / "out"
    await workspaces.checkout(TASK, made.commit, out)
    assert not os.access(out / "run.sh", os.X_OK) or not (
        (out / "run.sh").stat().st_mode & 0o111
    )
    assert (out / "src" / "app.py").stat().st_mode & 0o100


async def test_a_thousand_files_are_read_in_a_second(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    for number in range(1000):
        (repo / "src" / f"{number}.py").write_text(f"{number}\n")
    commit_all(repo)
    base = await workspaces.prepare(TASK, spec(repo))
    begun = time.process_time()
    assert (await taken(workspaces, base)).tree == base.tree
    assert time.process_time() - begun < 1.0


async def restored(
    workspaces: GitWorkspaces, commit: str, into: Path, globs: list[str], base: str
) -> list[str]:
    """Put back what the globs protect and write the result to a folder."""
    made, back = await workspaces.restore(
        TASK, commit, protected=Globs(globs).match, base=base
    )
    await workspaces.checkout(TASK, made.commit, into)
    assert (made.commit == commit) == (not back)
    return back


# --- checkout, diff, deliver -----------------------------------------------------------


async def test_protected_paths_come_from_the_base(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    (tree / "tests" / "test_app.py").unlink()
    (tree / "tests" / "conftest.py").write_text("evil")
    (tree / "run.sh").chmod(0o644)
    (tree / "src" / "app.py").write_text("two = 2\n")
    made = await taken(workspaces, base)
    out = tmp_path / "a" / "out"
    (out / "old").mkdir(parents=True)
    back = await restored(
        workspaces, made.commit, out, ["tests/**", "run.sh", "nothing"], base.base
    )
    assert back == ["run.sh", "tests/conftest.py", "tests/test_app.py"]
    assert (out / "tests" / "test_app.py").read_text() == "def test(): assert True\n"
    assert not (out / "tests" / "conftest.py").exists()
    assert (out / "run.sh").stat().st_mode & 0o100
    assert (out / "src" / "app.py").read_text() == "two = 2\n"
    assert not (out / ".git").exists()
    assert not (out / "old").exists()


@pytest.mark.parametrize("swap", ["link", "file", "folder"])
async def test_a_protected_path_behind_a_swapped_folder_is_restored(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path, swap: str
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    tree = workspaces.tree(TASK)
    shutil.rmtree(tree / "tests")
    if swap == "link":
        (tree / "fake").mkdir()
        (tree / "fake" / "test_app.py").write_text("pass")
        (tree / "tests").symlink_to("fake")
    elif swap == "file":
        (tree / "tests").write_text("x")
    else:
        (tree / "tests" / "test_app.py").mkdir(parents=True)
        (tree / "tests" / "test_app.py" / "__init__.py").write_text("x")
    made = await taken(workspaces, base)
    out = tmp_path / "out"
    back = await restored(
        workspaces, made.commit, out, ["tests/test_app.py"], base.base
    )
    swapped = "tests/test_app.py/__init__.py" if swap == "folder" else "tests"
    assert back == sorted([swapped, "tests/test_app.py"])
    assert (out / "tests" / "test_app.py").read_text() == "def test(): assert True\n"
    assert not (out / "tests").is_symlink()


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("tests/*.py", "tests/a.py", True),
        ("tests/*.py", "tests/deep/a.py", False),
        ("tests/**/*.py", "tests/a.py", True),
        ("tests/**/*.py", "tests/x/y/a.py", True),
        ("tests/**", "tests/x/y", True),
        ("tests/**", "tests", False),
        ("tests", "tests/x/y", True),
        ("tests/", "tests/x", True),
        ("tests/", "tests", False),
        ("**/conftest.py", "conftest.py", True),
        ("**/conftest.py", "a/b/conftest.py", True),
        ("conftest.py", "a/conftest.py", False),
        ("*.py", "a.py", True),
        ("*.py", "a/b.py", False),
        ("/a/./b", "a/b", True),
        ("pages/[id].test.js", "pages/[id].test.js", True),
        ("a[[]1]_test.py", "a[1]_test.py", True),
        ("a[[]1]_test.py", "a1_test.py", False),
        ("[!a].py", "b.py", True),
        ("?.py", "ab.py", False),
        ("A.py", "a.py", False),
        ("", "a", False),
        ("/", "a", False),
        ("a*a*a*a*a*a*a*a*a*a*b", "a" * 5000, False),
        ("**/**/**/**/**/**/**/x", "a/" * 500 + "y", False),
    ],
)
def test_globs_mean_what_is_written(pattern: str, path: str, expected: bool) -> None:
    assert Globs([pattern]).match(path) is expected


async def test_a_diff_is_bounded_and_says_so(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "big.txt").write_text("line\n" * 1_000_000)
    made = await taken(workspaces, base)
    diff = await workspaces.diff(TASK, made.commit, base.base)
    assert len(diff) < 1024 * 1024 + 100
    assert diff.endswith("[diff cut at 1 MiB]\n")


async def test_delivering_moves_that_branch_and_nothing_else(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    git(repo, "branch", "other")
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "src" / "app.py").write_text("two = 2\n")
    first = await taken(workspaces, base, "first")
    second = await taken(workspaces, base, "second")
    before = git(repo, "for-each-ref"), git(repo, "status", "--porcelain")
    for commit in (first.commit, second.commit, second.commit):
        assert await workspaces.deliver(TASK, commit) == f"nestor/{TASK}"
        assert git(repo, "rev-parse", f"nestor/{TASK}") == commit
    assert git(repo, "show", f"nestor/{TASK}:src/app.py") == "two = 2"
    assert git(repo, "log", "-1", "--format=%an <%ae>|%cn <%ce>|%s", second.commit) == (
        "Nestor <nestor@localhost>|Nestor <nestor@localhost>|second"
    )
    git(repo, "fsck", "--strict")
    git(repo, "branch", "-D", f"nestor/{TASK}")
    assert (git(repo, "for-each-ref"), git(repo, "status", "--porcelain")) == before


async def test_a_branch_that_is_checked_out_is_not_touched(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "f").write_text("x")
    made = await taken(workspaces, base)
    git(repo, "worktree", "add", "-q", "-b", f"nestor/{TASK}", str(tmp_path / "wt"))
    with pytest.raises(WorkspaceError, match="is checked out in"):
        await workspaces.deliver(TASK, made.commit)
    assert git(repo, "rev-parse", f"nestor/{TASK}") == base.base


async def test_a_branch_is_delivered_only_while_the_repository_lies_in_its_folders(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "private"
    shutil.copytree(repo, elsewhere)
    base = await workspaces.prepare(TASK, spec(repo), inside=[repo.parent])
    (workspaces.tree(TASK) / "new").write_text("n")
    snapshot = await taken(workspaces, base)
    (repo / ".git").rename(repo.parent / "old.git")
    (repo / ".git").write_text(f"gitdir: {elsewhere}/.git\n")

    with pytest.raises(WorkspaceError, match="NESTOR_WORKSPACE_ROOTS"):
        await workspaces.deliver(TASK, snapshot.commit)
    assert "nestor/" not in git(elsewhere, "branch", "--list")

    (repo / ".git").unlink()
    (repo.parent / "old.git").rename(repo / ".git")
    assert await workspaces.deliver(TASK, snapshot.commit) == f"nestor/{TASK}"


async def test_a_repository_that_is_gone_is_said_at_delivery(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "f").write_text("x")
    made = await taken(workspaces, base)
    shutil.rmtree(repo)
    with pytest.raises(WorkspaceError):
        await workspaces.deliver(TASK, made.commit)
    git(repo.parent, "init", "-q", "repo")
    (repo / "f").write_text("another project")
    commit_all(repo)
    with pytest.raises(WorkspaceError, match="no longer has the base"):
        await workspaces.deliver(TASK, made.commit)


@pytest.mark.parametrize("commit", ["HEAD", "--output=x", "", "0" * 40])
async def test_only_known_full_ids_are_taken_as_commits(
    workspaces: GitWorkspaces, repo: Path, tmp_path: Path, commit: str
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    for call in (
        workspaces.reset(TASK, commit),
        workspaces.files(TASK, commit),
        workspaces.diff(TASK, commit, base.base),
        workspaces.deliver(TASK, commit),
        workspaces.snapshot(TASK, message="m", parent=commit),
        workspaces.checkout(TASK, commit, tmp_path / "o"),
    ):
        with pytest.raises(WorkspaceError):
            await call
    assert (workspaces.tree(TASK) / "src" / "app.py").exists()


async def test_a_branch_of_somebody_else_is_never_moved(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "new").write_text("x")
    made = await taken(workspaces, base)
    branch = branch_name(TASK)
    git(repo, "checkout", "-q", "-b", branch)
    (repo / "precious").write_text("p")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "precious")
    precious = git(repo, "rev-parse", "HEAD").strip()
    git(repo, "checkout", "-q", "-")

    with pytest.raises(WorkspaceError, match="somebody else"):
        await workspaces.deliver(TASK, made.commit)
    with pytest.raises(InvalidInput) as caught:
        await workspaces.inspect(spec(repo, task_id=TASK))

    assert caught.value.errors[0].field == "task_id"
    assert git(repo, "rev-parse", branch).strip() == precious


async def test_a_branch_at_the_base_or_delivered_before_is_moved_on(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    branch = branch_name(TASK)
    git(repo, "branch", branch)
    await workspaces.inspect(spec(repo, task_id=TASK))
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "new").write_text("x")
    first = await taken(workspaces, base)
    assert await workspaces.deliver(TASK, first.commit) == branch
    (workspaces.tree(TASK) / "new").write_text("y")
    second = await workspaces.snapshot(TASK, message="2", parent=first.commit)

    assert await workspaces.deliver(TASK, second.commit) == branch
    assert git(repo, "rev-parse", branch).strip() == second.commit


# --- fork ------------------------------------------------------------------------------


async def test_a_fork_has_the_base_and_the_snapshots_and_shares_nothing(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    (workspaces.tree(TASK) / "new.txt").write_text("one")
    first = await taken(workspaces, base)
    (workspaces.tree(TASK) / "new.txt").write_text("two")
    second = await workspaces.snapshot(TASK, message="2", parent=first.commit)

    made = await workspaces.fork(TASK, first.commit, into="f")
    assert made == base
    assert (workspaces.tree("f") / "new.txt").read_text() == "one"
    assert await workspaces.diff("f", second.commit, base.base) != ""
    (workspaces.tree("f") / "new.txt").write_text("mine")
    # Made before: left as it is.
    assert await workspaces.fork(TASK, second.commit, into="f") == base
    assert await workspaces.prepare("f", spec(repo)) == base
    assert (workspaces.tree("f") / "new.txt").read_text() == "mine"
    third = await workspaces.snapshot("f", message="3", parent=first.commit)
    inodes = [
        {path.stat().st_ino for path in (folder / "history.git").rglob("*")}
        for folder in (workspaces.folder(TASK), workspaces.folder("f"))
    ]
    assert not inodes[0] & inodes[1]
    assert await workspaces.deliver("f", third.commit) == "nestor/f"
    assert git(repo, "show", "nestor/f:new.txt") == "mine"
    with pytest.raises(WorkspaceError):
        await workspaces.reset(TASK, third.commit)


async def test_a_fork_into_a_branch_of_somebody_else_is_refused(
    workspaces: GitWorkspaces, repo: Path
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    git(repo, "checkout", "-q", "-b", "nestor/f")
    (repo / "mine.txt").write_text("mine")
    commit_all(repo, "mine")
    with pytest.raises(WorkspaceError, match="nestor/f"):
        await workspaces.fork(TASK, base.base, into="f")
    with pytest.raises(WorkspaceError, match="not prepared"):
        await workspaces.fork("nobody", base.base, into="g")


class Killed(BaseException):
    """The process is gone: nothing that handles errors sees it."""


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_fork_that_died_at_any_rename_is_made_again(
    workspaces: GitWorkspaces,
    repo: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    base = await workspaces.prepare(TASK, spec(repo))
    rename, left = Path.rename, 0

    def mortal(self: Path, target: Path) -> Path:
        nonlocal left
        there = rename(self, target) if moment == "after" else None
        left -= 1
        if left == 0:
            raise Killed
        return there or rename(self, target)

    monkeypatch.setattr(Path, "rename", mortal)
    for number in (1, 2, 3):
        left = number
        name = f"f{number}"
        with pytest.raises(Killed):
            await workspaces.fork(TASK, base.base, into=name)
        assert await workspaces.fork(TASK, base.base, into=name) == base
        assert (workspaces.tree(name) / "run.sh").is_file()
        assert await workspaces.diff(name, base.base, base.base) == ""
        assert not list(workspaces.folder(name).glob("tmp-*"))
