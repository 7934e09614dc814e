"""AnthropicClient against a scripted server: what goes out, what comes back, what fails how."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import pytest
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.anthropic.client import AnthropicClient
from nestor.backends.openai.resolver import model_session
from nestor.errors import InvalidInput, Misconfigured, Unavailable, UpstreamError
from nestor.model.routing import Deployment, Dialect, Side
from nestor.model.task import Usage

ASK: dict[str, Any] = {
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "hi"}],
}
KEY = "sk-ant-canary0123456789abcdef"
COUNTS = {
    "input_tokens": 10,
    "output_tokens": 30,
    "cache_read_input_tokens": 40,
    "cache_creation_input_tokens": 50,
}
WHOLE = Usage(
    input_tokens=100, output_tokens=30, cached_tokens=40, cache_write_tokens=50
)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with model_session() as session:
        yield session


def client(
    base_url: str,
    session: aiohttp.ClientSession,
    *,
    timeout_s: float = 5,
    max_output_tokens: int | None = None,
    **how: Any,
) -> AnthropicClient:
    deployment = Deployment(
        name="far",
        side=Side.REMOTE,
        dialect=Dialect.ANTHROPIC,
        model="claude",
        base_url=base_url,
        api_key=KEY,
        timeout_s=timeout_s,
        max_output_tokens=max_output_tokens,
    )
    return AnthropicClient(deployment, session, **how)


def event(kind: str, **more: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n"


START = event(
    "message_start", message={"usage": {"input_tokens": 5, "output_tokens": 2}}
)
TEXT = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})
STOP = event("message_stop")


def ending(**usage: int) -> str:
    return event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)


async def drain(stream: Any, into: list[bytes]) -> None:
    async for piece in stream:
        into.append(piece)  # noqa: PERF401 - what came before an error is wanted


async def read(stream: Any) -> bytes:
    return b"".join([piece async for piece in stream])


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
async def test_the_base_url_is_that_of_anthropics_sdk_with_v1_or_without(
    session: aiohttp.ClientSession, end: str
) -> None:
    async with ScriptedModel([Rule(reply="yes")], api_key=KEY) as model:
        far = client(model.anthropic_url + end, session)
        reply = await far.complete(
            {**ASK, "model": "other", "stream": True, "top_k": 7}
        )

    sent = model.chats[0]
    assert reply.body["content"] == [{"type": "text", "text": "yes"}]
    assert sent.path == "/v1/messages"
    assert sent.body == {**ASK, "model": "claude", "top_k": 7}
    assert sent.headers["x-api-key"] == KEY
    assert sent.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in sent.headers


@pytest.mark.parametrize(
    ("own", "asked", "sent"), [(None, None, 4096), (300, None, 300), (300, 20, 20)]
)
async def test_without_a_limit_of_the_caller_that_of_the_deployment_is_sent(
    session: aiohttp.ClientSession, own: int | None, asked: int | None, sent: int
) -> None:
    request = {"messages": ASK["messages"]} | ({"max_tokens": asked} if asked else {})
    async with ScriptedModel([Rule(reply="yes")] * 2, api_key=KEY) as model:
        far = client(model.anthropic_url, session, max_output_tokens=own)
        await far.complete(request)
        await read(await far.stream(request))

        assert [one.body["max_tokens"] for one in model.chats] == [sent, sent]


async def test_what_the_scripted_model_says_is_what_the_sdk_understands() -> None:
    # Otherwise these tests would show no more than that two of ours agree.
    rule = Rule(
        reasoning="hm hm",
        reply="yes it is",
        tool_calls=[{"name": "bash", "arguments": {"cmd": "ls", "n": [1]}}],
        usage=COUNTS,
    )
    async with ScriptedModel([rule], api_key=KEY) as model:
        sdk = anthropic.AsyncAnthropic(base_url=model.anthropic_url, api_key=KEY)
        async with sdk, sdk.messages.stream(model="m", **ASK) as stream:
            message = await stream.get_final_message()
        async with anthropic.AsyncAnthropic(
            base_url=model.anthropic_url, api_key=KEY
        ) as sdk:
            whole = await sdk.messages.create(model="m", **ASK)

    for one in (message, whole):
        assert [block.type for block in one.content] == ["thinking", "text", "tool_use"]
        assert one.content[2].to_dict()["input"] == {"cmd": "ls", "n": [1]}
        assert one.stop_reason == "tool_use"
        assert one.usage.to_dict() == COUNTS


async def test_usage_adds_up_what_was_cached_and_written(
    session: aiohttp.ClientSession,
) -> None:
    async with ScriptedModel([Rule(reply="a b", usage=COUNTS)]) as model:
        far = client(model.anthropic_url, session)
        reply = await far.complete(ASK)
        stream = await far.stream(ASK)
        await read(stream)

    assert reply.usage == stream.usage() == WHOLE
    assert [chat.billed for chat in model.chats] == [WHOLE, WHOLE]


@pytest.mark.parametrize("where", ["last", "with_finish", "first"])
async def test_usage_is_read_at_the_start_and_at_the_end(
    session: aiohttp.ClientSession, where: Any
) -> None:
    rule = Rule(reply="a b", usage=COUNTS, usage_in=where)
    async with ScriptedModel([rule]) as model:
        stream = await client(model.anthropic_url, session).stream(ASK)
        await read(stream)

    assert stream.usage() == WHOLE


async def test_the_newest_of_cumulative_counts_stands(
    session: aiohttp.ClientSession,
) -> None:
    raw = START + TEXT + ending(output_tokens=7) + ending(output_tokens=9) + STOP
    async with ScriptedModel([Rule(raw=raw)]) as model:
        stream = await client(model.anthropic_url, session).stream(ASK)
        await read(stream)

    assert stream.usage() == Usage(input_tokens=5, output_tokens=9)


async def test_what_a_start_guesses_of_the_output_is_not_its_count(
    session: aiohttp.ClientSession,
) -> None:
    rule = Rule(reply="a b c d", usage=COUNTS, cut_after_chunks=6, chunk_delay_s=0.02)
    async with ScriptedModel([rule]) as model:
        stream = await client(model.anthropic_url, session).stream(ASK)
        with pytest.raises(UpstreamError):
            await read(stream)

    assert stream.usage().input_tokens == 100
    assert stream.usage().output_tokens is None
    assert not stream.complete


async def test_bytes_of_a_stream_pass_unchanged_and_its_end_is_told(
    session: aiohttp.ClientSession,
) -> None:
    odd = event("content_block_delta", index=0, delta={"text": '"message_ "error"'})
    raw = START + event("ping") + TEXT + odd + event("new_kind", x=1) + ending() + STOP
    async with ScriptedModel([Rule(raw=raw.replace("\n", "\r\n"))]) as model:
        stream = await client(model.anthropic_url, session).stream(ASK)
        got = b""
        async for piece in stream:
            got += piece
            assert stream.complete is (b"message_stop" in piece)

    assert got == raw.replace("\n", "\r\n").encode()
    assert stream.complete


async def test_a_ping_is_no_token(session: aiohttp.ClientSession) -> None:
    # Start, start of the block, ping; the first word would come 5 s later.
    rule = Rule(reply="a", chunk_delay_s=0.1, usage=COUNTS)
    slow = Rule(reply="a", chunk_delay_s=5)
    async with ScriptedModel([rule]) as model:
        stream = await client(model.anthropic_url, session).stream(ASK)
        assert b"text_delta" in await anext(aiter(stream))
        await stream.aclose()
    async with ScriptedModel([slow]) as model:
        far = client(model.anthropic_url, session, timeout_s=0.3, idle_s=0.3)
        with pytest.raises(UpstreamError, match="said nothing"):
            await far.stream(ASK)


@pytest.mark.parametrize(
    "first",
    [
        event("content_block_start", index=0, content_block={"type": "tool_use"}),
        event("content_block_delta", index=0, delta={"thinking": "hm"}),
        event("content_block_delta", index=0, delta={"partial_json": "{"}),
        ending(output_tokens=0) + STOP,
    ],
)
async def test_a_tool_a_thought_and_an_empty_end_are_tokens(
    session: aiohttp.ClientSession, first: str
) -> None:
    async with ScriptedModel([Rule(raw=START + first)]) as model:
        stream = await client(model.anthropic_url, session).stream(ASK)

        assert await anext(aiter(stream)) == (START + first).encode()
        await stream.aclose()


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("overloaded_error", 529),
        ("rate_limit_error", 429),
        ("invalid_request_error", 400),
        ("api_error", 500),
        ("a_new_error", None),
    ],
)
@pytest.mark.parametrize("before", ["", START, START + TEXT])
async def test_an_error_event_has_the_status_of_its_type(
    session: aiohttp.ClientSession, kind: str, status: int | None, before: str
) -> None:
    error = event("error", error={"type": kind, "message": f"no more {KEY}"})
    got: list[bytes] = []
    async with ScriptedModel([Rule(raw=before + error)]) as model:
        far = client(model.anthropic_url, session)
        with pytest.raises(UpstreamError, match="no more") as caught:
            await drain(await far.stream(ASK), got)

    assert caught.value.status == status
    assert KEY not in str(caught.value)
    assert b"".join(got) == (before.encode() if TEXT in before else b"")


async def test_an_error_reply_has_its_status_and_its_sentence(
    session: aiohttp.ClientSession,
) -> None:
    rule = Rule(status=529, reply="too busy", headers={"Retry-After": "3"})
    async with ScriptedModel([rule]) as model:
        with pytest.raises(UpstreamError, match="HTTP 529: too busy") as caught:
            await client(model.anthropic_url, session).stream(ASK)

    assert caught.value.status == 529
    assert caught.value.retry_after_s == 3


@pytest.mark.parametrize("way", ["complete", "stream"])
async def test_an_error_in_a_reply_of_status_200_is_one(
    session: aiohttp.ClientSession, way: str
) -> None:
    raw = '{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}'
    async with ScriptedModel([Rule(raw=raw)]) as model:
        with pytest.raises(UpstreamError, match="busy"):
            await getattr(client(model.anthropic_url, session), way)(ASK)


@pytest.mark.parametrize("way", ["complete", "stream"])
@pytest.mark.parametrize("status", [301, 307])
async def test_a_redirect_is_an_error_and_the_key_goes_nowhere_else(
    session: aiohttp.ClientSession, way: str, status: int
) -> None:
    async with ScriptedModel([Rule(reply="stolen")]) as thief:
        target = f"{thief.anthropic_url}/v1/messages"
        rule = Rule(status=status, headers={"Location": target})
        async with ScriptedModel([rule]) as model:
            with pytest.raises(UpstreamError, match="redirect"):
                await getattr(client(model.anthropic_url, session), way)(ASK)

    assert thief.requests == []


@pytest.mark.parametrize(
    "raw",
    ["", "[]", "{}", '{"type": "message"}', '{"type": "message", "content": "x"}'],
)
async def test_an_answer_that_is_none_is_an_upstream_error(
    session: aiohttp.ClientSession, raw: str
) -> None:
    async with ScriptedModel([Rule(raw=raw)]) as model:
        with pytest.raises(UpstreamError):
            await client(model.anthropic_url, session).complete(ASK)


async def test_death_in_the_middle_is_an_error_after_what_came(
    session: aiohttp.ClientSession,
) -> None:
    got: list[bytes] = []
    async with ScriptedModel([Rule(raw=START + TEXT)]) as model:
        stream = await client(model.anthropic_url, session).stream(ASK)
        with pytest.raises(UpstreamError, match="middle"):
            await drain(stream, got)

    assert b"".join(got) == (START + TEXT).encode()


async def test_embeddings_are_refused_before_anybody_is_asked(
    session: aiohttp.ClientSession,
) -> None:
    async with ScriptedModel([Rule()]) as model:
        with pytest.raises(InvalidInput, match="no embeddings"):
            await client(model.anthropic_url, session).embed({"input": "x"})

    assert model.requests == []


async def test_nothing_listening_is_unavailable_and_an_odd_address_misconfigured(
    session: aiohttp.ClientSession,
) -> None:
    with pytest.raises(Unavailable) as caught:
        await client("http://127.0.0.1:1", session).complete(ASK)
    assert not isinstance(caught.value, UpstreamError)
    with pytest.raises(Misconfigured):
        client("file:///etc", session)
