"""Where a stream of a model's server ends, and where one that finds no end is ended."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from tests.servers.bare_http import EVENTS, LAST_CHUNK, BareServer, chunk

from nestor.backends.anthropic.client import AnthropicClient
from nestor.backends.model_http import stream
from nestor.backends.model_http.stream import EventStream
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.errors import UpstreamError
from nestor.model.routing import Deployment, Dialect, Side
from nestor.model.task import Usage

ASK: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"
COUNTED = Usage(input_tokens=3, output_tokens=4)
Write = Callable[[bytes], Awaitable[None]]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with model_session() as session:
        yield session


def serving(says: Callable[[Write], Awaitable[None]]) -> BareServer:
    """Answer each request as ``says`` does; what it writes goes out at once, by itself."""

    async def serve(
        server: BareServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async def write(raw: bytes) -> None:
            writer.write(raw)
            await writer.drain()
            await asyncio.sleep(0.02)

        while await server.read_request(reader) is not None:
            await says(write)

    return BareServer(serve)


def client(
    server: BareServer, session: aiohttp.ClientSession, **how: Any
) -> OpenAIClient:
    deployment = Deployment(
        name="far", side=Side.REMOTE, model="m", base_url=server.base_url, timeout_s=5
    )
    return OpenAIClient(deployment, session, **how)


async def until_done(found: EventStream) -> bytes:
    """Read as SDKs do: nobody asks for more than ``[DONE]``."""
    read = b""
    async with asyncio.timeout(5):
        async for piece in found:
            read += piece
            if DONE in read:
                break
        await found.aclose()
    return read


async def drain(found: EventStream, into: list[bytes] | None = None) -> None:
    async with asyncio.timeout(5):
        async for piece in found:
            if into is not None:
                into.append(piece)


async def test_usage_after_the_end_is_known_to_a_call_whose_caller_left_at_the_end(
    session: aiohttp.ClientSession,
) -> None:
    async def says(write: Write) -> None:
        await write(EVENTS + chunk(TEXT + FINISH + DONE))
        await write(chunk(USAGE) + LAST_CHUNK)

    async with serving(says) as server:
        found = await client(server, session).stream(ASK)
        read = await until_done(found)

    assert read == TEXT + FINISH + DONE
    assert (found.usage(), found.complete) == (COUNTED, True)


async def test_usage_after_the_end_may_lack_its_empty_line(
    session: aiohttp.ClientSession,
) -> None:
    async def says(write: Write) -> None:
        await write(EVENTS + chunk(TEXT + FINISH + DONE))
        await write(chunk(USAGE.rstrip()) + LAST_CHUNK)

    async with serving(says) as server:
        found = await client(server, session).stream(ASK)
        await until_done(found)

    assert found.usage() == COUNTED


async def test_where_the_usage_was_said_the_end_waits_for_nothing(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LINGER_S", 60.0)

    async def says(write: Write) -> None:
        await write(EVENTS + chunk(TEXT) + chunk(FINISH + USAGE + DONE))
        await asyncio.sleep(30)  # the reply does not end

    async with serving(says) as server:
        found = await client(server, session).stream(ASK)
        pieces: list[bytes] = []
        await drain(found, pieces)
        await found.aclose()

    assert b"".join(pieces) == TEXT + FINISH + DONE
    assert pieces[-1].endswith(FINISH + DONE)


async def test_without_any_usage_the_text_is_there_before_the_end_is_waited_for(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LINGER_S", 60.0)

    async def says(write: Write) -> None:
        await write(EVENTS + chunk(TEXT + FINISH + DONE))
        await asyncio.sleep(30)

    async with serving(says) as server:
        found = await client(server, session).stream(ASK)
        async with asyncio.timeout(5):
            assert await anext(found) == TEXT + FINISH
        assert not found.complete
        monkeypatch.setattr(stream, "LINGER_S", 0.1)
        assert await until_done(found) == DONE

    assert (found.usage(), found.complete) == (Usage(), True)


async def test_a_stream_of_too_many_bytes_is_ended(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_STREAM_BYTES", 200 * len(TEXT))

    async def says(write: Write) -> None:
        await write(EVENTS)
        while True:
            await write(chunk(TEXT * 40))

    async with serving(says) as server:
        found = await client(server, session).stream(ASK)
        pieces: list[bytes] = []
        with pytest.raises(UpstreamError, match="far: its answer is longer than"):
            await drain(found, pieces)
        async with asyncio.timeout(5):
            await server.left.wait()

    assert b"".join(pieces) == TEXT * 200
    assert not found.complete


async def test_a_stream_that_takes_too_long_is_ended_though_it_is_never_silent(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_STREAM_S", 0.4)

    async def says(write: Write) -> None:
        await write(EVENTS)
        while True:
            await write(chunk(TEXT))

    async with serving(says) as server:
        found = await client(server, session).stream(ASK)
        with pytest.raises(
            UpstreamError, match=r"far: its answer takes longer than 0\.4 s"
        ):
            await drain(found)
        async with asyncio.timeout(5):
            await server.left.wait()


@pytest.mark.parametrize(
    "drip",
    [
        [chunk(b": x\n\n")],
        [chunk(b": x"), chunk(b"\n\n")],
        [chunk(b": data: {}\r\n\r\n")],
        [chunk(b"retry: 9\n\n"), chunk(b"\n")],
    ],
    ids=["comment", "halves", "looks like data", "fields"],
)
async def test_comments_are_silence(
    session: aiohttp.ClientSession, drip: list[bytes]
) -> None:
    async def says(write: Write) -> None:
        await write(EVENTS + chunk(TEXT))
        while True:
            for raw in drip:
                await write(raw)

    async with serving(says) as server:
        found = await client(server, session, idle_s=0.3).stream(ASK)
        with pytest.raises(UpstreamError, match=r"far: said nothing for 0\.3 s"):
            await drain(found)


async def test_a_slow_reader_of_comments_is_no_silence_of_the_upstream(
    session: aiohttp.ClientSession,
) -> None:
    back = asyncio.Event()

    async def says(write: Write) -> None:
        await write(EVENTS + chunk(TEXT))
        await write(chunk(b": x\n\n"))
        await back.wait()
        await asyncio.sleep(0.9)
        await write(chunk(TEXT + FINISH + USAGE + DONE) + LAST_CHUNK)

    async with serving(says) as server:
        found = await client(server, session, idle_s=1.5).stream(ASK)
        read = b""
        async for piece in found:
            read += piece
            if piece.startswith(b":"):
                await asyncio.sleep(2.25)
                back.set()

    assert read == TEXT + b": x\n\n" + TEXT + FINISH + DONE


async def test_pings_of_anthropics_events_are_none(
    session: aiohttp.ClientSession,
) -> None:
    ping = b'event: ping\ndata: {"type":"ping"}\n\n'
    text = (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"a"}}\n\n'
    )
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    async def says(write: Write) -> None:
        await write(EVENTS + chunk(text))
        for _ in range(12):
            await write(chunk(ping))
            await asyncio.sleep(0.2)
        await write(chunk(stop) + LAST_CHUNK)

    async with serving(says) as server:
        deployment = Deployment(
            name="far",
            side=Side.REMOTE,
            dialect=Dialect.ANTHROPIC,
            model="m",
            base_url=server.base_url,
        )
        found = await AnthropicClient(deployment, session, idle_s=1).stream(ASK)
        read = b"".join([piece async for piece in found])

    assert read == text + ping * 12 + stop


async def told(asked: OpenAIClient, way: str) -> None:
    async with asyncio.timeout(3):
        if way == "complete":
            await asked.complete(ASK)
        else:
            await drain(await asked.stream(ASK))


@pytest.mark.parametrize("began", [b"", chunk(TEXT)], ids=["head", "text"])
@pytest.mark.parametrize("way", ["stream", "complete"])
@pytest.mark.parametrize("frame", [b"ZZZ\r\n", b"2\r\nabcdef\r\n", b"f" * 17 + b"\r\n"])
async def test_frames_without_sense_are_an_error_at_once(
    session: aiohttp.ClientSession, frame: bytes, way: str, began: bytes
) -> None:
    async def says(write: Write) -> None:
        await write(EVENTS + began)
        await write(frame)

    async with serving(says) as server:
        asked = client(server, session, idle_s=30)
        with pytest.raises(UpstreamError, match="far: the connection broke"):
            await told(asked, way)
        async with asyncio.timeout(5):
            await server.left.wait()


@pytest.mark.parametrize("way", ["stream", "complete"])
@pytest.mark.parametrize(
    "before", [b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 20], ids=["", "continued"]
)
@pytest.mark.parametrize("to", [b"x", b"websocket", b"h2c"])
async def test_a_change_of_protocol_is_an_error_at_once(
    session: aiohttp.ClientSession, to: bytes, before: bytes, way: str
) -> None:
    async def says(write: Write) -> None:
        head = b"HTTP/1.1 101 Switching\r\nUpgrade: %b\r\nConnection: upgrade\r\n\r\n"
        await write(before + head % to + b"foo")

    async with serving(says) as server:
        with pytest.raises(UpstreamError, match="far: HTTP 101") as raised:
            await told(client(server, session), way)
        async with asyncio.timeout(5):
            await server.left.wait()

    assert raised.value.status == 101
