"""Nobody but the operator chooses where a provider's key and a prompt go."""

import asyncio
import shutil
import socket
import ssl
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr
from tests.faces.whole import Whole, whole
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import (
    AddressRefused,
    PinningResolver,
    model_session,
)
from nestor.cli.doctor import examine
from nestor.errors import Unavailable, UpstreamError
from nestor.model.routing import Deployment, Side
from nestor.settings import Settings

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
KEY = "sk-canary0123456789abcdef"
METADATA = "169.254.169.254"
PUBLIC = "93.184.216.34"
NAME = "model.test"
CHAT = "/v1/chat/completions"
PRIVATE = (
    *("127.0.0.1", "10.0.0.5", "192.168.1.1", "100.64.0.1", "::1", "fd00::5"),
    *("::ffff:127.0.0.1", "64:ff9b::7f00:1"),
)
NO_SERVER = (
    *(METADATA, "169.254.0.1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "0.0.0.0"),
    *("::", "0.1.2.3", "224.0.0.1", "ff02::1", "255.255.255.255", "100.100.100.200"),
    *(f"::ffff:{METADATA}", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"),
)


@asynccontextmanager
async def stack(
    home: Path, local: ScriptedModel, remote: ScriptedModel | None = None, **how: Any
) -> AsyncIterator[Whole]:
    """The layers, with models that are real servers; the key is the remote one's alone."""
    far: dict[str, Any] = {}
    if remote is not None:
        far = {
            "remote_base_url": remote.base_url,
            "remote_model": "far",
            "remote_api_key": SecretStr(KEY),
        }
    near: dict[str, Any] = {"local_base_url": local.base_url, "local_model": "near"}
    async with whole(home, **near, **far, **how) as running:
        yield running


# S2: a provider that sends its caller elsewhere.


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("inside", [False, True])
async def test_s2_a_redirect_is_not_followed(
    tmp_path: Path, inside: bool, streamed: bool
) -> None:
    async with ScriptedModel([Rule(reply="stolen")]) as thief:
        target = thief.base_url if inside else f"http://{METADATA}/latest/meta-data"
        moved = [
            Rule(status=status, headers={"Location": target}, times=1)
            for status in (301, 302, 303, 307, 308)
        ]
        async with (
            ScriptedModel(moved) as far,
            ScriptedModel() as near,
            stack(tmp_path, near, far) as s,
        ):
            for _ in moved:
                body = {**ASK, "model": "remote", "stream": streamed}
                reply = await s.call("coordinator", "POST", CHAT, json=body)
                assert reply.status == 502, reply.body
                assert "redirects are not followed" in str(reply.json)

    assert len(far.requests) == len(moved), "each was asked once, and nobody else"
    assert near.requests == thief.requests == []


# S3: a name that leads somewhere else the second time.


class Names(AbstractResolver):
    """The names of a test: one list of addresses after the other, the last for ever."""

    def __init__(self, port: int, *answers: list[str]) -> None:
        self._port = port
        self._answers = list(answers)
        self.asked = 0

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002 - aiohttp's
    ) -> list[ResolveResult]:
        assert host.lower().removesuffix(".") == NAME
        number = min(self.asked, len(self._answers) - 1)
        self.asked += 1
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=self._port or port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._answers[number]
        ]

    async def close(self) -> None: ...


def client(session: aiohttp.ClientSession, base_url: str) -> OpenAIClient:
    deployment = Deployment(
        name="far",
        side=Side.REMOTE,
        model="m",
        base_url=base_url,
        api_key=KEY,
        timeout_s=5,
    )
    return OpenAIClient(deployment, session)


async def test_s3_the_address_that_was_checked_is_the_one_that_is_called() -> None:
    async with ScriptedModel([Rule(reply="yes")]) as model:
        names = Names(0, [METADATA, "127.0.0.1"], [METADATA])
        async with model_session(PinningResolver(names)) as session:
            far = client(session, f"http://{NAME}:{model.port}/v1")
            reply = await far.complete(ASK)

    assert reply.body["choices"][0]["message"]["content"] == "yes"
    assert names.asked == 1
    assert model.chats[0].headers["host"] == f"{NAME}:{model.port}"


@pytest.mark.parametrize("now", PRIVATE)
@pytest.mark.parametrize("way", ["complete", "stream"])
async def test_s3_a_name_of_the_internet_does_not_turn_private(
    way: str, now: str
) -> None:
    async with ScriptedModel([Rule(reply="stolen")]) as model:
        pinned = PinningResolver(Names(0, [PUBLIC], [now]))
        assert [one["host"] for one in await pinned.resolve(NAME, 443)] == [PUBLIC]
        async with model_session(pinned) as session:
            # Another spelling of the name is the same name.
            far = client(session, f"http://{NAME.upper()}.:{model.port}/v1")
            with pytest.raises(Unavailable, match="led to the internet before") as said:
                await getattr(far, way)(ASK)

    assert now in str(said.value)
    # Nothing was asked, so nothing is billed.
    assert not isinstance(said.value, UpstreamError)
    assert model.requests == []


async def test_s3_of_a_mixed_answer_what_is_private_now_is_dropped() -> None:
    pinned = PinningResolver(Names(0, [PUBLIC], ["127.0.0.1", PUBLIC, METADATA]))
    for _ in range(2):
        found = await pinned.resolve(NAME, 443)
        assert [one["host"] for one in found] == [PUBLIC]


async def test_s3_one_public_address_makes_a_name_one_of_the_internet() -> None:
    for mixed in (["8.8.8.8", "10.0.0.1"], ["127.0.0.1", "8.8.8.8", METADATA]):
        pinned = PinningResolver(Names(0, mixed, ["127.0.0.1"]))
        found = await pinned.resolve(NAME, 443)
        assert [one["host"] for one in found] == ["8.8.8.8"]
        with pytest.raises(AddressRefused, match="led to the internet before"):
            await pinned.resolve(NAME, 443)


async def test_s3_a_name_that_began_private_may_move() -> None:
    answers = (["10.0.0.5"], ["127.0.0.1"], ["192.168.1.7", "10.0.0.7"], ["10.0.0.6"])
    resolver = PinningResolver(Names(0, *answers))
    for expected in answers:
        found = await resolver.resolve(NAME, 80)
        assert [one["host"] for one in found] == expected


@pytest.mark.parametrize("address", NO_SERVER)
async def test_s3_where_credentials_are_handed_out_no_name_leads(address: str) -> None:
    with pytest.raises(AddressRefused, match=NAME):
        await PinningResolver(Names(0, [address])).resolve(NAME, 80)


async def test_s3_the_running_stack_looks_names_up_that_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def world(host: Any, port: Any, *rest: Any, **how: Any) -> Any:
        """What the network's DNS says of one name."""
        return real(METADATA if host == NAME else host, port, *rest, **how)

    monkeypatch.setattr(socket, "getaddrinfo", world)
    models: dict[str, Any] = {
        "local_base_url": f"http://{NAME}:8080/v1",
        "local_model": "m",
    }
    async with whole(tmp_path, **models) as s:
        reply = await s.call("coordinator", "POST", CHAT, json=ASK)

    assert reply.status in {502, 503}, reply.body
    assert f"{NAME} leads to {METADATA}" in str(reply.json)


# S5: the provider's key goes to the provider.


async def test_s5_the_key_is_sent_to_its_own_origin_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookie = {"Set-Cookie": "session=stolen; Path=/"}
    broken = Rule(status=500, reply="down", headers=cookie, nth=1)
    fine = Rule(reply="ok", headers=cookie)
    moved = Rule(status=307, headers={"Location": "/elsewhere"}, nth=3)
    async with (
        ScriptedModel([Rule(reply="stolen")]) as proxy,
        ScriptedModel([broken, fine]) as near,
        ScriptedModel([moved, Rule(reply="ok")], api_key=KEY) as far,
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with stack(tmp_path, near, far) as s:
            said = []
            for model in ("auto", "remote", "remote", "local", "local"):
                reply = await s.call(
                    "coordinator",
                    "POST",
                    CHAT,
                    json={**ASK, "model": model},
                    headers={"Cookie": "mine=1"},
                )
                said.append(reply.status)

    assert said == [200, 200, 502, 200, 200]
    assert len(near.requests) == len(far.requests) == 3
    assert proxy.requests == []
    for request in near.requests:
        assert KEY not in str(request.headers), "the local model is told no key"
        assert "authorization" not in request.headers
    for request in [*near.requests, *far.requests]:
        assert "cookie" not in request.headers
        assert "test-admin-secret" not in str(request.headers)
    assert {r.headers["authorization"] for r in far.requests} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("status", [200, 302, 401])
async def test_s5_doctor_takes_the_key_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    seen: list[tuple[str, str | None]] = []

    async def answer(name: str, reader: Any, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        key = KEY if KEY in head else None
        seen.append((name, key))
        location = f"Location: http://127.0.0.1:{ports['thief']}/models\r\n"
        writer.write(
            f"HTTP/1.1 {status} x\r\n{location}Content-Length: 2\r\n\r\n{{}}".encode()
        )
        await writer.drain()
        writer.close()

    ports: dict[str, int] = {}
    servers = []
    for name in ("thief", "model"):
        server = await asyncio.start_server(partial(answer, name), "127.0.0.1", 0)
        ports[name] = server.sockets[0].getsockname()[1]
        servers.append(server)
    for variable in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{ports['thief']}")
    monkeypatch.setenv("NESTOR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NESTOR_REMOTE_BASE_URL", f"http://127.0.0.1:{ports['model']}")
    monkeypatch.setenv("NESTOR_REMOTE_MODEL", "m")
    monkeypatch.setenv("NESTOR_REMOTE_API_KEY", KEY)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nestor.cli", "doctor"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    for server in servers:
        server.close()
        await server.wait_closed()

    assert seen == [("model", KEY)], out.decode()
    assert KEY not in out.decode()


async def test_s3_doctor_takes_the_key_to_the_address_that_it_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = socket.getaddrinfo, list[str]()
    stolen: list[bytes] = []

    def world(host: Any, port: Any, *rest: Any, **how: Any) -> Any:
        """The name leads to the model once, and to a thief ever after."""
        if host != NAME:
            return real(host, port, *rest, **how)
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return real(address, port, *rest, **how)

    async def steal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stolen.append(await reader.read(4096))
        writer.close()

    async with ScriptedModel(api_key=KEY) as model:
        thief = await asyncio.start_server(steal, "127.0.0.2", model.port)
        monkeypatch.setattr(socket, "getaddrinfo", world)
        settings = Settings(
            home=tmp_path / "home",
            remote_base_url=f"http://{NAME}:{model.port}/v1",
            remote_model="scripted",
            remote_api_key=SecretStr(KEY),
        )
        found = await asyncio.to_thread(lambda: list(examine(settings)))
        thief.close()
        await thief.wait_closed()

    (said,) = (one for one in found if one.what == "model remote")
    assert said.state != "fail", said
    assert asked == [NAME]
    assert stolen == []
    (request,) = model.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["host"] == f"{NAME}:{model.port}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
@pytest.mark.parametrize("name", [NAME, "other.test"])
async def test_s3_doctor_asks_for_the_certificate_of_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    subject = ("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}")
    new = ("-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "certificate")
    made = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", *new, *subject), cwd=tmp_path, stderr=DEVNULL
    )
    assert await made.wait() == 0
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    heads: list[str] = []

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        body = b'{"data": [{"id": "m"}]}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **how: real(
            "127.0.0.1" if host == NAME else host, *rest, **how
        ),
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
    settings = Settings(
        home=tmp_path / "home",
        remote_base_url=f"https://{NAME}:{port}/v1",
        remote_model="m",
        remote_api_key=SecretStr(KEY),
    )
    found = await asyncio.to_thread(lambda: list(examine(settings)))
    server.close()
    await server.wait_closed()

    (said,) = (one for one in found if one.what == "model remote")
    if name == NAME:
        assert said.state == "ok", said
        assert heads[0].startswith("GET /v1/models HTTP/1.1\r\n")
        assert f"Bearer {KEY}" in heads[0]
    else:
        assert said.state == "fail", said
        assert "certificate" in said.detail
        assert heads == []
