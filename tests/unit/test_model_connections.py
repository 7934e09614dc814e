"""Connections to model servers: kept, never used when they ended, closed at once."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from tests.conftest import Rounds
from tests.servers.bare_http import EVENTS, LAST_CHUNK, REPLY, BareServer, chunk
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.model_http.connections import KeptConnections
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.errors import UpstreamError
from nestor.model.routing import Deployment, Side

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
END = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
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
    **how: Any,
) -> OpenAIClient:
    deployment = Deployment(
        name="far", side=Side.REMOTE, model="m", base_url=base_url, timeout_s=timeout_s
    )
    return OpenAIClient(deployment, session, **how)


async def answers(
    server: BareServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer every request of a connection."""
    while (body := await server.read_request(reader)) is not None:
        if b'"stream":true' in body:
            writer.write(EVENTS + chunk(EVENT) + chunk(END))
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(LAST_CHUNK)
        else:
            writer.write(REPLY)
        await writer.drain()


async def test_calls_one_after_the_other_share_a_connection(
    session: aiohttp.ClientSession,
) -> None:
    async with BareServer(answers) as server:
        far = client(server.base_url, session)
        for _ in range(10):
            await far.complete(ASK)

        assert (server.read, server.connections) == (10, 1)


async def test_a_streams_connection_is_kept_once_its_reply_has_ended(
    session: aiohttp.ClientSession,
) -> None:
    async with BareServer(answers) as server:
        far = client(server.base_url, session)
        for _ in range(5):
            assert [piece async for piece in await far.stream(ASK)]
            await asyncio.sleep(0.05)  # the end of the reply comes after its last event

        assert (server.read, server.connections) == (5, 1)


async def test_a_reply_that_does_not_end_does_not_hold_its_connection() -> None:
    async def never_ends(
        server: BareServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.read_request(reader)
        writer.write(EVENTS + chunk(EVENT) + chunk(END))
        await server.read_request(reader)

    async with BareServer(never_ends) as server, model_session() as session:
        stream = await client(server.base_url, session).stream(ASK)
        assert [piece async for piece in stream]
        async with asyncio.timeout(5):
            await server.left.wait()


async def test_a_connection_that_was_idle_for_long_is_not_used_again() -> None:
    connector = KeptConnections(idle_s=0.1)
    async with BareServer(answers) as server:
        async with aiohttp.ClientSession(connector=connector) as session:
            far = client(server.base_url, session)
            await far.complete(ASK)
            await asyncio.sleep(0.3)
            await far.complete(ASK)

        assert server.connections == 2


async def test_an_end_at_any_moment_is_an_answer_or_an_error_and_asks_nobody_twice(
    session: aiohttp.ClientSession, counted: Rounds
) -> None:
    pause_s = 0.0

    async def closes_after_each(
        server: BareServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Promise to keep the connection, and end it a moment later."""
        await server.read_request(reader)
        writer.write(REPLY)
        await writer.drain()
        await asyncio.sleep(pause_s)

    asked = stale = good = 0
    async with BareServer(closes_after_each) as server:
        far = client(server.base_url, session)
        for _, chance in counted("model_connections", 100, 2000):
            pause_s = chance.choice([0, 0, 0.001, 0.002])
            asked += 1
            try:
                await far.complete(ASK)
                good += 1
            except UpstreamError as error:
                assert error.stale  # noqa: PT017 - there are two ends, both are right
                stale += 1
            await asyncio.sleep(chance.choice([0, 0.001, 0.003]))

        assert good + stale == asked
        assert good <= server.read <= good + stale


async def test_what_ended_before_the_question_is_seen_before_it_is_sent(
    session: aiohttp.ClientSession,
) -> None:
    sockets = []

    async def serves(
        server: BareServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        sockets.append(writer.get_extra_info("socket"))
        await answers(server, reader, writer)

    async with BareServer(serves) as server:
        far = client(server.base_url, session)
        for _ in range(20):
            await far.complete(ASK)
            # The end is here, and the loop had no turn to see it.
            sockets.pop().shutdown(socket.SHUT_RDWR)

        assert (server.read, server.connections) == (20, 20)


@pytest.mark.parametrize("way", ["complete", "stream"])
async def test_a_kept_connection_that_ends_without_a_byte_is_stale(
    session: aiohttp.ClientSession, way: str
) -> None:
    async def once(
        server: BareServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.read_request(reader)
        writer.write(REPLY)
        await server.read_request(reader)  # and goes, without a word

    async with BareServer(once) as server:
        far = client(server.base_url, session)
        await far.complete(ASK)
        with pytest.raises(UpstreamError, match="kept connection") as caught:
            await getattr(far, way)(ASK)

        assert caught.value.stale
        assert caught.value.status is None
        assert (server.read, server.connections) == (2, 1)


@pytest.mark.parametrize(
    ("served", "begun"), [(0, b""), (1, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n")]
)
async def test_a_new_connection_or_a_begun_answer_is_no_stale_connection(
    session: aiohttp.ClientSession, served: int, begun: bytes
) -> None:
    async def ends(
        server: BareServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for _ in range(served):
            await server.read_request(reader)
            writer.write(REPLY)
        await server.read_request(reader)
        writer.write(begun)

    async with BareServer(ends) as server:
        far = client(server.base_url, session)
        for _ in range(served):
            await far.complete(ASK)
        with pytest.raises(UpstreamError) as caught:
            await far.complete(ASK)

        assert not caught.value.stale
        assert server.connections == 1


@pytest.mark.parametrize("way", ["complete", "stream", "reading"])
async def test_a_caller_that_leaves_is_seen_by_the_upstream_at_once(
    session: aiohttp.ClientSession, way: str
) -> None:
    async def slow(
        server: BareServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.read_request(reader)
        if way == "reading":
            writer.write(EVENTS + chunk(EVENT))
        await server.read_request(reader)

    async def call() -> None:
        far = client(server.base_url, session)
        if way == "complete":
            await far.complete(ASK)
            return
        async for _ in await far.stream(ASK):
            pass

    async with BareServer(slow) as server:
        task = asyncio.create_task(call())
        await asyncio.sleep(0.1)
        assert not server.left.is_set()
        task.cancel()
        async with asyncio.timeout(1):
            await server.left.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_slow_reader_slows_the_upstream_and_fills_no_memory(
    session: aiohttp.ClientSession,
) -> None:
    megabytes = 50
    block = EVENT * (1024 * 1024 // len(EVENT))
    sent = 0

    async def pours(
        server: BareServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal sent
        await server.read_request(reader)
        writer.write(EVENTS)
        for _ in range(megabytes):
            writer.write(chunk(block))
            await writer.drain()
            sent += len(block)
        writer.write(chunk(END) + LAST_CHUNK)

    async with BareServer(pours) as server:
        stream = await client(server.base_url, session).stream(ASK)
        pieces = aiter(stream)
        read = len(await anext(pieces))
        await asyncio.sleep(0.5)
        held = sent
        async for piece in pieces:
            read += len(piece)

    # What the two sockets hold, and no more than that.
    assert held < 12 * 1024 * 1024 < megabytes * len(block)
    assert read > megabytes * len(block)


async def test_silence_is_the_upstreams_and_not_that_of_a_slow_reader(
    session: aiohttp.ClientSession,
) -> None:
    rule = Rule(reply="one two three four", chunk_delay_s=0.05)
    async with ScriptedModel([rule]) as model:
        stream = await client(model.base_url, session, idle_s=0.3).stream(ASK)
        got = b""
        async for piece in stream:
            got += piece
            if b"two" in piece:
                await asyncio.sleep(0.8)

    assert got.endswith(b"data: [DONE]\n\n")


async def test_more_calls_than_a_pool_usually_holds_run_at_one_time(
    session: aiohttp.ClientSession,
) -> None:
    async with ScriptedModel([Rule(reply="yes", delay_s=30)]) as model:
        far = client(model.base_url, session, timeout_s=60)
        asking = [asyncio.create_task(far.complete(ASK)) for _ in range(150)]
        async with asyncio.timeout(25):
            while len(model.chats) < 150:
                await asyncio.sleep(0.05)

        assert not any(one.done() for one in asking), "all of them at one time"
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)


async def test_a_large_request_goes_out_whole_and_without_a_warning(
    session: aiohttp.ClientSession,
) -> None:
    text = "é" * 2_000_000
    async with ScriptedModel([Rule(reply="yes")]) as model:
        await client(model.base_url, session).complete(
            {"messages": [{"role": "user", "content": text}]}
        )

    assert model.chats[0].body["messages"][0]["content"] == text
