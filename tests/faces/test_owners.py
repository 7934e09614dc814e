"""Who may see and stop which task, and what of a submission waits for a person."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from litestar.routes import HTTPRoute
from tests.faces.whole import ADMIN_KEY, Whole, whole

from nestor.model.access import ADMIN, PageSession
from nestor.model.task import TaskStatus
from nestor.web.auth import scopes_of

HELD = {"task": "do it", "require_approval": True}
BODIES: dict[str, dict[str, Any]] = {
    "resume": {},
    "retry": {},
    "rollback": {"iteration": 0},
    "fork": {"iteration": 0},
}
ALONE = ("", "/iterations", "/diff", "/events")


@pytest.fixture
async def face(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole(tmp_path / "home") as found:
        yield found


def same(body: Any) -> Any:
    """The body of a problem without what is different each time."""
    return {name: value for name, value in body.items() if name != "trace_id"}


async def submitted(face: Whole, key: str, task_id: str, **fields: Any) -> None:
    body = {**HELD, "task_id": task_id, **fields}
    done = await face.call("ralph", "POST", "/submit", key=key, json=body)
    assert done.status == 202, done.body


def of_one_task(face: Whole) -> list[tuple[str, str]]:
    """Every route of Ralph that names a task and that a key with ``submit`` reaches."""
    return [
        (method, route.path_format)
        for route in face.apps["ralph"].litestar.routes
        if isinstance(route, HTTPRoute) and "{task_id}" in route.path_format
        for method, (handler, _) in route.route_handler_map.items()
        if "submit" in (scopes_of(handler.opt) or ()) and method in {"GET", "POST"}
    ]


async def test_a5_to_a_key_that_only_submits_anothers_task_is_not_there(
    face: Whole,
) -> None:
    mine, other = await face.key("submit"), await face.key("submit")
    await submitted(face, other, "theirs")
    found = of_one_task(face)
    assert len(found) >= 6, found
    for method, path in found:
        replies = [
            await face.call(
                *("ralph", method, path.format(task_id=name)),
                key=mine,
                json=BODIES.get(path.rpartition("/")[2]),
            )
            for name in ("theirs", "absent")
        ]
        assert [one.status for one in replies] == [404, 404], path
        theirs, absent = (same(one.json) for one in replies)
        assert theirs["detail"].replace("theirs", "absent") == absent["detail"]
        assert [e["field"] for e in theirs["errors"]] == ["task_id"]
        assert theirs.keys() == absent.keys()
    task = await face.nestor.ralph.get("theirs")
    assert (task.status, task.cancel_requested) == (
        TaskStatus.AWAITING_APPROVAL,
        False,
    )


async def test_a_key_that_only_submits_sees_and_stops_its_own_task(face: Whole) -> None:
    mine = await face.key("submit")
    await submitted(face, mine, "mine")
    for tail in ALONE[:3]:
        reply = await face.call("ralph", "GET", f"/tasks/mine{tail}", key=mine)
        assert reply.status == 200, (tail, reply.body)
    done = await face.call("ralph", "POST", "/tasks/mine/stop", key=mine)
    assert (done.status, done.json["status"]) == (202, "cancelled")
    live = await face.call("ralph", "GET", "/tasks/mine/events", key=mine)
    assert b"event: end" in live.body


async def test_lists_need_a_key_that_reads(face: Whole) -> None:
    key = await face.key("submit", "approve", "model", "metrics")
    await submitted(face, key, "mine")
    for path in ("/tasks", "/status", "/results", "/stats"):
        assert (await face.call("ralph", "GET", path, key=key)).status == 403
    assert (await face.call("ralph", "GET", "/tasks/mine", key=key)).status == 200


@pytest.mark.parametrize("scope", ["read", "approve"])
async def test_who_reads_or_approves_sees_a_task_that_asks_and_ends_none(
    face: Whole, scope: str
) -> None:
    await submitted(face, await face.key("submit"), "theirs")
    key, both = await face.key(scope), await face.key(scope, "submit")
    for tail in ALONE[:3]:
        reply = await face.call("ralph", "GET", f"/tasks/theirs{tail}", key=key)
        assert reply.status == 200, tail
    for caller in (key, both):
        done = await face.call("ralph", "POST", "/tasks/theirs/cancel", key=caller)
        assert done.status == 403
    assert not (await face.nestor.ralph.get("theirs")).cancel_requested


async def test_who_approves_sees_what_was_answered_and_no_task_that_never_asked(
    face: Whole,
) -> None:
    approver = await face.key("approve")
    await submitted(face, await face.key("submit"), "asks")
    for number, key in enumerate([ADMIN_KEY, await face.key("submit")]):
        body = {"task": "x", "task_id": f"plain{number}"}
        done = await face.call("ralph", "POST", "/submit", key=key, json=body)
        assert done.json["status"] == "queued", done.body
        name = body["task_id"]
        for tail in ALONE:
            reply = await face.call(
                "ralph", "GET", f"/tasks/{name}{tail}", key=approver
            )
            assert reply.status == 404, tail
        reply = await face.call(
            "ralph",
            "POST",
            f"/tasks/{name}/approve",
            key=approver,
            json={"approved": True},
        )
        assert reply.status == 404
    reply = await face.call(
        "ralph", "POST", "/tasks/asks/approve", key=approver, json={"approved": False}
    )
    assert reply.status in {200, 202}, reply.body
    told = await face.call("ralph", "GET", "/tasks/asks", key=approver)
    assert (told.status, told.json["status"]) == (200, "rejected")


@pytest.mark.parametrize("scope", ["model", "metrics", "service"])
async def test_other_keys_reach_no_task(face: Whole, scope: str) -> None:
    await submitted(face, await face.key("submit"), "theirs")
    key = await face.key(scope)
    for tail in ALONE:
        reply = await face.call("ralph", "GET", f"/tasks/theirs{tail}", key=key)
        assert reply.status == 403, tail


async def test_a_dependency_tells_nothing_of_anothers_task(face: Whole) -> None:
    mine, other = await face.key("submit"), await face.key("submit")
    await submitted(face, other, "theirs", dependencies=["further", "mine"])
    told = []
    for number, name in enumerate(("theirs", "further", "absent")):
        body = {"task": "x", "task_id": f"probe{number}", "dependencies": [name]}
        done = await face.call("ralph", "POST", "/submit", key=mine, json=body)
        assert done.status == 202
        found = await face.call("ralph", "GET", f"/tasks/probe{number}", key=mine)
        told.append([found.json[one] for one in ("detail", "waits", "status")])
        told[-1][:2] = [text.replace(name, "NAME") for text in told[-1][:2]]
    assert told[0] == told[1] == told[2]
    # What closes a circle with it is taken like anything else.
    body = {"task": "x", "task_id": "mine", "dependencies": ["theirs"]}
    done = await face.call("ralph", "POST", "/submit", key=mine, json=body)
    assert (done.status, done.json["status"]) == (202, "queued"), done.body
    body = {"task": "x", "task_id": "reads", "dependencies": ["theirs"]}
    key = await face.key("submit", "read")
    await face.call("ralph", "POST", "/submit", key=key, json=body)
    found = await face.call("ralph", "GET", "/tasks/reads", key=key)
    assert "theirs, which is awaiting_approval" in found.json["detail"]


async def test_an_id_that_is_taken_says_nothing_of_what_took_it(face: Whole) -> None:
    mine, other = await face.key("submit"), await face.key("submit")
    await submitted(face, other, "taken", task="a secret plan")
    same_body = {**HELD, "task_id": "taken", "task": "a secret plan"}
    bodies: list[dict[str, Any]] = [same_body, {"task_id": "taken", "task": "x"}]
    replies = [
        await face.call("ralph", "POST", "/submit", key=mine, json=body)
        for body in bodies
    ]
    assert [one.status for one in replies] == [409, 409]
    # The same answer: no way to guess the other's body and be told that it is right.
    assert same(replies[0].json) == same(replies[1].json)
    assert b"secret" not in replies[0].body + replies[1].body
    for key in (other, await face.key("submit", "read")):
        again = await face.call("ralph", "POST", "/submit", key=key, json=same_body)
        assert (again.status, again.json["task_id"]) == (200, "taken")


async def test_of_two_who_take_one_id_at_once_the_loser_learns_nothing(
    face: Whole,
) -> None:
    keys = [await face.key("submit") for _ in range(2)]
    for number in range(10):
        body = {**HELD, "task_id": f"t{number}"}
        replies = await asyncio.gather(
            *(face.call("ralph", "POST", "/submit", key=key, json=body) for key in keys)
        )
        assert sorted(one.status for one in replies) == [202, 409]


async def test_who_approves_sees_what_it_is_about_but_no_secret(face: Whole) -> None:
    task = {
        "task": "x",
        "task_id": "t",
        "backend": "command",
        "command": ["make", "all"],
        "setup": ["pip install x"],
        "mounts": ["/opt"],
        "sandbox": {"network": "full"},
        "checks": [{"name": "c", "run": "make test", "env": {"TOKEN": "s3cr3t"}}],
    }
    key, approver = await face.key("submit"), await face.key("approve")
    done = await face.call("ralph", "POST", "/submit", key=key, json=task)
    assert (done.status, done.json["status"]) == (202, "awaiting_approval"), done.body
    view = await face.call("ralph", "GET", "/tasks/t", key=approver)
    assert view.json["command"] == ["make", "all"]
    assert view.json["setup"] == ["pip install x"]
    assert view.json["mounts"] == ["/opt"]
    assert view.json["sandbox"]["network"] == "full"
    assert view.json["checks"][0]["run"] == "make test"
    refuse = {"approved": False}
    reply = await face.call(
        "ralph", "POST", "/tasks/t/approve", key=approver, json=refuse
    )
    assert (reply.status, reply.json["status"]) == (202, "rejected")
    assert b"s3cr3t" not in view.body + reply.body


# What waits for a person.


@pytest.mark.parametrize(
    "brings",
    [
        {"backend": "command", "command": "true"},
        {"checks": [{"run": "true"}], "require_approval": False},
        {"checks": [{"run": "true", "env": {"LD_PRELOAD": "/x.so"}}]},
        {"checks": [{"run": "true"}], "protected": []},
        {"checks": [{"run": "true"}], "guard_only": True},
        {"test_command": "true"},
        {"setup": ["true"]},
        {"mounts": ["/opt"]},
        {"sandbox": {"network": "full"}},
        {"sandbox": {"processes": 32_768}},
    ],
    ids="-".join,
)
async def test_what_others_than_an_admin_bring_waits_and_they_cannot_approve_it(
    face: Whole, brings: dict[str, Any]
) -> None:
    key = await face.key("submit", "approve")
    body = {"task": "x", "task_id": "t", **brings}
    done = await face.call("ralph", "POST", "/submit", key=key, json=body)
    assert (done.status, done.json["status"]) == (202, "awaiting_approval"), done.body
    own = await face.call(
        "ralph", "POST", "/tasks/t/approve", key=key, json={"approved": True}
    )
    assert own.status == 403
    task = await face.nestor.ralph.get("t")
    assert (task.status, task.approvals[0].approved) == (
        TaskStatus.AWAITING_APPROVAL,
        None,
    )


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"protected": []},
        {"guard_only": True},
        {"sandbox": {"memory_bytes": 1 << 30, "processes": 10}},
    ],
    ids=lambda plain: "-".join(plain) or "nothing",
)
async def test_what_brings_nothing_to_run_does_not_wait(
    face: Whole, plain: dict[str, Any]
) -> None:
    body = {"task": "x", **plain}
    key = await face.key("submit")
    done = await face.call("ralph", "POST", "/submit", key=key, json=body)
    assert (done.status, done.json["status"]) == (202, "queued")


async def test_the_operator_on_the_page_may_approve_a_task_of_the_same_session(
    face: Whole,
) -> None:
    now = (await face.nestor.keys.create("x", ["read"]))[0].created_at
    page = PageSession(id="p", created_at=now, expires_at=now).principal
    assert page.may(ADMIN)
    await submitted(face, await face.key("submit"), "warm")
    spec = (await face.nestor.ralph.get("warm")).spec
    done = await face.nestor.ralph.submit(
        type(spec)(task="x", task_id="t", require_approval=True), page
    )
    assert done.task.submitted_by == "page:p"
    refused = await face.nestor.ralph.approve(
        "t", approved=False, note=None, principal=page
    )
    assert refused.approvals[0].decided_by == "page:p"
