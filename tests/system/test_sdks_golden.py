"""The bytes that the gateway streams, and what each vendor's own SDK makes of them.

``tests/golden/gateway/CALLER-UPSTREAM-CASE.sse`` is what a caller of that dialect is sent
when a server of that dialect answers; ids and times are replaced by what does not change.
After a wanted change::

    NESTOR_WRITE_GOLDEN=1 .venv/bin/pytest tests/system/test_sdks_golden.py

writes them anew; read the difference before it is kept. What the SDKs must hear stands
here and not in the files, so that a wrong file cannot become right by being written.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import anthropic
import openai
import pytest
from tests.servers import scripted_answers as answers
from tests.servers.scripted_model import Rule
from tests.system.sdk_stack import SPOKEN, SdkStack
from tests.system.sdk_talks import (
    CALLERS,
    DIALECT_OF,
    ChatTalk,
    Heard,
    MessagesTalk,
    ResponsesTalk,
    text_of_events,
)

pytest_plugins = ("tests.system.sdk_running",)
pytestmark = [pytest.mark.heavy, pytest.mark.alone]

GOLDEN = Path(__file__).parent.parent / "golden" / "gateway"
WRITE = os.environ.get("NESTOR_WRITE_GOLDEN") == "1"
PATHS = {"chat": "chat/completions", "responses": "responses", "messages": "messages"}
ASKED = "The weather in Paris and Rome?"
TEXT = "Sunny in Paris — «très chaud» ☼."
USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 100},
}
CITIES = [{"city": "Paris"}, {"city": 'Rome "eternal" ☼'}]
RULES = {
    "text": Rule(reply=TEXT, usage=USAGE),
    "thoughts": Rule(reasoning="Is it warm there?", reply=TEXT, usage=USAGE),
    "tools": Rule(
        reply="Let me look.",
        tool_calls=[{"name": "weather", "arguments": city} for city in CITIES],
        usage=USAGE,
    ),
    "length": Rule(reply="Sunny in", finish="length", usage=USAGE),
    "broken": Rule(reply=TEXT, usage=USAGE, error_after_chunks=5),
}
WHOLE = [name for name in RULES if name != "broken"]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
_TIME = re.compile(rb'"(created|created_at|completed_at)": ?[0-9.]+')
_TRACE = re.compile(rb'"(trace_id|request_id)":"[0-9a-f]{32}"')
_ID = re.compile(rb'"((?:chatcmpl|resp|msg|rs|fc)[-_])([0-9A-Za-z-]{12,})"')


def cells(names: list[str]) -> pytest.MarkDecorator:
    """Each of the cases for each caller and upstream."""
    return pytest.mark.parametrize(
        ("caller", "upstream", "case"),
        [
            pytest.param(*cell, id="-".join(cell))
            for cell in itertools.product(CALLERS, SPOKEN, names)
        ],
    )


def request_of(caller: str, upstream: str, case: str) -> dict[str, Any]:
    """What a caller asks, in plain JSON."""
    asked: dict[str, Any] = {"model": upstream, "stream": True}
    tool: dict[str, Any] = {"name": "weather", "description": "Tells the weather."}
    if caller == "responses":
        asked |= {"input": ASKED, "max_output_tokens": 64}
        tool |= {"type": "function", "parameters": SCHEMA, "strict": False}
    else:
        asked["messages"] = [{"role": "user", "content": ASKED}]
        asked["max_tokens"] = 64
    if caller == "chat":
        asked["stream_options"] = {"include_usage": True}
        tool = {"type": "function", "function": {**tool, "parameters": SCHEMA}}
    elif caller == "messages":
        tool["input_schema"] = SCHEMA
    return {**asked, "tools": [tool]} if case == "tools" else asked


def normal(raw: bytes) -> bytes:
    """Replace what differs each time; the same id becomes the same again."""
    raw = _TRACE.sub(rb'"\1":"TRACE"', _TIME.sub(rb'"\1":0', raw))
    seen: dict[bytes, int] = {}

    def numbered(match: re.Match[bytes]) -> bytes:
        number = seen.setdefault(match[0], len(seen))
        return b'"%bID%d"' % (match[1], number)

    return _ID.sub(numbered, raw)


def golden(caller: str, upstream: str, case: str) -> Path:
    return GOLDEN / f"{caller}-{upstream}-{case}.sse"


@cells(list(RULES))
def test_what_is_streamed_is_the_transcript_to_the_byte(
    sdks: SdkStack, caller: str, upstream: str, case: str
) -> None:
    sdks.script(RULES[case])
    raw = sdks.raw(f"/v1/{PATHS[caller]}", request_of(caller, upstream, case))
    path = golden(caller, upstream, case)
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(normal(raw))
    assert normal(raw).decode() == path.read_bytes().decode()


@pytest.mark.parametrize("case", WHOLE)
@pytest.mark.parametrize("caller", ["chat", "messages"])
def test_the_same_dialect_is_passed_on_and_not_written_anew(
    sdks: SdkStack, caller: str, case: str
) -> None:
    sdks.script(RULES[case])
    upstream = DIALECT_OF[caller]
    raw = sdks.raw(f"/v1/{PATHS[caller]}", request_of(caller, upstream, case))
    model = sdks.upstreams[upstream].model
    if caller == "chat":
        head = {"id": "chatcmpl-1", "created": 0, "model": model}
        sent = answers.chunks(RULES[case], head, 1, asked_usage=True)
    else:
        sent = answers.message_events(RULES[case], "msg_1", model, 1)
    assert raw == b"".join(sent)


def test_the_chunk_of_usage_is_for_callers_who_asked_for_it(sdks: SdkStack) -> None:
    sdks.script(RULES["text"])
    for upstream in SPOKEN:
        asked = request_of("chat", upstream, "text")
        told = sdks.raw("/v1/chat/completions", asked)
        del asked["stream_options"]
        untold = sdks.raw("/v1/chat/completions", asked)
        chunks = [chunks_of(raw) for raw in (told, untold)]
        assert [chunk["choices"] for chunk in chunks[0]].count([]) == 1
        assert chunks[0][-1]["usage"]["prompt_tokens"] == 120
        assert all(chunk["choices"] for chunk in chunks[1])
        assert len(chunks[1]) == len(chunks[0]) - 1
        assert untold.endswith(b"data: [DONE]\n\n")


def chunks_of(raw: bytes) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in raw.decode().split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@contextmanager
def served(path: Path) -> Iterator[str]:
    """A server that answers everything with a transcript."""
    raw = path.read_bytes()

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream; charset=utf-8")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as inherited
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def heard(caller: str, url: str) -> Heard:
    """Have the SDK put a stream together."""
    if caller == "messages":
        with anthropic.Anthropic(api_key="k", base_url=url, max_retries=0) as client:
            return MessagesTalk(client, "m", stream=True).say(ASKED)
    with openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as other:
        if caller == "chat":
            return ChatTalk(other, "m", stream=True).say(ASKED)
        return ResponsesTalk(other, "m", stream=True).say(ASKED)


@cells(WHOLE)
def test_the_sdk_puts_the_transcript_together(
    caller: str, upstream: str, case: str
) -> None:
    rule = RULES[case]
    with served(golden(caller, upstream, case)) as url:
        found = heard(caller, url)
    assert found.text == rule.reply
    assert [call[1:] for call in found.calls] == [
        ("weather", city) for city in (CITIES if case == "tools" else ())
    ]
    assert len({call[0] for call in found.calls}) == len(found.calls)
    assert found.stop == {"tools": "tools", "length": "length"}.get(case, "end")
    assert (found.read, found.cached, found.written) == (120, 100, 7)


@pytest.mark.parametrize("upstream", SPOKEN)
@pytest.mark.parametrize("case", ["text", "thoughts", "tools"])
def test_the_helper_for_responses_accumulates_the_same(
    upstream: str, case: str
) -> None:
    with (
        served(golden("responses", upstream, case)) as url,
        openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client,
        client.responses.stream(model="m", input=ASKED) as events,
    ):
        said, arguments = "", ""
        for event in events:
            if event.type == "response.output_text.delta":
                said += event.delta
            if event.type == "response.function_call_arguments.delta":
                arguments += event.delta
        done = events.get_final_response()
    assert said == done.output_text == RULES[case].reply
    calls = [item for item in done.output if item.type == "function_call"]
    assert arguments == "".join(call.arguments for call in calls)
    assert len(calls) == (2 if case == "tools" else 0)


@cells(["broken"])
def test_a_transcript_that_breaks_is_the_sdks_own_error_after_what_was_said(
    caller: str, upstream: str, case: str
) -> None:
    events: list[Any] = []
    of: Any = anthropic.APIStatusError if caller == "messages" else openai.APIError
    with served(golden(caller, upstream, case)) as url, pytest.raises(of) as caught:
        events.extend(events_of(caller, url))
    said = text_of_events(events)
    assert said, "what came before is not taken back"
    assert TEXT.startswith(said)
    assert len(said) < len(TEXT)
    assert answers.OVERLOADED in str(caught.value.message)
    assert upstream in str(caught.value.message)


def events_of(caller: str, url: str) -> Iterator[Any]:
    """Read a stream as it comes."""
    if caller == "messages":
        with anthropic.Anthropic(api_key="k", base_url=url, max_retries=0) as client:
            yield from client.messages.create(
                model="m",
                max_tokens=9,
                stream=True,
                messages=[{"role": "user", "content": ASKED}],
            )
        return
    with openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as other:
        if caller == "chat":
            yield from other.chat.completions.create(
                model="m", stream=True, messages=[{"role": "user", "content": ASKED}]
            )
        else:
            yield from other.responses.create(model="m", stream=True, input=ASKED)


def test_there_is_no_transcript_that_nobody_compares() -> None:
    every = itertools.product(CALLERS, SPOKEN, RULES)
    assert {path.name for path in GOLDEN.iterdir()} == {
        golden(*cell).name for cell in every
    }
