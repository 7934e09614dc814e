"""An agent asks a person: the answer holds for that and once, and silence parks the task."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.servers.scripted_model import Rule, ScriptedModel
from tests.system.agent_stack import agent_stack
from tests.system.child import Child, until_ended
from tests.system.workbench import (
    ADMIN,
    CHECK,
    NOBODY,
    ended,
    git,
    processes,
    repository,
    task,
)
from tests.system.workbench import (
    stack as stack_here,
)
from tests.system.workbench import (
    until_ended as ended_here,
)

from nestor.backends.agents.builtin import BuiltinAgent
from nestor.cli.client import Stack
from nestor.model.task import (
    FINAL_STATUSES,
    ApprovalKind,
    SandboxSpec,
    Task,
    TaskSpec,
    TaskStatus,
    WorkspaceSpec,
)
from nestor.ports.sandbox import Ask, SandboxResult
from nestor.ralph import acting
from nestor.ralph.asking import Asking, put
from nestor.settings import Settings
from nestor.wiring import Nestor, running

MEND = "git push 2>/dev/null; echo pushed >> pushes; sed -i 's/a - b/a + b/' calc.py"
"""Asked about because it pushes; what makes the checks pass is in the same line."""
RULES = [
    Rule(
        when="You may run this once",
        tool_calls=[{"name": "bash", "arguments": {"command": MEND}}],
    ),
    Rule(when="# Task", tool_calls=[{"name": "bash", "arguments": {"command": MEND}}]),
    Rule(tool_calls=[{"name": "done", "arguments": {"summary": "mended"}}]),
]


def spec(repo: Path, task_id: str, **more: Any) -> TaskSpec:
    fields: dict[str, Any] = {
        "task_id": task_id,
        "task": "Make the tests pass, and push.",
        "backend": "builtin",
        "use_hybrid": False,
        "workspace": WorkspaceSpec(repo=str(repo)),
        "test_command": CHECK,
        "max_iterations": 3,
        **more,
    }
    return TaskSpec(**fields)


async def until(nestor: Nestor, task_id: str, fits: Callable[[Task], object]) -> Task:
    async with asyncio.timeout(60):
        while not fits(found := await nestor.ralph.get(task_id)):
            await asyncio.sleep(0.05)
    return found


@pytest.mark.heavy
async def test_a_person_approves_by_the_cli_and_it_runs_once(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    async with ScriptedModel(RULES) as model:
        with Child(
            tmp_path / "home",
            remote_base_url=model.base_url,
            remote_model="scripted-model",
        ) as child:
            stack = await asyncio.to_thread(child.start)
            await asyncio.to_thread(_approved_by_cli, child, stack, repo)
            events = child.events()
    assert git(repo, "show", "nestor/asks:pushes") == "pushed\n"
    told = [e["event_type"] for e in events if e.get("task_id") == "asks"]
    assert told.count("approval_requested") == 1
    assert told.count("approval_decided") == 1


def _approved_by_cli(child: Child, stack: Stack, repo: Path) -> None:
    body = {
        "task_id": "asks",
        "task": "Make the tests pass, and push.",
        "backend": "builtin",
        "use_hybrid": False,
        "workspace": {"repo": str(repo)},
        "test_command": CHECK,
    }
    stack.call("ralph", "POST", "/submit", body=body)
    asked = _until_asked(stack)
    assert (asked["kind"], asked["subject"]) == ("command", MEND)
    done = subprocess.run(
        [sys.executable, "-m", "nestor.cli", "approve", "asks"],
        env=Settings.environment_for({"home": child.home}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = until_ended(stack, "asks")
    assert (ended["status"], ended["iteration"]) == ("verified", 1), ended
    (answered,) = ended["approvals"]
    assert answered["approved"] is True
    assert answered["used_at"] is not None


def _until_asked(stack: Stack) -> dict[str, Any]:

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        task = stack.call("ralph", "GET", "/tasks/asks")
        assert task["status"] not in FINAL_STATUSES, task
        for one in task["approvals"]:
            if one["approved"] is None:
                assert task["status"] == "running"
                return dict(one)
        time.sleep(0.1)
    raise AssertionError(task)


async def test_nobody_answers_parks_it_and_an_answer_lets_it_go_on(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo")
    home = tmp_path / "home"
    async with agent_stack(home, RULES, approval_wait_s=1.0) as (nestor, model):
        await nestor.ralph.submit(spec(repo, "parks"), ADMIN)
        parked = await until(
            nestor, "parks", lambda t: t.status is TaskStatus.AWAITING_APPROVAL
        )
        assert MEND[:8] in parked.detail
        (question,) = parked.asked
        assert (question.kind, question.subject) == (ApprovalKind.COMMAND, MEND)
        (first,) = await nestor.ralph.iterations("parks")
        assert first.outcome == "blocked"
        assert first.refused == [f"command {MEND}: nobody has answered"]
        assert not await _left(home)
        calls = len(model.chats)
        await asyncio.sleep(1.0)
        assert len(model.chats) == calls

        await nestor.ralph.approve("parks", approved=True, note=None, principal=ADMIN)
        done = await ended_here(nestor, "parks")
        assert (done.status, done.iteration) == (TaskStatus.VERIFIED, 2), done.detail
        assert git(repo, "show", "nestor/parks:pushes") == "pushed\n"
        # A second waits for a person did not count as work.
        told = [c.body["messages"][1]["content"] for c in model.chats]
        assert f"You may run this once, exactly so: {MEND}" in told[-1]


async def test_a_refusal_is_told_and_the_command_never_runs(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    async with agent_stack(tmp_path / "home", RULES, approval_wait_s=30.0) as (
        nestor,
        model,
    ):
        await nestor.ralph.submit(spec(repo, "no", max_iterations=2), ADMIN)
        await until(nestor, "no", lambda t: t.asked)
        await nestor.ralph.approve(
            "no", approved=False, note="not on a Friday", principal=ADMIN
        )
        done = await ended_here(nestor, "no")
        assert done.status is TaskStatus.EXHAUSTED
        iterations = await nestor.ralph.iterations("no")
    assert len(done.approvals) == 1, "the second time the answer was known"
    assert all("a person refused it" in i.refused[0] for i in iterations)
    assert git(repo, "diff", "--stat", "main", "--", "pushes") == ""
    told = [m["content"] for m in model.chats[-1].body["messages"]]
    assert any("not on a Friday" in text for text in told)
    assert "A person refused: command" in told[1]


async def _left(home: Path) -> list[int]:
    async with asyncio.timeout(10):
        while found := processes(str(home / "tasks")):
            await asyncio.sleep(0.1)
    return found


async def test_what_people_grant_holds_and_what_the_sandbox_refuses_is_asked_for(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "data").write_text("granted\n")
    fetch = "for one in http://plain.example/ https://pypi.example/; do curl -sS -m 5 $one; done"
    look = f"cat {shared}/data >> got; {fetch}; true"
    values = Settings(home=tmp_path / "home", approval_wait_s=0.0)
    async with running(values, coordinator_url=NOBODY) as nestor:
        given = task(repo, look, task_id="grants", test_command="grep -q never got")
        await nestor.ralph.submit(given, ADMIN)
        p = nestor.ralph._loop._parts
        path = Ask(kind="path", subject=str(shared))
        secret = Ask(kind="path", subject=str(tmp_path / "home" / "api-key"))
        for question in (await put(p, "grants", 1, [path, secret, path])).asked:
            await nestor.ralph.approve(
                "grants",
                approved=True,
                note=None,
                principal=ADMIN,
                action=question.id,
            )
        await nestor.ralph.start()
        done = await ended_here(nestor, "grants")
        first, second = await nestor.ralph.iterations("grants")
    assert git(repo, "show", "nestor/grants:got") == "granted\n" * 2
    (asked,) = done.asked
    assert (asked.kind, asked.subject) == (ApprovalKind.HOST, "pypi.example:443")
    assert asked.iteration == 1
    for iteration in (first, second):
        assert "host pypi.example:443" in iteration.refused
        # Nobody is asked for what a yes cannot open.
        plain = "plain http to plain.example:80: only https:// can be granted"
        assert plain in iteration.refused
        # A person's yes opens no place that no task may see.
        assert any("api-key" in why for why in iteration.refused), iteration.refused


async def test_a_limit_that_ended_the_agent_is_named(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    greedy = "python3 -c 'import time; x = b\"x\" * (600 << 20); time.sleep(20)'"
    async with stack_here(tmp_path / "home") as nestor:
        done = await ended(
            nestor,
            task(
                repo,
                greedy,
                task_id="greedy",
                max_iterations=1,
                sandbox=SandboxSpec(memory_bytes=200 << 20),
            ),
        )
        (iteration,) = await nestor.ralph.iterations("greedy")
    said = "killed: it used more than its memory limit of 200 MiB"
    assert (iteration.outcome, done.status) == ("agent_error", TaskStatus.EXHAUSTED)
    assert iteration.output_tail.startswith(said)
    assert said in iteration.refused


async def test_time_that_a_person_took_is_not_counted_as_work(tmp_path: Path) -> None:
    values = Settings(home=tmp_path / "home", approval_wait_s=1.0)
    async with running(values, coordinator_url=NOBODY) as nestor:
        given = TaskSpec(task_id="waits", task="Tidy up.", backend="builtin")
        made = await nestor.ralph.submit(given, ADMIN)
        asking = Asking(nestor.ralph._loop._parts, made.task, 1)
        assert (await asking(Ask(kind="command", subject=MEND))).approved is None
        ran = SandboxResult(exit_code=1, output="", duration_s=61.0, sandboxed=True)
        said = BuiltinAgent().read(ran)
        counted = acting._agent_run(said, ran, made.task, refused=[], asking=asking)
    assert 1.0 <= asking.waited_s < 30
    assert counted.duration_s == pytest.approx(61.0 - asking.waited_s)
