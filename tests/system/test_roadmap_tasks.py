"""The fifteen task files of ``tasks/``: submitted by a shell loop, shown, filtered, run."""

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.conftest import ROOT
from tests.system.child import Child, until_ended
from tests.system.workbench import ADMIN, NOBODY

from nestor.cli.client import Stack
from nestor.model.task import TaskSpec, TaskStatus
from nestor.settings import Settings
from nestor.wiring import running

TASKS = sorted((ROOT / "tasks").glob("*.json"))
WORK = Path(__file__).parent / "roadmap_work"
"""What an agent might do for each task, as a script."""
IDS = [
    *(f"P1-SEC-00{n}" for n in (1, 2, 3)),
    *(f"P2-REL-00{n}" for n in (1, 2, 3, 4)),
    *("P3-RES-001", "P3-RES-002", "P4-ORCH-001", "P5-OBS-001", "P5-OBS-002"),
    *("P6-OPS-001", "P6-OPS-002", "P7-TEST-001"),
]
WHOLE = ("name", "description", "backend", "files", "steps", "completion_criteria")
URGENT = """
for task_id in P1-SEC-{001..003} P2-REL-{001..004} P3-RES-{001..002}; do
  curl -sS -w '\\n' -X POST http://localhost:$PORT/submit \\
    -H "Content-Type: application/json" \\
    -H "X-API-Key: $KEY" \\
    -d @tasks/${task_id}.json
done
"""
"""The plan's own loop, with one header more, and a line end after each reply."""
OTHERS = """
for f in tasks/P[4-7]*.json; do
  curl -sS -w '\\n' -X POST http://localhost:$PORT/tasks -H "X-API-Key: $KEY" -d @"$f"
done
"""
HOLLOW = """
mkdir -p ai-stack/tests
for n in 1 2 3 4 5; do printf "def test_$n():\\n    assert len('abc') == 3\\n"; done > ai-stack/tests/test_it.py
"""


def spec(path: Path) -> TaskSpec:
    return msgspec.json.decode(path.read_bytes(), type=TaskSpec)


def test_all_fifteen_are_there_and_complete() -> None:
    assert [path.stem for path in TASKS] == IDS
    for path in TASKS:
        given = json.loads(path.read_bytes())
        task = spec(path)
        assert task.task_id == path.stem
        assert all(given[field] for field in WHOLE), path
        assert task.phase == int(path.stem[1])
        assert task.priority == ("P0" if path.stem[1] in "123" else "P1")
        assert task.estimated_iterations
        assert task.all_checks
        assert {c.name for c in task.checks} == {c.name for c in task.all_checks}
        assert set(task.dependencies) <= set(IDS) - {task.task_id}


async def test_they_are_accepted_as_they_are(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    async with running(settings, coordinator_url=NOBODY) as nestor:
        for path in TASKS:
            done = await nestor.ralph.submit(spec(path), ADMIN)
            assert done.task.status is TaskStatus.QUEUED, done.task
            assert done.task.backend == "aider"


def shell(folder: Path, line: str, **env: str) -> str:
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", line],
        cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_work(folder: Path) -> None:
    """Copy the tasks to ``folder``; a script works on each instead of aider."""
    (folder / "tasks").mkdir()
    for path in TASKS:
        script = (WORK / f"{path.stem}.sh").read_text()
        task = json.loads(path.read_bytes())
        task |= {"backend": "command", "command": ["/bin/sh", "-c", script]}
        if path.stem == "P7-TEST-001":
            task["workspace"] = {"repo": str(with_parts(folder))}
        (folder / "tasks" / path.name).write_text(json.dumps(task))


def with_parts(folder: Path) -> Path:
    """Make the repository whose parts are tested: the other tasks begin with nothing."""
    repo = folder / "stack"
    repo.mkdir()
    shell(repo, (WORK / "parts.sh").read_text())
    who = "-c user.name=me -c user.email=me@localhost"
    shell(repo, f"git init -q; git add .; git {who} commit -q -m parts")
    return repo


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    with Child(tmp_path / "home") as found:
        yield found


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_the_loop_submits_them_and_each_is_verified_after_what_it_depends_on(
    child: Child, tmp_path: Path
) -> None:
    stack = child.start()
    env = {
        "KEY": (child.home / "api-key").read_text().strip(),
        "PORT": str(child.port("ralph")),
    }
    with_work(tmp_path)
    said = shell(tmp_path, URGENT, **env) + shell(tmp_path, OTHERS, **env)
    told = [json.loads(line) for line in said.splitlines()]
    assert [one.get("task_id") for one in told] == IDS, told
    assert {one["status"] for one in told} <= {"queued", "running", "verified"}, told

    get = 'curl -sS -H "X-API-Key: $KEY" "http://localhost:$PORT'
    first = f'{get}/status" | jq -c \'.tasks[] | select(.priority == "P0")\''
    shown = [json.loads(line) for line in shell(tmp_path, first, **env).splitlines()]
    assert sorted(t["task_id"] for t in shown) == IDS[:9]
    assert {t["phase"] for t in shown} == {1, 2, 3}

    ended = {name: until_ended(stack, name, within_s=240) for name in IDS}
    wrong = {
        n: (t["status"], t["detail"]) for n, t in ended.items() if not t["success"]
    }
    assert not wrong, wrong
    for path in TASKS:
        began = datetime.fromisoformat(ended[path.stem]["started_at"])
        for before in spec(path).dependencies:
            assert datetime.fromisoformat(ended[before]["ended_at"]) <= began, before

    header = '-H "X-API-Key: $KEY"'
    get = f"curl -sS {header} http://localhost:$PORT/results?phase=1 | jq ."
    results = json.loads(shell(tmp_path, get, **env))
    assert_results(results["results"])
    log = child.home / "telemetry" / "unified-events.jsonl"
    types = shell(tmp_path, f"jq -r .event_type {log}").split()
    assert types.count("task_started") == types.count("task_completed") == len(IDS)
    _tests_that_test_nothing_prove_nothing(stack, tmp_path)


def _tests_that_test_nothing_prove_nothing(stack: Stack, folder: Path) -> None:
    hollow = json.loads((folder / "tasks" / "P7-TEST-001.json").read_bytes())
    hollow |= {"task_id": "hollow", "dependencies": [], "max_iterations": 1}
    hollow |= {"command": ["/bin/sh", "-c", HOLLOW]}
    stack.call("ralph", "POST", "/tasks", body=hollow)
    ended = until_ended(stack, "hollow", within_s=120)
    assert (ended["status"], ended["success"]) == ("exhausted", False), ended
    (iteration,) = stack.call("ralph", "GET", "/tasks/hollow/iterations")["iterations"]
    untested = iteration["verdicts"][-1]
    assert not untested["passed"]
    assert "broken, and no test fails" in untested["output_tail"], untested


def assert_results(results: list[dict[str, Any]]) -> None:
    assert sorted(one["task_id"] for one in results) == IDS[:3]
    for one in results:
        assert (one["status"], one["success"]) == ("verified", True)
        assert [v["passed"] for v in one["verdicts"]] == [True] * len(one["verdicts"])
        assert one["verdicts"], one
