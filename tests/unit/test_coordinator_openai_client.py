"""OpenAIClient against a scripted server: what goes out, what comes back, what fails how."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.openai import client as module
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.errors import Misconfigured, Unavailable, UpstreamError
from nestor.model.routing import Deployment, Side
from nestor.model.task import Usage
from nestor.ports.model_client import ModelReply

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
KEY = "sk-canary0123456789abcdef"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with model_session() as session:
        yield session


def client(
    base_url: str, session: aiohttp.ClientSession, *, timeout_s: float = 5, **how: Any
) -> OpenAIClient:
    deployment = Deployment(
        name="far",
        side=Side.REMOTE,
        model="gpt",
        base_url=base_url,
        api_key=KEY,
        timeout_s=timeout_s,
    )
    return OpenAIClient(deployment, session, **how)


def text_of(reply: ModelReply) -> str:
    text = reply.body["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


async def read(stream: Any) -> bytes:
    return b"".join([event async for event in stream])


async def test_the_model_is_the_deployments_and_the_key_is_sent(
    session: aiohttp.ClientSession,
) -> None:
    async with ScriptedModel([Rule(reply="yes")], api_key=KEY) as model:
        reply = await client(model.base_url, session).complete(
            {**ASK, "model": "other", "stream": True, "seed": 7}
        )

    sent = model.chats[0]
    assert text_of(reply) == "yes"
    assert sent.body == {**ASK, "model": "gpt", "seed": 7}
    assert sent.headers["authorization"] == f"Bearer {KEY}"


async def test_no_usage_reported_is_unknown_not_zero(
    session: aiohttp.ClientSession,
) -> None:
    async with ScriptedModel([Rule(reply="a", usage=None)]) as model:
        far = client(model.base_url, session)
        reply = await far.complete(ASK)
        stream = await far.stream(ASK)
        await read(stream)

    assert reply.usage == Usage()
    assert stream.usage() == Usage()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("way", ["complete", "stream"])
async def test_s2_a_redirect_is_an_error_and_the_key_goes_nowhere_else(
    session: aiohttp.ClientSession, status: int, way: str
) -> None:
    async with ScriptedModel([Rule(reply="stolen")]) as thief:
        target = f"{thief.base_url}/chat/completions"
        rule = Rule(status=status, headers={"Location": target})
        async with ScriptedModel([rule]) as model:
            with pytest.raises(UpstreamError, match="redirect") as caught:
                await getattr(client(model.base_url, session), way)(ASK)

    assert caught.value.status == status
    assert thief.requests == []


async def test_an_error_has_the_status_a_short_text_and_no_secret(
    session: aiohttp.ClientSession,
) -> None:
    said = f"bad key {KEY} given\r\nto postgres://u:hunter22@db " + "x" * 5000
    rule = Rule(status=429, reply=said, headers={"Retry-After": "7"})
    async with ScriptedModel([rule]) as model:
        with pytest.raises(UpstreamError) as caught:
            await client(model.base_url, session).complete(ASK)

    assert caught.value.status == 429
    assert caught.value.retry_after_s == 7
    text = str(caught.value)
    assert "far: HTTP 429: bad key" in text
    assert KEY not in text
    assert "hunter22" not in text
    assert len(text) < 400
    assert "\n" not in text


async def test_nothing_listening_is_unavailable_and_was_not_asked(
    session: aiohttp.ClientSession,
) -> None:
    with pytest.raises(Unavailable) as caught:
        await client("http://127.0.0.1:1/v1", session).complete(ASK)

    assert not isinstance(caught.value, UpstreamError)


async def test_m17_an_endless_answer_is_cut_at_the_limit(
    session: aiohttp.ClientSession,
) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)
            sent += 65536

    app = web.Application()
    app.router.add_post("/v1/chat/completions", endless)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    with pytest.raises(UpstreamError, match="over"):
        await client(f"http://127.0.0.1:{port}/v1", session, timeout_s=30).complete(ASK)
    await runner.cleanup()

    assert sent < module.MAX_REPLY_BYTES + 32 * 1024 * 1024


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "gopher://x/v1",
        "http://",
        "127.0.0.1/v1",
        "http://user:secret@127.0.0.1/v1",
        "http://127.0.0.1/v1?x=1",
        "http://127.0.0.1:999999/v1",
    ],
)
async def test_s4_an_odd_base_url_is_refused_when_it_is_configured(
    session: aiohttp.ClientSession, url: str
) -> None:
    with pytest.raises(Misconfigured) as caught:
        client(url, session)

    assert "secret" not in str(caught.value)


async def test_a_whole_answer_keeps_its_bytes(session: aiohttp.ClientSession) -> None:
    raw = (
        '{ "choices" : [ {"message":{"role":"assistant","content":"h\\u00e9é"},'
        '"finish_reason":"stop"} ],\n "x_odd": 1.50, "error": null,'
        ' "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,'
        ' "prompt_tokens_details": null, "completion_tokens_details":'
        ' {"reasoning_tokens": 1}} }'
    )
    async with ScriptedModel([Rule(raw=raw)]) as model:
        reply = await client(model.base_url, session).complete(ASK)

    assert reply.raw == raw.encode()
    assert text_of(reply) == "héé"
    assert reply.usage == Usage(input_tokens=5, output_tokens=2, reasoning_tokens=1)


@pytest.mark.parametrize("usage", ["null", "[]", '{"prompt_tokens": "5"}', "1e999"])
async def test_usage_that_is_none_does_not_cost_the_answer(
    session: aiohttp.ClientSession, usage: str
) -> None:
    raw = f'{{"choices": [{{"message": {{"content": "yes"}}}}], "usage": {usage}}}'
    async with ScriptedModel([Rule(raw=raw)]) as model:
        reply = await client(model.base_url, session).complete(ASK)

    assert reply.usage == Usage()


async def test_an_error_in_a_reply_of_status_200_has_its_status(
    session: aiohttp.ClientSession,
) -> None:
    raw = f'{{"error": {{"message": "no credit for {KEY}", "code": 402}}}}'
    async with ScriptedModel([Rule(raw=raw)]) as model:
        with pytest.raises(UpstreamError, match="no credit") as caught:
            await client(model.base_url, session).complete(ASK)

    assert caught.value.status == 402
    assert KEY not in str(caught.value)


async def test_embeddings_pass_with_their_bytes_and_their_count(
    session: aiohttp.ClientSession,
) -> None:
    rule = Rule(when="two", vectors=[[0.5, 1.0], [2.0, 3.0]])
    async with ScriptedModel([rule], api_key=KEY) as model:
        far = client(model.base_url, session)
        reply = await far.embed({"model": "x", "input": ["one", "two"]})

    assert model.embeddings[0].body == {"model": "gpt", "input": ["one", "two"]}
    assert [one["embedding"] for one in reply.body["data"]] == rule.vectors
    assert reply.usage == Usage(input_tokens=11, output_tokens=0)
    assert reply.usage == model.embeddings[0].billed


@pytest.mark.parametrize("way", ["complete", "stream"])
async def test_an_upstream_that_says_nothing_is_given_up_in_time(
    session: aiohttp.ClientSession, way: str
) -> None:
    async with ScriptedModel([Rule(reply="late", delay_s=30)]) as model:
        far = client(model.base_url, session, timeout_s=0.2)
        with pytest.raises(UpstreamError, match=r"0\.2 s"):
            await getattr(far, way)(ASK)
        await asyncio.sleep(0.05)

    assert model.chats[0].disconnected


@pytest.mark.parametrize(
    "raw",
    ["", "not json", "[1]", "{}", '{"choices": []}', '{"choices": [1]}', "[" * 100_000],
)
async def test_an_answer_that_is_none_is_an_upstream_error(
    session: aiohttp.ClientSession, raw: str
) -> None:
    async with ScriptedModel([Rule(raw=raw)]) as model:
        with pytest.raises(UpstreamError):
            await client(model.base_url, session).complete(ASK)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ('{"data": []}', "no embeddings"),
        ('{"choices": [{}]}', "no embeddings"),
        ('{"error": {"message": "not loaded"}}', "not loaded"),
    ],
)
async def test_embeddings_that_are_none_are_an_upstream_error(
    session: aiohttp.ClientSession, raw: str, said: str
) -> None:
    async with ScriptedModel([Rule(raw=raw)]) as model:
        with pytest.raises(UpstreamError, match=said):
            await client(model.base_url, session).embed({"input": "one"})


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "7"}, 7),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"Retry-After": "1e9"}, 3600),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
    ],
)
async def test_a_wait_that_the_upstream_names_is_known_and_bounded(
    session: aiohttp.ClientSession, headers: dict[str, str], wait_s: float | None
) -> None:
    async with ScriptedModel([Rule(status=503, headers=headers)]) as model:
        with pytest.raises(UpstreamError) as caught:
            await client(model.base_url, session).complete(ASK)

    assert caught.value.retry_after_s == wait_s
