"""Streams of OpenAI-compatible servers: bytes as they came, usage wherever it stands."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from tests.servers.bare_http import EVENTS, LAST_CHUNK, BareServer, chunk
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.errors import UpstreamError
from nestor.model.routing import Deployment, Side
from nestor.model.task import Usage

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


async def drain(stream: Any, into: list[bytes]) -> None:
    async for event in stream:
        into.append(event)  # noqa: PERF401 - what came before an error is wanted


async def read(stream: Any) -> bytes:
    return b"".join([event async for event in stream])


TOLD = (
    ": ping\r\n\r\n"
    'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}],"usage":null}\n\n'
    'data: {"choices":[{"index":0,"delta":{"content":"[DONE] \\"usage\\": {é"}}]}\r\n\r\n'
    'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\r\n'
)
USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
DONE = "data: [DONE]\n\n"


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


@pytest.mark.parametrize(
    "where", ["last", "with_finish", "each", "first", "after_done"]
)
@pytest.mark.parametrize("asked", [True, False])
async def test_usage_is_read_wherever_a_server_puts_it(
    session: aiohttp.ClientSession, where: Any, asked: bool
) -> None:
    counts = {
        "prompt_tokens": 90,
        "completion_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 40},
        "completion_tokens_details": {"reasoning_tokens": 20},
    }
    rule = Rule(reply="a b c", usage=counts, usage_in=where)
    ask = {**ASK, "stream_options": {"include_usage": True}} if asked else ASK
    async with ScriptedModel([rule]) as model:
        stream = await client(model.base_url, session).stream(ask)
        raw = await read(stream)

    assert stream.usage() == model.chats[0].billed
    assert stream.usage() == Usage(
        input_tokens=90, output_tokens=30, cached_tokens=40, reasoning_tokens=20
    )
    assert raw.endswith(b"data: [DONE]\n\n")
    assert raw.count(b"[DONE]") == 1


async def test_the_largest_count_of_a_stream_stands(
    session: aiohttp.ClientSession,
) -> None:
    counts = [(5, 0), (5, 3), (0, 2)]
    raw = "".join(
        f'data: {{"choices":[{{"delta":{{"content":"x"}}}}],"usage":{{"prompt_tokens":{one},'
        f'"completion_tokens":{two}}}}}\n\n'
        for one, two in counts
    )
    end = 'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    async with ScriptedModel([Rule(raw=raw + end)]) as model:
        stream = await client(model.base_url, session).stream(ASK)
        got = await read(stream)

    assert stream.usage() == Usage(input_tokens=5, output_tokens=3)
    assert got == (raw + end).encode()


async def test_a_count_that_runs_along_is_not_the_bill_of_an_answer_that_broke(
    session: aiohttp.ClientSession,
) -> None:
    rule = Rule(reply="one two three", usage_in="each", cut_after_chunks=3)
    async with ScriptedModel([rule]) as model:
        stream = await client(model.base_url, session).stream(ASK)
        with pytest.raises(UpstreamError):
            await read(stream)

    assert stream.usage() == Usage(input_tokens=11)


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


async def test_however_a_stream_is_cut_its_bytes_and_its_usage_are_the_same(
    session: aiohttp.ClientSession,
) -> None:
    raw = (TOLD + USAGE + DONE).encode()
    cut = 0

    async def serve(
        server: BareServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.read_request(reader)
        writer.write(EVENTS + chunk(raw[:cut]))
        await writer.drain()
        await asyncio.sleep(0.005)
        writer.write(chunk(raw[cut:]) + LAST_CHUNK)

    async with BareServer(serve) as server:
        far = client(server.base_url, session)
        for cut in range(1, len(raw)):
            stream = await far.stream(ASK)
            pieces = [piece async for piece in stream]

            assert b"".join(pieces) == (TOLD + DONE).encode(), cut
            assert all(piece.endswith((b"\n\n", b"\n\r\n")) for piece in pieces), cut
            assert stream.usage() == Usage(input_tokens=3, output_tokens=4), cut


async def test_what_came_as_one_piece_goes_on_as_one(
    session: aiohttp.ClientSession,
) -> None:
    word = 'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
    async with ScriptedModel([Rule(raw=word * 200 + TOLD + USAGE + DONE)]) as model:
        stream = await client(model.base_url, session).stream(ASK)
        pieces = [piece async for piece in stream]

    assert b"".join(pieces) == (word * 200 + TOLD + DONE).encode()
    assert len(pieces) < 5


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (TOLD + DONE, 5),
        (TOLD, 4),  # a finish, and then a clean end
        (TOLD + "data: [DONE]", 5),  # without the empty line
        (TOLD + "data: [DONE]\n", 5),
    ],
)
async def test_a_stream_says_when_its_last_event_was_handed_out(
    session: aiohttp.ClientSession, raw: str, events: int
) -> None:
    async with ScriptedModel([Rule(raw=raw)]) as model:
        stream = await client(model.base_url, session).stream(ASK)
        assert not stream.complete
        got = b""
        async for piece in stream:
            got += piece
            assert stream.complete is (b"data: [DONE]" in piece)
        assert stream.complete

    assert len(re.findall(rb"\n\r?\n", got)) == events


async def test_a_stream_that_died_is_not_complete(
    session: aiohttp.ClientSession,
) -> None:
    rule = Rule(reply="one two three", cut_after_chunks=3, chunk_delay_s=0.02)
    async with ScriptedModel([rule]) as model:
        stream = await client(model.base_url, session).stream(ASK)
        with pytest.raises(UpstreamError):
            await read(stream)

    assert not stream.complete
    assert model.chats[0].billed is not None


@pytest.mark.parametrize(
    "raw",
    [
        '{"error": {"message": "out of memory", "code": 503}}',
        'data: {"error": {"message": "out of memory", "code": 503}}\n\n',
        'event: error\ndata: {"message": "out of memory"}\n\n',
        'data: {"error": "out of memory"}\n\n',
    ],
)
async def test_an_error_in_place_of_a_stream_is_the_calls_own(
    session: aiohttp.ClientSession, raw: str
) -> None:
    async with ScriptedModel([Rule(raw=raw)]) as model:
        with pytest.raises(UpstreamError, match="out of memory"):
            await client(model.base_url, session).stream(ASK)


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
