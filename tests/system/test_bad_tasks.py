"""What cannot be a task: the right status, the field named, nothing half-made."""

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.child import Child, until_ended
from tests.system.workbench import FIXED, git, repository

GOOD = {"task": "do it", "backend": "command", "command": "true"}


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with Child(tmp_path_factory.mktemp("stack") / "home") as child:
        child.start()
        yield child


def ask(
    child: Child,
    method: str,
    path: str,
    body: bytes | dict[str, Any] | None = None,
    **headers: str,
) -> tuple[int, dict[str, Any]]:
    """One raw call; no content type unless a test gives one."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", child.port("ralph"), timeout=30
    )
    key = (child.home / "api-key").read_text().strip()
    sent = json.dumps(body).encode() if isinstance(body, dict) else body
    try:
        connection.request(
            method, path, sent, {"Authorization": f"Bearer {key}", **headers}
        )
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def tasks(child: Child) -> list[str]:
    return [task["task_id"] for task in ask(child, "GET", "/tasks")[1]["tasks"]]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**GOOD, "colour": "red"}, "colour"),
        ({**GOOD, "checks": [{"run": "a", "colour": 1}]}, "checks.0.colour"),
        ({**GOOD, "max_iterations": "three"}, "max_iterations"),
        ({**GOOD, "files": "one.py"}, "files"),
        ({**GOOD, "budget": {"usd": "much"}}, "budget.usd"),
        ({**GOOD, "backend": "nobody"}, "backend"),
        ({"backend": "command", "command": "true"}, "task"),
        ({**GOOD, "priority": "P9"}, "priority"),
        ({**GOOD, "task_id": "a/b"}, "task_id"),
        ({**GOOD, "workspace": {"repo": "/no/such/folder"}}, "workspace.repo"),
        (
            {**GOOD, "workspace": {"repo": "https://example.com/x.git"}},
            "workspace.repo",
        ),
        ({**GOOD, "workspace": {"repo": "ext::sh -c x"}}, "workspace.repo"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_field_is_named(child: Child, body: dict[str, Any], field: str) -> None:
    before = tasks(child)

    status, problem = ask(child, "POST", "/submit", body)

    assert status == 400, problem
    assert field in [error["field"] for error in problem["errors"]]
    assert tasks(child) == before


def test_a_folder_without_git_and_a_dirty_one_are_refused(
    child: Child, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    dirty = repository(tmp_path / "dirty")
    (dirty / "calc.py").write_text(FIXED)
    for repo, words in ((plain, "git"), (dirty, "include_dirty")):
        body = {**GOOD, "workspace": {"repo": str(repo)}}
        status, problem = ask(child, "POST", "/submit", body)
        assert (status, problem["errors"][0]["field"]) == (400, "workspace.repo")
        assert words in problem["detail"]
    assert (dirty / "calc.py").read_text() == FIXED

    included = {**GOOD, "workspace": {"repo": str(dirty)}, "include_dirty": True}
    assert ask(child, "POST", "/submit", included)[0] == 202


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"[" * 200_000, 400),
        (b'{"task": "a", "task": "b"}', 400),
        (b'{"max_iterations": ' + b"9" * 5000 + b"}", 400),
        (json.dumps({"task": "x" * 10_000_000}).encode(), 413),
    ],
    ids=["empty", "torn", "list", "bytes", "deep", "twice", "digits", "10 MB"],
)
def test_a_body_that_is_none_is_refused(child: Child, sent: bytes, status: int) -> None:
    before = tasks(child)

    told, problem = ask(child, "POST", "/submit", sent)

    assert told == status
    assert problem["trace_id"]
    assert tasks(child) == before


def test_an_id_is_for_one_body(child: Child) -> None:
    body = {**GOOD, "task_id": "same"}

    assert ask(child, "POST", "/submit", body)[0] == 202
    status, known = ask(child, "POST", "/tasks", body)
    assert (status, known["task_id"]) == (200, "same")
    status, problem = ask(child, "POST", "/submit", {**body, "task": "other"})
    assert status == 409
    assert "same" in problem["detail"]
    assert ask(child, "GET", "/tasks/same")[1]["description"] == "do it"


def test_json_is_read_whatever_its_content_type(child: Child) -> None:
    form = "application/x-www-form-urlencoded"

    status, _ = ask(child, "POST", "/submit", GOOD, **{"Content-Type": form})

    assert status == 202


def test_what_is_not_there_is_not_found(child: Child) -> None:
    for path in ("/tasks/none", "/tasks/none/iterations", "/tasks/none/events"):
        assert ask(child, "GET", path)[0] == 404, path
    assert ask(child, "POST", "/tasks/none/cancel")[0] == 404
    status, problem = ask(child, "GET", "/status?status=nothing")
    assert (status, problem["errors"][0]["field"]) == (400, "status")


def test_approval_needs_a_body_and_then_the_task_runs(
    child: Child, tmp_path: Path
) -> None:
    repo = repository(tmp_path / "repo", {"readme": ""})
    body = {
        **GOOD,
        "task_id": "held",
        "require_approval": True,
        "command": "echo y > x",
        "workspace": {"repo": str(repo)},
        "test_command": "grep -q y x",
    }
    assert ask(child, "POST", "/submit", body)[1]["status"] == "awaiting_approval"
    time.sleep(0.5)
    assert ask(child, "GET", "/tasks/held")[1]["iteration"] == 0
    assert ask(child, "POST", "/tasks/held/approve")[0] == 400
    assert ask(child, "POST", "/tasks/held/approve?approved=true", b"")[0] == 400
    assert ask(child, "GET", "/tasks/held")[1]["status"] == "awaiting_approval"

    assert ask(child, "POST", "/tasks/held/approve", {"approved": True})[0] == 202

    stack = child.stack()
    assert stack is not None
    assert until_ended(stack, "held")["status"] == "verified"
    assert git(repo, "show", "nestor/held:x") == "y\n"
    assert ask(child, "POST", "/tasks/held/approve", {"approved": False})[0] == 409


def test_a_refused_task_never_runs(child: Child) -> None:
    body = {**GOOD, "task_id": "refused", "require_approval": True}
    ask(child, "POST", "/submit", body)

    assert ask(child, "POST", "/tasks/refused/approve", {"approved": False})[0] == 202

    time.sleep(0.5)
    said = ask(child, "GET", "/tasks/refused")[1]
    assert (said["status"], said["success"]) == ("rejected", False)
    assert said["iteration"] == 0


def test_a_cancelled_task_that_waits_never_runs(child: Child) -> None:
    body = {**GOOD, "task_id": "waits", "require_approval": True}
    ask(child, "POST", "/submit", body)

    assert ask(child, "POST", "/tasks/waits/cancel")[0] == 202
    assert ask(child, "GET", "/tasks/waits")[1]["status"] == "cancelled"
    assert ask(child, "POST", "/tasks/waits/approve", {"approved": True})[0] == 409
