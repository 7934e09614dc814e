"""The breaker opens on a row of failures, sends one probe, and never wedges."""

import asyncio
import contextlib
import gc
import io
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from nestor.errors import CircuitOpen, InvalidInput, Unavailable, UpstreamError
from nestor.resilience.circuit_breaker import BreakerState, CircuitBreaker, Permit
from nestor.telemetry import logs, metrics

CLOSED, HALF, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("dep", clock=clock)


def fail(
    breaker: CircuitBreaker, times: int = 1, error: Exception | None = None
) -> None:
    for _ in range(times):
        breaker.admit().fail(error or Unavailable("down"))


def gauge(name: str) -> float | None:
    return metrics.REGISTRY.get_sample_value("nestor_breaker_state", {"name": name})


def test_five_failures_in_a_row_open_it(breaker: CircuitBreaker) -> None:
    fail(breaker, 4)
    assert breaker.state is CLOSED
    fail(breaker)

    assert breaker.state is OPEN
    with pytest.raises(CircuitOpen) as caught:
        breaker.admit()
    assert caught.value.retry_after_s == 60


def test_a_success_ends_the_row(breaker: CircuitBreaker) -> None:
    for _ in range(100):
        fail(breaker, 4)
        breaker.admit().succeed()

    assert breaker.state is CLOSED


def test_failures_spread_wider_than_the_window_do_not_open_it(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    for _ in range(100):
        fail(breaker)
        clock.now += 15.1

    assert breaker.state is CLOSED
    assert breaker.snapshot().consecutive_failures == 3


async def test_one_probe_passes_among_a_hundred_callers(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    fail(breaker, 5)
    clock.now += 60
    gate = asyncio.Event()
    inside = refused = 0

    async def caller() -> None:
        nonlocal inside, refused
        try:
            async with breaker:
                inside += 1
                await gate.wait()
        except CircuitOpen as error:
            refused += error.retry_after_s > 0

    callers = [asyncio.create_task(caller()) for _ in range(100)]
    await asyncio.sleep(0.01)
    assert (inside, refused, breaker.state) == (1, 99, HALF)
    gate.set()
    await asyncio.gather(*callers)

    assert breaker.state is CLOSED


def test_one_probe_passes_among_threads(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 5)
    clock.now += 60
    permits: list[Permit] = []
    together = threading.Barrier(16)

    def caller() -> None:
        together.wait()
        with contextlib.suppress(CircuitOpen):
            permits.append(breaker.admit())

    threads = [threading.Thread(target=caller) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(permits) == 1


async def test_a_failed_probe_opens_it_for_the_recovery_time_again(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    fail(breaker, 5)
    clock.now += 60

    async def down() -> None:
        raise Unavailable("still down")

    with pytest.raises(Unavailable, match="still down"):
        await breaker.call(down)

    assert breaker.state is OPEN
    clock.now += 59
    with pytest.raises(CircuitOpen):
        await breaker.call(down)


@pytest.mark.parametrize("style", ["call", "async with"])
async def test_a_cancelled_probe_gives_its_place_back(
    breaker: CircuitBreaker, clock: Clock, style: str
) -> None:
    fail(breaker, 5)
    clock.now += 60

    async def hang() -> None:
        await asyncio.Event().wait()

    async def within() -> None:
        async with breaker:
            await hang()

    task = asyncio.create_task(breaker.call(hang) if style == "call" else within())
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        breaker.admit()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    breaker.admit().succeed()
    assert breaker.state is CLOSED


def test_a_permit_that_nobody_settles_does_not_wedge_the_breaker(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    fail(breaker, 5)
    clock.now += 60
    permit = breaker.admit()
    with pytest.raises(CircuitOpen):
        breaker.admit()
    del permit
    gc.collect()

    breaker.admit().succeed()
    assert breaker.state is CLOSED


def test_calls_admitted_before_it_opened_change_nothing_after(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    slow_good, slow_bad = breaker.admit(), breaker.admit()
    fail(breaker, 5)
    slow_good.succeed()
    clock.now += 30
    slow_bad.fail(Unavailable("late"))

    assert breaker.state is OPEN
    assert breaker.snapshot().retry_after_s == 30


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (Unavailable("x"), True),
        (UpstreamError("x", status=503), True),
        (InvalidInput("x"), False),
        (ValueError("x"), False),
        (CircuitOpen("inner", retry_after_s=1), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_the_dependencys_failures_count(
    breaker: CircuitBreaker, error: Exception, counted: bool
) -> None:
    fail(breaker, 5, error)

    assert (breaker.state is OPEN) is counted


def test_what_counts_is_a_parameter(clock: Clock) -> None:
    def server_side(error: BaseException) -> bool:
        return isinstance(error, UpstreamError) and (error.status or 500) >= 500

    breaker = CircuitBreaker("dep", counts=server_side, clock=clock)
    fail(breaker, 9, UpstreamError("bad request", status=400))
    assert breaker.state is CLOSED
    fail(breaker, 5, UpstreamError("bad gateway", status=502))
    assert breaker.state is OPEN


def test_retry_after_holds_calls_back(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.hold(10)
    with pytest.raises(CircuitOpen) as caught:
        breaker.admit()
    assert caught.value.retry_after_s == 10

    breaker.hold(5)  # never shorter
    clock.now += 9.9
    with pytest.raises(CircuitOpen):
        breaker.admit()
    clock.now += 0.1
    breaker.admit().succeed()
    assert breaker.state is CLOSED


def test_retry_after_lengthens_the_open_time_and_is_bounded(
    breaker: CircuitBreaker,
) -> None:
    fail(breaker, 5)
    for seconds in (float("nan"), float("inf"), -5, 0, 1):
        breaker.hold(seconds)
    assert breaker.snapshot().retry_after_s == 60
    breaker.hold(120)
    assert breaker.snapshot().retry_after_s == 120
    breaker.hold(1e12)
    assert breaker.snapshot().retry_after_s == 3600


def test_a_short_retry_after_with_the_last_failure_keeps_the_recovery_time(
    breaker: CircuitBreaker,
) -> None:
    fail(breaker, 4)
    permit = breaker.admit()
    breaker.hold(1)
    permit.fail(UpstreamError("busy", status=503))

    assert breaker.snapshot().retry_after_s == 60


def test_failures_after_a_long_retry_after_do_not_shorten_it(
    breaker: CircuitBreaker,
) -> None:
    permits = [breaker.admit() for _ in range(5)]
    breaker.hold(120)
    for permit in permits:
        permit.fail(Unavailable("down"))

    assert breaker.snapshot().retry_after_s == 120


def test_the_snapshot_says_what_was_seen(breaker: CircuitBreaker, clock: Clock) -> None:
    fresh = breaker.snapshot()
    assert (fresh.state, fresh.last_error, fresh.retry_after_s) == (CLOSED, None, None)
    fail(breaker, 5, UpstreamError("x"))
    clock.now += 20

    seen = breaker.snapshot()
    assert (seen.name, seen.state, seen.consecutive_failures) == ("dep", OPEN, 5)
    assert (seen.retry_after_s, seen.since_s) == (40, 20)
    assert seen.last_error == "UpstreamError"


@pytest.fixture
def logged() -> Iterator[Callable[[], str]]:
    stream = io.StringIO()
    logs.configure("console", stream)
    yield stream.getvalue
    structlog.reset_defaults()


def test_each_turn_is_logged_and_measured(
    clock: Clock, logged: Callable[[], str]
) -> None:
    breaker = CircuitBreaker("turns", clock=clock)
    assert gauge("turns") == 0
    fail(breaker, 5)
    assert gauge("turns") == 2
    clock.now += 60
    probe = breaker.admit()
    assert gauge("turns") == 1
    probe.succeed()
    assert gauge("turns") == 0

    words = [word for word in logged().split() if word.startswith("circuit_")]
    assert words == [
        "circuit_breaker_open",
        "circuit_breaker_half_open",
        "circuit_breaker_closed",
    ]


def test_it_tells_beforehand_whether_it_refuses(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    assert not breaker.refuses
    fail(breaker, 5)
    assert breaker.refuses
    clock.now += 60
    assert not breaker.refuses, "the probe may pass"
    probe = breaker.admit()
    assert breaker.refuses
    probe.succeed()
    assert not breaker.refuses


def test_a_retired_one_is_no_longer_measured(clock: Clock) -> None:
    old = CircuitBreaker("replaced", clock=clock)
    out = [old.admit() for _ in range(5)]
    old.retire()
    assert gauge("replaced") is None
    CircuitBreaker("replaced", clock=clock)
    for permit in out:
        permit.fail(Unavailable("down"))
    old.retire()

    assert old.state is OPEN
    assert gauge("replaced") == 0, "what is shown is its replacement"


class Out(NamedTuple):
    permit: Permit
    probe: bool
    epoch: int


class BreakerMachine(RuleBasedStateMachine):
    """The breaker against a model of it: a state, a row, shares, a time, an epoch."""

    out = Bundle("out")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = CircuitBreaker(
            "machine",
            failures=3,
            window_s=20,
            recovery_s=30,
            error_ratio=0.5,
            slow_ratio=0.75,
            min_calls=4,
            clock=self.clock,
        )
        self.seen: list[tuple[int, bool, bool]] = []
        """Tenth of the window, failed, slow."""
        self.state = CLOSED
        self.row: list[float] = []
        self.open_until = 0.0
        self.epoch = 0
        self.probes = 0

    @rule(seconds=st.sampled_from([0.5, 5, 10, 20, 30, 100]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(target=out)
    def call(self) -> Out:
        allowed = self.state is CLOSED or (
            self.clock.now >= self.open_until and self.probes == 0
        )
        if not allowed:
            with pytest.raises(CircuitOpen) as refused:
                self.breaker.admit()
            assert refused.value.retry_after_s > 0
            return Out(Permit(CircuitBreaker("none"), -1, probe=False), False, -1)
        permit = self.breaker.admit()
        if self.state is CLOSED:
            return Out(permit, False, self.epoch)
        if self.state is OPEN:
            self.state = HALF
            self.epoch += 1
            self.seen = []
        self.probes = 1
        return Out(permit, True, self.epoch)

    @rule(call=consumes(out), slow=st.booleans())
    def success(self, call: Out, slow: bool) -> None:
        call.permit.succeed(slow=slow)
        if call.epoch != self.epoch:
            return
        self.row = []
        if not call.probe:
            self.weigh(failed=False, slow=slow)
        elif slow:
            self.opens()
        else:
            self.turn(CLOSED)

    @rule(call=consumes(out))
    def failure(self, call: Out) -> None:
        call.permit.fail(Unavailable("x"))
        if call.epoch != self.epoch:
            return
        now = self.clock.now
        self.row = [t for t in self.row if t > now - 20] + [now]
        if call.probe or len(self.row) >= 3:
            self.opens()
        else:
            self.weigh(failed=True, slow=False)

    @rule(call=consumes(out))
    def cancelled(self, call: Out) -> None:
        call.permit.release()
        if call.probe and call.epoch == self.epoch:
            self.probes = 0

    @rule(seconds=st.sampled_from([1.0, 40.0, 1e9]))
    def retry_after(self, seconds: float) -> None:
        self.breaker.hold(seconds)
        until = self.clock.now + min(seconds, 3600)
        if self.state is HALF:
            self.turn(OPEN)
            until = max(until, self.clock.now + 30)
        self.state = OPEN
        self.open_until = max(self.open_until, until)

    @precondition(lambda self: self.state is not CLOSED)
    @rule()
    def it_always_recovers(self) -> None:
        """Whatever happened: wait, and, no probe being out, the next call passes."""
        self.clock.now += 4_000
        if self.probes:
            return
        permit = self.breaker.admit()
        permit.succeed()
        self.row = []
        self.epoch += self.state is OPEN
        self.turn(CLOSED)

    def weigh(self, *, failed: bool, slow: bool) -> None:
        tenth = int(self.clock.now // 2)
        self.seen = [one for one in self.seen if one[0] > tenth - 10]
        self.seen.append((tenth, failed, slow))
        calls = len(self.seen)
        failures = sum(one[1] for one in self.seen)
        slow_calls = sum(one[2] for one in self.seen)
        if calls >= 4 and (failures >= calls * 0.5 or slow_calls >= calls * 0.75):
            self.opens()

    def opens(self) -> None:
        self.turn(OPEN)
        self.open_until = max(self.open_until, self.clock.now + 30)

    def turn(self, state: BreakerState) -> None:
        self.state = state
        self.epoch += 1
        self.probes = 0
        self.seen = []

    @invariant()
    def states_agree(self) -> None:
        assert self.breaker.state is self.state
        assert gauge("machine") == {CLOSED: 0, HALF: 1, OPEN: 2}[self.state]
        if self.state is CLOSED:
            assert len([t for t in self.row if t > self.clock.now - 20]) < 3


BreakerMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
TestBreakerMachine = BreakerMachine.TestCase
