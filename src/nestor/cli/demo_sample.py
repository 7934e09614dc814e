"""The demo's own material: a small broken git repository, a task, and texts to learn."""

import importlib.metadata
import importlib.resources
import subprocess
from pathlib import Path
from typing import Any

import nestor

QUESTION = "Why are the checks run on the base before the agent starts?"
TASK_ID = "demo-split-bill"
_IDENTITY = ("-c", "user.name=Nestor demo", "-c", "user.email=demo@localhost")


def data_file(name: str) -> Path:
    """Return the path of a packaged demo file."""
    return Path(str(importlib.resources.files("nestor.cli") / "demo_data" / name))


def make_repository(folder: Path) -> None:
    """Write the sample repository: a module with a real bug and tests that show it.

    The files are packaged with a ``.txt`` ending, so that no tool takes them for ours.
    """
    folder.mkdir()
    for source in sorted(data_file("sample").glob("*.txt")):
        (folder / source.name.removesuffix(".txt")).write_text(source.read_text())
    for step in (
        ["init", "-q", "-b", "main"],
        ["add", "--all"],
        ["commit", "-q", "-m", "Split a bill"],
    ):
        subprocess.run(["git", *_IDENTITY, *step], cwd=folder, check=True)


def task(repository: Path, *, seconds: float) -> dict[str, Any]:
    """Return the task file: make the failing tests pass, proved by the tests alone."""
    return {
        "task_id": TASK_ID,
        "name": "Make the tests of split-bill pass",
        "task": (
            "Some tests of this repository fail. Find out why and fix split_bill.py;"
            " leave the tests alone."
        ),
        "workspace": {"repo": str(repository)},
        "setup": [
            "python3 -m venv /setup/venv",
            "/setup/venv/bin/python -m pip install --quiet --no-input pytest",
        ],
        "checks": [
            {
                "name": "tests",
                "run": ["/setup/venv/bin/python", "-m", "pytest", "-q"],
                "timeout_s": 60,
            }
        ],
        "max_iterations": 4,
        "budget": {"seconds": seconds},
    }


def texts(temporary: Path) -> list[Path]:
    """Return what to teach: the docs of this checkout, else the packaged README."""
    top = Path(nestor.__file__).parents[2]
    found = [top / name for name in ("README.md", "ARCHITECTURE.md", "docs")]
    if all(path.exists() for path in found):
        return found
    readme = temporary / "README.md"
    metadata = importlib.metadata.distribution("nestor").read_text("METADATA") or ""
    readme.write_text(metadata.partition("\n\n")[2])
    return [readme]
