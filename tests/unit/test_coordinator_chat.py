"""``chat``: pass-through, fallback before the first token only, settled once whatever happens."""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.servers.coordinator_rig import Answer, Rig, rig
from tests.servers.scripted_model import Rule

from nestor.errors import InvalidInput, NotFound, Unavailable, UpstreamError
from nestor.model.routing import ModelCall
from nestor.model.task import Usage

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
STREAM: dict[str, Any] = {**ASK, "stream": True}
COST = Decimal(11 * 2 + 7 * 10) / 1_000_000
FULL = Usage(input_tokens=11, output_tokens=7)


async def streamed(r: Rig, request: dict[str, Any] | None = None) -> Answer:
    found = await r.chat(request or STREAM, task_id="t1", iteration=1)
    assert found.streamed
    return found


async def settled(r: Rig) -> list[ModelCall]:
    await asyncio.sleep(0.05)
    calls = await r.calls()
    assert len(r.events("model_called")) == len(calls)
    return calls


async def test_an_answer_passes_with_tools_and_headers(tmp_path: Path) -> None:
    rule = Rule(tool_calls=[{"name": "bash", "arguments": {"cmd": "ls"}}])
    request = {**ASK, "tools": [{"type": "function"}], "parallel_tool_calls": False}
    async with rig(tmp_path, remote=[rule]) as r:
        found = await r.chat(request, task_id="t1", iteration=3)
        (call,) = await settled(r)

    assert not found.streamed
    message = found.body["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "bash"
    assert r.remote.chats[0].body == {**request, "model": "remote-model"}
    assert found.headers["x-nestor-route"] == "remote"
    assert found.headers["x-nestor-model"] == "remote-model"
    assert found.headers["x-nestor-cost-usd"] == "0.000092"
    assert found.headers["x-nestor-interaction-id"] == call.interaction_id
    assert "x-nestor-confidence" not in found.headers
    assert float(found.headers["x-nestor-overhead-ms"]) >= 0
    assert (call.purpose, call.iteration, call.cost_usd) == ("gateway", 3, COST)
    assert r.events("query_routed") == []


async def test_a_stream_is_metered_once_with_the_usage_of_its_last_chunk(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, local=[Rule(reply="one two")]) as r:
        stream = await streamed(r)
        raw = b"".join([event async for event in stream])
        await stream.aclose()
        (call,) = await settled(r)

    assert raw.endswith(b"data: [DONE]\n\n")
    assert (call.ok, call.usage, call.cost_usd) == (True, FULL, COST)
    assert "x-nestor-cost-usd" not in stream.headers


async def test_a_stream_without_usage_costs_an_unknown_amount(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[Rule(reply="one", usage=None)]) as r:
        async for _ in await streamed(r):
            pass
        (call,) = await settled(r)

    assert (call.ok, call.usage, call.cost_usd) == (True, Usage(), None)


@pytest.mark.parametrize(
    "broken",
    [
        Rule(status=500),
        Rule(status=404),
        Rule(reply="x", cut_after_chunks=0),
        Rule(reply="x", cut_after_chunks=1),
        Rule(raw='data: {"error": {"message": "no memory"}}\n\n'),
        Rule(raw=""),
    ],
    ids=["500", "404", "cut", "role-then-cut", "error-event", "empty"],
)
async def test_until_the_first_token_fallback_is_free(
    tmp_path: Path, broken: Rule
) -> None:
    async with rig(tmp_path, local=[broken], remote=[Rule(reply="from afar")]) as r:
        stream = await streamed(r)
        raw = b"".join([event async for event in stream])
        calls = await settled(r)

    assert b"afar" in raw
    assert b'"error"' not in raw
    assert stream.headers["x-nestor-fallback-from"] == "local"
    assert [(c.deployment, c.ok) for c in calls] == [("local", False), ("remote", True)]


async def test_after_the_first_token_an_explicit_error_ends_the_stream(
    tmp_path: Path,
) -> None:
    broken = Rule(reply="one two three", cut_after_chunks=3, chunk_delay_s=0.05)
    async with rig(tmp_path, local=[broken], remote=[Rule(reply="from afar")]) as r:
        events = [event async for event in await streamed(r)]
        (call,) = await settled(r)

    assert "two" in events[-2].decode()
    error = json.loads(events[-1].removeprefix(b"data: "))["error"]
    assert error["message"].startswith("local: ")
    assert b"[DONE]" not in b"".join(events)
    assert r.remote.requests == []
    assert (call.ok, call.usage, call.cost_usd) == (False, Usage(), None)
    assert call.error


async def test_streams_that_die_half_way_open_the_breaker(tmp_path: Path) -> None:
    broken = Rule(reply="one two three", cut_after_chunks=3, chunk_delay_s=0.01)
    async with rig(tmp_path, local=[broken]) as r:
        for _ in range(5):
            async for _event in await streamed(r):
                pass

        assert r.coordinator.breakers() == {"model:local": "open"}


async def test_a_caller_that_leaves_is_settled_and_the_upstream_stops(
    tmp_path: Path,
) -> None:
    rule = Rule(reply="word " * 300, chunk_delay_s=0.02)
    async with rig(tmp_path, local=[rule], remote=[]) as r:
        stream = await streamed(r)
        async for _ in stream:
            break
        await stream.aclose()
        (call,) = await settled(r)
        for _ in range(50):
            await asyncio.sleep(0.02)
            if r.local.chats[0].disconnected:
                break

        assert r.local.chats[0].disconnected
        assert r.coordinator.breakers()["model:local"] == "closed"
    assert (call.ok, call.usage, call.cost_usd) == (False, Usage(), None)
    assert call.error == "the caller left before the end"


async def test_a_caller_that_leaves_after_the_end_left_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[Rule(reply="one")]) as r:
        stream = await streamed(r)
        async for event in stream:
            if event == b"data: [DONE]\n\n":
                break
        await stream.aclose()
        (call,) = await settled(r)

    assert (call.ok, call.usage) == (True, FULL)


async def test_a_stream_nobody_reads_is_settled_by_closing(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[Rule(reply="one")]) as r:
        stream = await streamed(r)
        await stream.aclose()
        await stream.aclose()
        (call,) = await settled(r)

    assert not call.ok


@pytest.mark.parametrize("request_", [ASK, STREAM], ids=["whole", "streamed"])
async def test_a_caller_that_is_cancelled_while_waiting_is_settled(
    tmp_path: Path, request_: dict[str, Any]
) -> None:
    async with rig(tmp_path, local=[Rule(reply="late", delay_s=20)]) as r:
        asking = asyncio.create_task(r.chat(request_, task_id="t1", iteration=1))
        while not r.local.chats:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        (call,) = await settled(r)

    assert (call.ok, call.cost_usd) == (False, None)


async def test_a_reader_that_is_cancelled_is_settled_once(tmp_path: Path) -> None:
    rule = Rule(reply="word " * 100, chunk_delay_s=0.05)
    async with rig(tmp_path, local=[rule]) as r:
        stream = await streamed(r)

        async def read() -> None:
            async for _ in stream:
                pass

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.2)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await stream.aclose()
        (call,) = await settled(r)

    assert call.error == "the caller left before the end"


@pytest.mark.parametrize(
    ("model", "route"),
    [
        (None, "local"),
        ("auto", "local"),
        ("local", "local"),
        ("remote", "remote"),
        ("remote-model", "remote"),
        ("local-model", "local"),
    ],
)
async def test_a_model_is_chosen_by_name(
    tmp_path: Path, model: str | None, route: str
) -> None:
    rules = [Rule(reply="ok")]
    request = ASK if model is None else {**ASK, "model": model}
    async with rig(tmp_path, local=rules, remote=rules) as r:
        found = await r.chat(request)

    assert found.headers["x-nestor-route"] == route


async def test_a_named_model_never_falls_back(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[Rule(status=500)], remote=[Rule(reply="x")]) as r:
        for model in ("local", "local-model"):
            with pytest.raises(UpstreamError):
                await r.chat({**ASK, "model": model})

    assert r.remote.requests == []


async def test_an_unknown_model_names_the_field_and_what_is_known(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, local=[]) as r:
        with pytest.raises(NotFound, match="local-model") as caught:
            await r.chat({**ASK, "model": "gpt-9"})
        with pytest.raises(InvalidInput) as absent:
            await r.chat({**ASK, "model": "remote"})
        names = r.coordinator.models()

    assert caught.value.errors[0].field == "model"
    assert absent.value.errors[0].field == "model"
    assert names == ["auto", "local", "local-model"]


async def test_without_a_model_the_gateway_is_unavailable(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        with pytest.raises(Unavailable, match="LOCAL_MODEL"):
            await r.chat(ASK)

        assert r.coordinator.models() == []
        assert not r.coordinator.has_models()


@pytest.mark.parametrize(
    "name", ["base_url", "api_base", "url", "api_key", "extra_headers", "proxy"]
)
async def test_s1_a_request_cannot_say_where_it_goes(tmp_path: Path, name: str) -> None:
    async with rig(tmp_path, local=[Rule(reply="ok")]) as r:
        with pytest.raises(InvalidInput) as caught:
            await r.chat({**ASK, name: "http://127.0.0.1:1/v1"})

    assert caught.value.errors[0].field == name
    assert r.local.requests == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "user"}, {"content": "x"}]}, "messages.1.role"),
        ({**ASK, "model": 5}, "model"),
        ({**ASK, "stream": "yes"}, "stream"),
        ({**ASK, "stream_options": []}, "stream_options"),
        ({**ASK, "tools": {}}, "tools"),
    ],
)
async def test_a_bad_body_names_the_field(
    tmp_path: Path, request_: dict[str, Any], field: str
) -> None:
    async with rig(tmp_path, local=[Rule(reply="ok")]) as r:
        with pytest.raises(InvalidInput) as caught:
            await r.chat(request_)

    assert caught.value.errors[0].field == field
    assert r.local.requests == []


async def test_a_ledger_that_is_down_costs_no_answer_and_gets_the_row_later(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, local=[Rule(reply="ok")]) as r:
        r.ledger.down = True
        found = await r.chat(ASK, task_id="t1")
        r.ledger.down = False
        await r.coordinator.stop()
        calls = await r.calls()

    assert not found.streamed
    assert len(calls) == 1
