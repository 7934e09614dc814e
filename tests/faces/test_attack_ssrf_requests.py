"""No request says where a model is, or what its server should fetch."""

from pathlib import Path
from typing import Any

import pytest
from tests.faces.test_attack_ssrf import ASK, CHAT, METADATA, stack
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.coordinator.dialects.openai import OpenAI
from nestor.errors import InvalidInput

ELSEWHERE = "http://127.0.0.1:1/v1"
STEERS = (
    *("base_url", "api_base", "url", "api_key", "api_version", "deployment"),
    *("custom_llm_provider", "extra_body", "extra_headers", "endpoint", "proxy"),
    *("apiBase", "BASE_URL", "base-url", "baseURL", "kv_transfer_params"),
    *("litellm_params", "default_headers", "azure_endpoint", "fallbacks", "api.base"),
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"url": {"type": "string"}, "api_base": {"type": "string"}},
}
FILE = {"type": "file", "file": {"file_data": "data:text/plain;base64,AA=="}}
THERE = f"http://{METADATA}/x"
NESTED = {"type": "image_url", "image_url": {"url": THERE}}
ELSEWISE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"type": "image", "source": {"type": "url", "url": THERE}}, "source.url"),
    ({"type": "image", "source": THERE}, "source"),
    ({"type": "image", "image": THERE}, "image"),
    ({"type": "file", "file": {"file_url": THERE}}, "file.file_url"),
    ({"type": "file", "file": {"file.URI": THERE}}, "file.file.URI"),
    ({"type": "file", "file": {"file_id": THERE}}, "file.file_id"),
    ({"type": "file", "file": {"file_data": "file:/etc/passwd"}}, "file.file_data"),
    ({"type": "input_audio", "input_audio": {"data": "//x/y"}}, "input_audio.data"),
    ({"type": "tool_result", "content": [NESTED]}, "content.0.image_url.url"),
    ({"type": "text", "text": {"url": THERE}}, "text.url"),
)
"""Parts of a message as servers of several makers take them, and where the address is."""


async def test_s1_a_chat_cannot_say_where_it_goes(tmp_path: Path) -> None:
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        for name in STEERS:
            for value in (ELSEWHERE, {"base_url": ELSEWHERE}, None):
                for stream in (False, True):
                    body = {**ASK, "stream": stream, name: value}
                    reply = await s.call("coordinator", "POST", CHAT, json=body)
                    assert reply.status == 400, (name, reply.body)
                    assert reply.json["error"]["param"] == name

    assert model.requests == []


async def test_s1_a_chat_with_what_openai_knows_passes_untouched(
    tmp_path: Path,
) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    text = {"type": "text", "text": "see http://127.0.0.1:1/ and url"}
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": [text, image]}],
        "temperature": 0.5,
        "seed": 7,
        "user": "u",
        "logit_bias": {"50256": -100},
        "metadata": {"url": "http://x", "host": "ci", "repo_url": "https://x"},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": SCHEMA},
        },
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
        ],
    }
    call = {"name": "f", "arguments": '{"url": "http://127.0.0.1/", "api_base": "x"}'}
    cited = {"type": "url_citation", "url_citation": {"url": "https://example.com"}}
    body["messages"] += [
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "audio": None,
            "annotations": [cited],
            "tool_calls": [{"id": "c1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"url": "http://x"}'},
        {"role": "tool", "tool_call_id": "c1", "content": [text]},
        {"role": "user", "content": [FILE]},
    ]
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        reply = await s.call("coordinator", "POST", CHAT, json=body)

    assert reply.status == 200, reply.body
    assert model.chats[0].body == {**body, "model": "near"}


async def test_s1_a_model_server_is_not_sent_to_fetch_for_a_caller(
    tmp_path: Path,
) -> None:
    image, video = {"type": "image_url"}, {"type": "video_url"}
    parts: tuple[tuple[dict[str, Any], str], ...] = (
        ({**image, "image_url": {"url": f"http://{METADATA}/"}}, "image_url.url"),
        ({**image, "image_url": f"http://{METADATA}/"}, "image_url"),
        ({**image, "image_url": {"url": ["http://x"]}}, "image_url.url"),
        ({**video, "video_url": {"url": "file:///etc/passwd"}}, "video_url.url"),
    )
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        for part, field in (*parts, *ELSEWISE):
            for content, where in (([part], "content.0"), (part, "content")):
                body = {"messages": [{"role": "user", "content": content}]}
                reply = await s.call("coordinator", "POST", CHAT, json=body)
                assert reply.status == 400, (part, reply.body)
                named = reply.json["error"]["param"]
                assert named == f"messages.0.{where}.{field}"

    assert model.requests == []


TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tools": [{"mcp": {"server_url": THERE}}]}, "tools.0.mcp.server_url"),
        ({"tools": [{"type": "mcp", "server_url": THERE}]}, "tools.0.server_url"),
        ({"tools": [{**TOOL, "api_base": THERE}]}, "tools.0.api_base"),
        (
            {"tools": [{"function": {"parameters": SCHEMA, "url": THERE}}]},
            "tools.0.function.url",
        ),
        ({"fallback_models": [{"api_base": THERE}]}, "fallback_models.0.api_base"),
        ({"metadata": {"api_base": THERE}}, "metadata.api_base"),
        ({"metadata": {"a": {"url": THERE}}}, "metadata.a.url"),
        (
            {"search_parameters": {"sources": [{"links": [THERE]}]}},
            "search_parameters.sources.0.links",
        ),
        (
            {"response_format": {"json_schema": {"schema": SCHEMA, "base_url": "x"}}},
            "response_format.json_schema.base_url",
        ),
        (
            {"prediction": {"content": [{"image_url": THERE}]}},
            "prediction.content.0.image_url",
        ),
    ],
)
async def test_s1_at_no_depth_of_a_chat_is_an_address_taken(
    tmp_path: Path, given: dict[str, Any], field: str
) -> None:
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        reply = await s.call("coordinator", "POST", CHAT, json={**ASK, **given})

    assert reply.status == 400, reply.body
    assert reply.json["error"]["param"] == field
    assert model.requests == []


async def test_s1_what_is_nested_too_deep_to_look_at_is_refused(tmp_path: Path) -> None:
    def nested(levels: int) -> Any:
        value: Any = {"deep": 1}
        for _ in range(levels):
            value = [value]
        return value

    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        for levels, status in ((20, 200), (33, 400), (400, 400)):
            body = {**ASK, "x": nested(levels)}
            reply = await s.call("coordinator", "POST", CHAT, json=body)
            assert reply.status == status, reply.body
        assert "nested deeper than 32" in reply.json["error"]["message"]

    assert len(model.requests) == 1


async def test_s1_neither_tools_nor_the_models_name_are_addresses(
    tmp_path: Path,
) -> None:
    tool = {"type": "mcp", "server_url": ELSEWHERE}
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        tools = await s.call("coordinator", "POST", CHAT, json={**ASK, "tools": [tool]})
        named = await s.call(
            "coordinator", "POST", CHAT, json={**ASK, "model": ELSEWHERE}
        )

    assert tools.json["error"]["param"] == "tools.0.server_url"
    assert named.json["error"]["param"] == "model"
    assert (tools.status, named.status) == (400, 404)
    assert model.requests == []


async def test_s1_no_other_call_takes_an_address(tmp_path: Path) -> None:
    calls: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("coordinator", "/route", {"query": "q"}),
        ("aidb", "/documents", {"project": "p", "path": "a.md", "content": "x"}),
        ("aidb", "/context", {"query": "q"}),
        ("aidb", "/search", {"query": "q"}),
    )
    async with ScriptedModel([Rule(reply="ok")]) as model, stack(tmp_path, model) as s:
        for layer, path, body in calls:
            for name in STEERS:
                reply = await s.call(
                    layer, "POST", path, json={**body, name: ELSEWHERE}
                )
                assert reply.status == 400, (path, name, reply.body)
                assert reply.json["errors"][0]["field"] == name
        listed = await s.call("aidb", "GET", "/documents")

    assert model.requests == []
    assert listed.json["documents"] == []


def test_s1_looking_for_addresses_has_an_end() -> None:
    ask = {"messages": [{"role": "user", "content": [{}] * 30_000}]}
    with pytest.raises(InvalidInput, match="more than 20000 objects"):
        OpenAI().check(ask)
