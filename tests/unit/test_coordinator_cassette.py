"""The cassette: what counts as the same conversation, and what it says when nothing does."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.openai.client import OpenAIClient
from nestor.backends.replay.cassette import Cassette, RecordingClient, ReplayClient
from nestor.errors import Misconfigured, UpstreamError
from nestor.model.routing import Deployment, Side
from nestor.model.task import Usage

NOWHERE = Deployment(
    name="replay", side=Side.REMOTE, model="m", base_url="", replayed=True
)


def body(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def ask(*texts: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text} for text in texts]
    return {"messages": messages, **more}


def tape(*pairs: tuple[dict[str, Any], str]) -> Cassette:
    cassette = Cassette()
    for request, answer in pairs:
        cassette.add(request, body(answer), Usage(), recorded_from="scripted model")
    return cassette


async def said(cassette: Cassette, request: dict[str, Any]) -> str:
    reply = await ReplayClient(cassette, NOWHERE).complete(request)
    text = reply.body["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


async def test_answers_are_found_by_content_in_any_order_and_again() -> None:
    cassette = tape((ask("one"), "1"), (ask("two"), "2"), (ask("three"), "3"))

    asked = ["three", "one", "two", "one", "three"]

    assert [await said(cassette, ask(q)) for q in asked] == ["3", "1", "2", "1", "3"]


@pytest.mark.parametrize(
    ("recorded", "asked"),
    [
        ("a  b\n\n c", "a b c"),
        ("line\r\nend", "line\nend"),
        ("1 failed, 2 passed in 0.03s", "1 failed, 2 passed in 11.20s"),
        ("=== 1 failed in 0.03s ===", "====== 1 failed in 10.03s ======"),
        ("took 12 ms", "took 7.5 ms"),
        ("at 2026-01-02T03:04:05.678Z", "at 2027-11-12T13:14:15+00:00"),
        ("<object at 0x7f00aa12>", "<object at 0x55e9d0>"),
        ("commit 1f2e3d4c5b", "commit abcdef012345"),
        (
            "task 018f2b3c-0000-7000-8000-000000000001",
            "task 018F2B3C-1111-7111-8111-00000000000f",
        ),
        ("in /tmp/nestor-ab12/x.py:3", "in /var/folders/q/T/zz/x.py:3"),
        (
            "platform linux -- Python 3.11.2\nrootdir: /work\nE",
            "platform darwin -- Python 3.13.0\nrootdir: /Users/x\nE",
        ),
        ("\x1b[31mred\x1b[0m", "red"),
        ("<context>\nold docs\n</context>\nq", "<context>\nnew\n\nmore\n</context>\nq"),
    ],
)
async def test_what_differs_between_runs_does_not_matter(
    recorded: str, asked: str
) -> None:
    cassette = tape((ask(recorded), "yes"), (ask("other"), "no"))

    assert await said(cassette, ask(asked)) == "yes"


@pytest.mark.parametrize(
    ("recorded", "asked"),
    [
        ("1 failed, 2 passed", "2 failed, 1 passed"),
        ("assert 3 == 4", "assert 3 == 5"),
        ("fix add", "fix added"),
        ("deadbeef", "feedface"),
        ("1234567", "7654321"),
    ],
)
async def test_what_was_said_does_matter(recorded: str, asked: str) -> None:
    with pytest.raises(UpstreamError, match="the cassette has no answer"):
        await said(tape((ask(recorded), "yes")), ask(asked))


async def test_model_and_sampling_have_no_part_in_it() -> None:
    cassette = tape((ask("q", model="a", temperature=1, tools=[]), "yes"))

    assert await said(cassette, ask("q", model="b", temperature=0, top_p=1)) == "yes"


async def test_tool_calls_and_their_results_have() -> None:
    def turn(identity: str, arguments: str, result: str) -> dict[str, Any]:
        function = {"name": "bash", "arguments": arguments}
        call = {"id": identity, "type": "function", "function": function}
        return {
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": identity, "content": result},
            ]
        }

    cassette = tape((turn("call_1", '{"cmd": "ls", "n": 1}', "a.py"), "yes"))

    again = turn("call_99", '{"n":1,"cmd":"ls"}', "a.py")
    assert await said(cassette, again) == "yes"
    for other in (
        turn("x", '{"cmd": "pwd"}', "a.py"),
        turn("x", '{"cmd":"ls","n":1}', "b"),
    ):
        with pytest.raises(UpstreamError):
            await said(cassette, other)


async def test_roles_and_message_borders_matter() -> None:
    cassette = tape((ask("a", "b"), "yes"))

    with pytest.raises(UpstreamError):
        await said(cassette, ask("a b"))
    with pytest.raises(UpstreamError):
        await said(cassette, {"messages": [{"role": "system", "content": "a"}]})


async def test_a_miss_shows_the_question_and_what_differs_from_the_nearest() -> None:
    long = "\n".join(f"line {n}" for n in range(20))
    cassette = tape((ask("something else"), "x"), (ask(f"{long}\nfix add()"), "y"))

    with pytest.raises(UpstreamError) as caught:
        await said(cassette, ask(f"{long}\nfix sub()"))

    text = str(caught.value)
    assert "-fix add()" in text
    assert "+fix sub()" in text
    assert "something else" not in text
    assert caught.value.status == 404


async def test_an_empty_cassette_says_that_it_is_empty() -> None:
    with pytest.raises(UpstreamError, match="empty"):
        await said(Cassette(), ask("q"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"entries": []}',
        '{"format": 3, "entries": []}',
        '{"format": 1, "entries": [], "extra": 1}',
        '{"format": 1, "entries": [{"match": "x"}]}',
        json.dumps(
            {
                "format": 1,
                "entries": [
                    {
                        "match": "x",
                        "request_preview": [],
                        "response": {},
                        "recorded_from": "m",
                    }
                ],
            }
        ),
        "[" * 100_000,
    ],
)
def test_a_broken_file_is_misconfigured_and_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "demo.json"
    path.write_text(content)

    with pytest.raises(Misconfigured, match=r"demo\.json"):
        Cassette.load(path)


def test_a_missing_file_is_misconfigured_and_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"no\.json"):
        Cassette.load(tmp_path / "no.json")


async def test_a_recording_of_both_ways_replays_as_both(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "c.json"
    rules = [
        Rule(when="list", tool_calls=[{"name": "bash", "arguments": {"cmd": "ls"}}]),
        Rule(when="hello", reply="hi  there\nyou"),
    ]
    async with aiohttp.ClientSession() as session, ScriptedModel(rules) as model:
        deployment = Deployment(
            name="d", side=Side.LOCAL, model="m", base_url=model.base_url
        )
        inner = OpenAIClient(deployment, session)
        one = RecordingClient(inner, path, recorded_from="scripted model")
        two = RecordingClient(inner, path, recorded_from="scripted model")
        async for _ in await one.stream({**ask("list"), "stream": True}):
            pass
        await two.complete(ask("hello"))

    replay = ReplayClient(Cassette.load(path), NOWHERE)
    reply = await replay.complete(ask("list"))
    call = reply.body["choices"][0]["message"]["tool_calls"][0]
    assert call["function"] == {"name": "bash", "arguments": '{"cmd": "ls"}'}
    assert reply.body["choices"][0]["finish_reason"] == "tool_calls"
    assert reply.usage == Usage(input_tokens=11, output_tokens=7)
    text = ""
    stream = await replay.stream(ask("hello"))
    async for event in stream:
        if event != b"data: [DONE]\n\n":
            delta = json.loads(event[6:])["choices"][0]["delta"]
            text += delta.get("content", "")
    assert text == "hi  there\nyou"
    assert stream.usage() == Usage(input_tokens=11, output_tokens=7)


async def test_a_broken_stream_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    rule = Rule(reply="one two three", cut_after_chunks=3, chunk_delay_s=0.05)
    async with aiohttp.ClientSession() as session, ScriptedModel([rule]) as model:
        deployment = Deployment(
            name="d", side=Side.LOCAL, model="m", base_url=model.base_url
        )
        recording = RecordingClient(OpenAIClient(deployment, session), path)
        stream = await recording.stream(ask("q"))
        with pytest.raises(UpstreamError):
            [event async for event in stream]

    assert not path.exists()


def test_recording_does_not_overwrite_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text("my notes")

    with pytest.raises(Misconfigured):
        RecordingClient(ReplayClient(Cassette(), NOWHERE), path)

    assert path.read_text() == "my notes"


def test_a_secret_in_a_question_is_not_written(tmp_path: Path) -> None:
    cassette = tape((ask("use sk-canary0123456789abcdef please"), "ok"))
    cassette.save(tmp_path / "c.json")

    assert "canary" not in (tmp_path / "c.json").read_text()
