"""Recording stands in nobody's way: what cannot be kept costs no answer, and is told."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.backends.replay.cassette import (
    Cassette,
    Recording,
    RecordingClient,
    ReplayClient,
)
from nestor.model.health import HealthStatus
from nestor.model.routing import Deployment, Side
from nestor.model.task import Usage
from nestor.settings import Settings
from nestor.wiring import running

COUNTED = Usage(input_tokens=11, output_tokens=7)
SECRET = "sk-canary0123456789abcdef"
NOWHERE = Deployment(
    name="d", side=Side.LOCAL, model="m", base_url="http://127.0.0.1:9/v1"
)


def ask(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return {"messages": said}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with model_session() as session:
        yield session


def client(model: ScriptedModel, session: aiohttp.ClientSession) -> OpenAIClient:
    deployment = Deployment(
        name="d", side=Side.LOCAL, model="m", base_url=model.base_url
    )
    return OpenAIClient(deployment, session)


async def streamed(client: Any, request: dict[str, Any]) -> tuple[bytes, Usage]:
    stream = await client.stream(request)
    return b"".join([piece async for piece in stream]), stream.usage()


def in_the_way(path: Path) -> Path:
    """Make the next write of a cassette fail, as a full disk would: once."""
    part = path.with_name(f".{path.name}.part")
    part.symlink_to("/dev/full")
    return part


async def test_an_answer_that_cannot_be_kept_is_the_callers_all_the_same(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    path, recording = tmp_path / "c.json", Recording()
    async with ScriptedModel([Rule(reply="one two")]) as model:
        client_ = RecordingClient(client(model, session), path, recording=recording)
        assert recording.dependency().status is None
        part = in_the_way(path)
        reply = await client_.complete(ask("a"))
        lost = recording.dependency()
        assert not part.is_symlink()
        in_the_way(path)
        raw, usage = await streamed(client_, ask("b"))
        assert not path.exists()
        await client_.complete(ask("c"))

    assert reply.body["choices"][0]["message"]["content"] == "one two"
    assert raw.endswith(b"data: [DONE]\n\n")
    assert (reply.usage, usage) == (COUNTED, COUNTED)
    assert (lost.name, lost.status) == ("recording", HealthStatus.DEGRADED)
    assert lost.message.startswith("1 answers were not kept")
    found = recording.dependency()
    assert (found.status, found.message[:1]) == (HealthStatus.DEGRADED, "2")
    (entry,) = Cassette.load(path).entries
    assert entry.request_preview == ["user: c"]


async def test_an_old_recording_stands_where_a_new_one_cannot_be_written(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    path = tmp_path / "c.json"
    async with ScriptedModel([Rule(reply="one")]) as model:
        recording = RecordingClient(client(model, session), path)
        await recording.complete(ask("a"))
        before = path.read_bytes()
        in_the_way(path)
        await recording.complete(ask("b"))

    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


async def test_a_file_that_became_something_else_is_left_alone(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    path = tmp_path / "c.json"
    async with ScriptedModel([Rule(reply="one")]) as model:
        recording = RecordingClient(client(model, session), path)
        path.write_text("my notes")
        reply = await recording.complete(ask("a"))

    assert reply.usage == COUNTED
    assert path.read_text() == "my notes"
    assert recording.recording.dependency().status is HealthStatus.DEGRADED


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": ["x"]},
        {"choices": [{"index": 0, "delta": "x"}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": ["x"]}}]},
    ],
)
async def test_an_answer_that_cannot_be_put_together_passes_and_is_not_kept(
    tmp_path: Path, session: aiohttp.ClientSession, odd: Any
) -> None:
    path = tmp_path / "c.json"
    word = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    chunks = [json.dumps(chunk) for chunk in (word, odd, end)]
    raw = "".join(f"data: {chunk}\n\n" for chunk in (*chunks, "[DONE]"))
    async with ScriptedModel([Rule(raw=raw)]) as model:
        recording = RecordingClient(client(model, session), path)
        read, _ = await streamed(recording, ask("a"))

    assert read.decode() == raw
    assert not path.exists()
    assert recording.recording.dependency().status is HealthStatus.DEGRADED


async def test_an_answer_is_kept_though_its_caller_left_with_the_last_event(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    path = tmp_path / "c.json"
    rule = Rule(reply="one two", usage_in="after_done")
    async with ScriptedModel([rule]) as model:
        recording = RecordingClient(client(model, session), path)
        stream = await recording.stream(ask("a"))
        pieces = aiter(stream)
        while b"[DONE]" not in await anext(pieces):
            pass
        await stream.aclose()

    (entry,) = Cassette.load(path).entries
    assert entry.usage == COUNTED
    assert entry.response["choices"][0]["message"]["content"] == "one two"


async def test_only_its_owner_may_read_a_recording(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    path = tmp_path / "c.json"
    left = path.with_name(".c.json.part")
    left.write_text("of a crash")
    left.chmod(0o644)
    async with ScriptedModel([Rule(reply="one")]) as model:
        recording = RecordingClient(client(model, session), path)
        await recording.complete(ask("a"))
        first = path.stat().st_mode & 0o777
        path.chmod(0o644)
        await recording.complete(ask("b"))

    assert (first, path.stat().st_mode & 0o777) == (0o600, 0o600)


async def test_a_secret_in_an_answer_is_not_written_and_the_talk_goes_on(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    path = tmp_path / "c.json"
    call = {"name": "login", "arguments": {"password": "hunter2hunter2", "user": "me"}}
    rules = [
        Rule(when="first", reply=f"take {SECRET} then"),
        Rule(when="second", tool_calls=[call]),
    ]
    async with ScriptedModel(rules) as model:
        recording = RecordingClient(client(model, session), path)
        first = await recording.complete(ask("first"))
        told = first.body["choices"][0]["message"]["content"]
        await streamed(recording, ask("first", told, "second"))

    written = path.read_text()
    assert SECRET in told
    assert "canary" not in written
    assert "hunter2" not in written
    replay = ReplayClient(Cassette.load(path), NOWHERE)
    again = (await replay.complete(ask("first"))).body["choices"][0]["message"][
        "content"
    ]
    assert again == "take [redacted] then"
    # An agent that is replayed says again what it was told.
    for said in (again, told):
        reply = await replay.complete(ask("first", said, "second"))
        (made,) = reply.body["choices"][0]["message"]["tool_calls"]
        assert json.loads(made["function"]["arguments"])["user"] == "me"


async def test_health_says_that_a_recording_has_gaps(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    async with ScriptedModel([Rule(reply="one")]) as model:
        settings = Settings(
            home=tmp_path / "home",
            local_model="m",
            local_base_url=model.base_url,
            record_cassette=path,
        )
        async with running(settings, coordinator_url="http://127.0.0.1:9") as parts:
            (upstream,) = parts.coordinator.pool.upstreams
            in_the_way(path)
            await upstream.client.complete(ask("a"))
            told = {one.name: one for one in await parts.coordinator.dependencies()}

    assert told["recording"].status is HealthStatus.DEGRADED
