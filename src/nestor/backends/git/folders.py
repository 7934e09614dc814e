"""What lies in a task's folder: put there whole or not at all, and removed for certain."""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import msgspec

from nestor.errors import WorkspaceError

TEMPORARY = "tmp-"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """``prepared.json``: written last."""

    base: str
    tree: str
    repo: str | None
    head: str | None
    """The user's commit under ``base``: the same, unless it has their dirty state."""
    object_format: str
    inside: list[str] | None = None
    """Folders that the repository must lie in whenever it is opened; None: anywhere."""


def read_record(folder: Path) -> Record | None:
    """Return ``prepared.json``; None: not prepared. Raises WorkspaceError."""
    try:
        return msgspec.json.decode((folder / "prepared.json").read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise WorkspaceError(f"{folder / 'prepared.json'} is damaged") from error


def put_in_place(folder: Path, scratch: Path, record: Record) -> None:
    """Rename what was built into the task's folder; ``prepared.json`` comes last."""
    # Without a record nobody has used these: what an earlier attempt left behind.
    remove(folder / "history.git")
    remove(folder / "workspace")
    (scratch / "history.git").rename(folder / "history.git")
    (scratch / "prepared.json").write_bytes(msgspec.json.encode(record))
    (scratch / "prepared.json").rename(folder / "prepared.json")
    remove(scratch)


def copy_objects(history: Path, git_dir: Path) -> None:
    """Copy, never hard-link: the agent can write what it owns.

    What a git at work there has half written (``tmp_…``) is no object yet.
    """
    shutil.copytree(
        history / "objects",
        git_dir / "objects",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("tmp_*", "incoming-*"),
    )
    with suppress(FileNotFoundError):
        shutil.copyfile(history / "shallow", git_dir / "shallow")


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-made."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(WorkspaceError):  # a git of that process may still write there
            remove(path)


def unlock(folder: Path) -> None:
    """Remove the locks of a git that was killed: nobody else is at work for this task."""
    history = folder / "history.git"
    for path in (*history.glob("*.lock"), *history.glob("refs/**/*.lock")):
        path.unlink(missing_ok=True)


def remove(*paths: Path) -> None:
    """Remove trees that somebody else filled: as deep and as closed as they like."""
    left = [str(path) for path in paths if os.path.lexists(path)]
    command = ["rm", "-rf", "--", *left]
    if not left or _runs(command) is None:
        return
    _runs(["chmod", "-R", "u+rwX", "--", *left])
    if said := _runs(command):
        raise WorkspaceError(f"cannot remove {', '.join(left)}: {said}")


def _runs(command: list[str]) -> str | None:
    """Return None where a command ends with 0; else the last line it said."""
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, errors="replace"
    )
    if done.returncode == 0:
        return None
    return done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"


def empty(path: Path) -> None:
    """Make an empty folder of it."""
    remove(path)
    path.mkdir(parents=True)
