"""The live stream of a task over HTTP: as it happens, resumed, and over a second attempt."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from tests.faces.fake_stack import Cli
from tests.faces.whole import ADMIN_KEY, Whole, whole

SAYS = r"""
printf 'first\npassword=hunter2hunter2\n'
while [ ! -e go ]; do sleep 0.05; done
printf 'second\n'
"""
WATCHED = {
    "task_id": "t",
    "task": "talk",
    "backend": "command",
    "command": SAYS,
    "checks": [{"run": "test -e go"}],
    "max_iterations": 1,
}
Said = tuple[int, str, dict[str, Any]]


async def told(world: Whole, task_id: str, after: int = 0) -> AsyncIterator[Said]:
    """Events of a stream until the stack closes it."""
    url = f"http://127.0.0.1:{world.ports['ralph']}/tasks/{task_id}/events"
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Last-Event-ID": str(after)}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(url) as reply,
    ):
        number, kind = 0, ""
        async for raw in reply.content:
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            if name == "id":
                number = int(value)
            elif name == "event":
                kind = value
            elif name == "data":
                yield number, kind, msgspec.json.decode(value)


async def test_output_is_told_while_the_agent_runs_and_the_stream_resumes(
    tmp_path: Path,
) -> None:
    async with whole(tmp_path / "home", works=True) as world, asyncio.timeout(60):
        await world.call("ralph", "POST", "/tasks", json=WATCHED)
        seen = []
        async for event in told(world, "t"):
            seen.append(event)
            if event[1] == "output" and "first" in event[2]["text"]:
                assert "hunter2" not in event[2]["text"]
                break
        status = await world.call("ralph", "GET", "/tasks/t")
        assert status.json["status"] == "running"
        (tmp_path / "home" / "tasks" / "t" / "workspace" / "go").touch()
        rest = [event async for event in told(world, "t", after=seen[-1][0])]

    numbers = [number for number, _, _ in seen + rest]
    assert numbers == list(range(1, len(numbers) + 1)), "none missed, none twice"
    outputs = [data for _, kind, data in seen + rest if kind == "output"]
    assert "".join(one["text"] for one in outputs).count("second") == 1
    assert {one["n"] for one in outputs} == {1}
    assert {"task", "iteration", "verdict"} <= {kind for _, kind, _ in seen + rest}
    assert [kind for _, kind, _ in rest].count("end") == 1
    assert rest[-1][1] == "end"


async def test_an_attempt_after_the_end_is_in_the_same_stream(tmp_path: Path) -> None:
    never = {**WATCHED, "command": "echo tried", "checks": [{"run": "false"}]}
    async with whole(tmp_path / "home", works=True) as world, asyncio.timeout(90):
        await world.call("ralph", "POST", "/tasks", json=never)
        first = [event async for event in told(world, "t")]
        again = await world.call("ralph", "POST", "/tasks/t/retry", json={})
        assert again.status == 202, again.body
        # From the beginning: the first end is not the last.
        both = [event async for event in told(world, "t")]

    assert first[-1][1] == "end"
    assert both[: len(first)] == first
    ends = [number for number, kind, _ in both if kind == "end"]
    assert len(ends) == 2
    assert ends[-1] == both[-1][0] == len(both)


async def test_logs_show_all_that_was_told_and_what_a_check_printed(
    tmp_path: Path,
) -> None:
    home = tmp_path / "cli"
    home.mkdir()
    checked = {"run": "echo not so; test -e never"}
    async with whole(tmp_path / "home", works=True) as world, asyncio.timeout(90):
        run = {"pid": os.getpid(), "ports": world.ports, "started_at": ""}
        (home / "run.json").write_text(json.dumps(run))
        cli = Cli(home, tmp_path, {"NESTOR_API_KEY": ADMIN_KEY})
        await world.call(
            "ralph", "POST", "/tasks", json={**WATCHED, "checks": [checked]}
        )
        async for _, kind, _ in told(world, "t"):
            if kind == "output":
                break
        # Of a stream that stays open it shows what there is.
        now = await asyncio.to_thread(cli, "logs", "t")
        (tmp_path / "home" / "tasks" / "t" / "workspace" / "go").touch()
        async for _ in told(world, "t"):
            pass
        ended = await asyncio.to_thread(cli, "logs", "t", "--iteration", "1")

    first = ["iteration 1", "  the agent printed", "    | first"]
    assert now.stdout.splitlines()[:3] == first, now.stderr
    assert now.stdout.splitlines()[-1] == "task t goes on: nestor watch t"
    assert ended.stdout.splitlines() == [
        f"{first[0]}: changed",
        *first[1:],
        "    | password=[redacted]",
        "    | second",
        "  check check-1 failed (exit 1)",
        "    | not so",
    ]
