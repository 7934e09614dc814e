"""Callers that speak messages: what is refused, what is left out and named, what is said."""

from typing import Any

import pytest

from nestor.coordinator.dialects.anthropic import Anthropic
from nestor.coordinator.dialects.anthropic_messages import TOOL_FAILED
from nestor.errors import InvalidInput, UpstreamError

FACE = Anthropic()
HI = {"role": "user", "content": "hi"}
ASK: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [HI]}
EPHEMERAL = {"type": "ephemeral"}
CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "done"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0="}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def asked(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**ASK, "messages": list(messages), **more}


def said(request: dict[str, Any]) -> list[dict[str, Any]]:
    FACE.check(request)
    return list(FACE.to_chat(request).body["messages"])


def test_what_claude_code_sends_becomes_a_chat_request_and_names_what_is_left_out() -> (
    None
):
    request = {
        "model": "claude-sonnet-4-5",
        "max_tokens": 32000,
        "stream": True,
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
        "output_config": {"effort": "medium"},
        "temperature": 1,
        "system": [
            text("x-anthropic-billing-header: cc_version=2.1.0; cch=1f;"),
            text("You are an agent.", cache_control=EPHEMERAL),
            text("Be brief.", cache_control=EPHEMERAL),
        ],
        "messages": [
            user(text("<system-reminder>x</system-reminder>"), text("fix it")),
            assistant(
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                text("I look."),
                CALL,
                {**CALL, "id": "t2", "input": {"url": "https://a.test/"}},
            ),
            user(
                {**RESULT, "tool_use_id": "t2", "content": [text("a"), text("b")]},
                {**RESULT, "is_error": True, "cache_control": EPHEMERAL},
                text("go on"),
            ),
        ],
        "tools": [{**TOOL, "description": "d", "eager_input_streaming": True}],
    }

    FACE.check(request)
    found = FACE.to_chat(request)

    function = {"name": "f", "parameters": {"type": "object"}, "description": "d"}
    asks = [
        {"name": "f", "arguments": '{"a":1}'},
        {"name": "f", "arguments": '{"url":"https://a.test/"}'},
    ]
    calls = [
        {"id": name, "type": "function", "function": ask}
        for name, ask in zip(("t1", "t2"), asks, strict=True)
    ]
    failed = TOOL_FAILED + "done"
    assert found.body == {
        "model": "claude-sonnet-4-5",
        "max_tokens": 32000,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 1,
        "messages": [
            {"role": "system", "content": "You are an agent.\n\nBe brief."},
            user(text("<system-reminder>x</system-reminder>"), text("fix it")),
            {"role": "assistant", "content": "I look.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "t1", "content": failed},
            {"role": "tool", "tool_call_id": "t2", "content": "a\nb"},
            {"role": "user", "content": "go on"},
        ],
        "tools": [{"type": "function", "function": function}],
    }
    assert found.left_out == (
        *("metadata", "thinking", "context_management"),
        *("system.x-anthropic-billing-header", "system.cache_control"),
        *("messages.content.thinking", "messages.content.cache_control"),
        *("tools.eager_input_streaming", "output_config.effort"),
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"stream": 1}, "stream"),
        ({"tools": {}}, "tools"),
        ({"system": 7}, "system"),
        ({"mcp_servers": [{"url": "http://10.0.0.1"}]}, "mcp_servers.0.url"),
    ],
)
def test_check_names_the_field_that_no_server_should_see(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        FACE.check({**ASK, **change})
    assert caught.value.errors[0].field == field


def test_unknown_fields_pass_the_check_and_are_left_out_by_name() -> None:
    request = {**ASK, "new_beta": {"on": True}, "top_k": 5, "bad\r\nname,": 1}
    FACE.check(request)
    assert FACE.to_chat(request).left_out == ("new_beta", "top_k", "bad??name?")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asked(user({"type": "document", "source": PNG})), "messages.0.content.0"),
        (asked(user(text("a"), {"type": "novel"})), "messages.0.content.1"),
        (asked(assistant({"type": "server_tool_use"})), "messages.0.content.0"),
        (asked(assistant({"type": "image", "source": PNG})), "messages.0.content.0"),
        (
            asked(HI, assistant(CALL), user({**RESULT, "content": [{"type": "document"}]})),
            "messages.2.content.0.content.0",
        ),
        (
            asked(user(text("a", citations=[{"type": "char_location"}]))),
            "messages.0.content.0.citations",
        ),
        (asked(user({"type": "image", "source": {"type": "file"}})), "messages.0.content.0.source"),
        (asked(user(RESULT)), "messages.0.content.0.tool_use_id"),
        (asked(assistant(CALL), assistant(text("a")), user({**RESULT, "tool_use_id": "x"})), "messages.2.content.0.tool_use_id"),
        (asked(assistant({**CALL, "input": "{}"})), "messages.0.content.0.input"),
        (asked(user()), "messages.0.content"),
        (asked(user("hi")), "messages.0.content.0"),
        (asked(HI, system=[{"type": "image"}]), "system.0"),
        (asked(HI, tools=[{"type": "web_search_20250305", "name": "w"}]), "tools.0.type"),
        (asked(HI, tools=[{**TOOL, "allowed_callers": ["code_execution_20250825"]}]), "tools.0.allowed_callers"),
        (asked(HI, tools=[{"name": "f"}]), "tools.0.input_schema"),
        (asked(HI, tool_choice={"type": "any"}), "tool_choice"),
        (asked(HI, tool_choice={"type": "most"}), "tool_choice.type"),
        (asked(HI, max_tokens=0), "max_tokens"),
        (asked(HI, container="c1"), "container"),
        (asked(HI, mcp_servers=[{"name": "n"}]), "mcp_servers"),
        (asked(HI, inference_geo="us"), "inference_geo"),
        (asked(HI, output_config={"format": {"type": "grammar", "schema": {}}}), "output_config.format.type"),
    ],
)  # fmt: skip
def test_what_carries_meaning_and_cannot_be_said_is_refused_by_name(
    request_: dict[str, Any], field: str
) -> None:
    FACE.check(request_)
    with pytest.raises(InvalidInput) as caught:
        FACE.to_chat(request_)
    assert caught.value.errors[0].field == field


def test_what_is_refused_says_what_to_do() -> None:
    with pytest.raises(InvalidInput, match=r"'document' cannot .* or ask for a model"):
        FACE.to_chat(asked(user({"type": "document"})))


def test_results_follow_their_calls_even_when_they_come_in_two_messages() -> None:
    both = assistant(CALL, {**CALL, "id": "t2"})
    late = user({**RESULT, "tool_use_id": "t2"}, text("first"))

    found = said(asked(HI, both, late, user(RESULT, text("then"))))

    assert [message["role"] for message in found[2:]] == ["tool", "tool", "user"]
    assert [message.get("tool_call_id") for message in found[2:4]] == ["t1", "t2"]
    assert found[4]["content"] == [text("first"), text("then")]


def test_images_system_messages_and_empty_turns_are_said() -> None:
    picture = {"type": "image", "source": PNG}
    late = {"role": "system", "content": "from now on"}

    found = said(asked(user(picture), assistant(), late, user(text("?"))))

    url = {"url": "data:image/png;base64,iVBORw0="}
    assert found == [
        user({"type": "image_url", "image_url": url}),
        late,
        {"role": "user", "content": "?"},
    ]


def test_a_picture_that_a_tool_shows_follows_in_a_message_of_the_user() -> None:
    shown = {**RESULT, "content": [text("read"), {"type": "image", "source": PNG}]}

    found = said(asked(HI, assistant(CALL), user(shown, text("and?"))))

    url = {"url": "data:image/png;base64,iVBORw0="}
    assert found[2:] == [
        {
            "role": "tool",
            "tool_call_id": "t1",
            "content": "read\n[a picture: in the next message]",
        },
        user({"type": "image_url", "image_url": url}, text("and?")),
    ]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            {
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "parallel_tool_calls": False,
            },
        ),
    ],
)
def test_the_choice_of_tools_is_said(
    choice: dict[str, Any], said: dict[str, Any]
) -> None:
    body = FACE.to_chat(asked(HI, tools=[TOOL], tool_choice=choice)).body
    names = ("tool_choice", "parallel_tool_calls")
    assert {name: body[name] for name in names if name in body} == said


def chat(finish: str = "stop", usage: Any = None, **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "ok", **message}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "chatcmpl-7", "model": "q", "choices": [choice], "usage": usage}


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"id": "c1", "type": "function", "function": function, **more}


@pytest.mark.parametrize(
    ("reply", "stop"),
    [
        (chat("stop"), "end_turn"),
        (chat("length"), "max_tokens"),
        (chat("content_filter"), "refusal"),
        (chat("stop", content=None, refusal="no"), "refusal"),
        (chat("tool_calls", tool_calls=[call("{}")]), "tool_use"),
        (chat("stop", tool_calls=[call("{}")]), "tool_use"),
    ],
)
def test_each_end_has_its_stop_reason(reply: dict[str, Any], stop: str) -> None:
    assert FACE.reply(reply, ASK)["stop_reason"] == stop


def test_a_stop_sequence_that_the_server_names_is_named() -> None:
    reply = chat()
    reply["choices"][0]["stop_reason"] = "END"
    found = FACE.reply(reply, {**ASK, "stop_sequences": ["END"]})
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "END")


def test_cached_tokens_are_counted_once_and_unknown_ones_are_null() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    assert FACE.reply(chat(usage=usage), ASK)["usage"] == {
        "input_tokens": 10,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 30,
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 4},
    }
    plain = {"prompt_tokens": 100, "completion_tokens": 9}
    assert FACE.reply(chat(usage=plain), ASK)["usage"] == {
        "input_tokens": 100,
        "cache_read_input_tokens": None,
        "cache_creation_input_tokens": None,
        "output_tokens": 9,
    }


def test_ids_that_anthropic_refuses_become_legal_and_stay_apart() -> None:
    calls = [call("{}", id=name) for name in ("functions.f:0", "functions.f.0", "c_1")]
    found = [b["id"] for b in FACE.reply(chat(tool_calls=calls), ASK)["content"][1:]]
    assert len(set(found)) == 3
    assert found[2] == "c_1"
    assert all(set(name) <= set("functions_0123456789abcdef") for name in found)
    nameless = FACE.reply(chat(content=None, tool_calls=[call("", id=None)]), ASK)
    assert nameless["content"] == [{**CALL, "id": "toolu_7_0", "input": {}}]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ({"choices": []}, "without a message"),
        (chat(tool_calls=[call('{"a":')]), "'f' with arguments that are no JSON"),
        (chat(tool_calls=[call("[1]")]), "are no JSON object"),
        (chat("length", tool_calls=[call('{"a"')]), "cut off by max_tokens"),
        (chat(tool_calls=[{"id": "c", "function": {}}]), "without naming it"),
        (chat(tool_calls=[{"type": "custom"}]), "called a tool in a way"),
        (chat(content=[{"type": "image_url"}]), "'image_url'"),
        (chat(function_call={"name": "f"}), "'function_call'"),
        (chat("error"), "broke its answer off"),
    ],
)
def test_an_answer_without_words_is_an_upstream_error(
    reply: dict[str, Any], says: str
) -> None:
    with pytest.raises(UpstreamError, match=says):
        FACE.reply(reply, ASK)


def piece(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "1", "model": "q", "choices": [choice]}


def test_arguments_that_end_broken_end_the_stream_with_an_error() -> None:
    events = FACE.events(ASK)
    events.feed(piece({"tool_calls": [{"index": 0, **call('{"a":')}]}))
    with pytest.raises(UpstreamError, match="are no JSON object"):
        events.feed(piece({}, "tool_calls")) + events.end()


def test_arguments_that_the_limit_cut_are_passed_on_as_anthropic_does() -> None:
    events = FACE.events(ASK)
    events.feed(piece({"tool_calls": [{"index": 0, **call('{"a":')}]}))
    found = events.feed(piece({}, "length")) + events.end()
    assert b'"stop_reason":"max_tokens"' in found


def test_calls_that_all_say_index_0_stay_apart() -> None:
    events = FACE.events(ASK)
    found = b"".join(
        events.feed(piece({"tool_calls": [{"index": 0, **call('{"a":1}', id=name)}]}))
        for name in ("c1", "c2")
    )
    found += events.end()
    assert found.count(b'"partial_json":"{\\"a\\":1}"') == 2
    assert b'"index":1,"content_block":{"type":"tool_use","id":"c2"' in found


def test_a_call_is_closed_and_the_next_one_opened_while_the_answer_streams() -> None:
    events = FACE.events(ASK)
    events.feed(piece({"tool_calls": [{"index": 0, **call('{"a":1}')}]}))
    found = events.feed(piece({"tool_calls": [{"index": 1, **call("", id="c2")}]}))
    assert found.startswith(b"event: content_block_stop")
    assert b'"id":"c2"' in found


def test_white_space_beside_calls_is_left_out_and_alone_is_kept() -> None:
    blank = chat(content="\n\n", tool_calls=[call("{}")])
    assert [b["type"] for b in FACE.reply(blank, ASK)["content"]] == ["tool_use"]
    assert FACE.reply(chat(content="\n"), ASK)["content"] == [text("\n")]

    events = FACE.events(ASK)
    found = events.feed(piece({"content": "\n\n"}))
    found += events.feed(piece({"tool_calls": [{"index": 0, **call("{}")}]}))
    found += events.end()
    assert b"text_delta" not in found
    events = FACE.events(ASK)
    assert b'"text":"\\n"' in events.feed(piece({"content": "\n"})) + events.end()


def test_thoughts_are_not_passed_on_but_a_ping_shows_that_the_answer_goes_on() -> None:
    events = FACE.events(ASK)
    events.feed(piece({"role": "assistant"}))
    found = [events.feed(piece({"reasoning_content": "hm"})) for _ in range(70)]
    assert set(found) == {b"", b'event: ping\ndata: {"type":"ping"}\n\n'}
    assert len([event for event in found if event]) == 2
