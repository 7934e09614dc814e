"""Resume, retry, rollback, fork, grants and the audit log over HTTP, MCP and the shell."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from tests.faces.whole import ADMIN_KEY, Whole, whole

from nestor.cli.main import app
from nestor.model.task import TaskStatus
from nestor.ports.task_store import TaskChange

TOOLS = ["submit_task", "task_status", "task_results", "cancel_task", "approve_task"]
COMMANDS = [
    *("cancel", "resume", "retry", "rollback", "fork", "approve", "grant", "audit"),
]
PLAIN: dict[str, Any] = {"task": "x", "backend": "command", "command": "true"}


@pytest.fixture
async def face(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole(tmp_path / "home") as found:
        yield found


async def post(face: Whole, path: str, body: Any, key: str = ADMIN_KEY) -> Any:
    return await face.call("ralph", "POST", path, key=key, json=body)


async def ended(face: Whole, task_id: str, **fields: Any) -> None:
    """A task that was submitted, and ended before it had a workspace."""
    done = await post(face, "/submit", {**PLAIN, "task_id": task_id, **fields})
    assert done.status == 202, done.body
    store = face.nestor.ralph._store
    await store.change(task_id, TaskChange(status=TaskStatus.FAILED))


async def test_each_call_says_what_it_did_or_why_not(face: Whole) -> None:
    await ended(face, "t")
    resumed = await post(face, "/tasks/t/resume", {"iterations": 3, "note": "n"})
    assert resumed.status == 202, resumed.body
    view = resumed.json
    assert (view["status"], view["attempt"], view["max_iterations"]) == ("queued", 2, 3)
    assert (view["forked_from"], view["rolled_back_to"]) == (None, None)
    assert (view["questions"], view["grants"], view["waits_for"]) == ([], [], [])
    assert len(view["checks_digest"]) == 64
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        *(("resume", {}), ("retry", {}), ("rollback", {"iteration": 1})),
        *(("fork", {"iteration": 0}), ("approve", {"approved": True})),
    )
    for path, body in calls:
        refused = await post(face, f"/tasks/t/{path}", body)
        assert refused.status == 409, (path, refused.body)
        assert "task t" in refused.json["detail"]
    mistakes: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("resume", {"iteration": 1}, "iteration"),
        ("retry", {"budget": {"eur": 1}}, "budget.eur"),
        ("rollback", {}, "iteration"),
        ("rollback", {"iteration": 0, "to": 1}, "to"),
        ("fork", {"iteration": 0, "id": "f"}, "id"),
        ("grant", {"host": "a.b:1", "path": "/x"}, "host"),
        ("grant", {"hosts": "a.b:1"}, "hosts"),
    )
    for path, body, field in mistakes:
        wrong = await post(face, f"/tasks/t/{path}", body)
        assert wrong.status == 400, (path, wrong.body)
        assert [one["field"] for one in wrong.json["errors"]] == [field]
    allowed = await post(face, "/tasks/t/grant", {"host": "pypi.org:443"})
    assert [one["subject"] for one in allowed.json["grants"]] == ["pypi.org:443"]
    submits = await face.key("submit")
    assert (await post(face, "/tasks/t/grant", {"path": "/x"}, submits)).status == 403

    log = await face.call("ralph", "GET", "/audit?limit=1")
    assert [one["action"] for one in log.json["entries"]] == ["resume"]
    assert log.json["entries"][0]["data"]["note"] == "n"
    rest = await face.call("ralph", "GET", f"/audit?after={log.json['next']}")
    assert [one["action"] for one in rest.json["entries"]] == ["grant"]
    assert rest.json["next"] is None
    state = await face.call("ralph", "GET", "/audit/verify")
    assert (state.json["entries"], state.json["broken_at"]) == (2, None)
    for path in ("/audit", "/audit/verify"):
        key = await face.key("read", "submit", "approve")
        assert (await face.call("ralph", "GET", path, key=key)).status == 403


async def tool(face: Whole, key: str, name: str, **given: Any) -> Any:
    url = f"http://127.0.0.1:{face.ports['ralph']}/mcp"
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(headers=headers, trust_env=False) as session:
        transport = streamable_http_client(url, http_client=session)
        async with Client(transport) as client:
            if name == "":
                return [one.name for one in (await client.list_tools()).tools]
            return await client.call_tool(name, given)


async def test_the_tools_submit_show_answer_and_end(face: Whole) -> None:
    mine, other = await face.key("submit"), await face.key("approve")
    assert await tool(face, mine, "") == TOOLS
    made = await tool(face, mine, "submit_task", **PLAIN, task_id="t")
    assert made.structured_content["status"] == "awaiting_approval"
    seen = await tool(face, other, "task_status", task_id="t")
    assert [one["id"] for one in seen.structured_content["questions"]] == ["start"]
    for key, name, given in (
        (mine, "approve_task", {"approved": True}),
        (other, "cancel_task", {}),
        (await face.key("submit"), "task_status", {}),
        (other, "approve_task", {"approved": True, "action": "deploy"}),
    ):
        refused = await tool(face, key, name, task_id="t", **given)
        assert refused.is_error, (name, given)
    done = await tool(face, other, "approve_task", task_id="t", approved=True)
    assert done.structured_content["status"] == "queued"
    ended = await tool(face, mine, "cancel_task", task_id="t")
    assert ended.structured_content["status"] == "cancelled"
    result = await tool(face, mine, "task_results", task_id="t")
    assert result.structured_content["success"] is False
    assert result.structured_content["reason"] == "cancelled"


def shell(face: Whole, home: Path, *args: str) -> tuple[int, str]:
    env = {
        "PATH": "/usr/bin:/bin",
        "NESTOR_HOME": str(home),
        "NESTOR_API_KEY": ADMIN_KEY,
        "NESTOR_RALPH_PORT": str(face.ports["ralph"]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "nestor.cli", *args],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


async def test_the_shell_says_the_same(face: Whole, tmp_path: Path) -> None:
    async def run(*args: str) -> tuple[int, str]:
        return await asyncio.to_thread(shell, face, tmp_path / "none", *args)

    await ended(face, "t", budget={"usd": "1.00"})
    code, said = await run("resume", "t", "--budget-usd", "2.50", "--json")
    assert code == 0, said
    assert json.loads(said)["budget"]["usd"] == "2.50"
    code, said = await run("retry", "t")
    assert (code, "cannot retry task t" in said) == (1, True)
    code, said = await run("grant", "t", "--host", "pypi.org:443")
    assert (code, said) == (0, "task t: queued\n")
    assert (await run("cancel", "t"))[1] == "task t: cancelled\n"
    code, said = await run("audit", "--json")
    found = [one["action"] for one in json.loads(said)["entries"]]
    assert found == ["resume", "grant", "cancel"]
    code, said = await run("audit", "--verify")
    assert (code, said.startswith("3 entries")) == (0, True)


def test_every_command_shows_how_it_is_used() -> None:
    commands = {
        one.name or (one.callback and one.callback.__name__): one
        for one in app.registered_commands
    }
    for name in COMMANDS:
        assert f"nestor {name}" in str(commands[name].epilog), name
