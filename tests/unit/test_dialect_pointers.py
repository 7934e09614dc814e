"""No dialect's request says where a model is, or what its server should fetch."""

import time
from typing import Any

import msgspec
import pytest

from nestor.coordinator.dialects import pointers
from nestor.coordinator.dialects.openai import OpenAI
from nestor.coordinator.dialects.pointers import refuse_pointers
from nestor.errors import InvalidInput

THERE = "http://169.254.169.254/x"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"url": {"type": "string"}, "api_base": {"default": THERE}},
}
MP3 = "//uQxAAAAAAAAAAAAAAASW5mbwAAAA8" * 12


def said(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(parts)}]}


def item(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"input": [{"type": "message", "role": role, "content": list(parts)}]}


def source(**inside: Any) -> dict[str, Any]:
    return {"type": "image", "source": inside}


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    # Chat completions.
    ({"apiBase": "x"}, "apiBase"),
    ({"fallbacks": None}, "fallbacks"),
    ({"metadata": {"api_base": "x"}}, "metadata.api_base"),
    ({"metadata": {"a": {"url": "x"}}}, "metadata.a.url"),
    ({"tools": [{"function": {"url": THERE}}]}, "tools.0.function.url"),
    (said({"image_url": {"url": THERE}}), "messages.0.content.0.image_url.url"),
    (said({"image_url": ["x", THERE]}), "messages.0.content.0.image_url"),
    (said({"image": ["AA==", THERE]}), "messages.0.content.0.image"),
    (
        said({"input_audio": {"data": "//x/y"}}),
        "messages.0.content.0.input_audio.data",
    ),
    (
        {"messages": [{"role": "user", "annotations": [{"url": THERE}]}]},
        "messages.0.annotations.0.url",
    ),
    # Messages.
    (said(source(type="url", url=THERE)), "messages.0.content.0.source.url"),
    (said(source(type="base64", data=THERE)), "messages.0.content.0.source.data"),
    ({"system": [source(type="url", url=THERE)]}, "system.0.source.url"),
    (
        said({"type": "tool_result", "content": [source(type="url", url=THERE)]}),
        "messages.0.content.0.content.0.source.url",
    ),
    (
        said({"type": "text", "input": {"url": THERE}}),
        "messages.0.content.0.input.url",
    ),
    (
        said({"type": "search_result", "source": {"type": "url", "url": THERE}}),
        "messages.0.content.0.source.url",
    ),
    ({"mcp_servers": [{"type": "url", "url": THERE}]}, "mcp_servers.0.url"),
    ({"tools": [{"input_schema": SCHEMA, "url": "x"}]}, "tools.0.url"),
    # Responses.
    (item({"type": "input_image", "image_url": THERE}), "input.0.content.0.image_url"),
    (item({"type": "input_file", "file_url": THERE}), "input.0.content.0.file_url"),
    (
        item({"type": "input_file", "file_data": "file:/etc/passwd"}),
        "input.0.content.0.file_data",
    ),
    (
        {"input": [{"type": "function_call_output", "output": [{"image_url": THERE}]}]},
        "input.0.output.0.image_url",
    ),
    ({"tools": [{"type": "mcp", "server_url": THERE}]}, "tools.0.server_url"),
    ({"text": {"format": {"schema": SCHEMA, "url": THERE}}}, "text.format.url"),
    ({"client_metadata": {"api_key": "x"}}, "client_metadata.api_key"),
    # Embeddings.
    ({"input": ["a"], "base_url": THERE}, "base_url"),
    ({"input": [{"image_url": THERE}]}, "input.0.image_url"),
)


@pytest.mark.parametrize(("request_", "field"), REFUSED, ids=lambda v: str(v)[:60])
def test_s1_what_says_where_to_go_is_refused_by_name(
    request_: dict[str, Any], field: str
) -> None:
    for body in (request_, msgspec.json.decode(msgspec.json.encode(request_))):
        with pytest.raises(InvalidInput) as caught:
            refuse_pointers(body)
        assert caught.value.errors[0].field == field


@pytest.mark.parametrize(
    "request_",
    [
        {"metadata": {"url": THERE, "host": "ci", "repo_url": THERE}},
        {"client_metadata": {"endpoint": "ide"}},
        {"tools": [{"function": {"parameters": SCHEMA}}]},
        {"tools": [{"input_schema": SCHEMA, "input_examples": [{"url": THERE}]}]},
        {"tools": [{"type": "function", "parameters": SCHEMA}]},
        {"tools": [{"type": "namespace", "tools": [{"parameters": SCHEMA}]}]},
        {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"output_config": {"format": {"schema": SCHEMA}}},
        {"response_format": {"json_schema": {"schema": SCHEMA}}},
        {"system": [{"type": "text", "text": THERE}]},
        {"instructions": THERE, "input": THERE},
        {"input": [THERE, "b"]},
        {"input": [[1, 2], [3]]},
        said({"type": "tool_use", "input": {"url": THERE, "headers": {}}}),
        said({"type": "text", "text": "x", "citations": [{"url": THERE}]}),
        said({"type": "search_result", "source": THERE, "content": []}),
        said({"source": {"type": "text", "data": "Note: this"}}),
        said({"content": [{"source": {"type": "text", "data": "Note: this"}}]}),
        said({"content": [{"type": "web_search_result", "url": THERE}]}),
        said({"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}}),
        said({"type": "input_audio", "input_audio": {"data": MP3, "format": "mp3"}}),
        item({"type": "input_image", "image_url": "data:image/png;base64,A"}),
        item({"type": "output_text", "text": "x", "annotations": [{"url": THERE}]}),
        {"input": [{"type": "function_call", "arguments": '{"url": "http://x"}'}]},
    ],
    ids=lambda v: str(v)[:60],
)
def test_what_names_only_what_is_talked_about_passes(request_: dict[str, Any]) -> None:
    refuse_pointers(request_)


def test_names_that_were_seen_do_not_fill_the_memory() -> None:
    for start in range(0, 20_000, 1000):
        refuse_pointers({f"name-{start + i}": 1 for i in range(1000)})
        refuse_pointers({"n" * 100_000: 1})
    assert len(pointers._found) <= pointers._MOST_NAMES
    assert max(map(len, pointers._found)) <= pointers._LONGEST_NAME
    with pytest.raises(InvalidInput):
        refuse_pointers({"api_base": "x"})


@pytest.mark.parametrize("top", ["messages", "input", "x"])
def test_s1_looking_has_an_end(top: str) -> None:
    deep: Any = [[{}] * 150] * 150
    with pytest.raises(InvalidInput, match="more than 20000 objects") as caught:
        refuse_pointers({top: deep})
    assert caught.value.errors[0].field == top
    inner: Any = {"url": THERE}
    for _ in range(400):
        inner = {"x": inner}
    with pytest.raises(InvalidInput, match="nested deeper than 32") as caught:
        refuse_pointers(inner)
    assert len(caught.value.errors[0].field) <= 200
    wide: dict[str, Any] = {"a": [{}] * 30_000}
    with pytest.raises(InvalidInput, match="more than 20000 objects"):
        refuse_pointers(wide)


def test_a_name_cannot_break_the_line_it_is_written_on() -> None:
    with pytest.raises(InvalidInput) as caught:
        refuse_pointers({"x\r\nSet-Cookie": {"api_key": 1}})
    assert caught.value.errors[0].field == "x??Set-Cookie.api_key"


def test_a_long_request_is_looked_through_at_once() -> None:
    turn = [
        {"role": "user", "content": [{"type": "text", "text": "x" * 600}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {}}]},
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    body = {"messages": turn * 10, "tools": [tool] * 10, "model": "m"}
    began = time.perf_counter()
    for _ in range(1000):
        OpenAI().check(body)
    # About 0.04 s; a second is a walk over texts or schemas.
    assert time.perf_counter() - began < 1
