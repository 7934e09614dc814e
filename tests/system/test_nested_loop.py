"""One task through all layers: real ports, a real llama.cpp, a scripted remote model."""

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.servers.scripted_model import Rule, ScriptedModel
from tests.servers.tiny_gguf import make_tiny_gguf
from tests.system.child import Child, until_ended
from tests.system.workbench import CHECK, FIXED, git, repository

from nestor.cli.client import Stack
from nestor.errors import NestorError

pytestmark = pytest.mark.heavy

NOTE = """# Calculator

## Addition

The function add returns the sum of its two arguments, so add(2, 2) is 4.
"""
SCRIPT = [
    Rule(
        when="In at most five sentences",
        reply="Look at the operator in calc.py.",
        usage={"prompt_tokens": 100, "completion_tokens": 10},
    ),
    Rule(
        when="not done",
        tool_calls=[
            {"name": "write_file", "arguments": {"path": "calc.py", "content": FIXED}}
        ],
        usage={"prompt_tokens": 200, "completion_tokens": 20},
    ),
    Rule(
        anywhere="not done",
        tool_calls=[{"name": "done", "arguments": {"summary": "add adds now"}}],
        usage={"prompt_tokens": 300, "completion_tokens": 30},
    ),
]


async def test_a_task_goes_through_all_layers(tmp_path: Path) -> None:
    """Iteration 1 is the random local model's: it talks, twice, which is taken for a claim.

    The claim is blocked; iteration 2 is escalated to the scripted remote model.
    """
    repo = repository(tmp_path / "repo")
    gguf = tmp_path / "tiny.gguf"
    await asyncio.to_thread(make_tiny_gguf, gguf)
    key = tmp_path / "key"
    key.write_text("sk-remote-canary-1234567890")
    key.chmod(0o600)
    async with ScriptedModel(SCRIPT, api_key="sk-remote-canary-1234567890") as remote:
        with Child(
            tmp_path / "home",
            local_model=gguf,
            remote_base_url=remote.base_url,
            remote_model="scripted-model",
            remote_api_key_file=key,
            remote_price_input="10",
            remote_price_output="20",
        ) as child:
            stack = await asyncio.to_thread(child.start)
            await asyncio.to_thread(_through, stack, repo)
            events = await asyncio.to_thread(_events, child)
    _check_events(events)
    _check_secrets(tmp_path)
    assert git(repo, "show", "nestor/nested:calc.py") == FIXED


def _through(stack: Stack, repo: Path) -> None:
    _until_the_local_model_answers(stack)
    document = {"project": "calc", "path": "docs/calc.md", "content": NOTE}
    stack.call("aidb", "POST", "/documents", body=document)
    stack.call(
        "ralph",
        "POST",
        "/submit",
        body={
            "task_id": "nested",
            "task": "The function add of the calculator returns a wrong sum. Mend it.",
            "backend": "builtin",
            "workspace": {"repo": str(repo)},
            "test_command": CHECK,
            "max_iterations": 3,
        },
    )
    done = until_ended(stack, "nested")
    assert (done["status"], done["success"]) == ("verified", True), done
    said: dict[str, Any] = stack.call("ralph", "GET", "/tasks/nested/iterations")
    first, second = said["iterations"]
    assert first["blocked_reason"] == "failing: tests"
    assert first["context_items"][0]["source"].startswith("calc/docs/calc.md")
    assert (first["route"], second["route"]) == ("local", "remote")
    (base,), (last,) = said["base"], second["verdicts"]
    assert (base["phase"], base["passed"], base["runs"]) == ("base", False, 2)
    assert (last["phase"], last["passed"], last["runs"]) == ("after", True, 2)
    assert base["flaky"] is last["flaky"] is False
    calls = said["model_calls"]
    assert {call["side"] for call in calls if call["iteration"] == 1} == {"local"}
    remote_calls = [call for call in calls if call["iteration"] == 2]
    assert {call["side"] for call in remote_calls} == {"remote"}
    # 600 tokens in at 10 USD and 60 out at 20 USD a million.
    assert sum(float(call["cost_usd"]) for call in remote_calls) == pytest.approx(
        0.0072
    )
    (result,) = stack.call("ralph", "GET", "/results")["results"]
    assert (result["task_id"], result["iterations"]) == ("nested", 2)
    assert result["cost_usd"] == "0.0072"
    assert len(result["checks_digest"]) == len("f" * 64)
    assert result["checks_digest"] == done["checks_digest"]
    metrics: str = stack.call("ralph", "GET", "/metrics")
    assert 'nestor_tasks_total{reason="checks_passed",status="verified"} 1.0' in metrics


def _until_the_local_model_answers(stack: Stack) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            body = {"query": "hello", "mode": "local", "context": [], "max_tokens": 4}
            stack.call("coordinator", "POST", "/route", body=body)
        except NestorError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        else:
            return


def _events(child: Child) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 10
    while True:
        told = [event for event in child.events() if event.get("task_id") == "nested"]
        if any(event["event_type"] == "task_completed" for event in told):
            return told
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _check_events(events: list[dict[str, Any]]) -> None:
    assert len({event["trace_id"] for event in events}) == 1
    assert len({event["id"] for event in events}) == len(events)
    kinds = Counter(event["event_type"] for event in events)
    # Once a task, once an iteration (two), once a model call.
    assert kinds["task_started"] == kinds["task_completed"] == 1
    assert kinds["exit_blocked"] == 1
    assert kinds["task_iteration"] == kinds["context_retrieved"] == 2
    assert kinds["query_routed"] == 2
    # An attempt that came to nothing (a busy machine) is told too, as one of another call.
    called = [one for one in events if one["event_type"] == "model_called"]
    assert len([one for one in called if one["data"]["attempt_of"] is None]) == 6
    assert not any(
        one["data"]["ok"] for one in called if one["data"]["attempt_of"] is not None
    )
    assert {event["source"] for event in events} == {"ralph", "aidb", "coordinator"}
    completed = next(e for e in events if e["event_type"] == "task_completed")
    assert completed["data"] == {
        "status": "verified",
        "reason": "checks_passed",
        "iterations": 2,
        "success": True,
    }


def _check_secrets(folder: Path) -> None:
    """The provider's key stands in no file but the one it came from."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "key":
            assert b"sk-remote-canary" not in path.read_bytes(), path
