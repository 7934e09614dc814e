"""A check that could never pass is said to be one before any model is asked."""

import sys
from pathlib import Path

import pytest
from tests.system.workbench import BUGGY, FIXED, ended, repository, stack, task

from nestor.model.task import Reason, TaskStatus

PYTEST = f"{sys.executable} -m pytest -q -p no:cacheprovider"
TEST = "from calc import add\n\n\ndef test_two():\n    assert add(2, 2) == 4\n"


@pytest.mark.parametrize(
    ("run", "calc", "says"),
    [
        (f"{PYTEST} --junitxml=out.xml", BUGGY, "Leave that option out"),
        (f"{PYTEST} --junitxml out.xml", FIXED, "Leave that option out"),
        ("true pytest", BUGGY, "no pytest left a report"),
    ],
)
async def test_without_a_report_of_pytest_no_iteration_begins(
    tmp_path: Path, run: str, calc: str, says: str
) -> None:
    repo = repository(tmp_path / "repo", {"calc.py": calc, "test_calc.py": TEST})

    async with stack(tmp_path / "home") as nestor:
        done = await ended(
            nestor, task(repo, "true", test_command=run, mounts=[sys.prefix])
        )
        iterations = await nestor.ralph.iterations(done.task_id)

    assert (done.status, done.reason) == (TaskStatus.FAILED, Reason.WORKSPACE_ERROR)
    assert says in done.detail
    assert iterations == []


async def test_a_line_that_only_names_pytest_is_believed_by_its_exit_code(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo", {"requirements.txt": "ruff\n"})
    spec = task(
        repo,
        "echo pytest >> requirements.txt",
        test_command="grep -q pytest requirements.txt",
        protected=[],
    )

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, spec)

    assert done.status is TaskStatus.VERIFIED
