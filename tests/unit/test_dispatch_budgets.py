"""What is asked before each attempt: limits a minute, and the budgets of who pays."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.servers.dispatch_rig import Rig, rig
from tests.servers.scripted_model import Rule

from nestor.coordinator.asking import Stream
from nestor.coordinator.dialects.openai import OpenAI
from nestor.errors import BudgetExceeded, RateLimited, Unavailable
from nestor.model.routing import Charge, Kind
from nestor.model.task import Usage
from nestor.ports.budget_store import Account

OK = Rule(reply="fine")
DOWN = Rule(status=503)
CUT = Rule(reply="one two", cut_after_chunks=0)
HELLO = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
KEY = Account(id="key:k1", usd=Decimal(1))
# 300 bytes are taken for 100 tokens, 50 may be written: at 2 and 10 USD a million.
RESERVED = Decimal("0.0007")
USED = Decimal("0.000092")


def pays(one: Rig, *accounts: Account, max_tokens: int = 50) -> None:
    one.context.accounts = accounts
    one.context.max_tokens = max_tokens


async def free(one: Rig, account: Account = KEY) -> Decimal:
    """What is left of it here and in the database, nothing being under way."""
    held = one.budgets._held[account.id]
    assert held.usd.reserved == 0, "something is still reserved"
    spent = await one.store.spent(account.id)
    return Decimal(held.usd.free).scaleb(-12) - spent.leased.usd


async def test_an_answer_is_charged_what_it_cost(tmp_path: Path) -> None:
    async with rig(tmp_path, [OK]) as one:
        pays(one, KEY)
        call = await one.answer()

        assert call.charges == (Charge(account="key:k1", usd=USED, tokens=18),)
        (begun,) = one.lines("b")
        assert begun["charges"][0]["usd"] == "0.0007"
        assert await free(one) == -USED


async def test_a_failed_attempt_is_charged_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path, [DOWN], [OK]) as one:
        pays(one, KEY)
        call = await one.answer()

        failed, answered = one.ended()
        assert failed.charges == ()
        assert answered.charges == call.charges
        assert await free(one) == -USED


async def test_what_nobody_knows_is_charged_as_it_was_reserved(tmp_path: Path) -> None:
    async with rig(tmp_path, [CUT], [OK]) as one:
        pays(one, KEY)
        asking = Stream(OpenAI(), HELLO)
        answered = await one.dispatcher.first(one.order, asking, one.context)
        one.dispatcher.settle(answered, Usage(), replayed=False, error="left")

        assert [call.charges[0].usd for call in one.ended()] == [RESERVED, RESERVED]
        assert [call.charges[0].tokens for call in one.ended()] == [150, 150]
        assert [call.cost_usd for call in one.ended()] == [None, None]
        assert await free(one) == -2 * RESERVED


async def test_a_caller_that_leaves_is_charged_as_it_was_reserved(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, [Rule(reply="late", delay_s=30)]) as one:
        pays(one, KEY)
        asking = asyncio.create_task(one.ask())
        while not one.models["a"].requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

        (call,) = one.ended()
        assert call.charges[0].usd == RESERVED
        assert await free(one) == -RESERVED


async def test_a_dearer_fallback_asks_the_budget_again(tmp_path: Path) -> None:
    dear = {"price_output": Decimal(100_000)}
    async with rig(tmp_path, [DOWN], [OK], each=[{}, dear]) as one:
        pays(one, KEY)
        with pytest.raises(Unavailable) as caught:
            await one.ask()

        said = str(caught.value)
        assert "503" in said, "the first failure is not hidden"
        assert "k1 has" in said, "nor is the budget"
        assert not isinstance(caught.value, BudgetExceeded)
        assert not one.models["b"].requests
        assert {call.deployment for call in one.ended()} == {"a"}
        assert await free(one) == 0


async def test_who_can_pay_for_nobody_asks_nobody(tmp_path: Path) -> None:
    async with rig(tmp_path, [OK], [OK]) as one:
        pays(one, Account(id="key:k1", usd=Decimal("0.0001")))
        with pytest.raises(BudgetExceeded, match="k1"):
            await one.ask()

        assert one.lines("b") == []
        assert one.order[0].breaker.snapshot().calls == 0


async def test_a_cheaper_deployment_serves_who_cannot_pay_for_the_first(
    tmp_path: Path,
) -> None:
    unpaid = {"price_input": Decimal(0), "price_output": Decimal(0)}
    async with rig(tmp_path, [OK], [OK], each=[{}, unpaid]) as one:
        pays(one, Account(id="key:k1", usd=Decimal("0.0001")))
        call = await one.answer()

        assert (call.deployment, call.fallback_from) == ("b", "a")
        assert call.charges[0].usd == 0


async def test_all_accounts_of_a_call_are_charged(tmp_path: Path) -> None:
    task = Account(id="task:t1", tokens=1000)
    async with rig(tmp_path, [OK]) as one:
        pays(one, KEY, task)
        call = await one.answer()

        assert [c.account for c in call.charges] == ["key:k1", "task:t1"]
        assert [c.tokens for c in call.charges] == [18, 18]


async def test_every_call_of_many_is_settled_whatever_became_of_it(
    tmp_path: Path,
) -> None:
    rules = [
        Rule(when="down", status=503),
        Rule(when="bad", status=400),
        Rule(when="late", reply="late", delay_s=30),
        OK,
    ]
    async with rig(tmp_path, rules, rules) as one:
        pays(one, KEY)
        kinds = ["fine", "down", "bad", "late"] * 6
        asked = [asyncio.create_task(one.answer(f"{kind} please")) for kind in kinds]
        while len(one.models["a"].requests) < len(kinds):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

        counting = [call for call in one.ended() if call.attempt_of is None]
        refused = len(kinds) - len(counting)  # an open breaker: nobody was asked
        assert refused <= 12
        assert one.everybody_left()
        ids = [call.interaction_id for call in one.ended()]
        assert len(set(ids)) == len(ids)
        assert {line["interaction_id"] for line in one.lines("b")} <= set(ids)
        charged = sum(c.usd for call in one.ended() for c in call.charges)
        assert await free(one) == -charged


# Requests and tokens a minute


async def test_who_takes_no_more_a_minute_is_passed_over(tmp_path: Path) -> None:
    async with rig(tmp_path, [OK], [OK], each=[{"rpm": 2}]) as one:
        asked = [(await one.answer()).deployment for _ in range(4)]

        assert asked == ["a", "a", "b", "b"]
        assert one.order[0].breaker.snapshot().failed == 0, "it is as well as before"


async def test_with_nobody_else_the_caller_is_told_when_to_come_back(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, [OK], each=[{"rpm": 1}]) as one:
        await one.answer()
        with pytest.raises(RateLimited, match="1 requests a minute") as caught:
            await one.ask()

        assert 0 < caught.value.retry_after_s <= 61
        assert len(one.models["a"].requests) == 1
        assert len(one.ended()) == 1


async def test_a_short_wait_for_the_next_minute_is_waited(tmp_path: Path) -> None:
    async with rig(tmp_path, [OK], each=[{"rpm": 1, "timeout_s": 120}]) as one:
        await one.answer()
        one.clock.now += 57
        await one.answer()

        assert len(one.clock.pauses) == 1
        assert len(one.models["a"].requests) == 2


async def test_tokens_a_minute_are_those_that_were_used(tmp_path: Path) -> None:
    async with rig(tmp_path, [OK], each=[{"tpm": 200}]) as one:
        pays(one, max_tokens=50)  # 150 are taken, 18 are used
        for _ in range(3):
            await one.answer()
            await one.dispatcher.close()
        with pytest.raises(RateLimited, match="200 tokens a minute"):
            await one.ask(max_tokens=1)

        assert len(one.models["a"].requests) == 3


async def test_what_failed_for_free_takes_no_tokens_of_a_minute(tmp_path: Path) -> None:
    rules = [Rule(status=400, times=5), OK]
    async with rig(tmp_path, rules, [OK], each=[{"tpm": 200}]) as one:
        pays(one, max_tokens=50)
        for _ in range(5):
            assert (await one.answer()).deployment == "b"
            await one.dispatcher.close()
        assert (await one.answer()).deployment == "a"


async def test_what_the_budget_refuses_takes_nothing_of_a_minute(
    tmp_path: Path,
) -> None:
    limits: dict[str, Any] = {"rpm": 1, "tpm": 160}
    async with rig(tmp_path, [OK], each=[limits]) as one:
        pays(one, Account(id="key:poor", usd=Decimal("0.0001")))
        for _ in range(3):
            with pytest.raises(BudgetExceeded):
                await one.ask()
            await one.dispatcher.close()
        pays(one)
        await one.answer()


async def test_embeddings_are_counted_by_what_they_read(tmp_path: Path) -> None:
    async with rig(tmp_path, [OK], each=[{"kind": Kind.EMBEDDINGS}]) as one:
        pays(one, KEY)
        answered = await one.ask()
        usage = Usage(input_tokens=11)
        call = one.dispatcher.settle(answered, usage, replayed=False)

        assert call.charges[0].tokens == 11
