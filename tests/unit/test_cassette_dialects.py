"""The cassette in each dialect: messages, embeddings, and files of before."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anthropic import AsyncAnthropic
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.anthropic.client import AnthropicClient
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.backends.replay.cassette import Cassette, RecordingClient, ReplayClient
from nestor.errors import Misconfigured, UpstreamError
from nestor.model.routing import Deployment, Dialect, Side
from nestor.model.task import Usage
from nestor.ports.model_client import ModelClient

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


def anthropic(base_url: str = "http://127.0.0.1:1") -> Deployment:
    return Deployment(
        name="far",
        side=Side.REMOTE,
        dialect=Dialect.ANTHROPIC,
        model="m",
        base_url=base_url,
    )


async def streamed(client: ModelClient, request: dict[str, Any]) -> bytes:
    stream = await client.stream({**request, "stream": True})
    return b"".join([piece async for piece in stream])


async def test_a_streamed_message_is_kept_whole_and_replayed_as_it_was(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.json"
    rule = Rule(
        reasoning="hm  hm",
        reply="yes it\nis",
        tool_calls=[
            {"name": "bash", "arguments": {"cmd": "ls", "n": [1, {"a": "é"}]}},
            {"name": "idle", "arguments": {}},
        ],
        usage={
            "input_tokens": 10,
            "output_tokens": 30,
            "cache_read_input_tokens": 40,
            "cache_creation_input_tokens": 50,
        },
    )
    async with model_session() as session, ScriptedModel([rule]) as model:
        inner = AnthropicClient(anthropic(model.anthropic_url), session)
        whole = await inner.complete(ask("q", max_tokens=9))
        await streamed(RecordingClient(inner, path), ask("q", max_tokens=9))

    (entry,) = Cassette.load(path).entries
    assert entry.dialect is Dialect.ANTHROPIC
    assert entry.usage == whole.usage
    assert entry.response["usage"] == whole.body["usage"]
    assert without_ids(entry.response) == without_ids(whole.body)
    replay = ReplayClient(Cassette.load(path), anthropic())
    again = tmp_path / "again.json"
    await streamed(RecordingClient(replay, again), ask("q"))
    assert Cassette.load(again).entries[0].response == entry.response


def without_ids(body: dict[str, Any]) -> dict[str, Any]:
    """Ids count the requests of the server: they differ, and nothing else may."""
    return {
        **body,
        "id": "",
        "content": [{**block, "id": ""} for block in body["content"]],
    }


async def test_a_replayed_message_is_what_anthropics_sdk_reads(tmp_path: Path) -> None:
    rule = Rule(reply="a b c", tool_calls=[{"name": "f", "arguments": {"x": 1}}])
    path = tmp_path / "c.json"
    async with model_session() as session, ScriptedModel([rule]) as model:
        inner = AnthropicClient(anthropic(model.anthropic_url), session)
        await RecordingClient(inner, path).complete(ask("q", max_tokens=9))
    raw = await streamed(ReplayClient(Cassette.load(path), anthropic()), ask("q"))

    async with ScriptedModel([Rule(raw=raw.decode())]) as model:
        sdk = AsyncAnthropic(base_url=model.anthropic_url, api_key="k")
        messages = ask("q")["messages"]
        async with (
            sdk,
            sdk.messages.stream(model="m", max_tokens=9, messages=messages) as stream,
        ):
            message = await stream.get_final_message()

    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.content[1].to_dict()["input"] == {"x": 1}
    assert message.usage.output_tokens == 7
    assert message.stop_reason == "tool_use"


async def test_what_a_conversation_of_messages_says_matters_and_its_ids_do_not() -> (
    None
):
    def turn(identity: str, result: str, *, system: Any = "be", **more: Any) -> Any:
        use = {
            "type": "tool_use",
            "id": identity,
            "name": "f",
            "input": {"a": 1, "b": 2},
        }
        done = {"type": "tool_result", "tool_use_id": identity, "content": result}
        thought = {"type": "thinking", "thinking": identity, "signature": identity}
        return {
            "system": system,
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": [thought, use]},
                {"role": "user", "content": [done]},
            ],
            **more,
        }

    cassette = Cassette()
    message = {"type": "message", "content": [{"type": "text", "text": "yes"}]}
    cassette.add(
        turn("toolu_1", "a.py"),
        message,
        Usage(),
        recorded_from="m",
        dialect=Dialect.ANTHROPIC,
    )
    replay = ReplayClient(cassette, anthropic())
    marked = [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}]

    again = turn("toolu_9", "a.py", system=marked, max_tokens=7, thinking={"x": 1})
    assert (await replay.complete(again)).body == message
    blocks = [{"type": "text", "text": "a.py"}]
    assert (await replay.complete(turn("t", blocks))).body == message  # type: ignore[arg-type]
    for other in (turn("t", "b.py"), turn("t", "a.py", system="do")):
        with pytest.raises(UpstreamError, match="no answer"):
            await replay.complete(other)


async def test_a_cassette_answers_each_dialect_with_its_own(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    async with model_session() as session, ScriptedModel([Rule(reply="hi")]) as model:
        chats = msgspec.structs.replace(NOWHERE, base_url=model.base_url)
        for client in (
            OpenAIClient(chats, session),
            AnthropicClient(anthropic(model.base_url), session),
        ):
            await RecordingClient(client, path).complete(ask("q", max_tokens=9))

    cassette = Cassette.load(path)
    assert len(cassette.entries) == 2
    assert await said(cassette, ask("q")) == "hi"
    reply = await ReplayClient(cassette, anthropic()).complete(ask("q"))
    assert reply.body["content"] == [{"type": "text", "text": "hi"}]
    only = Cassette([one for one in cassette.entries if one.dialect is Dialect.OPENAI])
    with pytest.raises(UpstreamError, match="none in the dialect anthropic"):
        await ReplayClient(only, anthropic()).complete(ask("q"))


async def test_embeddings_are_recorded_and_found_by_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    rules = [Rule(when="one", vectors=[[1.0]]), Rule(when="two", vectors=[[2.0]])]
    async with model_session() as session, ScriptedModel(rules) as model:
        chats = msgspec.structs.replace(NOWHERE, base_url=model.base_url)
        recording = RecordingClient(OpenAIClient(chats, session), path)
        for text in ("one", "two"):
            await recording.embed({"input": text})

    replay = ReplayClient(Cassette.load(path), NOWHERE)
    for text, vector in (("two", [2.0]), ("one", [1.0])):
        reply = await replay.embed({"input": [text], "model": "x"})
        assert reply.body["data"][0]["embedding"] == vector
        assert reply.usage == Usage(input_tokens=11, output_tokens=0)
    for other in (
        {"input": "three"},
        {"input": ["one", "two"]},
        {"input": "one", "dimensions": 4},
        {"input": "one", "encoding_format": "base64"},
    ):
        with pytest.raises(UpstreamError, match="no answer"):
            await replay.embed(other)
    with pytest.raises(UpstreamError):
        await replay.complete(ask("one"))


async def test_a_file_of_the_first_format_still_answers(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    tape((ask("q"), "yes")).save(path)
    content = json.loads(path.read_text())
    content["format"] = 1
    for entry in content["entries"]:
        del entry["dialect"]
        for name in ("cache_write_tokens", "reasoning_tokens"):
            del entry["usage"][name]
    path.write_text(json.dumps(content))

    assert await said(Cassette.load(path), ask("q")) == "yes"


@pytest.mark.parametrize(
    ("dialect", "response"),
    [
        ("anthropic", {"choices": [{"message": {}}]}),
        ("anthropic", {"content": "text"}),
        ("openai", {"content": []}),
        ("openai", {"object": "list"}),
        ("telepathy", {}),
    ],
)
def test_an_answer_of_another_shape_is_misconfigured(
    tmp_path: Path, dialect: str, response: dict[str, Any]
) -> None:
    path = tmp_path / "demo.json"
    entry = {
        "match": "x",
        "dialect": dialect,
        "request_preview": [],
        "response": response,
        "recorded_from": "m",
    }
    path.write_text(json.dumps({"format": 2, "entries": [entry]}))

    with pytest.raises(Misconfigured, match=r"demo\.json"):
        Cassette.load(path)


async def test_reasoning_and_its_count_are_recorded_too(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 6},
    }
    rule = Rule(reasoning="hm hm", reply="yes", usage=usage)
    async with model_session() as session, ScriptedModel([rule]) as model:
        chats = msgspec.structs.replace(NOWHERE, base_url=model.base_url)
        inner = OpenAIClient(chats, session)
        whole = await inner.complete(ask("q"))
        await streamed(RecordingClient(inner, path), ask("q"))

    (entry,) = Cassette.load(path).entries
    assert entry.response["choices"] == whole.body["choices"]
    assert entry.response["usage"] == whole.body["usage"]
    assert entry.usage == whole.usage
