"""What every ModelClient promises. A backend is done when this file passes."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.servers.scripted_model import Rule, ScriptedModel
from tests.servers.tiny_gguf import make_tiny_gguf

from nestor.backends.anthropic.client import AnthropicClient
from nestor.backends.llama_cpp.client import LlamaCppClient
from nestor.backends.llama_cpp.server import LlamaCppServer
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.backends.replay.cassette import Cassette, RecordingClient, ReplayClient
from nestor.errors import InvalidInput, Unavailable, UpstreamError
from nestor.model.routing import Deployment, Dialect, Side
from nestor.ports.model_client import ModelClient, ModelReply

ASK: dict[str, Any] = {
    "model": "whatever the caller said",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 8,
    "temperature": 0,
}
EMBED: dict[str, Any] = {"model": "whatever", "input": ["capital", "other"]}


@dataclass
class Subject:
    client: ModelClient
    down: ModelClient
    """The same kind of client for something that is not there."""
    replayed: bool = False
    embeds: bool = True


def deployment(base_url: str, dialect: Dialect = Dialect.OPENAI) -> Deployment:
    return Deployment(
        name="test",
        side=Side.LOCAL,
        dialect=dialect,
        model="m",
        base_url=base_url,
        timeout_s=30,
    )


KINDS = [
    *("openai", "openai, recording", "openai, replay"),
    *("anthropic", "anthropic, recording", "anthropic, replay"),
    "llama.cpp",
]


@pytest.fixture(params=KINDS)
async def subject(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Subject]:
    speaks, _, how = request.param.partition(", ")
    dialect = Dialect.ANTHROPIC if speaks == "anthropic" else Dialect.OPENAI
    nowhere = deployment("http://127.0.0.1:1/v1", dialect)
    make = AnthropicClient if speaks == "anthropic" else OpenAIClient
    async with (
        model_session() as session,
        ScriptedModel([Rule(when="capital", reply="Paris, of course.")]) as model,
    ):
        scripted = make(deployment(model.base_url, dialect), session)
        down: ModelClient = make(nowhere, session)
        match how or speaks:
            case "openai":
                yield Subject(scripted, down)
            case "anthropic":
                yield Subject(scripted, down, embeds=False)
            case "recording":
                recording = RecordingClient(scripted, tmp_path / "c.json")
                yield Subject(
                    recording,
                    RecordingClient(down, tmp_path / "d.json"),
                    embeds=speaks == "openai",
                )
            case "replay":
                recording = RecordingClient(scripted, tmp_path / "c.json")
                await recording.complete(ASK)
                if speaks == "openai":
                    await recording.embed(EMBED)
                cassette = Cassette.load(tmp_path / "c.json")
                yield Subject(
                    ReplayClient(cassette, nowhere),
                    ReplayClient(Cassette(), nowhere),
                    replayed=True,
                    embeds=speaks == "openai",
                )
            case _:
                path = make_tiny_gguf(tmp_path / "tiny.gguf")
                server = LlamaCppServer(path, run_dir=tmp_path / "run")
                stopped = LlamaCppServer(path, run_dir=tmp_path / "no")
                await server.start()
                yield Subject(
                    LlamaCppClient(server, nowhere, session),
                    LlamaCppClient(stopped, nowhere, session),
                    embeds=False,
                )
                await server.stop()


def events(raw: bytes) -> list[dict[str, Any]]:
    lines = raw.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def text_of(subject: Subject, reply: ModelReply) -> str:
    if subject.client.dialect is Dialect.ANTHROPIC:
        return "".join(block["text"] for block in reply.body["content"])
    return str(reply.body["choices"][0]["message"]["content"])


def streamed_text(subject: Subject, raw: bytes) -> str:
    if subject.client.dialect is Dialect.ANTHROPIC:
        deltas = [event.get("delta", {}) for event in events(raw)]
        return "".join(delta.get("text", "") for delta in deltas)
    deltas = [event["choices"][0]["delta"] for event in events(raw)]
    return "".join(delta.get("content") or "" for delta in deltas)


def end_of(subject: Subject) -> bytes:
    if subject.client.dialect is Dialect.ANTHROPIC:
        return b'"message_stop"}\n\n'
    return b"data: [DONE]\n\n"


async def test_a_whole_answer_has_text_and_usage(subject: Subject) -> None:
    reply = await subject.client.complete(ASK)

    assert text_of(subject, reply)
    assert json.loads(reply.raw) == reply.body
    assert reply.usage.input_tokens
    assert reply.usage.output_tokens
    assert reply.replayed is subject.replayed


async def test_a_stream_says_its_usage_though_the_caller_did_not_ask(
    subject: Subject,
) -> None:
    stream = await subject.client.stream({**ASK, "stream": True})
    assert not stream.complete
    raw = b"".join([event async for event in stream])

    assert stream.usage().input_tokens
    assert stream.usage().output_tokens
    assert stream.replayed is subject.replayed
    assert stream.complete
    assert raw.replace(b'": "', b'":"').endswith(end_of(subject))
    if subject.client.dialect is Dialect.OPENAI:
        assert all(chunk["choices"] for chunk in events(raw))


async def test_a_stream_says_what_a_whole_answer_says(subject: Subject) -> None:
    whole = await subject.client.complete(ASK)
    stream = await subject.client.stream({**ASK, "stream": True})
    raw = b"".join([event async for event in stream])

    assert streamed_text(subject, raw) == text_of(subject, whole)
    assert stream.usage().input_tokens == whole.usage.input_tokens
    assert stream.usage().output_tokens == whole.usage.output_tokens


async def test_a_caller_that_asks_gets_the_usage_chunk(subject: Subject) -> None:
    if subject.client.dialect is not Dialect.OPENAI:
        return  # there it is part of the dialect
    options = {"include_usage": True}
    stream = await subject.client.stream(
        {**ASK, "stream": True, "stream_options": options}
    )
    raw = b"".join([event async for event in stream])

    last = events(raw)[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == stream.usage().output_tokens


async def test_a_stream_hands_out_whole_events_only(subject: Subject) -> None:
    stream = await subject.client.stream({**ASK, "stream": True})

    async for piece in stream:
        assert piece.endswith(b"\n\n")
        assert piece.startswith((b"data: ", b"event: "))


async def test_embeddings_are_numbers_with_a_count_or_refused(subject: Subject) -> None:
    if not subject.embeds:
        with pytest.raises((InvalidInput, UpstreamError)):
            await subject.client.embed(EMBED)
        return
    reply = await subject.client.embed(EMBED)

    assert len(reply.body["data"]) == 2
    assert json.loads(reply.raw) == reply.body
    assert reply.usage.input_tokens
    assert reply.usage.output_tokens == 0
    assert reply.replayed is subject.replayed


async def test_a_stream_is_let_go_half_way_without_harm(subject: Subject) -> None:
    stream = await subject.client.stream({**ASK, "stream": True})
    async for _ in stream:
        break
    await stream.aclose()

    assert text_of(subject, await subject.client.complete(ASK))


async def test_the_request_of_the_caller_is_left_as_it_was(subject: Subject) -> None:
    request = {**ASK, "stream": True}
    before = json.dumps(request)

    async for _ in await subject.client.stream(request):
        pass
    await subject.client.complete(request)

    assert json.dumps(request) == before


async def test_answers_at_the_same_time_do_not_mix(subject: Subject) -> None:
    replies = await asyncio.gather(*(subject.client.complete(ASK) for _ in range(4)))

    assert all(text_of(subject, reply) for reply in replies)


async def test_what_is_not_there_is_unavailable(subject: Subject) -> None:
    with pytest.raises(Unavailable):
        await subject.down.complete(ASK)
    with pytest.raises(Unavailable):
        await subject.down.stream(ASK)


async def test_closing_twice_is_fine(subject: Subject) -> None:
    await subject.client.close()
    await subject.client.close()
