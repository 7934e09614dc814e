"""AIDB's routes behind the real shell, over its real parts."""

import asyncio
import hashlib
import io
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
from nestor.aidb.spool import Spool
from nestor.backends.documents.children import DocumentChildren
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.telemetry.learning_client import LearningClient
from nestor.web import aidb as routes
from nestor.web.app import create_app

WALRUS = "# Walrus\n\nThe walrus eats clams.\n"


class Client:
    """Speaks to the layer with the admin's key, or another."""

    def __init__(self, port: int, keys: MemoryKeys, spool: Path) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self.keys = keys
        self.spool = spool

    async def call(
        self,
        method: str,
        path: str,
        *,
        key: str | None = ADMIN_KEY,
        json: Any = None,
        **how: Any,
    ) -> "Answer":
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if json is not None:
            how["json"] = json
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, self._url + path, **how) as reply,
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
        DocumentChildren() as reader,
    ):
        service = Aidb(
            SqlKnowledgeStore(database),
            index,
            LearningClient(_Silent(), "aidb"),
            reader=reader,
        )
        spool = Spool(tmp_path / "spool")
        spool.open()
        await service.start()
        nestor: Any = SimpleNamespace(
            settings=small_nestor(tmp_path).settings,
            keys=MemoryKeys(),
            api_key=ADMIN_KEY,
            service_key=SERVICE_KEY,
            sessions=MemorySessions(),
            aidb=service,
            spool=spool,
            hold=asyncio.Event(),
        )
        app = create_app(
            "aidb", nestor, routes.handlers(), dependencies=service.dependencies
        )
        async with serving(nestor, app) as running:
            yield Client(running.port, nestor.keys, tmp_path / "spool")
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


@pytest.mark.parametrize("path", ["/context", "/search"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("projects", ["p"] * 101),
        ("collections", ["best-practices"] * 101),
        ("metadata", {f"k{n}": "v" for n in range(33)}),
        ("path_prefix", "x" * 1025),
    ],
)
async def test_a_filter_with_more_conditions_than_a_database_takes_is_refused(
    aidb: Client, path: str, field: str, value: Any
) -> None:
    answer = await aidb.call("POST", path, json={"query": "walrus", field: value})
    assert answer.status == 400
    assert [e["field"] for e in answer.json["errors"]] == [field]
    most = value[:-1] if not isinstance(value, dict) else {"k": "v"}
    answer = await aidb.call("POST", path, json={"query": "walrus", field: most})
    assert answer.status == 200


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


FILE = "/documents/file?project=p&path="
LATIN = "Das Walroß frißt Muscheln.".encode("latin-1")


async def test_a_file_is_sent_as_it_is_and_read_for_what_it_is(aidb: Client) -> None:
    page = b"<html><body><h1>Tusks</h1><p>The walrus has two.</p></body></html>"
    made = await aidb.call("PUT", FILE + "a.html", data=page)
    again = await aidb.call("PUT", FILE + "a.html", data=page)
    latin = await aidb.call(
        "PUT",
        FILE + "b&metadata=%7B%22lang%22%3A%22de%22%7D&collection=best-practices",
        data=LATIN,
        headers={"Content-Type": "text/plain; charset=latin-1"},
    )

    assert (made.status, again.status, latin.status) == (201, 200, 201)
    assert again.json["unchanged"] is True
    document = made.json["document"]
    assert document["media"] == "text/html"
    assert document["size_bytes"] == len(page)
    assert document["content_hash"] == hashlib.sha256(page).hexdigest()
    assert latin.json["document"]["metadata"] == {"lang": "de"}
    found = await aidb.call("POST", "/context", json={"query": "tusks"})
    assert "two" in found.json["items"][0]["text"]
    body = {"query": "Muscheln", "metadata": {"lang": "de"}, "projects": ["p"]}
    found = await aidb.call("POST", "/search", json=body)
    assert "Walroß" in found.json["items"][0]["text"]
    assert list(aidb.spool.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "body", "status", "field"),
    [
        (FILE + "a.pdf", b"%PDF-1.7 broken", 400, "content"),
        (FILE + "a.txt", b"\0\1\2" * 100, 400, "content"),
        (FILE + "a.txt", b"", 400, "content"),
        (FILE + "a%0Ab", b"x", 400, "path"),
        (FILE + "a&metadata=%5B1%5D", b"x", 400, "metadata"),
        (FILE + "a&collection=else", b"x", 400, "collection"),
        ("/documents/file?path=a", b"x", 400, None),
        ("/documents/file?path=a&project=nestor:x", b"x", 400, "project"),
        (FILE + "a.txt", b"x" * (32 * 1024 * 1024 + 1), 413, None),
    ],
)
async def test_a_file_that_is_none_is_refused_by_name_and_leaves_nothing(
    aidb: Client, target: str, body: bytes, status: int, field: str | None
) -> None:
    reply = await aidb.call("PUT", target, data=io.BytesIO(body))

    assert reply.status == status, reply.json
    if field is not None:
        assert [error["field"] for error in reply.json["errors"]] == [field]
    assert list(aidb.spool.iterdir()) == []
    assert (await aidb.call("GET", "/documents")).json["counts"]["documents"] == 0


async def test_who_leaves_while_sending_a_file_leaves_nothing_behind(
    aidb: Client,
) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"# Half a document\n" * 1000
        await asyncio.sleep(0.2)
        raise ConnectionResetError

    with pytest.raises(aiohttp.ClientError):
        await aidb.call("PUT", FILE + "a.md", data=half())
    async with asyncio.timeout(5):
        while list(aidb.spool.iterdir()):
            await asyncio.sleep(0.02)
    assert (await aidb.call("GET", "/documents")).json["documents"] == []


async def test_documents_are_listed_page_by_page_with_their_hashes(
    aidb: Client,
) -> None:
    items = [
        document(project=project, path=f"{number}.md")
        for project in ("p", "q")
        for number in range(5)
    ]
    await aidb.call("POST", "/documents", json={"items": items})
    seen, after, pages = [], "", 0
    while True:
        query = "?limit=3" + (f"&after={after}" if after else "")
        page = (await aidb.call("GET", f"/documents{query}")).json
        seen += [(one["project"], one["path"]) for one in page["documents"]]
        assert all(len(one["content_hash"]) == 64 for one in page["documents"])
        pages += 1
        if (after := page["next"]) is None:
            break
    assert (pages, len(seen), seen) == (4, 10, sorted(set(seen)))
    one = (await aidb.call("GET", "/documents?project=q")).json
    assert {found["project"] for found in one["documents"]} == {"q"}
    wrong = await aidb.call("GET", "/documents?after=nonsense")
    assert [error["field"] for error in wrong.json["errors"]] == ["after"]


async def test_learned_patterns_are_written_read_found_and_retired(
    aidb: Client,
) -> None:
    skill = {
        "id": "7e57ab1e-0000-5000-8000-000000000001",
        "kind": "error-solution",
        "title": "Port in use",
        "text": "Stop the other walrus.",
        "created_at": "2026-01-01T00:00:00Z",
        "status": "active",
    }
    _, read = await aidb.keys.create("r", ["read"])
    _, service = await aidb.keys.create("v", ["service"])
    assert (await aidb.call("POST", "/skills", key=read, json=skill)).status == 403

    made = await aidb.call("POST", "/skills", key=service, json=skill)
    again = await aidb.call("POST", "/skills", key=service, json=skill)

    assert (made.json["changed"], again.json["changed"]) == (True, False)
    found = await aidb.call("POST", "/context", json={"query": "walrus"})
    assert [(i["id"], i["kind"]) for i in found.json["items"]] == [
        (skill["id"], "error-solution")
    ]
    target = f"/skills/{skill['id']}"
    assert (await aidb.call("GET", target, key=read)).json["title"] == "Port in use"
    listed = (await aidb.call("GET", "/skills", key=read)).json["skills"]
    assert [one["id"] for one in listed] == [skill["id"]]
    retired = await aidb.call("POST", f"{target}/retire", key=service)
    assert retired.json["status"] == "retired"
    found = await aidb.call("POST", "/context", json={"query": "walrus"})
    assert found.json["items"] == []
    assert (await aidb.call("POST", "/skills/nosuch/retire")).status == 404
    wrong = await aidb.call("POST", "/skills", json={**skill, "title": ""})
    assert [error["field"] for error in wrong.json["errors"]] == ["title"]


async def test_verify_says_that_all_agrees(aidb: Client) -> None:
    await aidb.call("POST", "/documents", json=document())
    told = (await aidb.call("POST", "/verify")).json
    assert (told["consistent"], told["chunks"], told["indexed"]) == (True, 1, 1)
    assert told["problems"] == []


async def test_health_names_each_part_and_when_it_was_seen(aidb: Client) -> None:
    await aidb.call("POST", "/documents", json=document())
    told = (await aidb.call("GET", "/health/detailed")).json
    parts = {one["name"]: one for one in told["details"]["dependencies"]}
    assert {"database", "index"} <= parts.keys()
    assert all(one["last_observed"] for one in parts.values())
