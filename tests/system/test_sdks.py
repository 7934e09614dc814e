"""The vendors' own SDKs hold the same conversations with every upstream."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel
from tests.servers.scripted_model import Rule
from tests.system.sdk_fields import told, tools_told
from tests.system.sdk_stack import SPOKEN, SdkStack
from tests.system.sdk_talks import (
    CALLERS,
    LIMIT,
    ChatTalk,
    MessagesTalk,
    ResponsesTalk,
    Talk,
    Tool,
    b64,
)

pytest_plugins = ("tests.system.sdk_running",)
pytestmark = [pytest.mark.heavy, pytest.mark.alone]

USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 100},
}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
WEATHER = Tool(
    "weather",
    "Tells the weather of a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Its name."}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
CLOCK = Tool("clock", "Tells the time.", {"type": "object", "properties": {}})
SYSTEM = "You are a terse assistant."
CELLS = [
    pytest.param(caller, upstream, stream, id=f"{caller}-{upstream}-{how}")
    for caller, upstream, (stream, how) in itertools.product(
        CALLERS, SPOKEN, ((False, "whole"), (True, "stream"))
    )
]
everywhere = pytest.mark.parametrize(("caller", "upstream", "stream"), CELLS)


def talk(sdks: SdkStack, caller: str, upstream: str, **how: Any) -> Talk:
    if caller == "messages":
        return MessagesTalk(sdks.anthropic(), upstream, **how)
    of: Callable[..., Talk] = ChatTalk if caller == "chat" else ResponsesTalk
    return of(sdks.openai(), upstream, **how)


@everywhere
def test_a_conversation_is_heard_as_it_was_said(
    sdks: SdkStack, caller: str, upstream: str, stream: bool
) -> None:
    sdks.script(
        Rule(when="capital", reply="Paris, the capital of France.", usage=USAGE),
        Rule(when="larger", reply="Yes, it is — «très grande» ☼.", usage=USAGE),
    )
    talked = talk(sdks, caller, upstream, stream=stream, system=SYSTEM)
    first = talked.say("What is the capital of France?")
    assert first.text == "Paris, the capital of France."
    assert (first.stop, list(first.calls)) == ("end", [])
    assert (first.read, first.cached, first.written) == (120, 100, 7)
    second = talked.say("Is it larger than Lyon? ☼")
    assert second.text == "Yes, it is — «très grande» ☼."
    asked = sdks.asked(upstream)[-1]
    assert told(asked) == [
        ("system", SYSTEM),
        ("user", "What is the capital of France?"),
        ("assistant", "Paris, the capital of France."),
        ("user", "Is it larger than Lyon? ☼"),
    ]
    assert asked.body["max_tokens"] == LIMIT
    assert asked.body.get("stream", False) is stream
    assert asked.body["model"] == f"{upstream}-model"
    assert len(sdks.asked(upstream)) == 2


@everywhere
def test_two_calls_at_once_are_made_answered_and_understood(
    sdks: SdkStack, caller: str, upstream: str, stream: bool
) -> None:
    paris, rome = {"city": "Paris"}, {"city": 'Rome "eternal" ☼'}
    sdks.script(
        Rule(
            when="weather",
            reply="Let me look.",
            tool_calls=[
                {"name": "weather", "arguments": paris},
                {"name": "weather", "arguments": rome},
            ],
        ),
        Rule(when="sunny", reply="Sunny in Paris, wet in Rome.", usage=USAGE),
    )
    talked = talk(sdks, caller, upstream, stream=stream, tools=[WEATHER, CLOCK])
    heard = talked.say("The weather in Paris and Rome?")
    assert heard.text == "Let me look."
    assert heard.stop == "tools"
    assert [call[1:] for call in heard.calls] == [("weather", paris), ("weather", rome)]
    first, second = (name for name, _, _ in heard.calls)
    assert first != second
    # Given in another order than asked: each must find its call.
    done = talked.results({second: "wet", first: "sunny, 31 °C"})
    assert (done.text, done.stop) == ("Sunny in Paris, wet in Rome.", "end")
    asked = sdks.asked(upstream)[-1]
    said = told(asked)
    assert said[:4] == [
        ("user", "The weather in Paris and Rome?"),
        ("assistant", "Let me look."),
        ("call", "weather", paris),
        ("call", "weather", rome),
    ]
    assert sorted(said[4:]) == [("result", 0, "sunny, 31 °C"), ("result", 1, "wet")]
    assert tools_told(asked) == [
        (tool.name, tool.description, dict(tool.schema)) for tool in (WEATHER, CLOCK)
    ]


@everywhere
def test_a_call_without_words_or_arguments_comes_through(
    sdks: SdkStack, caller: str, upstream: str, stream: bool
) -> None:
    sdks.script(
        Rule(when="time", tool_calls=[{"name": "clock", "arguments": {}}]),
        Rule(when="noon", reply="It is noon."),
    )
    talked = talk(sdks, caller, upstream, stream=stream, tools=[CLOCK])
    heard = talked.say("What time is it?")
    assert (heard.text, heard.stop) == ("", "tools")
    ((name, tool, arguments),) = heard.calls
    assert (tool, arguments) == ("clock", {})
    assert talked.results({name: "noon"}).text == "It is noon."
    assert told(sdks.asked(upstream)[-1]) == [
        ("user", "What time is it?"),
        ("call", "clock", {}),
        ("result", 0, "noon"),
    ]


@everywhere
def test_an_image_arrives_byte_for_byte(
    sdks: SdkStack, caller: str, upstream: str, stream: bool
) -> None:
    sdks.script(Rule(when="see", reply="A pixel."))
    talked = talk(sdks, caller, upstream, stream=stream)
    assert talked.say("What do you see?", image=PIXEL).text == "A pixel."
    assert told(sdks.asked(upstream)[-1]) == [
        ("user", "What do you see?"),
        ("image", "image/png", b64(PIXEL)),
    ]


@everywhere
def test_an_answer_that_was_cut_says_so(
    sdks: SdkStack, caller: str, upstream: str, stream: bool
) -> None:
    sdks.script(Rule(reply="Once upon a", finish="length"))
    talked = talk(sdks, caller, upstream, stream=stream, max_tokens=4)
    heard = talked.say("Tell me a story.")
    assert (heard.text, heard.stop) == ("Once upon a", "length")
    assert (heard.read, heard.written) == (11, 7)
    assert sdks.asked(upstream)[-1].body["max_tokens"] == 4


class City(BaseModel):
    """What an answer has to be."""

    name: str
    people: int


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("upstream", SPOKEN)
def test_a_schema_for_the_answer_arrives_and_the_sdk_reads_the_answer_by_it(
    sdks: SdkStack, caller: str, upstream: str
) -> None:
    sdks.script(Rule(when="Paris", reply='{"name": "Paris", "people": 2100000}'))
    said: Any = [{"role": "user", "content": "Tell of Paris."}]
    parsed: Any
    if caller == "chat":
        done = sdks.openai().chat.completions.parse(
            model=upstream, messages=said, response_format=City
        )
        parsed = done.choices[0].message.parsed
    elif caller == "responses":
        parsed = (
            sdks.openai()
            .responses.parse(model=upstream, input=said, text_format=City)
            .output_parsed
        )
    else:
        parsed = (
            sdks.anthropic()
            .messages.parse(
                model=upstream, messages=said, output_format=City, max_tokens=LIMIT
            )
            .parsed_output
        )
    assert parsed == City(name="Paris", people=2_100_000)
    body = sdks.asked(upstream)[-1].body
    if upstream == "openai":
        wanted = body["response_format"]["json_schema"]
        assert body["response_format"]["type"] == "json_schema"
        assert wanted["strict"] is True
    else:
        wanted = body["output_config"]["format"]
        assert wanted["type"] == "json_schema"
    assert wanted["schema"]["required"] == ["name", "people"]
    assert wanted["schema"]["additionalProperties"] is False
    kinds = {n: of["type"] for n, of in wanted["schema"]["properties"].items()}
    assert kinds == {"name": "string", "people": "integer"}


def test_log_probabilities_come_back_from_a_server_that_tells_them(
    sdks: SdkStack,
) -> None:
    token = {"token": "Yes", "logprob": -0.25, "bytes": [89, 101, 115]}
    told = {"content": [{**token, "top_logprobs": [token]}], "refusal": None}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Yes"},
        "finish_reason": "stop",
        "logprobs": told,
    }
    answer = {
        "id": "chatcmpl-9",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
    sdks.script(Rule(raw=json.dumps(answer)))
    done = sdks.openai().chat.completions.create(
        model="openai",
        messages=[{"role": "user", "content": "Is it?"}],
        logprobs=True,
        top_logprobs=1,
    )
    assert done.to_dict() == answer
    seen = done.choices[0].logprobs
    assert seen is not None
    assert seen.content is not None
    assert seen.content[0].top_logprobs[0].logprob == -0.25
    body = sdks.asked("openai")[-1].body
    assert (body["logprobs"], body["top_logprobs"]) == (True, 1)


# By caller: a tool that must be called; any tool; one at a time.
CHOICES: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"tool_choice": "required"},
        {"tool_choice": "auto", "parallel_tool_calls": False},
        {"tool_choice": "none"},
    ],
    "responses": [
        {"tool_choice": {"type": "function", "name": "weather"}},
        {"tool_choice": "required"},
        {"tool_choice": "auto", "parallel_tool_calls": False},
        {"tool_choice": "none"},
    ],
    "messages": [
        {"tool_choice": {"type": "tool", "name": "weather"}},
        {"tool_choice": {"type": "any"}},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {"tool_choice": {"type": "none"}},
    ],
}


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("upstream", SPOKEN)
@pytest.mark.parametrize("caller", CALLERS)
def test_which_tool_must_be_called_is_said_in_the_upstreams_words(
    sdks: SdkStack, caller: str, upstream: str, number: int
) -> None:
    sdks.script(Rule(reply="Well."))
    talked: Any = talk(sdks, caller, upstream, stream=False, tools=[WEATHER, CLOCK])
    talked.also(**CHOICES[caller][number])
    assert talked.say("The weather?").text == "Well."
    body = sdks.asked(upstream)[-1].body
    spoken = {"openai": "chat", "anthropic": "messages"}[upstream]
    expected = CHOICES[spoken][number]
    assert {name: body.get(name) for name in expected} == expected
    assert len(body["tools"]) == 2


@pytest.mark.parametrize("upstream", SPOKEN)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_picture_that_a_tool_gave_is_seen(
    sdks: SdkStack, upstream: str, stream: bool
) -> None:
    call = {"name": "clock", "arguments": {}}
    sdks.script(Rule(when="look", tool_calls=[call]), Rule(reply="It is noon."))
    talked: Any = talk(sdks, "messages", upstream, stream=stream, tools=[CLOCK])
    ((name, _, _),) = talked.say("Please look at the clock.").calls
    source = {"type": "base64", "media_type": "image/png", "data": b64(PIXEL)}
    shown = [
        {"type": "text", "text": "a dial"},
        {"type": "image", "source": source},
    ]
    assert talked.results({name: shown}).text == "It is noon."
    messages = sdks.asked(upstream)[-1].body["messages"]
    if upstream == "anthropic":
        ((result,),) = (message["content"] for message in messages[2:])
        assert result["content"] == shown
        return
    # A chat server takes pictures of users alone: it follows the result at once.
    assert [message["role"] for message in messages[1:]] == [
        *("assistant", "tool", "user"),
    ]
    assert messages[2]["tool_call_id"] == messages[1]["tool_calls"][0]["id"]
    assert "a dial" in json.dumps(messages[2]["content"])
    assert {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{b64(PIXEL)}"},
    } in messages[3]["content"]


COUNTED = {
    "input_tokens": 20,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 30,
    "output_tokens": 7,
}
THOUGHT = {
    "prompt_tokens": 150,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 100},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


@everywhere
def test_what_is_counted_is_what_the_caller_is_told_and_what_is_billed(
    sdks: SdkStack, caller: str, upstream: str, stream: bool
) -> None:
    sdks.script(
        Rule(reply="Hm.", usage=COUNTED if upstream == "anthropic" else THOUGHT)
    )
    heard = talk(sdks, caller, upstream, stream=stream).say("hello")
    usage = heard.shown.usage
    if caller == "messages":
        written = 30 if upstream == "anthropic" else 0
        told = usage.input_tokens, usage.cache_read_input_tokens
        assert told == (50 - written, 100)
        assert (usage.cache_creation_input_tokens or 0) == written
        assert usage.output_tokens == 7
    else:
        assert (heard.read, heard.cached, heard.written) == (150, 100, 7)
        assert usage.total_tokens == 157
    if upstream == "openai" and caller != "messages":
        name = {"chat": "completion", "responses": "output"}[caller]
        details = getattr(usage, f"{name}_tokens_details")
        assert details.reasoning_tokens == 3
    (exchange,) = sdks.exchanges
    (call,) = sdks.metered(exchange.headers["x-nestor-interaction-id"])
    billed = msgspec.to_builtins(sdks.upstreams[upstream].billed)
    counted = {name: count or 0 for name, count in call["usage"].items()}
    assert counted == billed
