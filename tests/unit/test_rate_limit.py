"""The moving window of this process: exact against a naive model, and bounded."""

import time
import tracemalloc
from collections.abc import Coroutine

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nestor.resilience.rate_limit import MAX_CLIENTS, MovingWindow


async def admitted(limiter: MovingWindow, times: int, client: str = "a") -> int:
    said = [await limiter.admit(client) for _ in range(times)]
    return said.count(None)


class Clock:
    seconds = 0

    def __call__(self) -> float:
        return self.seconds


def at_once(asked: Coroutine[None, None, float | None]) -> float | None:
    """The result of what waits for nothing, without an event loop."""
    try:
        asked.send(None)
    except StopIteration as said:
        result: float | None = said.value
        return result
    raise AssertionError("it waits")


LIMIT, WINDOW_S, ROOM = 2, 10, 2


class AgainstANaiveModel(RuleBasedStateMachine):
    """Every admission ever made is kept, and counted again each time."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.limiter = MovingWindow(LIMIT, WINDOW_S, max_clients=ROOM, clock=self.clock)
        self.all: dict[str, list[float]] = {}
        self.own: dict[str, list[float]] = {}
        self.shared: list[float] = []

    def live(self, times: list[float]) -> list[float]:
        return [t for t in times if t + WINDOW_S > self.clock.seconds]

    @rule(client=st.sampled_from("abcd"), times=st.integers(1, 3), looks=st.booleans())
    def asks(self, client: str, times: int, looks: bool) -> None:
        for _ in range(times):
            self.asks_once(client, looks)

    def asks_once(self, client: str, looks_first: bool) -> None:
        own = {c: kept for c, times in self.own.items() if (kept := self.live(times))}
        shared, full = self.live(self.shared), len(own) >= ROOM
        counted = own.get(client, shared)
        wanted = None
        if len(counted) >= LIMIT:
            wanted = counted[0] + WINDOW_S - self.clock.seconds
        if looks_first:
            assert self.limiter.wait_s(client) == wanted
        assert at_once(self.limiter.admit(client)) == wanted
        if wanted is None:
            self.all.setdefault(client, []).append(self.clock.seconds)
            if client in own or not full:
                own[client] = [*counted, self.clock.seconds]
            else:
                shared.append(self.clock.seconds)
        self.own, self.shared = own, shared

    @rule(seconds=st.integers(1, WINDOW_S // 2 + 1))
    def time_passes(self, seconds: int) -> None:
        self.clock.seconds += seconds

    @invariant()
    def nobody_has_more_than_the_limit_in_any_window(self) -> None:
        for times in self.all.values():
            for n, then in enumerate(times[LIMIT:]):
                assert then >= times[n] + WINDOW_S

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.limiter.clients <= ROOM


AgainstANaiveModel.TestCase.settings = hypothesis.settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
test_the_window_is_that_of_a_naive_model = AgainstANaiveModel.TestCase


async def test_who_comes_back_after_the_seconds_told_is_let_in() -> None:
    clock = Clock()
    limiter = MovingWindow(2, 60, clock=clock)
    await admitted(limiter, 1)
    clock.seconds = 20
    await admitted(limiter, 1)
    clock.seconds = 50
    assert await limiter.admit("a") == 10
    clock.seconds = 59
    assert await limiter.admit("a") == 1
    clock.seconds = 60
    assert await limiter.admit("a") is None
    assert await limiter.admit("a") == 20


async def test_l3_a_hundred_thousand_clients_keep_memory_bounded() -> None:
    clock = Clock()
    limiter = MovingWindow(60, 60, clock=clock)
    tracemalloc.start()
    try:
        assert await admitted(limiter, 60, "first") == 60
        said = [await limiter.admit(f"2001:db8:{n:x}::/64") for n in range(100_000)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert limiter.clients == MAX_CLIENTS
    assert held < 25 * 1024 * 1024
    # All who have no window of their own have one together.
    assert said.count(None) == MAX_CLIENTS - 1 + 60
    # Who had a window keeps it: others cannot push it out.
    assert await limiter.admit("first") == 60
    clock.seconds = 61
    began = time.monotonic()
    assert await admitted(limiter, 61, "late") == 60
    assert time.monotonic() - began < 1
    assert limiter.clients < MAX_CLIENTS


async def test_l3_full_windows_stay_bounded_too() -> None:
    limiter = MovingWindow(60, 60, max_clients=500, clock=Clock())
    tracemalloc.start()
    try:
        for n in range(1000):
            await admitted(limiter, 60, str(n))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 1024 * 1024  # 10,000 of them: 40 MiB


async def test_who_has_been_silent_for_a_window_is_forgotten_first() -> None:
    now = 0.0
    limiter = MovingWindow(5, 10, clock=lambda: now)
    for now, client in ((0.0, "a"), (1.0, "b"), (5.0, "a"), (12.0, "c")):  # noqa: B007 - the clock reads it
        assert await limiter.admit(client) is None
    assert limiter.clients == 2  # not b's
