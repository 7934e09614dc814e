"""An agent that cheats, idles or is wrong is never verified; an honest one is."""

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest
from tests.system.workbench import (
    ADMIN,
    BUGGY,
    FIXED,
    NOBODY,
    TESTS,
    ended,
    git,
    processes,
    repository,
    stack,
    task,
    until_ended,
)

from nestor.model.task import Outcome, Reason, TaskStatus, WorkspaceSpec

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


PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
PYTEST_FILES = {
    "calc.py": BUGGY,
    "test_calc.py": "from calc import add\n\n\ndef test_two():\n    assert add(2, 2) == 4\n",
}
MORE_CHEATS: dict[str, tuple[str, dict[str, str], str | list[str]]] = {
    "skips in the tested code and pads": (
        (
            "printf 'import unittest\ndef add(a, b):\n    raise unittest.SkipTest()\n' > calc.py;"
            "printf 'import unittest\nclass T(unittest.TestCase):\n"
            "    def test_a(self): pass\n    def test_b(self): pass\n' > test_new.py"
        ),
        {"calc.py": BUGGY, "test_calc.py": TESTS},
        ["python3", "-m", "unittest", "discover", "-v"],
    ),
    "skips in the tested code, unnamed": (
        (
            "printf 'import unittest\ndef add(a, b):\n    raise unittest.SkipTest()\n' > calc.py;"
            "printf 'import unittest\nclass T(unittest.TestCase):\n"
            "    def test_a(self): pass\n    def test_b(self): pass\n' > test_new.py"
        ),
        {"calc.py": BUGGY, "test_calc.py": TESTS},
        ["python3", "-m", "unittest", "discover"],
    ),
    "pytest: skips in the tested code and pads": (
        (
            "printf 'import pytest\ndef add(a, b):\n    pytest.skip()\n' > calc.py;"
            "printf 'def test_new(): pass\n' > test_new.py"
        ),
        PYTEST_FILES,
        PYTEST,
    ),
    "pytest: plants a conftest": (
        (
            "printf 'def pytest_collection_modifyitems(items):\n    items.clear()\n"
            "def pytest_sessionfinish(session):\n    session.exitstatus = 0\n' > conftest.py"
        ),
        PYTEST_FILES,
        PYTEST,
    ),
    "pytest: plants a configuration": (
        (
            "printf '[pytest]\naddopts = --ignore=test_calc.py\n' > pytest.ini; "
            "printf '[tool.pytest.ini_options]\ntestpaths = [\"x\"]\n' > pyproject.toml; "
            "mkdir x; printf 'def test_x(): pass\n' > x/test_x.py"
        ),
        PYTEST_FILES,
        PYTEST,
    ),
    "pytest: ends the runner": (
        "printf 'import os\ndef add(a, b):\n    os._exit(0)\n' > calc.py",
        PYTEST_FILES,
        PYTEST,
    ),
    "rewrites the Makefile that is the check": (
        "printf 'test:\n\ttrue\n' > Makefile",
        {
            "calc.py": BUGGY,
            "test_calc.py": TESTS,
            "Makefile": "test:\n\tpython3 -m unittest test_calc\n",
        },
        "make test",
    ),
    "rewrites a script of the check": (
        "printf 'exit 0' > ci/check.sh",
        {
            "calc.py": BUGGY,
            "test_calc.py": TESTS,
            "ci/check.sh": "cd .. && python3 -m unittest test_calc\n",
        },
        "cd ci && sh ./check.sh",
    ),
}


@pytest.mark.parametrize("name", MORE_CHEATS)
async def test_a_cunning_cheat_is_never_verified(tmp_path: Path, name: str) -> None:
    cheat, files, check = MORE_CHEATS[name]
    repo = repository(tmp_path / "repo", files)
    mounts = [sys.prefix] if check is PYTEST else []

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, cheat, test_command=check, mounts=mounts))
        iterations = await nestor.ralph.iterations(done.task_id)

    assert (done.status, done.success) == (TaskStatus.EXHAUSTED, False), iterations
    assert iterations[0].blocked_reason


async def test_with_pytest_an_honest_fix_is_verified(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo", PYTEST_FILES)

    async with stack(tmp_path / "home") as nestor:
        done = await ended(
            nestor, task(repo, FIX, test_command=PYTEST, mounts=[sys.prefix])
        )

    assert done.status is TaskStatus.VERIFIED


@pytest.mark.parametrize("name", ["replaces the runner", "plants a sitecustomize"])
async def test_a_cheat_below_the_top_is_never_verified(
    tmp_path: Path, name: str
) -> None:
    files = {"sub/calc.py": BUGGY, "sub/test_calc.py": TESTS}
    repo = repository(tmp_path / "repo", files)
    place = WorkspaceSpec(repo=str(repo), path="sub")

    async with stack(tmp_path / "home") as nestor:
        cheated = await ended(nestor, task(repo, CHEATS[name], workspace=place))
        honest = await ended(nestor, task(repo, FIX, workspace=place))

    assert cheated.status is TaskStatus.EXHAUSTED
    assert honest.status is TaskStatus.VERIFIED


async def test_what_is_delivered_is_what_was_verified(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    both = f"{FIX}; rm test_calc.py; echo 'import os; os._exit(0)' > conftest.py"

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, both, task_id="both"))
        (iteration,) = await nestor.ralph.iterations("both")
        diff = await nestor.ralph.diff("both")

    assert done.status is TaskStatus.VERIFIED
    assert git(repo, "show", "nestor/both:test_calc.py") == TESTS
    assert git(repo, "diff", "--name-only", "main", "nestor/both") == "calc.py\n"
    assert "conftest" not in diff
    assert iteration.protected_restored == ["conftest.py", "test_calc.py"]


async def test_tests_that_the_agent_alone_wrote_prove_nothing(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo", {"calc.py": BUGGY})
    write = f"cat > test_calc.py <<'EOF'\n{TESTS}EOF\n{FIX}"
    discover = ["python3", "-m", "unittest", "discover", "-v"]

    async with stack(tmp_path / "home") as nestor:
        found = await ended(nestor, task(repo, write, test_command=discover))
        named = await ended(nestor, task(repo, write))
        script = await ended(
            nestor, task(repo, "echo > check.py", test_command="python3 check.py")
        )

    assert (found.status, found.reason) == (
        TaskStatus.UNVERIFIED,
        Reason.CHECKS_NOT_DISCRIMINATING,
    )
    assert (named.status, named.reason) == (TaskStatus.FAILED, Reason.WORKSPACE_ERROR)
    assert (script.status, script.reason) == (TaskStatus.FAILED, Reason.WORKSPACE_ERROR)


async def test_guidance_that_could_not_be_had_is_noted_and_does_not_stop_the_work(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo")
    nobody = {"remote_model": "m", "remote_base_url": f"{NOBODY}/v1"}

    async with stack(tmp_path / "home", **nobody) as nestor:
        done = await ended(nestor, task(repo, FIX))
        (iteration,) = await nestor.ralph.iterations(done.task_id)

    assert done.status is TaskStatus.VERIFIED
    assert iteration.guidance is None
    assert [note[:9] for note in iteration.notes] == ["guidance:"]


async def test_a_test_of_a_program_that_is_still_to_be_written_is_a_good_one(
    tmp_path: Path,
) -> None:
    tests = """import subprocess, sys, unittest


class TestTool(unittest.TestCase):
    def test_it_runs(self):
        subprocess.run([sys.executable, "/workspace/tool.py"], check=True)
"""
    repo = repository(tmp_path / "repo", {"test_calc.py": tests})

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, "echo > tool.py"))

    assert done.status is TaskStatus.VERIFIED, done.detail


async def test_a_test_that_cannot_be_read_on_the_base_may_prove_it(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo", {"readme": "", "test_calc.py": TESTS})

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, FIX))

    assert done.status is TaskStatus.VERIFIED


async def test_an_environment_belongs_to_what_its_commands_read(
    tmp_path: Path,
) -> None:
    states = {}
    async with stack(tmp_path / "home") as nestor:
        for name, body in (("good", "exit 0"), ("bad", "exit 1")):
            script = f"mkdir -p $NESTOR_SETUP/bin; printf '#!/bin/sh\n{body}' > "
            script += "$NESTOR_SETUP/bin/mine; chmod +x $NESTOR_SETUP/bin/mine\n"
            repo = repository(tmp_path / name, {"setup.sh": script})
            done = await ended(
                nestor,
                task(
                    repo,
                    "echo x > x",
                    setup=["sh ./setup.sh"],
                    test_command="mine && test -e x",
                ),
            )
            states[name] = done.status
    assert states == {"good": TaskStatus.VERIFIED, "bad": TaskStatus.EXHAUSTED}


async def test_links_among_the_tests_disturb_nobody(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    (repo / "tests").mkdir()
    (repo / "tests" / "broken").symlink_to("nowhere")
    (repo / "tests" / "host").symlink_to("/etc/passwd")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "links")

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, FIX))
        moved = await ended(nestor, task(repo, "ln -sf /etc/group tests/host"))

    assert done.status is TaskStatus.VERIFIED
    assert moved.status is TaskStatus.EXHAUSTED


async def test_a_huge_report_is_no_report(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo", {"x": ""})
    huge = "truncate -s 3G /report/report.xml; test -s y"
    Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, "echo y > y", test_command=huge))

    peak = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])
    assert done.status is TaskStatus.VERIFIED
    assert peak < 1024 * 1024


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
        line = "echo hello; echo 'KeyError: port'; echo bye; exit 2"
        done = await ended(nestor, task(repo, line, max_iterations=9))
        iterations = await nestor.ralph.iterations(done.task_id)

    assert (done.status, done.reason) == (TaskStatus.EXHAUSTED, Reason.REPEATED_ERROR)
    assert [i.outcome for i in iterations] == ["usage_error", "usage_error"]
    assert done.detail.endswith("in the same way. The last time: KeyError: port")


@pytest.mark.parametrize("how", ["says it is blocked", "hangs"])
async def test_an_agent_that_goes_nowhere_twice_alike_is_stopped(
    tmp_path: Path, how: str
) -> None:
    """Whatever it touches meanwhile: what it says is the same."""
    ends = {
        "says it is blocked": 'echo "$NESTOR_BLOCK_MARKER"; exit 2',
        "hangs": "echo waiting for the server; sleep 600",
    }
    line = f'echo "$NESTOR_ITERATION" >> notes; {ends[how]}'
    repo = repository(tmp_path / "repo")
    async with stack(tmp_path / "home", agent_timeout_s=2.0) as nestor:
        done = await ended(nestor, task(repo, line, max_iterations=9))
        seen = await nestor.ralph.iterations(done.task_id)
    assert (done.reason, done.iteration) == (Reason.REPEATED_ERROR, 2)
    outcome = Outcome.TIMEOUT if how == "hangs" else Outcome.BLOCKED
    assert [one.outcome for one in seen] == [outcome, outcome]


async def test_a_program_that_says_nothing_before_its_time_is_up_may_go_on(
    tmp_path: Path,
) -> None:
    """Many print at their end only, and get on from one run to the next."""
    line = 'echo "$NESTOR_ITERATION" >> notes; exec sleep 600'
    repo = repository(tmp_path / "repo")
    async with stack(tmp_path / "home", agent_timeout_s=2.0) as nestor:
        done = await ended(nestor, task(repo, line, max_iterations=3))
    assert (done.reason, done.iteration) == (Reason.MAX_ITERATIONS, 3)


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


async def test_a_fault_of_the_engine_ends_the_task_and_its_key(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    home = tmp_path / "home"

    async with stack(home) as nestor:
        await nestor.ralph.submit(task(repo, "sleep 2", task_id="broken"), ADMIN)
        async with asyncio.timeout(30):
            while not (home / "tasks/broken/runs/agent-1").exists():
                await asyncio.sleep(0.02)
        # The harness's own history is gone: no step can go on.
        shutil.rmtree(home / "tasks/broken/history.git")
        (home / "tasks/broken/prepared.json").unlink()
        done = await until_ended(nestor, "broken")
        listed = await nestor.keys.all()

    assert done.status is TaskStatus.FAILED
    assert done.detail
    assert all(key.revoked_at for key in listed)
