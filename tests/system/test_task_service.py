"""The task service on real parts: approval, isolation, and what it tells of all tasks."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError
from tests.servers.sqlite_lock import locked
from tests.system.workbench import ADMIN, FIXED, ended, git, repository, stack, task

from nestor.backends.agents import backends
from nestor.backends.agents.command import CommandAgent
from nestor.backends.git.workspaces import GitWorkspaces
from nestor.errors import Conflict, Forbidden, NotFound
from nestor.model.access import Principal
from nestor.model.health import HealthStatus
from nestor.model.task import Reason, TaskStatus
from nestor.ports.agent import AgentEnd
from nestor.ports.sandbox import SandboxResult
from nestor.ports.task_store import TaskFilter
from nestor.ralph import checking
from nestor.wiring import stack as wiring

HELD = {"require_approval": True, "test_command": None}
OTHER = Principal(key_id="other", scopes=frozenset({"approve", "submit"}))


async def test_of_two_who_answer_at_once_the_loser_is_told(tmp_path: Path) -> None:
    async with stack(tmp_path / "home") as nestor:
        await nestor.ralph.submit(task(None, "true", task_id="t", **HELD), ADMIN)
        # Both find the task waiting; neither can write yet.
        async with locked(tmp_path / "home" / "nestor.db"):
            answers = [
                asyncio.create_task(
                    nestor.ralph.approve("t", approved=False, note=None, principal=who)
                )
                for who in (ADMIN, OTHER)
            ]
            await asyncio.sleep(0.5)
        told = await asyncio.gather(*answers, return_exceptions=True)
        stored = await nestor.ralph.get("t")

    lost = [one for one in told if isinstance(one, BaseException)]
    assert [type(one) for one in lost] == [Conflict]
    assert stored.status is TaskStatus.REJECTED
    winner = ADMIN if isinstance(told[1], Conflict) else OTHER
    assert stored.approvals[0].decided_by == winner.key_id


async def test_an_answer_to_another_question_is_a_conflict(tmp_path: Path) -> None:
    async with stack(tmp_path / "home") as nestor:
        await nestor.ralph.submit(task(None, "true", task_id="t", **HELD), ADMIN)
        with pytest.raises(Conflict, match="'start'"):
            await nestor.ralph.approve(
                "t", approved=False, note=None, principal=OTHER, action="deploy"
            )
        assert (await nestor.ralph.get("t")).status is TaskStatus.AWAITING_APPROVAL
        done = await nestor.ralph.approve(
            "t", approved=False, note=None, principal=OTHER, action="start"
        )
    assert done.status is TaskStatus.REJECTED


async def test_a_task_that_waits_and_its_question_are_one_commit(
    tmp_path: Path,
) -> None:
    held = task(None, "true", task_id="t", **HELD)
    async with stack(tmp_path / "home") as nestor:
        async with locked(tmp_path / "home" / "nestor.db") as other:
            other.execute(
                "CREATE TRIGGER no_question BEFORE INSERT ON task_event "
                "BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
            other.commit()
        with pytest.raises(DBAPIError):
            await nestor.ralph.submit(held, ADMIN)
        with pytest.raises(NotFound):
            await nestor.ralph.get("t")
        async with locked(tmp_path / "home" / "nestor.db") as other:
            other.execute("DROP TRIGGER no_question")
            other.commit()
        stored = (await nestor.ralph.submit(held, ADMIN)).task
        (asked,) = await nestor.ralph.live("t", after=0)

    assert (asked.kind, asked.data["approval_id"]) == ("approval", "start")
    assert stored.reason is Reason.APPROVAL_PENDING
    assert stored.detail == stored.approvals[0].what
    log = tmp_path / "home" / "telemetry" / "unified-events.jsonl"
    assert log.read_text().count('"approval_requested"') == 1


async def test_a_key_ends_its_own_tasks_and_an_admin_ends_all(tmp_path: Path) -> None:
    async with stack(tmp_path / "home") as nestor:
        for name, who in (("a", ADMIN), ("b", OTHER), ("c", OTHER)):
            await nestor.ralph.submit(task(None, "true", task_id=name, **HELD), who)
        with pytest.raises(Forbidden):
            await nestor.ralph.cancel("a", by=OTHER)
        assert (await nestor.ralph.get("a")).status is TaskStatus.AWAITING_APPROVAL
        for name, who in (("a", ADMIN), ("b", OTHER), ("c", ADMIN)):
            ended = await nestor.ralph.cancel(name, by=who)
            assert ended.status is TaskStatus.CANCELLED


async def test_a_sandbox_that_cannot_isolate_is_unhealthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack(tmp_path / "home") as nestor:
        monkeypatch.setenv("PATH", str(tmp_path))
        found = {one.name: one for one in await nestor.ralph.dependencies()}

    assert found["sandbox"].status is HealthStatus.UNHEALTHY
    assert found["sandbox"].required
    assert "not installed" in found["sandbox"].message
    assert found["sandbox"].last_observed is not None


@pytest.mark.parametrize(
    ("sandbox", "status"),
    [("bubblewrap", HealthStatus.HEALTHY), ("none", HealthStatus.DEGRADED)],
)
async def test_a_sandbox_is_looked_at_once_in_a_while(
    tmp_path: Path, sandbox: str, status: HealthStatus
) -> None:
    async with stack(tmp_path / "home", sandbox=sandbox) as nestor:
        looks = [
            {one.name: one for one in await nestor.ralph.dependencies()}["sandbox"]
            for _ in range(2)
        ]

    assert looks[0].status is status
    assert looks[0].last_observed == looks[1].last_observed


async def test_more_tasks_than_a_list_holds_are_all_counted(tmp_path: Path) -> None:
    async with stack(tmp_path / "home") as nestor:
        for number in range(3):
            spec = task(None, "true", task_id=f"t{number}", **HELD)
            await nestor.ralph.submit(spec, ADMIN)
        newest, more = await nestor.ralph.newest(TaskFilter(), limit=2)
        whole, none = await nestor.ralph.newest(TaskFilter(), limit=3)
        totals = await nestor.ralph.totals()

    assert ([one.task_id for one in newest], more) == (["t2", "t1"], True)
    assert (len(whole), none) == (3, False)
    assert totals.by_status == {"awaiting_approval": 3}


async def test_what_an_iteration_left_is_delivered_when_the_next_one_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = repository(tmp_path / "repo")
    verify = checking.verify

    async def breaks(p: Any, task: Any, n: int, *more: Any) -> Any:
        if n == 2:
            raise ValueError("a fault nobody thought of")
        return await verify(p, task, n, *more)

    monkeypatch.setattr(checking, "verify", breaks)
    work = "if test -e half; then echo more > more; else echo work > half; fi"

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, work, task_id="t"))

    assert (done.status, done.branch) == (TaskStatus.FAILED, "nestor/t")
    assert "a fault nobody thought of" in done.detail
    assert git(repo, "show", "nestor/t:half") == "work\n"
    assert "more" not in git(repo, "ls-tree", "--name-only", "nestor/t").split()


async def test_a_task_that_breaks_ends_although_its_work_cannot_be_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = repository(tmp_path / "repo")

    async def refuses(*_: Any) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(GitWorkspaces, "deliver", refuses)

    async with stack(tmp_path / "home") as nestor:
        done = await ended(nestor, task(repo, f"printf '%s' '{FIXED}' > calc.py"))

    assert (done.status, done.branch) == (TaskStatus.FAILED, None)
    assert "not delivered: no space left" in done.detail


async def test_what_an_agent_printed_is_read_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Reads(CommandAgent):
        def read(self, result: SandboxResult) -> AgentEnd:
            seen.append(threading.current_thread())
            return super().read(result)

    put = {"command": Reads()}
    monkeypatch.setattr(
        wiring, "agent_backends", lambda folder=None: backends(folder) | put
    )
    async with stack(tmp_path / "home") as nestor:
        await ended(nestor, task(repository(tmp_path / "repo"), "true"))

    assert seen
    assert threading.main_thread() not in seen
