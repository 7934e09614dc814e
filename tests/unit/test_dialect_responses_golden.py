"""Transcripts of Responses, byte for byte, and what OpenAI's own SDK makes of them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from nestor.coordinator.dialects.responses import Responses
from nestor.model.sse import EventSplitter, data_of

GOLDEN = Path(__file__).parent.parent / "golden" / "responses"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))
FACE = Responses(clock=lambda: 0.0, new_id=lambda: "made")
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def case(name: str) -> tuple[dict[str, Any], bytes]:
    text = (GOLDEN / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text), (GOLDEN / f"{name}.sse").read_bytes()


def streamed(told: dict[str, Any]) -> bytes:
    events = FACE.events(told["request"])
    return b"".join(map(events.feed, told["chunks"])) + events.end()


@asynccontextmanager
async def serving(
    told: dict[str, Any], raw: bytes
) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's SDK, before a server that answers with the transcript."""

    async def answer(request: web.Request) -> web.Response:
        assert (await request.json())["model"] == told["request"]["model"]
        if (await request.json()).get("stream"):
            return web.Response(body=raw, content_type="text/event-stream")
        return web.json_response(told["reply"])

    app = web.Application()
    app.router.add_post("/v1/responses", answer)
    async with (
        TestServer(app) as server,
        openai.AsyncOpenAI(
            base_url=str(server.make_url("/v1")), api_key="k", max_retries=0
        ) as client,
    ):
        yield client


@pytest.mark.parametrize("name", NAMES)
def test_the_transcript_is_the_same_to_the_byte(name: str) -> None:
    told, raw = case(name)
    FACE.check(told["request"])
    translated = FACE.to_chat(told["request"])
    assert translated.body == told["chat"]
    assert list(translated.left_out) == told["left_out"]
    assert streamed(told).decode() == raw.decode()
    reply = FACE.reply(told["completion"], told["request"])
    assert msgspec.json.encode(reply) == msgspec.json.encode(told["reply"])


@pytest.mark.parametrize("name", NAMES)
def test_events_are_numbered_named_and_of_the_types_callers_know(name: str) -> None:
    _, raw = case(name)
    events = EventSplitter().feed(raw)
    assert b"".join(events) == raw
    said = [data for event in events if (data := data_of(event)) is not None]
    assert [data["sequence_number"] for data in said] == list(range(len(events)))
    for event, data in zip(events, said, strict=True):
        assert event.startswith(f"event: {data['type']}\n".encode())
        known = EVENT.validate_python(data)
        assert known.type == data["type"]
        assert type(known).model_fields.keys() <= {*data, "agent", "obfuscation"}


@pytest.mark.parametrize("name", NAMES)
async def test_the_sdk_reads_the_same_from_both(name: str) -> None:
    told, raw = case(name)
    asked = {k: v for k, v in told["request"].items() if k != "stream"}
    extra = asked.pop("client_metadata", None)
    async with serving(told, raw) as client:
        whole = await client.responses.create(**asked, extra_body=extra)
        last: Any = None
        async for event in await client.responses.create(
            **asked, extra_body=extra, stream=True
        ):
            last = event
    assert Response.model_validate(told["reply"]) == whole
    assert last.response == whole
    assert whole.status in ("completed", "incomplete")
    assert (whole.usage is None) == (name == "cut_without_usage")


@pytest.mark.parametrize("name", NAMES)
async def test_the_sdk_puts_a_stream_together(name: str) -> None:
    told, raw = case(name)
    asked: dict[str, Any] = {"model": "auto", "input": "x"}
    async with (
        serving(told, raw) as client,
        client.responses.stream(**asked) as stream,
    ):
        kinds = [event.type async for event in stream]
        if kinds[-1] == "response.incomplete":
            with pytest.raises(RuntimeError):
                await stream.get_final_response()
            return
        found = await stream.get_final_response()
    assert found.output_text == Response.model_validate(told["reply"]).output_text
    assert len(found.output) == len(told["reply"]["output"])
