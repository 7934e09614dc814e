"""One upstream after the other until one answers; each call settled once, whatever happens."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.servers.dispatch_rig import Rig, rig
from tests.servers.scripted_model import Rule

from nestor.coordinator.asking import Say, Stream
from nestor.coordinator.dialects.openai import OpenAI
from nestor.coordinator.dispatch import CALLER_LEFT
from nestor.errors import (
    InvalidInput,
    Unavailable,
)
from nestor.model.routing import Dialect
from nestor.model.task import Usage
from nestor.ports.model_client import ModelClient, ModelReply
from nestor.resilience.circuit_breaker import BreakerState
from nestor.resilience.retry import Backoff

OK = Rule(reply="fine")
DOWN = Rule(status=503)
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def paths(one: Rig) -> dict[str, int]:
    return {name: len(model.requests) for name, model in one.models.items()}


async def test_the_answering_call_carries_the_interaction_id(tmp_path: Path) -> None:
    async with rig(tmp_path, [OK]) as one:
        answered = await one.ask()
        reply = answered.value
        call = one.dispatcher.settle(answered, reply.usage, replayed=False)

        assert call.interaction_id == answered.interaction_id
        assert (call.ok, call.deployment, call.attempt_of) == (True, "a", None)
        assert call.cost_usd == Decimal("0.000092"), "11 in at 2, 7 out at 10"
        assert one.ended() == [call]
        assert one.everybody_left()


async def test_a_call_is_written_down_before_it_is_made(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    class Looking(Say):
        async def ask(self, client: ModelClient, body: dict[str, Any]) -> ModelReply:
            seen.append([line["deployment"] for line in one.lines("b")])
            return await super().ask(client, body)

    async with rig(tmp_path, [DOWN], [OK]) as one:
        asking = Looking(OpenAI(), HELLO)
        answered = await one.dispatcher.first(one.order, asking, one.context)
        assert seen == [["a"], ["a", "b"]]
        assert [c.error is None for c in one.ended()] == [False], "b is still open"
        one.dispatcher.settle(answered, answered.value.usage, replayed=False)


async def test_a_failed_attempt_is_a_call_of_its_own(tmp_path: Path) -> None:
    async with rig(tmp_path, [DOWN], [Rule(status=500)], [OK]) as one:
        call = await one.answer()

        first, second, last = one.ended()
        assert last == call
        assert (call.deployment, call.fallback_from) == ("c", "a")
        assert [first.deployment, second.deployment] == ["a", "b"]
        assert {first.attempt_of, second.attempt_of} == {call.interaction_id}
        assert len({c.interaction_id for c in one.ended()}) == 3
        assert [first.ok, second.ok] == [False, False]
        assert first.error is not None
        assert "503" in first.error
        assert one.everybody_left()


async def test_a_fallback_leaves_nothing_in_the_journal_once_it_is_folded(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, [DOWN], [OK]) as one:
        await one.answer()
        settled = one.journal.settled()
        assert settled is not None
        one.journal.folded(settled)

        assert [one.lines(kind) for kind in "be"] == [[], []]


async def test_of_a_request_that_nobody_answers_the_last_attempt_counts(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, [DOWN], [Rule(status=400)]) as one:
        with pytest.raises(
            Unavailable, match=r"no model answered: a: .*503.*; b: .*400"
        ):
            await one.ask()

        calls = one.ended()
        counting = [call for call in calls if call.attempt_of is None]
        assert len(counting) == 1
        assert counting == calls[-1:]
        others = {call.attempt_of for call in calls[:-1]}
        assert others == {counting[0].interaction_id}
        assert one.everybody_left()


async def test_an_error_status_costs_nothing_and_a_cut_answer_nobody_knows_what(
    tmp_path: Path,
) -> None:
    cut = Rule(reply="one two", cut_after_chunks=0)
    async with rig(tmp_path, [DOWN], [cut], [OK]) as one:
        asking = Stream(OpenAI(), {**HELLO, "stream": True})
        answered = await one.dispatcher.first(one.order, asking, one.context)
        stream = answered.value
        assert [piece async for piece in stream]
        one.dispatcher.settle(answered, stream.usage(), replayed=False)

        assert [call.cost_usd for call in one.ended()] == [
            Decimal(0),
            None,
            Decimal("0.000092"),
        ]


async def test_who_cannot_be_reached_costs_nothing(tmp_path: Path) -> None:
    nobody = {"base_url": "http://127.0.0.1:9/v1"}
    async with rig(tmp_path, [OK], [OK], each=[nobody]) as one:
        call = await one.answer()

        first, _ = one.ended()
        assert (first.deployment, first.cost_usd) == ("a", Decimal(0))
        assert call.fallback_from == "a"


async def test_a_caller_that_leaves_is_settled_as_unknown_and_once(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, [Rule(reply="late", delay_s=30)], [OK]) as one:
        asking = asyncio.create_task(one.ask())
        while not one.models["a"].requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

        (call,) = one.ended()
        assert (call.ok, call.error, call.cost_usd) == (False, CALLER_LEFT, None)
        assert call.attempt_of is None
        assert paths(one) == {"a": 1, "b": 0}, "nobody else is asked for nobody"
        assert one.order[0].breaker.state is BreakerState.CLOSED
        assert one.everybody_left()


async def test_a_caller_that_leaves_in_a_pause_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    patient = [{"timeout_s": 10_000}]
    backoff = Backoff(base_s=3600, cap_s=3600, draw=lambda: 1.0)
    async with rig(tmp_path, [DOWN], each=patient, backoff=backoff) as one:
        asking = asyncio.create_task(one.ask())
        while not one.models["a"].requests or one.order[0].in_flight != 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert one.ended() == [], "whether it counts is not known yet"
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

        (call,) = one.ended()
        assert call.attempt_of is None
        assert "503" in (call.error or "")


async def test_a_bug_in_a_client_is_settled_and_raised(tmp_path: Path) -> None:
    class Broken(Say):
        async def ask(self, client: ModelClient, body: dict[str, Any]) -> ModelReply:
            await super().ask(client, body)
            raise ZeroDivisionError

    async with rig(tmp_path, [OK]) as one:
        with pytest.raises(ZeroDivisionError):
            await one.dispatcher.first(one.order, Broken(OpenAI(), HELLO), one.context)

        (call,) = one.ended()
        assert (call.ok, call.error, call.cost_usd) == (
            False,
            "ZeroDivisionError",
            None,
        )
        assert one.everybody_left()


async def test_settling_twice_changes_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path, [OK]) as one:
        answered = await one.ask()
        first = one.dispatcher.settle(answered, answered.value.usage, replayed=False)
        again = one.dispatcher.settle(answered, Usage(), replayed=False, error="x")

        assert again is first
        assert len(one.ended()) == 1
        assert one.everybody_left()


async def test_counts_that_no_model_can_have_are_not_priced(tmp_path: Path) -> None:
    mad = Rule(usage={"prompt_tokens": 10**12, "completion_tokens": 7})
    async with rig(tmp_path, [mad]) as one:
        call = await one.answer()

        assert (call.usage.input_tokens, call.cost_usd) == (None, None)


# What cannot be said


UNSAYABLE: dict[str, Any] = {"logprobs": True}


async def test_who_cannot_express_the_request_is_passed_over(tmp_path: Path) -> None:
    async with rig(tmp_path, [OK], [OK], each=[{"dialect": Dialect.ANTHROPIC}]) as one:
        call = await one.answer(**UNSAYABLE)

        assert (call.deployment, call.fallback_from) == ("b", None)
        assert paths(one) == {"a": 0, "b": 1}
        assert len(one.ended()) == 1


async def test_when_nobody_can_express_it_nobody_is_asked(tmp_path: Path) -> None:
    both = {"dialect": Dialect.ANTHROPIC}
    async with rig(tmp_path, [OK], [OK], each=[both, both]) as one:
        with pytest.raises(InvalidInput, match="logprobs"):
            await one.ask(**UNSAYABLE)

        assert paths(one) == {"a": 0, "b": 0}
        assert one.lines("b") == []
        assert one.ended() == []


async def test_a_request_is_put_into_each_dialect_once(tmp_path: Path) -> None:
    said: list[Dialect] = []

    class Counting(Say):
        def prepare(self, dialect: Dialect) -> dict[str, Any]:
            said.append(dialect)
            return super().prepare(dialect)

    async with rig(tmp_path, [DOWN], [DOWN], [OK]) as one:
        asking = Counting(OpenAI(), HELLO)
        answered = await one.dispatcher.first(one.order, asking, one.context)
        one.dispatcher.settle(answered, answered.value.usage, replayed=False)
        assert said == [Dialect.OPENAI]


async def test_a_refusal_by_all_that_were_asked_is_the_callers_error(
    tmp_path: Path,
) -> None:
    bad = Rule(status=400, reply="temperature is too high")
    async with rig(tmp_path, [bad], [bad]) as one:
        with pytest.raises(InvalidInput, match="temperature is too high"):
            await one.ask()


async def test_with_nobody_to_ask_that_is_said(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        with pytest.raises(Unavailable, match="no model is configured"):
            await one.ask()
