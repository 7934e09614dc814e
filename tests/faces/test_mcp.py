"""``/mcp`` over real HTTP, with the official SDK's own client."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import TextContent
from tests.faces.whole import ADMIN_KEY, Whole, whole
from tests.servers.scripted_model import Rule, ScriptedModel

NAMES = ["route_query", "augment_query", "track_interaction", "update_outcome"]
MODES = ["legacy", "auto"]
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
LISTING = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel([Rule(reply="42")]) as one:
        yield one


@pytest.fixture
async def face(tmp_path: Path, model: ScriptedModel) -> AsyncIterator[Whole]:
    async with whole(
        tmp_path / "home", local_base_url=model.base_url, local_model="tiny"
    ) as found:
        yield found


@asynccontextmanager
async def connected(
    face: Whole, key: str = ADMIN_KEY, mode: str = "auto"
) -> AsyncIterator[Client]:
    url = f"http://127.0.0.1:{face.ports['coordinator']}/mcp"
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(headers=headers, trust_env=False) as session:
        transport = streamable_http_client(url, http_client=session)
        async with Client(transport, mode=mode) as client:
            yield client


async def sent(
    face: Whole,
    body: Any,
    *,
    key: str | None = ADMIN_KEY,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, Any]:
    url = f"http://127.0.0.1:{face.ports['coordinator']}/mcp"
    given = {"Accept": "application/json, text/event-stream"}
    given |= {"Content-Type": "application/json"} | (headers or {})
    if key is not None:
        given["Authorization"] = f"Bearer {key}"
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, data=data, headers=given) as reply,
    ):
        raw = await reply.read()
        said = json.loads(raw) if raw else None
        return reply.status, said, reply.headers.copy()


def told(result: Any) -> Any:
    """What a tool returned; the text for models says the same."""
    assert not result.is_error, result
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


def fields(result: Any) -> list[str]:
    assert result.is_error
    return [one["field"] for one in result.structured_content["errors"]]


@pytest.mark.parametrize("mode", MODES)
async def test_the_tools_are_listed_with_typed_inputs_and_outputs(
    face: Whole, mode: str
) -> None:
    async with connected(face, mode=mode) as client:
        listed = (await client.list_tools()).tools
    assert [tool.name for tool in listed] == NAMES
    for tool in listed:
        for schema in (tool.input_schema, tool.output_schema):
            assert schema is not None
            assert schema["type"] == "object"
            assert schema["properties"]
            assert "#/components" not in json.dumps(schema)
        assert tool.input_schema["additionalProperties"] is False
        assert tool.input_schema["required"]
        assert tool.description
    assert "task_id" in listed[0].input_schema["properties"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_query_is_routed_judged_and_looked_up(face: Whole, mode: str) -> None:
    key = await face.key("model")
    async with connected(face, key, mode) as client:
        routed = told(await client.call_tool("route_query", {"query": "q"}))
        about = {"interaction_id": routed["interaction_id"]}
        said = told(
            await client.call_tool(
                "update_outcome", {**about, "outcome": "success", "source": "agent"}
            )
        )
    assert (routed["response"], routed["route"], routed["model"]) == (
        *("42", "local", "tiny"),
    )
    assert (routed["confidence"], routed["cost_usd"]) == (None, "0")
    assert (said["source"], said["label"]) == ("model", "agent")
    path = f"/interactions/{routed['interaction_id']}"
    found = (await face.call("coordinator", "GET", path)).json
    assert found["feedback"] == [said]
    assert found["call"]["key_id"] == said["key_id"] != "admin"


async def test_an_answer_given_elsewhere_is_tracked_with_its_context(
    face: Whole, model: ScriptedModel
) -> None:
    document = {"project": "p", "path": "a.md", "content": "The deploy is at noon."}
    await face.call("aidb", "POST", "/documents", json=document)
    async with connected(face) as client:
        context = told(await client.call_tool("augment_query", {"query": "deploy?"}))
        answer = {
            "query": "deploy?",
            "response": "noon",
            "context_ids": context["context_ids"],
        }
        kept = told(await client.call_tool("track_interaction", answer))
        said = {**kept, "user_feedback": 0.5}
        assert told(await client.call_tool("update_outcome", said))
    assert context["context_count"] == 1
    path = f"/interactions/{kept['interaction_id']}"
    row = (await face.call("coordinator", "GET", path)).json["interaction"]
    assert {name: row[name] for name in answer} == answer
    assert model.requests == []


@pytest.mark.parametrize(
    ("tool", "arguments", "field"),
    [
        ("route_query", {}, "query"),
        ("route_query", {"query": ""}, "query"),
        ("route_query", {"query": 5}, "query"),
        ("route_query", {"query": "q", "mode": "cheap"}, "mode"),
        ("route_query", {"query": "q", "mode": "remote"}, "mode"),
        ("route_query", {"query": "q", "base_url": "http://x"}, "base_url"),
        ("route_query", {"query": "q", "max_tokens": 0}, "max_tokens"),
        ("route_query", {"query": "q", "context": [{"id": "x"}]}, "context.0.kind"),
        ("augment_query", {"query": " "}, "query"),
        ("augment_query", {"query": "q", "agent_type": "a\nb"}, "agent_type"),
        ("track_interaction", {"query": "q", "context_ids": [1]}, "context_ids.0"),
        ("update_outcome", {"interaction_id": "i", "outcome": "great"}, "outcome"),
        ("update_outcome", {"interaction_id": "i"}, "outcome"),
        (
            "update_outcome",
            {"interaction_id": "i", "outcome": "success"},
            "interaction_id",
        ),
        (
            "update_outcome",
            {"interaction_id": "i", "user_feedback": 2},
            "user_feedback",
        ),
    ],
)
async def test_an_error_names_the_field_and_asks_no_model(
    face: Whole,
    model: ScriptedModel,
    tool: str,
    arguments: dict[str, Any],
    field: str,
) -> None:
    async with connected(face) as client:
        result = await client.call_tool(tool, arguments)
    assert field in fields(result)
    assert isinstance(result.content[0], TextContent)
    assert field in result.content[0].text
    assert result.structured_content is not None
    assert result.structured_content["status"] in {400, 404}
    assert len(result.structured_content["trace_id"]) == 32
    assert model.requests == []


async def test_a_tool_that_is_not_there_is_an_error_that_lists_the_others(
    face: Whole,
) -> None:
    async with connected(face) as client:
        with pytest.raises(MCPError, match="route_query, augment_query"):
            await client.call_tool("submit_task", {})


async def test_only_the_admin_acts_in_a_tasks_name(
    face: Whole, model: ScriptedModel
) -> None:
    async with connected(face, await face.key("model")) as client:
        for tool in ("route_query", "track_interaction"):
            refused = await client.call_tool(tool, {"query": "q", "task_id": "t1"})
            assert refused.is_error
            assert refused.structured_content["status"] == 403
    assert model.requests == []


async def test_who_may_not_come_in_stays_out(face: Whole) -> None:
    task, reader = await face.key("model", "task:t1"), await face.key("read")
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "augment_query", "arguments": {"query": "q"}},
    }
    for key, status in ((None, 401), ("wrong", 401), (task, 403), (reader, 403)):
        for body in (PING, LISTING, call):
            got, said, headers = await sent(face, body, key=key)
            assert got == status, said
            assert said["error"]["data"]["status"] == status
            assert ("www-authenticate" in headers) == (status == 401)


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_with_a_wrong_key_does_nothing(face: Whole, mode: str) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with connected(face, "nst_wrong", mode) as client:
            await client.call_tool("track_interaction", {"query": "q"})
    group: BaseException = caught.value
    while isinstance(group, BaseExceptionGroup):  # of the client's own tasks
        (group,) = group.exceptions
    assert isinstance(group, MCPError)
    assert "nobody knows this key" in str(group)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Content-Type": "text/plain"}, 400),
        ({"Accept": "text/html"}, 406),
    ],
)
@pytest.mark.parametrize("version", [None, "2026-07-28"])
async def test_a_page_of_another_origin_is_refused(
    face: Whole, headers: dict[str, str], status: int, version: str | None
) -> None:
    more = {} if version is None else {"MCP-Protocol-Version": version}
    got, _, _ = await sent(face, PING, headers=headers | more)
    assert got == status


async def test_there_is_no_session_to_open_or_to_end(face: Whole) -> None:
    for method in ("GET", "DELETE"):
        status, said, headers = await sent(face, None, method=method)
        assert (status, said["status"]) == (405, 405)
        assert "POST" in headers["allow"]
    status, _, headers = await sent(face, PING)
    assert status == 200
    assert "mcp-session-id" not in headers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'"text"',
        json.dumps([PING]).encode(),
        b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/list"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}',
        b'{"jsonrpc":"2.0","id":%s,"method":"ping"}' % (b"9" * 5000),
        b'{"jsonrpc":"1.0","id":1,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":{},"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"result":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}',
    ],
    ids=range(13),
)
@pytest.mark.parametrize("version", [None, "2026-07-28"])
async def test_what_is_no_request_is_refused_and_harms_nobody(
    face: Whole, body: bytes, version: str | None
) -> None:
    more = {} if version is None else {"MCP-Protocol-Version": version}
    status, said, _ = await sent(face, body, headers=more)
    assert status in {400, 202} or "error" in said, (status, said)
    assert status < 500
    assert (await sent(face, PING))[0] == 200


@pytest.mark.parametrize("method", ["notifications/cancelled", "no/such"])
async def test_a_notification_is_taken_and_not_answered(
    face: Whole, method: str
) -> None:
    body = {"jsonrpc": "2.0", "method": method, "params": {"requestId": 1}}
    assert (await sent(face, body))[:2] == (202, None)


@pytest.mark.parametrize("mode", MODES)
async def test_who_stops_waiting_stops_the_model_too(
    face: Whole, model: ScriptedModel, mode: str
) -> None:
    model.rules[:] = [Rule(delay_s=60)]
    async with connected(face, mode=mode) as client:
        asked = client.call_tool("route_query", {"query": "q"})
        waiting = asyncio.create_task(asked)
        async with asyncio.timeout(20):
            while not model.requests:
                await asyncio.sleep(0.02)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(20):
        while not model.requests[0].disconnected:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("mode", MODES)
async def test_what_was_asked_before_a_stop_is_answered(
    tmp_path: Path, model: ScriptedModel, mode: str
) -> None:
    model.rules[:] = [Rule(reply="42", delay_s=1.5)]
    where: dict[str, Any] = {"local_base_url": model.base_url, "local_model": "tiny"}
    async with AsyncExitStack() as stack:
        face = await stack.enter_async_context(whole(tmp_path / "home", **where))
        async with connected(face, mode=mode) as client:
            await client.list_tools()  # by which it checks what it is given
            asked = client.call_tool("route_query", {"query": "q"})
            waiting = asyncio.create_task(asked)
            async with asyncio.timeout(20):
                while not model.requests:
                    await asyncio.sleep(0.02)
            assert not waiting.done()
            await stack.aclose()
            assert told(await waiting)["response"] == "42"


async def test_without_the_sdk_the_answer_says_what_to_install(
    face: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mcp_coordinator", "mcp_tools"):
        monkeypatch.delitem(sys.modules, f"nestor.web.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "mcp.server.lowlevel", None)
    status, said, _ = await sent(face, PING)
    assert status == 501
    assert "pip install 'nestor[mcp]'" in said["error"]["message"]
    others = await face.call(
        "coordinator", "POST", "/augment_query", json={"query": "q"}
    )
    assert others.status == 200


async def test_what_goes_wrong_inside_is_not_told(
    face: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail s3cr3t")

    monkeypatch.setattr(face.nestor.coordinator, "route", breaks)
    async with connected(face) as client:
        result = await client.call_tool("route_query", {"query": "q"})
    assert result.is_error
    assert "s3cr3t" not in result.model_dump_json()
    assert result.structured_content["trace_id"] in result.model_dump_json()


async def test_many_at_once_each_get_their_own_answer(face: Whole) -> None:
    async def one(number: int) -> None:
        async with connected(face, mode=MODES[number % 2]) as client:
            found = told(
                await client.call_tool("augment_query", {"query": f"q{number}"})
            )
            assert found["original_query"] == f"q{number}"

    await asyncio.gather(*(one(n) for n in range(20)))


def test_a_start_does_not_pay_for_the_sdk() -> None:
    program = "import sys, nestor.web.stack; print('mcp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
