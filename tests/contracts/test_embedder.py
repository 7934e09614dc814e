"""What every embedder promises, on an ONNX model in this process and on llama.cpp.

Both are given the same random weights (``tests/servers/tiny_bert.py``).
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from tests.servers.tiny_bert import (
    API_KEY,
    HIDDEN,
    LlamaEmbeddings,
    make_tiny_bert_gguf,
    make_tiny_folder,
)

from nestor.backends.embeddings.choose import embedder_of
from nestor.backends.openai.resolver import model_session
from nestor.errors import Unavailable
from nestor.ports.embedder import Embedder

TEXTS = [
    "the cat sleeps on the sofa",
    "a dog runs; it doesn't stop",
    "error in function foo(bar): 1 + 2 == 3",
    "x",
    *(f"the {'cat dog ' * (n % 9)}number {n}" for n in range(70)),
]
ODD = [
    "",
    " \n\t ",
    "\0a\x01\x7f\x9f",
    "\ud800 half a pair",
    "\u202eright to left\u2066",
    "naïve café, 日本語, 🤷\u200d♀️",
    "a" * 50_000,
    "\ufeff\ufffd\ufffe",
]


@dataclass
class Subject:
    """One backend: how to make an embedder of it, and how to take its model away."""

    name: str
    home: Path
    session: aiohttp.ClientSession
    server: LlamaEmbeddings | None = None

    def open(self) -> Embedder:
        made = embedder_of(
            "minilm" if self.server is None else "tiny-bert",
            base_url=None if self.server is None else self.server.base_url,
            api_key=None if self.server is None else API_KEY,
            home=self.home,
            session=self.session,
        )
        assert made is not None
        return made

    def take_away(self) -> None:
        if self.server is None:
            self._folder.rename(self.home / "elsewhere")
        else:
            self.server.stop()

    def give_back(self) -> None:
        if self.server is None:
            (self.home / "elsewhere").rename(self._folder)
        else:
            self.server.start()

    @property
    def _folder(self) -> Path:
        return self.home / "models" / "minilm"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert_gguf(tmp_path_factory.mktemp("gguf") / "tiny-bert.gguf")


@pytest.fixture(scope="module")
def llama(gguf: Path) -> Iterator[LlamaEmbeddings]:
    server = LlamaEmbeddings(gguf).start()
    yield server
    server.stop()


@pytest.fixture(params=["onnx", "llama.cpp"])
async def subject(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Subject]:
    server = None
    if request.param == "llama.cpp":
        server = request.getfixturevalue("llama")
    else:
        make_tiny_folder(tmp_path / "models" / "minilm")
    async with model_session() as session:
        yield Subject(request.param, tmp_path, session, server)


@pytest.fixture
async def embedder(subject: Subject) -> AsyncIterator[Embedder]:
    made = subject.open()
    yield made
    await made.close()


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_a_vector_has_unit_length_and_the_dimension_of_the_stamp(
    embedder: Embedder,
) -> None:
    vectors = await embedder.embed(TEXTS)
    stamp = await embedder.stamp()

    assert stamp.dimension == HIDDEN
    assert [len(vector) for vector in vectors] == [HIDDEN] * len(TEXTS)
    for vector in vectors:
        assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-6)
        assert all(isinstance(number, float) for number in vector)


async def test_texts_get_the_vectors_they_get_one_by_one_and_in_their_order(
    embedder: Embedder,
) -> None:
    together = await embedder.embed(TEXTS)
    alone = [(await embedder.embed([text]))[0] for text in TEXTS]
    backwards = await embedder.embed(TEXTS[::-1])

    for one, two, three in zip(together, alone, backwards[::-1], strict=True):
        assert cosine(one, two) > 0.999
        assert cosine(one, three) > 0.999
    assert cosine(together[0], together[2]) < 0.99


async def test_no_texts_are_no_vectors(embedder: Embedder) -> None:
    assert await embedder.embed([]) == []
    assert await embedder.embed((), query=True) == []


async def test_a_text_longer_than_the_model_reads_is_cut_at_its_end(
    embedder: Embedder,
) -> None:
    beginning = "the cat sleeps on the sofa . "
    long = beginning * 400
    cut, short, again = await embedder.embed([long, beginning, long])

    assert cosine(cut, again) > 0.999
    assert cosine(cut, (await embedder.embed([long]))[0]) > 0.999
    # As much as the model reads of it, not the rest, and more than its first words.
    other_end = beginning * 399 + "dog runs error function 1 2 3"
    assert cosine(cut, (await embedder.embed([other_end]))[0]) > 0.999
    assert cosine(cut, short) < 0.9999


async def test_any_text_has_a_vector(embedder: Embedder) -> None:
    together = await embedder.embed([*ODD, TEXTS[0]])
    alone = [(await embedder.embed([text]))[0] for text in [*ODD, TEXTS[0]]]

    for one, two in zip(together, alone, strict=True):
        assert math.isclose(math.hypot(*one), 1, abs_tol=1e-6)
        assert cosine(one, two) > 0.999


async def test_a_question_is_compared_with_texts(embedder: Embedder) -> None:
    (question,) = await embedder.embed([TEXTS[0]], query=True)
    (text,) = await embedder.embed([TEXTS[0]])

    assert cosine(question, text) > 0.999  # this model marks none


async def test_many_calls_at_once_each_get_their_own(embedder: Embedder) -> None:
    wanted = await embedder.embed(TEXTS[:40])
    calls = [
        embedder.embed([text, TEXTS[0]], query=bool(at % 2))
        for at, text in enumerate(TEXTS[:40])
    ]

    for vector, (mine, first) in zip(wanted, await asyncio.gather(*calls), strict=True):
        assert cosine(vector, mine) > 0.999
        assert cosine(wanted[0], first) > 0.999


async def test_without_its_model_it_is_unavailable_and_recovers_by_itself(
    subject: Subject, gguf: Path
) -> None:
    own = None
    if subject.server is not None:  # the others go on with theirs
        own = subject.server = LlamaEmbeddings(gguf).start()
    subject.take_away()
    embedder = subject.open()
    for call in (embedder.embed(TEXTS), embedder.embed(["x"], query=True)):
        with pytest.raises(Unavailable, match=r"^embeddings: "):
            await call
    with pytest.raises(Unavailable, match=r"^embeddings: "):
        await embedder.stamp()
    await asyncio.to_thread(subject.give_back)

    assert len(await embedder.embed(["x"])) == 1
    assert (await embedder.stamp()).dimension == HIDDEN
    await embedder.close()
    if own is not None:
        own.stop()


async def test_the_stamp_is_the_same_after_a_restart(subject: Subject) -> None:
    first = subject.open()
    before = await first.stamp()
    vectors = await first.embed(TEXTS[:3])
    await first.close()
    again = subject.open()
    after = await again.embed(TEXTS[:3])

    assert await again.stamp() == before
    assert " " not in before.id
    for one, two in zip(vectors, after, strict=True):
        assert cosine(one, two) > 0.999
    await again.close()


async def test_the_event_loop_goes_on_while_many_texts_are_embedded(
    subject: Subject,
) -> None:
    embedder = subject.open()  # loading is in the time as well
    longest = 0.0
    texts = [f"{'the cat sleeps on the sofa ' * 3}{n}" for n in range(500)]
    work = asyncio.create_task(embedder.embed(texts))
    while not work.done():
        before = time.monotonic()
        await asyncio.sleep(0.005)
        longest = max(longest, time.monotonic() - before - 0.005)

    assert len(await work) == 500
    assert longest < 0.3
    await embedder.close()


async def test_a_question_does_not_wait_for_a_large_batch(embedder: Embedder) -> None:
    await embedder.stamp()
    batch = asyncio.create_task(embedder.embed(["the cat runs " * 20] * 200_000))
    await asyncio.sleep(0.2)
    async with asyncio.timeout(5):
        assert await embedder.embed(["where is the cat?"], query=True)

    assert not batch.done()
    batch.cancel()
    await asyncio.gather(batch, return_exceptions=True)


async def test_what_a_cancelled_call_wanted_is_not_made(embedder: Embedder) -> None:
    await embedder.stamp()
    batch = asyncio.create_task(embedder.embed(["the dog runs " * 20] * 200_000))
    await asyncio.sleep(0.2)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch

    async with asyncio.timeout(5):
        assert len(await embedder.embed(TEXTS[:5])) == 5


async def test_closing_ends_what_it_started(subject: Subject) -> None:
    before = set(threading.enumerate())
    embedder = subject.open()
    await embedder.embed(TEXTS)
    await embedder.close()
    await embedder.close()

    left = set(threading.enumerate()) - before
    assert [t for t in left if t.name.startswith("embeddings")] == []


async def test_two_engines_agree_on_the_same_weights(
    llama: LlamaEmbeddings, tmp_path: Path
) -> None:
    make_tiny_folder(tmp_path / "models" / "minilm", int8=False)
    async with model_session() as session:
        mine = Subject("onnx", tmp_path, session).open()
        theirs = Subject("llama.cpp", tmp_path, session, llama).open()
        texts = [*TEXTS[:20], "", "Hello World, naïve café 日本", "a-b_c (d) [e] {f}"]
        pairs = zip(await mine.embed(texts), await theirs.embed(texts), strict=True)
        nearness = [cosine(one, two) for one, two in pairs]
        await mine.close()
        await theirs.close()

    assert min(nearness) > 0.9999
