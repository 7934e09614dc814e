"""What every ModelClient promises. A backend is done when this file passes."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.servers.scripted_model import Rule, ScriptedModel
from tests.servers.tiny_gguf import make_tiny_gguf

from nestor.backends.llama_cpp.client import LlamaCppClient
from nestor.backends.llama_cpp.server import LlamaCppServer
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.replay.cassette import Cassette, RecordingClient, ReplayClient
from nestor.errors import Unavailable
from nestor.model.routing import Deployment, Side
from nestor.ports.model_client import ModelClient

ASK: dict[str, Any] = {
    "model": "whatever the caller said",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 8,
    "temperature": 0,
}


@dataclass
class Subject:
    client: ModelClient
    down: ModelClient
    """The same kind of client for something that is not there."""
    replayed: bool = False


def deployment(base_url: str, name: str = "test") -> Deployment:
    return Deployment(
        name=name, side=Side.LOCAL, model="m", base_url=base_url, timeout_s=30
    )


@pytest.fixture(params=["scripted", "llama.cpp", "replay", "recording"])
async def subject(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Subject]:
    nowhere = deployment("http://127.0.0.1:1/v1")
    async with (
        aiohttp.ClientSession() as session,
        ScriptedModel([Rule(when="capital", reply="Paris, of course.")]) as model,
    ):
        scripted = OpenAIClient(deployment(model.base_url), session)
        down: ModelClient = OpenAIClient(nowhere, session)
        match request.param:
            case "scripted":
                yield Subject(scripted, down)
            case "recording":
                recording = RecordingClient(scripted, tmp_path / "c.json")
                yield Subject(recording, RecordingClient(down, tmp_path / "d.json"))
            case "replay":
                recording = RecordingClient(scripted, tmp_path / "c.json")
                await recording.complete(ASK)
                cassette = Cassette.load(tmp_path / "c.json")
                yield Subject(
                    ReplayClient(cassette, nowhere),
                    ReplayClient(Cassette(), nowhere),
                    replayed=True,
                )
            case _:
                path = make_tiny_gguf(tmp_path / "tiny.gguf")
                server = LlamaCppServer(path, run_dir=tmp_path / "run")
                stopped = LlamaCppServer(path, run_dir=tmp_path / "no")
                await server.start()
                yield Subject(
                    LlamaCppClient(server, nowhere, session),
                    LlamaCppClient(stopped, nowhere, session),
                )
                await server.stop()


def chunks(raw: bytes) -> list[dict[str, Any]]:
    return [
        json.loads(event[6:])
        for event in raw.decode().split("\n\n")
        if event.startswith("data: {")
    ]


async def test_a_whole_answer_has_text_and_usage(subject: Subject) -> None:
    reply = await subject.client.complete(ASK)

    assert reply.text
    assert reply.body["choices"][0]["message"]["role"] == "assistant"
    assert reply.usage.input_tokens
    assert reply.usage.output_tokens
    assert reply.replayed is subject.replayed


async def test_a_stream_says_its_usage_though_the_caller_did_not_ask(
    subject: Subject,
) -> None:
    stream = await subject.client.stream({**ASK, "stream": True})
    raw = b"".join([event async for event in stream])

    assert stream.usage().input_tokens
    assert stream.usage().output_tokens
    assert stream.replayed is subject.replayed
    assert raw.endswith(b"data: [DONE]\n\n")
    assert all(chunk["choices"] for chunk in chunks(raw))


async def test_a_caller_that_asks_gets_the_usage_chunk(subject: Subject) -> None:
    options = {"include_usage": True}
    stream = await subject.client.stream(
        {**ASK, "stream": True, "stream_options": options}
    )
    raw = b"".join([event async for event in stream])

    last = chunks(raw)[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == stream.usage().output_tokens


async def test_a_stream_hands_out_whole_events_only(subject: Subject) -> None:
    stream = await subject.client.stream({**ASK, "stream": True})

    async for event in stream:
        assert event.endswith(b"\n\n")
        assert event.count(b"\n\n") == 1


async def test_a_stream_is_let_go_half_way_without_harm(subject: Subject) -> None:
    stream = await subject.client.stream({**ASK, "stream": True})
    async for _ in stream:
        break
    await stream.aclose()

    assert (await subject.client.complete(ASK)).text


async def test_the_request_of_the_caller_is_left_as_it_was(subject: Subject) -> None:
    request = {**ASK, "stream": True}
    before = json.dumps(request)

    async for _ in await subject.client.stream(request):
        pass
    await subject.client.complete(request)

    assert json.dumps(request) == before


async def test_answers_at_the_same_time_do_not_mix(subject: Subject) -> None:
    replies = await asyncio.gather(*(subject.client.complete(ASK) for _ in range(4)))

    assert all(reply.text for reply in replies)


async def test_what_is_not_there_is_unavailable(subject: Subject) -> None:
    with pytest.raises(Unavailable):
        await subject.down.complete(ASK)
    with pytest.raises(Unavailable):
        await subject.down.stream(ASK)


async def test_closing_twice_is_fine(subject: Subject) -> None:
    await subject.client.close()
    await subject.client.close()
