"""What is asked of a Qdrant server, with time limits; its errors become ours here.

An alias names the collection that answers; which one that is changes in one request.
"""

import asyncio
import re
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import httpx
import msgspec
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from nestor.backends.qdrant import points
from nestor.backends.qdrant.points import Made
from nestor.errors import Unavailable

T = TypeVar("T")
TIMEOUT_S = 5.0
"""The longest that anything waits for one request."""
_OLDEST = (1, 19)
"""The first that filters by the beginning of a text."""
_METADATA = "nestor"
_CONNECTIONS = 16
_NOT_FOUND = 404
_REFUSED = (401, 403)
_REDIRECTS = range(300, 400)
_SHOWN = 200


class Gone(Exception):  # noqa: N818 - says what happened, as our errors do
    """The collection does not exist; never leaves this package."""


class Requests:
    """One Qdrant server. Every call raises ``Unavailable``, some ``Gone``."""

    def __init__(self, client: AsyncQdrantClient, alias: str) -> None:
        self.client = client
        self.alias = alias
        self._last = 0
        self._name = re.compile(rf"{re.escape(alias)}-([0-9]{{1,18}})")

    async def ask(self, question: Awaitable[T]) -> T:
        """Wait for one request, for ``TIMEOUT_S`` at most."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await question
        except UnexpectedResponse as error:
            if error.status_code == _NOT_FOUND:
                raise Gone(_said(error)) from error
            raise Unavailable(_refusal(error)) from error
        except (ApiException, QdrantException, httpx.HTTPError, OSError) as error:
            raise Unavailable(_no_answer(error)) from error
        except (ValueError, AssertionError) as error:
            # The in-memory mode says so; of a server it is an answer without a result.
            if "not found" in str(error):
                raise Gone(str(error)) from error
            raise Unavailable(_no_answer(error)) from error

    async def refuse_older(self) -> str:
        """Return the server's version; ``Unavailable`` for one that cannot do what is needed."""
        try:
            version = (await self.ask(self.client.info())).version
        except Gone as error:
            raise Unavailable("NESTOR_QDRANT_URL: no Qdrant answers there") from error
        numbers = [int(n) for n in version.split("-")[0].split(".")[:2] if n.isdigit()]
        if tuple(numbers) < _OLDEST:
            needed = ".".join(map(str, _OLDEST))
            message = f"the Qdrant server is version {version[:_SHOWN]}; it must be {needed} or newer"
            raise Unavailable(message)
        return version

    async def current(self) -> tuple[str, Made | None] | None:
        """Return which collection answers and how it was made; None without one.

        How it was made is None for a collection that is not ours.
        """
        name = await self.answering()
        if name is None:
            return None
        info = await self.ask(self.client.get_collection(name))
        try:
            written = (info.config.metadata or {})[_METADATA]
            return name, msgspec.convert(written, Made)
        except (KeyError, msgspec.ValidationError):
            return name, None

    async def answering(self) -> str | None:
        """Return which collection the alias names, ours or not; None: there is no alias."""
        found = await self.ask(self.client.get_aliases())
        names = [a.collection_name for a in found.aliases if a.alias_name == self.alias]
        return names[0] if names else None

    async def create(self, made: Made) -> str:
        """Make an empty collection that nobody sees yet; returns its name."""
        numbers = [int(match[1]) for match in await self._ours()]
        # Never one of before: who still holds that name would write into this one.
        self._last = max(self._last, *numbers, 0) + 1
        name = f"{self.alias}-{self._last}"
        dense = {}
        if made.stamp is not None:
            dense[points.DENSE] = models.VectorParams(
                size=made.stamp.dimension, distance=models.Distance.COSINE
            )
        sparse = models.SparseVectorParams(modifier=models.Modifier.IDF)
        await self._found(
            self.client.create_collection(
                name,
                vectors_config=dense,
                sparse_vectors_config={points.BM25: sparse},
                metadata={_METADATA: msgspec.to_builtins(made)},
            )
        )
        for field, by_beginning in points.FIELDS.items():
            schema = models.KeywordIndexParams(
                type=models.KeywordIndexType.KEYWORD, prefix=by_beginning
            )
            await self._found(
                self.client.create_payload_index(name, field, field_schema=schema)
            )
        return name

    async def write_down(self, name: str, made: Made) -> None:
        """Keep how a collection is made, beside it."""
        await self.ask(
            self.client.update_collection(
                name, metadata={_METADATA: msgspec.to_builtins(made)}
            )
        )

    async def point_at(self, name: str) -> None:
        """Let a collection answer from now on, in one request; the others are removed.

        After ``Unavailable`` it may answer all the same: only the reply may be lost.
        """
        changes: list[Any] = []
        if await self.answering() is not None:
            gone = models.DeleteAlias(alias_name=self.alias)
            changes.append(models.DeleteAliasOperation(delete_alias=gone))
        new = models.CreateAlias(collection_name=name, alias_name=self.alias)
        changes.append(models.CreateAliasOperation(create_alias=new))
        await self._found(
            self.client.update_collection_aliases(change_aliases_operations=changes)
        )
        with suppress(Unavailable):  # it answers; what is left goes with the next one
            await self.remove_others(name)

    async def remove_others(self, keep: str | None) -> None:
        """Remove the collections of ours that neither answer nor are ``keep``."""
        kept = {keep, await self.answering()}
        for match in await self._ours():
            if match[0] not in kept:
                await self.remove(match[0])

    async def remove(self, name: str) -> None:
        """Remove a collection; one that is gone is fine."""
        with suppress(Gone):
            await self.ask(self.client.delete_collection(name))

    async def is_ready(self, name: str) -> bool:
        """Tell whether the server has built what it builds in the background."""
        info = await self.ask(self.client.get_collection(name))
        return info.status is models.CollectionStatus.GREEN

    async def _ours(self) -> list[re.Match[str]]:
        found = await self._found(self.client.get_collections())
        names = [one.name for one in found.collections]
        return [match for name in names if (match := self._name.fullmatch(name))]

    async def _found(self, question: Awaitable[T]) -> T:
        try:
            return await self.ask(question)
        except Gone as error:
            message = f"the Qdrant server does not find what was just there: {error}"
            raise Unavailable(message) from error


def connected(url: str, api_key: str | None) -> AsyncQdrantClient:
    """Return a client of the server at ``url``; nothing is asked yet.

    The key goes to that address and no other: redirects are not followed, no proxy of the
    environment is used.
    """
    return AsyncQdrantClient(
        url=url,
        headers={"api-key": api_key} if api_key else None,
        timeout=round(TIMEOUT_S),
        check_compatibility=False,
        limits=httpx.Limits(max_connections=_CONNECTIONS),
        trust_env=False,
        follow_redirects=False,
    )


async def look(url: str, api_key: str | None) -> str:
    """Ask a server once; returns its version. Raises ``Unavailable`` that says why not."""
    client = connected(url, api_key)
    requests = Requests(client, "nestor")
    try:
        version = await requests.refuse_older()
        # The version is told without a key, the list of aliases is not.
        await requests.ask(client.get_aliases())
    except Gone as error:
        raise Unavailable("NESTOR_QDRANT_URL: no Qdrant answers there") from error
    finally:
        await client.close()
    return version


def condition(where: Sequence[points.Condition]) -> models.Filter | None:
    """Return a filter; None when everything may be found."""
    found: list[Any] = []
    for one in where:
        match: Any = models.MatchPrefix(prefix=one.prefix or "")
        if one.any_of is not None:
            match = models.MatchAny(any=one.any_of)
        found.append(models.FieldCondition(key=one.field, match=match))
    return models.Filter(must=found) if found else None


def _refusal(error: UnexpectedResponse) -> str:
    status = error.status_code
    if status in _REFUSED:
        return f"the Qdrant server refuses NESTOR_QDRANT_API_KEY ({status})"
    if status in _REDIRECTS:
        return (
            f"the Qdrant server answers {status}, a redirect, which is not followed;"
            " write the address it leads to in NESTOR_QDRANT_URL"
        )
    return f"the Qdrant server answers {status}: {_said(error)}"


def _said(error: UnexpectedResponse) -> str:
    return " ".join(error.content.decode("utf-8", "replace").split())[:_SHOWN]


def _no_answer(error: Exception) -> str:
    cause = getattr(error, "source", error)
    if isinstance(cause, (TimeoutError, httpx.TimeoutException)):
        return f"the Qdrant server did not answer within {TIMEOUT_S:g} s"
    said = " ".join(str(cause).split())[:_SHOWN] or type(cause).__name__
    return f"the Qdrant server does not answer: {said}"
