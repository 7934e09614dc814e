"""A rebuild takes over on a Qdrant server that fails in the middle of it."""

from collections.abc import AsyncIterator

import pytest
from tests.contracts.search_indexes import entry, found
from tests.servers.qdrant_stand_in import (
    QdrantStandIn,
    Request,
    qdrant_stand_in,
    reply,
)

from nestor.backends.qdrant.server import QdrantServerIndex, ServerRebuild
from nestor.errors import Unavailable

pytestmark = [pytest.mark.filterwarnings("ignore:Payload indexes have no effect")]


@pytest.fixture
async def server() -> AsyncIterator[QdrantStandIn]:
    async with qdrant_stand_in() as server:
        yield server


@pytest.fixture
async def index(server: QdrantStandIn) -> AsyncIterator[QdrantServerIndex]:
    async with QdrantServerIndex.connect(server.base_url) as index:
        await index.upsert([entry("walrus")])
        yield index


async def rebuilt(index: QdrantServerIndex) -> ServerRebuild:
    rebuild = await index.rebuild(None)
    await rebuild.upsert([entry("otter")])
    return rebuild


def failing(server: QdrantStandIn, method: str, path: str, *, done: bool) -> None:
    """Let the requests that begin so fail; ``done``: only the reply is lost."""

    async def script(request: Request) -> bytes:
        wrong = request.method == method and request.path.startswith(path)
        if wrong and not done:
            return reply(503, b"")
        answer = await server._answer(request)
        return reply(503, b"") if wrong else answer

    server.script = script


async def names(server: QdrantStandIn) -> list[str]:
    return sorted(
        one.name for one in (await server.client.get_collections()).collections
    )


async def aliased(server: QdrantStandIn) -> list[str]:
    return [one.collection_name for one in (await server.client.get_aliases()).aliases]


async def test_what_answers_stays_when_the_old_one_cannot_be_removed(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    rebuild = await rebuilt(index)
    failing(server, "DELETE", "/collections/", done=False)

    await rebuild.swap()

    server.script = None
    await rebuild.discard()
    assert await found(index, "walrus otter") == [entry("otter").chunk.id]
    assert await names(server) == ["nestor-1", "nestor-2"]
    assert await aliased(server) == ["nestor-2"]
    await (await rebuilt(index)).discard()
    assert await names(server) == ["nestor-2"], "what was left goes with the next one"


async def test_a_change_whose_reply_was_lost_is_found_out_not_thrown_away(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    rebuild = await rebuilt(index)
    failing(server, "POST", "/collections/aliases", done=True)
    with pytest.raises(Unavailable):
        await rebuild.swap()
    server.script = None

    await rebuild.discard()  # as the keeper does

    assert await aliased(server) == ["nestor-2"]
    assert await found(index, "walrus otter") == [entry("otter").chunk.id]
    await index.upsert([entry("lynx")])
    async with QdrantServerIndex.connect(server.base_url) as other:
        assert await found(other, "lynx") == [entry("lynx").chunk.id]


async def test_the_next_rebuild_does_not_remove_what_the_alias_names(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    """Another process let its own take over; this one knows the old one still."""
    async with QdrantServerIndex.connect(server.base_url) as other:
        rebuild = await rebuilt(other)
        failing(server, "DELETE", "/collections/", done=False)
        await rebuild.swap()
        server.script = None

        await index.rebuild(None)

        assert await found(other, "otter") == [entry("otter").chunk.id]
        assert "nestor-2" in await names(server)


async def test_nothing_is_thrown_away_while_nobody_tells_what_answers(
    server: QdrantStandIn, index: QdrantServerIndex
) -> None:
    rebuild = await rebuilt(index)
    failing(server, "GET", "/aliases", done=False)
    with pytest.raises(Unavailable):
        await rebuild.discard()
    assert await names(server) == ["nestor-1", "nestor-2"]

    server.script = None
    await rebuild.discard()
    assert await names(server) == ["nestor-1"]
