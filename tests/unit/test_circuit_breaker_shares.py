"""The breaker also opens on the share of calls that failed, or were slow."""

import pytest
from tests.unit.test_circuit_breaker import CLOSED, OPEN, Clock, fail

from nestor.errors import InvalidInput, Unavailable
from nestor.resilience.circuit_breaker import CircuitBreaker


@pytest.fixture
def clock() -> Clock:
    return Clock()


def calls(
    breaker: CircuitBreaker, *, good: int = 0, slow: int = 0, bad: int = 0
) -> None:
    """Mixed, so that no row of failures opens it."""
    while good or slow or bad:
        if bad:
            breaker.admit().fail(Unavailable("down"))
            bad -= 1
        if slow:
            breaker.admit().succeed(slow=True)
            slow -= 1
        if good:
            breaker.admit().succeed()
            good -= 1


@pytest.fixture
def weighing(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(
        "share", error_ratio=0.5, slow_ratio=0.8, min_calls=10, clock=clock
    )


def test_half_of_at_least_ten_calls_failing_opens_it(weighing: CircuitBreaker) -> None:
    calls(weighing, good=5, bad=4)
    assert weighing.state is CLOSED
    fail(weighing)

    assert weighing.state is OPEN


def test_fewer_than_ten_calls_tell_no_share(weighing: CircuitBreaker) -> None:
    calls(weighing, good=4, bad=4)
    fail(weighing)

    assert weighing.state is CLOSED


def test_a_share_is_also_reached_by_a_success_that_makes_the_calls_ten(
    weighing: CircuitBreaker,
) -> None:
    calls(weighing, good=4, bad=5)
    assert weighing.state is CLOSED
    weighing.admit().succeed()

    assert weighing.state is OPEN


def test_less_than_half_failing_never_opens_it(weighing: CircuitBreaker) -> None:
    for _ in range(50):
        calls(weighing, good=2, bad=1)

    assert weighing.state is CLOSED


def test_failures_older_than_the_window_weigh_nothing(
    weighing: CircuitBreaker, clock: Clock
) -> None:
    calls(weighing, good=5, bad=4)
    clock.now += 61
    fail(weighing)

    assert weighing.state is CLOSED
    seen = weighing.snapshot()
    assert (seen.calls, seen.failed, seen.slow) == (1, 1, 0)


def test_four_in_five_slow_calls_open_it(weighing: CircuitBreaker) -> None:
    calls(weighing, good=2, slow=7)
    assert weighing.state is CLOSED
    weighing.admit().succeed(slow=True)

    assert weighing.state is OPEN


def test_a_slow_probe_opens_it_again_and_a_quick_one_closes_it(
    weighing: CircuitBreaker, clock: Clock
) -> None:
    calls(weighing, slow=10)
    clock.now += 60
    weighing.admit().succeed(slow=True)
    assert weighing.state is OPEN
    clock.now += 60
    weighing.admit().succeed()

    assert weighing.state is CLOSED
    assert weighing.snapshot().calls == 0, "it begins anew"


def test_once_closed_it_begins_to_count_anew(clock: Clock) -> None:
    breaker = CircuitBreaker("anew", error_ratio=0.5, recovery_s=5, clock=clock)
    calls(breaker, good=5, bad=5)
    assert breaker.state is OPEN
    clock.now += 5
    breaker.admit().succeed()
    breaker.admit().succeed()

    assert breaker.state is CLOSED
    assert breaker.snapshot().calls == 1, "the probe found it well, the rest is past"


def test_cancelled_calls_and_callers_errors_are_no_part_of_a_share(
    weighing: CircuitBreaker,
) -> None:
    for _ in range(20):
        weighing.admit().release()
        weighing.admit().fail(InvalidInput("x"))

    assert weighing.snapshot().calls == 0


def test_shares_are_looked_at_only_where_asked_for(clock: Clock) -> None:
    breaker = CircuitBreaker("plain", clock=clock)
    calls(breaker, good=10, slow=90, bad=90)

    assert breaker.state is CLOSED
    seen = breaker.snapshot()
    assert (seen.calls, seen.failed, seen.slow) == (None, None, None)
