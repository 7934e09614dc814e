"""The fault proxy does what it says: without that, what it proves proves nothing."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from tests.servers.fault_proxy import HARMLESS, FaultProxy, Kind
from tests.servers.scripted_model import Rule, ScriptedModel

REPLY = "one two three four five"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}


async def post(url: str, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    timeout = aiohttp.ClientTimeout(total=2)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{url}/chat/completions", json=body) as reply,
    ):
        return reply.status, await reply.read(), dict(reply.headers)


def content(raw: bytes) -> str:
    said = ""
    for line in raw.decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                said += choice["delta"].get("content") or ""
    return said


@pytest.mark.parametrize("kind", sorted(HARMLESS))
@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "streamed"])
async def test_the_harmless_ones_hand_on_the_whole_answer(
    kind: Kind, body: dict[str, Any]
) -> None:
    async with (
        ScriptedModel([Rule(reply=REPLY)]) as model,
        FaultProxy(model, plan=[kind]) as proxy,
    ):
        status, raw, _ = await post(proxy.base_url, body)
    assert status == 200
    if body is CHAT:
        assert json.loads(raw)["choices"][0]["message"]["content"] == REPLY
    else:
        assert content(raw) == REPLY
        assert raw.endswith(b"data: [DONE]\n\n")
        assert raw.count(b'"prompt_tokens"') == 1
    assert proxy.given[0].asked


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.END, Kind.BAD_FRAMING, Kind.HANG_UP])
async def test_a_broken_connection_is_seen_as_broken(kind: Kind) -> None:
    async with (
        ScriptedModel([Rule(reply=REPLY)]) as model,
        FaultProxy(model, plan=[kind]) as proxy,
    ):
        # aiohttp itself goes silent after a chunk without a size.
        with pytest.raises((aiohttp.ClientError, asyncio.TimeoutError)):
            await post(proxy.base_url, STREAM)
    assert model.billed.output_tokens == 7, "the server knows nothing of it"


async def test_an_end_without_framing_looks_like_the_end() -> None:
    async with (
        ScriptedModel([Rule(reply=REPLY)]) as model,
        FaultProxy(model, plan=[Kind.SILENT_END]) as proxy,
    ):
        status, raw, _ = await post(proxy.base_url, STREAM)
    assert status == 200
    assert raw == bytes(proxy.given[0].sent)
    assert not raw.endswith(b"data: [DONE]\n\n")
    assert not proxy.given[0].whole


async def test_streams_may_stop_between_two_events() -> None:
    async with (
        ScriptedModel([Rule(reply=REPLY)]) as model,
        FaultProxy(model, kinds=[Kind.SILENT_END], at_ends=1) as proxy,
    ):
        for _ in range(5):
            _, raw, _ = await post(proxy.base_url, STREAM)
            assert raw.endswith(b"\n\n")
    assert len({one.at for one in proxy.given}) > 1


async def test_half_open_is_silence() -> None:
    async with (
        ScriptedModel([Rule(reply=REPLY)]) as model,
        FaultProxy(model, plan=[Kind.HALF_OPEN]) as proxy,
    ):
        with pytest.raises(asyncio.TimeoutError):
            await post(proxy.base_url, STREAM)


async def test_refusals_ask_nobody() -> None:
    async with ScriptedModel([Rule(reply=REPLY)]) as model:
        plan = [Kind.BUSY, Kind.BROKEN]
        async with FaultProxy(model, plan=plan, retry_after_s=0.5) as proxy:
            status, _, headers = await post(proxy.base_url, CHAT)
            assert (status, headers["Retry-After"]) == (429, "0.5")
            assert (await post(proxy.base_url, CHAT))[0] == 500
        assert model.requests == []
    assert [one.asked for one in proxy.given] == [False, False]


async def test_garbage_stands_between_good_events() -> None:
    async with (
        ScriptedModel([Rule(reply=REPLY)]) as model,
        FaultProxy(model, plan=[Kind.GARBAGE] * 2) as proxy,
    ):
        _, raw, _ = await post(proxy.base_url, STREAM)
        assert b"\xff\xfe" in raw
        assert raw.endswith(b"data: [DONE]\n\n")
        _, raw, _ = await post(proxy.base_url, CHAT)
        assert raw.startswith(b"<html>")


async def test_a_spoilt_event_is_gone() -> None:
    async with (
        ScriptedModel([Rule(reply=REPLY)]) as model,
        FaultProxy(model, plan=[Kind.SPOILT] * 2) as proxy,
    ):
        good = await post(model.base_url, STREAM)
        _, raw, _ = await post(proxy.base_url, STREAM)
        assert b"\xff\xfe" in raw
        assert raw.count(b"\n\n") == good[1].count(b"\n\n")
        _, raw, _ = await post(proxy.base_url, CHAT)
        with pytest.raises(UnicodeDecodeError):
            raw.decode()


async def test_odd_usage_comes_with_the_second_event() -> None:
    async with (
        ScriptedModel([Rule(reply=REPLY)]) as model,
        FaultProxy(model, plan=[Kind.ODD_USAGE]) as proxy,
    ):
        _, raw, _ = await post(proxy.base_url, STREAM)
    assert b'"prompt_tokens"' in raw.split(b"\n\n")[1]


async def test_a_seed_gives_the_same_faults_again() -> None:
    async def met(seed: int) -> list[object]:
        silent = {Kind.HALF_OPEN, Kind.BAD_FRAMING}
        kinds = [kind for kind in Kind if kind not in silent]
        async with (
            ScriptedModel([Rule(reply=REPLY)]) as model,
            FaultProxy(model, seed=seed, kinds=kinds) as proxy,
        ):
            for _ in range(12):
                with suppress(aiohttp.ClientError):
                    await post(proxy.base_url, STREAM)
        return list(proxy.given)

    first, again, other = await met(3), await met(3), await met(4)
    assert first == again
    assert first != other
