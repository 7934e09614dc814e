"""Answers to requests that were asked before, and of several at once only one search."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec

from nestor.model.knowledge import ContextRequest, ContextResult

Make = Callable[[], Awaitable[tuple[ContextResult, bool]]]


def cache_key(request: ContextRequest, version: int) -> str:
    """Digest what the answer depends on; the same in every process.

    ``version`` is the store's: any change of content makes all older keys unreachable.
    """
    collections = request.collections
    canonical = msgspec.json.encode(
        [
            version,
            request.query,
            request.limit,
            request.token_budget,
            None if collections is None else sorted({str(c) for c in collections}),
        ]
    )
    return hashlib.blake2b(canonical, digest_size=32).hexdigest()


class ContextCache:
    """Keeps the ``size`` most recently used results; 0 keeps none."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[str, ContextResult] = OrderedDict()
        self._flights: dict[str, asyncio.Task[ContextResult]] = {}

    async def get(self, key: str, make: Make) -> tuple[ContextResult, bool]:
        """Return the result and whether it was kept from before.

        ``make`` returns the result and whether it may be kept. It runs once for all who
        ask at the same time, and on, when the first of them stops waiting.
        """
        if key in self._results:
            self._results.move_to_end(key)
            return self._results[key], True
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._fly(key, make))
            flight.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._flights[key] = flight
        return await asyncio.shield(flight), False

    async def _fly(self, key: str, make: Make) -> ContextResult:
        try:
            result, keep = await make()
        finally:
            del self._flights[key]
        if keep and self._size > 0:
            self._results[key] = result
            while len(self._results) > self._size:
                self._results.popitem(last=False)
        return result
