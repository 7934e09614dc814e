"""Clients that are greedy or malformed, over raw sockets."""

import asyncio
import gc
import random
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.faces.shell import Served, small_nestor, status_of
from tests.faces.wired import LATE, began, kept, wired
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from nestor.web.protocol import MAX_HEAD_BYTES, MAX_PIPELINED
from nestor.web.serve import OPEN_FILES

Rounds = Callable[[str, int, int], Iterator[tuple[int, random.Random]]]


@pytest.fixture
async def late(tmp_path: Path) -> AsyncIterator[Served]:
    async with wired(small_nestor(tmp_path), LATE) as shell:
        yield shell


# Pipelines -----------------------------------------------------------------------------


def waiting_requests() -> int:
    return sum(isinstance(o, RequestResponseCycle) for o in gc.get_objects())


async def test_thousands_of_requests_at_once_are_answered_in_order_few_at_a_time(
    late: Served,
) -> None:
    heads = [kept(late, f"GET /needed?phase={n} HTTP/1.1") for n in range(3_000)]
    end = late.head("GET /needed?phase=3000 HTTP/1.1")
    gc.collect()
    before = waiting_requests()
    first = kept(late, "POST /slow HTTP/1.1")
    asked = asyncio.create_task(late.raw(first + b"".join(heads) + end, wait_s=120))
    await began(late)
    await asyncio.sleep(0.5)
    assert 0 < waiting_requests() - before <= MAX_PIPELINED + 2
    late.nestor.hold.set()
    answer = await asked
    found = [int(p.partition(b"}")[0]) for p in answer.split(b'{"phase":')[1:]]
    assert found == list(range(3_001))


async def test_m14_each_message_is_served_once_however_it_is_cut_into_packets(
    late: Served, counted: Rounds
) -> None:
    for number, chance in counted("packets of pipelined messages", 20, 1_000):
        late.nestor.done.clear()
        wanted, sent = [], b""
        for n in range(chance.randrange(1, 60)):
            name = f"{number}-{n}"
            sent += message(late, chance, name)
            wanted.append(name)
        sent += late.head("DELETE /things/last HTTP/1.1")
        cuts = sorted(chance.sample(range(1, len(sent)), min(12, len(sent) - 1)))
        parts = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        answer = await late.raw(*parts, wait_s=30)
        assert answer.count(b"HTTP/1.1 201") == len(wanted), (number, answer[-300:])
        assert late.nestor.done.pop() == ("deleted", "last")
        assert [thing.name for thing in late.nestor.done] == wanted


def message(shell: Served, chance: random.Random, name: str) -> bytes:
    """A POST with white space behind its JSON that looks like the end of a head."""
    data = b'{"name":"%s"}' % name.encode() + b"\r\n" * chance.randrange(9)
    if chance.random() < 0.5:
        length = f"Content-Length: {len(data)}"
        return kept(shell, "POST /things HTTP/1.1", length) + data
    at = chance.randrange(1, len(data))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (data[:at], data[at:]))
    trailer = chance.choice([b"", b"X-T: a\r\n"])
    head = kept(shell, "POST /things HTTP/1.1", "Transfer-Encoding: chunked")
    return head + chunks + b"0\r\n" + trailer + b"\r\n"


async def test_m14_the_end_of_a_body_may_come_in_two_packets(late: Served) -> None:
    head = kept(late, "POST /things HTTP/1.1", "Transfer-Encoding: chunked")
    message = head + b'c\r\n{"name":"a"}\r\n0\r\n\r\n'
    last = late.head("GET /needed?phase=7 HTTP/1.1")
    odd = late.head("GET  /needed?phase=7 HTTP/1.1")  # its line is seen from the start
    for cut, then, status in [
        (n, *t) for n in (1, 2, 3) for t in ((last, 200), (odd, 400))
    ]:
        reader, writer = await asyncio.open_connection("127.0.0.1", late.port)
        writer.write(message[:-cut])
        await asyncio.sleep(0.1)
        writer.write(message[-cut:] + then)
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 201")
        assert answer.count(b"HTTP/1.1 %d" % status) == 1, answer
        writer.close()


async def test_m14_a_broken_second_body_does_not_answer_before_the_first(
    late: Served,
) -> None:
    first = kept(late, "POST /slow HTTP/1.1")
    second = kept(late, "POST /things HTTP/1.1", "Transfer-Encoding: chunked")
    asked = asyncio.create_task(
        late.raw(first + second + b'c\r\n{"name":"a"}\r\nzz\r\n')
    )
    await began(late)
    await asyncio.sleep(0.2)
    late.nestor.hold.set()
    answer = await asked
    assert status_of(answer) == 201
    assert answer.count(b"HTTP/1.1 ") == 1
    assert late.nestor.done == ["slow began", "slow ended"]


async def test_m14_nonsense_behind_an_answer_gets_no_second_one(late: Served) -> None:
    head = kept(late, "POST /things HTTP/1.1", "Transfer-Encoding: chunked", key=None)
    reader, writer = await asyncio.open_connection("127.0.0.1", late.port)
    writer.write(head)
    answer = await reader.readuntil(b"}")
    writer.write(b"zz\r\n" + late.head("DELETE /things/1 HTTP/1.1"))
    with suppress(ConnectionError):
        answer += await reader.read()
    writer.close()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert late.nestor.done == []


async def test_m_what_comes_with_nonsense_is_not_done(late: Served) -> None:
    head = kept(late, "DELETE /things/1 HTTP/1.1", "Transfer-Encoding: chunked")
    assert status_of(await late.raw(head + b"zz\r\n\r\n")) == 400
    await asyncio.sleep(0.1)
    assert late.nestor.done == []


# Upgrades ------------------------------------------------------------------------------

UPGRADE = ("Connection: Upgrade", "Upgrade: h2c")


async def test_m14_the_body_of_a_request_for_an_upgrade_is_no_request(
    late: Served,
) -> None:
    hidden = late.head("DELETE /things/1 HTTP/1.1")
    for line, body in (
        (f"Content-Length: {len(hidden)}", hidden),
        ("Transfer-Encoding: chunked", b"1\r\na\r\n0\r\n\r\n" + hidden),
    ):
        head = kept(late, "POST /optional HTTP/1.1", *UPGRADE, line)
        for parts in ((head + body,), (head, body)):
            answer = await late.raw(*parts)
            assert status_of(answer) == 400
            assert answer.count(b"HTTP/1.1 ") == 1
    await asyncio.sleep(0.1)
    assert late.nestor.done == []


async def test_an_upgrade_is_ignored_and_the_next_request_served(late: Served) -> None:
    first = kept(late, "GET /things HTTP/1.1", *UPGRADE)
    answer = await late.raw(first + late.head("GET /needed?phase=7 HTTP/1.1"))
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b'{"phase":7}' in answer


# Bounds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b'c\r\n{"name":"a"}\r\n0\r\nA: ', b"b"),
        (b'c\r\n{"name":"a"}\r\n0\r\n', b"A: b\r\n"),
        (b'c\r\n{"name":"a"}\r\n1;a=', b"b"),
        (b"", b"1;" + b"a" * 1_000 + b"\r\n \r\n"),
        (b"186a0\r\n" + b" " * 100_000 + b"\r\n0\r\nA: ", b"b"),
    ],
    ids=["trailer", "trailers", "extension", "extensions", "trailer of a long body"],
)
async def test_m6_what_comes_with_a_chunked_body_is_bounded_like_a_head(
    late: Served, start: bytes, more: bytes
) -> None:
    head = kept(late, "POST /things HTTP/1.1", "Transfer-Encoding: chunked")
    end = b'c\r\n{"name":"a"}\r\n0\r\n\r\n' if not start else b"\r\n\r\n"
    flood = more * (8 * MAX_HEAD_BYTES // len(more))
    reader, writer = await asyncio.open_connection("127.0.0.1", late.port)
    writer.write(head + start + flood[: 2 * MAX_HEAD_BYTES])
    async with asyncio.timeout(10):
        assert status_of(await reader.readuntil(b"\r\n")) == 431
    with suppress(ConnectionError):
        writer.write(flood + end)
        await writer.drain()
        await reader.read()
    writer.close()
    assert late.nestor.done == []


async def test_a_body_in_chunks_of_one_byte_is_read(late: Served) -> None:
    body = b'{"name":"' + b"x" * 60_000 + b'"}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    head = late.head("POST /things HTTP/1.1", "Transfer-Encoding: chunked")
    assert status_of(await late.raw(head + chunks + b"0\r\n\r\n")) == 201


async def test_l4_who_has_idled_longest_makes_room_and_nobody_who_is_served(
    tmp_path: Path,
) -> None:
    async with wired(small_nestor(tmp_path), LATE, max_connections=6) as shell:
        served = asyncio.create_task(shell.raw(shell.head("POST /slow HTTP/1.1")))
        await began(shell)
        idle = []
        for n in range(5):
            idle.append(await asyncio.open_connection("127.0.0.1", shell.port))
            idle[n][1].write(b"" if n % 2 else b"GET /th")
            await asyncio.sleep(0.05)
        # Each of these is one too many, and is served.
        for n in range(3):
            answer = await shell.raw(shell.head("GET /things HTTP/1.1"))
            assert status_of(answer) == 200
            if n == 0:
                async with asyncio.timeout(5):
                    assert await idle[0][0].read() == b""
        assert not any(reader.at_eof() for reader, _ in idle[1:])
        shell.nestor.hold.set()
        assert status_of(await served) == 201
        for _, writer in idle:
            writer.close()


async def test_l4_what_waits_behind_a_slow_answer_is_bounded_for_all_together(
    tmp_path: Path,
) -> None:
    async with wired(small_nestor(tmp_path), LATE, max_connections=4) as shell:
        head = kept(shell, "GET /things HTTP/1.1")
        answer = b"?"
        with suppress(ConnectionError):
            answer = await shell.raw(kept(shell, "POST /slow HTTP/1.1"), head * 5_000)
        assert answer in {b"?", b""}
        assert status_of(await shell.raw(shell.head("GET /things HTTP/1.1"))) == 200


async def test_when_all_are_served_one_more_is_turned_away(tmp_path: Path) -> None:
    async with wired(small_nestor(tmp_path), LATE, max_connections=3) as shell:
        served = [
            asyncio.create_task(shell.raw(shell.head("POST /slow HTTP/1.1")))
            for _ in range(3)
        ]
        async with asyncio.timeout(10):
            while shell.nestor.done.count("slow began") < 3:
                await asyncio.sleep(0.01)
        with suppress(ConnectionError):
            assert await shell.raw(shell.head("GET /things HTTP/1.1")) == b""
        shell.nestor.hold.set()
        assert [status_of(answer) for answer in await asyncio.gather(*served)] == [
            201
        ] * 3


async def test_the_limit_of_open_files_is_raised_and_the_hard_one_is_kept(
    tmp_path: Path,
) -> None:
    kept_limit = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 700), hard))
        async with wired(small_nestor(tmp_path)):
            wanted = OPEN_FILES if hard < 0 else min(hard, OPEN_FILES)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (wanted, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, kept_limit)
