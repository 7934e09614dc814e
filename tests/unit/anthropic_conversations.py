"""Generated conversations and answers, in both dialects, in the form that a way there and back gives."""

import base64
import itertools
import json
import string
from typing import Any

from hypothesis import strategies as st

from nestor.coordinator.dialects.anthropic_messages import TOOL_FAILED

Drawn = dict[str, Any]
PLAIN = string.ascii_letters + string.digits + " .,{}\"'\\\n\u00e9\u65e5\U0001f600"
texts = st.text(alphabet=PLAIN, min_size=1, max_size=40).filter(str.strip)
names = st.text(alphabet=string.ascii_lowercase + "_", min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=6,
)
objects = st.dictionaries(names, values, max_size=4)
pictures = st.binary(max_size=30).map(
    lambda raw: base64.b64encode(b"\x89PNG\r\n" + raw).decode()
)
kinds = st.sampled_from(["image/png", "image/jpeg", "image/gif", "image/webp"])
schemas = objects.map(lambda properties: {"type": "object", "properties": properties})


@st.composite
def chat_messages(draw: st.DrawFn) -> list[Drawn]:
    """Draw a chat conversation: roles take turns, every call is answered, in order."""
    found: list[Drawn] = []
    if draw(st.booleans()):
        found.append({"role": "system", "content": draw(texts)})
    number = 0
    for _ in range(draw(st.integers(1, 3))):
        found.append({"role": "user", "content": draw(_chat_content())})
        for _ in range(draw(st.integers(0, 2))):
            calls = []
            for _ in range(draw(st.integers(1, 3))):
                number += 1
                arguments = json.dumps(draw(objects))
                function = {"name": draw(names), "arguments": arguments}
                calls.append(
                    {"id": f"call_{number}", "type": "function", "function": function}
                )
            content = draw(st.none() | texts)
            found.append({"role": "assistant", "content": content, "tool_calls": calls})
            for call in calls:
                result = draw(st.just("") | texts)
                if draw(st.booleans()):
                    result = TOOL_FAILED + result
                found.append(
                    {"role": "tool", "tool_call_id": call["id"], "content": result}
                )
        found.append({"role": "assistant", "content": draw(texts)})
    return found if draw(st.booleans()) else found[:-1]


@st.composite
def chat_requests(draw: st.DrawFn) -> Drawn:
    """Draw a chat request of which everything can be said in messages."""
    request: Drawn = {
        "model": "m",
        "messages": draw(chat_messages()),
        "max_tokens": draw(st.integers(1, 9999)),
    }
    _maybe(draw, request, "temperature", st.floats(0, 1))
    _maybe(draw, request, "top_p", st.floats(0, 1))
    _maybe(draw, request, "stop", st.lists(texts, min_size=1, max_size=4))
    if draw(st.booleans()):
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    if draw(st.booleans()):
        schema = {"name": "answer", "schema": draw(schemas), "strict": True}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    if draw(st.booleans()):
        request["tools"] = [
            {"type": "function", "function": draw(_functions())} for _ in range(2)
        ]
        named = {"type": "function", "function": {"name": "f"}}
        choices = ["auto", "required", "none", named]
        _maybe(draw, request, "tool_choice", st.sampled_from(choices))
        if request.get("tool_choice", "none") != "none" and draw(st.booleans()):
            request["parallel_tool_calls"] = False
    return request


@st.composite
def messages_requests(draw: st.DrawFn) -> Drawn:
    """Draw a messages request of which everything can be said in chat."""
    request: Drawn = {"model": "m", "max_tokens": draw(st.integers(1, 9999))}
    _maybe(draw, request, "system", texts.map(lambda text: [_text(text)]))
    request["messages"] = found = []
    number = 0
    results: list[Drawn] = []
    for _ in range(draw(st.integers(1, 4))):
        said = draw(st.lists(_block(), min_size=0 if results else 1, max_size=3))
        found.append({"role": "user", "content": results + said})
        calls = []
        for _ in range(draw(st.integers(0, 3))):
            number += 1
            call: Drawn = {"type": "tool_use", "id": f"toolu_{number}"}
            calls.append({**call, "name": draw(names), "input": draw(objects)})
        said = [_text(text) for text in draw(st.lists(texts, max_size=2))]
        if not calls and not said:
            break
        found.append({"role": "assistant", "content": said + calls})
        results = [draw(_result(call["id"])) for call in calls]
    _maybe(draw, request, "temperature", st.floats(0, 1))
    _maybe(draw, request, "stop_sequences", st.lists(texts, min_size=1, max_size=4))
    if draw(st.booleans()):
        request["stream"] = True
    if draw(st.booleans()):
        request["output_config"] = {
            "format": {"type": "json_schema", "schema": draw(schemas)}
        }
    if draw(st.booleans()):
        tool = {"name": draw(names), "description": draw(texts)}
        request["tools"] = [{**tool, "input_schema": draw(schemas), "strict": True}]
        choice = draw(st.sampled_from(["auto", "any", "none", "tool"]))
        request["tool_choice"] = {"type": choice}
        if choice == "tool":
            request["tool_choice"]["name"] = tool["name"]
        if choice != "none" and draw(st.booleans()):
            request["tool_choice"]["disable_parallel_tool_use"] = True
    return request


@st.composite
def chat_replies(draw: st.DrawFn) -> Drawn:
    """Draw a ``chat.completion``."""
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": draw(names), "arguments": draw(_arguments())},
        }
        for number in range(draw(st.integers(0, 3)))
    ]
    said: Drawn = {"role": "assistant", "content": draw(st.none() | texts)}
    if calls:
        said["tool_calls"] = calls
    ends = ["tool_calls", "stop"] if calls else ["stop", "length", "content_filter"]
    finish = draw(st.sampled_from(ends))
    count = st.integers(0, 99)
    usage: Drawn = {
        "prompt_tokens": 200 + draw(count),
        "completion_tokens": draw(count),
    }
    if draw(st.booleans()):
        usage["prompt_tokens_details"] = {
            "cached_tokens": draw(count),
            "cache_write_tokens": draw(count),
        }
    if draw(st.booleans()):
        usage["completion_tokens_details"] = {"reasoning_tokens": 3}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m1",
        "choices": [{"index": 0, "message": said, "finish_reason": finish}],
        "usage": usage,
    }


@st.composite
def chunked(draw: st.DrawFn, reply: Drawn) -> list[Drawn]:
    """Draw a way to stream a ``chat.completion``: pieces of calls may come mixed."""
    head = {"id": reply["id"], "model": reply["model"], "created": 1}
    head["object"] = "chat.completion.chunk"
    choice = reply["choices"][0]
    deltas: list[Drawn] = [{"role": "assistant", "content": ""}]
    deltas += [
        {"content": piece} for piece in pieces(draw, choice["message"]["content"])
    ]
    waiting = []
    for index, call in enumerate(choice["message"].get("tool_calls", [])):
        first, *rest = pieces(draw, call["function"]["arguments"]) or [""]
        start = {"index": index, **call}
        start["function"] = {"name": call["function"]["name"], "arguments": first}
        more = [{"index": index, "function": {"arguments": piece}} for piece in rest]
        waiting.append([start, *more])
    begun = 0
    while any(waiting):
        # A call begins after those before it: its place is its place in the answer.
        ready = [n for n, left in enumerate(waiting) if left and n <= begun]
        number = draw(st.sampled_from(ready))
        begun = max(begun, number + 1)
        deltas.append({"tool_calls": [waiting[number].pop(0)]})
    chunks = [_chunk(head, delta) for delta in deltas]
    chunks.append(_chunk(head, {}, choice["finish_reason"]))
    where = draw(st.sampled_from(["own chunk", "last", "every"]))
    if where == "own chunk":
        chunks.append({**head, "choices": [], "usage": reply["usage"]})
    elif where == "last":
        chunks[-1]["usage"] = reply["usage"]
    else:
        chunks = [{**chunk, "usage": reply["usage"]} for chunk in chunks]
    return chunks


@st.composite
def messages(draw: st.DrawFn) -> Drawn:
    """Draw a whole answer of an Anthropic server."""
    content: list[Drawn] = [_text(text) for text in draw(st.lists(texts, max_size=2))]
    if draw(st.booleans()):
        thought = {"type": "thinking", "thinking": draw(texts), "signature": "c2ln"}
        content.insert(0, thought)
    for number in range(draw(st.integers(0, 3))):
        call = {"type": "tool_use", "id": f"toolu_{number}", "name": draw(names)}
        content.append({**call, "input": draw(objects)})
    ends = ["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]
    count = st.integers(0, 99)
    usage: Drawn = {"input_tokens": draw(count), "output_tokens": draw(count)}
    for name in ("cache_read_input_tokens", "cache_creation_input_tokens"):
        _maybe(draw, usage, name, count)
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": content,
        "stop_reason": draw(st.sampled_from(ends)),
        "stop_sequence": None,
        "usage": usage,
    }


@st.composite
def streamed(draw: st.DrawFn, message: Drawn) -> list[Drawn]:
    """Draw a way to stream a message, as Anthropic's servers do: a block after the other."""
    usage = message["usage"]
    begun = {**usage, "output_tokens": 1}
    start = {**message, "content": [], "stop_reason": None, "usage": begun}
    events: list[Drawn] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(message["content"]):
        kind = block["type"]
        if kind == "tool_use":
            raw = json.dumps(block["input"]) if block["input"] else ""
            begin, deltas = {**block, "input": {}}, [("input_json", "partial_json", "")]
            deltas += [("input_json", "partial_json", p) for p in pieces(draw, raw)]
        else:
            begin = {**block, kind: ""}
            deltas = [(kind, kind, piece) for piece in pieces(draw, block[kind])]
        if kind == "thinking":
            deltas.append(("signature", "signature", "c2ln"))
        at = {"index": index}
        events.append({"type": "content_block_start", **at, "content_block": begin})
        for sort, name, piece in deltas:
            delta = {"type": f"{sort}_delta", name: piece}
            events.append({"type": "content_block_delta", **at, "delta": delta})
            if draw(st.booleans()):
                events.append({"type": "ping"})
        events.append({"type": "content_block_stop", **at})
    end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    counts = {"output_tokens": usage["output_tokens"]}
    events.append({"type": "message_delta", "delta": end, "usage": counts})
    return [*events, {"type": "message_stop"}]


@st.composite
def spoiled(draw: st.DrawFn, value: Any) -> Any:
    """Draw the value with one part of it replaced by something else."""
    if draw(st.integers(0, 4)) == 0 or not isinstance(value, dict | list) or not value:
        return draw(values)
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        spoilt = draw(spoiled(value[place]))
        return [*value[:place], spoilt, *value[place + 1 :]]
    name = draw(st.sampled_from(sorted(value)))
    return {**value, name: draw(spoiled(value[name]))}


def pieces(draw: st.DrawFn, text: str | None) -> list[str]:
    """Cut a text at drawn places; nothing of an empty one."""
    if not text:
        return []
    ends = sorted(draw(st.sets(st.integers(0, len(text)), max_size=5)) | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


def _chunk(head: Drawn, delta: Drawn, finish: str | None = None) -> Drawn:
    return {
        **head,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def _maybe(
    draw: st.DrawFn, into: Drawn, name: str, what: st.SearchStrategy[Any]
) -> None:
    if draw(st.booleans()):
        into[name] = draw(what)


def _text(text: str) -> Drawn:
    return {"type": "text", "text": text}


@st.composite
def _chat_content(draw: st.DrawFn) -> Any:
    if draw(st.booleans()):
        return draw(texts)
    url = f"data:{draw(kinds)};base64,{draw(pictures)}"
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    return parts + [_text(text) for text in draw(st.lists(texts, max_size=2))]


@st.composite
def _functions(draw: st.DrawFn) -> Drawn:
    found: Drawn = {"name": draw(names), "parameters": draw(schemas)}
    _maybe(draw, found, "description", texts)
    _maybe(draw, found, "strict", st.booleans())
    return found


@st.composite
def _block(draw: st.DrawFn) -> Drawn:
    if draw(st.booleans()):
        return _text(draw(texts))
    source = {"type": "base64", "media_type": draw(kinds), "data": draw(pictures)}
    return {"type": "image", "source": source}


@st.composite
def _result(draw: st.DrawFn, call_id: str) -> Drawn:
    found: Drawn = {"type": "tool_result", "tool_use_id": call_id}
    _maybe(draw, found, "content", texts.map(lambda text: [_text(text)]))
    if draw(st.booleans()):
        found["is_error"] = True
    return found


@st.composite
def _arguments(draw: st.DrawFn) -> str:
    found = draw(objects)
    return json.dumps(found, indent=draw(st.sampled_from([None, 1]))) if found else ""
