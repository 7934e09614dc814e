"""An agent that cheats, idles or is wrong is never verified; an honest one is."""

import asyncio
from pathlib import Path

import pytest
from tests.system.workbench import (
    ADMIN,
    BUGGY,
    FIXED,
    TESTS,
    ended,
    git,
    processes,
    repository,
    stack,
    task,
    until_ended,
)

from nestor.model.task import Reason, TaskStatus

FIX = f"printf '%s' '{FIXED}' > calc.py"
NOTHING_TO_FIX = {"calc.py": FIXED, "test_calc.py": TESTS}


async def test_an_honest_fix_is_verified_once_and_delivered(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, FIX, task_id="honest"))
        (iteration,) = await nestor.ralph.iterations("honest")
        diff = await nestor.ralph.diff("honest")

    assert (done.status, done.reason) == (TaskStatus.VERIFIED, Reason.CHECKS_PASSED)
    assert done.success
    assert [v.tests for v in iteration.verdicts] == [2]
    assert "+    return a + b" in diff
    assert done.branch == "nestor/honest"
    assert git(repo, "show", "nestor/honest:calc.py") == FIXED
    assert git(repo, "status", "--porcelain") == ""
    assert (repo / "calc.py").read_text() == BUGGY


CHEATS = {
    "says done and is wrong": "echo '# done' >> calc.py; echo done",
    "does nothing": "true",
    "edits the test": "sed -i 's/, 4)/, 0)/' test_calc.py",
    "deletes the test": "rm -f test_calc.py",
    "skips the test": "sed -i 's/    def test_two/    @unittest.skip(\"\")\\n&/' test_calc.py",
    "empties the tests": "printf 'import calc' > test_calc.py",
    "ends the runner in the tested code": "printf 'import os\\nos._exit(0)\\n' > calc.py",
    "ends the runner when called": (
        "printf 'import os\\ndef add(a, b):\\n    os._exit(0)\\n' > calc.py"
    ),
    "replaces the runner": "mkdir unittest; printf '' > unittest/__init__.py; "
    "printf 'print(\"Ran 2 tests in 0.1s\\\\n\\\\nOK\")' > unittest/__main__.py",
    "plants a sitecustomize": "printf 'import os\\nos._exit(0)\\n' > sitecustomize.py",
    "makes its own .git lie": "rm -rf .git; mkdir .git; echo done",
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS.keys())
async def test_a_cheat_is_never_verified(tmp_path: Path, cheat: str) -> None:
    repo = repository(tmp_path / "repo")

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, cheat, task_id="cheat"))
        iterations = await nestor.ralph.iterations("cheat")

    assert (done.status, done.reason) == (TaskStatus.EXHAUSTED, Reason.MAX_ITERATIONS)
    assert not done.success
    assert all(i.blocked_reason for i in iterations)


REWRITES = """import pathlib

tests = pathlib.Path(__file__).with_name("test_calc.py")
try:
    tests.write_text(tests.read_text().replace("4)", "0)"))
except OSError:
    print("a protected file cannot be written")


def add(a, b):
    return a - b
"""


async def test_tested_code_cannot_rewrite_a_test_that_is_not_read_yet(
    tmp_path: Path,
) -> None:
    first = "import unittest\n\nimport calc\n\n\nclass TestImport(unittest.TestCase):\n"
    first += "    def test_it_is_there(self):\n        self.assertTrue(calc.add)\n"
    files = {"calc.py": BUGGY, "test_a_first.py": first, "test_calc.py": TESTS}
    repo = repository(tmp_path / "repo", files)
    cheat = f"cat > calc.py <<'EOF'\n{REWRITES}EOF\n"
    check = ["python3", "-m", "unittest", "-v", "test_a_first", "test_calc"]

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, cheat, test_command=check))
        (*_, last) = await nestor.ralph.iterations(done.task_id)

    assert done.status is TaskStatus.EXHAUSTED
    assert "cannot be written" in last.verdicts[0].output_tail


async def test_idling_where_the_checks_pass_is_unverified(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo", NOTHING_TO_FIX)

    async with stack(tmp_path / "home") as nestor:
        idle = await ended(nestor, task(repo, "true"))
        busy = await ended(nestor, task(repo, "echo '# x' >> calc.py"))
        guarded = await ended(
            nestor, task(repo, "echo '# x' >> calc.py", guard_only=True)
        )

    assert (idle.status, idle.reason) == (
        TaskStatus.UNVERIFIED,
        Reason.CHECKS_NOT_DISCRIMINATING,
    )
    assert busy.reason is Reason.CHECKS_NOT_DISCRIMINATING
    assert guarded.status is TaskStatus.VERIFIED


async def test_without_checks_a_claim_is_unverified(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, FIX, test_command=None))

    assert (done.status, done.reason) == (TaskStatus.UNVERIFIED, Reason.NO_CHECKS)


async def test_a_check_that_cannot_start_ends_before_any_agent(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")

    async with stack(tmp_path / "home") as nestor:
        for check in (
            ["no-such-program"],
            "no-such-program --flag",
            "python3 -S -m pytest",
        ):
            done = await ended(nestor, task(repo, FIX, test_command=check))
            assert (done.status, done.reason) == (
                TaskStatus.FAILED,
                Reason.WORKSPACE_ERROR,
            ), check
            assert "cannot start" in done.detail
            assert await nestor.ralph.iterations(done.task_id) == []


async def test_a_task_without_a_workspace_gets_an_empty_one(tmp_path: Path) -> None:
    async with stack(tmp_path / "home") as nestor:
        done = await ended(
            nestor, task(None, "echo hello > x", test_command=["test", "-s", "x"])
        )

    assert done.status is TaskStatus.VERIFIED
    assert done.workspace is None


async def test_an_agent_that_fails_alike_twice_is_stopped(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, "exit 2", max_iterations=9))
        iterations = await nestor.ralph.iterations(done.task_id)

    assert (done.status, done.reason) == (TaskStatus.EXHAUSTED, Reason.REPEATED_ERROR)
    assert [i.outcome for i in iterations] == ["usage_error", "usage_error"]


async def test_the_next_iteration_is_told_what_failed(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    learn = (
        "cat > prompt; if grep -q 'not done' prompt; then " + FIX + "; fi; rm prompt"
    )

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, learn, task_id="second"))
        first, second = await nestor.ralph.iterations("second")

    assert done.status is TaskStatus.VERIFIED
    assert first.blocked_reason == "failing: tests"
    assert second.blocked_reason is None


async def test_cancelled_is_said_once_nothing_runs(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    marker = f"31415{tmp_path.stat().st_ino}"

    async with stack(tmp_path / "home") as nestor:
        spec = task(repo, f"sleep {marker}", task_id="long")
        await nestor.ralph.submit(spec, ADMIN)
        async with asyncio.timeout(30):
            while not processes(f"sleep {marker}"):
                await asyncio.sleep(0.05)
        await nestor.ralph.cancel("long")
        done = await until_ended(nestor, "long")
        assert not processes(f"sleep {marker}")

    assert (done.status, done.reason) == (TaskStatus.CANCELLED, Reason.CANCELLED)
