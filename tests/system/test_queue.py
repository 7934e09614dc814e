"""Dependencies, limits of backends and draining, through the whole stack."""

import asyncio
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.system.child import Child, until_ended
from tests.system.workbench import (
    ADMIN,
    CHECK,
    FIXED,
    NOBODY,
    git,
    processes,
    repository,
    stack,
    task,
)
from tests.system.workbench import until_ended as ended_here

from nestor.cli.client import Stack
from nestor.errors import InvalidInput, NestorError
from nestor.model.task import Reason, SandboxSpec, TaskStatus
from nestor.settings import Settings
from nestor.wiring import running

FIX = f"printf '%s' '{FIXED}' > calc.py"


async def until(look: Any, enough: Any, *, within_s: float = 90) -> Any:
    async with asyncio.timeout(within_s):
        while not enough(seen := await look()):
            await asyncio.sleep(0.05)
    return seen


async def test_a_diamond_runs_in_order_and_a_failure_ends_its_side(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo")
    graph = {
        "end": ["left", "right"],
        "left": ["start"],
        "right": ["start"],
        "after-bad": ["bad", "start"],
        "last": ["after-bad"],
        "bad": [],
        "start": [],
    }
    async with stack(tmp_path / "home") as nestor:
        for name, needs in graph.items():
            command = "true" if name == "bad" else FIX
            spec = task(
                repo, command, task_id=name, dependencies=needs, max_iterations=1
            )
            done = await nestor.ralph.submit(spec, ADMIN)
            assert done.task.waits_for == needs
            assert (done.position == 0) is bool(needs)
        seen = {name: await ended_here(nestor, name) for name in graph}
    assert {n for n, t in seen.items() if t.success} == {
        *("start", "left", "right", "end")
    }
    for name, needs in graph.items():
        one = seen[name]
        assert one.waits_for == [] or one.reason is Reason.DEPENDENCY_FAILED
        for other in needs:
            ended = seen[other].ended_at
            assert ended is not None
            assert one.started_at is None or one.started_at >= ended
    for name, cause in (("after-bad", "bad"), ("last", "after-bad")):
        assert seen[name].reason is Reason.DEPENDENCY_FAILED
        assert seen[name].started_at is None
        assert f"nestor retry {cause}" in seen[name].detail


async def test_cancelling_what_waits_is_seen_at_once_wherever_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = repository(tmp_path / "repo")
    monkeypatch.chdir(tmp_path)
    table = '[[backend]]\nname = "command"\nconcurrency = 1\n'
    (tmp_path / "nestor.toml").write_text(table)
    settings = Settings.load(home=tmp_path / "home", workers=3)
    async with running(settings, coordinator_url=NOBODY) as nestor:
        await nestor.ralph.start()
        marker = f"9{time.monotonic_ns()}"
        spec = task(repo, f"sleep 600.{marker}", task_id="runs")
        await nestor.ralph.submit(spec, ADMIN)
        for name, needs in (("gate", []), ("needs", ["runs"]), ("behind", [])):
            spec = task(repo, FIX, task_id=name, dependencies=needs, max_iterations=1)
            await nestor.ralph.submit(spec, ADMIN)
        await until(lambda: asyncio.sleep(0, processes(f"sleep 600.{marker}")), bool)

        async def why() -> dict[str, str]:
            tasks = [await nestor.ralph.get(n) for n in ("runs", "gate", "needs")]
            return await nestor.ralph.waits(tasks)

        # A sweep takes note of what runs within a second or so.
        wanted = "waits for runs, which is running"
        said = await until(
            why, lambda seen: "gate" in seen and seen.get("needs") == wanted
        )
        assert said["gate"] == "backend command is at its limit of 1"
        assert "runs" not in said
        for name in ("gate", "needs"):
            cancelled = await nestor.ralph.cancel(name)
            assert cancelled.status is TaskStatus.CANCELLED
        asked = await nestor.ralph.cancel("runs")
        assert asked.status is TaskStatus.RUNNING  # until its processes are gone
        done = await ended_here(nestor, "runs")
        assert done.status is TaskStatus.CANCELLED
        assert not processes(f"sleep 600.{marker}")
        assert (await ended_here(nestor, "behind")).success
        for name in ("gate", "needs"):
            left = await nestor.ralph.get(name)
            assert (left.status, left.started_at) == (TaskStatus.CANCELLED, None)


async def test_a_need_that_this_machine_never_has_is_refused_at_submit(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo")
    async with stack(tmp_path / "home") as nestor:
        sandbox = SandboxSpec(memory_bytes=1 << 49)
        with pytest.raises(InvalidInput) as caught:
            await nestor.ralph.submit(task(repo, FIX, sandbox=sandbox), ADMIN)
    assert [e.field for e in caught.value.errors] == ["sandbox.memory_bytes"]
    assert "needs 524288 GiB" in str(caught.value)


def slow(repo: Path, marker: str, *, release: Path) -> dict[str, Any]:
    """A task whose agent notes that it ran, and goes on once ``release`` is there."""
    agent = (
        "echo line >> log.txt; n=$(wc -l < log.txt); "
        f"while [ $n = 1 ] && [ ! -e {release} ]; do sleep 0.{marker}; done; "
        f"[ $n = 1 ] || printf '%s' '{FIXED}' > calc.py"
    )
    return {
        "task_id": "slow",
        "task": "Make the tests pass.",
        "backend": "command",
        "command": agent,
        "workspace": {"repo": str(repo)},
        "test_command": CHECK,
        "max_iterations": 3,
        "mounts": [str(release.parent)],
    }


def claims(home: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(home / "nestor.db")) as connection:
        return connection.execute(
            "SELECT workflow_uuid, recovery_attempts FROM workflow_status"
        ).fetchall()


def begun(child: Child, stack: Stack, body: dict[str, Any], marker: str) -> None:
    """Submit, and wait until the agent works."""
    stack.call("ralph", "POST", "/submit", body=body)
    deadline = time.monotonic() + 120
    while not processes(f"sleep 0.{marker}"):
        assert time.monotonic() < deadline, child.log.read_text()[-2000:]
        time.sleep(0.02)


def signalled(child: Child, times: int = 1) -> float:
    """Send SIGTERM; returns when."""
    assert child.process is not None
    for _ in range(times):
        child.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    return time.monotonic()


def ends(child: Child, *, within_s: float) -> None:
    assert child.process is not None
    assert child.process.wait(within_s) == 0, child.log.read_text()[-2000:]


@pytest.mark.heavy
def test_sigterm_lets_the_step_end_and_the_task_goes_on_at_the_next_start(
    tmp_path: Path,
) -> None:
    repo, gate = repository(tmp_path / "repo"), tmp_path / "gate"
    gate.mkdir()
    marker = f"3{time.monotonic_ns()}"
    with Child(tmp_path / "home", drain_s=600) as child:
        stack = child.start(ready_s=120)
        begun(child, stack, slow(repo, marker, release=gate / "go"), marker)
        began = signalled(child)
        for layer in ("ralph", "coordinator", "dashboard"):
            with pytest.raises(NestorError, match="503"):
                stack.call(layer, "GET", "/health/ready")
        later = {
            **slow(repo, marker, release=gate / "go"),
            "task_id": "later",
            "dependencies": ["slow"],
        }
        reply = stack.call("ralph", "POST", "/submit", body=later)
        assert reply["status"] == "queued"
        shown = stack.call("ralph", "GET", "/tasks/slow")
        assert shown["status"] == "running"
        assert processes(f"sleep 0.{marker}"), "the agent was cut off"
        (gate / "go").touch()
        ends(child, within_s=120)
        assert time.monotonic() - began < 120
        told = child.log.read_text()
        assert "waiting up to 600 s for the current step of slow" in told
        assert ("slow:1", 0) in claims(child.home), "the drain counted as a recovery"
        stack = child.start(ready_s=120)
        assert until_ended(stack, "slow")["status"] == "verified"
        assert until_ended(stack, "later")["status"] == "verified"
    # A step that was cut off would have run again, and left a third line.
    assert git(repo, "show", "nestor/slow:log.txt") == "line\nline\n"


@pytest.mark.heavy
@pytest.mark.parametrize(("drain_s", "signals"), [(1, 1), (600, 2), (0, 1)])
def test_what_takes_too_long_is_ended_and_nothing_is_left_running(
    tmp_path: Path, drain_s: int, signals: int
) -> None:
    repo, gate = repository(tmp_path / "repo"), tmp_path / "gate"
    gate.mkdir()
    marker = f"3{time.monotonic_ns()}"
    with Child(tmp_path / "home", drain_s=drain_s) as child:
        stack = child.start(ready_s=120)
        begun(child, stack, slow(repo, marker, release=gate / "go"), marker)
        signalled(child, signals)
        ends(child, within_s=120)
        assert not processes(marker)
        assert claims(child.home) == [("slow:1", 0)]
        (gate / "go").touch()
        assert until_ended(child.start(ready_s=120), "slow")["status"] == "verified"
    assert git(repo, "show", "nestor/slow:log.txt") == "line\nline\n"
