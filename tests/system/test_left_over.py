"""What an attempt leaves in the engine's queue never speaks for the attempts after it."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.servers.scripted_model import ScriptedModel
from tests.system.child import Child, until_ended
from tests.system.test_asking import RULES
from tests.system.workbench import ADMIN, CHECK, FIXED, repository, stack, task
from tests.system.workbench import until_ended as ended_here

from nestor.backends.dbos import engine as dbos_engine
from nestor.cli.client import Stack
from nestor.model.task import TaskStatus
from nestor.ralph.attempts import Further

FIX = f"printf '%s' '{FIXED}' > calc.py"


def body(repo: Path, task_id: str, command: str, **more: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "task": "Make the tests pass.",
        "backend": "command",
        "command": command,
        "workspace": {"repo": str(repo)},
        "test_command": CHECK,
        "max_iterations": 1,
        **more,
    }


def blocker(repo: Path, gate: Path) -> dict[str, Any]:
    """A task that goes before every other and works until the gate is open."""
    waits = f"while [ ! -e {gate}/open ]; do sleep 0.2; done"
    return body(repo, "blocker", waits, priority="P0", mounts=[str(gate)])


def shown(stack: Stack, task_id: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.call("ralph", "GET", f"/tasks/{task_id}")
    return found


def until(look: Callable[[], Any], *, within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def restarted_while_busy(
    child: Child, first: Stack, repo: Path, gate: Path, *, victim: str
) -> Stack:
    """Queue the blocker before the kill; returns once it has the only worker again."""
    until(lambda: shown(first, victim)["status"] == "running")
    first.call("ralph", "POST", "/submit", body=blocker(repo, gate))
    (gate / "kill").touch()
    child.killed_itself()
    again = child.start(ready_s=120)
    until(lambda: shown(again, "blocker")["status"] == "running")
    return again


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    place = tmp_path / "gate"
    place.mkdir()
    return place


@pytest.mark.heavy
async def test_an_answer_between_the_crash_and_the_replay_is_heard(
    tmp_path: Path, gate: Path
) -> None:
    repo = repository(tmp_path / "repo")

    def go(child: Child) -> None:
        first = child.start("before:finish", ready_s=120)
        asks = body(repo, "asks", "", max_iterations=3, backend="builtin")
        del asks["command"]
        asks |= {"task": "Make the tests pass, and push.", "use_hybrid": False}
        first.call("ralph", "POST", "/submit", body=asks)
        again = restarted_while_busy(child, first, repo, gate, victim="asks")
        parked = shown(again, "asks")
        assert parked["status"] == "awaiting_approval"
        answer = {"approved": True, "action": parked["questions"][0]["id"]}
        again.call("ralph", "POST", "/tasks/asks/approve", body=answer)
        assert shown(again, "asks")["status"] == "queued"
        (gate / "open").touch()
        # It goes on: to its end, or to its next question.
        until(lambda: shown(again, "asks")["status"] not in {"queued", "running"})
        after = shown(again, "asks")
        assert (after["attempt"], after["started_at"]) != (1, None)
        assert after["iteration"] > parked["iteration"], after

    async with ScriptedModel(RULES) as model:
        settings = {
            "remote_base_url": model.base_url,
            "remote_model": "scripted-model",
            "approval_wait_s": 3,
        }
        with Child(tmp_path / "home", workers=1, **settings) as child:
            await asyncio.to_thread(go, child)


@pytest.mark.heavy
def test_a_resume_between_the_crash_and_the_replay_is_run(
    tmp_path: Path, gate: Path
) -> None:
    repo = repository(tmp_path / "repo")
    with Child(tmp_path / "home", workers=1) as child:
        first = child.start("after:finish", ready_s=120)
        # Right in its second iteration, which only the resume gives it.
        waits = f"while [ ! -e {gate}/kill ]; do sleep 0.1; done; "
        agent = waits + f"echo line >> log.txt; [ $(wc -l < log.txt) = 1 ] || {FIX}"
        victim = body(repo, "victim", agent, mounts=[str(gate)])
        first.call("ralph", "POST", "/submit", body=victim)
        again = restarted_while_busy(child, first, repo, gate, victim="victim")
        assert shown(again, "victim")["status"] == "exhausted"
        more = {"iterations": 3}
        again.call("ralph", "POST", "/tasks/victim/resume", body=more)
        (gate / "open").touch()
        done = until_ended(again, "victim")
        assert (done["status"], done["attempt"], done["iteration"]) == (
            "verified",
            2,
            2,
        )

        def told() -> list[str]:
            mine = [e for e in child.events() if e.get("task_id") == "victim"]
            return [e["event_type"] for e in mine]

        until(lambda: told().count("task_completed") == 2)
        assert told().count("task_started") == 2


@pytest.mark.heavy
def test_what_a_restart_left_waiting_says_so_and_is_cancelled_at_once(
    tmp_path: Path, gate: Path
) -> None:
    repo = repository(tmp_path / "repo")
    with Child(tmp_path / "home", workers=1) as child:
        first = child.start("after:agent-1", ready_s=120)
        waits = f"while [ ! -e {gate}/kill ]; do sleep 0.1; done; "
        victim = body(repo, "victim", waits + FIX, mounts=[str(gate)])
        first.call("ralph", "POST", "/submit", body=victim)
        again = restarted_while_busy(child, first, repo, gate, victim="victim")
        wanted = "goes on after the restart: the only worker is busy: 1 of 1"
        until(lambda: shown(again, "victim")["waits"] == wanted)
        assert shown(again, "victim")["status"] == "running"
        assert shown(again, "blocker")["waits"] is None
        again.call("ralph", "POST", "/tasks/victim/cancel")
        done = until_ended(again, "victim")
        assert (done["status"], done["iteration"]) == ("cancelled", 0)
        assert shown(again, "blocker")["status"] == "running", "it took its worker"


async def test_what_was_cancelled_while_queued_does_not_run_before_what_it_needs(
    tmp_path: Path, gate: Path
) -> None:
    repo = repository(tmp_path / "repo")
    async with stack(tmp_path / "home", workers=1) as nestor:
        ralph, once = nestor.ralph, {"max_iterations": 1}
        await ralph.submit(task(repo, FIX, task_id="dep", **once), ADMIN)
        assert (await ended_here(nestor, "dep")).success
        waits = f"while [ ! -e {gate}/open ]; do sleep 0.1; done"
        mounts = [str(gate)]
        busy = task(repo, waits, task_id="blocker", mounts=mounts, **once)
        await ralph.submit(busy, ADMIN)
        async with asyncio.timeout(60):
            while (await ralph.get("blocker")).status is not TaskStatus.RUNNING:
                await asyncio.sleep(0.05)
        needing = task(repo, FIX, task_id="b", dependencies=["dep"], **once)
        await ralph.submit(needing, ADMIN)
        await ralph.cancel("b")
        await ralph.rollback("dep", 0, by=ADMIN)
        await ralph.retry("dep", Further(iterations=1), by=ADMIN)
        again = await ralph.retry("b", Further(iterations=1), by=ADMIN)
        assert again.waits_for == ["dep"]
        (gate / "open").touch()
        done = await ended_here(nestor, "b")
        dep = await ralph.get("dep")
    assert done.success
    assert done.waits_for == []
    assert done.started_at is not None
    assert dep.ended_at is not None
    assert done.started_at >= dep.ended_at


async def test_a_task_of_another_version_ends_with_what_to_do(
    tmp_path: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, home = repository(tmp_path / "repo"), tmp_path / "home"
    agent = (
        "echo line >> log.txt; [ $(wc -l < log.txt) = 1 ] || "
        f"while [ ! -e {gate}/open ]; do sleep 0.1; done; "
        f"[ ! -e {gate}/open ] || {FIX}"
    )
    monkeypatch.setattr(dbos_engine, "LOOP_PROTOCOL", "before")
    async with stack(home) as nestor:
        spec = task(repo, agent, task_id="t", mounts=[str(gate)], max_iterations=3)
        await nestor.ralph.submit(spec, ADMIN)
        async with asyncio.timeout(60):
            while (await nestor.ralph.get("t")).iteration < 1:
                await asyncio.sleep(0.05)
    monkeypatch.undo()
    (gate / "open").touch()
    async with stack(home) as nestor:
        told = await ended_here(nestor, "t")
        assert (told.status, told.iteration) == (TaskStatus.FAILED, 1)
        assert "Another version of Nestor began it" in told.detail
        assert "nestor resume t" in told.detail
        await nestor.ralph.resume("t", Further(iterations=2), by=ADMIN)
        done = await ended_here(nestor, "t")
    assert done.success
    assert done.iteration == 2
