"""What ``HttpEmbedder`` makes of servers that do not answer as they should.

The server is scripted: a function from the texts of a request to a status and a body.
"""

import asyncio
import base64
import math
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import aiohttp
import pytest
from aiohttp import web

from nestor.backends.embeddings import http
from nestor.backends.embeddings.http import HttpEmbedder
from nestor.backends.openai.resolver import model_session
from nestor.errors import OtherVectors, Unavailable, UpstreamError
from nestor.model.routing import Deployment, Kind, Side

Answer = Callable[[list[str]], tuple[int, Any]]
KEY = "sk-embeddings-0123456789"


def vector(text: str) -> list[float]:
    """Tell texts apart: their length and their first letter."""
    return [float(len(text)), float(ord(text[0])), 1.0]


def good(texts: list[str]) -> tuple[int, Any]:
    data = [{"index": at, "embedding": vector(text)} for at, text in enumerate(texts)]
    return 200, {"object": "list", "data": data, "model": "vectors"}


def data_of(*items: Any) -> Answer:
    return lambda _: (200, {"data": list(items)})


class EmbeddingServer:
    """Scripted; keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = good
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.delay_s = 0.0
        self.most = self._under_way = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/embeddings", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("Authorization"))
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        await asyncio.sleep(self.delay_s)
        self._under_way -= 1
        status, reply = self.answer(body["input"])
        if isinstance(reply, str):
            headers = {"Location": reply} if status == 307 else {}
            return web.Response(status=status, text=reply, headers=headers)
        return web.json_response(reply, status=status)

    @property
    def texts(self) -> list[list[str]]:
        return [body["input"] for body in self.asked]


@pytest.fixture
async def server() -> AsyncIterator[EmbeddingServer]:
    async with EmbeddingServer() as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with model_session() as session:
        yield session


Make = Callable[..., HttpEmbedder]


@pytest.fixture
def make(server: EmbeddingServer, session: aiohttp.ClientSession) -> Make:
    def made(timeout_s: float = 10, **prefixes: str) -> HttpEmbedder:
        deployment = Deployment(
            name="embeddings",
            side=Side.REMOTE,
            model="vectors",
            base_url=server.url,
            kind=Kind.EMBEDDINGS,
            api_key=KEY,
            timeout_s=timeout_s,
        )
        return HttpEmbedder(deployment, session, **prefixes)

    return made


def near(found: list[float], text: str) -> bool:
    """Tell whether it is the vector of ``text``, and of unit length."""
    wanted = vector(text)
    product = sum(a * b for a, b in zip(found, wanted, strict=True))
    unit = math.isclose(math.hypot(*found), 1, abs_tol=1e-6)
    return unit and math.isclose(product, math.hypot(*wanted), rel_tol=1e-6)


async def test_vectors_that_come_in_another_order_are_put_in_order(
    make: Make, server: EmbeddingServer
) -> None:
    def backwards(texts: list[str]) -> tuple[int, Any]:
        _, reply = good(texts)
        return 200, {"data": reply["data"][::-1]}

    server.answer = backwards
    texts = ["a", "bb", "ccc"]
    found = await make().embed(texts)

    assert all(near(one, text) for one, text in zip(found, texts, strict=True))


async def test_vectors_without_an_index_are_taken_as_they_stand(
    make: Make, server: EmbeddingServer
) -> None:
    server.answer = lambda texts: (
        200,
        {"data": [{"embedding": vector(t)} for t in texts]},
    )
    first, second = await make().embed(["a", "bb"])

    assert near(first, "a")
    assert near(second, "bb")


async def test_vectors_in_base64_are_read(make: Make, server: EmbeddingServer) -> None:
    def packed(texts: list[str]) -> tuple[int, Any]:
        raw = [base64.b64encode(struct.pack("<3f", *vector(t))).decode() for t in texts]
        return 200, {"data": [{"index": n, "embedding": r} for n, r in enumerate(raw)]}

    server.answer = packed
    (found,) = await make().embed(["bb"])

    assert near(found, "bb")


NAN = '{"data": [{"index": 0, "embedding": [NaN, 1.0]}]}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (data_of({"index": 0, "embedding": [0.0, 0.0]}), "a vector of zeros"),
        (data_of({"index": 0, "embedding": []}), "without numbers"),
        (data_of({"index": 0, "embedding": [1e308, 1e308, 1e309]}), "is not"),
        (data_of({"index": 0, "embedding": [1.0, None]}), "null"),
        (data_of({"index": 0, "embedding": [[1.0, 2.0]]}), "array"),
        (data_of({"index": 0, "embedding": "!!!"}), "not base64"),
        (data_of({"index": 0, "embedding": "AAAA"}), "not base64"),
        (data_of({"index": 1, "embedding": [1.0]}), "indexes"),
        (data_of(*[{"index": 0, "embedding": [1.0]}] * 2), "2 for 1 texts"),
        (lambda _: (200, NAN), "embeddings: "),
        (lambda _: (200, {"data": []}), "no embeddings"),
        (lambda _: (200, {"error": {"message": "model is loading"}}), "is loading"),
        (lambda _: (200, "<html>"), "not JSON"),
        (lambda _: (503, {"error": {"message": "later"}}), "HTTP 503: later"),
        (lambda _: (401, {"error": {"message": f"bad key {KEY}"}}), "redacted"),
    ],
)
async def test_what_is_no_vector_is_unavailable_and_says_why(
    make: Make, server: EmbeddingServer, answer: Answer, said: str
) -> None:
    server.answer = answer
    embedder = make()
    with pytest.raises(Unavailable) as caught:
        await embedder.embed(["a"])

    assert str(caught.value).startswith("embeddings: ")
    assert said in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.asked) == 1
    server.answer = good
    assert near((await embedder.embed(["a"]))[0], "a")


async def test_a_number_that_is_infinite_is_no_vector(
    make: Make, server: EmbeddingServer
) -> None:
    raw = base64.b64encode(struct.pack("<2f", math.inf, 1.0)).decode()
    for given in (raw, base64.b64encode(struct.pack("<2f", math.nan, 1.0)).decode()):
        server.answer = data_of({"index": 0, "embedding": given})
        with pytest.raises(Unavailable, match="NaN or infinite"):
            await make().embed(["a"])


async def test_vectors_of_two_dimensions_are_refused(
    make: Make, server: EmbeddingServer
) -> None:
    embedder = make()
    await embedder.stamp()
    server.answer = data_of({"index": 0, "embedding": [1.0, 2.0]})
    with pytest.raises(OtherVectors, match=r"vectors@unknown:2, before as .*:3"):
        await embedder.embed(["a"])
    server.answer = data_of(
        {"index": 0, "embedding": [1.0, 2.0]}, {"index": 1, "embedding": [1.0]}
    )
    with pytest.raises(UpstreamError, match="different lengths"):
        await embedder.embed(["a", "b"])
    server.answer = good

    assert len(await embedder.embed(["a"])) == 1


async def test_another_model_behind_the_same_address_is_noticed(
    make: Make, server: EmbeddingServer
) -> None:
    def named(name: str) -> Answer:
        return lambda texts: (200, good(texts)[1] | {"model": name})

    server.answer = named("vectors-2026 01")
    embedder = make()
    assert (await embedder.stamp()).id == "vectors@vectors-2026-01:3"
    server.answer = named("vectors-2026-09")
    with pytest.raises(OtherVectors, match="restart Nestor"):
        await embedder.embed(["a"])
    server.answer = named("vectors-2026 01")
    assert await embedder.embed(["a"])


async def test_prefixes_mark_questions_and_texts_and_are_in_the_stamp(
    make: Make, server: EmbeddingServer
) -> None:
    plain = await make(query_prefix="query: ").stamp()
    embedder = make(query_prefix="query: ", text_prefix="passage: ")
    await embedder.embed(["a"], query=True)
    await embedder.embed(["a"])

    assert server.texts[-2:] == [["query: a"], ["passage: a"]]
    assert plain.revision == "unknown"
    assert (await embedder.stamp()).revision.startswith("unknown+")


async def test_batches_are_bounded_in_number_and_bytes(
    make: Make, server: EmbeddingServer
) -> None:
    texts = [f"{n}" for n in range(150)] + ["é" * 100_000] * 3
    found = await make().embed(texts)

    assert [len(batch) for batch in server.texts] == [64, 64, 23, 1, 1]
    assert all(near(one, text) for one, text in zip(found, texts, strict=True))
    sizes = [sum(len(t.encode()) for t in batch) for batch in server.texts]
    assert max(sizes) <= http.BATCH_BYTES


async def test_a_huge_text_is_cut_before_it_is_sent(
    make: Make, server: EmbeddingServer
) -> None:
    await make().embed(["é" * 3 * http.LONGEST_BYTES])

    ((sent,),) = server.texts
    assert len(sent.encode()) <= http.LONGEST_BYTES


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (413, "Payload Too Large"),
        (400, "This model's maximum context length is 100 tokens"),
        (500, "input is too large to process. increase the physical batch size"),
        (400, "input (402 tokens) is larger than the max context size"),
        (422, "`inputs` must have less than 512 tokens"),
    ],
)
async def test_what_the_server_calls_too_long_is_halved_then_cut(
    make: Make, server: EmbeddingServer, status: int, message: str
) -> None:
    def narrow(texts: list[str]) -> tuple[int, Any]:
        if sum(map(len, texts)) > 100:
            return status, {"error": {"message": message}}
        return good(texts)

    server.answer = narrow
    long = "b" + "x" * 300
    found = await make().embed(["a" * 30, "c" * 30, long, "d" * 30, "e" * 30])

    assert near(found[0], "a" * 30)
    assert near(found[4], "e" * 30)
    (fits,) = {
        t for batch in server.texts for t in batch if t[0] == "b" and len(t) < 101
    }
    assert long.startswith(fits)
    assert len(fits) > 70
    assert near(found[2], fits)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refusal_that_no_cut_helps_ends(
    make: Make, server: EmbeddingServer, status: int
) -> None:
    server.answer = lambda _: (status, {"error": {"message": "no such model"}})
    with pytest.raises(UpstreamError, match="no such model") as caught:
        await make().embed(["a" * 200] * 64)

    assert caught.value.status == status
    assert len(server.asked) < 20


async def test_a_redirect_is_refused_and_the_key_stays(
    make: Make, server: EmbeddingServer
) -> None:
    async with EmbeddingServer() as other:
        server.answer = lambda _: (307, f"{other.url}/embeddings")
        with pytest.raises(UpstreamError, match="redirects are not followed"):
            await make().embed(["a"])

        assert other.asked == []
    assert server.keys == [f"Bearer {KEY}"]


async def test_a_server_that_says_nothing_is_left_in_time(
    make: Make, server: EmbeddingServer
) -> None:
    server.delay_s = 30
    async with asyncio.timeout(10):
        with pytest.raises(UpstreamError, match=r"said nothing for 0.2 s"):
            await make(timeout_s=0.2).embed(["a"])


async def test_few_requests_are_under_way_at_once(
    make: Make, server: EmbeddingServer
) -> None:
    embedder = make()
    server.delay_s = 0.05
    await asyncio.gather(*(embedder.embed(["a"], query=bool(n % 2)) for n in range(40)))

    assert len(server.asked) == 40
    assert server.most == http.QUESTIONS_AT_ONCE + http.BATCHES_AT_ONCE
