"""``nestor diff`` and ``nestor merge`` on a real repository; the stack answers as told."""

from pathlib import Path
from typing import Any

import pytest
from tests.faces.fake_stack import Cli, FakeStack, Reply, refusal, task
from tests.system.workbench import git, repository

DIFF = """diff --git a/calc.py b/calc.py
--- a/calc.py
+++ b/calc.py
@@ -1 +1,2 @@
-x = 1
+x = 2
+--- not a head
diff --git a/pic.png b/pic.png
Binary files a/pic.png and b/pic.png differ
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A branch ``nestor/t1`` with two commits, as a task leaves it."""
    made = repository(tmp_path / "repo", {"calc.py": "x = 1\n"})
    git(made, "switch", "-q", "-c", "nestor/t1")
    for n in (2, 3):
        (made / "calc.py").write_text(f"x = {n}\n")
        git(made, "commit", "-qam", f"t1: iteration {n - 1}")
    git(made, "switch", "-q", "main")
    return made


def tell(stack: FakeStack, repo: Path, status: str = "verified", **more: Any) -> None:
    told = task(status, branch="nestor/t1", workspace=str(repo), ended_at="x")
    told |= {"success": status == "verified", "checks": [{"name": "tests"}], **more}
    commits = git(repo, "rev-list", "--reverse", "main..nestor/t1").split()
    rows = [{"n": n, "commit": commit} for n, commit in enumerate(commits, 1)]
    stack.says("GET", "/tasks/t1", Reply(200, told))
    stack.says("GET", "/tasks/t1/iterations", Reply(200, {"iterations": rows}))


@pytest.fixture
def user(cli: Cli, repo: Path) -> Cli:
    who = {"GIT_AUTHOR_NAME": "U", "GIT_AUTHOR_EMAIL": "u@localhost"}
    who |= {k.replace("AUTHOR", "COMMITTER"): v for k, v in who.items()}
    cli.extra |= who
    cli.cwd = repo
    return cli


def test_a_verified_task_is_merged_with_what_verified_it(
    stack: FakeStack, user: Cli, repo: Path
) -> None:
    tell(stack, repo)
    done = user("merge", "t1")
    assert done.returncode == 0, done.stderr
    assert (repo / "calc.py").read_text() == "x = 3\n"
    assert len(git(repo, "rev-list", "HEAD^1..HEAD").split()) == 3
    said = git(repo, "log", "-1", "--format=%an|%B")
    assert said.startswith("U|Merge nestor/t1: n")
    assert "Verified by: tests" in said
    again = user("merge", "t1")
    assert (again.returncode, "already" in again.stdout) == (0, True)


@pytest.mark.parametrize(
    ("options", "commits", "staged"),
    [(["--squash"], 1, ""), (["--no-commit"], 0, "M  calc.py\n")],
)
def test_as_one_commit_or_none(
    stack: FakeStack,
    user: Cli,
    repo: Path,
    options: list[str],
    commits: int,
    staged: str,
) -> None:
    tell(stack, repo)
    before = git(repo, "rev-parse", "HEAD").strip()
    done = user("merge", "t1", *options)
    assert done.returncode == 0, done.stderr
    assert git(repo, "rev-list", "--count", f"{before}..HEAD").strip() == str(commits)
    assert git(repo, "status", "--short") == staged
    assert (repo / "calc.py").read_text() == "x = 3\n"


def test_what_is_not_verified_dirty_or_moved_is_refused(
    stack: FakeStack, user: Cli, repo: Path
) -> None:
    def refused(why: str, *options: str) -> None:
        head = git(repo, "rev-parse", "HEAD")
        done = user("merge", "t1", *options)
        assert done.returncode == 1, done.stdout
        assert why in done.stderr
        assert git(repo, "rev-parse", "HEAD") == head

    tell(stack, repo, "running", ended_at=None)
    refused("has not ended", "--unverified")
    tell(stack, repo, "exhausted")
    refused("not verified but exhausted")
    tell(stack, repo, branch=None)
    refused("has no branch")
    tell(stack, repo)
    (repo / "calc.py").write_text("x = 9\n")
    refused("uncommitted changes (calc.py)")
    git(repo, "checkout", "-q", "calc.py")
    # The task was put back to its first iteration, and the branch is somewhere else.
    tell(stack, repo, rolled_back_to=1)
    refused("was moved since")
    tell(stack, repo, "exhausted")
    done = user("merge", "t1", "--unverified")
    assert done.returncode == 0, done.stderr
    assert "Not verified." in git(repo, "log", "-1", "--format=%B")


def test_a_conflict_is_left_as_git_leaves_it(
    stack: FakeStack, user: Cli, repo: Path
) -> None:
    (repo / "calc.py").write_text("x = 7\n")
    git(repo, "commit", "-qam", "mine")
    tell(stack, repo)
    done = user("merge", "t1")
    assert done.returncode == 1
    assert "git merge --abort" in done.stderr
    assert git(repo, "status", "--short") == "UU calc.py\n"
    git(repo, "merge", "--abort")


def test_a_merge_that_git_refuses_before_it_begins_leaves_nothing_to_mend(
    stack: FakeStack, user: Cli, repo: Path
) -> None:
    tell(stack, repo)
    known, user.extra = (
        user.extra,
        dict.fromkeys(("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"), "/dev/null"),
    )
    git(repo, "config", "user.useConfigOnly", "true")
    nobody = user("merge", "t1")
    user.extra = known
    git(repo, "switch", "-q", "nestor/t1")
    (repo / "new.txt").write_text("of the task\n")
    git(repo, "add", "new.txt")
    git(repo, "commit", "-qm", "t1: iteration 3")
    git(repo, "switch", "-q", "main")
    (repo / "new.txt").write_text("mine\n")
    tell(stack, repo)
    in_the_way = [
        user("merge", "t1", *one) for one in (["--squash"], ["--no-commit"], [])
    ]
    for done in (nobody, *in_the_way):
        assert done.returncode == 1, done.stdout
        assert "nothing was merged" in done.stderr
        assert "--abort" not in done.stderr
    assert git(repo, "status", "--short") == "?? new.txt\n"


@pytest.mark.parametrize(
    ("options", "then", "undo"),
    [
        ([], "it and `git commit`,", "merge --abort"),
        (["--no-commit"], "it, `git commit` when", "merge --abort"),
        (["--squash"], "it and `git commit`,", "reset --merge"),
    ],
)
def test_what_a_conflict_advises_can_be_run(
    stack: FakeStack, user: Cli, repo: Path, options: list[str], then: str, undo: str
) -> None:
    (repo / "calc.py").write_text("x = 7\n")
    git(repo, "commit", "-qam", "mine")
    tell(stack, repo)
    done = user("merge", "t1", *options)
    assert done.returncode == 1
    assert then in done.stderr
    assert f"undo it with `git {undo}`" in done.stderr
    git(repo, *undo.split())
    assert git(repo, "status", "--short") == ""


def test_hooks_of_the_user_run(stack: FakeStack, user: Cli, repo: Path) -> None:
    hook = repo / ".git" / "hooks" / "commit-msg"
    hook.write_text("#!/bin/sh\necho 'Hook: ran' >> \"$1\"\n")
    hook.chmod(0o700)
    tell(stack, repo)
    assert user("merge", "t1", "--squash").returncode == 0
    assert "Hook: ran" in git(repo, "log", "-1", "--format=%B")


def test_a_diff_of_one_iteration_its_size_and_as_a_patch(
    stack: FakeStack, cli: Cli, tmp_path: Path
) -> None:
    stack.says("GET", "/tasks/t1/diff", Reply(200, DIFF, "text/plain"))
    assert cli("diff", "t1", "--iteration", "2").stdout == DIFF
    assert stack.asked[-1]["path"] == "/tasks/t1/diff?iteration=2"
    shown = [line.split() for line in cli("diff", "t1", "--stat").stdout.splitlines()]
    assert shown == [["file", "+", "-"], ["calc.py", "2", "1"], ["pic.png", "-", "-"]]
    refused = cli("diff", "t1", "--patch", "p")
    assert (refused.returncode, "pic.png" in refused.stderr) == (2, True)
    assert not (tmp_path / "p").exists()
    text = DIFF.partition("diff --git a/pic")[0]
    stack.says("GET", "/tasks/t1/diff", Reply(200, text, "text/plain"))
    assert cli("diff", "t1", "--patch", "p").returncode == 0
    assert (tmp_path / "p").read_text() == text
    stack.says("GET", "/tasks/t1/diff", Reply(200, "", "text/plain"))
    none = cli("diff", "t1", "--patch", "none.patch")
    assert (none.returncode, "changed nothing" in none.stderr) == (1, True)
    assert not (tmp_path / "none.patch").exists()
    stack.says("GET", "/tasks/t1/diff", refusal(404, "there is no 9"))
    assert cli("diff", "t1", "--iteration", "9").returncode == 2
