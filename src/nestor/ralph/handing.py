"""Hand a task to the engine again, although its last attempt may be about to end still."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from nestor.errors import Conflict

T = TypeVar("T")
_TRIES = 50
_PAUSE_S = 0.1


async def once_free(hand_over: Callable[[], Awaitable[T]]) -> T:
    """Await ``hand_over()``, for 5 s again while the engine says ``Conflict``.

    A task is said to have ended, or to wait for a person, a moment before its workflow
    has ended; who asks in that moment is not to be refused.
    """
    for _ in range(_TRIES - 1):
        try:
            return await hand_over()
        except Conflict:
            await asyncio.sleep(_PAUSE_S)
    return await hand_over()
