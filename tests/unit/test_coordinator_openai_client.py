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
from nestor.errors import Misconfigured, Unavailable, UpstreamError
from nestor.model.routing import Deployment, Side
from nestor.model.task import Usage

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
KEY = "sk-canary0123456789abcdef"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
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


async def drain(stream: Any, into: list[bytes]) -> None:
    async for event in stream:
        into.append(event)  # noqa: PERF401 - what came before an error is wanted


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
    assert reply.text == "yes"
    assert sent.body == {**ASK, "model": "gpt", "seed": 7}
    assert sent.headers["authorization"] == f"Bearer {KEY}"


async def test_usage_comes_from_any_chunk_of_a_stream(
    session: aiohttp.ClientSession,
) -> None:
    counts = {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    rule = Rule(reply="a b c", usage=counts)
    async with ScriptedModel([rule]) as model:
        stream = await client(model.base_url, session).stream(ASK)
        raw = await read(stream)

    assert stream.usage() == Usage(input_tokens=9, output_tokens=3, cached_tokens=4)
    assert model.chats[0].body["stream_options"] == {"include_usage": True}
    assert b'"prompt_tokens"' not in raw


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


async def test_a_role_without_a_token_does_not_end_the_wait_for_one(
    session: aiohttp.ClientSession,
) -> None:
    # The first event has no text: the token would come 5 s later.
    rule = Rule(reply="a", chunk_delay_s=5)
    async with ScriptedModel([rule]) as model:
        far = client(model.base_url, session, timeout_s=0.3, idle_s=0.3)
        with pytest.raises(UpstreamError, match="said nothing"):
            await far.stream(ASK)


async def test_silence_between_tokens_is_bounded(
    session: aiohttp.ClientSession,
) -> None:
    async with ScriptedModel([Rule(reply="a b", chunk_delay_s=0.5)]) as model:
        far = client(model.base_url, session, timeout_s=5, idle_s=0.1)
        stream = await far.stream(ASK)
        with pytest.raises(UpstreamError, match=r"said nothing for 0\.1 s"):
            await read(stream)


async def test_death_before_the_first_token_is_an_error_of_the_call_itself(
    session: aiohttp.ClientSession,
) -> None:
    async with ScriptedModel([Rule(reply="a b", cut_after_chunks=1)]) as model:
        with pytest.raises(UpstreamError):
            await client(model.base_url, session).stream(ASK)


async def test_death_after_it_hands_out_what_came_and_then_raises(
    session: aiohttp.ClientSession,
) -> None:
    rule = Rule(reply="one two three", cut_after_chunks=3, chunk_delay_s=0.05)
    async with ScriptedModel([rule]) as model:
        stream = await client(model.base_url, session).stream(ASK)
        got: list[bytes] = []
        with pytest.raises(UpstreamError):
            await drain(stream, got)

    assert b"two" in b"".join(got)
    assert got[-1].endswith(b"\n\n")


async def test_a_clean_end_without_a_finish_is_still_a_death(
    session: aiohttp.ClientSession,
) -> None:
    chunk = 'data: {"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n'
    async with ScriptedModel([Rule(raw=chunk)]) as model:
        stream = await client(model.base_url, session).stream(ASK)
        with pytest.raises(UpstreamError, match="middle"):
            await read(stream)


async def test_an_error_event_ends_the_stream_after_the_tokens_before_it(
    session: aiohttp.ClientSession,
) -> None:
    raw = (
        'data: {"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n'
        'data: {"error":{"message":"out of memory"}}\n\n'
    )
    async with ScriptedModel([Rule(raw=raw)]) as model:
        stream = await client(model.base_url, session).stream(ASK)
        got: list[bytes] = []
        with pytest.raises(UpstreamError, match="out of memory"):
            await drain(stream, got)

    assert b"half" in got[0]


async def test_bytes_pass_unchanged_whatever_the_line_ends_and_comments(
    session: aiohttp.ClientSession,
) -> None:
    raw = (
        ": ping\r\n\r\n"
        'data: {"choices":[{"index":0,"delta":{"content":"é\\"error\\""}}]}\r\n\r\n'
        'event: x\ndata:{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        "data: [DONE]\n\n"
    )
    async with ScriptedModel([Rule(raw=raw)]) as model:
        stream = await client(model.base_url, session).stream(ASK)

        assert await read(stream) == raw.encode()


async def test_leaving_a_stream_closes_the_upstream_at_once(
    session: aiohttp.ClientSession,
) -> None:
    rule = Rule(reply="word " * 500, chunk_delay_s=0.02)
    async with ScriptedModel([rule]) as model:
        stream = await client(model.base_url, session).stream(ASK)
        async for _ in stream:
            break
        await stream.aclose()
        for _ in range(50):
            await asyncio.sleep(0.02)
            if model.chats[0].disconnected:
                break

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
