"""Answers to requests that were asked before, and of several at once only one search."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from nestor.model.health import Dependency, HealthStatus
from nestor.model.knowledge import ContextRequest, ContextResult
from nestor.ports.answer_cache import AnswerCache

Make = Callable[[], Awaitable[tuple[ContextResult, bool]]]
TTL_S = 3600.0
MAX_BYTES = 64 * 1024 * 1024
_ITEM_BYTES = 1_500
"""What an item takes beside its text: ids, source, provenance."""
_encoder = msgspec.json.Encoder()


def cache_key(request: ContextRequest, version: int, space: str = "") -> str:
    """Digest what the answer depends on; the same in every process.

    ``version`` is the store's: any change of content makes all older keys unreachable.
    ``space``: whose knowledge base it is, where several share one cache.
    """
    collections, projects = request.collections, request.projects
    canonical = _encoder.encode(
        [
            space,
            version,
            request.query,
            request.limit,
            request.token_budget,
            None if collections is None else sorted({str(c) for c in collections}),
            None if projects is None else sorted(set(projects)),
            request.path_prefix,
            None if request.metadata is None else sorted(request.metadata.items()),
        ]
    )
    return hashlib.blake2b(canonical, digest_size=32).hexdigest()


class _Kept(NamedTuple):
    until: float
    size: int
    result: ContextResult


class _Shared(msgspec.Struct, frozen=True):
    """As it stands in the shared cache; ``until``: seconds since 1970."""

    until: float
    result: ContextResult


_decoder = msgspec.json.Decoder(_Shared)


class ContextCache:
    """Keeps results for an hour at most, ``size`` of them, within ``max_bytes``.

    ``shared``: what other processes found, asked where this one has nothing. Its loss
    costs searches, no answers.
    """

    def __init__(
        self,
        size: int,
        *,
        max_bytes: int = MAX_BYTES,
        ttl_s: float = TTL_S,
        shared: AnswerCache | None = None,
        timer: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``size`` 0 keeps nothing."""
        self._size = size
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._shared = shared
        self._timer = timer
        self._wall_clock = wall_clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._flights: dict[str, asyncio.Task[tuple[ContextResult, bool]]] = {}
        self._seen: list[Dependency] = []

    @property
    def shared_is_away(self) -> bool:
        """Tell whether the shared cache did not answer when ``look`` asked it last."""
        return any(one.status is not HealthStatus.HEALTHY for one in self._seen)

    async def look(self) -> None:
        """Ask the shared cache whether it is there."""
        if self._shared is not None:
            self._seen = await self._shared.dependencies()

    def dependencies(self) -> list[Dependency]:
        """Report what ``look`` saw last."""
        return self._seen

    async def get(self, key: str, make: Make) -> tuple[ContextResult, bool]:
        """Return the result and whether it was kept from before.

        ``make`` returns the result and whether it may be kept. It runs once for all who
        ask at the same time, and on, when the first of them stops waiting.
        """
        kept = self._kept.get(key)
        if kept is not None:
            if kept.until > self._timer():
                self._kept.move_to_end(key)
                return kept.result, True
            self._drop(key)
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._fly(key, make))
            flight.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._flights[key] = flight
        return await asyncio.shield(flight)

    async def _fly(self, key: str, make: Make) -> tuple[ContextResult, bool]:
        try:
            found = await self._elsewhere(key)
            if found is not None:
                self._keep(key, found.result, found.until - self._wall_clock())
                return found.result, True
            result, keep = await make()
            if keep and self._size > 0:
                self._keep(key, result, self._ttl_s)
                if self._shared is not None:
                    until = self._wall_clock() + self._ttl_s
                    body = _encoder.encode(_Shared(until, result))
                    await self._shared.put(_name(key), body, ttl_s=self._ttl_s)
        finally:
            del self._flights[key]
        return result, False

    async def _elsewhere(self, key: str) -> _Shared | None:
        if self._shared is None or self._size == 0:
            return None
        body = await self._shared.get(_name(key))
        if body is None:
            return None
        try:
            found = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None  # somebody else's bytes under our name
        return found if found.until > self._wall_clock() else None

    def _keep(self, key: str, result: ContextResult, ttl_s: float) -> None:
        size = sum(_ITEM_BYTES + 2 * len(item.text) for item in result.items) + 500
        if size > self._max_bytes:
            return
        self._drop(key)
        self._kept[key] = _Kept(self._timer() + min(ttl_s, self._ttl_s), size, result)
        self._bytes += size
        while len(self._kept) > self._size or self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: str) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._bytes -= kept.size


def _name(key: str) -> str:
    return f"context:{key}"
