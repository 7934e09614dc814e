"""The Coordinator behind the real shell: keys, pass-through, disconnects."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from tests.faces.shell import SERVICE_KEY, MemorySessions
from tests.servers.coordinator_rig import Rig, rig
from tests.servers.scripted_model import Rule

from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.key_store import SqlKeyStore
from nestor.web import coordinator
from nestor.web.app import create_app
from nestor.web.serve import bind, serve

ADMIN = "test-admin-secret-0123456789"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Face:
    rig: Rig
    keys: SqlKeyStore
    session: aiohttp.ClientSession
    url: str

    async def call(
        self, method: str, path: str, key: str = ADMIN, **how: Any
    ) -> tuple[int, Any, Any]:
        headers = {"Authorization": f"Bearer {key}", **how.pop("headers", {})}
        async with self.session.request(
            method, self.url + path, headers=headers, **how
        ) as reply:
            raw = await reply.read()
            kind = reply.headers.get("content-type", "")
            body = json.loads(raw) if "json" in kind and raw else raw
            return reply.status, body, reply.headers.copy()


@asynccontextmanager
async def face(folder: Path, **rules: Any) -> AsyncIterator[Face]:
    async with rig(folder, **rules) as r, aiohttp.ClientSession() as session:
        keys = SqlKeyStore(r.database)
        parts = SimpleNamespace(
            settings=SimpleNamespace(allowed_hosts=[]),
            keys=keys,
            api_key=ADMIN,
            service_key=SERVICE_KEY,
            sessions=MemorySessions(),
            coordinator=r.coordinator,
            budgets=SqlBudgetStore(r.database),
            ledger=r.ledger,
        )
        app = create_app(
            "coordinator",
            parts,
            coordinator.handlers(),
            dependencies=r.coordinator.dependencies,
        )
        sockets = bind({"coordinator": ("127.0.0.1", 0)})
        port = sockets["coordinator"].getsockname()[1]
        ready, stop = asyncio.Event(), asyncio.Event()

        async def begin() -> None:
            ready.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                serve({"coordinator": app}, sockets, ready=begin, stop=stop)
            )
            await ready.wait()
            try:
                yield Face(r, keys, session, f"http://127.0.0.1:{port}")
            finally:
                stop.set()


async def test_route_answers_with_headers(tmp_path: Path) -> None:
    async with face(tmp_path, local=[Rule(reply="42")]) as f:
        status, body, headers = await f.call("POST", "/route", json={"query": "q"})

    assert status == 200
    assert (body["response"], body["route"], body["confidence"]) == (
        "42",
        "local",
        None,
    )
    assert body["cost_usd"] == "0.000092"
    assert headers["x-nestor-route"] == "local"
    assert headers["x-nestor-interaction-id"] == body["interaction_id"]
    assert "x-nestor-confidence" not in headers


async def test_route_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    async with face(tmp_path, local=[Rule(reply="42")]) as f:
        for bad, field in (
            ({"query": "q", "base_url": "http://x"}, "base_url"),
            ({"query": 5}, "query"),
            ({"query": "q", "mode": "cheap"}, "mode"),
            ({}, "query"),
        ):
            status, body, _ = await f.call("POST", "/route", json=bad)
            assert (status, body["errors"][0]["field"]) == (400, field)

    assert f.rig.local.requests == []


async def test_a_chat_completion_has_openais_shape(tmp_path: Path) -> None:
    async with face(tmp_path, local=[Rule(reply="42")]) as f:
        status, body, headers = await f.call("POST", "/v1/chat/completions", json=ASK)
        _, listed, _ = await f.call("GET", "/v1/models")

    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["usage"]["total_tokens"] == 18
    assert headers["x-nestor-model"] == "local-model"
    assert headers["x-nestor-cost-usd"] == "0.000092"
    assert [m["id"] for m in listed["data"]] == ["auto", "local", "local-model"]


async def test_a_stream_passes_as_it_comes(tmp_path: Path) -> None:
    rule = Rule(reply="one two three", chunk_delay_s=0.2)
    async with face(tmp_path, local=[rule]) as f:
        began = asyncio.get_running_loop().time()
        async with f.session.post(
            f"{f.url}/v1/chat/completions",
            json={**ASK, "stream": True},
            headers={"Authorization": f"Bearer {ADMIN}"},
        ) as reply:
            first = await reply.content.readany()
            took = asyncio.get_running_loop().time() - began
            rest = await reply.read()

    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-nestor-route"] == "local"
    assert first.startswith(b"data: ")
    assert took < 0.55
    assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_upstream_and_is_metered_once(
    tmp_path: Path, stream: bool
) -> None:
    rule = Rule(reply="w " * 300, chunk_delay_s=0.05, delay_s=0 if stream else 20)
    async with face(tmp_path, local=[rule], timeout_s=60) as f:
        _, secret = await f.keys.create("t", ["task:t1"])
        reply = asyncio.create_task(
            f.session.post(
                f"{f.url}/v1/chat/completions",
                json={**ASK, "stream": stream},
                headers={"Authorization": f"Bearer {secret}"},
            )
        )
        if stream:
            (await reply).close()
        else:
            while not f.rig.local.chats:
                await asyncio.sleep(0.02)
            reply.cancel()
        for _ in range(100):
            await asyncio.sleep(0.05)
            if calls := await f.rig.ledger.calls("t1"):
                break
        await asyncio.sleep(0.2)
        calls = await f.rig.ledger.calls("t1")

        assert f.rig.local.chats[0].disconnected
    assert [(c.ok, c.error) for c in calls] == [
        (False, "the caller left before the end")
    ]


async def test_a_task_key_names_its_task_and_reaches_v1_alone(tmp_path: Path) -> None:
    async with face(tmp_path, local=[Rule(reply="42")]) as f:
        _, secret = await f.keys.create("t", ["task:t1"])
        status, _, _ = await f.call(
            "POST",
            "/v1/chat/completions",
            key=secret,
            json=ASK,
            headers={"x-nestor-iteration": "4", "x-nestor-task-id": "other"},
        )
        refused = [
            (await f.call(method, path, key=secret))[0]
            for method, path in (
                ("POST", "/route"),
                ("GET", "/stats"),
                ("GET", "/keys"),
                ("POST", "/keys"),
                ("GET", "/metrics"),
            )
        ]
        bad, problem, _ = await f.call(
            "POST",
            "/v1/chat/completions",
            key=secret,
            json=ASK,
            headers={"x-nestor-iteration": "x"},
        )
        (call,) = await f.rig.calls()

    assert status == 200
    assert (call.task_id, call.iteration) == ("t1", 4)
    assert refused == [403] * 5
    assert (bad, problem["error"]["param"]) == (400, "x-nestor-iteration")


async def test_scopes_hold(tmp_path: Path) -> None:
    async with face(tmp_path, local=[Rule(reply="42")]) as f:
        _, reader = await f.keys.create("r", ["read"])
        _, caller = await f.keys.create("m", ["model"])
        seen = {
            (key, path): (await f.call(method, path, key=secret, json=body))[0]
            for key, secret in (("read", reader), ("model", caller))
            for method, path, body in (
                ("POST", "/route", {"query": "q"}),
                ("POST", "/v1/chat/completions", ASK),
                ("GET", "/stats", None),
                ("GET", "/keys", None),
            )
        }

    assert {name for name, status in seen.items() if status == 200} == {
        ("model", "/route"),
        ("model", "/v1/chat/completions"),
        ("read", "/stats"),
    }


async def test_keys_are_shown_once_and_can_be_revoked(tmp_path: Path) -> None:
    async with face(tmp_path, local=[Rule(reply="42")]) as f:
        status, made, _ = await f.call(
            "POST", "/keys", json={"name": "ci", "scopes": ["model"]}
        )
        _, listed, _ = await f.call("GET", "/keys")
        good = (await f.call("GET", "/v1/models", key=made["key"]))[0]
        gone = (await f.call("DELETE", f"/keys/{made['id']}"))[0]
        bad = (await f.call("GET", "/v1/models", key=made["key"]))[0]
        unknown = (await f.call("DELETE", "/keys/nope"))[0]
        scope = (await f.call("POST", "/keys", json={"name": "x", "scopes": ["god"]}))[
            0
        ]

    assert status == 201
    assert made["key"] not in json.dumps(listed)
    assert [key["name"] for key in listed["keys"]] == ["ci"]
    assert (good, gone, bad, unknown, scope) == (200, 204, 401, 404, 400)


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        (Rule(status=500), 502),
        (Rule(status=401), 502),
        (Rule(status=400, reply="too long"), 400),
        (Rule(status=429, headers={"Retry-After": "9"}), 429),
    ],
)
async def test_an_upstreams_error_gets_the_right_status(
    tmp_path: Path, rule: Rule, status: int
) -> None:
    async with face(tmp_path, local=[rule]) as f:
        for stream in (False, True) if status != 429 else (False,):
            got, body, headers = await f.call(
                "POST", "/v1/chat/completions", json={**ASK, "stream": stream}
            )
            assert (got, headers["content-type"]) == (status, "application/json")
            assert body["error"]["message"].count("local: HTTP") == 1
            final = rule.status == 401
            assert headers.get("x-should-retry") == ("false" if final else None)
    if status == 429:
        assert headers["retry-after"] == "9"


async def test_s1_an_address_in_the_body_is_refused(tmp_path: Path) -> None:
    async with face(tmp_path, local=[Rule(reply="42")]) as f:
        status, body, _ = await f.call(
            "POST", "/v1/chat/completions", json={**ASK, "api_base": "http://x/v1"}
        )

    assert (status, body["error"]["param"]) == (400, "api_base")
    assert f.rig.local.requests == []


async def test_stats_are_plain_json(tmp_path: Path) -> None:
    async with face(tmp_path, local=[Rule(reply="42")]) as f:
        await f.call("POST", "/route", json={"query": "q"})
        status, body, _ = await f.call("GET", "/stats")

    assert status == 200
    assert body["routes"] == {"local": 1}
    assert body["calls"][0]["cost_usd"] == "0.000092"
    assert body["deployments"][0]["breaker"]["state"] == "closed"


async def test_an_unknown_model_is_a_documented_404_of_each_dialect(
    tmp_path: Path,
) -> None:
    asks: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": ASK,
        "/v1/messages": {**ASK, "max_tokens": 5},
        "/v1/responses": {"input": "hi"},
    }
    async with face(tmp_path, local=[Rule(reply="42")]) as f:
        _, document, _ = await f.call("GET", "/schema/openapi.json")
        for path, ask in asks.items():
            status, body, headers = await f.call(
                "POST", path, json={**ask, "model": "gpt-9"}
            )
            assert status == 404
            assert "gpt-9" in body["error"]["message"]
            assert headers["content-type"] == "application/json"
            told = document["paths"][path]["post"]["responses"]["404"]
            assert "application/json" in told["content"]

    assert f.rig.local.requests == []
