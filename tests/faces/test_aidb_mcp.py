"""AIDB as tools: ``/mcp`` over HTTP and ``nestor mcp aidb``, with the official client."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from tests.faces.whole import ADMIN_KEY, Whole, whole

WALRUS = "# Walrus\n\nThe walrus eats clams.\n"
NAMES = ["get_context", "search_context", "add_document"]
WAYS = [(way, mode) for way in ("http", "stdio") for mode in ("legacy", "auto")]


@pytest.fixture
async def face(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole(tmp_path / "home") as found:
        run = {"pid": os.getpid(), "ports": found.ports}
        (tmp_path / "home" / "run.json").write_text(json.dumps(run))
        yield found


@asynccontextmanager
async def connected(
    face: Whole, way: str = "http", mode: str = "auto", key: str = ADMIN_KEY
) -> AsyncIterator[Client]:
    if way == "stdio":
        program = StdioServerParameters(
            command=sys.executable,
            args=["-m", "nestor.cli", "mcp", "aidb"],
            env={
                "NESTOR_HOME": str(face.nestor.settings.home),
                "NESTOR_API_KEY": key,
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        async with Client(stdio_client(program), mode=mode) as client:
            yield client
        return
    url = f"http://127.0.0.1:{face.ports['aidb']}/mcp"
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(headers=headers, trust_env=False) as session:
        transport = streamable_http_client(url, http_client=session)
        async with Client(transport, mode=mode) as client:
            yield client


def told(result: Any) -> Any:
    assert not result.is_error, result
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


@pytest.mark.parametrize(("way", "mode"), WAYS)
async def test_a_document_is_added_and_found_by_the_tools(
    face: Whole, way: str, mode: str
) -> None:
    document = {"project": "p", "path": "a.md", "content": WALRUS}
    async with connected(face, way, mode) as client:
        listed = (await client.list_tools()).tools
        added = told(await client.call_tool("add_document", document))
        asked = {"query": "what eats clams?"}
        context = told(await client.call_tool("get_context", asked))
        searched = told(
            await client.call_tool(
                "search_context",
                {"query": "clams", "leg": "bm25", "projects": ["p"]},
            )
        )
        wrong = await client.call_tool("search_context", {"query": "x", "leg": "y"})

    assert [tool.name for tool in listed] == NAMES
    assert all(tool.input_schema["type"] == "object" for tool in listed)
    assert added["document"]["path"] == "a.md"
    assert context["items"][0]["source"] == "p/a.md#Walrus"
    assert context["degraded"] == []
    assert searched["items"][0]["text"] == WALRUS.strip()
    assert wrong.is_error
    assert wrong.structured_content["errors"][0]["field"] == "leg"


async def test_a_key_that_reads_finds_and_adds_nothing(face: Whole) -> None:
    key = await face.key("read")
    document = {"project": "p", "path": "a.md", "content": WALRUS}
    async with connected(face, key=key) as client:
        refused = await client.call_tool("add_document", document)
        told(await client.call_tool("get_context", {"query": "walrus"}))
        as_task = {"query": "walrus", "task_id": "t"}
        of_task = await client.call_tool("get_context", as_task)

    assert refused.structured_content["status"] == 403
    assert of_task.structured_content["status"] == 403
    listed = await face.call("aidb", "GET", "/documents")
    assert listed.json["documents"] == []


async def test_a_stack_that_is_away_is_told_and_the_editor_stays_connected(
    face: Whole,
) -> None:
    run = face.nestor.settings.home / "run.json"
    text = run.read_text()
    async with connected(face, "stdio", "legacy") as client:
        told(await client.call_tool("get_context", {"query": "walrus"}))
        run.write_text(text.replace(str(face.ports["aidb"]), "9"))
        with pytest.raises(Exception, match="nestor up"):
            await client.call_tool("get_context", {"query": "walrus"})
        run.write_text(text)
        told(await client.call_tool("get_context", {"query": "walrus"}))
