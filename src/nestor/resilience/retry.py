"""Whether and when to ask the same again.

Full jitter: each wait is drawn between nothing and a bound that doubles with each try, so
that callers who failed together do not come back together.
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable

from nestor.errors import CircuitOpen, Unavailable, UpstreamError, UpstreamTimeout

_WORTH_IT = frozenset({408, 409, 429})
_SERVER_ERRORS = range(500, 600)


def may_retry(error: BaseException) -> bool:
    """Tell whether the same request, sent again, may fare better.

    So it is when nobody could be reached, when the answer broke before anything of it
    was handed on, and for 408, 409, 429 and 5xx. Another 4xx is the request's own fault,
    a wait that was too long would only get longer, and behind an open breaker nobody is
    asked.
    """
    if isinstance(error, CircuitOpen | UpstreamTimeout):
        return False
    if isinstance(error, UpstreamError) and error.status is not None:
        return error.status in _WORTH_IT or error.status in _SERVER_ERRORS
    return isinstance(error, Unavailable)


class Backoff:
    """How often, and with which waits (seconds).

    ``retries`` after the first try. ``base_s`` bounds the first wait, ``cap_s`` each.
    What was asked may name a wait of its own (Retry-After): up to ``longest_wait_s`` it
    is waited at least, beyond that there is no point in waiting.
    """

    def __init__(
        self,
        *,
        retries: int = 2,
        base_s: float = 0.25,
        cap_s: float = 4.0,
        longest_wait_s: float = 10.0,
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.retries = retries
        self._base_s = base_s
        self._cap_s = cap_s
        self._longest_wait_s = longest_wait_s
        self._draw = draw
        self.sleep = sleep
        """Waits; cancelling its caller ends it at once."""

    def delay_s(
        self, tries: int, *, retry_after_s: float | None = None
    ) -> float | None:
        """Return how long to wait after the ``tries``-th failure (from 1); None: give up."""
        if tries > self.retries:
            return None
        bound = min(self._cap_s, self._base_s * 2.0 ** min(tries - 1, 64))
        jitter = self._draw() * bound
        if retry_after_s is None or not retry_after_s > 0:
            return jitter
        if math.isinf(retry_after_s) or retry_after_s > self._longest_wait_s:
            return None
        return retry_after_s + jitter
