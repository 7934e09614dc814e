"""AIDB's routes behind the real shell, over its real parts."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.faces.shell import (
    ADMIN_KEY,
    SERVICE_KEY,
    MemoryKeys,
    MemorySessions,
    serving,
    small_nestor,
)

from nestor.aidb.service import Aidb
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.telemetry.learning_client import LearningClient
from nestor.web import aidb as routes
from nestor.web.app import create_app

WALRUS = "# Walrus\n\nThe walrus eats clams.\n"


class Client:
    """Speaks to the layer with the admin's key, or another."""

    def __init__(self, port: int, keys: MemoryKeys) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self.keys = keys

    async def call(
        self, method: str, path: str, *, key: str | None = ADMIN_KEY, json: Any = None
    ) -> "Answer":
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, self._url + path, json=json) as reply,
        ):
            body = await reply.read()
            return Answer(reply.status, msgspec.json.decode(body) if body else None)


@dataclass
class Answer:
    status: int
    json: Any


class _Silent:
    def append(self, events: object) -> None: ...

    @property
    def buffered(self) -> int:
        return 0

    def seen(self, ids: frozenset[str]) -> frozenset[str]:
        return ids - ids

    def close(self) -> None: ...


@pytest.fixture
async def aidb(tmp_path: Path) -> AsyncIterator[Client]:
    async with (
        Database.open(f"sqlite:///{tmp_path}/n.db") as database,
        await QdrantEdgeIndex.open(tmp_path / "qdrant") as index,
    ):
        service = Aidb(
            SqlKnowledgeStore(database), index, LearningClient(_Silent(), "aidb")
        )
        await service.start()
        nestor: Any = SimpleNamespace(
            settings=small_nestor(tmp_path).settings,
            keys=MemoryKeys(),
            api_key=ADMIN_KEY,
            service_key=SERVICE_KEY,
            sessions=MemorySessions(),
            aidb=service,
            hold=asyncio.Event(),
        )
        app = create_app(
            "aidb", nestor, routes.handlers(), dependencies=service.dependencies
        )
        async with serving(nestor, app) as running:
            yield Client(running.port, nestor.keys)
        await service.stop()


def document(**how: Any) -> dict[str, Any]:
    return {"project": "p", "path": "a.md", "content": WALRUS, **how}


async def test_a_document_is_added_found_read_and_forgotten(aidb: Client) -> None:
    made = await aidb.call("POST", "/documents", json=document())
    again = await aidb.call("POST", "/documents", json=document())
    assert (made.status, again.status) == (201, 200)
    assert again.json["unchanged"] is True
    target = f"/documents/{made.json['document']['id']}"

    found = await aidb.call("POST", "/context", json={"query": "what eats clams?"})
    assert found.status == 200
    assert found.json["items"][0]["source"] == "p/a.md#Walrus"
    assert (found.json["cached"], found.json["degraded"]) == (False, [])
    searched = await aidb.call("POST", "/search", json={"query": "clam", "leg": "bm25"})
    assert searched.json["items"][0]["text"] == WALRUS.strip()
    listed = await aidb.call("GET", "/documents")
    assert [one["path"] for one in listed.json["documents"]] == ["a.md"]
    assert listed.json["counts"]["chunks"] == 1
    assert (await aidb.call("GET", target)).json["size_bytes"] == len(WALRUS)
    assert (await aidb.call("POST", "/reindex")).json == {"chunks": 1}

    assert (await aidb.call("DELETE", target)).status == 204
    assert (await aidb.call("GET", target)).status == 404
    assert (await aidb.call("DELETE", target)).status == 404


async def test_a_batch_is_all_or_nothing_where_one_is_wrong(aidb: Client) -> None:
    items = [document(), document(path="b\n.md")]
    bad = await aidb.call("POST", "/documents", json={"items": items})
    assert bad.status == 400
    assert bad.json["errors"][0]["field"] == "items.1.path"
    assert (await aidb.call("GET", "/documents")).json["documents"] == []

    items[1]["path"] = "b.md"
    good = await aidb.call("POST", "/documents", json={"items": items})
    assert [one["unchanged"] for one in good.json["items"]] == [False, False]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/documents", document(url="http://169.254.169.254/"), "url"),
        ("/documents", {"items": [document(url="http://127.0.0.1/")]}, "items.0.url"),
        ("/documents", {"project": "p", "path": "a"}, "content"),
        ("/documents", {}, "project"),
        ("/documents", document(content=5), "content"),
        ("/documents", document(collection="else"), "collection"),
        ("/documents", document(items=[]), "project"),
        ("/documents", {"items": []}, "items"),
        ("/context", {}, "query"),
        ("/context", {"query": "x", "limit": 51}, "limit"),
        ("/context", {"query": "x", "surprise": 1}, "surprise"),
        ("/search", {"query": "x", "leg": "dense"}, "leg"),
    ],
)
async def test_bad_input_names_its_field_and_stores_nothing(
    aidb: Client, path: str, body: dict[str, Any], field: str
) -> None:
    reply = await aidb.call("POST", path, json=body)

    assert reply.status == 400
    assert [error["field"] for error in reply.json["errors"]] == [field]
    assert (await aidb.call("GET", "/documents")).json["counts"]["documents"] == 0


async def test_reading_needs_read_and_writing_needs_service_or_admin(
    aidb: Client,
) -> None:
    _, read = await aidb.keys.create("r", ["read"])
    _, submit = await aidb.keys.create("s", ["submit"])
    _, service = await aidb.keys.create("v", ["service"])
    asked = {"query": "walrus"}

    assert (await aidb.call("POST", "/context", key=read, json=asked)).status == 200
    assert (await aidb.call("POST", "/context", key=submit, json=asked)).status == 403
    for key in (read, submit):
        for method, path in (
            ("POST", "/documents"),
            ("POST", "/reindex"),
            ("DELETE", "/documents/x"),
        ):
            assert (await aidb.call(method, path, key=key, json={})).status == 403
    reply = await aidb.call("POST", "/documents", key=service, json=document())
    assert reply.status == 201
    assert (await aidb.call("POST", "/context", key=None, json=asked)).status == 401
