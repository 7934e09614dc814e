"""Chat requests to servers that speak Anthropic's messages, and their answers."""

from typing import Any

import pytest

from nestor.coordinator.dialects.anthropic_messages import TOOL_FAILED
from nestor.coordinator.dialects.to_anthropic import (
    Chunks,
    reply_of,
    request_of,
)
from nestor.errors import InvalidInput, UpstreamError
from nestor.model.routing import DEFAULT_MAX_TOKENS

HI = {"role": "user", "content": "hi"}
ASK: dict[str, Any] = {"model": "m", "messages": [HI]}
URL = "data:image/png;base64,iVBORw0="
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0="}
TOOL = {"type": "function", "function": {"name": "f"}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def call(call_id: str, arguments: Any = "{}") -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def result(call_id: str, content: Any = "r") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def assistant(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def picture(url: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {**ASK, "messages": [{"role": "user", "content": [part]}]}


def turns(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return list(request_of({**ASK, "messages": list(messages)}).body["messages"])


def test_roles_take_turns_and_all_instructions_go_to_system() -> None:
    part = {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
    request = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "one"},
            HI,
            {"role": "user", "content": [text("see"), part, text(" ")], "name": "bo"},
            {"role": "developer", "content": [text("two")]},
            assistant(call("c1"), call("c2"), content="I look", reasoning_content="x"),
            result("c1"),
            result("c2", TOOL_FAILED + "gone"),
            {"role": "user", "content": "then"},
        ],
    }

    found = request_of(request)

    used: list[dict[str, Any]] = [
        {"type": "tool_use", "id": name, "name": "f", "input": {}}
        for name in ("c1", "c2")
    ]
    done = [
        {"type": "tool_result", "tool_use_id": "c1", "content": [text("r")]},
        {
            "type": "tool_result",
            "tool_use_id": "c2",
            "is_error": True,
            "content": [text("gone")],
        },
    ]
    assert found.body["system"] == [text("one"), text("two")]
    assert found.body["messages"] == [
        {
            "role": "user",
            "content": [text("hi"), text("see"), {"type": "image", "source": PNG}],
        },
        {"role": "assistant", "content": [text("I look"), *used]},
        {"role": "user", "content": [*done, text("then")]},
    ]
    assert found.left_out == (
        "messages.name",
        "messages.content.image_url.detail",
        "messages.reasoning_content",
    )


def test_results_come_before_what_the_user_said_in_the_same_turn() -> None:
    found = turns(HI, assistant(call("c1")), HI, result("c1"))
    assert [block["type"] for block in found[2]["content"]] == ["tool_result", "text"]


def test_ids_are_legal_and_unlike_each_other_and_results_keep_to_their_call() -> None:
    found = turns(
        HI,
        assistant(call("functions.f:0")),
        result("functions.f:0", "a"),
        assistant(call("functions.f:0")),
        result("functions.f:0", "b"),
    )
    ids = [turn["content"][0]["id"] for turn in (found[1], found[3])]
    assert ids == ["functions_f_0_d6bdd4de328a", "functions_f_0_d6bdd4de328a_2"]
    for turn, name in zip((found[2], found[4]), ids, strict=True):
        assert turn["content"][0]["tool_use_id"] == name


def test_the_limit_is_what_was_asked_or_a_default_or_the_deployments() -> None:
    both = {**ASK, "max_tokens": 5, "max_completion_tokens": 6}
    assert request_of(ASK).body["max_tokens"] == DEFAULT_MAX_TOKENS
    assert request_of(ASK, max_tokens=77).body["max_tokens"] == 77
    assert request_of({**ASK, "max_tokens": 5}).body["max_tokens"] == 5
    assert request_of(both, max_tokens=77).body["max_tokens"] == 6


def test_settings_are_said_and_hints_are_left_out_by_name() -> None:
    found = request_of(
        {
            **ASK,
            "stop": "END",
            "top_p": 0.5,
            "top_k": 3,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "n": 1,
            "logprobs": False,
            "frequency_penalty": 0,
            "response_format": {"type": "text"},
            "modalities": ["text"],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "user": "u",
            "store": True,
            "metadata": {"a": "b"},
            "seed": 7,
            "reasoning_effort": "low",
            "service_tier": "auto",
            "prompt_cache_key": "k",
            "new_thing": 1,
            "nothing": None,
        }
    )
    assert found.body == {
        "model": "m",
        "max_tokens": DEFAULT_MAX_TOKENS,
        "messages": [{"role": "user", "content": [text("hi")]}],
        "stop_sequences": ["END"],
        "top_p": 0.5,
        "top_k": 3,
        "temperature": 0,
        "stream": True,
    }
    assert found.left_out == (
        *("user", "store", "metadata", "seed", "reasoning_effort", "service_tier"),
        *("prompt_cache_key", "new_thing"),
    )


@pytest.mark.parametrize(
    ("choice", "parallel", "said"),
    [
        (None, True, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("auto", True, {"type": "auto"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ("none", False, {"type": "none"}),
        (TOOL, True, {"type": "tool", "name": "f"}),
    ],
)
def test_the_choice_of_tools_is_said(
    choice: Any, parallel: bool, said: dict[str, Any] | None
) -> None:
    request = {**ASK, "tools": [TOOL], "parallel_tool_calls": parallel}
    body = request_of({**request, "tool_choice": choice}).body
    assert body["tools"] == [{"name": "f", "input_schema": {"type": "object"}}]
    assert body.get("tool_choice") == said


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"temperature": 1.5}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"response_format": {"type": "x"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages.0.content.0"),
        ({"messages": [HI, result("c1")]}, "messages.1.tool_call_id"),
        ({"messages": [assistant(call("c", "[1]"))]}, "messages.0.tool_calls.0.function.arguments"),
        ({"messages": [assistant(call(""))]}, "messages.0.tool_calls.0.id"),
        ({"messages": [assistant({"type": "custom", "id": "c"})]}, "messages.0.tool_calls.0"),
        (picture("https://a.test/x.png"), "messages.0.content.0.image_url.url"),
        (picture("data:image/bmp;base64,AA=="), "messages.0.content.0.image_url.url"),
        (picture("data:image/png,AA"), "messages.0.content.0.image_url.url"),
    ],
)  # fmt: skip
def test_what_carries_meaning_and_cannot_be_said_is_refused_by_name(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        request_of({**ASK, **change})
    assert caught.value.errors[0].field == field


def test_what_is_refused_says_what_to_do() -> None:
    with pytest.raises(InvalidInput, match=r"'n' cannot .* or ask for a model"):
        request_of({**ASK, "n": 2})


def message(*content: Any, stop: str = "end_turn", **usage: Any) -> dict[str, Any]:
    counts = {"input_tokens": 10, "output_tokens": 4, **usage}
    return {
        "id": "msg_1",
        "model": "claude",
        "content": list(content),
        "stop_reason": stop,
        "usage": counts,
    }


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
    ],
)
def test_each_stop_reason_has_its_finish_reason(stop: str, finish: str) -> None:
    found = reply_of(message(text("a"), stop=stop))
    ended = Chunks().feed({"type": "message_delta", "delta": {"stop_reason": stop}})
    assert found["choices"][0]["finish_reason"] == finish
    assert ended[0]["choices"][0]["finish_reason"] == finish


def test_the_prompt_holds_what_was_cached_and_unknown_usage_is_none() -> None:
    cached = message(
        text("a"), cache_read_input_tokens=60, cache_creation_input_tokens=30
    )
    assert reply_of(cached)["usage"] == {
        "prompt_tokens": 100,
        "completion_tokens": 4,
        "total_tokens": 104,
        "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
    }
    assert "usage" not in reply_of({**message(text("a")), "usage": None})
    assert Chunks().feed({"type": "message_stop"}) == []


def test_blocks_that_a_chat_cannot_say_are_upstream_errors() -> None:
    block = {"type": "server_tool_use", "id": "s1"}
    with pytest.raises(UpstreamError, match="server_tool_use"):
        reply_of(message(block))
    with pytest.raises(UpstreamError, match="server_tool_use"):
        Chunks().feed(
            {"type": "content_block_start", "index": 0, "content_block": block}
        )
    with pytest.raises(UpstreamError, match="new_delta"):
        Chunks().feed({"type": "content_block_delta", "delta": {"type": "new_delta"}})
    with pytest.raises(UpstreamError, match="without content"):
        reply_of({"content": "text"})


def test_arguments_that_come_with_the_start_of_a_call_are_not_lost() -> None:
    chunks = Chunks()
    block = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    chunks.feed({"type": "content_block_start", "index": 3, "content_block": block})
    (found,) = chunks.feed({"type": "content_block_stop", "index": 3})
    (said,) = found["choices"][0]["delta"]["tool_calls"]
    assert said == {"index": 0, "function": {"arguments": '{"a":1}'}}


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": "message_start", "message": None},
        {"type": "content_block_stop"},
        {"type": "content_block_stop", "index": [1]},
        {"type": "message_delta", "delta": 3, "usage": []},
        {"type": "error", "error": {"type": "overloaded_error"}},
    ],
)
def test_odd_events_break_nothing(event: dict[str, Any]) -> None:
    assert all("choices" in chunk for chunk in Chunks().feed(event))
