"""There and back between chat and messages keeps what is meant; streamed equals whole."""

import copy
import json
from contextlib import suppress
from typing import Any

from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import MessageCreateParamsBase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from pydantic import TypeAdapter
from tests.unit import anthropic_conversations as drawn

from nestor.coordinator.dialects.anthropic import Anthropic
from nestor.coordinator.dialects.to_anthropic import Chunks, reply_of, request_of
from nestor.errors import InvalidInput, UpstreamError
from nestor.model.sse import EventSplitter, data_of

ASKED = {"model": "m"}
CHAT: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsBase)
MESSAGES: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsBase)
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
FACE = Anthropic()
UNHURRIED = settings(deadline=None, suppress_health_check=list(HealthCheck))
NO_STREAM = ("stream", "stream_options")  # other classes of the SDKs' hold them


@given(drawn.chat_requests())
@settings(UNHURRIED, max_examples=60)
def test_chat_said_in_messages_and_back_is_the_same(request: dict[str, Any]) -> None:
    kept = copy.deepcopy(request)

    there = request_of(request)
    MESSAGES.validate_python({k: v for k, v in there.body.items() if k != "stream"})
    FACE.check(there.body)
    back = FACE.to_chat(there.body)

    assert request == kept
    assert (there.left_out, back.left_out) == ((), ())
    assert parsed(back.body) == parsed(request)


@given(drawn.messages_requests())
@settings(UNHURRIED, max_examples=60)
def test_messages_said_in_chat_and_back_are_the_same(request: dict[str, Any]) -> None:
    kept = copy.deepcopy(request)

    FACE.check(request)
    there = FACE.to_chat(request)
    CHAT.validate_python({k: v for k, v in there.body.items() if k not in NO_STREAM})
    back = request_of(there.body)

    assert request == kept
    assert (there.left_out, back.left_out) == ((), ())
    assert back.body == request


@given(st.data())
@settings(UNHURRIED, max_examples=150)
def test_a_chat_answer_streamed_in_any_pieces_is_the_whole_message(
    data: st.DataObject,
) -> None:
    reply = data.draw(drawn.chat_replies())
    whole = FACE.reply(reply, ASKED)

    events = events_of(data.draw(drawn.chunked(reply)))

    Message.model_validate(whole)
    assert accumulated(events) == whole


@given(st.data())
@settings(UNHURRIED, max_examples=150)
def test_a_message_streamed_in_any_pieces_is_the_whole_chat_answer(
    data: st.DataObject,
) -> None:
    message = data.draw(drawn.messages())
    whole = reply_of(message, clock=lambda: 5.9)
    state = ChatCompletionStreamState()
    chunks = Chunks(clock=lambda: 5.9)

    for event in data.draw(drawn.streamed(message)):
        for chunk in chunks.feed(event):
            state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    found = state.current_completion_snapshot.to_dict()

    ChatCompletion.model_validate(whole)
    assert parsed(known(found)) == parsed(known(whole))


@given(st.data())
@settings(UNHURRIED, max_examples=60)
def test_an_answer_goes_through_both_dialects_unchanged(data: st.DataObject) -> None:
    message = data.draw(drawn.messages())
    chunks = Chunks()

    events = data.draw(drawn.streamed(message))
    found = accumulated(events_of([c for e in events for c in chunks.feed(e)]))

    said = [block for block in message["content"] if block["type"] != "thinking"]
    calls = [block for block in said if block["type"] == "tool_use"]
    assert [b for b in found["content"] if b["type"] == "tool_use"] == calls
    assert text_of(found["content"]) == text_of(said)
    for name, count in message["usage"].items():
        assert found["usage"][name] == count


@given(st.data())
@settings(UNHURRIED, max_examples=300)
def test_whatever_is_wrong_with_an_answer_is_an_error_of_the_upstream(
    data: st.DataObject,
) -> None:
    reply, message = data.draw(drawn.chat_replies()), data.draw(drawn.messages())
    chunks = data.draw(drawn.spoiled(data.draw(drawn.chunked(reply))))
    events = data.draw(drawn.spoiled(data.draw(drawn.streamed(message))))
    making, back = FACE.events(ASKED), Chunks()

    with suppress(UpstreamError):
        FACE.reply(objects(data.draw(drawn.spoiled(reply)))[0], ASKED)
    with suppress(UpstreamError):
        reply_of(objects(data.draw(drawn.spoiled(message)))[0])
    with suppress(UpstreamError):
        assert b"".join([*map(making.feed, objects(chunks)), making.end()])
    with suppress(UpstreamError):
        assert [chunk for event in objects(events) for chunk in back.feed(event)] or 1


@given(st.data())
@settings(UNHURRIED, max_examples=300)
def test_whatever_is_wrong_with_a_request_is_an_error_of_the_caller(
    data: st.DataObject,
) -> None:
    asked = objects(data.draw(drawn.spoiled(data.draw(drawn.messages_requests()))))[0]
    chat = objects(data.draw(drawn.spoiled(data.draw(drawn.chat_requests()))))[0]

    with suppress(InvalidInput):
        FACE.check(asked)
        FACE.to_chat(asked)
    with suppress(InvalidInput):
        request_of(chat)


def objects(found: Any) -> list[dict[str, Any]]:
    """Return the objects of what was spoiled: nothing else reaches a dialect."""
    found = found if isinstance(found, list) else [found]
    return [one for one in found if isinstance(one, dict)] or [{}]


def events_of(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events of chunks, each of a type that the SDK knows."""
    making = FACE.events(ASKED)
    raw = b"".join([*map(making.feed, chunks), making.end()])
    events = EventSplitter().feed(raw)
    assert b"".join(events) == raw
    found = [data_of(event) for event in events]
    for event, data in zip(events, found, strict=True):
        assert data is not None
        assert event.startswith(f"event: {data['type']}\n".encode())
        if data["type"] != "ping":
            EVENT.validate_python(data)
    return [data for data in found if data is not None and data["type"] != "ping"]


def accumulated(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Put events together as the SDK does, and check that one block is open at a time."""
    snapshot: Any = None
    open_block = None
    buffers: dict[int, bytes] = {}
    for event in events:
        if event["type"] == "content_block_start":
            assert open_block is None
            open_block = event["index"]
        elif event["type"].startswith("content_block"):
            assert event["index"] == open_block
            open_block = None if event["type"].endswith("stop") else open_block
        snapshot = accumulate_event(
            event=EVENT.validate_python(event),
            current_snapshot=snapshot,
            json_bufs=buffers,
        )
    assert open_block is None
    found = dict(snapshot.to_dict())
    assert found.pop("stop_details") is None
    return found


def text_of(blocks: list[dict[str, Any]]) -> str:
    return "".join(block["text"] for block in blocks if block["type"] == "text")


def known(value: Any) -> Any:
    """Drop what says nothing, and what the SDK's accumulator adds."""
    if isinstance(value, list):
        return [known(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    added = {"parsed", "parsed_arguments", *(["index"] if "function" in value else [])}
    return {
        name: known(inner)
        for name, inner in value.items()
        if inner not in (None, "") and name not in added
    }


def parsed(body: dict[str, Any]) -> dict[str, Any]:
    """Read the arguments of calls: how JSON is spaced says nothing."""
    body = copy.deepcopy(body)
    choices = [choice["message"] for choice in body.get("choices", ())]
    for message in [*body.get("messages", ()), *choices]:
        for call in message.get("tool_calls") or ():
            function = call["function"]
            function["arguments"] = json.loads(function.get("arguments") or "{}")
    return body
