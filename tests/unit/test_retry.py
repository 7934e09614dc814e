"""What is asked again, and after which waits."""

import asyncio
import random

import pytest

from nestor.errors import (
    BudgetExceeded,
    CircuitOpen,
    InvalidInput,
    RateLimited,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from nestor.resilience.retry import Backoff, may_retry


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Unavailable("cannot connect"), True),
        (UpstreamError("cut before the first token"), True),
        *((UpstreamError("x", status=s), True) for s in (408, 409, 429, 500, 503, 529)),
        *(
            (UpstreamError("x", status=s), False)
            for s in (302, 400, 401, 403, 404, 422)
        ),
        (UpstreamTimeout("too slow"), False),
        (CircuitOpen("held back", retry_after_s=1), False),
        (RateLimited("ours", retry_after_s=1), False),
        (BudgetExceeded("spent"), False),
        (InvalidInput("x"), False),
        (ValueError("a bug"), False),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'status', '')}",
)
def test_only_what_may_pass_is_asked_again(error: Exception, again: bool) -> None:
    assert may_retry(error) is again


def test_waits_are_drawn_below_a_bound_that_doubles_up_to_a_cap() -> None:
    longest = Backoff(retries=9, base_s=0.5, cap_s=4, draw=lambda: 1.0)
    assert [longest.delay_s(n) for n in range(1, 7)] == [0.5, 1, 2, 4, 4, 4]
    shortest = Backoff(retries=9, base_s=0.5, cap_s=4, draw=lambda: 0.0)
    assert [shortest.delay_s(n) for n in range(1, 7)] == [0] * 6


def test_waits_are_spread_over_the_whole_bound() -> None:
    draw = random.Random(7).random
    backoff = Backoff(retries=3, base_s=1, cap_s=1, draw=draw)
    waits = [backoff.delay_s(1) or 0.0 for _ in range(2000)]
    assert min(waits) < 0.05
    assert max(waits) > 0.95
    assert 0.47 < sum(waits) / len(waits) < 0.53


def test_it_gives_up_after_its_retries() -> None:
    backoff = Backoff(retries=2)
    assert [backoff.delay_s(n) is None for n in (1, 2, 3, 4)] == [
        False,
        False,
        True,
        True,
    ]
    assert Backoff(retries=0).delay_s(1) is None


def test_what_the_server_asks_for_is_waited_at_least_and_not_for_ever() -> None:
    backoff = Backoff(base_s=0.5, longest_wait_s=10, draw=lambda: 0.5)
    assert backoff.delay_s(1, retry_after_s=3) == 3.25
    assert backoff.delay_s(1, retry_after_s=10) == 10.25
    for too_long in (10.5, 3600, float("inf")):
        assert backoff.delay_s(1, retry_after_s=too_long) is None
    for no_wait in (0, -1, float("nan")):
        assert backoff.delay_s(1, retry_after_s=no_wait) == 0.25


def test_any_number_of_tries_has_a_wait() -> None:
    assert Backoff(retries=10**6, cap_s=4, draw=lambda: 1.0).delay_s(10**5) == 4


async def test_cancelling_ends_a_wait_at_once() -> None:
    waiting = asyncio.ensure_future(Backoff().sleep(3600))
    await asyncio.sleep(0)
    waiting.cancel()
    done, _ = await asyncio.wait({waiting}, timeout=5)
    assert done
    assert waiting.cancelled()
