"""Who takes a place, who is heard out, and what is noted of those who were refused."""

import asyncio
from pathlib import Path

import pytest
from tests.faces.shell import (
    ADMIN_KEY,
    Served,
    SmallNestor,
    served,
    small_nestor,
    status_of,
)
from tests.faces.wired import kept, wired

from nestor.model.access import Principal
from nestor.telemetry.access_log import FLUSH_S
from nestor.telemetry.metrics import REGISTRY
from nestor.web import edge, wire
from nestor.web.edge import MAX_IN_FLIGHT
from nestor.web.wire import MAX_TARGET_BYTES


async def many(shell: Served, head: bytes, count: int) -> list[asyncio.StreamWriter]:
    """Open so many connections that each send ``head``, and stay."""
    opened = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", shell.port)
        writer.write(head)
        opened.append(writer)
    return opened


async def test_refused_strangers_that_go_on_sending_take_nobodys_place(
    shell: Served,
) -> None:
    lines = ("Transfer-Encoding: chunked",)
    head = shell.head("POST /things HTTP/1.1", *lines, key=None)
    held = await many(shell, head + b"1\r\na\r\n", MAX_IN_FLIGHT + 88)
    assert (await shell.call("GET", "/health/live", key=None)).status == 200
    assert (await shell.call("GET", "/things")).status == 200
    for writer in held:
        writer.close()


async def test_a3_guesses_that_are_looked_up_take_nobodys_place(
    nestor: SmallNestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = nestor.keys.check

    async def slow(secret: str) -> Principal | None:
        await nestor.hold.wait()
        return await check(secret)

    monkeypatch.setattr(nestor.keys, "check", slow)
    async with served(nestor) as shell:
        guess = shell.head("GET /things HTTP/1.1", key="k" * 43)
        held = await many(shell, guess, MAX_IN_FLIGHT + 38)
        assert (await shell.call("GET", "/health/live", key=None)).status == 200
        assert (await shell.call("GET", "/things")).status == 200
        for writer in held:
            writer.close()


async def test_health_is_told_when_there_is_no_room_left(
    nestor: SmallNestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "MAX_IN_FLIGHT", 0)
    async with served(nestor) as shell:
        assert (await shell.call("GET", "/things")).status == 503
        assert (await shell.call("GET", "/things", key=None)).status == 401
        for path in ("/health/live", "/health/ready", "/health/startup"):
            assert (await shell.call("GET", path, key=None)).status == 200


async def test_only_so_many_refused_clients_are_heard_out(
    nestor: SmallNestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_LINGERING", 3)
    monkeypatch.setattr(wire, "LINGER_S", 20.0)
    async with served(nestor) as shell:
        lines = ("Transfer-Encoding: chunked",)
        head = shell.head("POST /things HTTP/1.1", *lines, key=None)
        held = [await answered(shell, head) for _ in range(3)]
        # One that is heard out is kept for longer than this waits.
        assert status_of(await shell.raw(head)) == 401
        held[0].close()
        await held[0].wait_closed()
        last = await answered(shell, head)  # whose place is free again
        for writer in (*held[1:], last):
            writer.close()


async def answered(shell: Served, head: bytes) -> asyncio.StreamWriter:
    """Send ``head``, and stay when its answer has begun and the connection is open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", shell.port)
    writer.write(head)
    await reader.readuntil(b"\r\n\r\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(), 0.3)
    return writer


@pytest.mark.parametrize("status", [403, 413])
async def test_a_refusal_from_inside_is_heard_by_a_client_that_is_still_sending(
    nestor: SmallNestor, status: int
) -> None:
    _, key = await nestor.keys.create("r", ["read"])
    key = key if status == 403 else ADMIN_KEY
    async with served(nestor) as shell:
        head = shell.head(
            "POST /things HTTP/1.1", "Transfer-Encoding: chunked", key=key
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", shell.port)
        writer.write(head)
        # A reset while any of this is sent would be an error here.
        for _ in range(48):
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert status_of(answer) == status
        assert answer.count(b"HTTP/1.1 ") == 1
        writer.close()


@pytest.mark.parametrize("size", [MAX_TARGET_BYTES + n for n in (-1, 0, 1)])
async def test_p12_the_longest_target_is_looked_at_like_any_other(
    shell: Served, size: int
) -> None:
    target = "/things?status=".ljust(size, "a")
    long = size > MAX_TARGET_BYTES
    for line, status in (
        (f"GET {target} HTTP/1.1", 200),
        (f"GET  {target} HTTP/1.1", 400),
        (f"GET {target}  HTTP/1.1", 400),
        (f"GET {target} HTTP/2.0", 400),
    ):
        answer = await shell.raw(shell.head(line))
        assert status_of(answer) == (414 if long else status), (line[:9], answer[:300])
    assert shell.nestor.done == []


# What the wire refuses -----------------------------------------------------------------


def counted(method: str, status: int) -> float:
    labels = {"layer": "coordinator", "method": method, "status": str(status)}
    return REGISTRY.get_sample_value("nestor_http_requests_total", labels) or 0.0


@pytest.mark.parametrize(
    ("sent", "method", "path", "status"),
    [
        (b"nonsense\r\n\r\n", "other", "", 400),
        (b"GET /th?a=s3cr3t", "GET", "/th", 408),
        (b"DELETE /things/1 HTTP/1.1\r\nHost : a\r\n\r\n", "DELETE", "/things/1", 400),
        (b"GET http://u:s3cr3t@h/ HTTP/1.1\r\nA : a\r\n\r\n", "GET", "", 400),
        (b"PUT /a HTTP/1.1\r\nA: " + b"b" * 40_000, "PUT", "/a", 431),
        (b"BREW /a HTTP/1.1\r\nA: " + b"b" * 40_000, "other", "", 400),
    ],
    ids=["nonsense", "half", "malformed", "absolute", "large", "unknown method"],
)
async def test_what_the_wire_refuses_is_logged_and_counted_once(
    tmp_path: Path, sent: bytes, method: str, path: str, status: int
) -> None:
    before = counted(method, status)
    async with wired(small_nestor(tmp_path)) as shell:
        answer = await shell.raw(sent)
        (line,) = await shell.access_lines(1)
    assert status_of(answer) == status == line["status"]
    assert (line["method"], line["path"]) == (method, path)
    assert (line["client"], line["key_id"]) == ("127.0.0.1", None)
    assert line["duration_ms"] is None  # nobody measured
    assert f"x-trace-id: {line['trace_id']}".encode() in answer
    assert counted(method, status) == before + 1
    assert "s3cr3t" not in str(line)


async def test_a_body_that_the_wire_refuses_is_logged_as_its_client_saw_it(
    tmp_path: Path,
) -> None:
    before = counted("POST", 408)
    async with wired(small_nestor(tmp_path)) as shell:
        head = shell.head("POST /things HTTP/1.1", "Content-Length: 100")
        answer = await shell.raw(head, b"{")
        await asyncio.sleep(2 * FLUSH_S)
        (line,) = shell.nestor.access
    assert status_of(answer) == line["status"] == 408
    assert (line["path"], line["key_id"]) == ("/things", "admin")
    assert f"x-trace-id: {line['trace_id']}".encode() in answer
    assert counted("POST", 408) == before + 1


async def test_a_second_request_that_is_refused_is_not_logged_as_the_first(
    tmp_path: Path,
) -> None:
    async with wired(small_nestor(tmp_path)) as shell:
        answer = await shell.raw(kept(shell, "GET /things HTTP/1.1"))
        assert answer.count(b"HTTP/1.1 ") == 1  # then idle, then closed without a word
        answer = await shell.raw(kept(shell, "GET /things HTTP/1.1"), b"P")
        lines = await shell.access_lines(3)
    assert answer.count(b"HTTP/1.1 408") == 1
    found = [(line["method"], line["path"], line["status"]) for line in lines]
    assert found == [
        ("GET", "/things", 200),
        ("GET", "/things", 200),
        ("other", "", 408),
    ]
