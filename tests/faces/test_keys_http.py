"""Keys over HTTP: made, listed and revoked by an admin; believed by every layer."""

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.faces.whole import Whole, whole

from nestor.backends.sql.budget_store import charge
from nestor.backends.sql.database import Database
from nestor.model.access import SCOPES
from nestor.model.routing import Charge

OTHERS = sorted(SCOPES - {"admin"})
MODEL: dict[str, Any] = {"name": "x", "scopes": ["model"]}
LOOK = {"ralph": "/status", "aidb": "/documents", "coordinator": "/stats"}


@pytest.fixture
async def face(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole(tmp_path / "home") as found:
        yield found


async def listed(face: Whole, query: str = "") -> dict[str, dict[str, Any]]:
    """The keys by name."""
    reply = await face.call("coordinator", "GET", f"/keys{query}")
    assert reply.status == 200
    return {key["name"]: key for key in reply.json["keys"]}


async def test_a_secret_is_shown_once_and_its_last_use_is_listed(face: Whole) -> None:
    body = {"name": "ci", "scopes": ["read"]}
    made = await face.call("coordinator", "POST", "/keys", json=body)
    assert made.status == 201
    secret = made.json["key"]
    before = await listed(face)
    assert before["ci"] == {
        **{name: made.json[name] for name in ("id", "name", "scopes", "created_at")},
        "revoked_at": None,
        "last_used_at": None,
        "limits": None,
        "spent": None,
    }
    for layer, path in LOOK.items():
        assert (await face.call(layer, "GET", path, key=secret)).status == 200
    reply = await face.call("coordinator", "GET", "/keys")
    assert secret.encode() not in reply.body
    assert (await listed(face))["ci"]["last_used_at"] is not None


async def test_the_last_use_is_there_after_a_stop_and_a_start(tmp_path: Path) -> None:
    async with whole(tmp_path / "home") as face:
        key = await face.key("read")
        assert (await face.call("ralph", "GET", "/status", key=key)).status == 200
        used = (await listed(face))["read"]["last_used_at"]
    async with whole(tmp_path / "home") as face:
        assert (await listed(face))["read"]["last_used_at"] == used
        assert (await face.call("ralph", "GET", "/status", key=key)).status == 200


@pytest.mark.parametrize("scopes", [OTHERS, *([scope] for scope in OTHERS)])
async def test_no_other_key_makes_lists_or_revokes_keys(
    face: Whole, scopes: list[str]
) -> None:
    key = await face.key(*scopes)
    victim = await face.key("read")
    ids = {one["id"] for one in (await listed(face)).values()}
    body = {"name": "x", "scopes": ["admin"]}
    for method, path in (
        ("GET", "/keys"),
        ("POST", "/keys"),
        *(("DELETE", f"/keys/{one}") for one in ids),
    ):
        reply = await face.call("coordinator", method, path, key=key, json=body)
        assert reply.status == 403, (method, reply.body)
    assert {one["id"] for one in (await listed(face)).values()} == ids
    alive = await face.call("ralph", "GET", "/status", key=victim)
    assert alive.status == 200


async def test_a_revoked_key_is_refused_by_every_layer_at_once(face: Whole) -> None:
    key = await face.key("read")
    (one,) = (await listed(face)).values()
    for layer, path in LOOK.items():
        assert (await face.call(layer, "GET", path, key=key)).status == 200
    gone = await face.call("coordinator", "DELETE", f"/keys/{one['id']}")
    assert (gone.status, gone.body) == (204, b"")
    for layer, path in LOOK.items():
        assert (await face.call(layer, "GET", path, key=key)).status == 401
    assert (await listed(face))["read"]["revoked_at"] is not None


@pytest.mark.parametrize("key_id", ["nobody", "'%20OR%201=1--", "%25", "x" * 500])
async def test_revoking_what_is_not_there_is_a_404(face: Whole, key_id: str) -> None:
    await face.key("read")
    reply = await face.call("coordinator", "DELETE", f"/keys/{key_id}")
    assert reply.status == 404
    assert [one["revoked_at"] for one in (await listed(face)).values()] == [None]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x"}, "scopes"),
        ({"scopes": ["read"]}, "name"),
        ({"name": "x", "scopes": "admin"}, "scopes"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["read", "root"]}, "scopes.1"),
        ({"name": "x", "scopes": ["read", 5]}, "scopes.1"),
        ({"name": "x", "scopes": ["task:a/../b"]}, "scopes.0"),
        ({"name": "x", "scopes": ["task:a", "read"]}, "scopes"),
        ({"name": "", "scopes": ["read"]}, "name"),
        ({"name": "a\nb", "scopes": ["read"]}, "name"),
        ({"name": "x", "scopes": ["read"], "budget": {"usd": "1"}}, "budget"),
        ({**MODEL, "limits": {"usd": 0}}, "limits.usd"),
        ({**MODEL, "limits": {"usd": "-1"}}, "limits.usd"),
        ({**MODEL, "limits": {"usd": "NaN"}}, "limits.usd"),
        ({**MODEL, "limits": {"usd": "many"}}, "limits.usd"),
        ({**MODEL, "limits": {"usd": "1E-13"}}, "limits.usd"),
        ({**MODEL, "limits": {"usd": "1000000.01"}}, "limits.usd"),
        ({**MODEL, "limits": {"tokens": 0}}, "limits.tokens"),
        ({**MODEL, "limits": {"tokens": 1.5}}, "limits.tokens"),
        ({**MODEL, "limits": {"rpm": -1}}, "limits.rpm"),
        ({**MODEL, "limits": {"tpm": 10**16}}, "limits.tpm"),
        ({**MODEL, "limits": {"seconds": 1}}, "limits.seconds"),
        ({**MODEL, "limits": 5}, "limits"),
        ({"name": "x", "scopes": ["task:a"], "limits": {"usd": 1}}, "limits"),
        ({"name": "x", "scopes": ["read"], "id": "admin"}, "id"),
        ({"name": "x", "scopes": ["read"], "key": "nst_mine"}, "key"),
        ({"name": "x", "scopes": ["read"], "last_used_at": None}, "last_used_at"),
    ],
)
async def test_a_wrong_body_names_its_field_and_makes_no_key(
    face: Whole, body: dict[str, Any], field: str
) -> None:
    reply = await face.call("coordinator", "POST", "/keys", json=body)
    assert (reply.status, [e["field"] for e in reply.json["errors"]]) == (400, [field])
    assert await listed(face) == {}


async def test_a_lone_surrogate_in_a_name_is_the_callers_mistake(face: Whole) -> None:
    body = b'{"name": "\\ud800", "scopes": ["read"]}'
    reply = await face.call("coordinator", "POST", "/keys", data=body)
    assert reply.status == 400
    assert await listed(face) == {}


async def test_keys_of_tasks_that_ended_are_listed_only_when_asked_for(
    face: Whole,
) -> None:
    await face.key("task:t1")
    await face.key("task:t2", "model")
    await face.key("read")
    await face.nestor.keys.revoke_scope("task:t1")
    assert set(await listed(face)) == {"task:t2-model", "read"}
    assert set(await listed(face, "?all=false")) == {"task:t2-model", "read"}
    assert set(await listed(face, "?all=true")) == {"task:t1", "task:t2-model", "read"}
    for query in ("?all=perhaps", "?every=true"):
        reply = await face.call("coordinator", "GET", f"/keys{query}")
        assert reply.status == 400, query


async def test_a_key_made_for_a_task_reaches_the_models_and_nothing_else(
    face: Whole,
) -> None:
    key = await face.key("task:t1")
    reached = await face.call("coordinator", "GET", "/v1/models", key=key)
    assert reached.status == 200
    for layer, path in LOOK.items():
        assert (await face.call(layer, "GET", path, key=key)).status == 403


async def test_a_keys_limits_are_listed_beside_what_it_has_spent(face: Whole) -> None:
    limits = {"usd": "5.00", "tokens": 1000, "rpm": 60, "tpm": 500}
    kept = {**limits, "usd": "5"}
    made = await face.call(
        "coordinator", "POST", "/keys", json={**MODEL, "limits": limits}
    )
    assert (made.status, made.json["limits"]) == (201, kept)
    for name, other in (("a number", {"usd": 0.25}), ("none", {}), ("null", None)):
        body = {**MODEL, "name": name, "limits": other}
        reply = await face.call("coordinator", "POST", "/keys", json=body)
        assert reply.status == 201
    url = f"sqlite:///{face.nestor.settings.home / 'nestor.db'}"
    async with Database.open(url, migrate=False) as database:
        account = f"key:{made.json['id']}"
        cost = Charge(account=account, usd=Decimal("0.000092"), tokens=18)
        async with database.write() as connection:
            await charge(database, connection, holder="h", charges=[cost])
    found = await listed(face)
    assert (found["x"]["limits"], found["x"]["spent"]) == (
        kept,
        {"usd": "0.000092", "tokens": 18},
    )
    nothing = {"usd": "0", "tokens": 0}
    only_usd = {"usd": "0.25", "tokens": None, "rpm": None, "tpm": None}
    assert found["a number"]["limits"] == only_usd
    assert found["a number"]["spent"] == nothing
    for name in ("none", "null"):
        assert (found[name]["limits"], found[name]["spent"]) == (None, None)
