"""``kill -9`` of the serving process, anywhere: the task goes on and ends verified, once."""

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Rounds
from tests.system.child import Child, until_ended
from tests.system.workbench import CHECK, FIXED, git, processes, repository

from nestor.cli.client import Stack
from nestor.errors import NestorError, NotFound

pytestmark = pytest.mark.heavy

GUARDIAN_LIMIT_S = 10.0
PARTS = ("prepare", "context", "guidance", "agent", "snapshot", "verify", "decide")
STEPS = (*(f"{part}-{n}" for n in (1, 2) for part in PARTS), "finish")
POINTS = [f"{moment}:{step}" for step in STEPS for moment in ("before", "after")]


def body(
    repo: Path, marker: str, *, busy: int = 0, until: float = 0.0
) -> dict[str, Any]:
    """A task whose agent leaves one line an iteration, and is right in the second.

    It also leaves a process that nobody but the guardian ends: ``left_by``. In iteration
    ``busy`` it works until then (seconds of the wall clock).
    """
    agent = (
        "echo line >> log.txt; n=$(wc -l < log.txt); "
        f"setsid -f sleep 600.${{n}}{marker} > /dev/null 2>&1 < /dev/null; "
        f"while [ $n = {busy} ] && [ $(date +%s) -lt {until:.0f} ]; do sleep 0.1; done; "
        f"sleep 0.{marker}; "
        f"if grep -q 'not done'; then printf '%s' '{FIXED}' > calc.py; fi"
    )
    return {
        "task_id": "killed",
        "task": "Make the tests pass.",
        "backend": "command",
        "command": agent,
        "workspace": {"repo": str(repo)},
        "test_command": CHECK,
        "max_iterations": 4,
    }


def submit(stack: Stack, what: dict[str, Any]) -> None:
    with suppress(NestorError):  # it may die before it can answer
        stack.call("ralph", "POST", "/submit", body=what)


def marker_of(place: Path) -> str:
    """Digits that no other process of this machine has on its command line."""
    return f"3{place.stat().st_ino}{time.monotonic_ns()}"


def left_by(iteration: int, marker: str) -> list[int]:
    """Pids of what the agent of an iteration left running."""
    return processes(f"sleep 600.{iteration}{marker}")


def agents_end(marker: str) -> float:
    """Wait until no process of the agent is left; returns after how many seconds."""
    began = time.monotonic()
    while processes(marker):
        assert time.monotonic() - began < GUARDIAN_LIMIT_S
        time.sleep(0.05)
    return time.monotonic() - began


def check_the_end(child: Child, stack: Stack, repo: Path) -> None:
    done = until_ended(stack, "killed")
    assert (done["status"], done["reason"]) == ("verified", "checks_passed"), done
    assert done["iteration"] == 2
    log = git(repo, "show", "nestor/killed:log.txt")
    assert log == "line\nline\n", "an edit was applied twice, or half"
    deadline = time.monotonic() + 10
    while True:
        told = [e for e in child.events() if e.get("task_id") == "killed"]
        kinds = Counter(event["event_type"] for event in told)
        if kinds["task_completed"] or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    ids = Counter(event["id"] for event in told)
    assert kinds["task_started"] == 1
    assert kinds["task_iteration"] == 2
    assert kinds["exit_blocked"] == 1
    assert kinds["task_completed"] == 1
    durable = {"task_started", "task_iteration", "exit_blocked", "task_completed"}
    twice = [e for e in told if ids[e["id"]] > 1 and e["event_type"] in durable]
    assert not twice
    assert len({event["trace_id"] for event in told}) == 1


def killed_at(point: str, place: Path) -> None:
    repo = repository(place / "repo")
    marker = marker_of(place)
    with Child(place / "home") as child:
        submit(child.start(point), body(repo, marker))
        child.killed_itself()
        agents_end(marker)

        check_the_end(child, child.start(), repo)


@pytest.mark.parametrize(
    "point",
    [
        *("before:prepare-1", "after:prepare-1", "after:agent-1", "after:snapshot-1"),
        *("after:verify-1", "before:decide-1", "after:decide-1", "after:prepare-2"),
        *("before:finish", "after:finish"),
    ],
)
def test_killed_where_it_hurts_most(tmp_path: Path, point: str) -> None:
    killed_at(point, tmp_path)


def test_killed_before_and_after_each_step(tmp_path: Path, counted: Rounds) -> None:
    for number, _ in counted("kill-task-steps", 3, len(POINTS)):
        # 7 has no divisor in common with their number: each once in a full run.
        killed_at(POINTS[number * 7 % len(POINTS)], tmp_path / str(number))


@pytest.mark.parametrize("iteration", [1, 2])
def test_killed_while_the_agent_works(tmp_path: Path, iteration: int) -> None:
    repo = repository(tmp_path / "repo")
    marker = marker_of(tmp_path)
    with Child(tmp_path / "home") as child:
        stack = child.start()
        # Longer than the guardian may take: an agent that ends by itself proves nothing.
        until = time.time() + 10 + 2 * GUARDIAN_LIMIT_S
        submit(stack, body(repo, marker, busy=iteration, until=until))
        deadline = time.monotonic() + 60
        while not left_by(iteration, marker):
            assert time.monotonic() < deadline, "the agent never ran"
            time.sleep(0.02)
        assert time.time() < until - GUARDIAN_LIMIT_S, "too slow to tell"
        child.kill()
        agents_end(marker)

        check_the_end(child, child.start(), repo)
        assert not processes(marker)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_between_the_row_and_its_enqueue(tmp_path: Path, moment: str) -> None:
    repo = repository(tmp_path / "repo")
    with Child(tmp_path / "home") as child:
        submit(child.start(f"{moment}:enqueue"), body(repo, "31"))
        child.killed_itself()

        stack = child.start()
        with pytest.raises(NotFound):
            stack.call("ralph", "GET", "/tasks/killed")
        submit(stack, body(repo, "31"))
        check_the_end(child, stack, repo)


def needing(repo: Path) -> dict[str, Any]:
    """A task that starts only once the other one is verified."""
    return {
        "task_id": "needing",
        "task": "Make the tests pass.",
        "backend": "command",
        "command": f"printf '%s' '{FIXED}' > calc.py",
        "workspace": {"repo": str(repo)},
        "test_command": CHECK,
        "dependencies": ["killed"],
    }


@pytest.mark.parametrize(
    "point", ["after:finish", "before:enqueue@needing", "after:enqueue@needing"]
)
def test_killed_between_the_end_of_a_task_and_the_start_of_who_needs_it(
    tmp_path: Path, point: str
) -> None:
    repo = repository(tmp_path / "repo")
    marker = marker_of(tmp_path)
    with Child(tmp_path / "home") as child:
        stack = child.start(point)
        submit(stack, needing(repo))  # before what it needs
        submit(stack, body(repo, marker))
        child.killed_itself()
        agents_end(marker)

        stack = child.start()
        check_the_end(child, stack, repo)
        done = until_ended(stack, "needing")
        assert (done["status"], done["waits_for"]) == ("verified", [])
        told = [
            e["event_type"] for e in child.events() if e.get("task_id") == "needing"
        ]
        assert told.count("task_started") == 1


def test_killed_at_random_instants(tmp_path: Path, counted: Rounds) -> None:
    for number, random in counted("kill-task-loop", 4, 50):
        place = tmp_path / str(number)
        repo = repository(place / "repo")
        marker = marker_of(place)
        with Child(place / "home") as child:
            stack = child.start()
            submit(stack, body(repo, marker))
            for _ in range(random.randint(1, 3)):
                time.sleep(random.uniform(0.0, 2.5))
                child.kill()
                agents_end(marker)
                stack = child.start()
            check_the_end(child, stack, repo)
