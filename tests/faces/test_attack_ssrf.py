"""Nobody but the operator chooses where a provider's key and a prompt go."""

import asyncio
import socket
import sys
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
from nestor.errors import Unavailable, UpstreamError
from nestor.model.routing import Deployment, Side

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
KEY = "sk-canary0123456789abcdef"
METADATA = "169.254.169.254"
PUBLIC = "93.184.216.34"
NAME = "model.test"
ELSEWHERE = "http://127.0.0.1:1/v1"
CHAT = "/v1/chat/completions"
STEERS = (
    *("base_url", "api_base", "url", "api_key", "api_version", "deployment"),
    *("custom_llm_provider", "extra_body", "extra_headers", "endpoint", "proxy"),
    *("apiBase", "BASE_URL", "base-url", "baseURL", "kv_transfer_params"),
    *("litellm_params", "default_headers", "azure_endpoint", "fallbacks"),
)
PRIVATE = (
    *("127.0.0.1", "10.0.0.5", "192.168.1.1", "100.64.0.1", "::1", "fd00::5"),
    *("::ffff:127.0.0.1", "64:ff9b::7f00:1"),
)
NO_SERVER = (
    *(METADATA, "169.254.0.1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "0.0.0.0"),
    *("::", "0.1.2.3", "224.0.0.1", "ff02::1", "255.255.255.255", "100.100.100.200"),
    *(f"::ffff:{METADATA}", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"),
)

# S1: a request says where it should go.


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


async def test_s1_a_chat_cannot_say_where_it_goes(tmp_path: Path) -> None:
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        for name in STEERS:
            for value in (ELSEWHERE, {"base_url": ELSEWHERE}, None):
                for stream in (False, True):
                    body = {**ASK, "stream": stream, name: value}
                    reply = await s.call("coordinator", "POST", CHAT, json=body)
                    assert reply.status == 400, (name, reply.body)
                    assert reply.json["errors"][0]["field"] == name

    assert model.requests == []


async def test_s1_a_chat_with_what_openai_knows_passes_untouched(
    tmp_path: Path,
) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    text = {"type": "text", "text": "see http://127.0.0.1:1/ and url"}
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": [text, image]}],
        "temperature": 0.5,
        "seed": 7,
        "user": "u",
        "metadata": {"url": "http://x"},
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"properties": {"url": {}}}},
            }
        ],
    }
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        reply = await s.call("coordinator", "POST", CHAT, json=body)

    assert reply.status == 200, reply.body
    assert model.chats[0].body == {**body, "model": "near"}


async def test_s1_a_model_server_is_not_sent_to_fetch_for_a_caller(
    tmp_path: Path,
) -> None:
    image, video = {"type": "image_url"}, {"type": "video_url"}
    parts: tuple[tuple[dict[str, Any], str], ...] = (
        ({**image, "image_url": {"url": f"http://{METADATA}/"}}, "image_url.url"),
        ({**image, "image_url": f"http://{METADATA}/"}, "image_url"),
        ({**image, "image_url": {"url": ["http://x"]}}, "image_url.url"),
        ({**video, "video_url": {"url": "file:///etc/passwd"}}, "video_url.url"),
    )
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        for part, field in parts:
            body = {"messages": [{"role": "user", "content": [part]}]}
            reply = await s.call("coordinator", "POST", CHAT, json=body)
            assert reply.status == 400, reply.body
            named = reply.json["errors"][0]["field"]
            assert named == f"messages.0.content.0.{field}"

    assert model.requests == []


async def test_s1_neither_tools_nor_the_models_name_are_addresses(
    tmp_path: Path,
) -> None:
    tool = {"type": "mcp", "server_url": ELSEWHERE}
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        tools = await s.call("coordinator", "POST", CHAT, json={**ASK, "tools": [tool]})
        named = await s.call(
            "coordinator", "POST", CHAT, json={**ASK, "model": ELSEWHERE}
        )

    assert tools.json["errors"][0]["field"] == "tools.0.server_url"
    assert named.json["errors"][0]["field"] == "model"
    assert (tools.status, named.status) == (400, 404)
    assert model.requests == []


async def test_s1_no_other_call_takes_an_address(tmp_path: Path) -> None:
    calls: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("coordinator", "/route", {"query": "q"}),
        ("aidb", "/documents", {"project": "p", "path": "a.md", "content": "x"}),
        ("aidb", "/context", {"query": "q"}),
        ("aidb", "/search", {"query": "q"}),
    )
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        for layer, path, body in calls:
            for name in STEERS:
                reply = await s.call(
                    layer, "POST", path, json={**body, name: ELSEWHERE}
                )
                assert reply.status == 400, (path, name, reply.body)
                assert reply.json["errors"][0]["field"] == name
        listed = await s.call("aidb", "GET", "/documents")

    assert model.requests == []
    assert listed.json["documents"] == []


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
                assert "redirects are not followed" in reply.json["detail"]

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

    assert reply.text == "yes"
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


async def test_s3_a_name_that_began_private_may_move() -> None:
    answers = (["10.0.0.5"], ["127.0.0.1"], ["192.168.1.7", PUBLIC], ["10.0.0.6"])
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
    assert f"{NAME} leads to {METADATA}" in reply.json["detail"]


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
