"""``nestor diff|merge``: look at what a task made, and take it into your own branch.

A merge is git's own, in your repository, as you: your hooks run, your settings hold, and
a conflict is left as git leaves it.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from nestor.cli.client import Stack, task_path
from nestor.cli.inert import one_line
from nestor.cli.render import Screen, print_json
from nestor.errors import Conflict, InvalidInput, NestorError

_TASK = Annotated[str, typer.Argument(help="Task id, as `nestor submit` printed it.")]
_CUT = "[diff cut at"
_FILE = re.compile(r"^diff --git (?P<old>\S.*) (?P<new>\S.*)$")
_SHOWN = 5


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(
        epilog="Examples:\n\n  nestor diff TASK | git apply\n\n"
        "  nestor diff TASK --iteration 1 --stat\n\n  nestor diff TASK --patch work.patch"
    )(diff)
    app.command(
        epilog="Examples:\n\n  nestor merge TASK\n\n  nestor merge TASK --squash"
    )(merge)


def diff(
    task_id: _TASK,
    iteration: Annotated[
        int | None, typer.Option(min=1, help="As of this one; else as the branch is.")
    ] = None,
    stat: Annotated[
        bool,
        typer.Option("--stat", help="Only the files, with lines added and removed."),
    ] = False,
    patch: Annotated[
        Path | None, typer.Option(help="Write it to this file, for `git apply`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the change a task made, as a unified diff against its base."""
    query = {"iteration": iteration}
    path = task_path(task_id, "/diff")
    found = Stack.find().call("ralph", "GET", path, query=query)
    text = str(found.get("diff", "") if isinstance(found, dict) else found or "")
    screen = Screen()
    if patch is not None:
        if not text.strip():
            raise Conflict(f"task {task_id} changed nothing: no patch was written")
        _write(patch, text)
        screen.line(f"written to {patch}: apply it with: git apply {patch}")
    elif stat:
        rows = [(f.name, f.added, f.removed) for f in _files(text)]
        if as_json:
            names = ("file", "insertions", "deletions")
            print_json([dict(zip(names, row, strict=True)) for row in rows])
        else:
            screen.table(("file", "+", "-"), rows, empty="no change")
    elif as_json:
        print_json(text)
    elif screen.terminal:
        screen.diff(text)
    else:
        # For `git apply`: exact bytes; a pipe is no terminal to defend.
        sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
        sys.stdout.flush()


@dataclass
class _File:
    name: str
    added: int | None = 0
    """None: binary, or not shown to its end."""
    removed: int | None = 0


def _files(text: str) -> list[_File]:
    found: list[_File] = []
    inside = False
    for line in text.splitlines():
        if head := _FILE.match(line):
            found.append(_File(head["new"].removeprefix("b/")))
            inside = False
        elif line.startswith("@@"):
            inside = True
        elif not found:
            continue
        elif line.startswith(("Binary files ", _CUT)):
            found[-1].added = found[-1].removed = None
        elif inside and line.startswith("+") and found[-1].added is not None:
            found[-1].added += 1
        elif inside and line.startswith("-") and found[-1].removed is not None:
            found[-1].removed += 1
    return found


def _write(patch: Path, text: str) -> None:
    """Write a patch that is whole. Raises ``InvalidInput`` for what none could hold."""
    binary = [f.name for f in _files(text) if f.added is None]
    if _CUT in text[-100:] or binary:
        named = ", ".join(binary[:_SHOWN])
        why = f"binary files are not in it ({named})" if binary else "it is too large"
        message = f"{why}; take the branch instead: nestor merge"
        raise InvalidInput.at("--patch", message)
    try:
        patch.write_bytes(text.encode(errors="surrogateescape"))
    except OSError as error:
        raise InvalidInput.at("--patch", f"{patch}: {error.strerror}") from error


def merge(
    task_id: _TASK,
    squash: Annotated[
        bool, typer.Option("--squash", help="One commit, without the task's own.")
    ] = False,
    no_commit: Annotated[
        bool, typer.Option("--no-commit", help="Leave the result to be committed.")
    ] = False,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Also what no check has proven.")
    ] = False,
) -> None:
    """Merge a verified task into the branch that is checked out in its repository."""
    stack, screen = Stack.find(), Screen()
    task: dict[str, Any] = stack.call("ralph", "GET", task_path(task_id))
    _refuse_unfinished(task, unverified=unverified)
    iterations = stack.call("ralph", "GET", task_path(task_id, "/iterations"))
    git = _Git(Path(str(task.get("workspace") or "")))
    branch = _branch(task, git, iterations["iterations"])
    if git.ok("merge-base", "--is-ancestor", branch, "HEAD"):
        screen.line(f"{branch} is already in this branch")
        return
    how = ["--squash"] if squash else ["--no-ff"]
    message = _message(task, branch)
    # A squash never commits by itself, and takes no message.
    said = [] if squash else ["-m", message]
    wanted = ["merge", *how, *(["--no-commit"] if no_commit else []), *said, branch]
    if not git.visibly(wanted):
        raise Conflict(_unmerged(git, squash=squash, no_commit=no_commit))
    if squash and not no_commit and not git.visibly(["commit", "-m", message]):
        raise Conflict(
            "the change is in the index, and git did not commit it: mend that and"
            " `git commit`, or undo it with `git reset --merge`"
        )
    where = git.read("rev-parse", "--abbrev-ref", "HEAD")
    done = "is in the tree, not committed" if no_commit else f"is in {where}"
    screen.line(f"{branch} {done}", "verified" if task.get("success") else "warn")


def _unmerged(git: "_Git", *, squash: bool, no_commit: bool) -> str:
    """Say what a merge that failed has left, and what to do; the tree was clean before."""
    # A squash leaves no MERGE_HEAD, only its conflicts.
    left = (
        git.read("status", "--porcelain", "--untracked-files=no")
        if squash
        else git.ok("rev-parse", "--verify", "--quiet", "MERGE_HEAD")
    )
    if not left:
        return (
            "nothing was merged, and nothing is left of it: git refused, as it says"
            " above; mend that and run the same again"
        )
    then = ", `git commit` when it is right" if no_commit else " and `git commit`"
    undo = "git reset --merge" if squash else "git merge --abort"
    return (
        "git left the merge as it stands: mend what conflicts, `git add` it"
        f"{then}, or undo it with `{undo}`"
    )


def _refuse_unfinished(task: dict[str, Any], *, unverified: bool) -> None:
    status = task.get("status")
    if task.get("ended_at") is None:
        raise Conflict(f"task {task['task_id']} has not ended: it is {status}")
    if not task.get("success") and not unverified:
        raise Conflict(
            f"task {task['task_id']} is not verified but {status} ({task.get('reason')});"
            " look at it with `nestor diff`, and merge it all the same with --unverified"
        )


def _branch(task: dict[str, Any], git: "_Git", iterations: list[dict[str, Any]]) -> str:
    """Return the task's branch, which stands where the task left it, in a clean tree."""
    branch = task.get("branch")
    if not branch or not task.get("workspace"):
        raise Conflict(
            f"task {task['task_id']} has no branch: it changed nothing, or ran in a"
            " scratch repository"
        )
    commits = {one["n"]: one.get("commit") for one in iterations}
    at = task.get("rolled_back_to")
    left = commits.get(max(commits, default=0) if at is None else at)
    tip = git.read("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}")
    if left is not None and tip != left:
        raise Conflict(
            f"{branch} was moved since: it is at {tip[:12]}, the task left {left[:12]};"
            " merge it with git yourself if that is meant"
        )
    changed = git.read("status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        named = ", ".join(line[2:].strip() for line in changed[:_SHOWN])
        raise Conflict(
            f"{git.path} has uncommitted changes ({named}); commit or stash them"
        )
    return str(branch)


def _message(task: dict[str, Any], branch: str) -> str:
    checks = ", ".join(
        one_line(check.get("name")) for check in task.get("checks") or []
    )
    proven = f"Verified by: {checks}" if task.get("success") else "Not verified."
    return f"Merge {branch}: {one_line(task.get('name'), 60)}\n\n{proven}\n"


class _Git:
    """The user's git, in the user's repository."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, *arguments: str) -> str:
        """Return what a command prints. Raises ``NestorError`` with its last line."""
        done = self._run(list(arguments), capture_output=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [arguments[-1]]
            raise NestorError(f"git {arguments[0]} in {self.path}: {last[0]}")
        return str(done.stdout).rstrip("\n")

    def ok(self, *arguments: str) -> bool:
        """Tell whether a command that answers by its exit code says yes."""
        return self._run(list(arguments), capture_output=True).returncode == 0

    def visibly(self, arguments: list[str]) -> bool:
        """Run it before the user's eyes, and tell whether it went well."""
        sys.stdout.flush()
        return self._run(arguments, capture_output=False).returncode == 0

    def _run(
        self, arguments: list[str], *, capture_output: bool
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["git", "-C", str(self.path), *arguments],
                capture_output=capture_output,
                text=True,
                errors="surrogateescape",
                check=False,
            )
        except FileNotFoundError:
            raise NestorError(
                "git is not installed: install it and try again"
            ) from None
