"""Turns at the database for who looks a secret up: guesses wait in a lane of their own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nestor.errors import Unavailable

LOOKUPS = 2
"""Looked up at one time, in each lane. Guesses must leave the database to real work."""
LOOKUP_WAIT_S = 5.0
"""Longest wait for a turn; who waits longer is told to come back."""


class Lookups:
    """Two lanes: a flood of guesses fills its own, not that of secrets known to be good."""

    def __init__(self, what: str) -> None:
        """``what`` is looked up, as people are told: "keys"."""
        self._what = what
        self._guesses = asyncio.Semaphore(LOOKUPS)
        self._known = asyncio.Semaphore(LOOKUPS)

    @asynccontextmanager
    async def turn(self, *, known: bool) -> AsyncIterator[None]:
        """Hold a turn while the block runs. Raises ``Unavailable``."""
        lane = self._known if known else self._guesses
        try:
            async with asyncio.timeout(LOOKUP_WAIT_S):
                await lane.acquire()
        except TimeoutError:
            message = f"too many unknown {self._what} are being looked up; try again"
            raise Unavailable(message) from None
        try:
            yield
        finally:
            lane.release()
