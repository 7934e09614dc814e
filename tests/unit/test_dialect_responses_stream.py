"""A streamed Response: put together it is the whole one, however it was cut."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestor.coordinator.dialects.errors import error_event
from nestor.coordinator.dialects.responses import Responses
from nestor.coordinator.dialects.responses_events import ResponsesEvents
from nestor.coordinator.dialects.responses_tools import wrapped
from nestor.errors import UpstreamError
from nestor.model.routing import Dialect
from nestor.model.sse import EventSplitter, data_of

FACE = Responses(clock=lambda: 7.0, new_id=lambda: "made")
ASK: dict[str, Any] = {
    "model": "auto",
    "input": "hi",
    "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "p"}],
}
FRAME = {"id": "chatcmpl-1", "created": 5, "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
TEXT = st.text(min_size=1, max_size=30)
END = st.sampled_from(["stop", "tool_calls", "length", "content_filter", None])


def chunk(reason: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {**FRAME, "choices": [choice]}


def piece(index: int | None, call_id: str, name: str, text: Any) -> dict[str, Any]:
    call: dict[str, Any] = {"function": {"name": name, "arguments": text}}
    call |= {} if index is None else {"index": index}
    return chunk(tool_calls=[call | ({"id": call_id} if call_id else {})])


def told(raw: bytes) -> list[dict[str, Any]]:
    events = EventSplitter().feed(raw)
    found = [data for event in events if (data := data_of(event)) is not None]
    assert len(found) == len(events)
    assert [data["sequence_number"] for data in found] == list(range(len(found)))
    return found


def run(
    chunks: list[dict[str, Any]], request: dict[str, Any] = ASK
) -> list[dict[str, Any]]:
    events = FACE.events(request)
    return told(b"".join(map(events.feed, chunks)) + events.end())


def put_together(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the output of deltas alone, as a caller that shows them does."""
    found: list[dict[str, Any]] = []
    for event in events:
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(found)
                found.append({"type": event["item"]["type"], "said": ""})
            case (
                "output_text.delta"
                | "refusal.delta"
                | "reasoning_text.delta"
                | "function_call_arguments.delta"
                | "custom_tool_call_input.delta"
            ):
                found[event["output_index"]]["said"] += event["delta"]
    return found


def said_in(item: dict[str, Any]) -> str:
    parts = item.get("content") or []
    texts = [part.get("text") or part.get("refusal") or "" for part in parts]
    return "".join([*texts, item.get("arguments", ""), item.get("input", "")])


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A whole answer, and the same one in chunks, pieces of its calls mixed."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    chunks = [chunk(role="assistant", content="")]
    for name in ("reasoning_content", "content", "refusal"):
        pieces = draw(st.lists(TEXT, max_size=3))
        if pieces:
            message[name] = "".join(pieces)
        chunks += [chunk(**{name: one}) for one in pieces]
    mixed: list[list[dict[str, Any]]] = []
    for index in range(draw(st.integers(0, 3))):
        name, text = draw(st.sampled_from("fp")), draw(TEXT)
        arguments = wrapped(text) if name == "p" else text
        function = {"name": name, "arguments": arguments}
        call = {"id": f"c{index}", "type": "function", "function": function}
        message.setdefault("tool_calls", []).append(call)
        cuts = sorted(draw(st.lists(st.integers(0, len(arguments)), max_size=3)))
        bounds = zip([0, *cuts], [*cuts, len(arguments)], strict=True)
        chunks.append(piece(index, f"c{index}", name, ""))
        mixed.append([piece(index, "", "", arguments[a:b]) for a, b in bounds])
    while any(mixed):
        one = draw(st.sampled_from([pieces for pieces in mixed if pieces]))
        chunks.append(one.pop(0))
    reason = draw(END)
    usage = draw(st.sampled_from([USAGE, None]))
    completion = {
        **FRAME,
        "choices": [{"message": message, "finish_reason": reason}],
        "usage": usage,
    }
    chunks += [chunk(reason), {**FRAME, "choices": [], "usage": usage}]
    return completion, chunks


@given(answers())
def test_a_stream_put_together_is_the_whole_answer(
    answer: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    completion, chunks = answer
    whole = FACE.reply(completion, ASK)
    events = run(chunks)
    last = events[-1]
    assert last["type"] == f"response.{whole['status']}"
    assert last["response"] == whole
    shown = put_together(events)
    assert [item["type"] for item in shown] == [i["type"] for i in whole["output"]]
    assert [item["said"] for item in shown] == [said_in(i) for i in whole["output"]]
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert sorted(done, key=lambda i: i["id"][-1]) == whole["output"]
    created = [e["type"] for e in events].count("response.created")
    assert created == 1


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(0, "a", "f", "{1}"), piece(0, "b", "f", "{2}")],
        [piece(None, "a", "f", "{1}"), piece(None, "b", "f", "{2}")],
        [piece(0, "a", "", ""), piece(1, "b", "f", "{2}"), piece(0, "", "f", "{1}")],
        [piece(0, "a", "f", {"x": 1}), piece(1, "b", "f", "{2}")],
    ],
    ids=["one-index", "no-index", "late-name", "object"],
)
def test_calls_are_kept_apart_as_servers_write_them(pieces: list[Any]) -> None:
    output = run([*pieces, chunk("tool_calls")])[-1]["response"]["output"]
    calls = {item["call_id"]: item["arguments"] for item in output}
    assert calls in ({"a": "{1}", "b": "{2}"}, {"a": '{"x":1}', "b": "{2}"})


def test_calls_without_ids_get_their_own() -> None:
    output = run([piece(0, "", "f", ""), piece(1, "", "p", "x")])[-1]["response"]
    ids = [item["call_id"] for item in output["output"]]
    assert ids == ["call_1_0", "call_1_1"]
    assert output["output"][1]["input"] == "x"


def test_text_after_a_call_is_a_message_of_its_own() -> None:
    chunks = [chunk(content="a"), piece(0, "c", "f", "{}"), chunk(content="b")]
    output = run(chunks)[-1]["response"]["output"]
    assert [said_in(item) for item in output] == ["a", "{}", "b"]
    assert len({item["id"] for item in output}) == 3


def test_only_the_first_choice_is_told() -> None:
    second = {**FRAME, "choices": [{"index": 1, "delta": {"content": "no"}}]}
    output = run([chunk(content="yes"), second])[-1]["response"]["output"]
    assert [said_in(item) for item in output] == ["yes"]


def test_an_answer_of_nothing_is_a_response_of_nothing() -> None:
    response = run([])[-1]["response"]
    assert (response["id"], response["created_at"]) == ("resp_made", 7)
    assert (response["model"], response["output"]) == ("auto", [])
    assert (response["status"], response["usage"]) == ("completed", None)


def test_usage_that_is_not_whole_is_unknown_and_not_nothing() -> None:
    for usage in (None, {}, {"prompt_tokens": 3}, {"completion_tokens": None}):
        response = run([{**FRAME, "choices": [], "usage": usage}])[-1]["response"]
        assert response["usage"] is None


BROKEN: tuple[dict[str, Any], ...] = (
    {"tool_calls": [{"index": 0, "id": "c", "function": {"arguments": "{}"}}]},
    {"tool_calls": [{"index": 0, "id": "c", "type": "custom", "custom": {}}]},
    {"tool_calls": ["x"]},
    {"audio": {"data": "A"}},
    {"function_call": {"name": "f"}},
    {"content": [{"type": "image_url"}]},
)


@pytest.mark.parametrize("said", BROKEN, ids=lambda v: str(v)[:40])
def test_an_answer_without_words_here_is_an_error_of_the_upstream(
    said: dict[str, Any],
) -> None:
    whole = {"choices": [{"message": said, "finish_reason": "stop"}]}
    with pytest.raises(UpstreamError):
        FACE.reply(whole, ASK)
    with pytest.raises(UpstreamError):
        run([chunk(**said), chunk("stop")])


@pytest.mark.parametrize("reason", ["error", "abort"])
def test_an_answer_that_broke_off_is_never_complete(reason: str) -> None:
    whole = {"choices": [{"message": {"content": "x"}, "finish_reason": reason}]}
    with pytest.raises(UpstreamError, match=reason):
        FACE.reply(whole, ASK)
    with pytest.raises(UpstreamError, match=reason):
        run([chunk(content="x"), chunk(reason)])


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{}]}])
def test_an_answer_without_a_message_is_an_error(body: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError, match="no message"):
        FACE.reply(body, ASK)


def broken(events: ResponsesEvents) -> bytes:
    return error_event(Dialect.RESPONSES, 502, "far: cut", trace_id="t", events=events)


@given(answers(), st.data())
def test_a_stream_that_breaks_says_so_and_what_there_was(
    answer: tuple[dict[str, Any], list[dict[str, Any]]], data: st.DataObject
) -> None:
    _, chunks = answer
    events = FACE.events(ASK)
    cut = data.draw(st.integers(0, len(chunks)))
    raw = b"".join(map(events.feed, chunks[:cut]))
    found = told(raw + broken(events))
    error, failed = found[-2:]
    assert (error["type"], error["error"]["message"]) == ("error", "far: cut")
    assert error["error"]["trace_id"] == "t"
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "server_error"
    whole = [e["item"] for e in found if e["type"] == "response.output_item.done"]
    assert failed["response"]["output"] == whole
    if cut:
        assert failed["response"]["id"] == found[0]["response"]["id"]


def test_what_was_made_but_not_sent_is_not_counted() -> None:
    events = FACE.events(ASK)
    raw = events.feed(chunk(content="x"))
    with pytest.raises(UpstreamError):
        events.feed(chunk(content="y", tool_calls=["?"]))
    told(raw + broken(events))
