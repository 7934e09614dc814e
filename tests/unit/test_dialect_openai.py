"""Chat completions pass as they are; embeddings are looked at before they go."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from nestor.coordinator.dialects.openai import OpenAI, check_embeddings, chunks_of
from nestor.errors import InvalidInput, UpstreamError
from nestor.model.sse import EventSplitter, data_of, is_done

FACE = OpenAI()
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
EMBED: dict[str, Any] = {"model": "m", "input": "x"}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "user"}, {"content": "x"}]}, "messages.1.role"),
        ({**ASK, "model": 5}, "model"),
        ({**ASK, "stream": "yes"}, "stream"),
        ({**ASK, "stream_options": []}, "stream_options"),
        ({**ASK, "tools": {}}, "tools"),
        ({**ASK, "base_url": "http://x"}, "base_url"),
    ],
)
def test_a_bad_chat_names_the_field(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        FACE.check(request_)
    assert caught.value.errors[0].field == field


def test_a_chat_is_not_changed() -> None:
    request = {**ASK, "model": "m", "logit_bias": {"1": 2}, "vendor_field": [1]}
    FACE.check(request)
    found = FACE.to_chat(request)
    assert found.body is request
    assert found.left_out == ()
    reply: dict[str, Any] = {"anything": 1}
    assert FACE.reply(reply, request) is reply


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"x": 1}])
def test_the_usage_chunk_goes_to_who_asked(options: dict[str, Any] | None) -> None:
    text = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
    counted = {"choices": [], "usage": {"total_tokens": 1}}
    filtered: dict[str, Any] = {"choices": [], "prompt_filter_results": []}
    quiet = FACE.events({**ASK, "stream_options": options})
    assert (
        quiet.feed(text)
        == b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    )
    assert quiet.feed(counted) == b""
    assert quiet.feed(filtered) != b""
    assert quiet.feed(text | {"usage": {"total_tokens": 1}}) != b""
    assert quiet.end() == b"data: [DONE]\n\n"
    asked = FACE.events({**ASK, "stream_options": {"include_usage": True}})
    assert data_of(asked.feed(counted)) == counted


@pytest.mark.parametrize(
    "given",
    [
        "x",
        ["x", "y"],
        [1, 2, 3],
        [[1, 2], [3]],
        ["x"] * 2048,
        list(range(8000)),
    ],
    ids=lambda v: str(v)[:20],
)
def test_embeddings_take_texts_and_tokens(given: Any) -> None:
    check_embeddings({**EMBED, "input": given})
    check_embeddings({**EMBED, "encoding_format": "base64", "dimensions": 256})


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": ["x", ""]}, "input.1"),
        ({"input": ["x", 1]}, "input.1"),
        ({"input": [1, "x"]}, "input.1"),
        ({"input": [1, -1]}, "input.1"),
        ({"input": [True]}, "input.0"),
        ({"input": [[]]}, "input.0"),
        ({"input": [[1, "x"]]}, "input.0"),
        ({"input": [[1], "x"]}, "input"),
        ({"input": [{"image_url": "http://x"}]}, "input.0"),
        ({"input": ["x"] * 2049}, "input"),
        ({"model": 1}, "model"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"encoding_format": ["float"]}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "8"}, "dimensions"),
        ({"api_base": "http://x"}, "api_base"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_bad_embeddings_name_the_field(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_embeddings({**EMBED, **changed})
    assert caught.value.errors[0].field == field


CALL = st.builds(
    lambda n, a: {"id": n, "type": "function", "function": {"name": n, "arguments": a}},
    st.text(min_size=1, max_size=5),
    st.text(max_size=20),
)


@given(
    st.text(min_size=1),
    st.lists(CALL, max_size=3),
    st.sampled_from(["stop", "length", "tool_calls"]),
    st.booleans(),
)
def test_a_whole_answer_streams_as_what_the_sdk_puts_together_again(
    text: str, calls: list[dict[str, Any]], reason: str, counted: bool
) -> None:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    message |= {"tool_calls": calls} if calls else {}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    completion = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        **({"usage": usage} if counted else {}),
    }
    asked = {**ASK, "stream_options": {"include_usage": True}}
    events = FACE.events(asked)
    raw = b"".join(map(events.feed, chunks_of(completion))) + events.end()
    *pieces, last = EventSplitter().feed(raw)
    assert is_done(last)
    state = ChatCompletionStreamState()
    for one in pieces:
        state.handle_chunk(ChatCompletionChunk.model_validate(data_of(one)))
    found = state.current_completion_snapshot.to_dict()
    choice: Any = found["choices"]
    assert choice[0]["message"]["content"] == text
    assert choice[0]["finish_reason"] == reason
    told = [
        {name: call[name] for name in ("id", "type", "function")}
        for call in choice[0]["message"].get("tool_calls") or []
    ]
    assert [c["function"]["arguments"] for c in told] == [
        c["function"]["arguments"] for c in calls
    ]
    assert [c["id"] for c in told] == [c["id"] for c in calls]
    assert (found.get("usage") is not None) == counted


def test_an_answer_without_a_message_cannot_be_streamed() -> None:
    with pytest.raises(UpstreamError):
        list(chunks_of({"choices": []}))
