"""Embeddings of any OpenAI-compatible server."""

import asyncio
import base64
import binascii
import hashlib
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence

import aiohttp
import msgspec

from nestor.backends.embeddings.vectors import unit
from nestor.backends.model_http.border import say
from nestor.backends.openai.client import OpenAIClient
from nestor.errors import OtherVectors, UpstreamError
from nestor.model.knowledge import EmbeddingStamp
from nestor.model.routing import Deployment

BATCH_TEXTS = 64
BATCH_BYTES = 256 * 1024
"""Of one request, in UTF-8; a longer text goes alone."""
LONGEST_BYTES = 1024 * 1024
"""Of one text; what is longer is cut before anybody is asked."""
QUESTIONS_AT_ONCE, BATCHES_AT_ONCE = 4, 2
"""Requests under way. llama.cpp has six threads for connections by default, and a kept one
holds its thread: a seventh would wait for seconds."""
UNKNOWN = "unknown"
_PROBE = "How many numbers has a vector?"
_KEEP = 0.7
"""Of a text that is too long for the model, this part is tried next."""
_LEAST_CHARACTERS = 16
_NAME_CHARACTERS = 120
_TOO_LARGE, _MAY_BE_LENGTH = 413, frozenset({400, 422})
_LENGTH = re.compile(
    r"too (?:long|large|many)|max\w* (?:context|allowed|batch|length|number|sequence)|"
    r"context (?:length|size|window)|exceed|(?:less|fewer) than \d+|token limit|"
    r"batch size|(?:larger|longer|more|greater) than",
    re.IGNORECASE,
)


class _Item(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Reply(msgspec.Struct):
    data: list[_Item]
    model: object = None


class HttpEmbedder:
    """Implements ``ports.embedder.Embedder`` with ``POST …/embeddings``.

    ``deployment.base_url`` ends in ``/v1``; the key goes there and nowhere else, redirects
    are refused, ``deployment.timeout_s`` bounds each request. Errors of the server are
    ``Unavailable``; nothing is asked again but a question that a closing connection lost.
    The session stays the giver's (``openai.resolver.model_session``).
    """

    def __init__(
        self,
        deployment: Deployment,
        session: aiohttp.ClientSession,
        *,
        query_prefix: str = "",
        text_prefix: str = "",
    ) -> None:
        """``query_prefix``, ``text_prefix``: put before questions, and before the rest."""
        self._deployment = deployment
        self._client = OpenAIClient(deployment, session)
        self._query_prefix = query_prefix
        self._text_prefix = text_prefix
        self._stamp: EmbeddingStamp | None = None
        self._questions = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._batches = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def stamp(self) -> EmbeddingStamp:
        """Tell what the vectors are made by; the first time, a short text is sent."""
        if self._stamp is None:
            await self.embed([_PROBE], query=True)
        assert self._stamp is not None
        return self._stamp

    async def embed(
        self, texts: Sequence[str], *, query: bool = False
    ) -> list[list[float]]:
        """Return vectors of unit length, in order; one request for at most 64 texts.

        A request that is refused as too long is made in halves; a single text is cut.
        """
        prefix = self._query_prefix if query else self._text_prefix
        room = self._questions if query else self._batches
        found: list[list[float]] = []
        for batch in _batches(_sendable(prefix + text) for text in texts):
            async with room:
                found += await self._halving(batch)
        return found

    async def close(self) -> None:
        """Nothing of its own to let go of."""

    async def _halving(self, texts: list[str]) -> list[list[float]]:
        while True:
            try:
                return await self._embedded(texts)
            except UpstreamError as error:
                if len(texts) > 1 and _may_fit_in_parts(error):
                    middle = len(texts) // 2
                    first = await self._halving(texts[:middle])
                    return first + await self._halving(texts[middle:])
                kept = int(len(texts[0]) * _KEEP)
                alone_too_long = len(texts) == 1 and _is_length(error)
                if not alone_too_long or kept < _LEAST_CHARACTERS:
                    raise
                texts = [texts[0][:kept]]

    async def _embedded(self, texts: list[str]) -> list[list[float]]:
        request = {"input": texts, "encoding_format": "float"}
        try:
            reply = await self._client.embed(request)
        except UpstreamError as error:
            if not error.stale:
                raise
            reply = await self._client.embed(request)  # nobody pays twice for a vector
        # Numbers as text: megabytes of them, which the loop should not read.
        vectors, model = await asyncio.to_thread(self._read, reply.raw, len(texts))
        self._hold(len(vectors[0]), model)
        return vectors

    def _read(self, raw: bytes, wanted: int) -> tuple[list[list[float]], object]:
        try:
            reply = msgspec.json.decode(raw, type=_Reply)
            rows = _in_order(reply.data, wanted)
            vectors = [unit(_numbers(item.embedding)) for item in rows]
            if len({len(vector) for vector in vectors}) != 1:
                raise ValueError("vectors of different lengths")  # noqa: TRY301 - one place says it
        except (ValueError, msgspec.DecodeError, RecursionError) as error:
            message = f"the answer is not one vector for each text: {error}"
            raise UpstreamError(say(self._deployment, message)) from error
        return vectors, reply.model

    def _hold(self, dimension: int, model: object) -> None:
        """Learn what answers, or raise ``OtherVectors`` when it is not what did before."""
        asked = self._deployment.model
        named = isinstance(model, str) and model not in {"", asked}
        revision = _word(str(model)) if named else UNKNOWN
        if self._text_prefix:
            # Another prefix makes other vectors of the same text.
            digest = hashlib.sha256(self._text_prefix.encode()).hexdigest()
            revision += f"+{digest[:8]}"
        found = EmbeddingStamp(model=asked, revision=revision, dimension=dimension)
        if self._stamp is None:
            self._stamp = found
        if found != self._stamp:
            message = (
                f"the server answered as {found.id}, before as {self._stamp.id};"
                " give it back its model, or restart Nestor to embed everything again"
            )
            raise OtherVectors(say(self._deployment, message))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    held = 0
    for text in texts:
        size = len(text.encode())
        if batch and (len(batch) == BATCH_TEXTS or held + size > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(text)
        held += size
    if batch:
        yield batch


def _sendable(text: str) -> str:
    """Return the text as UTF-8 can carry it; a blank one as a blank, as some refuse none."""
    raw = text[:LONGEST_BYTES].encode(errors="replace")[:LONGEST_BYTES]
    return raw.decode(errors="ignore") or " "


def _may_fit_in_parts(error: UpstreamError) -> bool:
    return error.status in _MAY_BE_LENGTH or _is_length(error)


def _is_length(error: UpstreamError) -> bool:
    """Tell whether a refusal speaks of length; llama.cpp says so with status 500."""
    if error.status == _TOO_LARGE:
        return True
    known = error.status in {*_MAY_BE_LENGTH, 500}
    return known and _LENGTH.search(str(error)) is not None


def _in_order(items: list[_Item], wanted: int) -> list[_Item]:
    """Return them as their ``index`` says; as they stand where no item has one."""
    if len(items) != wanted:
        raise ValueError(f"{len(items)} for {wanted} texts")
    if all(item.index is None for item in items):
        return items
    placed = {item.index: item for item in items}
    if placed.keys() != set(range(wanted)):
        raise ValueError("its indexes are not those of the texts")
    return [placed[at] for at in range(wanted)]


def _numbers(given: list[float] | str) -> Sequence[float]:
    """Return a vector as numbers; text is base64 of little-endian 32-bit floats."""
    if not isinstance(given, str):
        return given
    found = array("f")
    try:
        found.frombytes(base64.b64decode(given, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError("text that is not base64 of 32-bit numbers") from error
    if sys.byteorder == "big":
        found.byteswap()
    return found


def _word(name: str) -> str:
    """Return a server's name for its model as one printable word."""
    kept = "".join(sign if sign.isprintable() else "?" for sign in name)
    return "-".join(kept.split())[:_NAME_CHARACTERS] or UNKNOWN
