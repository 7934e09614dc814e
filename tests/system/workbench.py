"""A stack in this process, a sample repository, and tasks that are waited for."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nestor.model.access import Principal
from nestor.model.task import FINAL_STATUSES, Task, TaskSpec, WorkspaceSpec
from nestor.settings import Settings
from nestor.wiring import Nestor, running

ADMIN = Principal(key_id="admin", scopes=frozenset({"admin"}))
NOBODY = "http://127.0.0.1:9"

BUGGY = "def add(a, b):\n    return a - b\n"
FIXED = "def add(a, b):\n    return a + b\n"
TESTS = """import unittest

from calc import add


class TestAdd(unittest.TestCase):
    def test_two_and_two(self):
        self.assertEqual(add(2, 2), 4)

    def test_nothing(self):
        self.assertEqual(add(0, 0), 0)
"""
CHECK = ["python3", "-m", "unittest", "-v", "test_calc"]


def repository(path: Path, files: Mapping[str, str] | None = None) -> Path:
    """Make a git repository with these files, committed."""
    files = {"calc.py": BUGGY, "test_calc.py": TESTS} if files is None else files
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    git(path, "init", "-q", "-b", "main")
    git(path, "add", "-A")
    git(path, "commit", "-q", "--allow-empty", "-m", "start")
    return path


def git(repo: Path, *arguments: str) -> str:
    """Run git as a user would."""
    who = ["-c", "user.name=T", "-c", "user.email=t@localhost"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=repo, capture_output=True, text=True, check=True
    )
    return done.stdout


def task(repo: Path | None, command: str | None, **fields: Any) -> TaskSpec:
    """A task for backend ``command``, on the sample repository, checked by its tests."""
    return TaskSpec(
        **{
            "task": "Make the tests pass.",
            "backend": "command",
            "command": command,
            "workspace": WorkspaceSpec(repo=str(repo)) if repo else None,
            "test_command": CHECK,
            "max_iterations": 2,
            **fields,
        }
    )


def processes(words: str) -> list[int]:
    """Pids of every process of this machine whose command line holds ``words``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        if words in line and "pytest" not in line:
            found.append(int(entry.name))
    return found


@asynccontextmanager
async def stack(
    home: Path, *, coordinator_url: str = NOBODY, **settings: Any
) -> AsyncIterator[Nestor]:
    """The whole stack but its HTTP faces, taking tasks."""
    values = Settings(home=home, **settings)
    async with running(values, coordinator_url=coordinator_url) as nestor:
        await nestor.ralph.start()
        yield nestor


async def ended(nestor: Nestor, spec: TaskSpec, *, within_s: float = 60.0) -> Task:
    """Submit and wait for the end."""
    submitted = await nestor.ralph.submit(spec, ADMIN)
    return await until_ended(nestor, submitted.task.task_id, within_s=within_s)


async def until_ended(nestor: Nestor, task_id: str, *, within_s: float = 60.0) -> Task:
    """Wait for the end of a task that was submitted."""
    async with asyncio.timeout(within_s):
        while (found := await nestor.ralph.get(task_id)).status not in FINAL_STATUSES:
            await asyncio.sleep(0.05)
    return found
