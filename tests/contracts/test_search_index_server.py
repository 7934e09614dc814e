"""A Qdrant server that refuses, hangs, sends elsewhere or says nonsense; and its alias.

The other side is a stand-in over real HTTP (``tests/servers/qdrant_stand_in.py``).
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest
from tests.contracts.search_indexes import (
    EVERYWHERE,
    STAMP,
    X,
    Y,
    entry,
    found,
    near,
)
from tests.servers.qdrant_stand_in import (
    QdrantStandIn,
    Request,
    Script,
    qdrant_stand_in,
    reply,
)

from nestor.backends.qdrant import server_requests
from nestor.backends.qdrant.server import QdrantServerIndex
from nestor.errors import IndexDamaged, Unavailable

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
]
KEY = "sk-a-key-of-the-server"


@pytest.fixture
async def server() -> AsyncIterator[QdrantStandIn]:
    async with qdrant_stand_in() as server:
        yield server


@pytest.fixture
async def index(server: QdrantStandIn) -> AsyncIterator[QdrantServerIndex]:
    async with QdrantServerIndex.connect(server.base_url, api_key=KEY) as index:
        yield index


def saying(answer: bytes) -> Script:
    async def script(_: Request) -> bytes:
        return answer

    return script


async def _hang(_: Request) -> bytes:
    await asyncio.sleep(60)
    raise AssertionError


async def _abort(_: Request) -> bytes:
    raise ConnectionResetError


_ERROR = {"status": {"error": "it is broken"}, "time": 0}
_BROKEN = {
    "401": (saying(reply(401, b"Must provide an API key")), "NESTOR_QDRANT_API_KEY"),
    "403": (saying(reply(403, b"forbidden")), "NESTOR_QDRANT_API_KEY"),
    "400": (saying(reply(400, _ERROR)), "answers 400: .*it is broken"),
    "429": (saying(reply(429, _ERROR, "Retry-After: 1")), "does not answer"),
    "500": (saying(reply(500, _ERROR)), "answers 500: .*it is broken"),
    "503": (saying(reply(503, b"")), "answers 503"),
    "hangs": (_hang, "did not answer within"),
    "aborts": (_abort, "does not answer"),
    "garbage": (saying(b"\xff\x00 garbage\r\n\r\n"), "does not answer"),
    "html": (saying(reply(200, b"<html>", kind="text/html")), "does not answer"),
    "empty": (saying(reply(200, b"")), "does not answer"),
    "list": (saying(reply(200, [])), "does not answer"),
    "no result": (saying(reply(200, {"status": "ok"})), "does not answer|other ques"),
    "other result": (saying(reply(200, {"result": [1]})), "does not answer|other ques"),
}


@pytest.mark.parametrize("how", _BROKEN)
@pytest.mark.parametrize("met", [True, False], ids=["met before", "at first contact"])
async def test_a_server_that_fails_is_unavailable_and_then_works_again(
    server: QdrantStandIn,
    index: QdrantServerIndex,
    how: str,
    met: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if met:
        await index.clear(STAMP)
        await index.upsert([entry("walrus", vector=X)])
    server.script, said = _BROKEN[how]
    if how == "hangs":
        monkeypatch.setattr(server_requests, "TIMEOUT_S", 0.5)

    for call in (
        lambda: index.search(query="walrus", limit=5, where=EVERYWHERE),
        lambda: index.search(query="the", limit=5, where=EVERYWHERE),
        lambda: index.search(
            vector=X, query="a walrus", stamp=STAMP, limit=5, where=EVERYWHERE
        ),
        lambda: index.upsert([entry("otter")]),
        lambda: index.remove([entry("otter").chunk.id]),
        lambda: index.entries([entry("walrus").chunk.id]),
        index.ids,
        index.count,
        index.outdated,
        lambda: index.clear(None),
        lambda: index.rebuild(None),
    ):
        with pytest.raises(Unavailable, match=said) as error:
            await call()
        assert not isinstance(error.value, IndexDamaged)
        assert KEY not in str(error.value)

    server.script = None
    monkeypatch.undo()
    await index.clear(STAMP)
    await index.upsert([entry("walrus", vector=X)])
    assert await found(index, "walrus") == [entry("walrus").chunk.id]


async def test_many_who_ask_a_server_that_hangs_wait_no_longer_than_one(
    server: QdrantStandIn, index: QdrantServerIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_requests, "TIMEOUT_S", 0.5)
    monkeypatch.setattr("nestor.backends.qdrant.server.TIMEOUT_S", 0.5)
    server.script = _hang

    async with asyncio.timeout(10):  # one after another: 15
        answers = await asyncio.gather(
            *(index.count() for _ in range(30)), return_exceptions=True
        )

    assert {type(one) for one in answers} == {Unavailable}


async def test_no_server_at_all_is_unavailable() -> None:
    async with qdrant_stand_in() as gone:
        url = gone.base_url
    async with QdrantServerIndex.connect(url) as index:
        with pytest.raises(Unavailable, match="does not answer"):
            await index.count()


async def test_a_redirect_is_not_followed_and_the_key_stays(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    async with qdrant_stand_in() as elsewhere:
        target = f"Location: {elsewhere.base_url}/collections"
        for status in (301, 302, 307, 308):
            server.script = saying(reply(status, b"", target))
            with pytest.raises(Unavailable, match=f"{status}, a redirect.*QDRANT_URL"):
                await index.count()
        assert elsewhere.requests == []


async def test_the_key_is_sent_and_no_proxy_of_the_environment_is_used(
    server: QdrantStandIn, index: QdrantServerIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with QdrantServerIndex.connect(server.base_url, api_key=KEY) as other:
        assert await other.count() == 0
    async with QdrantServerIndex.connect(server.base_url) as keyless:
        assert await keyless.count() == 0

    keys = [request.headers.get("api-key") for request in server.requests]
    assert set(keys) == {KEY, None}
    assert all(KEY not in f"{r.path}{r.query}{r.body!r}" for r in server.requests)


@pytest.mark.parametrize("version", ["1.18.4", "1.9.0", "0.11.0", "odd", ""])
async def test_an_older_server_is_refused_with_its_version(
    server: QdrantStandIn, index: QdrantServerIndex, version: str
) -> None:
    server.version = version
    with pytest.raises(Unavailable, match=re.escape(f"version {version}")):
        await index.count()
    assert server.asked == ["GET /"]
    server.version = "1.20.1-dev"
    assert await index.count() == 0


async def test_what_is_made_at_first_contact(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    await index.clear(STAMP)
    creation = next(
        json.loads(r.body)
        for r in server.requests
        if (r.method, r.path) == ("PUT", "/collections/nestor-1")
    )
    assert creation["vectors"] == {"dense": {"size": 3, "distance": "Cosine"}}
    assert creation["sparse_vectors"] == {"bm25": {"modifier": "idf"}}
    fields = {
        body["field_name"]: body["field_schema"]
        for r in server.requests
        if r.path == "/collections/nestor-1/index"
        for body in [json.loads(r.body)]
    }
    assert fields == {
        "document.collection": {"type": "keyword", "prefix": False},
        "document.project": {"type": "keyword", "prefix": False},
        "document.path": {"type": "keyword", "prefix": True},
        "folders": {"type": "keyword", "prefix": False},
        "pairs": {"type": "keyword", "prefix": False},
    }


async def test_a_swap_is_one_request_and_leaves_one_collection(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    await index.upsert([entry("walrus")])
    rebuild = await index.rebuild(STAMP)
    await rebuild.upsert([entry("otter", vector=X)])
    server.requests.clear()

    await rebuild.swap()

    [change] = [r for r in server.requests if r.path == "/collections/aliases"]
    assert json.loads(change.body) == {
        "actions": [
            {"delete_alias": {"alias_name": "nestor"}},
            {"create_alias": {"collection_name": "nestor-2", "alias_name": "nestor"}},
        ]
    }
    left = (await server.client.get_collections()).collections
    assert [one.name for one in left] == ["nestor-2"]


async def test_writes_are_on_the_servers_disk_when_they_return(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    await index.upsert([entry("walrus")])
    await index.remove([entry("walrus").chunk.id])
    writes = [r for r in server.requests if "/points" in r.path and r.query]
    assert [r.query for r in writes] == [{"wait": ["true"]}] * 2


async def test_all_that_is_asked_of_both_legs_is_one_request(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    await index.clear(STAMP)
    await index.upsert([entry("walrus", vector=X)])
    server.requests.clear()

    await index.search(query="walrus", vector=X, stamp=STAMP, limit=3, where=EVERYWHERE)

    here = "POST /collections/nestor-1/points"
    assert sorted(server.asked) == [f"{here}/count", f"{here}/query/batch"]
    [batch] = [json.loads(r.body) for r in server.requests if "batch" in r.path]
    assert len(batch["searches"]) == 4


async def test_another_process_finds_what_was_written_and_sees_the_swap(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    await index.clear(STAMP)
    await index.upsert([entry("walrus", vector=X)])
    async with QdrantServerIndex.connect(server.base_url) as other:
        assert await other.stamp() == STAMP
        assert await near(other, X) == [entry("walrus").chunk.id]

        rebuild = await index.rebuild(STAMP)
        await rebuild.upsert([entry("otter", vector=Y)])
        await rebuild.swap()

        assert await near(other, Y) == [entry("otter").chunk.id]


async def test_what_a_dead_process_began_is_removed(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    await index.upsert([entry("walrus")])
    await (await index.rebuild(None)).upsert([entry("otter")])
    await server.client.create_collection("nestor-x", vectors_config={})
    await server.client.create_collection("nestor-7x", vectors_config={})
    async with QdrantServerIndex.connect(server.base_url) as after:
        rebuild = await after.rebuild(None)
        await rebuild.upsert([entry("lynx")])
        await rebuild.swap()
        assert await found(after, "walrus otter lynx") == [entry("lynx").chunk.id]
    names = [one.name for one in (await server.client.get_collections()).collections]
    assert sorted(names) == ["nestor-2", "nestor-7x", "nestor-x"]


@pytest.mark.parametrize("what", ["collection", "alias"])
async def test_an_index_removed_on_the_server_is_damage_not_emptiness(
    server: QdrantStandIn, index: QdrantServerIndex, what: str
) -> None:
    await index.upsert([entry("walrus")])
    if what == "alias":
        await server.client.create_collection("foreign", vectors_config={})
        await index._requests.point_at("foreign")
    await server.client.delete_collection("nestor-1")

    for call in (
        lambda: index.search(query="walrus", limit=5, where=EVERYWHERE),
        lambda: index.search(query="the", limit=5, where=EVERYWHERE),
        lambda: index.upsert([entry("otter")]),
        index.count,
    ):
        with pytest.raises(IndexDamaged, match="gone"):
            await call()

    await index.clear(None)
    await index.upsert([entry("otter")])
    assert await found(index, "walrus otter") == [entry("otter").chunk.id]


async def test_a_collection_that_is_not_ours_is_not_touched(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    await server.client.create_collection("precious", vectors_config={})
    await index._requests.point_at("precious")

    assert await index.count() == 0

    names = [one.name for one in (await server.client.get_collections()).collections]
    assert sorted(names) == ["nestor-1", "precious"]


async def test_the_stand_in_refuses_what_the_openapi_does_not_know(
    server: QdrantStandIn,
) -> None:
    """The check itself: without it every test above would prove less."""
    wrong = {
        "PUT /collections/x": {"vectors": {}, "colour": "red"},
        "PUT /collections/x/points": {"points": [{"id": 1, "vectors": {}}]},
        "POST /collections/x/points/query/batch": {"searches": [{"limt": 1}]},
        "POST /collections/x/points/nothing": {},
    }
    for line, body in wrong.items():
        method, path = line.split()
        sent = json.dumps(body).encode()
        answer = await server._answer(Request(method, path, {}, {}, sent))
        assert answer.startswith(b"HTTP/1.1 400")
    option = Request("GET", "/collections", {"colour": ["red"]}, {}, b"")
    assert (await server._answer(option)).startswith(b"HTTP/1.1 400")
    assert len(server.refused) == len(wrong) + 1
    server.refused.clear()
