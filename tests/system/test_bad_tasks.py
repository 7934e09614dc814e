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
    *,
    key: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """One raw call; no content type unless a test gives one."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", child.port("ralph"), timeout=30
    )
    key = key or (child.home / "api-key").read_text().strip()
    sent = json.dumps(body).encode() if isinstance(body, dict) else body
    try:
        connection.request(
            method, path, sent, {"Authorization": f"Bearer {key}", **(headers or {})}
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
        *(
            ({**GOOD, "budget": {"usd": no}}, "budget.usd")
            for no in ("NaN", "sNaN", "Infinity")
        ),
        ({**GOOD, "phase": 10**20}, "phase"),
        ({**GOOD, "mounts": ["/proc"]}, "mounts.0"),
        ({**GOOD, "checks": [{"run": "a\0"}]}, "checks.0.run"),
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

    status, _ = ask(child, "POST", "/submit", GOOD, headers={"Content-Type": form})

    assert status == 202


def test_what_is_not_there_is_not_found(child: Child) -> None:
    for path in ("/tasks/none", "/tasks/none/iterations", "/tasks/none/events"):
        assert ask(child, "GET", path)[0] == 404, path
    assert ask(child, "POST", "/tasks/none/cancel")[0] == 404


@pytest.mark.parametrize("path", ["/status", "/tasks", "/results"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=nothing", "status"),
        ("priority=P9", "priority"),
        ("phase=-1", "phase"),
        ("phase=99999999999999999999", "phase"),
        ("phase=one", "phase"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=99999999999999999999", "limit"),
    ],
)
def test_a_wrong_filter_is_named(
    child: Child, path: str, query: str, field: str
) -> None:
    status, problem = ask(child, "GET", f"{path}?{query}")
    assert (status, problem["errors"][0]["field"]) == (400, field)


@pytest.mark.parametrize("last", ["-1", "x", "9" * 30, "\u00b2"])
def test_a_last_event_id_that_is_none_is_named(child: Child, last: str) -> None:
    ask(child, "POST", "/submit", {**GOOD, "task_id": "seen"})
    headers = {"Last-Event-ID": last}
    status, problem = ask(child, "GET", "/tasks/seen/events", headers=headers)
    assert (status, problem["errors"][0]["field"]) == (400, "Last-Event-ID")


def test_a_phase_that_does_not_fit_is_not_taken_from_the_id(child: Child) -> None:
    name = "P" + "9" * 30 + "-a"
    assert ask(child, "POST", "/submit", {**GOOD, "task_id": name})[0] == 202
    assert ask(child, "GET", f"/tasks/{name}")[1]["phase"] is None


def test_the_data_folder_is_no_mount(child: Child) -> None:
    status, problem = ask(
        child, "POST", "/submit", {**GOOD, "mounts": [str(child.home)]}
    )
    assert (status, problem["errors"][0]["field"]) == (400, "mounts.0")
    assert "data folder" in problem["detail"]


@pytest.mark.parametrize("after", [0, 1])
def test_a_stream_of_a_task_that_ended_ends(child: Child, after: int) -> None:
    body = {**GOOD, "task_id": f"over-{after}", "require_approval": True}
    ask(child, "POST", "/submit", body)
    ask(child, "POST", f"/tasks/over-{after}/cancel")
    connection = http.client.HTTPConnection("127.0.0.1", child.port("ralph"), timeout=5)
    key = (child.home / "api-key").read_text().strip()
    # From the start; and again from the end, which is event 2 here.
    headers = {"Authorization": f"Bearer {key}", "Last-Event-ID": str(2 * after)}
    try:
        connection.request("GET", f"/tasks/over-{after}/events", headers=headers)
        told = connection.getresponse().read().decode()
    finally:
        connection.close()
    assert told.count("event: end") == 1 - after


def test_a_list_says_when_it_leaves_tasks_out(child: Child) -> None:
    for number in range(3):
        body = {**GOOD, "task_id": f"many-{number}", "phase": 77}
        ask(child, "POST", "/submit", {**body, "require_approval": True})
        ask(child, "POST", f"/tasks/many-{number}/cancel")
    lists = (("/status", "tasks"), ("/tasks", "tasks"), ("/results", "results"))
    for path, rows in lists:
        some = ask(child, "GET", f"{path}?phase=77&limit=2")[1]
        assert [row["task_id"] for row in some[rows]] == ["many-2", "many-1"], path
        assert some["truncated"] is True
        assert ask(child, "GET", f"{path}?phase=77&limit=3")[1]["truncated"] is False
    (row, _, _) = ask(child, "GET", "/results?phase=77")[1]["results"]
    assert (row["protected"], row["guard_only"]) == (None, False)
    stats = ask(child, "GET", "/stats")[1]
    assert stats["tasks"] == sum(stats["by_status"].values()) >= 3
    assert stats["by_backend"]["command"]["verified"] <= stats["tasks"]


def test_a_submitters_key_ends_its_own_tasks_and_sees_no_environment(
    child: Child,
) -> None:
    stack = child.stack()
    assert stack is not None
    made = stack.call(
        "coordinator", "POST", "/keys", body={"name": "k", "scopes": ["submit", "read"]}
    )
    theirs = str(made["key"])
    checks = [{"run": "true", "env": {"TOKEN": "s3cr3t-value"}}]
    held = {**GOOD, "require_approval": True, "checks": checks}
    ask(child, "POST", "/submit", {**held, "task_id": "admins"})
    ask(child, "POST", "/submit", {**held, "task_id": "theirs"}, key=theirs)

    assert ask(child, "POST", "/tasks/admins/cancel", key=theirs)[0] == 403
    for path in ("/tasks/admins", "/tasks/theirs", "/tasks?limit=1000", "/status"):
        shown = json.dumps(ask(child, "GET", path, key=theirs)[1])
        assert "s3cr3t-value" not in shown, path
        assert "TOKEN" in shown, path
    assert "s3cr3t-value" in json.dumps(ask(child, "GET", "/tasks/admins")[1])
    status, cancelled = ask(child, "POST", "/tasks/theirs/cancel", key=theirs)
    assert (status, cancelled["status"]) == (202, "cancelled")
    assert "s3cr3t-value" not in json.dumps(cancelled)


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
    other = {"approved": True, "action": "deploy"}
    assert ask(child, "POST", "/tasks/held/approve", other)[0] == 409
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
