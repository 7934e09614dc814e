"""Who is asked next, who is asked again, and after which pauses."""

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.servers.dispatch_rig import Rig, rig
from tests.servers.scripted_model import Rule

from nestor.coordinator.asking import Say, Stream
from nestor.coordinator.dialects.openai import OpenAI
from nestor.errors import (
    CircuitOpen,
    InvalidInput,
    RateLimited,
    UpstreamError,
)
from nestor.ports.model_client import ModelClient, ModelReply
from nestor.resilience.circuit_breaker import BreakerState
from nestor.resilience.retry import Backoff

OK = Rule(reply="fine")
DOWN = Rule(status=503)
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


def paths(one: Rig) -> dict[str, int]:
    return {name: len(model.requests) for name, model in one.models.items()}


async def test_when_nobody_is_left_they_are_asked_again_in_turn(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, [DOWN], [Rule(status=503, times=1), OK]) as one:
        call = await one.answer()

        assert (call.deployment, call.fallback_from) == ("b", "a")
        assert [c.deployment for c in one.ended()] == ["a", "b", "a", "b"]
        assert one.clock.pauses == [0.125, 0.25]


async def test_others_are_asked_before_anybody_is_asked_again(tmp_path: Path) -> None:
    async with rig(tmp_path, [Rule(status=503, times=1), OK], [OK]) as one:
        call = await one.answer()

        assert call.deployment == "b"
        assert paths(one) == {"a": 1, "b": 1}
        assert one.clock.pauses == []


async def test_at_most_two_are_asked_again(tmp_path: Path) -> None:
    async with rig(tmp_path, [DOWN]) as one:
        with pytest.raises(UpstreamError, match="503"):
            await one.ask()

        assert paths(one) == {"a": 3}
        assert one.clock.pauses == [0.125, 0.25], "half of bounds that double"


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_what_will_not_pass_is_not_asked_again(
    tmp_path: Path, status: int
) -> None:
    async with rig(tmp_path, [Rule(status=status)]) as one:
        with pytest.raises((InvalidInput, UpstreamError)):
            await one.ask()

        assert paths(one) == {"a": 1}


async def test_who_asks_to_come_back_soon_is_asked_again_before_others(
    tmp_path: Path,
) -> None:
    busy = Rule(status=429, times=1, headers={"retry-after": "1"})
    async with rig(tmp_path, [busy, OK], [OK]) as one:
        call = await one.answer()

        assert (call.deployment, call.fallback_from) == ("a", None)
        assert one.clock.pauses == [1.125], "what it asked for, and a bit at random"
        assert paths(one) == {"a": 2, "b": 0}


async def test_who_asks_for_a_long_wait_is_left_for_others_and_held_back(
    tmp_path: Path,
) -> None:
    busy = Rule(status=429, headers={"retry-after": "30"})
    async with rig(tmp_path, [busy], [OK]) as one:
        assert (await one.answer()).deployment == "b"
        assert (await one.answer()).fallback_from == "a"

        assert paths(one) == {"a": 1, "b": 2}
        assert one.clock.pauses == []


async def test_a_wait_that_is_too_long_is_told_to_the_caller(tmp_path: Path) -> None:
    busy = Rule(status=429, headers={"retry-after": "30"})
    async with rig(tmp_path, [busy]) as one:
        with pytest.raises(RateLimited) as caught:
            await one.ask()
        assert caught.value.retry_after_s == 30
        with pytest.raises(CircuitOpen) as held:
            await one.ask()

        assert held.value.retry_after_s == 30
        assert paths(one) == {"a": 1}
        assert len(one.ended()) == 1, "what was not asked is no call"


async def test_no_pause_goes_beyond_the_time_of_a_deployment(tmp_path: Path) -> None:
    backoff = Backoff(base_s=100, cap_s=100, draw=lambda: 0.5)
    async with rig(tmp_path, [DOWN], each=[{"timeout_s": 40}], backoff=backoff) as one:
        with pytest.raises(UpstreamError):
            await one.ask()
        assert paths(one) == {"a": 1}


async def test_the_second_attempt_has_what_the_first_left_of_the_time(
    tmp_path: Path,
) -> None:
    rules = [Rule(status=503, times=1), Rule(reply="late", delay_s=30)]
    backoff = Backoff(draw=lambda: 0.0, retries=1)
    async with rig(tmp_path, rules, each=[{"timeout_s": 20}], backoff=backoff) as one:
        one.dispatcher._timer = _Jumping(one.clock)
        began = time.monotonic()
        with pytest.raises(UpstreamError, match="asked more than once"):
            await one.ask()
        assert time.monotonic() - began < 10
        assert [call.cost_usd for call in one.ended()] == [Decimal(0), None]


class _Jumping:
    """Each look at the clock finds it 4 s later."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock

    def __call__(self) -> float:
        self._clock.now += 4.0
        return float(self._clock.now)


async def test_an_open_breaker_is_passed_over_without_a_call(tmp_path: Path) -> None:
    async with rig(tmp_path, [DOWN], [OK]) as one:
        for _ in range(5):
            await one.answer()
        assert one.order[0].breaker.state is BreakerState.OPEN
        before = len(one.ended())
        call = await one.answer()

        assert (call.deployment, call.fallback_from) == ("b", "a")
        assert len(one.ended()) == before + 1
        assert paths(one)["a"] == 5


async def test_a_slow_answer_counts_as_slow(tmp_path: Path) -> None:
    async with rig(tmp_path, [OK], each=[{"slow_s": 1.0}]) as one:

        class Slow(Say):
            async def ask(
                self, client: ModelClient, body: dict[str, Any]
            ) -> ModelReply:
                one.clock.now += 1.5
                return await super().ask(client, body)

        for _ in range(10):
            asking = Slow(OpenAI(), HELLO)
            answered = await one.dispatcher.first(one.order, asking, one.context)
            one.dispatcher.settle(answered, answered.value.usage, replayed=False)

        assert one.order[0].breaker.state is BreakerState.OPEN


async def test_a_stream_that_breaks_half_way_counts_against_its_breaker(
    tmp_path: Path,
) -> None:
    cut = Rule(reply="one two three", cut_after_chunks=2)
    async with rig(tmp_path, [cut]) as one:
        for _ in range(5):
            asking = Stream(OpenAI(), {**HELLO, "stream": True})
            answered = await one.dispatcher.first(one.order, asking, one.context)
            assert one.order[0].in_flight == 1
            with pytest.raises(UpstreamError) as broken:
                async for _ in answered.value:
                    pass
            answered.upstream.failed(answered.permit, broken.value)
            usage = answered.value.usage()
            call = one.dispatcher.settle(answered, usage, replayed=False, error="cut")
            assert (call.ok, call.cost_usd, call.error) == (False, None, "cut")

        assert one.order[0].breaker.state is BreakerState.OPEN
        assert one.everybody_left()


async def test_a_kept_connection_that_had_just_ended_is_no_fault_of_the_server(
    tmp_path: Path,
) -> None:
    class Stale(Say):
        times = 1

        async def ask(self, client: ModelClient, body: dict[str, Any]) -> ModelReply:
            if self.times:
                self.times -= 1
                raise UpstreamError("a: a kept connection ended", stale=True)
            return await super().ask(client, body)

    async with rig(tmp_path, [OK], [OK]) as one:
        asking = Stale(OpenAI(), HELLO)
        answered = await one.dispatcher.first(one.order, asking, one.context)
        call = one.dispatcher.settle(answered, answered.value.usage, replayed=False)

        assert call.deployment == "a"
        assert one.clock.pauses == []
        assert one.ended()[0].cost_usd is None, "it may have been read"
        assert one.order[0].breaker.snapshot().failed == 0
