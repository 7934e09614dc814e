"""A Responses request said as a chat: with its meaning, or an error that names the field."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestor.coordinator.dialects.responses import Responses
from nestor.coordinator.dialects.responses_tools import chat_name, unwrapped, wrapped
from nestor.errors import InvalidInput

FACE = Responses()
ASK: dict[str, Any] = {"model": "auto", "input": "hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
DONE = {"type": "function_call_output", "call_id": "c", "output": "x"}
F = {"type": "function", "name": "f"}


def chat(request: dict[str, Any]) -> dict[str, Any]:
    FACE.check(request)
    return FACE.to_chat(request).body


def user(*parts: Any) -> dict[str, Any]:
    return {"model": "auto", "input": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["x"]}, "input.0"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": 5}]}, "input.0.content"),
        ({"input": [{"type": "mcp_call"}]}, "input.0.type"),
        ({"input": [{"content": "x"}]}, "input.0.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [DONE]}, "input.0.call_id"),
        ({"input": [CALL, {**DONE, "output": {}}]}, "input.1.output"),
        ({"input": [CALL, {**DONE, "output": ["x"]}]}, "input.1.output.0.type"),
        ({"input": [{**CALL, "arguments": {}}]}, "input.0.arguments"),
        ({"input": [{**CALL, "call_id": None}]}, "input.0.call_id"),
        ({"input": [{**CALL, "type": "custom_tool_call"}]}, "input.0.input"),
        (user({"type": "input_image", "file_id": "f"}), "input.0.content.0.file_id"),
        (user({"type": "input_image"}), "input.0.content.0.image_url"),
        (user({"type": "input_video"}), "input.0.content.0.type"),
        (
            {
                "input": [
                    {
                        "role": "system",
                        "content": [{"type": "input_image", "image_url": "data:x"}] * 2,
                    }
                ]
            },
            "input.0.content.0.type",
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "9"}, "max_output_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"model": 1}, "model"),
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools.0"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [F, {"type": "custom", "name": "f"}]}, "tools.1.name"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools.0"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]},
            "tools.0.tools.0.type",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [F], "tool_choice": {**F, "name": "g"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "tools": 1}}, "tool_choice"),
        ({"text": "x"}, "text"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"instructions": [1]}, "instructions"),
        ({"api_base": "http://x"}, "api_base"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_what_cannot_be_said_names_the_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        chat({**ASK, **given})
    assert caught.value.errors[0].field == field


@pytest.mark.parametrize(
    "kind",
    [
        *("local_shell", "shell", "web_search", "web_search_preview", "file_search"),
        *("mcp", "computer", "code_interpreter", "image_generation", "tool_search"),
    ],
)
def test_a_tool_that_runs_elsewhere_is_named_with_what_to_do(kind: str) -> None:
    with pytest.raises(InvalidInput, match=kind) as caught:
        chat({**ASK, "tools": [F, {"type": kind}]})
    assert caught.value.errors[0].field == "tools.1.type"
    assert "leave it out" in str(caught.value)


def test_what_only_hints_is_left_out_and_named() -> None:
    hints = {
        "store": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "metadata": {"a": "b"},
        "truncation": "auto",
        "user": "u",
        "safety_identifier": "s",
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "high", "summary": "auto"},
        "client_metadata": {"x": "y"},
        "new_field\r\n,": 1,
    }
    FACE.check({**ASK, **hints})
    found = FACE.to_chat({**ASK, **hints})
    assert found.body == {
        "model": "auto",
        "messages": [{"role": "user", "content": "hi"}],
    }
    inner = {"text.verbosity", "reasoning.effort", "reasoning.summary"}
    assert set(found.left_out) == (
        {*hints} - {"text", "reasoning", "new_field\r\n,"} | inner | {"new_field???"}
    )


def test_what_asks_for_nothing_is_not_named() -> None:
    nothing: dict[str, Any] = {
        "store": False,
        "include": [],
        "background": False,
        "previous_response_id": None,
        "metadata": {},
        "service_tier": "auto",
        "truncation": "disabled",
        "reasoning": None,
        "text": {"format": {"type": "text"}},
        "stream_options": {"include_obfuscation": False},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }
    found = FACE.to_chat({**ASK, **nothing})
    assert found.left_out == ()
    assert set(found.body) == {"model", "messages"}


def test_header_names_have_an_end() -> None:
    many = {f"{'x' * 90}{i}": 1 for i in range(100)}
    left = FACE.to_chat({**ASK, **many}).left_out
    assert len(left) == 32
    assert max(map(len, left)) == 64


def test_outputs_follow_their_calls_wherever_they_were() -> None:
    steer = {"role": "user", "content": "stop"}
    second = {**CALL, "call_id": "d"}
    items = [
        {"role": "user", "content": "go"},
        CALL,
        {"role": "assistant", "content": "and"},
        second,
        steer,
        {**DONE, "call_id": "d", "output": "2"},
        DONE,
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    messages = chat({"model": "auto", "input": items})["messages"]
    assert [m["role"] for m in messages] == [
        *("user", "assistant", "tool", "tool", "user", "assistant", "assistant")
    ]
    assert messages[1]["content"] == "and"
    assert [c["id"] for c in messages[1]["tool_calls"]] == ["c", "d"]
    assert [m["content"] for m in messages[2:4]] == ["x", "2"]


def test_a_call_after_an_output_begins_a_new_turn() -> None:
    again = [CALL, DONE, CALL, {**DONE, "output": "y"}]
    messages = chat({"model": "auto", "input": again})["messages"]
    assert [m["role"] for m in messages] == ["assistant", "tool", "assistant", "tool"]
    assert [m["content"] for m in messages] == [None, "x", None, "y"]


def test_what_the_system_says_first_is_one_message() -> None:
    said = [
        {"role": "developer", "content": [{"type": "input_text", "text": "b"}] * 2},
        {"role": "user", "content": "hi"},
        {"role": "system", "content": "later"},
    ]
    messages = chat({"model": "m", "instructions": "a", "input": said})["messages"]
    assert [(m["role"], m["content"]) for m in messages] == [
        ("system", "a\n\nb\nb"),
        ("user", "hi"),
        ("system", "later"),
    ]


def test_parts_keep_what_they_carry() -> None:
    parts = [
        {"type": "input_text", "text": "a", "prompt_cache_breakpoint": {"mode": "x"}},
        {"type": "input_file", "file_data": "data:,A", "filename": "a.txt"},
        {"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}},
    ]
    found = FACE.to_chat(user(*parts))
    assert found.body["messages"][0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "file", "file": {"file_data": "data:,A", "filename": "a.txt"}},
        {"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}},
    ]
    assert found.left_out == ("input.*.content.*.prompt_cache_breakpoint",)


def test_one_tool_can_be_forced() -> None:
    custom = {"type": "custom", "name": "p"}
    body = chat({**ASK, "tools": [F, custom], "tool_choice": custom})
    assert body["tool_choice"] == {"type": "function", "function": {"name": "p"}}
    body = chat({**ASK, "tools": [F, custom], "tool_choice": "none"})
    assert body["tool_choice"] == "none"


def test_an_object_is_asked_for_as_chat_asks() -> None:
    body = chat({**ASK, "text": {"format": {"type": "json_object"}}})
    assert body["response_format"] == {"type": "json_object"}


def test_long_joined_names_fit_and_differ() -> None:
    names = {chat_name("n" * 70, f"tool{i}") for i in range(50)}
    assert len(names) == 50
    assert {len(name) for name in names} == {64}
    assert chat_name(None, "f") == "f"
    assert chat_name("a", "f") == "a__f"


@given(st.text())
def test_a_custom_tools_text_comes_back_as_it_was(text: str) -> None:
    assert unwrapped(wrapped(text)) == text
    assert isinstance(unwrapped(text), str)


@pytest.mark.parametrize("text", ["*** Begin", "{}", '{"input": 5}', "[1]", "[" * 9999])
def test_a_custom_tools_text_that_was_not_wrapped_is_the_text(text: str) -> None:
    assert unwrapped(text) == text


TEXTS = st.text(min_size=1, max_size=20)
OBJECTS = st.dictionaries(TEXTS, TEXTS, max_size=2)


@given(TEXTS, st.lists(st.tuples(st.booleans(), OBJECTS, TEXTS), max_size=4))
def test_an_answer_sent_back_says_what_it_said(
    said: str, calls: list[tuple[bool, dict[str, str], str]]
) -> None:
    """A chat answer as a response, and its items in the next request as a chat again."""
    tools = [F, {"type": "custom", "name": "p"}]
    message: dict[str, Any] = {"role": "assistant", "content": said}
    outputs = []
    for number, (custom, arguments, output) in enumerate(calls):
        called = {"name": "p", "arguments": wrapped(output)}
        if not custom:
            called = {"name": "f", "arguments": msgspec.json.encode(arguments).decode()}
        call = {"id": f"c{number}", "type": "function", "function": called}
        message.setdefault("tool_calls", []).append(call)
        kind = "custom_tool_call_output" if custom else "function_call_output"
        outputs.append({"type": kind, "call_id": f"c{number}", "output": output})
    completion = {"choices": [{"message": message, "finish_reason": "stop"}]}
    request = {**ASK, "tools": tools}
    reply = FACE.reply(completion, request)
    again = chat(
        {
            **request,
            "input": [{"role": "user", "content": "hi"}, *reply["output"], *outputs],
        }
    )
    first, back, *rest = again["messages"]
    assert first == {"role": "user", "content": "hi"}
    assert back == message
    assert [m["content"] for m in rest] == [output for _, _, output in calls]
