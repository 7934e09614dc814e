"""Clients that are slow or silent, over raw sockets."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.faces.shell import Served, small_nestor, status_of
from tests.faces.wired import LATE, SOON, began, kept, wired


@pytest.fixture
async def soon(tmp_path: Path) -> AsyncIterator[Served]:
    async with wired(small_nestor(tmp_path)) as shell:
        yield shell


@pytest.fixture
async def late(tmp_path: Path) -> AsyncIterator[Served]:
    async with wired(small_nestor(tmp_path), LATE) as shell:
        yield shell


async def dripped(
    shell: Served, start: bytes, drop: bytes, *, wait_s: float = 10.0
) -> bytes:
    """Send ``start``, then ``drop`` ten times a second, until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", shell.port)

    async def drip() -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(drop)
                await asyncio.sleep(0.1)

    writer.write(start)
    dripping = asyncio.create_task(drip())
    answer = b""
    try:
        async with asyncio.timeout(wait_s):
            with suppress(ConnectionError):
                while part := await reader.read(65_536):
                    answer += part
    finally:
        dripping.cancel()
        writer.close()
    return answer


# Heads ---------------------------------------------------------------------------------


async def test_l4_a_client_that_says_nothing_is_left_without_a_word(
    soon: Served,
) -> None:
    assert await soon.raw() == b""
    assert await dripped(soon, b"", b"\r\n") == b""


async def test_l4_half_a_head_is_answered_408(soon: Served) -> None:
    half = soon.head("DELETE /things/1 HTTP/1.1")[:-2]
    for answer in (await soon.raw(half), await soon.raw(b"D")):
        assert status_of(answer) == 408
        assert answer.count(b"HTTP/1.1 ") == 1
        for part in (b"application/problem+json", b"nosniff", b"connection: close"):
            assert part in answer
    assert soon.nestor.done == []


async def test_l4_a_head_that_drips_is_answered_408(soon: Served) -> None:
    answer = await dripped(soon, kept(soon, "GET /things HTTP/1.1")[:-2] + b"A: ", b"b")
    assert status_of(answer) == 408


async def test_l4_the_second_head_of_a_connection_has_its_time_too(
    soon: Served,
) -> None:
    first = kept(soon, "GET /things HTTP/1.1")
    answer = await soon.raw(first + b"GET /th")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 408") == 1
    assert answer.count(b"HTTP/1.1 ") == 2


async def test_a_kept_connection_may_be_idle_for_longer_and_not_for_ever(
    soon: Served,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", soon.port)
    for _ in range(2):
        writer.write(kept(soon, "GET /things HTTP/1.1"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        await reader.readuntil(b"}")
        await asyncio.sleep(2 * SOON.head_s)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


async def test_a_request_that_comes_behind_a_slow_answer_is_not_late(
    soon: Served,
) -> None:
    async def release() -> None:
        await began(soon)
        await asyncio.sleep(3 * SOON.head_s)
        soon.nestor.hold.set()

    task = asyncio.create_task(release())
    answer = await soon.raw(kept(soon, "POST /slow HTTP/1.1") + b"GET /th")
    await task
    assert answer.startswith(b"HTTP/1.1 201")
    assert b"HTTP/1.1 408" in answer


# Bodies --------------------------------------------------------------------------------

FRAMINGS = {
    "length": ("Content-Length: 400000", b'{"name":"a"'),
    "chunked": ("Transfer-Encoding: chunked", b'b\r\n{"name":"a"\r\n'),
}


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_l4_a_body_that_stops_is_answered_408_and_never_served(
    soon: Served, framing: str
) -> None:
    line, half = FRAMINGS[framing]
    # So much in no time that its average is no reason.
    half += b"186a0\r\n" * (framing == "chunked") + b" " * 100_000
    answer = await soon.raw(soon.head("POST /things HTTP/1.1", line), half)
    assert status_of(answer) == 408
    assert answer.count(b"HTTP/1.1 ") == 1
    await asyncio.sleep(0.1)
    assert soon.nestor.done == []


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_l4_a_body_that_drips_is_answered_408_and_never_served(
    soon: Served, framing: str
) -> None:
    line, half = FRAMINGS[framing]
    drop = b"1\r\n \r\n" if framing == "chunked" else b" "
    head = soon.head("POST /things HTTP/1.1", line)
    answer = await dripped(soon, head + half, drop)
    assert status_of(answer) == 408
    assert answer.count(b"HTTP/1.1 ") == 1
    assert soon.nestor.done == []


async def test_l4_the_rest_of_a_refused_body_holds_no_connection(
    tmp_path: Path,
) -> None:
    async with wired(small_nestor(tmp_path), replace(SOON, keep_alive_s=60)) as shell:
        head = kept(shell, "POST /things HTTP/1.1", "Content-Length: 100000", key=None)
        answer = await dripped(shell, head, b"x")
    assert status_of(answer) == 401
    assert answer.count(b"HTTP/1.1 ") == 1  # a second one would answer the next request


async def test_a_slow_line_is_no_attack(soon: Served) -> None:
    size = 40_000
    head = soon.head("POST /documents HTTP/1.1", f"Content-Length: {size}")
    reader, writer = await asyncio.open_connection("127.0.0.1", soon.port)
    writer.write(head)
    began_at = time.monotonic()
    for _ in range(20):
        await asyncio.sleep(0.1)
        writer.write(b"x" * (size // 20))
    assert time.monotonic() - began_at > 3 * SOON.body_idle_s
    assert status_of(await reader.read()) == 201
    writer.close()


async def test_a_client_is_not_late_when_the_service_is(soon: Served) -> None:
    async def release() -> None:
        await began(soon)
        await asyncio.sleep(3 * SOON.body_idle_s)
        soon.nestor.hold.set()

    for body in (b"", b"x" * 900_000):  # of the second only a part is read: nobody asks
        soon.nestor.hold.clear()
        soon.nestor.done.clear()
        task = asyncio.create_task(release())
        head = kept(soon, "POST /slow HTTP/1.1", f"Content-Length: {len(body)}")
        reader, writer = await asyncio.open_connection("127.0.0.1", soon.port)
        writer.write(head + body + soon.head("GET /needed?phase=7 HTTP/1.1"))
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert status_of(answer) == 201
        assert b'{"phase":7}' in answer
        await task
        writer.close()


async def test_a_client_that_waits_for_100_is_not_late(soon: Served) -> None:
    async def release() -> None:
        await began(soon)
        await asyncio.sleep(3 * SOON.body_idle_s)
        soon.nestor.hold.set()

    task = asyncio.create_task(release())
    lines = ("Expect: 100-continue", "Content-Length: 5")
    answer = await soon.raw(soon.head("POST /slow HTTP/1.1", *lines))
    await task
    assert status_of(answer) == 201


# Replies -------------------------------------------------------------------------------


def greedy(port: int) -> socket.socket:
    """A connection whose client takes little at a time."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


LARGE = 2_000
"""Times the OpenAPI document: more than all buffers on the way hold."""


async def ask_for_much(shell: Served, sock: socket.socket) -> asyncio.Task[None]:
    async def send() -> None:
        head = kept(shell, "GET /schema/openapi.json HTTP/1.1")
        with suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(sock, head * LARGE)

    return asyncio.create_task(send())


async def read_all(sock: socket.socket, pause_s: float = 0.0) -> bytes:
    answer = bytearray()
    with suppress(ConnectionError):
        while part := await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
            answer += part
            await asyncio.sleep(pause_s)
    return bytes(answer)


async def first_of(sock: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, 1_000)


async def test_l4_a_client_that_takes_no_reply_is_cut(soon: Served) -> None:
    with greedy(soon.port) as sock:
        sending = await ask_for_much(soon, sock)
        await asyncio.sleep(5 * SOON.write_idle_s)
        async with asyncio.timeout(20):
            answer = await read_all(sock)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1 200") < LARGE
        await sending
    assert (await soon.call("GET", "/things")).status == 200


async def test_l4_replies_nobody_takes_hold_no_place_in_the_service(
    late: Served,
) -> None:
    with greedy(late.port) as sock:
        sending = await ask_for_much(late, sock)
        await asyncio.sleep(2)
        tasks = [repr(task.get_coro()) for task in asyncio.all_tasks()]
        assert [name for name in tasks if "run_asgi" in name] == []
        sending.cancel()
        await asyncio.wait({sending})
        answer = await first_of(sock)
        assert answer.startswith(b"HTTP/1.1 200")


async def test_a_slow_reader_gets_all_of_it(soon: Served) -> None:
    size = len((await soon.call("GET", "/schema/openapi.json")).body)
    times = 40
    last = soon.head("GET /schema/openapi.json HTTP/1.1")
    head = kept(soon, "GET /schema/openapi.json HTTP/1.1")
    with greedy(soon.port) as sock:
        sending = asyncio.create_task(
            asyncio.get_running_loop().sock_sendall(sock, head * (times - 1) + last)
        )
        answer = await read_all(sock, pause_s=0.01)
        await sending
    assert answer.count(b"HTTP/1.1 200") == times
    assert len(answer) > times * size


async def test_a_stream_with_a_reader_outlives_every_deadline(soon: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", soon.port)
    writer.write(soon.head("GET /follow HTTP/1.1"))
    began_at = time.monotonic()
    while time.monotonic() - began_at < 3 * SOON.keep_alive_s:
        async with asyncio.timeout(5):
            assert b"data: tick" in await reader.readuntil(b"\n\n")
    writer.close()


async def test_a_stream_ends_when_its_client_left_a_request_behind(
    late: Served,
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", late.port)
    writer.write(
        kept(late, "GET /follow HTTP/1.1") + kept(late, "GET /things HTTP/1.1")
    )
    await asyncio.sleep(0.3)
    writer.transport.abort()
    await began(late, "stream ended")
