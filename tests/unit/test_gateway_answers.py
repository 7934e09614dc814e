"""Answers that nobody foresaw: each fails its own call, in words, and is settled."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.servers.coordinator_rig import Rig, rig
from tests.servers.scripted_model import Rule

from nestor.backends.openai.stream import OpenAIStream
from nestor.coordinator import service
from nestor.coordinator.dialects import kept
from nestor.coordinator.dialects.anthropic_chunks import Chunks
from nestor.coordinator.dialects.responses import Responses
from nestor.coordinator.dialects.responses_events import ResponsesEvents
from nestor.coordinator.limits import Caller
from nestor.errors import InvalidInput, UpstreamError
from nestor.model.routing import Dialect, ModelCall, RouteRequest
from nestor.model.task import Usage

TASK = Caller(key_id="k1", task_id="t1", iteration=1)
USAGE = {"prompt_tokens": 11, "completion_tokens": 7}
COUNTED = Usage(input_tokens=11, output_tokens=7)
REQUESTS: dict[Dialect, dict[str, Any]] = {
    Dialect.OPENAI: {"messages": [{"role": "user", "content": "hi"}], "stream": True},
    Dialect.RESPONSES: {"input": "hi", "stream": True},
    Dialect.ANTHROPIC: {
        "model": "local",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    },
}
BROKEN = {
    Dialect.OPENAI: '"error":',
    Dialect.RESPONSES: "event: response.failed",
    Dialect.ANTHROPIC: "event: error",
}
COMPLETE = {
    Dialect.OPENAI: "[DONE]",
    Dialect.RESPONSES: "response.completed",
    Dialect.ANTHROPIC: "message_stop",
}


def choice(delta: Any, reason: Any = None) -> dict[str, Any]:
    chosen = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "x", "created": 1, "model": "m", "choices": [chosen]}


def events(*chunks: Any) -> str:
    usage = {"choices": [], "usage": USAGE}
    said = [choice({"content": "word"}), *chunks, choice({}, "stop"), usage]
    return "".join(f"data: {json.dumps(c)}\n\n" for c in said) + "data: [DONE]\n\n"


def whole(message: Any) -> str:
    chosen = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "x", "choices": [chosen], "usage": USAGE})


async def read(r: Rig, dialect: Dialect, request: dict[str, Any] | None = None) -> str:
    answer = await r.chat(request or REQUESTS[dialect], dialect=dialect, caller=TASK)
    async with asyncio.timeout(10):
        return b"".join([piece async for piece in answer]).decode()


async def call_of(r: Rig) -> ModelCall:
    """The one call that there was; nothing of it is open."""
    (call,) = await r.calls()
    (upstream,) = r.coordinator.pool.upstreams
    assert upstream.in_flight == 0
    return call


def failures(r: Rig) -> int:
    count: int = r.coordinator.pool.stats()[0]["breaker"]["consecutive_failures"]
    return count


async def is_broken(r: Rig, dialect: Dialect, why: str) -> None:
    said = await read(r, dialect)
    call = await call_of(r)
    assert BROKEN[dialect] in said
    assert COMPLETE[dialect] not in said
    assert why in said
    assert not call.ok
    assert why in str(call.error)
    assert failures(r) == 1


TRANSLATED = [Dialect.RESPONSES, Dialect.ANTHROPIC]
CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("dialect", TRANSLATED)
@pytest.mark.parametrize("delta", ["oops", ["content"], 1])
async def test_a_piece_that_is_none_breaks_the_answer_in_words(
    tmp_path: Path, delta: Any, dialect: Dialect
) -> None:
    async with rig(tmp_path, local=[Rule(raw=events(choice(delta)))]) as r:
        await is_broken(r, dialect, "sent a piece that cannot be read")


@pytest.mark.parametrize("dialect", TRANSLATED)
@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": 1.5},
        {"choices": {"a": 1}},
        {"choices": ["x", None]},
        choice(None, {"reason": "stop"}),
        [choice({}, {"a": 1}), choice({"reasoning_content": "so"})],
        {"choices": [], "usage": "many"},
        {"choices": [], "usage": {"prompt_tokens": True, "completion_tokens": -1}},
        choice({"tool_calls": "none"}),
        choice({"tool_calls": [CALL, {"index": 0, "function": ["f"]}]}, "tool_calls"),
        choice({"tool_calls": [{"index": 0, "function": {"name": {"a": 1}}}, CALL]}),
        choice({"tool_calls": [{**CALL, "id": {"a": 1}}]}),
    ],
)
async def test_what_says_nothing_is_passed_over(
    tmp_path: Path, chunk: Any, dialect: Dialect
) -> None:
    chunks = chunk if isinstance(chunk, list) else [chunk]
    async with rig(tmp_path, local=[Rule(raw=events(*chunks))]) as r:
        said = await read(r, dialect)
        call = await call_of(r)

    assert COMPLETE[dialect] in said
    assert (call.ok, call.error, call.usage) == (True, None, COUNTED)


@pytest.mark.parametrize("dialect", TRANSLATED)
async def test_a_call_whose_name_is_none_breaks_the_answer_in_words(
    tmp_path: Path, dialect: Dialect
) -> None:
    call = {"index": 0, "id": "c", "function": {"name": None, "arguments": "{}"}}
    raw = events(choice({"tool_calls": [call]}))
    async with rig(tmp_path, local=[Rule(raw=raw)]) as r:
        await is_broken(r, dialect, "called a tool without naming it")


def bug(*_: Any, **__: Any) -> Any:
    raise KeyError("a bug")


@pytest.mark.parametrize("where", ["_take", "end"])
async def test_a_bug_in_a_translation_breaks_the_answer_in_words(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResponsesEvents, where, bug)
    with capture_logs() as logs:
        async with rig(tmp_path, local=[Rule(reply="one two")]) as r:
            await is_broken(r, Dialect.RESPONSES, "local: its answer cannot be read")

    (said,) = [line for line in logs if line["event"] == "answer_not_read"]
    assert (said["deployment"], said["exc_info"]) == ("local", True)


async def test_a_bug_in_passing_an_answer_on_breaks_it_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenAIStream, "_read", bug)
    rule = Rule(reply="one two three", chunk_delay_s=0.05)
    async with rig(tmp_path, local=[rule]) as r:
        await is_broken(r, Dialect.OPENAI, "local: its answer cannot be read")


async def test_a_bug_in_the_translation_of_a_whole_answer_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Responses, "reply", bug)
    async with rig(tmp_path, local=[Rule(reply="one two")]) as r:
        with pytest.raises(UpstreamError, match="local: its answer cannot be read"):
            await r.chat({"input": "hi"}, dialect=Dialect.RESPONSES, caller=TASK)
        call = await call_of(r)

    assert (call.ok, call.usage) == (False, COUNTED)
    assert "cannot be read" in str(call.error)


TEXT = choice({"content": "x" * 1000})
ARGUMENTS = choice({"tool_calls": [{**CALL, "function": {"arguments": "x" * 1000}}]})


@pytest.mark.parametrize("dialect", TRANSLATED)
@pytest.mark.parametrize(
    "piece",
    [
        TEXT,
        ARGUMENTS,
        choice({"tool_calls": [{**CALL, "index": n} for n in range(40)]}),
        choice({"refusal": "x" * 1000}),
    ],
    ids=["text", "arguments", "calls", "refusal"],
)
async def test_a_translation_keeps_no_answer_without_an_end(
    tmp_path: Path, dialect: Dialect, piece: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MAX_KEPT", 30_000)
    begun = choice({"tool_calls": [{**CALL, "function": {"name": "f"}}]})
    chunks = [begun] * (piece is ARGUMENTS) + [piece] * 40
    async with rig(tmp_path, local=[Rule(raw=events(*chunks))]) as r:
        await is_broken(r, dialect, "too long to be translated")


def test_calls_of_anthropics_events_have_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "MAX_KEPT", 30_000)
    chunks = Chunks()

    def feed(numbers: range) -> None:
        tool = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "x" * 1000}}
        for number in numbers:
            said = {"type": "content_block_start", "index": number}
            chunks.feed({**said, "content_block": tool})

    feed(range(10))
    with pytest.raises(UpstreamError, match="too long"):
        feed(range(10, 20))


def test_of_anthropics_counts_only_those_are_kept_that_are_told() -> None:
    chunks = Chunks()
    for number in range(100):
        usage = {f"tokens_{number}": 1, "input_tokens": 3, "output_tokens": number}
        chunks.feed({"type": "message_delta", "delta": {}, "usage": usage})

    assert len(chunks._usage) == 2
    (said,) = chunks.feed({"type": "message_stop"})
    assert said["usage"]["total_tokens"] == 3 + 99


async def test_a_route_is_answered_in_text_where_the_content_is_parts(
    tmp_path: Path,
) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    raw = whole({"role": "assistant", "content": parts})
    async with rig(tmp_path, local=[Rule(raw=raw)]) as r:
        found = await r.coordinator.route(RouteRequest(query="q", task_id="t1"))
        call = await call_of(r)

    assert found.response == "one two"
    assert (call.ok, call.usage) == (True, COUNTED)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (None, "holds no message"),
        ({"content": [{"type": "image"}]}, "'image', not with text"),
        ({"content": {"a": 1}}, "not with text"),
    ],
)
async def test_a_route_whose_answer_has_no_text_failed_and_is_paid(
    tmp_path: Path, message: Any, why: str
) -> None:
    async with rig(tmp_path, local=[Rule(raw=whole(message))]) as r:
        with pytest.raises(UpstreamError, match=why):
            await r.coordinator.route(RouteRequest(query="q", task_id="t1"))
        call = await call_of(r)

    assert not call.ok
    assert why in str(call.error)
    assert call.usage == COUNTED
    assert call.cost_usd is not None


async def test_a_bug_in_reading_a_routes_answer_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "choice_of", bug)
    async with rig(tmp_path, local=[Rule(reply="one two")]) as r:
        with pytest.raises(UpstreamError, match="local: its answer cannot be read"):
            await r.coordinator.route(RouteRequest(query="q", task_id="t1"))
        call = await call_of(r)

    assert (call.ok, call.usage) == (False, COUNTED)


@pytest.mark.parametrize("given", [["a"], {"a": 1}, 1, None])
async def test_the_id_of_a_tools_result_is_a_text(tmp_path: Path, given: Any) -> None:
    result = {"type": "tool_result", "tool_use_id": given, "content": "x"}
    messages = [{"role": "user", "content": [result]}]
    request = REQUESTS[Dialect.ANTHROPIC] | {"messages": messages}
    async with rig(tmp_path, local=[Rule(reply="never")]) as r:
        with pytest.raises(InvalidInput) as raised:
            await r.chat(request, dialect=Dialect.ANTHROPIC, caller=TASK)
        assert r.local.chats == []

    assert raised.value.errors[0].field == "messages.0.content.0.tool_use_id"


@pytest.mark.parametrize(
    ("read", "written"), [(True, 7), (11, False), (-1, 7), (11, -7), (11.0, 7)]
)
async def test_what_is_no_count_is_unknown_to_a_response(
    tmp_path: Path, read: Any, written: Any
) -> None:
    usage = {"prompt_tokens": read, "completion_tokens": written}
    rule = Rule(raw=json.dumps(json.loads(whole({"content": "a"})) | {"usage": usage}))
    async with rig(tmp_path, local=[rule]) as r:
        answer = await r.chat({"input": "hi"}, dialect=Dialect.RESPONSES, caller=TASK)

    assert answer.body["usage"] is None
