"""The proxy's own bounds, over a real socket: what a sandbox's program cannot take from the worker."""

import asyncio
import base64
from pathlib import Path

import pytest

from nestor.backends.sandbox import egress
from nestor.backends.sandbox.egress import CONNECTIONS, HEAD_BYTES, Egress
from nestor.backends.sandbox.networks import Reach
from nestor.backends.sandbox.refusals import Refusals


def made(*hosts: str, password: str = "") -> Egress:
    reach = Reach(["127.0.0.1/32"])
    return Egress(hosts=hosts, reach=reach, refusals=Refusals(), password=password)


async def said(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES + b"\r\n\r\n", b"400"),
        (b"CONNECT a.invalid:443 HTTP/2\r\n\r\n", b"400"),
        (b"CONNECT a.invalid HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT a.invalid:0 HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT a.invalid:65536 HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT a@b.invalid:443 HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT granted.invalid:443\t HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT granted.invalid.:443 HTTP/1.1\r\n\r\n", b"403"),
        (b"CONNECT granted.invalid:0443 HTTP/1.1\r\n\r\n", b"403"),
        (b"CONNECT granted.invalid:443 HTTP/1.1\r\n\r\n", b"502"),
    ],
)
async def test_only_a_well_formed_request_for_a_granted_host_is_followed(
    head: bytes, status: bytes
) -> None:
    async with made("granted.invalid:443").on_port() as port:
        assert (await said(port, head)).split()[1] == status


async def test_without_the_password_nothing_is_done() -> None:
    proxy = made("granted.invalid:443", password="right")
    request = b"CONNECT granted.invalid:443 HTTP/1.1\r\n"
    login = b"Proxy-Authorization: Basic " + base64.b64encode(b"nestor:right")
    async with proxy.on_port() as port:
        wrong = login[:-4] + b"AAAA"
        for header in (b"", wrong + b"\r\n"):
            assert b" 407 " in await said(port, request + header + b"\r\n")
        assert b" 502 " in await said(port, request + login + b"\r\n\r\n")


async def test_connections_are_counted_and_end_with_the_run(tmp_path: Path) -> None:
    path = tmp_path / "egress.sock"
    async with made().on_socket(path):
        held = [await asyncio.open_unix_connection(path) for _ in range(CONNECTIONS)]
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_unix_connection(path)
        assert b" 503 " in await asyncio.wait_for(reader.read(), 10)
        writer.close()
    for reader, writer in held:
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    assert path.stat().st_mode & 0o077 == 0


async def test_a_tunnel_that_is_silent_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(egress, "IDLE_S", 0.6)
    far = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = f"127.0.0.1:{far.sockets[0].getsockname()[1]}"
    async with far, made(target).on_port() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        for _ in range(4):
            await asyncio.sleep(0.3)
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
