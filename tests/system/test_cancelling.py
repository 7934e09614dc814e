"""A cancel is looked for before each piece of work, and decides until the end is decided."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.system.workbench import ADMIN, FIXED, git, processes, repository, stack, task
from tests.system.workbench import until_ended as ended_here

from nestor.aidb.service import Aidb
from nestor.coordinator.service import Coordinator
from nestor.model.task import TaskStatus
from nestor.ralph import checking, recording
from nestor.wiring import Nestor

FIX = f"printf '%s' '{FIXED}' > calc.py"


class Slow:
    """A dependency that answers long after everybody has lost patience."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()

    async def __call__(self, *_: Any) -> Any:
        self.asked.set()
        try:
            await asyncio.sleep(600)
        finally:
            self.gone.set()


@pytest.mark.parametrize("step", ["context", "guidance"])
async def test_a_cancel_ends_the_wait_for_advice_and_no_agent_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    repo, slow = repository(tmp_path / "repo"), Slow()
    if step == "context":
        monkeypatch.setattr(Aidb, "get_context", slow)
    else:
        monkeypatch.setattr(Coordinator, "route", slow)
        monkeypatch.setattr(Coordinator, "has_models", lambda _: True)
    async with stack(tmp_path / "home") as nestor:
        await nestor.ralph.submit(task(repo, FIX, task_id="t", use_hybrid=True), ADMIN)
        async with asyncio.timeout(60):
            await slow.asked.wait()
        await nestor.ralph.cancel("t")
        done = await ended_here(nestor, "t")
        assert slow.gone.is_set()
        told = await nestor.ralph.live("t", after=0)
    assert (done.status, done.iteration, done.branch) == ("cancelled", 0, None)
    steps = [one.data.get("step") for one in told if one.kind == "iteration"]
    assert "agent" not in steps
    assert "nestor/t" not in git(repo, "branch", "--list", "nestor/*")


async def cancelled_as(
    nestor: Nestor, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """Cancel the task at the very moment in which a stage of it begins."""
    stage: Callable[..., Any] = getattr(module, name)

    async def begun(*given: Any) -> Any:
        await nestor.ralph.cancel("t")
        return await stage(*given)

    monkeypatch.setattr(module, name, begun)


@pytest.mark.parametrize(
    ("module", "name", "iteration"),
    [(checking, "verify", 0), (recording, "record", 1)],
)
async def test_a_cancel_before_the_end_is_decided_decides_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    iteration: int,
) -> None:
    repo = repository(tmp_path / "repo")
    ended = Counter[str]()
    async with stack(tmp_path / "home") as nestor:
        sandbox: Any = nestor.ralph._sandbox
        kill = sandbox.kill

        async def noted(run_dir: Path) -> None:
            ended[run_dir.name] += 1
            await kill(run_dir)

        monkeypatch.setattr(sandbox, "kill", noted)
        await cancelled_as(nestor, monkeypatch, module, name)
        await nestor.ralph.submit(task(repo, FIX, task_id="t"), ADMIN)
        done = await ended_here(nestor, "t")
    assert done.status is TaskStatus.CANCELLED
    assert done.iteration == iteration
    assert not processes(str(tmp_path / "home"))
    # Before it ran, and before its end was told: a process that died may have left it.
    assert ended["agent-1"] == 2
