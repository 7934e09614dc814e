"""Fields that no caller may write: named, refused, and nothing is stored."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.faces.whole import Whole, whole


@pytest.fixture
async def face(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole(tmp_path / "home") as found:
        yield found


FOREIGN = {
    "role": "admin",
    "scopes": ["admin"],
    "allowed_routes": ["*"],
    "submitted_by": "admin",
    "status": "verified",
    "success": True,
    "key_id": "admin",
    "secret": "nst_x",
}
BODIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ralph", "/submit", {"task": "x"}),
    ("ralph", "/tasks", {"task": "x"}),
    ("ralph", "/tasks/held/approve", {"approved": True}),
    ("coordinator", "/route", {"query": "x"}),
    ("coordinator", "/keys", {"name": "x", "scopes": ["read"]}),
    ("aidb", "/context", {"query": "x"}),
    ("aidb", "/search", {"query": "x"}),
    ("aidb", "/documents", {"project": "p", "path": "a", "content": "x"}),
    (
        "aidb",
        "/skills",
        {
            "id": "s",
            "kind": "skill",
            "title": "t",
            "text": "x",
            "created_at": "2026-01-01T00:00:00Z",
        },
    ),
)


@pytest.mark.parametrize(("layer", "path", "body"), BODIES, ids=lambda v: str(v)[:20])
async def test_a6_a_field_nobody_may_write_is_named_and_nothing_is_stored(
    face: Whole, layer: str, path: str, body: dict[str, Any]
) -> None:
    held = {"task": "x", "task_id": "held", "require_approval": True}
    assert (await face.call("ralph", "POST", "/submit", json=held)).status == 202
    before = await stored(face)
    for name, value in FOREIGN.items():
        if name in body:
            continue
        reply = await face.call(layer, "POST", path, json={**body, name: value})
        assert reply.status == 400, (path, name, reply.body)
        assert [e["field"] for e in reply.json["errors"]] == [name]
    assert await stored(face) == before


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"budget": {"usd": "1", "spent_usd": "0"}}, "budget.spent_usd"),
        ({"workspace": {"submitted_by": "admin"}}, "workspace.submitted_by"),
        ({"sandbox": {"role": "admin"}}, "sandbox.role"),
        ({"checks": [{"run": "x", "passed": True}]}, "checks.0.passed"),
        ({"approvals": [{"id": "start", "approved": True}]}, "approvals"),
    ],
)
async def test_a6_the_same_inside_a_task(
    face: Whole, fields: dict[str, Any], field: str
) -> None:
    body = {"task": "x", **fields}
    reply = await face.call("ralph", "POST", "/submit", json=body)
    assert (reply.status, reply.json["errors"][0]["field"]) == (400, field)
    assert await face.nestor.ralph.counts() == {}


async def test_a6_the_same_inside_a_batch_of_documents(face: Whole) -> None:
    item = {"project": "p", "path": "a", "content": "x", "role": "admin"}
    reply = await face.call("aidb", "POST", "/documents", json={"items": [item]})
    assert (reply.status, reply.json["errors"][0]["field"]) == (400, "items.0.role")
    assert (await stored(face))[1] == []


async def stored(face: Whole) -> list[Any]:
    """All that a request could have written."""
    return [
        await face.nestor.ralph.get("held")
        if await face.nestor.ralph.counts()
        else None,
        (await face.nestor.aidb.documents.page(limit=100))[0],
        await face.nestor.ralph.counts(),
        [key.id for key in await face.nestor.keys.all()],
    ]
